"""One JSON line a sample: what was answered, how good it was, what it cost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from eval.json_files import cannot_write, encode, fsync_folder, strict_json

_TEXT = (str,)
_COUNT = (int,)
_NUMBER = (int, float)
_NONE = (type(None),)
_TYPES: dict[str, tuple[type, ...]] = {
    "id": _TEXT,
    "prediction": _TEXT + _NONE,
    "score": _NUMBER + _NONE,
    "num_prompt_tokens": _COUNT + _NONE,
    "num_new_tokens": _COUNT + _NONE,
    "prompt_sha": _TEXT + _NONE,
    "truncated": (bool,),
    "dense_short": (bool,),
    "length": _COUNT,
    "ledger": (dict,),
    "error": _TEXT + _NONE,
    "seconds": _NUMBER + _NONE,
    "context_sha": _TEXT + _NONE,
    "turn": _COUNT + _NONE,
    "groups": (list, *_NONE),
    "reasoning": _TEXT + _NONE,
}


@dataclass(frozen=True)
class Record:
    """The answer to one sample, or the reason why there is none. Plain JSON values only.

    prediction, score: the decoded text and its score in 0-1; both None, never 0, when the sample failed.
    num_prompt_tokens, num_new_tokens, prompt_sha: None where a failure came before they were known.
    prompt_sha: hash of the rendered prompt's token ids.
    truncated: the prompt was cut in its middle to fit the model.
    dense_short: the prompt was within the budget, so nothing was left out.
    length: the dataset's stored length (it decides LongBench-E buckets), not a token count.
    ledger: what the answer cost, as the engine counted it; empty when the sample failed early.
    error: one text that says what went wrong, None for an answered sample.
    seconds: wall time of the whole sample.
    context_sha: hash of the context's text; samples about one document share it. None where it was not recorded.
    turn: number of the question among those about its context, from 1; None where a row has one question.
    groups: the parts of the task that the sample counts for besides the whole; None for none.
    reasoning: what was said to the prompt, where the prediction answers a second one behind it.

    Raises ValueError for ill-typed fields, a score outside 0-1, and what is neither an answer nor a failure.
    """

    id: str
    prediction: str | None
    score: float | None
    num_prompt_tokens: int | None
    num_new_tokens: int | None
    prompt_sha: str | None
    truncated: bool
    dense_short: bool
    length: int
    ledger: dict[str, Any]
    error: str | None
    seconds: float | None
    context_sha: str | None = None
    turn: int | None = None
    groups: list[str] | None = None
    reasoning: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_type(name, value)
        if self.error is None:
            if self.prediction is None or self.score is None:
                raise ValueError(f"record {self.id!r} has no error, so it needs a prediction and a score")
            if not 0 <= self.score <= 1:
                raise ValueError(f"record {self.id!r} has score {self.score!r}; a record's score is within 0-1")
        elif self.prediction is not None or self.score is not None:
            raise ValueError(f"record {self.id!r} failed, so its prediction and score must be None, not {self.score!r}")

    @classmethod
    def failed(
        cls,
        id: str,  # noqa: A002
        error: str,
        length: int,
        num_prompt_tokens: int | None = None,
        prompt_sha: str | None = None,
        seconds: float | None = None,
    ) -> Record:
        """A sample that gave no answer. It is counted, never scored, and asked again on resume."""
        return cls(
            id=id,
            prediction=None,
            score=None,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=None,
            prompt_sha=prompt_sha,
            truncated=False,
            dense_short=False,
            length=length,
            ledger={},
            error=error,
            seconds=seconds,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields in their order, as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`. Raises ValueError for unknown and missing fields, and as Record does.

        An unknown field is refused, not dropped: the file is of another version, and a rewrite would lose data.
        """
        known = [field.name for field in fields(cls)]
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        if unknown := sorted(set(row) - set(known)):
            raise ValueError(f"unknown fields {unknown}; a record has {known}: read it with the version that wrote it")
        if missing := [name for name in needed if name not in row]:
            raise ValueError(f"missing fields {missing}; a record has {known}")
        return cls(**row)


def _check_type(name: str, value: Any) -> None:
    allowed = _TYPES[name]
    # A bool is an int in Python, and `"score": true` is no score.
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ValueError(f"field {name!r} is {value!r}; it must be {' or '.join(kind.__name__ for kind in allowed)}")


class Lines(NamedTuple):
    """A records file as read: its records in file order, and how many bytes hold whole lines."""

    records: tuple[Record, ...]
    num_whole_bytes: int


def read_lines(path: Path) -> Lines:
    """All records of one file, repeated ids included (the history). Only reads; a missing file has none.

    A torn last line (no newline at its end, or no JSON) is left out: its sample is asked again. Raises ValueError that
    names file and line for a torn line anywhere else, and for JSON that is no record.
    """
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")[:-1]
    records: list[Record] = []
    num_whole_bytes = 0
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_parse(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if num_whole_bytes + len(line) + 1 == len(content):
                break
            raise ValueError(f"{path}:{number} is no JSON ({error}); restore or delete that line") from error
        except ValueError as error:
            raise ValueError(f"{path}:{number} is no record: {error}") from error
        num_whole_bytes += len(line) + 1
    return Lines(tuple(records), num_whole_bytes)


def _parse(line: bytes) -> Record:
    row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(row, dict):
        raise ValueError(f"it holds {line[:60]!r} in place of an object")
    return Record.from_json(row)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}; a missing number is null")


def merge(files: Iterable[Iterable[Record]]) -> dict[str, Record]:
    """The record that counts for each id. In one file the newest wins; over files, an answer wins over a failure.

    Files carry no common clock, and an answered id is never asked again, so an answer is the newer of the two.
    """
    merged: dict[str, Record] = {}
    for records in files:
        for name, record in {record.id: record for record in records}.items():
            if name not in merged or merged[name].error is not None:
                merged[name] = record
    return merged


def record_file(folder: Path, shard: int | None) -> Path:
    """Where a shard's records are; None stands for an unsharded run."""
    return folder / ("records.jsonl" if shard is None else f"records-{shard}.jsonl")


def record_files(folder: Path) -> list[Path]:
    """All records files of a run, the unsharded one first, then the shards by number."""
    names = [path.stem.removeprefix("records-") for path in folder.glob("records-*.jsonl")]
    paths = [record_file(folder, shard) for shard in (None, *sorted(int(name) for name in names if name.isdigit()))]
    return [path for path in paths if path.exists()]


def read_records(folder: Path) -> dict[str, Record]:
    """The record that counts for each id of a run, all shards merged. Only reads: a run in progress may be looked at.

    Raises ValueError, naming file and line, where a file is damaged anywhere but in its last line.
    """
    return merge(read_lines(path).records for path in record_files(folder))


class RecordWriter:
    """Appends records to one file so that each is on disk, whole, before the next sample is asked.

    Opening cuts a torn last line off. The caller holds the lock of the file. Raises ValueError as `read_lines` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = read_lines(path).num_whole_bytes
        self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if os.fstat(self._handle).st_size > whole:
            os.ftruncate(self._handle, whole)
        fsync_folder(path.parent)

    def append(self, record: Record) -> None:
        """Writes one line and waits for the disk.

        After an interrupt or a failed write (full disk, quota) the file is as it was before, never half a line longer.
        Raises OSError with the errno and one line that says what to do; ValueError for what JSON cannot carry.
        """
        if self._handle is None:
            raise OSError(f"{self.path} is closed; open the run folder again to go on")
        line = encode(strict_json(record.to_json(), f"record {record.id!r}") + "\n")
        size = os.fstat(self._handle).st_size
        try:
            _write_all(self._handle, line)
            os.fsync(self._handle)
        except OSError as error:
            self._roll_back(size)
            raise cannot_write(self.path, error) from error
        except BaseException:
            self._roll_back(size)
            raise

    def _roll_back(self, size: int) -> None:
        assert self._handle is not None
        try:
            os.ftruncate(self._handle, size)
        except OSError:
            # Appending to half a line would corrupt the middle of the file; the next opening cuts it off.
            self.close()

    def close(self) -> None:
        """Ends the writing; may be called twice."""
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)
            self._handle = None


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
