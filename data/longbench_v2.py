"""LongBench v2 (arXiv 2412.15204): choices about long texts, from a folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import longbench
from data.base import Dataset, Sample, Task
from data.longbench import check_row, git_blob_sha1, is_text, read_file, unique
from data.miniature import DENSITY

HUB_REPOSITORY = "zai-org/LongBench-v2"
FILE = "data.json"
HUB_REMEDY = f"give data=PATH of a folder with {FILE}"
LETTERS = ("A", "B", "C", "D")
DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")
CHOICES = tuple(f"choice_{letter}" for letter in LETTERS)
FIELDS = (
    f"_id, question, {', '.join(CHOICES)}, context (text), answer ({', '.join(LETTERS)}), "
    f"difficulty ({', '.join(DIFFICULTIES)}), length ({', '.join(LENGTHS)})"
)


def load(task: Task, source: str) -> Dataset:
    """The rows in file order. source: as in `data.rows.read`. No hash of the file is published.

    Raises ValueError, in one line, for what cannot be read or is no such row.
    """
    if source in DENSITY:
        task.small()
    if source == "hub":
        path = longbench.hub_file(HUB_REPOSITORY, FILE, None, HUB_REMEDY)
        # The hub's cache keeps files under snapshots/<commit>/.
        where = f"hub:{HUB_REPOSITORY}@{path.parent.name}:{FILE}"
    else:
        path = _local(Path(source).expanduser())
        where = str(path)
    data = read_file(path)
    return Dataset(parse(data, where), where, git_blob_sha1(data), official=None)


def parse(data: bytes, where: str) -> tuple[Sample, ...]:
    """The samples in a JSON list. where: its name in errors. Raises ValueError with the row for what is no such row.

    All texts are stripped, as the official prompt does. Unlike there, a text that happens to hold a mark of the
    official template, such as $Q$, stays as it is.
    """
    samples: list[Sample] = []
    taken: set[str] = set()
    for number, row in enumerate(_rows(data, where)):
        check_row(row, RULES, f"{where}: row {number}", FIELDS)
        samples.append(_sample(row, unique(row["_id"], taken)))
        taken.add(samples[-1].id)
    if not samples:
        raise ValueError(f"{where} is empty; it must hold a list of objects with {FIELDS}")
    return tuple(samples)


def _sample(row: Mapping[str, Any], sample_id: str) -> Sample:
    context = row["context"].strip()
    return Sample(
        id=sample_id,
        context=context,
        input=row["question"].strip(),
        answers=(row["answer"],),
        all_classes=None,
        length=len(context.split()),
        fields={name: row[name].strip() for name in CHOICES},
        groups=(row["difficulty"], row["length"]),
    )


def _rows(data: bytes, where: str) -> Sequence[Mapping[str, Any]]:
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no complete JSON ({error}); repair or fetch the file again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{where} is no JSON list of objects; it must hold one with {FIELDS}")
    return rows


def _local(path: Path) -> Path:
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise ValueError(f"{path} is not there; give data=hub or data=PATH of a folder with {FILE}")
    return path


RULES = {
    **dict.fromkeys(("_id", "question", "context", *CHOICES), is_text),
    "answer": lambda value: value in LETTERS,
    "difficulty": lambda value: value in DIFFICULTIES,
    "length": lambda value: value in LENGTHS,
}
