"""GSM8K (arXiv 2110.14168): grade-school problems, asked behind worked examples that a file of the user holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import shorten

from data import longbench
from data.base import Dataset, Sample, Task
from data.longbench import check_row, git_blob_sha1, is_text, json_lines, read_file
from data.miniature import DENSITY
from data.variants import Gsm8k

HUB_REPOSITORY = "openai/gsm8k"
HUB_FILE = "main/test-00000-of-00001.parquet"
HUB_REMEDY = "give data=PATH of a folder with test.jsonl or gsm8k_test.jsonl"
FILES = ("test.jsonl", "gsm8k_test.jsonl")
FIELDS = "question (text), answer (text that ends in #### and a number)"
FINAL = re.compile(r"####\s*(\S*\d\S*)\s*$")


def load(task: Task, source: str) -> Dataset:
    """The problems, all with the worked examples as their context. source: as in `data.rows.read`.

    official: whether both the rows and the examples have their published hashes; None for rows of the hub, which
    stores them otherwise. Raises ValueError, in one line, for what cannot be read or is no such row.
    """
    spec = task.gsm8k
    assert spec is not None
    if source in DENSITY:
        task.small()
    data, where = _read_hub() if source == "hub" else _read_local(Path(source).expanduser())
    examples = worked_examples(spec, Path(source).expanduser())
    official = (git_blob_sha1(data), git_blob_sha1(examples)) == (spec.blob, spec.examples_blob)
    samples = parse(data, where, _decoded(examples, spec))
    # Other examples are another question, so that they are part of what names the rows.
    revision = git_blob_sha1(data + examples)
    return Dataset(samples, where, revision, (official or None) if source == "hub" else official)


def parse(data: bytes, where: str, examples: str) -> tuple[Sample, ...]:
    """The samples in a jsonl text. where: its name in errors. Raises ValueError with the line for what is no row."""
    samples = []
    for line, row in json_lines(data, where):
        check_row(row, {"question": is_text, "answer": is_text}, f"{where}:{line}", FIELDS)
        final = FINAL.search(row["answer"])
        if final is None:
            raise ValueError(f"{where}:{line}: no number stands behind #### in the answer; a row must hold {FIELDS}")
        question = row["question"]
        samples.append(Sample(f"row-{line - 1}", examples, question, (final[1],), None, len(question.split())))
    if not samples:
        raise ValueError(f"{where} is empty; it must hold one JSON object a line with {FIELDS}")
    return tuple(samples)


def worked_examples(spec: Gsm8k, rows: Path) -> bytes:
    """The file of worked examples, beside the rows or where its path says. Raises ValueError where it is not."""
    beside = rows if rows.is_dir() else rows.parent
    for path in (beside / spec.examples, Path(spec.examples).expanduser()):
        if path.is_file():
            return read_file(path)
    raise ValueError(
        f"task.gsm8k.examples={spec.examples} is not there: give the PATH of the worked examples (PQCache's are "
        "GSM8k/gsm8k_prompt_formal.txt of HugoZHL/PQCache), or put that file beside the rows"
    )


def _decoded(examples: bytes, spec: Gsm8k) -> str:
    try:
        return examples.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"task.gsm8k.examples={spec.examples} is no UTF-8 text ({error})") from None


def _read_local(folder: Path) -> tuple[bytes, str]:
    for path in (folder, *(folder / name for name in FILES)):
        if path.is_file():
            return read_file(path), str(path)
    raise ValueError(f"{folder} holds no {' or '.join(FILES)}; give data=hub or another data=PATH")


def _read_hub() -> tuple[bytes, str]:
    path = longbench.hub_file(HUB_REPOSITORY, HUB_FILE, None, HUB_REMEDY)
    # Imported here, because it takes half a second.
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=["question", "answer"]).to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({shorten(str(error), 160, placeholder=' …')}); {HUB_REMEDY}"
        ) from None
    # As the published jsonl is laid out, which makes the texts comparable.
    data = "".join(json.dumps({"question": row["question"], "answer": row["answer"]}) + "\n" for row in rows).encode()
    # The hub's cache keeps files under snapshots/<commit>/.
    return data, f"hub:{HUB_REPOSITORY}@{path.parent.parent.name}:{HUB_FILE}"
