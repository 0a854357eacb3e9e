"""Score against cost, with intervals and the front of rows that no other row beats in both."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from eval.comparison import Comparison
from eval.cost import PLOTTED, QUANTITIES, Quantity

# The colours of Okabe and Ito, which people with any colour vision tell apart and which show on light and dark ground.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6BB1", "#999999")
MARKERS = "osD^vPX<>hp*"
# Stand for the text's and the lines' colour until the page says what they are.
INK, FAINT = "#010203", "#040506"
SIZE = (5.0, 4.0)
LINE = 0.19  # inches a line of the legend


@dataclass(frozen=True)
class Point:
    """A row in a plot. note: what tells it from others of its method. upper: where the whisker of its cost ends."""

    label: str
    method: str
    note: str
    cost: float
    score: float
    low: float | None
    high: float | None
    upper: float | None = None


@dataclass(frozen=True)
class Plot:
    """Score in one column against one cost. missing: rows that are not in it, with the reason."""

    quantity: Quantity
    column: str
    points: tuple[Point, ...]
    missing: tuple[tuple[str, str], ...]


def plots(comparison: Comparison) -> tuple[Plot, ...]:
    """The plots of a comparison's main column, also those that no row can be in."""
    return tuple(_plot(comparison, quantity) for quantity in QUANTITIES if quantity.key in PLOTTED)


def _plot(comparison: Comparison, quantity: Quantity) -> Plot:
    points: list[Point] = []
    missing: list[tuple[str, str]] = []
    column = comparison.main
    devices = comparison.devices if quantity.timed else ()
    for row in comparison.run_set.rows:
        cell, spent = comparison.cells[row.label, column.name], comparison.costs.get((row.label, column.name), {})
        cost = spent.get(quantity.key)
        if cell.score is None or cost is None:
            missing.append((row.label, cell.lacks))
        elif len(devices) > 1:
            missing.append((row.label, f"times of different devices are not compared ({', '.join(devices)})"))
        elif cost.value is None:
            missing.append((row.label, cost.reason or "not recorded"))
        else:
            score, note = cell.score, row.label.removeprefix(row.method).strip()
            points.append(
                Point(row.label, row.method, note, cost.value, score.value, score.low, score.high, cost.upper)
            )
    return Plot(quantity, column.name, tuple(points), tuple(missing))


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other equals or beats in both cost and score, one strictly; from the cheapest on."""

    def beaten(point: Point) -> bool:
        return any(
            other.cost <= point.cost
            and other.score >= point.score
            and (other.cost, other.score) != (point.cost, point.score)
            for other in points
        )

    return sorted((point for point in points if not beaten(point)), key=lambda point: (point.cost, point.score))


def draw(plot: Plot) -> Figure:
    """The plot as a figure; label and marker tell rows apart without colour."""
    with matplotlib.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        best = front(plot.points)
        axes.plot(
            [p.cost for p in best], [p.score for p in best], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1
        )
        for number, method in enumerate(dict.fromkeys(point.method for point in plot.points)):
            _series(axes, [p for p in plot.points if p.method == method], number)
        _axes(axes, plot)
        if plot.points:
            _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """The methods' names below, in as many columns as there is room for; the figure grows by more than two lines."""
    for columns in range(4, 0, -1):
        legend = figure.legend(
            loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, handlelength=1.6
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name with two dollar signs is a name
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    num_lines = -(-len(legend.get_texts()) // columns)
    figure.set_size_inches(SIZE[0], SIZE[1] + LINE * max(0, num_lines - 2))


def _series(axes: Axes, points: Sequence[Point], number: int) -> None:
    """One method's budgets, joined by a thin line."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    ordered = sorted(points, key=lambda point: point.cost)
    x, y = [p.cost for p in ordered], [p.score for p in ordered]
    down = [p.score - (p.score if p.low is None else p.low) for p in ordered]
    up = [(p.score if p.high is None else p.high) - p.score for p in ordered]
    right = [0.0 if p.upper is None else max(p.upper - p.cost, 0.0) for p in ordered]
    # Means of clustered samples may lie beyond a percentile by rounding.
    bars = [[max(d, 0.0) for d in down], [max(u, 0.0) for u in up]]
    axes.errorbar(x, y, yerr=bars, fmt="none", ecolor=colour, elinewidth=1, alpha=0.55, zorder=2)
    if any(right):
        axes.errorbar(x, y, xerr=[[0.0] * len(x), right], fmt="none", ecolor=colour, elinewidth=1, alpha=0.55, zorder=2)
    axes.plot(x, y, color=colour, marker=marker, markersize=5.5, linewidth=0.8, label=ordered[0].method, zorder=3)
    for point in ordered if len(ordered) > 1 else ():
        where = (point.cost, point.score)
        axes.annotate(point.note, where, (4, 4), textcoords="offset points", fontsize=6.5, color=INK, parse_math=False)


def _axes(axes: Axes, plot: Plot) -> None:
    quantity = plot.quantity
    costs = [point.cost for point in plot.points]
    if costs and min(costs) > 0 and max(costs) > 5 * min(costs):
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(
            [tick for tick in _ticks(min(costs), max(costs)) if 0.9 * min(costs) <= tick <= 1.1 * max(costs)]
        )
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity.show(value)))
    whisker = ", whisker to the 90th percentile" if quantity.upper else ""
    axes.set_xlabel(f"{quantity.label}{whisker}", color=INK)
    axes.set_ylabel("score", color=INK)
    axes.tick_params(colors=INK, length=3)
    axes.grid(visible=True, color=FAINT, alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.set_facecolor("none")


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven powers of two between two costs, which bytes and tokens are counted in."""
    exponent = 0
    while 2.0 ** (exponent + 1) <= low:
        exponent += 1
    while 2.0**exponent > low:
        exponent -= 1
    found = [2.0**exponent]
    while found[-1] < high:
        found.append(found[-1] * 2)
    return found[:: max(1, -(-len(found) // 6))]


def svg(plot: Plot) -> str:
    """The plot for a page: text and lines take the page's colours, nothing in it depends on time or chance."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{plot.quantity.key} {plot.column}"}):
        figure = draw(plot)
        figure.patch.set_alpha(0.0)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    # Ids that nothing refers to would stand twice on a page with two plots; the others are hashes of what they name.
    return re.sub(r' id="[\w.]*_\d+"', "", text)


def png(plot: Plot, path: Path) -> None:
    """Write the plot on white ground."""
    draw(plot).savefig(path, format="png", dpi=160, facecolor="white")
