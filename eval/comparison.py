"""Rows of methods against a baseline: scores, paired differences, verdicts. All in points, 0-100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eval.anchors import Anchor, anchor, protocol_of
from eval.asked import Asked
from eval.cost import Cost, costs
from eval.flips import Flips, flips
from eval.paired import (
    Estimate,
    Pair,
    Verdict,
    average,
    holm,
    minimal_detectable_effect,
    non_inferior,
    p_value,
    pairs,
    scored,
)
from eval.records import Record
from eval.run_sets import Row, RunSet
from eval.stored import Stored
from eval.task_sets import covered

FULL = "full"  # the method whose scores others publish


@dataclass(frozen=True)
class Options:
    """baseline: the method or row that all are compared with. margin: points that may be lost. level: of intervals."""

    baseline: str = FULL
    margin: float = 1.0
    level: float = 0.95


@dataclass(frozen=True)
class Column:
    """A task, or an average over several, each of one weight."""

    name: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Against:
    """A cell compared with the baseline's on the same samples.

    difference: row minus baseline. verdict: Holm-corrected over the cell's family (`Comparison.families`).
    holds: whether the row is not worse by the margin; None where that cannot be said.
    flips: by task, which samples got better or worse.
    mde: the smallest true difference that so many samples would show with 80 % power; None where it is unknown.
    """

    pairs: tuple[Pair, ...]
    difference: Estimate
    verdict: Verdict
    holds: bool | None
    mde: float | None
    flips: Mapping[str, Flips]

    @property
    def same(self) -> bool:
        """Every sample has the baseline's score."""
        return all(pair.value == 0 for pair in self.pairs)


@dataclass(frozen=True)
class Cell:
    """A row's result in a column. score: None, never a part's mean, where samples failed or were not asked.

    anchor: how a score of the full cache stands to published ones; None for other rows and for averages.
    """

    num_answered: int
    num_expected: int | None
    num_failed: int
    score: Estimate | None
    against: Against | None = None
    anchor: Anchor | None = None

    @property
    def lacks(self) -> str:
        """Why there is no score; empty where there is one."""
        if self.score is not None:
            return ""
        if self.num_answered + self.num_failed == 0:
            return "not run"
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        whole = "an unknown number" if self.num_expected is None else str(self.num_expected)
        return f"incomplete: {self.num_answered} of {whole}{failed}"


@dataclass(frozen=True)
class Comparison:
    """One table. cells, costs: by (row's label, column's name). families: what each Holm correction is over, in words.

    baseline: None where there is no such row, so that nothing is compared. asked: the samples of each task.
    """

    run_set: RunSet
    options: Options
    asked: Mapping[str, Asked]
    columns: tuple[Column, ...]
    baseline: Row | None
    cells: Mapping[tuple[str, str], Cell]
    costs: Mapping[tuple[str, str], Mapping[str, Cost]]
    families: tuple[str, ...]

    @property
    def main(self) -> Column:
        """The column that costs and plots are of: the one with most complete runs in it, all tasks if all are there."""

        def num_complete(column: Column) -> int:
            rows = self.run_set.rows
            return len(column.tasks) * sum(self.cells[row.label, column.name].score is not None for row in rows)

        return max(self.columns, key=num_complete)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices on which the runs were made, in words."""
        runs = [run for row in self.run_set.rows for run in row.runs.values()]
        return tuple(sorted({str(s["provenance"].get("device")) for run in runs for s in run.run.sessions}))

    def records(self, row: Row, task: str) -> dict[str, Record]:
        """The records of a row that count: of the samples asked for, in the dataset's order."""
        return _chosen(row.runs.get(task), self.asked[task])


def compare(run_set: RunSet, asked: Mapping[str, Asked], columns: Sequence[Column], options: Options) -> Comparison:
    """The table of a set. Raises ValueError for an unknown or ambiguous baseline, and for prompts that differ."""
    baseline = find_baseline(run_set.rows, options.baseline)
    for task in run_set.tasks:
        _require_same_prompts(task, [row.runs[task] for row in run_set.rows if task in row.runs], asked[task])
    cells = {
        (row.label, column.name): _cell(row, column, asked, baseline, options)
        for row in run_set.rows
        for column in columns
    }
    families, verdicts = _verdicts(cells, columns, options)
    corrected = {key: _with_verdict(cell, verdicts.get(key)) for key, cell in cells.items()}
    spent = {
        (row.label, column.name): costs({t: _answered(_chosen(row.runs[t], asked[t])) for t in column.tasks})
        for row in run_set.rows
        for column in columns
        if cells[row.label, column.name].score is not None
    }
    return Comparison(run_set, options, asked, tuple(columns), baseline, corrected, spent, families)


def columns_of(tasks: Sequence[str], miniature: bool) -> tuple[Column, ...]:
    """The tasks, each named task set that they hold, and the mean over all of them."""
    singles = [Column(task, (task,)) for task in tasks]
    named = [Column(name, of) for name, of in covered(tasks, miniature).items() if len(of) > 1]
    if len(tasks) > 1 and not any(set(column.tasks) == set(tasks) for column in named):
        named.append(Column(f"mean of {len(tasks)} tasks", tuple(tasks)))
    return (*singles, *named)


def find_baseline(rows: Sequence[Row], name: str, option: str = "--baseline") -> Row | None:
    """The row of that label or method. Raises ValueError where several are of that method; `option` names it then."""
    found = [row for row in rows if row.label == name] or [row for row in rows if row.method == name]
    if len(found) > 1:
        labels = " or ".join(f"{option} '{row.label}'" for row in found)
        raise ValueError(f"{option.removeprefix('--')} {name} names {len(found)} rows: give {labels}")
    return found[0] if found else None


def _cell(row: Row, column: Column, asked: Mapping[str, Asked], baseline: Row | None, options: Options) -> Cell:
    chosen = {task: _chosen(row.runs.get(task), asked[task]) for task in column.tasks}
    answered = sum(len(_answered(records)) for records in chosen.values())
    failed = sum(len(records) for records in chosen.values()) - answered
    expected = [asked[task].num for task in column.tasks]
    whole = None if None in expected else sum(number for number in expected if number is not None)
    if whole is None or answered < whole:
        return Cell(answered, whole, failed, None)
    scores = {task: scored(task, records) for task, records in chosen.items()}
    score = average(scores, level=options.level)
    anchored = _anchor(row.runs[column.tasks[0]], score) if row.method == FULL and len(column.tasks) == 1 else None
    return Cell(answered, whole, failed, score, _against(row, column, asked, baseline, options), anchored)


def _anchor(run: Stored, score: Estimate) -> Anchor | None:
    config = run.run.config
    if str(config["data"]).startswith("miniature"):
        return None
    return anchor(run.run.model, run.run.task, protocol_of(config), score.value, score.n, config["task"]["num_rows"])


def _against(
    row: Row, column: Column, asked: Mapping[str, Asked], baseline: Row | None, options: Options
) -> Against | None:
    """The comparison of a complete cell; None for the baseline itself and where the baseline's cell is incomplete."""
    if baseline is None or row is baseline:
        return None
    base = {task: _chosen(baseline.runs.get(task), asked[task]) for task in column.tasks}
    if any(len(_answered(records)) != asked[task].num for task, records in base.items()):
        return None
    paired = {task: pairs(task, base[task], _chosen(row.runs[task], asked[task])) for task in column.tasks}
    flipped = {task: flips(task, base[task], _chosen(row.runs[task], asked[task])) for task in column.tasks}
    flat = tuple(pair for of_task in paired.values() for pair in of_task)
    estimate = average(paired, level=options.level)
    p = p_value(flat, macro=True)
    uncorrected = Verdict(p, p, p <= 1 - options.level)
    mde = minimal_detectable_effect(flat, alpha=1 - options.level, macro=True)
    return Against(flat, estimate, uncorrected, non_inferior(estimate, options.margin), mde, flipped)


def _verdicts(
    cells: Mapping[tuple[str, str], Cell], columns: Sequence[Column], options: Options
) -> tuple[tuple[str, ...], dict[tuple[str, str], Verdict]]:
    """Two families: all cells of single tasks, and all of averages, which are made of the same samples."""
    names: list[str] = []
    verdicts: dict[tuple[str, str], Verdict] = {}
    for what, several in (("single tasks", False), ("averages", True)):
        of_family = {column.name for column in columns if (len(column.tasks) > 1) is several}
        p = {key: cell.against.verdict.p for key, cell in cells.items() if cell.against and key[1] in of_family}
        if p:
            names.append(f"{len(p)} comparison{'s' if len(p) > 1 else ''} of {what}")
            verdicts.update(holm(p, 1 - options.level))
    return tuple(names), verdicts


def _with_verdict(cell: Cell, verdict: Verdict | None) -> Cell:
    if cell.against is None or verdict is None:
        return cell
    return replace(cell, against=replace(cell.against, verdict=verdict))


def _chosen(run: Stored | None, asked: Asked) -> dict[str, Record]:
    return {} if run is None else {name: run.records[name] for name in asked.ids if name in run.records}


def _answered(records: Mapping[str, Record]) -> list[Record]:
    return [record for record in records.values() if record.error is None]


def _require_same_prompts(task: str, runs: Sequence[Stored], asked: Asked) -> None:
    first: dict[str, tuple[str, Stored]] = {}
    for run in runs:
        for name, record in _chosen(run, asked).items():
            if record.prompt_sha is None or record.error is not None:
                continue
            sha, other = first.setdefault(name, (record.prompt_sha, run))
            if sha != record.prompt_sha:
                raise ValueError(
                    f"sample {name} of {task} had different prompts in {other.folder} and {run.folder}: they were made "
                    "by different versions of the code or of the tokenizer; run one of them again elsewhere (results=)"
                )
