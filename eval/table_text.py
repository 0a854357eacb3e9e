"""A table as text: for a terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval import table_costs
from eval.paired import Estimate
from eval.table import Cell, Line, TableSpec

REFUSED = "refused"


@dataclass(frozen=True)
class Section:
    """A part of a table's text: rows under a header, or without one plain lines."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(spec: TableSpec, lines: Sequence[Line]) -> list[Section]:
    """The parts in reading order: scores, comparison, what is refused, what the paper did otherwise."""
    cells = [line.cell for line in lines]
    found = [Section(f"{spec.title} · {about(cells)}{table_costs.note(spec)}", *scores(spec, cells))]
    if not cells[0].miniature:
        found.append(comparison(lines))
    found.append(Section("Refused: neither shown nor averaged", *refusals(cells)))
    if not cells[0].miniature:
        found.append(Section("Sources", (), _each(sources(lines))))
    notes = "The paper does otherwise" if spec.arxiv else "To be known"
    found.append(Section(notes, (), _each(spec.differences)))
    return [section for section in found if section.rows]


def about(cells: Sequence[Cell]) -> str:
    """What must be known of all numbers of a table."""
    kind = "MINIATURE, not LongBench · " if cells[0].miniature else ""
    models, counts = (
        sorted({cell.model for cell in cells}),
        sorted({c.estimate.n for c in cells if c.samples and c.estimate}),
    )
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    where = f"{kind}{', '.join(models)} · protocol {cells[0].protocol}"
    dense = (
        " · dense: answered with the full cache, prompts were within the budget"
        if any(c.num_dense for c in cells)
        else ""
    )
    return f"{where} · {samples} samples a task · scores 0-100 with 95 % intervals{dense}"


def scores(spec: TableSpec, cells: Sequence[Cell]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """One row for each label and setting, one column for each task and average, then those of the costs."""
    columns = list(dict.fromkeys(cell.task for cell in cells))
    by_row: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, {})[cell.task] = cell
    rows = [
        (*row, *(score(of.get(name)) for name in columns), *table_costs.spent(spec, list(of.values()), REFUSED))
        for row, of in by_row.items()
    ]
    return ("method", "budget", *columns, *table_costs.header(spec)), tuple(rows)


def score(cell: Cell | None) -> str:
    """A score with its interval; a refused cell shows no number, and one that nobody asked for is empty."""
    if cell is None:
        return ""
    if cell.estimate is None:
        return REFUSED
    dense = f"{cell.num_dense} dense" if cell.num_dense else ""
    return " ".join(filter(None, (f"{cell.estimate.value:.2f}", interval(cell.estimate), dense)))


def interval(estimate: Estimate) -> str:
    """Empty where there are too few samples to say anything."""
    return "" if estimate.low is None or estimate.high is None else f"[{estimate.low:.1f}, {estimate.high:.1f}]"


def comparison(lines: Sequence[Line]) -> Section:
    """The cells of which something was published."""
    known = [line for line in lines if line.published is not None]
    rows = tuple(_compared(line) for line in known)
    title = f"Against what was published: {len(known)} of {len(lines)} cells have a published value"
    header = ("method", "budget", "task", "ours", "published", "grade", "difference", "verdict")
    return Section(title, header, rows) if rows else Section(title, (), (("nothing to compare with",),))


def _compared(line: Line) -> tuple[str, ...]:
    assert line.published is not None
    difference = "" if line.difference is None else f"{line.difference:+.2f}"
    published = f"{line.published.score:.2f}"
    cell = line.cell
    return (*cell.row, cell.task, score(cell), published, line.published.grade, difference, line.verdict)


def refusals(cells: Sequence[Cell]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The refused cells, all by name; in one line where all rows lack the same for the same reason."""
    names: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell in cells:
        if cell.refusal is not None:
            names.setdefault(cell.row, {}).setdefault(cell.refusal, []).append(cell.task)
    lines = [(*row, ", ".join(tasks), why) for row, reasons in names.items() for why, tasks in reasons.items()]
    num_rows = len({cell.row for cell in cells})
    counts = Counter(line[2:] for line in lines)
    merged = [("all rows", "", *line[2:]) if counts[line[2:]] == num_rows > 1 else line for line in lines]
    return ("method", "budget", "task", "why"), tuple(dict.fromkeys(merged))


def sources(lines: Sequence[Line]) -> list[str]:
    """Where the published numbers that are shown were read."""
    found = [line.published for line in lines if line.published is not None]
    return list(dict.fromkeys(f"{p.paper}, {p.table} ({p.grade}): {p.source}" for p in found))


def _each(lines: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((line,) for line in lines)


def print_table(console: Console, parts: Sequence[Section]) -> None:
    """To a terminal; a table that is too wide for it comes in several, each with the first two columns."""
    for part in parts:
        console.print(part.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        if not part.header:
            for row in part.rows:
                console.print(f"- {row[0]}", markup=False, highlight=False, soft_wrap=True)
        for columns in _fitting(part, console.width) if part.header else ():
            table = Table(box=SIMPLE_HEAD)
            for column in columns:
                table.add_column(Text(part.header[column]), overflow="fold")
            for row in part.rows:
                table.add_row(*(Text(row[column], style="red" if row[column] == REFUSED else "") for column in columns))
            console.print(table)
        console.print()


def _fitting(part: Section, width: int) -> list[list[int]]:
    """The columns of each table that a wide one is cut into; a table of texts is never cut, its texts are folded."""
    widths = [max(len(row[i]) for row in (part.header, *part.rows)) + 2 for i in range(len(part.header))]
    if part.header[-1] in ("verdict", "why"):
        return [list(range(len(widths)))]
    groups: list[list[int]] = [[0, 1]]
    for column in range(2, len(widths)):
        if len(groups[-1]) > 2 and sum(widths[i] for i in groups[-1]) + widths[column] + 2 > width:
            groups.append([0, 1])
        groups[-1].append(column)
    return groups


def markdown(parts: Sequence[Section]) -> str:
    blocks = []
    for number, part in enumerate(parts):
        rows = [f"- {_plain(row[0])}" for row in part.rows]
        if part.header:
            rule = "|".join(["---"] * len(part.header))
            rows = [_piped(part.header), f"|{rule}|", *(_piped(row) for row in part.rows)]
        blocks.append("\n".join([f"{'##' if number == 0 else '###'} {_plain(part.title)}", "", *rows]))
    return "\n\n".join(blocks) + "\n"


def _piped(row: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(text).replace('|', chr(92) + '|') for text in row)} |"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def latex(parts: Sequence[Section]) -> str:
    """A `table` for each part with rows (needs booktabs), a list for each with lines."""
    return "\n\n".join(_tabular(part) if part.header else _itemize(part) for part in parts) + "\n"


def _tabular(part: Section) -> str:
    rows = [" & ".join(map(_tex, row)) + r" \\" for row in part.rows]
    head = " & ".join(map(_tex, part.header)) + r" \\"
    begin = [r"\begin{table}", rf"\caption{{{_tex(part.title)}}}", rf"\begin{{tabular}}{{{'l' * len(part.header)}}}"]
    return "\n".join([*begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _itemize(part: Section) -> str:
    items = [rf"\item {_tex(row[0])}" for row in part.rows]
    return "\n".join([rf"\paragraph{{{_tex(part.title)}}}", r"\begin{itemize}", *items, r"\end{itemize}"])


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text).replace(" · ", r" $\cdot$ ")


def csv_text(lines: Sequence[Line]) -> str:
    """One line a cell, refused ones with empty scores; tables of generated rows have no published columns."""
    small = lines[0].cell.miniature
    columns = {**OURS, **table_costs.COLUMNS, **({} if small else PUBLISHED), **ORIGIN}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([read(line) for read in columns.values()] for line in lines)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _ours(name: str) -> Callable[[Line], str]:
    return lambda line: _number(getattr(line.cell.estimate, name, None))


OURS: Mapping[str, Callable[[Line], str]] = {
    "model": lambda line: line.cell.model,
    "data": lambda line: "miniature" if line.cell.miniature else "longbench",
    "protocol": lambda line: line.cell.protocol,
    "method": lambda line: line.cell.label,
    "budget": lambda line: line.cell.setting,
    "task": lambda line: line.cell.task,
    "n": lambda line: str(line.cell.estimate.n) if line.cell.estimate else "",
    "dense": lambda line: str(line.cell.num_dense) if line.cell.estimate else "",
    "ours": _ours("value"),
    "low": _ours("low"),
    "high": _ours("high"),
}
PUBLISHED: Mapping[str, Callable[[Line], str]] = {
    "published": lambda line: _number(line.published.score) if line.published else "",
    "grade": lambda line: line.published.grade if line.published else "",
    "source": lambda line: line.published.source if line.published else "",
    "difference": lambda line: _number(line.difference),
    "verdict": lambda line: line.verdict,
}
ORIGIN: Mapping[str, Callable[[Line], str]] = {
    "refusal": lambda line: line.cell.refusal or "",
    "run": lambda line: line.cell.run,
}
