"""How long earlier samples of a model took on this kind of device, from the records on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from eval.records import Record, read_records
from eval.run_file import RUN_FILE, Run, read_run
from eval.run_folder import safe_name


@dataclass(frozen=True)
class Pace:
    """Seconds of a whole sample per token of its prompt. source: what was measured, in words."""

    seconds_per_token: float
    source: str


def pace(results: Path, model: str, task: str, method: str, config: Mapping[str, Any], device: str) -> Pace | None:
    """The pace of the runs that come closest: of the same task and method, else of the task, else of the model.

    Only runs with the same rows (miniature or not), dtype and kind of device count. A folder that cannot be read is
    passed over. None where nothing was measured.
    """
    runs = [run for run in earlier_runs(results / safe_name(model)) if comparable(run[0], config, device)]
    tiers = (
        (f"{method} on {task}", [r for run, r in runs if (run.task, run.method) == (task, method)]),
        (f"other methods on {task}", [r for run, r in runs if run.task == task]),
        ("other tasks", [r for _, r in runs]),
    )
    found = (measured(list(chain.from_iterable(records)), name) for name, records in tiers)
    return next((each for each in found if each is not None), None)


def measured(records: list[Record], name: str) -> Pace | None:
    """The pace of these answers, None where they carry no times."""
    timed = [(r.seconds, r.num_prompt_tokens) for r in records if r.error is None and r.seconds and r.num_prompt_tokens]
    if not timed:
        return None
    number = "1 sample" if len(timed) == 1 else f"{len(timed)} samples"
    return Pace(sum(s for s, _ in timed) / sum(n for _, n in timed), f"{number} of {name}")


def comparable(run: Run, config: Mapping[str, Any], device: str) -> bool:
    """Whether a run's times say something about this one's."""
    devices = {str(session.get("provenance", {}).get("device")).split(":")[0] for session in run.sessions}
    return devices == {device} and all(run.config.get(key) == config.get(key) for key in ("data", "dtype"))


def earlier_runs(folder: Path) -> Iterator[tuple[Run, list[Record]]]:
    """The readable runs of one model, with their records."""
    for path in sorted(folder.glob(f"*/*/*/{RUN_FILE}")):
        try:
            yield read_run(path.parent), list(read_records(path.parent).values())
        except (ValueError, OSError):
            continue
