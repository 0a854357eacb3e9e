"""StreamingLLM (arXiv 2309.17453): sink and latest tokens only; here at their original positions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Selection, Step
from methods.store import EvictingStore, KVStore


class WindowIndex(Index):
    """Frees each token that leaves the local window."""

    def build(self, seen: Mapping[Hashable, object]) -> None:
        held = self.store.positions()
        n, local = held.shape[1], self.budget.local
        stays = (held[0] < self.budget.sink) | (held[0] >= n - local)
        self.store.keep(held[:, stays])

    def select(self, step: Step) -> Selection:
        return Selection()

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

    Keys keep their post-RoPE rotation, which equals the paper's re-numbering only below the model's trained length.
    """

    observes = True

    def split(self, total: int, local_share: float) -> tuple[int, int]:
        return total, 0

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return EvictingStore(k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return WindowIndex(layer, store, budget)
