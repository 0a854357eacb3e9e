"""Equal averages: budgets at which others attend as many tokens as one row did, and the runs made at them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import pandas as pd

from eval.asked import asked
from eval.comparison import Comparison, Options, columns_of, compare, find_baseline
from eval.comparison_tables import DASH
from eval.cost import QUANTITIES
from eval.records import Record
from eval.run_sets import Row, RunSet
from eval.stored import Stored

Unit = Literal["tok", "ratio"]
PARTS = 10_000  # of a ratio's steps


@dataclass(frozen=True)
class Target:
    """What the reference attended on one task, and the budget that gives others the same average.

    attended: mean over the samples, tokens per step and KV head, sink included, as its ledgers have them.
    expected: that of a method that spends the whole budget. num_dense: prompts within the budget, of n.
    """

    run: Stored
    attended: float
    budget: str
    expected: float
    num_dense: int
    n: int


@dataclass(frozen=True)
class Matched:
    """The reference's row and those at its averages, which may be none yet. targets: by task.

    missing: for each task the wanted methods that have no complete run at the budget.
    """

    comparison: Comparison
    reference: Row
    targets: Mapping[str, Target]
    missing: Mapping[str, tuple[str, ...]]


def match(
    run_set: RunSet,
    name: str,
    methods: Sequence[str],
    unit: Unit,
    limit: int | None,
    data: str | None,
    options: Options,
) -> Matched | None:
    """The rows that were made at the averages of row or method `name`; None where the set has no such row.

    methods: those that are wanted; empty for all in the set that have a budget. options: its baseline is shown beside,
    differences are to the reference. Raises ValueError where the name is that of several rows, where the reference is
    not complete, and where no method is wanted.
    """
    reference = find_baseline(run_set.rows, name, "--match")
    if reference is None:
        return None
    others = [row for row in run_set.rows if row.method != reference.method]
    wanted = [method for method in methods if method != reference.method]
    wanted = wanted or list(dict.fromkeys(row.method for row in others if row.budget is not None))
    if not wanted:
        raise ValueError(f"--match {name}: no other method was run; add method=NAME[,NAME] of methods with a budget")
    samples = {
        task: asked([row.runs[task] for row in run_set.rows if task in row.runs], limit, data)
        for task in reference.runs
    }
    alone = replace(run_set, rows=(reference,), tasks=tuple(task for task in run_set.tasks if task in reference.runs))
    own = compare(alone, samples, columns_of(alone.tasks, run_set.miniature), options)
    targets = {task: _target(own, reference, task, unit) for task in alone.tasks}
    beside = [row for row in others if options.baseline in (row.label, row.method)]
    rows = (reference, *beside, *_merged(others, targets, f"as {name}"))
    kept = replace(alone, rows=tuple(replace(row, runs=_only(row, targets)) for row in rows if _only(row, targets)))
    found = compare(kept, samples, own.columns, replace(options, baseline=reference.label))
    return Matched(found, reference, targets, {task: tuple(_missing(found, wanted, task)) for task in targets})


def _only(row: Row, targets: Mapping[str, Target]) -> dict[str, Stored]:
    return {task: run for task, run in row.runs.items() if task in targets}


def _target(own: Comparison, reference: Row, task: str, unit: Unit) -> Target:
    cell, run = own.cells[reference.label, task], reference.runs[task]
    if cell.score is None:
        raise ValueError(f"{reference.label} on {task} is {cell.lacks}: its average is not known; finish it first")
    attended = own.costs[reference.label, task]["attended"].value
    if attended is None:
        raise ValueError(f"the records of {run.folder} do not say how many tokens were attended; run it again")
    records = list(own.records(reference, task).values())
    sink = int(run.run.config["sink"])
    prompts = [_length(record) for record in records]
    if attended >= fmean(prompts):
        raise ValueError(f"{reference.label} on {task} left nothing out: there is no average to match")
    number = nearest(lambda k: fmean(spent(k, unit, n, sink) for n in prompts), attended, _last(unit, prompts))
    expected = [spent(number, unit, n, sink) for n in prompts]
    num_dense = sum(e >= n for e, n in zip(expected, prompts, strict=True))
    budget = f"{number}tok" if unit == "tok" else f"{number / PARTS:g}"
    return Target(run, attended, budget, fmean(expected), num_dense, len(prompts))


def _length(record: Record) -> int:
    assert record.num_prompt_tokens is not None, "an answered record has its prompt's length"
    return record.num_prompt_tokens


def _last(unit: Unit, prompts: Sequence[int]) -> int:
    return max(prompts) if unit == "tok" else PARTS


def spent(number: int, unit: Unit, num_prompt_tokens: int, sink: int) -> int:
    """Tokens that a step attends at a budget of `number` tokens, or ten-thousandths of the prompt behind the sink."""
    behind = max(num_prompt_tokens - sink, 0)
    total = number if unit == "tok" else number * behind // PARTS
    return min(num_prompt_tokens, sink + total)


def nearest(average: Callable[[int], float], wanted: float, last: int) -> int:
    """The number from 1 to `last` whose average, which grows with it, is nearest to the wanted one."""
    above = min(1 + bisect_left(range(1, last + 1), wanted, key=average), last)
    below = max(above - 1, 1)
    return below if wanted - average(below) < average(above) - wanted else above


def _merged(rows: Sequence[Row], targets: Mapping[str, Target], budget: str) -> Iterator[Row]:
    """One row for each method and its parameters, of the runs at the budget of their own task."""
    arms: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, Stored]] = {}
    for row in rows:
        for task, run in row.runs.items():
            if task in targets and str(row.budget) == targets[task].budget:
                arms.setdefault((row.method, row.changed), {})[task] = run
    for (method, changed), runs in arms.items():
        yield Row(method, budget, changed, runs)


def _missing(found: Comparison, methods: Sequence[str], task: str) -> Iterator[str]:
    for method in methods:
        rows = [row for row in found.run_set.rows if row.method == method]
        if not any(found.cells[row.label, task].score for row in rows):
            yield method


def averages(matched: Matched) -> pd.DataFrame:
    """What each row attended on each task, measured, as text: the reference's, and how far others are from it."""
    quantity = next(quantity for quantity in QUANTITIES if quantity.key == "attended")
    lines: dict[str, list[str]] = {}
    for row in matched.comparison.run_set.rows:
        cells = []
        for task, target in matched.targets.items():
            cost = matched.comparison.costs.get((row.label, task), {}).get(quantity.key)
            value = None if cost is None else cost.value
            cells.append(DASH if value is None else f"{value:,.1f}" + _off(value, target.attended))
        lines[row.label] = cells
    heads = [f"{task} · {target.budget}" for task, target in matched.targets.items()]
    return pd.DataFrame(lines.values(), index=pd.Index(lines, name=quantity.label), columns=heads)


def _off(value: float, wanted: float) -> str:
    return "" if value == wanted else f" ({100 * (value / wanted - 1):+.1f} %)".replace("-", "−")
