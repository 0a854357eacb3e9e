"""Who may write a run folder. The kernel drops these locks with their process, so a killed run blocks nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from eval.records import record_file
from eval.run_file import read_run

_WAIT_S = 60.0
_PROBE_S = 1.0


class FolderInUse(RuntimeError):
    """Another process writes the records of this run."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time: for the files that shards share (`run.json`, `scores.json`). Waits for its turn.

    Raises FolderInUse after a minute.
    """
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout:
        raise FolderInUse(f"{folder} is held by another process for over {_WAIT_S:.0f} s; run again") from None
    try:
        yield
    finally:
        lock.release()


def hold(folder: Path, shard: int | None) -> FileLock:
    """Makes this process the one writer of a shard's records (None: of the unsharded file), until `release()`.

    Raises FolderInUse at once, naming folder and holder, where another process is that writer, and where an unsharded
    run and a shard would ask the same samples.
    """
    lock = FileLock(_lock_file(folder, shard))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise _in_use(folder, shard) from None
    try:
        _refuse_mixed_writers(folder, shard)
    except BaseException:
        lock.release()
        raise
    return lock


def _lock_file(folder: Path, shard: int | None) -> Path:
    return record_file(folder, shard).with_suffix(".lock")


def _refuse_mixed_writers(folder: Path, shard: int | None) -> None:
    # Each side holds its own lock before it looks for the other's, so of two that start together one sees the other.
    if shard is not None:
        if _is_held(_lock_file(folder, None)):
            raise _in_use(folder, None)
        return
    for other in sorted(folder.glob("records-*.lock")):
        if _is_held(other):
            raise _in_use(folder, int(other.stem.removeprefix("records-")))


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    probe = FileLock(path)
    try:
        # Shards that start together look at the same lock; a short wait tells a look from a writer.
        probe.acquire(timeout=_PROBE_S, poll_interval=0.02)
    except Timeout:
        return True
    probe.release()
    return False


def _in_use(folder: Path, shard: int | None) -> FolderInUse:
    holder = _holder(folder, shard)
    return FolderInUse(f"{folder} is being written by {holder}; wait for it, or give another results=FOLDER")


def _holder(folder: Path, shard: int | None) -> str:
    # A holder enters itself right after it has the lock, so the last session of a shard is its holder.
    with suppress(ValueError):
        for session in reversed(read_run(folder).sessions):
            if session.get("shard") == shard:
                return f"process {session.get('pid')} on {session.get('host')}"
    return "another process"
