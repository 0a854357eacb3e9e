"""Lists what there is: methods, tasks, suites of them, models, experiments, and the runs on disk."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.miniature import committed, unpacked
from engine.cached import missing_parts
from eval.records import read_records
from eval.run_file import Run, read_run
from eval.scores import SCORES_FILE
from eval.task_sets import SUITES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NUM_LATEST = 10
EXAMPLES = """examples:
  python -m scripts.list                 # everything, and the latest runs
  python -m scripts.list tasks
  python -m scripts.list runs --results results | grep pqcache"""

# Columns in groups: a group is one column, its parts one above the other, where the window is narrow.
Groups = Sequence[tuple[str, ...]]
Row = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Found:
    """A run on disk. started: when its last session began. wide, narrow: its cells; problem: why it has none."""

    folder: Path
    started: str
    wide: Row = ()
    narrow: Row = ()
    problem: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    # In a pipe or a file a line is as long as it must be.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    lists: dict[str, Callable[[], None]] = {
        "methods": lambda: print_names(console, "method", "what it does"),
        "tasks": lambda: print_tasks(console),
        "suites": lambda: print_suites(console),
        "models": lambda: print_models(console),
        "experiments": lambda: print_names(console, "experiment", "what it shows"),
        "runs": lambda: print_runs(console, args.results, None if args.what else NUM_LATEST),
    }
    for name in [args.what] if args.what else lists:
        lists[name]()
        console.print()
    return 0


def print_names(console: Console, group: str, what: str) -> None:
    """The names that `method=` or `experiment=` takes."""
    show(console, f"{group}s", [(group,), (what,)], [((name,), (says,)) for name, says, _ in entries(group)])


def print_tasks(console: Console) -> None:
    """The names that `task=` takes; `mini` is the number of generated rows, `max new` of tokens in an answer."""
    groups = [("task", "metric"), ("rows", "mini"), ("max new",), ("what is asked",)]
    rows = []
    for name, says, node in entries("task"):
        metric, num_rows, new = (str(node.get(key, "–")) for key in ("metric", "num_rows", "max_new_tokens"))
        if "turns" in node:
            num_rows = f"≤ {num_rows}"  # questions, of which a row may have fewer than are asked at most
        rows.append(((name, metric), (num_rows, num_miniature(name, node)), (new,), (says,)))
    show(console, "tasks", groups, rows)


def print_suites(console: Console) -> None:
    """The sets of tasks that `task=` takes as a sweep."""
    rows = [((name,), (str(len(tasks)),), (", ".join(tasks),)) for name, tasks in SUITES.items()]
    show(console, "suites", [("task",), ("tasks",), ("which",)], rows)


def print_models(console: Console) -> None:
    """The names that `model=` takes, and whether their files are on this disk."""
    groups = [("model", "path"), ("max_prompt", "local"), ("what it is",)]
    rows = []
    for name, says, node in entries("model"):
        path, max_prompt = str(node.get("path", "–")), str(node.get("max_prompt", "–"))
        rows.append(((name, path), (max_prompt, locally(node)), (says,)))
    show(console, "models", groups, rows)


def print_runs(console: Console, results: Path, latest: int | None) -> None:
    """The runs below a results folder, newest first; then those that cannot be read, with what is wrong."""
    runs = sorted(find_runs(results), key=lambda run: run.started, reverse=True)
    good, bad = [run for run in runs if run.problem is None], [run for run in runs if run.problem is not None]
    groups = [
        ("method", "budget"),
        ("task", "model"),
        ("score", "95 %"),
        ("samples", "failed"),
        ("protocol", "data"),
        ("asked (UTC)", "folder"),
    ]
    shown = good[:latest]
    where = f"runs in {results}, newest first"
    show(console, where, groups, [run.wide for run in shown], [run.narrow for run in shown])
    if len(good) > len(shown):
        say(console, f"{len(good) - len(shown)} more: python -m scripts.list runs")
    for run in bad:
        say(console, f"unreadable: {run.problem}", "red")


def entries(group: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name, first comment line, content) of each YAML of a group; of a broken one, what is wrong in place of both."""
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
            node = yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            yield path.stem, f"CANNOT BE READ: {' '.join(str(error).split())}", {}
            continue
        first = next((line for line in text.split("\n") if not line.startswith("# @")), "")  # Hydra's own comments
        says = first.removeprefix("#").strip() if first.startswith("#") else "–"
        yield path.stem, says, node if isinstance(node, dict) else {}


def num_miniature(name: str, node: Mapping[str, Any]) -> str:
    """How many generated rows a task has, `made` where a run makes them, a dash for none."""
    if not node.get("miniature"):
        return "–"
    path = committed(name)
    return str(unpacked(path).count("\n")) if path.is_file() else "made"


def locally(node: Mapping[str, Any]) -> str:
    """Whether a model can be loaded without a network."""
    lacking = missing_parts(str(node.get("path", "")), node.get("revision"))
    if len(lacking) == 3:
        return "no"
    return f"no {', '.join(lacking)}" if lacking else "yes"


def find_runs(results: Path) -> Iterator[Found]:
    """Every folder `<model>/<task>/<method>/<hash>` below `results`."""
    # Not Path.glob, which fails when a folder of another process (`.probe-...`) is gone before it is read.
    for folder in map(Path, glob(str(results / "*/*/*/*"))):
        if folder.is_dir() and not any(part.startswith(".") for part in folder.relative_to(results).parts):
            yield found(folder)


def found(folder: Path) -> Found:
    """One run; what cannot be read is said, never raised."""
    try:
        run = read_run(folder)
        scores = read_scores(folder)
        started = str(run.sessions[-1]["provenance"]["started"])
        when = started[:16].replace("T", " ")
        wide, narrow = (cells(run, scores, folder, when, short) for short in (False, True))
    except Exception as error:  # a file by another program may hold anything
        reason = str(error) if isinstance(error, ValueError) else f"{folder}: {type(error).__name__}: {error}"
        return Found(folder, "", problem=" ".join(reason.split()))
    return Found(folder, started, wide, narrow)


def read_scores(folder: Path) -> Mapping[str, Any]:
    """What `scores.json` says, or the counts of the records of a run that was not finished.

    Raises ValueError, in one line, for a damaged file.
    """
    path = folder / SCORES_FILE
    try:
        scores = json.loads(path.read_bytes())
    except FileNotFoundError:
        records = read_records(folder).values()
        failed = sum(record.error is not None for record in records)
        return {"score": None, "ci95": None, "n": len(records) - failed, "n_expected": "?", "failed": failed}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, the run's command writes it again") from None
    if not isinstance(scores, dict):
        raise ValueError(f"{path} holds no object; delete it, the run's command writes it again")
    return scores


def cells(run: Run, scores: Mapping[str, Any], folder: Path, when: str, short: bool) -> Row:
    """The cells of one run. short: the folder's last part only."""
    budget, interval = run.config.get("budget"), scores["ci95"]
    score = "unfinished" if scores["score"] is None else f"{scores['score']:.2f}"
    return (
        (" ".join([run.method, *changed(run)]), "–" if budget is None else str(budget)),
        (run.task, run.model),
        (score, "–" if interval is None else f"[{interval[0]:.1f}, {interval[1]:.1f}]"),
        (f"{scores['n']} of {scores['n_expected']}", f"{scores['failed']} failed" if scores["failed"] else "–"),
        (str(run.config["protocol"]), str(run.config["data"]).replace("miniature", "MINIATURE")),
        (when, folder.name if short else str(folder)),
    )


def changed(run: Run) -> list[str]:
    """The parameters in which a run's method differs from its YAML."""
    usual = next((node for name, _, node in entries("method") if name == run.method), {})
    return [f"{key}={value}" for key, value in run.config["method"].items() if usual.get(key, value) != value]


def show(console: Console, title: str, groups: Groups, rows: Sequence[Row], narrow: Sequence[Row] = ()) -> None:
    """A table with one column for each part of a group, or for each group where the window is too narrow for that."""
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    if not rows:
        say(console, "  none yet", "dim")
        return
    wide = table(
        [(name,) for group in groups for name in group], [[(p,) for cell in row for p in cell] for row in rows]
    )
    unbounded = console.options.update(width=10_000)
    if console.measure(wide, options=unbounded).maximum <= console.width:
        console.print(wide)
        return
    console.print(table(groups, narrow or rows))


def table(groups: Groups, rows: Sequence[Row]) -> Table:
    """A light table; the first column is not broken, other long texts are folded, none is cut."""
    out = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for position, group in enumerate(groups):
        out.add_column(stacked(group), no_wrap=position == 0, overflow="fold", style="bold" if position == 0 else "")
    for row in rows:
        out.add_row(*map(stacked, row))
    return out


def stacked(parts: Sequence[str]) -> Text:
    """The parts of a cell one above the other."""
    first, *others = parts
    return Text.assemble(first, *((f"\n{part}", "not bold dim") for part in others))


def say(console: Console, line: str, style: str = "") -> None:
    """A line that is not broken, whatever the window's width."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m scripts.list", None, __doc__, EXAMPLES, formatter_class=form)
    kinds = ("methods", "tasks", "suites", "models", "experiments", "runs")
    parser.add_argument("what", nargs="?", choices=kinds, help="one kind only (default: all)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where the runs are")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
