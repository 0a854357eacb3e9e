"""The folder of one run: `run.json` says what was asked, the records files what came of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from eval.locks import exclusive, hold
from eval.records import Record, RecordWriter, read_records, record_file
from eval.run_file import Run, config_hash, enter

_MAX_NAME = 100


def safe_name(name: str) -> str:
    """One component of a path for a name, a hub address (`org/name` becomes `org--name`) or a local path.

    Raises ValueError where nothing is left of the name.
    """
    parts = [part for part in re.split(r"[/\\]+", name) if part.strip(". ")]
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", "--".join(parts)).lstrip(".-")
    if not safe:
        raise ValueError(f"{name!r} cannot name a results folder; use letters, digits, '.', '_' and '-'")
    if len(safe) > _MAX_NAME:
        safe = f"{safe[: _MAX_NAME - 11]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    return safe


def run_path(results: Path, model: str, task: str, method: str, config: Mapping[str, Any]) -> Path:
    """`results/<model>/<task>/<method>/<hash>`."""
    return results / safe_name(model) / safe_name(task) / safe_name(method) / config_hash(config)


class RunFolder:
    """The one writer of a run's records, or of one shard of them. A context manager: leaving it gives the lock back."""

    def __init__(self, path: Path, run: Run, lock: FileLock, writer: RecordWriter) -> None:
        self.path = path
        self.run = run
        self._lock = lock
        self._writer = writer

    @classmethod
    def open(
        cls,
        results: Path,
        model: str,
        task: str,
        method: str,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        shard: int | None = None,
    ) -> RunFolder:
        """Makes or resumes the run of this config and becomes its writer.

        shard: None writes `records.jsonl`, a number `records-<shard>.jsonl`; shards may write at the same time.
        `run.json` is on disk before the first record; each later session adds itself to it, nothing is overwritten.
        Raises FolderInUse where another process writes these records, ValueError for a folder of another config or a
        damaged one, OSError where the disk is full.
        """
        if shard is not None and shard < 0:
            raise ValueError(f"shard={shard}; shards count from 0, and None stands for an unsharded run")
        path = run_path(results, model, task, method, config)
        path.mkdir(parents=True, exist_ok=True)
        lock = hold(path, shard)
        try:
            with exclusive(path):
                run = enter(path, model, task, method, config, provenance, shard)
            return cls(path, run, lock, RecordWriter(record_file(path, shard)))
        except BaseException:
            lock.release()
            raise

    def records(self) -> dict[str, Record]:
        """The record that counts for each id, all shards merged, as of now."""
        return read_records(self.path)

    def done(self) -> frozenset[str]:
        """Ids that need not be asked: those answered. A failed sample is asked again."""
        return frozenset(name for name, record in self.records().items() if record.error is None)

    def append(self, record: Record) -> None:
        """See `RecordWriter.append`."""
        self._writer.append(record)

    def close(self) -> None:
        """Gives the lock back; may be called twice."""
        self._writer.close()
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
