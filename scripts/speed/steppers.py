"""The decode steps there are, by name: the one place that chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.arm import Arm, Lockstep, SelectiveLayer
from engine.model import Model
from engine.seam import forward
from engine.static import WAYS, FixedLayer, begin


class Stepper(Protocol):
    """Feeds each of R arms its next token."""

    def step(self, token: Tensor) -> Tensor:
        """Tokens [R,1] on the device -> float32 logits [R,V]."""
        ...


class Eager:
    """The step of `engine.generate`: one forward pass for all rows."""

    def __init__(self, model: Model, arms: Sequence[Arm]) -> None:
        self.model = model
        self.state = Lockstep(arms)

    def step(self, token: Tensor) -> Tensor:
        logits = forward(self.model.network, token, self.state.arms[0].length, self.state)
        self.state.advance(1)
        return logits


@dataclass(frozen=True)
class Stepping:
    """layers: the selectable ones of all arms, from now on. said: the way, or `eager: ` and why not as asked."""

    stepper: Stepper
    layers: Sequence[SelectiveLayer | FixedLayer]
    said: str


def stepping(way: str, model: Model, arms: Sequence[Arm], room: int) -> Stepping:
    """How arms whose prompt is stored are decoded, at most `room` steps, without an audit."""
    static, said = begin(way, model, arms, room, audited=False)
    if static is None:
        return Stepping(Eager(model, arms), [layer for arm in arms for layer in arm.selective], said)
    return Stepping(static, static.layers, said)


def check_ways(ways: Sequence[str]) -> None:
    """Raises ValueError for a name that is none."""
    for way in ways:
        if way not in WAYS:
            raise ValueError(f"--decode {way}: allowed are {', '.join(WAYS)}, or several with commas")
