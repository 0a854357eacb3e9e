"""Whether two runs are the same: logits up to rounding, and the tokens that are read."""

from __future__ import annotations

from torch import Tensor

from scripts.contract.case import require
from scripts.watch import Trace

NEAR = 1e-3  # logits and outputs are of order 1; another set of tokens moves them by 1e-2 and more


def same_logits(found: Tensor, right: Tensor, whose: str) -> None:
    """Logits [T,V] are equal up to rounding. Raises Broken."""
    gaps = (found - right).abs().amax(1)
    step = int((gaps >= NEAR).long().argmax())
    require((gaps < NEAR).all(), f"at step {step} logits are {float(gaps[step]):.1e} away from {whose}")


def same_trace(found: Trace, right: Trace, what: str) -> None:
    """Two traces chose the same tokens and gave the same logits up to rounding. Raises Broken."""
    for number, (a, b) in enumerate(zip(found.watched.layers, right.watched.layers, strict=True)):
        # Where the prompt itself goes through the method in other chunks, steps differ before its end.
        steps = [{s.step.start: s for s in layer.steps if s.step.positions.shape[0] == 1} for layer in (a, b)]
        for start in sorted(steps[0].keys() & steps[1].keys()):
            sets = [read_sets(found_steps[start].positions) for found_steps in steps]
            require(sets[0] == sets[1], f"{what}: layer {number} reads other tokens at position {start}")
    same_logits(found.logits, right.logits, f"what they were: {what}")


def overlap(found: Trace, right: Trace) -> float:
    """The share of the tokens read in `right` that `found` reads, too, over all steps."""
    num = [0, 0]
    for a, b in zip(found.watched.layers, right.watched.layers, strict=True):
        for one, other in zip(a.steps, b.steps, strict=True):
            for x, y in zip(read_sets(one.positions), read_sets(other.positions), strict=True):
                num[0] += len(x & y)
                num[1] += len(y)
    return num[0] / max(1, num[1])


def read_sets(positions: Tensor) -> list[set[int]]:
    """The positions of each row."""
    return [set(row) - {-1} for row in positions.tolist()]
