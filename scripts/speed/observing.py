"""What observers of a prefill cost, against the dense attention that they watch: one layer, any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from engine.attention import Dense
from engine.generate import NO_BUDGET
from engine.model import Model
from engine.prefill import LayerPrefill
from engine.seam import Call
from methods.base import Observer
from scripts.speed.bandwidth import seconds
from scripts.speed.words import Contender, plan


@dataclass(frozen=True)
class Watched:
    """Seconds of one layer's causal attention, and what observers, with the log-sum-exp they need, add to it."""

    attention: float
    observers: float

    @property
    def share(self) -> float:
        """Of the attention."""
        return self.observers / self.attention


@torch.inference_mode()
def watched(model: Model, contender: Contender, num_tokens: int, repeats: int) -> Watched | None:
    """Medians, on random tensors: no time depends on their values. None for a method that observes nothing."""
    asked = plan(model, contender, num_tokens)
    number = next(i for i, geometry in enumerate(model.geometry) if geometry.window is None)
    layer = model.layers(0)[number]

    def observers() -> Sequence[Observer]:
        return asked.active.observers(layer, asked.budget or NO_BUDGET)

    if not observers():
        return None
    how = Dense(model.attention, None, model.geometry[number].sinks)
    q, k, v = (
        torch.randn(1, heads, num_tokens, layer.head_dim, dtype=layer.dtype, device=layer.device)
        for heads in (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
    )

    def walk(seen: Callable[[], Sequence[Observer]]) -> None:
        state = LayerPrefill(layer, how, num_tokens, seen())
        for a in range(0, num_tokens, model.prefill_chunk):
            rows = slice(a, a + model.prefill_chunk)
            state.attend(Call(number, q[:, :, rows], k[:, :, rows], v[:, :, rows], layer.scale, None, None, None), a)

    plain, both = [], []
    walk(tuple)
    for _ in range(repeats):
        plain.append(seconds(layer.device, lambda: walk(tuple)))
        both.append(seconds(layer.device, lambda: walk(observers)))
    return Watched(median(plain), median(both) - median(plain))
