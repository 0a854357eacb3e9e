"""What a row of a comparison cost: a few numbers of its ledgers, averaged over tasks as its scores are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from eval.records import Record
from eval.scores import summarise
from eval.units import in_bytes, in_time

SHARED = "not measured: its answers shared a prefill with other arms (share_prefill=false measures)"


@dataclass(frozen=True)
class Quantity:
    """A cost. path: where `eval.scores.summarise` has it; the last part is the statistic over a task's samples.

    upper: path of what a whisker reaches up to, such as a 90th percentile; timed: it depends on the machine.
    """

    key: str
    label: str
    path: tuple[str, ...]
    show: Callable[[float], str]
    upper: tuple[str, ...] | None = None
    timed: bool = False


def _in_tokens(number: float) -> str:
    return f"{number:,.0f}"


QUANTITIES = (
    Quantity("attended", "tokens attended a step", ("attended_tokens", "mean"), _in_tokens),
    Quantity("resident", "bytes resident on the device", ("resident", "device", "mean"), in_bytes),
    Quantity("index", "of them index", ("resident", "index", "mean"), in_bytes),
    Quantity("host", "bytes on the host", ("resident", "host", "mean"), in_bytes),
    Quantity("moved", "bytes read a step", ("moved", "device", "mean"), in_bytes),
    Quantity("link", "bytes over the host link a step", ("moved", "host", "mean"), in_bytes),
    Quantity("ttft", "TTFT", ("ttft_s", "median"), in_time, timed=True),
    Quantity("tpot", "TPOT", ("tpot_s", "median"), in_time, upper=("tpot_s", "p90"), timed=True),
)
PLOTTED = ("attended", "resident", "moved", "tpot")


@dataclass(frozen=True)
class Cost:
    """A number, or None and the reason why there is none. upper: see `Quantity`."""

    value: float | None
    upper: float | None = None
    reason: str | None = None


def costs(answers: Mapping[str, Sequence[Record]]) -> dict[str, Cost]:
    """The costs of one row, of its answered records by task: the mean over tasks, each of one weight.

    A task without the number leaves the row without it.
    """
    found = [summarise([record.ledger for record in records]) for records in answers.values()]
    return {quantity.key: _cost(quantity, found) for quantity in QUANTITIES}


def over_tasks(parts: Sequence[Mapping[str, Cost]]) -> dict[str, Cost]:
    """The costs of one row from those of its tasks, each of one weight; without what one of them lacks."""
    return {quantity.key: _over([part[quantity.key] for part in parts]) for quantity in QUANTITIES} if parts else {}


def _over(costs: Sequence[Cost]) -> Cost:
    values = [cost.value for cost in costs if cost.value is not None]
    if len(values) < len(costs):
        return Cost(None, reason=next(cost.reason for cost in costs if cost.value is None))
    return Cost(fmean(values))


def _cost(quantity: Quantity, found: Sequence[Mapping[str, Any]]) -> Cost:
    values = [_at(summary, quantity.path) for summary in found]
    known = [value for value in values if value is not None]
    if not values or len(known) < len(values):
        return Cost(None, reason=SHARED if quantity.timed else "not recorded")
    uppers = [_at(summary, quantity.upper) for summary in found] if quantity.upper else [None]
    high = [value for value in uppers if value is not None]
    return Cost(fmean(known), fmean(high) if len(high) == len(values) else None)


def _at(summary: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = summary
    for key in path:
        value = value[key]
    return None if value is None else float(value)
