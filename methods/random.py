"""Random selection: a seeded draw of middle tokens at every step; the floor that a method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Budget, Index, Layer, Method, Selection, Step
from methods.scores import top_k
from methods.store import KVStore

PRIME = 1_000_003


class RandomIndex(Index):
    """No memory: the draw depends on the layer's seed and the step's position alone."""

    def select(self, step: Step) -> Selection:
        # Drawn on the host: a device's generator would give other tokens on other machines.
        generator = torch.Generator().manual_seed((self.layer.seed * PRIME + step.start) % (1 << 63))
        num_candidates = max(0, step.end - step.sink)
        draw = torch.rand(self.layer.num_kv_heads, num_candidates, generator=generator)
        return Selection(top_k(draw.to(self.layer.device), step.k) + step.sink)


@dataclass(frozen=True)
class Random(Method):
    """k distinct middle tokens per KV head, drawn anew at every step."""

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return RandomIndex(layer, store, budget)
