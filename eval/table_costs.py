"""What the rows of a table cost, beside their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eval.cost import QUANTITIES, Quantity, over_tasks
from eval.table import Cell, Line, TableSpec

UNKNOWN = "–"
_BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}


def header(spec: TableSpec) -> tuple[str, ...]:
    """The names of the columns that the table asks for."""
    return tuple(_BY_KEY[key].label for key in spec.costs)


def note(spec: TableSpec) -> str:
    """What must be known of these columns; empty where there are none."""
    return " · tokens, bytes and times are means over the tasks, each of one weight" if spec.costs else ""


def spent(spec: TableSpec, row: Sequence[Cell], refused: str) -> tuple[str, ...]:
    """The columns of one row, over its tasks; `refused` where one of them is."""
    tasks = [cell for cell in row if cell.task not in spec.sets]
    if any(cell.estimate is None for cell in tasks):
        return (refused,) * len(spec.costs)
    found = over_tasks([cell.costs for cell in tasks])
    return tuple(_text(_BY_KEY[key], found[key].value) for key in spec.costs)


def _text(quantity: Quantity, value: float | None) -> str:
    return UNKNOWN if value is None else quantity.show(value)


def _of(key: str) -> Callable[[Line], str]:
    def read(line: Line) -> str:
        cost = line.cell.costs.get(key)
        return "" if cost is None or cost.value is None else f"{cost.value:.2f}"

    return read


# Of one cell, for CSV. No times: runs that shared a prefill have none.
COLUMNS: Mapping[str, Callable[[Line], str]] = {key: _of(key) for key, q in _BY_KEY.items() if not q.timed}
