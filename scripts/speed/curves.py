"""Time per token over the cache length: where a method breaks even with full attention, and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from scripts.speed.rows import DecodeRow

Curve = dict[int, DecodeRow]


def curves(rows: Sequence[DecodeRow]) -> dict[str, Curve]:
    """By method, budget and, if there are several, way of decoding: the rows of batch 1 with figures, by length."""
    single = [row for row in rows if row.tpot_ms is not None and row.batch == 1 and "equal memory" not in row.note]
    several = len({row.decode for row in single}) > 1
    out: dict[str, Curve] = {}
    for row in single:
        name = " ".join(filter(None, [row.method, row.budget, row.decode if several else ""]))
        out.setdefault(name, {})[row.tokens] = row
    return out


def points(curve: Curve) -> list[tuple[float, float]]:
    """(length, ms of a step), by length."""
    return [(n, curve[n].tpot_ms or 0.0) for n in sorted(curve)]


def best_full(rows: Sequence[DecodeRow]) -> Curve:
    """Full's fastest rows, by length."""
    out: Curve = {}
    for curve in curves([row for row in rows if row.method == "full"]).values():
        for n, row in curve.items():
            out[n] = min(row, out.get(n, row), key=lambda r: r.tpot_ms or 0.0)
    return out


def pays(curve: Curve, full: Curve) -> str | None:
    """From where on a method's step is shorter than full's, in words; None where they share no length."""
    shared = sorted(set(curve) & set(full))
    if not shared:
        return None
    return in_words(break_even(*(points({n: c[n] for n in shared}) for c in (curve, full))), shared)


def break_even(ours: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float | None:
    """The length from which on `ours` is below `other`, both (length, seconds) at the same lengths, straight between.

    None: it is not below at the longest one; 0: it is below at all of them.
    """
    gaps = [(n, a - b) for (n, a), (_, b) in zip(ours, other, strict=True)]
    if not gaps or gaps[-1][1] >= 0:
        return None
    found = 0.0
    for (n, before), (m, after) in pairwise(gaps):
        if before >= 0 > after:
            found = n + (m - n) * before / (before - after)
    return found


def against_full(rows: Sequence[DecodeRow]) -> list[str]:
    """For each method, in words, from which cache length on its step is shorter than full's."""
    full, others = best_full(rows), curves([row for row in rows if row.method != "full"])
    said = [f"{name} {pays(curve, full)}" for name, curve in others.items() if pays(curve, full)]
    return [f"shorter steps than full's: {'; '.join(said)}"] if said else []


def in_words(point: float | None, lengths: Sequence[int]) -> str:
    """A break-even length as a reader takes it."""
    if point is None:
        return f"not up to {lengths[-1]:,}"
    return f"from {point:,.0f} tokens on" if point else f"at all lengths (from {lengths[0]:,})"


def plot(rows: Sequence[DecodeRow], path: Path, title: str) -> None:
    """A PNG: measured steps solid, their floors dotted."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    full = best_full(rows)
    for number, (name, curve) in enumerate(curves(rows).items()):
        colour, style = f"C{number % 10}", ("o-", "s--", "^-.")[number // 10 % 3]
        paid = None if name.startswith("full") else pays(curve, full)
        label = f"{name}, pays {paid}" if paid else name
        axes.plot(*zip(*points(curve), strict=True), style, color=colour, label=label, markersize=4)
        axes.plot(sorted(curve), [curve[n].floor_ms or 0.0 for n in sorted(curve)], ":", color=colour, linewidth=1)
    ticks = sorted({row.tokens for row in rows})
    axes.set(xscale="log", yscale="log", xlabel="tokens in the cache", ylabel="ms a step (dotted: floor)", title=title)
    axes.set_xticks(ticks, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in ticks])
    axes.minorticks_off()
    figure.legend(loc="outside right upper", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
