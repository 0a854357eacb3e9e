"""Eviction once, after the prompt: scores say what stays of it; from then on only the local window slides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Observer, Selection, Step
from methods.fixed import FixedStep, SlidingSlots
from methods.scores import WindowSums, pooled, top_k
from methods.store import EvictingStore, KVStore


class OneShotIndex(Index):
    """Keeps sink, chosen and local tokens of the prompt and frees the rest; remembers two numbers.

    A token that leaves the local window is freed, generated or not, so that the budget never grows. Only where the
    whole middle of the prompt took less than its budget does it stay, as long as there is room.
    """

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: OneShot) -> None:
        super().__init__(layer, store, budget)
        self.method = method
        self.oldest = 0  # the first position of the local window that is still held for being there
        self.room = 0

    def build(self, seen: Mapping[Hashable, object]) -> None:
        everywhere = self.store.positions()
        n = everywhere.shape[1]
        sink = min(self.budget.sink, n)
        self.oldest = max(sink, n - self.budget.local)
        self.room = max(0, self.budget.middle - (self.oldest - sink))
        scores = self.method.scores(self.layer, seen, self.oldest)[:, sink:]
        chosen = self.method.choose(scores, self.budget.middle)
        chosen = torch.where(chosen < 0, -1, chosen + sink)
        self.store.keep(torch.cat([everywhere[:, :sink], chosen, everywhere[:, self.oldest :]], 1))

    def extend(self, k: Tensor, v: Tensor, start: int) -> None:
        left = max(0, start - self.budget.local - self.oldest)
        stay = min(left, self.room)
        self.room -= stay
        if left > stay:
            gone = torch.arange(self.oldest + stay, self.oldest + left, device=k.device)
            self.store.drop(gone.expand(k.shape[0], -1))
        self.oldest += left

    def select(self, step: Step) -> Selection:
        return Selection()

    def fixed(self, room: int) -> FixedStep | None:
        if self.room:  # more slots than tokens so far: not the case of any prompt that is longer than its budget
            return None
        held = self.store.held()
        k, v, positions = (torch.cat([part[field] for part in held], 1) for field in range(3))  # type: ignore[misc]
        return SlidingSlots(self.layer, self.budget, k, v, positions, self.oldest)


@dataclass(frozen=True)
class OneShot(Method):
    """A method that says how much each prompt token is worth; what is dropped is gone."""

    @abstractmethod
    def scores(self, layer: Layer, seen: Mapping[Hashable, object], end: int) -> Tensor:
        """Float32 [G,end]: worth of the prompt tokens before the local window, which starts at `end`."""

    def choose(self, scores: Tensor, k: int) -> Tensor:
        """Which of the candidates stay, by their scores [G,c]: columns [G,k], or ragged rows padded with -1."""
        return top_k(scores, k)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return EvictingStore(k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return OneShotIndex(layer, store, budget, self)


@dataclass(frozen=True)
class WindowScored(OneShot):
    """Tokens are worth the attention that the last `window` prompt queries give them, pooled over neighbours.

    window: queries that score; also the local window, which takes half of a small budget at most. kernel: width of the
    pooling, odd; 1 is none. pool: "max" or "avg". reduce: "sum" or "max" over the query heads of a group, before it.
    """

    window: int = 32
    kernel: int = 7
    pool: Literal["max", "avg"] = "max"
    reduce: Literal["sum", "max"] = "sum"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"method.window={self.window}: give 1 token or more")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"method.kernel={self.kernel}: give an odd number; 1 pools nothing")

    def split(self, total: int, local_share: float) -> tuple[int, int]:
        local = min(self.window, total // 2)
        return local, total - local

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (self._seen_by(layer),)

    def scores(self, layer: Layer, seen: Mapping[Hashable, object], end: int) -> Tensor:
        sums = seen[self._seen_by(layer).key]
        assert isinstance(sums, Tensor)
        return pooled(sums[:, :end], self.kernel, self.pool)

    def _seen_by(self, layer: Layer) -> WindowSums:
        return WindowSums(layer, self.window, self.reduce)


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers of sum `total`, each a share rounded down or up: the largest remainders are rounded up.

    The shares are not negative and add up to `total`. Of equal remainders the earlier one goes up, so that shares in
    falling order stay so.
    """
    sizes = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: sizes[i] - shares[i])
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes
