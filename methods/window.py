"""StreamingLLM (arXiv 2309.17453): sink and latest tokens only."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, ModelFacts, Selection, Step
from methods.fixed import FixedStep, SlidingSlots
from methods.store import EvictingStore, KVStore


class WindowIndex(Index):
    """Frees each token that leaves the local window."""

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: Window) -> None:
        super().__init__(layer, store, budget)
        self.method = method

    def build(self, seen: Mapping[Hashable, object]) -> None:
        held = self.store.positions()
        n, local = held.shape[1], self.budget.local
        stays = (held[0] < self.budget.sink) | (held[0] >= n - local)
        self.store.keep(held[:, stays])

    def select(self, step: Step) -> Selection:
        return Selection()

    def fixed(self, room: int) -> FixedStep | None:
        if self.method.positions == "cache":  # all keys turn at every step
            return None
        [held] = self.store.held()
        oldest = max(self.budget.sink, int(held.positions.max()) + 1 - self.budget.local)
        return SlidingSlots(self.layer, self.budget, held.k, held.v, held.positions, oldest)

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        # The next window starts one token later for each new one; early on it still reaches back into the sink.
        first = max(step.sink, step.start - self.budget.local)
        last = step.start + step.positions.shape[0] - self.budget.local
        if last > first:
            left = torch.arange(first, last, device=positions.device)
            self.store.drop(left.expand(positions.shape[0], -1))


@dataclass(frozen=True)
class Window(Method):
    """Sink + local window; all of the budget goes to the window.

    positions: "original": keys keep their rotation and true distances; "cache": at each step keys and query are turned
    to their index in the cache, as the released code does (section 3.2). The second never leaves the trained length;
    for texts within it the first sees the sink where it is.
    """

    observes = True

    positions: Literal["original", "cache"] = "original"

    @property
    def distance(self) -> str:
        return "cache" if self.positions == "cache" else "true"

    def supports(self, model: ModelFacts) -> str | None:
        if self.positions == "original":
            return None
        if not model.has_rope:
            return "it has no rotary embedding, so tokens cannot be moved to their index in the cache"
        if model.rope_scaled:
            return "its rotary embedding carries an attention factor (YaRN), which un-rotating keys would lose"
        return None

    def split(self, total: int, local_share: float) -> tuple[int, int]:
        return total, 0

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return EvictingStore(k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return WindowIndex(layer, store, budget, self)
