"""Compares runs: scores with paired differences, what they cost, Pareto plots, and one HTML report.

python -m scripts.compare task=narrativeqa,qasper budget=0.1 --out compared
python -m scripts.compare --match corm method=snapkv,h2o
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.asked import asked
from eval.comparison import Cell, Comparison, Options, columns_of, compare
from eval.comparison_tables import caption, cost_frame, difference_text, score_text, title, verdict_text
from eval.matched import Matched, averages, match
from eval.run_sets import RunSet, group
from eval.stored import Stored, choose, find
from eval.task_sets import TASK_SETS
from scripts.publish import FILES, save

EXAMPLES = """examples:
  python -m scripts.compare                                         # all runs in results/
  python -m scripts.compare model=tiny task=narrativeqa method=h2o,pqcache budget=0.1
  python -m scripts.compare results/tiny/narrativeqa --out compared # all files, report.html among them
  python -m scripts.compare --baseline 'pqcache 0.1' --html report.html
  python -m scripts.compare --match corm method=snapkv,h2o          # budgets of the average that corm attended"""


@dataclass(frozen=True)
class Wanted:
    """Which runs: folders to look in, `key=value` words, the first samples only, and where rows lie now."""

    roots: tuple[Path, ...]
    words: tuple[str, ...]
    limit: int | None
    data: str | None


def main(argv: Sequence[str]) -> int:
    """Exit status 0, or 1 with one line that says why."""
    args = arguments(argv)
    try:
        options = Options(args.baseline, args.margin, args.level)
        console = Console(width=None if sys.stdout.isatty() else 1000)
        asked_for = wanted(args.what, args.results, args.data)
        if args.match:
            comparisons = show_matched(console, asked_for, args, options)
        else:
            comparisons = compared(asked_for, options)
            for comparison in comparisons:
                show(console, comparison)
        for path in save(comparisons, args, argv):
            print(path)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        "python -m scripts.compare", description=first, epilog=EXAMPLES, formatter_class=form
    )
    words = (
        "run folders or folders of them, and key=value[,value] words that choose: model, task, method, budget, limit, …"
    )
    parser.add_argument("what", nargs="*", metavar="FOLDER | key=value", help=words)
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where runs are, without folders (results)"
    )
    parser.add_argument(
        "--baseline", default="full", metavar="ROW", help="method or row that all are compared with (full)"
    )
    parser.add_argument(
        "--match",
        metavar="ROW",
        help="compare with runs that attended as many tokens on average; says how to make them",
    )
    parser.add_argument("--unit", choices=("tok", "ratio"), default="ratio", help="of --match's budgets (ratio)")
    parser.add_argument("--margin", type=float, default=1.0, metavar="POINTS", help="loss that does not matter (1)")
    parser.add_argument("--level", type=float, default=0.95, metavar="SHARE", help="of the intervals (0.95)")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="samples that the report shows a row (5)")
    parser.add_argument(
        "--data", metavar="PATH", help="LongBench's rows, where they are not where the runs had them from"
    )
    parser.add_argument("--wandb", choices=("offline", "online"), help="log tables and plots as a W&B run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write everything below there")
    for name in (*FILES, "html"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    return parser.parse_intermixed_args(argv)


def wanted(what: Sequence[str], results: Path, data: str | None) -> Wanted:
    """What the command line names. Raises ValueError for a word that is neither a folder nor key=value."""
    roots = [Path(word) for word in what if "=" not in word or Path(word).is_dir()]
    words = [word for word in what if "=" in word and not Path(word).is_dir()]
    limits = [word.partition("=")[2] for word in words if word.startswith("limit=")]
    if limits and not (limits[-1].isdecimal() and int(limits[-1])):
        raise ValueError(f"limit={limits[-1]}: give a number of samples, at least 1")
    chosen = tuple(word for word in words if not word.startswith("limit="))
    return Wanted(tuple(roots) or (results,), chosen, int(limits[-1]) if limits else None, data)


def compared(wanted: Wanted, options: Options) -> list[Comparison]:
    """One comparison for each set of runs that were asked the same. Raises ValueError, in one line."""
    return [compare_set(run_set, wanted, options) for run_set in sets(wanted, options)]


def sets(wanted: Wanted, options: Options, beside: str = "") -> tuple[RunSet, ...]:
    """The sets of runs that were asked the same. beside: only what this row or method was asked."""
    if not 0 < options.level < 1 or options.margin <= 0:
        raise ValueError(
            f"--level {options.level:g} --margin {options.margin:g}: a level is within 0-1, a margin above 0"
        )
    chosen = choose(find(wanted.roots), wanted.words, options.baseline)
    method = beside.partition(" ")[0]
    answered = {about(run) for run in chosen if run.run.method == method}
    kept = [run for run in chosen if not beside or about(run) in answered]
    return group(kept, TASK_SETS["kv16"]) if kept else ()


def about(run: Stored) -> tuple[str, ...]:
    """What a run was asked, as far as runs of other kinds never stand beside it."""
    config = run.run.config
    return run.run.model, run.run.task, str(config["protocol"]), str(config["data"])


def compare_set(run_set: RunSet, wanted: Wanted, options: Options) -> Comparison:
    samples = {
        task: asked([row.runs[task] for row in run_set.rows if task in row.runs], wanted.limit, wanted.data)
        for task in run_set.tasks
    }
    return compare(run_set, samples, columns_of(run_set.tasks, run_set.miniature), options)


def show(console: Console, comparison: Comparison) -> None:
    """Two tables: scores and differences, and what they cost."""
    say(console, title(comparison), "bold")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("method", style="bold", no_wrap=True)
    for column in comparison.columns:
        table.add_column(Text(column.name), justify="right")
    for row in comparison.run_set.rows:
        cells = [comparison.cells[row.label, column.name] for column in comparison.columns]
        table.add_row(Text(row.label), *(Text("\n".join(_lines(cell, comparison.options.margin))) for cell in cells))
    console.print(table)
    say(console, caption(comparison), "dim")
    spent = cost_frame(comparison)
    if len(spent):
        console.print(plain(spent))
    if comparison.baseline is None:
        say(
            console,
            f"no run of {comparison.options.baseline}: nothing is compared; make one, or give --baseline ROW",
            "yellow",
        )
    for task, samples in comparison.asked.items():
        if samples.problem:
            say(console, f"{task}: {samples.problem}; what was asked is taken from the runs' own scores.json", "yellow")
    console.print()


def show_matched(console: Console, wanted: Wanted, args: argparse.Namespace, options: Options) -> list[Comparison]:
    """The comparisons at equal averages, after the averages themselves and the commands of the runs that lack."""
    methods = [name for word in wanted.words if word.startswith("method=") for name in word[7:].split(",")]
    others = replace(wanted, words=tuple(word for word in wanted.words if not word.startswith(("method=", "budget="))))
    found = [
        one
        for run_set in sets(others, options, args.match)
        if (one := match(run_set, args.match, methods, args.unit, wanted.limit, wanted.data, options))
    ]
    if not found:
        raise ValueError(f"--match {args.match}: no run is of that row or method; make one, or see scripts.list runs")
    for one in found:
        console.print(plain(averages(one)))
        for line in dense_notes(one):
            say(console, line, "yellow")
        for text in lacking(one, args.results, wanted.limit):
            say(console, text)
        show(console, one.comparison)
    return [one.comparison for one in found]


def dense_notes(matched: Matched) -> Iterator[str]:
    """Where a budget of tokens leaves short prompts alone."""
    for task, target in matched.targets.items():
        if target.num_dense:
            yield (
                f"{task}: {target.num_dense} of {target.n} prompts are within {target.budget}, so the full cache "
                "answers them; --unit ratio gives a budget that follows the length"
            )


def lacking(matched: Matched, results: Path, limit: int | None) -> Iterator[str]:
    """The commands that make the runs that are missing. Raises ValueError for methods that have no budget."""
    for task, methods in matched.missing.items():
        if methods:
            # Only here: a table needs no Hydra.
            from scripts.reproduce import asking

            more = [] if results == Path("results") else [f"results={results}"]
            target = matched.targets[task]
            said = asking(target.run, methods, target.budget, [*more, *([f"limit={limit}"] if limit else [])])
            yield f"{said.text}{f'  # {said.note}' if said.note else ''}"


def _lines(cell: Cell, margin: float) -> Iterator[str]:
    """A cell of the terminal's table: its score, its difference, what may be said of it."""
    yield score_text(cell)
    if cell.against:
        yield difference_text(cell.against)
        yield verdict_text(cell.against, margin)


def plain(frame: pd.DataFrame) -> Table:
    """A data frame of text as a terminal's table."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(str(frame.index.name), style="bold", no_wrap=True)
    for name in frame.columns:
        table.add_column(Text(str(name)), justify="right")
    for label, cells in zip(frame.index, frame.to_numpy(), strict=True):
        table.add_row(Text(str(label)), *(Text(str(cell)) for cell in cells))
    return table


def say(console: Console, line: str, style: str = "") -> None:
    """A line that is not broken, whatever the window's width."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
