"""The run of a job on disk: whether it is there, and whether it is complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data import miniature
from data.base import Dataset
from eval.job import Job, Rows, Work, load_rows
from eval.records import Record, read_records
from eval.run_file import NOT_HASHED, RUN_FILE, Run, config_hash, read_run


def source_of(job: Job) -> str:
    """Where a job has its rows from."""
    return job.spec.data if job.settings.data == "auto" else job.settings.data


def rows_of(job: Job) -> Rows:
    """The rows of a job; LongBench's from the hub, and those that are not on this machine, as its own without content.

    A run's folder needs no more of them than their hash. Raises ValueError for rows that are here and malformed.
    """
    source = source_of(job)
    here = source != "hub" and Path(source).expanduser().exists()
    revision = job.task.blob_e if job.task.e else job.task.blob
    if job.task.made or source in miniature.DENSITY or here or job.task.benchmark != "longbench":
        return load_rows(job)
    return Rows(job.task, Dataset((), source, revision or "", official=True), source)


def num_rows(work: Work) -> int:
    """The rows of the task, whether they are on this machine or not."""
    return len(work.dataset) or work.task.num_rows


def complete(work: Work) -> dict[str, Record]:
    """The answers to all samples of a run. Raises ValueError, with the counts, where one is missing or failed."""
    if not (work.folder / RUN_FILE).exists():
        raise ValueError(absence(work))
    if config_hash(read_run(work.folder).config) != work.folder.name:
        raise ValueError(f"{work.folder} holds a run of another config; move it away")
    limit, records = work.job.settings.limit, read_records(work.folder)
    expected = min(num_rows(work), limit or num_rows(work))
    if work.samples:
        records = {sample.id: records[sample.id] for sample in work.samples if sample.id in records}
    elif len(records) > expected:
        raise ValueError(f"{len(records)} records, {expected} samples asked: give data=PATH of the rows to tell which")
    failed, missing = sum(record.error is not None for record in records.values()), expected - len(records)
    if failed or missing:
        counts = [f"{missing} of {expected} samples missing"] if missing else []
        raise ValueError(", ".join([*counts, *([f"{failed} of {expected} samples failed"] if failed else [])]))
    return records


def absence(work: Work) -> str:
    """That there is no run, and in what the nearest one of the same model, task and method differs."""
    others = []
    for path in work.folder.parent.glob(f"*/{RUN_FILE}"):
        try:
            others.append(read_run(path.parent))
        except ValueError:
            continue
    if not others:
        return "no run"
    nearest = min((differing(work.config, run) for run in others), key=len)
    return f"no run; the nearest of {len(others)} others differs in {', '.join(nearest)}"


def differing(config: Mapping[str, Any], run: Run) -> list[str]:
    """The keys in which a run differs from a config."""
    ours = dict(_flat({key: value for key, value in config.items() if key not in NOT_HASHED}))
    theirs = dict(_flat(run.config))
    return sorted(key for key in {*theirs, *ours} if ours.get(key) != theirs.get(key))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(item) if isinstance(item, tuple) else item
