"""The real LongBench rows (arXiv 2308.14508), from a folder, a `data.zip` or the hub."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from textwrap import shorten
from typing import Any

from data.base import Dataset, Sample, Task

HUB_REPOSITORY = "zai-org/LongBench"
HUB_REMEDY = "give data=PATH of a folder with the jsonl files or of a downloaded data.zip"
ZIP_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
FIELDS = "context, input (text), answers (list of text), all_classes (list of text or null), length (whole number)"


def load(task: Task, source: str, limit: int | None = None, revision: str | None = None) -> Dataset:
    """The rows of a task in file order.

    source: a folder that holds `<file_name>.jsonl`, `data/<file_name>.jsonl` or `data.zip`; a path to such a zip; or
        "hub", where the text must have the published git blob hash.
    limit: the first rows only.
    revision: a commit of the hub's dataset; None is the newest one.
    Raises ValueError, in one line, for what cannot be read or is no LongBench row.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1, or null for all rows")
    data, where = _read_hub(task, revision) if source == "hub" else read_local(task, Path(source).expanduser())
    found, published = git_blob_sha1(data), task.blob_e if task.e else task.blob
    official = None if published is None else found == published
    if source == "hub" and official is False:
        raise ValueError(f"{where} has git blob hash {found}, but LongBench published {published}; {HUB_REMEDY}")
    return Dataset(samples=parse(data, where, limit), source=where, revision=found, official=official)


def parse(data: bytes, where: str, limit: int | None = None) -> tuple[Sample, ...]:
    """The samples in the text of a LongBench jsonl file.

    A sample's id is the row's `_id`, or `row-<i>` where there is none; `-2`, `-3` ... make a repeated one unique.
    where: the name of the text in errors. Raises ValueError with the line for anything that is no LongBench row.
    """
    samples: list[Sample] = []
    taken: set[str] = set()
    for line, row in json_lines(data, where):
        if limit is not None and len(samples) >= limit:
            break
        check_row(row, ROW_RULES, f"{where}:{line}", FIELDS)
        sample = _sample(row, unique(str(row.get("_id") or f"row-{line - 1}"), taken))
        taken.add(sample.id)
        samples.append(sample)
    if not samples:
        raise ValueError(f"{where} is empty; it must hold one JSON object a line with {FIELDS}")
    return tuple(samples)


def json_lines(data: bytes, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line numbers (from 1) and objects of a jsonl text. Raises ValueError with the line if one is malformed.

    Plain `json`, because the JSON loader of `datasets` turns answers such as "2001-02-03" into time stamps, even under
    declared string features, and numbers in quotes into numbers.
    """
    # Bytes are cut at newlines only; text would also be cut at U+2028 and U+0085, which JSON strings may hold.
    for number, line in enumerate(data.rstrip().splitlines(), start=1):
        yield number, _json_object(line, f"{where}:{number}", "utf-8-sig" if number == 1 else "utf-8")


def check_row(row: Mapping[str, Any], rules: Mapping[str, Callable[[Any], bool]], where: str, fields: str) -> None:
    """Raises ValueError unless every field that has a rule is there and keeps it; `fields` says what is allowed."""
    missing = [name for name in rules if name not in row]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; a row must hold {fields}")
    wrong = [f"{name}={json.dumps(row[name])[:40]}" for name, keeps in rules.items() if not keeps(row[name])]
    if wrong:
        raise ValueError(f"{where} has a value of the wrong type: {', '.join(wrong)}; a row must hold {fields}")


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_texts_or_null(value: object) -> bool:
    return value is None or is_texts(value)


def is_count(value: object) -> bool:
    # bool is an int in Python, but `true` is no length.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


ROW_RULES = {
    "context": is_text,
    "input": is_text,
    "answers": is_texts,
    "all_classes": is_texts_or_null,
    "length": is_count,
}


def git_blob_sha1(data: bytes) -> str:
    """The hash that git (and the hub) gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises ValueError, in one line, if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _json_object(line: bytes, where: str, encoding: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(encoding))
    except (ValueError, RecursionError) as error:
        reason = str(error) if line.strip() else "the line is empty"
        raise ValueError(f"{where} is no complete JSON ({reason}); repair or fetch the file again") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a JSON {type(row).__name__}; each line must be an object {{...}}")
    return row


def _sample(row: dict[str, Any], sample_id: str) -> Sample:
    classes = row["all_classes"]
    return Sample(
        id=sample_id,
        context=row["context"],
        input=row["input"],
        answers=tuple(row["answers"]),
        all_classes=None if classes is None else tuple(classes),
        length=row["length"],
    )


def unique(wanted: str, taken: set[str]) -> str:
    """The wanted id, or with `-2`, `-3` ... where it is taken."""
    candidates = chain([wanted], (f"{wanted}-{repeat}" for repeat in count(2)))
    return next(name for name in candidates if name not in taken)


def read_local(task: Task, path: Path) -> tuple[bytes, str]:
    """A task's jsonl in a folder or zip, and its address. Raises ValueError, in one line, where there is none."""
    name = f"{task.file_name}.jsonl"
    if path.is_dir():
        for file in (path / name, path / "data" / name):
            if file.is_file():
                return read_file(file), str(file)
        if not (path / "data.zip").is_file():
            raise ValueError(f"{path} holds no {name}, data/{name} or data.zip; give data=hub or another data=PATH")
        path = path / "data.zip"
    if not path.is_file():
        raise ValueError(f"data={path} is neither a folder nor a data.zip; give data=hub or the PATH of one")
    data, member = _read_zip(path, name)
    return data, f"{path}:{member}"


def _read_zip(path: Path, name: str) -> tuple[bytes, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in (f"data/{name}", name):
                if member in archive.namelist():
                    return archive.read(member), member
    except ZIP_ERRORS as error:
        raise ValueError(f"{path} is no readable zip ({error}); download data.zip of {HUB_REPOSITORY} again") from None
    raise ValueError(f"{path} holds no data/{name}; give data=PATH of the data.zip of {HUB_REPOSITORY}")


def hub_file(repository: str, name: str, revision: str | None, remedy: str) -> Path:
    """A file of a hub's dataset, below a folder named by its commit. Raises ValueError, in one line with the remedy."""
    # Imported here, because it takes a second.
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))
    # Any exception: the client raises its own, the HTTP library's and the system's.
    except Exception as error:
        reason = shorten(str(error), 160, placeholder=" …")
        raise ValueError(f"{name} of {repository} did not come from the hub ({reason}); {remedy}") from None


def _read_hub(task: Task, revision: str | None) -> tuple[bytes, str]:
    path = hub_file(HUB_REPOSITORY, "data.zip", revision, HUB_REMEDY)
    data, member = _read_zip(path, f"{task.file_name}.jsonl")
    # The hub's cache keeps files under snapshots/<commit>/.
    return data, f"hub:{HUB_REPOSITORY}@{path.parent.name}:{member}"
