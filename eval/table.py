"""A table: our runs of each cell, beside what was published of it; a cell that is not complete is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data import miniature
from eval.anchors import protocol_of
from eval.cost import QUANTITIES, Cost, costs, over_tasks
from eval.job import Job, Rows, prepare
from eval.lookup import complete, num_rows, rows_of, source_of
from eval.paired import Estimate, Scored, average, mean, scored
from eval.published import Published, only
from eval.task_sets import MINIATURE_SETS, TASK_SETS, task_set


@dataclass(frozen=True)
class TableSpec:
    """The node `table` of an experiment.

    averages: names of task sets; each average is a column, and has a number only where all its tasks are complete.
    task_sets: sets of this table's own, besides those of `eval.task_sets`.
    published: file of `data/published` that holds the scores to compare with; None: there are none.
    tolerance: points that ours may differ by, even where the published score is outside of our interval.
    costs: keys of `eval.cost.QUANTITIES`; each is a column, of means over all tasks of the row.
    differences: what the paper did otherwise than this experiment does.
    """

    title: str
    averages: tuple[str, ...] = ()
    task_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arxiv: str | None = None
    published: str | None = None
    tolerance: float = 0.0
    costs: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise ValueError(f"table.tolerance={self.tolerance} is out of range: give 0 or more points")
        if taken := sorted({*self.task_sets} & {*TASK_SETS, *MINIATURE_SETS}):
            raise ValueError(f"table.task_sets: {', '.join(taken)} has a meaning already; give another name")
        known = [quantity.key for quantity in QUANTITIES]
        if unknown := [key for key in self.costs if key not in known]:
            raise ValueError(f"table.costs: {', '.join(unknown)} is unknown; allowed are {', '.join(known)}")

    @property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """The tasks of each average. Raises ValueError for an unknown set."""
        return {name: self.task_sets.get(name) or task_set(name) for name in self.averages}


@dataclass(frozen=True)
class Asked:
    """A cell that the experiment asks for. setting: what its row has besides the label, such as the budget."""

    label: str
    setting: str
    job: Job


@dataclass(frozen=True)
class Cell:
    """What we have of one cell.

    budget, prompt: as published scores write them, for which a chat template that was left out is another protocol.
    estimate: None where the cell is refused, and `refusal` then says why.
    whole: all rows of the task, as LongBench published them, were asked.
    num_dense: samples that the method left alone, as their prompts were within the budget: a full cache's scores.
    costs: by key of `eval.cost.QUANTITIES`; empty where the cell is refused.
    """

    label: str
    setting: str
    task: str
    model: str
    budget: str
    protocol: str
    prompt: str
    miniature: bool
    estimate: Estimate | None = None
    refusal: str | None = None
    whole: bool = False
    num_dense: int = 0
    samples: tuple[Scored, ...] = ()
    run: str = ""
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def row(self) -> tuple[str, str]:
        return (self.label, self.setting)


@dataclass(frozen=True)
class Line:
    """A cell and the published number, if any. difference: ours minus published, in points."""

    cell: Cell
    published: Published | None
    difference: float | None
    verdict: str


def cells(asked: Sequence[Asked], averages: Mapping[str, Sequence[str]]) -> list[Cell]:
    """All cells in order, then the averages of each row.

    Raises ValueError where one table would mix protocols, or miniature with real rows, or show a run as two rows.
    """
    found: dict[tuple[str, str, str], Cell] = {}
    runs: dict[Path, tuple[str, str, str]] = {}
    rows: dict[tuple[object, str], Rows | Exception] = {}  # read once for all rows of the table
    for wanted in asked:
        cell, folder = examine(wanted, rows)
        key = (*cell.row, cell.task)
        other = runs.setdefault(folder, key) if folder is not None else key
        if other != key:
            raise ValueError(f"{_named(other)} and {_named(key)} are the same run ({folder}): a run has one row only")
        if key in found and found[key].run != cell.run:
            raise ValueError(f"two runs would stand in the cell {_named(key)}: give their arms different labels")
        found[key] = cell
    _require_alike(list(found.values()))
    return [*found.values(), *_averages(list(found.values()), averages)]


def _named(key: Sequence[str]) -> str:
    return " ".join(part for part in key if part)


def _require_alike(found: Sequence[Cell]) -> None:
    for what, kinds in (
        ("protocols", {cell.protocol for cell in found}),
        ("data", {"miniature" if cell.miniature else "LongBench" for cell in found}),
    ):
        if len(kinds) > 1:
            raise ValueError(f"the experiment mixes {what} ({', '.join(sorted(kinds))}); a table has one: split it")


def examine(asked: Asked, rows: dict[tuple[object, str], Rows | Exception]) -> tuple[Cell, Path | None]:
    """A cell as its records have it, and its run's folder; what it lacks is its refusal, never an error."""
    job, free = asked.job, asked.job.method.kind == "none"
    small = source_of(job) in miniature.DENSITY
    about: dict[str, Any] = {
        "label": asked.label,
        "setting": asked.setting,
        "task": job.task.file_name,
        "model": job.spec.name,
        "budget": "" if free else str(job.settings.budget),
        "protocol": job.settings.protocol,
        "prompt": protocol_of(job.config),
        "miniature": small,
    }
    folder = None
    try:
        work = prepare(job, _rows(job, rows))
        folder = work.folder
        records = complete(work)
    except (ValueError, OSError) as error:
        return Cell(**about, refusal=" ".join(str(error).split()), run=folder.name if folder else ""), folder
    samples = scored(job.task.file_name, records)
    whole = len(samples) == num_rows(work) and work.dataset.official is not False
    num_dense = sum(record.dense_short for record in records.values())
    spent = costs({job.task.file_name: list(records.values())})
    found = Cell(**about, estimate=mean(samples), whole=whole, num_dense=num_dense, samples=samples, costs=spent)
    return replace(found, run=folder.name), folder


def _rows(job: Job, known: dict[tuple[object, str], Rows | Exception]) -> Rows:
    """The rows of a job, or why there are none, which may take a network a while to say: once for all arms."""
    key = (job.task, source_of(job))
    if key not in known:
        try:
            known[key] = rows_of(job)
        except (ValueError, OSError) as error:
            known[key] = error
    found = known[key]
    if isinstance(found, Exception):
        raise found
    return found


def _averages(found: Sequence[Cell], averages: Mapping[str, Sequence[str]]) -> Iterator[Cell]:
    for row in dict.fromkeys(cell.row for cell in found):
        of_task = {cell.task: cell for cell in found if cell.row == row}
        for name, tasks in averages.items():
            yield averaged(name, tasks, of_task)


def averaged(name: str, tasks: Sequence[str], of_task: Mapping[str, Cell]) -> Cell:
    """The mean over the tasks of a set, each with one weight; refused where one is not there or refused itself."""
    one = next(iter(of_task.values()))
    about: dict[str, Any] = {
        key: getattr(one, key) for key in ("label", "setting", "model", "budget", "protocol", "miniature")
    }
    # Some tasks have the same prompt with and without a chat template, so the others decide.
    about["prompt"] = max((cell.prompt for cell in of_task.values()), key=len)
    members = {task: of_task[task] for task in tasks if task in of_task and of_task[task].estimate is not None}
    if lacking := [task for task in tasks if task not in members]:
        which = "all" if len(lacking) == len(tasks) else ", ".join(lacking)
        return Cell(**about, task=name, refusal=f"an average of {len(tasks)} tasks, lacking {which}")
    samples = {task: cell.samples for task, cell in members.items()}
    whole = all(cell.whole for cell in members.values())
    num_dense = sum(cell.num_dense for cell in members.values())
    spent = over_tasks([cell.costs for cell in members.values()])
    return Cell(**about, task=name, estimate=average(samples), whole=whole, num_dense=num_dense, costs=spent)


def compare(found: Sequence[Cell], published: Sequence[Published], tolerance: float) -> list[Line]:
    """Each cell with its published number. Generated rows have none, whatever the file says."""
    return [_line(cell, None if cell.miniature else _published(cell, published), tolerance) for cell in found]


def _published(cell: Cell, published: Sequence[Published]) -> Published | None:
    return only(published, (cell.model, cell.label, cell.budget, cell.task, cell.prompt))


def _line(cell: Cell, published: Published | None, tolerance: float) -> Line:
    if cell.estimate is None:
        return Line(cell, published, None, "refused")
    if published is None:
        return Line(cell, None, None, "no published value")
    if not cell.whole:
        return Line(cell, published, None, f"not compared: {cell.estimate.n} samples are not the whole task")
    return Line(cell, published, cell.estimate.value - published.score, verdict(cell.estimate, published, tolerance))


def verdict(ours: Estimate, published: Published, tolerance: float) -> str:
    """Whether the published score may be that of our runs: in our 95 % interval, or nearer than the tolerance."""
    difference = ours.value - published.score
    if ours.low is not None and ours.high is not None and ours.low <= published.score <= ours.high:
        return "reproduced: within our interval"
    if abs(difference) <= tolerance:
        return f"reproduced: within {tolerance:g} points"
    return f"off by {difference:+.2f}"
