"""The speed goals and how a number becomes PASS, FAIL or UNTRIED."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.speed.breakeven import BreakEven
from scripts.speed.curves import best_full
from scripts.speed.observing import Watched
from scripts.speed.overhead import Overhead
from scripts.speed.prefills import PrefillRow
from scripts.speed.rows import DecodeRow
from scripts.speed.syncs import Waits
from scripts.speed.words import REFUSED

GOAL_LENGTHS = (4096, 16384, 32768, 65536, 131072)
LONGEST = 131072
FROM = 32768
FLOOR_RATIO = 1.3
PQCACHE_MS = 30.0
INDEX_SHARE = 0.05
SCORING_SHARE = 0.6
FORMULA_SHARE = 0.25
MEMORY_SHARE = 0.02
OVERHEAD_RATIO = 1.25
ELSEWHERE = "needs a GPU; here: "


@dataclass(frozen=True)
class Goal:
    """verdict: PASS, FAIL, or UNTRIED where the goal's hardware, a length or time was missing. found: the number."""

    goal: str
    target: str
    verdict: str
    found: str


def untried(goal: str, why: str, target: str = "") -> Goal:
    """Nothing was measured that could decide it."""
    return Goal(goal, target, "UNTRIED", why)


def judged(goal: str, target: str, good: bool, found: str, gpu: bool = True, whole: bool = True) -> Goal:
    """gpu: whether it was measured where it holds; whole: whether nothing of it is missing, without which a miss is a
    miss and all else is untried."""
    if not gpu:
        return untried(goal, ELSEWHERE + found, target)
    return Goal(goal, target, "FAIL" if not good else "PASS" if whole else "UNTRIED", found)


def decode_goals(rows: Sequence[DecodeRow], gpu: bool, skipped: Sequence[int]) -> Iterator[Goal]:
    """Those that decode steps decide."""
    rest = f"; no time for {', '.join(name(n) for n in skipped)}" if skipped else ""
    full = best_full(rows)
    near = {n: row.of_floor for n, row in full.items() if row.of_floor is not None}
    ways = "/".join(sorted({row.decode for row in full.values()}))
    said = ", ".join(f"{ratio:.2f} at {name(n)}" for n, ratio in sorted(near.items())) or "nothing"
    graph = all(row.decode == "graph" for row in full.values())
    good = all(ratio <= FLOOR_RATIO for ratio in near.values())
    target, there = f"<= {FLOOR_RATIO} under graphs, 4k to 128k", gpu and graph and bool(near)
    found = f"{said} ({ways}){rest}"
    yield judged("full's step against the floor", target, good, found, there, set(GOAL_LENGTHS) <= set(near))
    yield resident_goal(rows, gpu, rest)
    yield pqcache_goal(rows, gpu, rest)
    absent = [row for row in rows if row.tpot_ms is None]
    refused = sorted({f"{row.method} {row.note}" for row in absent if row.note.startswith(REFUSED)})
    broken = [f"{row.method} at {name(row.tokens)}: {row.note}" for row in absent if not row.note.startswith(REFUSED)]
    ratios = [row.of_full for row in rows if row.of_full is not None and row.method != "full"]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} of full's step" if ratios else "no ratio"
    number = len({(row.method, row.budget) for row in rows if row.tpot_ms is not None})
    found = f"{number} methods, {len({row.tokens for row in rows})} lengths, {spread}"
    target = "all methods, on a CPU"
    if gpu:
        yield untried("ratios to full of all methods", f"needs a run on a CPU; here: {found}", target)
    else:
        yield judged("ratios to full of all methods", target, not broken, "; ".join([found, *refused, *broken]) + rest)


def resident_goal(rows: Sequence[DecodeRow], gpu: bool, rest: str) -> Goal:
    """Methods whose K and V are all on the device."""
    far = [row for row in rows if row.tokens >= (FROM if gpu else 0) and row.of_full is not None]
    others = [row for row in far if row.method != "full" and not row.host_resident_bytes]
    slow = [f"{row.method} {row.of_full:.2f} at {name(row.tokens)}" for row in others if (row.of_full or 0.0) >= 1.0]
    found = f"{len(others) - len(slow)} of {len(others)} rows faster; not: {', '.join(slow) or 'none'}{rest}"
    lengths = {row.tokens for row in others}
    whole = {n for n in GOAL_LENGTHS if n >= FROM} <= lengths
    return judged(
        "methods on the device faster than full", "at 10 %, from 32k on", not slow, found, gpu and bool(others), whole
    )


def pqcache_goal(rows: Sequence[DecodeRow], gpu: bool, rest: str) -> Goal:
    """PQCache with K and V in host memory; of several caches in front of it one must do, and all are said."""
    title, target = "PQCache from host memory at 128k", f"<= full's step and <= {PQCACHE_MS:g} ms"
    ours = [row for row in rows if row.method.split()[0] == "pqcache" and row.host_resident_bytes]
    longest = max((row.tokens for row in ours), default=0)
    held = [(row.tpot_ms, row.of_full, row) for row in ours if row.tokens == longest and row.tpot_ms and row.of_full]
    if not held:
        return untried(title, f"no figure{rest}", target)
    said = [
        f"{ms:.1f} ms, {ratio:.2f} of full's step ({row.method}, {row.decode})"
        for ms, ratio, row in sorted(held, key=lambda one: one[0])
    ]
    good = any(ms <= PQCACHE_MS and ratio <= 1.0 for ms, ratio, _ in held)
    return judged(title, target, good, f"at {name(longest)}: {'; '.join(said)}{rest}", gpu and longest == LONGEST)


def waits_goal(seen: Waits, trace: Path) -> Goal:
    """What a profiler counted in a step."""
    counted = ", ".join(f"{count} {event}" for event, count in seen.counts.items()) or "none"
    title, target = "no host synchronisation in PQCache's step", "none in a profiler's trace"
    return judged(title, target, not seen.counts, f"{counted} ({seen.said}; {trace})")


def index_goal(rows: Mapping[str, PrefillRow], gpu: bool) -> Goal:
    """The better place of clustering counts."""
    known = {place: row.adds for place, row in rows.items() if row.adds is not None}
    title, target = "PQCache's index beside the time to the first token", f"adds <= {100 * INDEX_SHARE:g} % at 32k"
    if not known:
        return untried(title, "no figure", target)
    length = next(iter(rows.values())).tokens
    found = f"{', '.join(f'{100 * adds:.1f} % {place}' for place, adds in known.items())} at {name(length)}"
    return judged(title, target, min(known.values()) <= INDEX_SHARE, found, gpu)


def scoring_goal(seen: Watched, length: int, gpu: bool) -> Goal:
    """It fitted, or there would be no figure."""
    found = f"{100 * seen.share:.0f} % at {name(length)} ({seen.observers:.3g} s beside {seen.attention:.3g} s a layer)"
    target = f"fits; <= {100 * SCORING_SHARE:g} % of the prefill's attention at 128k"
    return judged("H2O's scores", target, seen.share <= SCORING_SHARE, found, gpu)


def kcache_goals(found: BreakEven, gpu: bool) -> Iterator[Goal]:
    """Measured crossings beside the formula, which speaks of the values; a whole step also ranks the tokens."""
    target = f"within {100 * FORMULA_SHARE:g} % of U * B_h / B_p"
    rates = f"U={found.fetched}, read {found.read / 1e9:.1f} GB/s, fetched {found.fetch / 1e9:.2f} GB/s"
    formula = f"formula {found.formula:,.0f} tokens ({rates})"
    for what, point in (("values alone", found.values), ("whole attention step", found.step)):
        title = f"KCache's break-even, {what}"
        if point:
            off = point / found.formula - 1
            text = f"measured {point:,.0f} ({100 * off:+.0f} %), {formula}"
            yield judged(title, target, abs(off) <= FORMULA_SHARE, text, gpu)
            continue
        beyond = found.formula > found.longest if point is None else found.formula < found.shortest
        where = f"above {found.longest:,}" if point is None else f"below {found.shortest:,}"
        yield judged(title, target, beyond, f"measured {where}, {formula}", gpu, whole=False)


def memory_goal(title: str, rows: Sequence[DecodeRow]) -> Goal:
    """Of all rows with a peak."""
    off = {row.method: row.peak_bytes / row.ledger_bytes - 1 for row in rows if row.peak_bytes and row.ledger_bytes}
    if not off:
        return untried(title, "no figure", "2 %")
    found = ", ".join(f"{method} {100 * share:+.1f} %" for method, share in off.items())
    return judged(title, "2 %", all(abs(share) <= MEMORY_SHARE for share in off.values()), found)


def overhead_goal(found: Mapping[str, Overhead]) -> Goal:
    """The better way of decoding counts."""
    said = ", ".join(
        f"{o.ratio:.2f} {way} ({1e3 * o.ours:.2f} beside {1e3 * o.bare:.2f} ms)" for way, o in found.items()
    )
    best = min(o.ratio for o in found.values())
    target = f"<= {OVERHEAD_RATIO} of a bare loop with a DynamicCache, tiny, CPU"
    return judged("the harness's own time in a step", target, best <= OVERHEAD_RATIO, f"{said} at 1k")


def name(length: int) -> str:
    """`32k`, `1000`."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
