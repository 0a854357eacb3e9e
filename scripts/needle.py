"""Draws the heat maps of runs of task=needle: length to the right, depth downwards, word recall in each cell.

python -m scripts.needle --out needle.png                     # all runs of task=needle in results/
python -m scripts.needle results/sweeps/2026-11-21_12-00-00 --out needle.png   # those of one sweep or experiment
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from configs.build import typed
from data.base import Task
from data.made import Needle
from data.needle import cell_of
from eval.heat_map import png, write_numbers
from eval.longbench import postprocess
from eval.paired import Estimate, Scored, mean
from eval.recall import match_part, word_recall
from eval.records import Record
from eval.run_sets import group
from eval.stored import Stored, choose, find
from eval.table_text import interval
from scripts.compare import Wanted, wanted


@dataclass(frozen=True)
class Grid:
    """One run's cells. recall: [depths, lengths], 0 to 1, NaN where nothing was answered. n: answered samples.

    word_recall: over all answered samples, as KVCache-Factory's overall score. phrase: the share of them that hold the
    phrase. In points, with intervals; None where nothing was answered. num_dense: those whose prompt was within the
    budget, so that the full cache answered.
    """

    title: str
    lengths: Sequence[int]
    depths: Sequence[float]
    recall: np.ndarray
    word_recall: Estimate | None
    phrase: Estimate | None
    num_expected: int
    num_dense: int = 0


def main(argv: Sequence[str]) -> int:
    """Exit status 0, or 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m scripts.needle", description=__doc__.splitlines()[0])
    words = "run folders or folders of them, and key=value[,value] words that choose: model, method, budget, …"
    parser.add_argument("what", nargs="*", metavar="FOLDER | key=value", help=words)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs are, without folders")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    arguments = parser.parse_intermixed_args(argv)
    try:
        grids = read_grids(wanted(arguments.what, arguments.results, None))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(png(draw(grids)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for grid in grids:
        print(f"{grid.title}: {said(grid)}")
    print(arguments.out)
    return 0


def read_grids(wanted: Wanted) -> list[Grid]:
    """One for each row, those without a budget first. Raises ValueError where there is no run of a needle task."""
    found = find(wanted.roots)
    runs = [run for run in found if run.run.config["task"].get("needle")]
    if not runs:
        raise ValueError(f"found are runs of {', '.join(sorted({run.run.task for run in found}))}; give some of needle")
    try:
        sets = group(choose(runs, wanted.words, baseline=""))
    except ValueError as error:
        raise ValueError(f"{error}, or give run folders, or the folder of one sweep") from None
    return [read_grid(run, row.label) for one in sets for row in one.rows for run in row.runs.values()]


def read_grid(run: Stored, label: str) -> Grid:
    """The cells of a run."""
    config = run.run.config["task"]
    needle = typed(Task, config, "task").needle
    assert needle is not None
    small = str(run.run.config["data"]).startswith("miniature")
    title = " · ".join(filter(None, (run.run.model, label, "miniature" if small else "")))
    grid = grid_of(needle, scored(config, run.records, small), title, small)
    return replace(grid, num_dense=sum(record.dense_short for record in run.records.values()))


def scored(config: Mapping[str, object], records: Mapping[str, Record], small: bool) -> dict[str, tuple[float, float]]:
    """Word recall and phrase match of each answered sample, from its prediction."""
    task = typed(Task, config, "task")
    assert task.needle is not None
    found = {}
    for name, record in records.items():
        if record.prediction is None or record.score is None:
            continue
        if small:  # the values differ from row to row; the run has scored them
            found[name] = (record.score, float(record.score == 1))
        else:
            said = postprocess(task, record.prediction)
            found[name] = (word_recall(said, task.needle.answer), match_part(said, task.needle.phrase))
    return found


def grid_of(needle: Needle, scores: Mapping[str, tuple[float, float]], title: str, small: bool) -> Grid:
    """The means of each cell's repeats."""
    lengths, depths = needle.miniature_lengths if small else needle.lengths, needle.depths
    cells: dict[tuple[float, int], list[float]] = {}
    for name, (share, _) in scores.items():
        cell = cell_of(name)
        cells.setdefault((cell.depth, cell.length), []).append(share)
    means = [[np.mean(cells[d, n]) if (d, n) in cells else np.nan for n in lengths] for d in depths]
    recall = np.array(means, dtype=float)
    return Grid(
        title,
        lengths,
        depths,
        recall,
        estimated([share for share, _ in scores.values()]),
        estimated([phrase for _, phrase in scores.values()]),
        len(lengths) * len(depths) * needle.repeats,
    )


def estimated(values: Sequence[float]) -> Estimate | None:
    """The mean of numbers from 0 to 1."""
    return mean([Scored(str(n), "needle", str(n), value) for n, value in enumerate(values)]) if values else None


def said(grid: Grid, between: str = ", ") -> str:
    """Both scores, 0 to 100, with 95 % intervals, and how many samples they are over."""
    if grid.word_recall is None or grid.phrase is None:
        return f"no answer of {grid.num_expected}"
    recall, phrase = (f"{e.value:.1f} {interval(e)}".rstrip() for e in (grid.word_recall, grid.phrase))
    dense = f", {grid.num_dense} dense" if grid.num_dense else ""
    return f"word recall {recall}{between}phrase {phrase} ({grid.word_recall.n} of {grid.num_expected} samples{dense})"


def draw(grids: Sequence[Grid]) -> Figure:
    """One panel a run, two in a row and four of many; grey is not answered."""
    columns = min(2 if len(grids) <= 4 else 4, len(grids))
    rows = -(-len(grids) // columns)
    width = max(5.0, 0.55 * max(len(grid.lengths) for grid in grids))
    height = 2.0 + 0.3 * max(len(grid.depths) for grid in grids)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(grids) :]:
        axes.set_axis_off()
    for axes, grid in zip(panels, grids, strict=False):
        axes.set_facecolor("#dddddd")
        image = axes.imshow(grid.recall, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(grid.lengths)), [str(n) for n in grid.lengths], rotation=45)
        axes.set_yticks(range(len(grid.depths)), [f"{depth:g}" for depth in grid.depths])
        axes.set(xlabel="length (tokens)", ylabel="depth (%)")
        axes.set_title("\n".join((grid.title, said(grid, "\n"))), fontsize=9)
        if len(grid.lengths) <= 12:
            write_numbers(axes, grid.recall, bright=False)
        figure.colorbar(image, ax=axes, label="word recall", shrink=0.9)
    return figure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
