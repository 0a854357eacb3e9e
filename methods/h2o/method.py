"""H2O (arXiv 2306.14048): heavy hitters by accumulated attention; what is dropped is gone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Observer, Selection, Step
from methods.scores import ColumnSums, group_sum, top_k
from methods.store import EvictingStore, KVStore, MaskedStore


class H2OIndex(Index):
    """Accumulated scores, one float32 per slot of the store.

    After the prefill: s_j = sum over all prompt queries of P_ij, summed over the group; sink, the heaviest `middle` and
    the latest `local` tokens stay. Each step attends what is held and itself, adds its probabilities, and drops the
    lightest token outside the local window: one-shot, then greedy one per step (section 4 of the paper, real drop).
    """

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: H2O) -> None:
        super().__init__(layer, store, budget)
        self.method = method
        # What is held between steps; with the current token inside the budget, its place is kept free.
        self.local = max(0, budget.local - method.count_current)
        self.num_held = budget.sink + self.local + budget.middle
        self.scores = torch.zeros(layer.num_kv_heads, 0, device=layer.device)

    def build(self, seen: Mapping[Hashable, object]) -> None:
        sums = cast(Tensor, seen[ColumnSums(self.layer).key])
        n, sink, local = sums.shape[1], self.budget.sink, self.local
        everywhere = torch.arange(n, device=sums.device)
        ranks = self.ranks(sums, everywhere, n - 1)[:, sink : n - local]
        heavy = top_k(ranks, self.budget.middle) + sink
        always = torch.cat([everywhere[:sink], everywhere[n - local :]])
        self.store.keep(torch.cat([heavy, always.expand(heavy.shape[0], -1)], 1).sort(1).values)
        held = self.store.positions()
        self.scores = sums.gather(1, held.clamp(min=0)).masked_fill(held < 0, 0.0)

    def select(self, step: Step) -> Selection:
        return Selection()

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        grown = positions.shape[1] - self.scores.shape[1]
        self.scores = torch.nn.functional.pad(self.scores, (0, grown)) + group_sum(
            weights.sum(1), self.layer.num_kv_heads
        )
        # After this step the window starts one token later: what left it competes with the heavy hitters.
        outside = (positions >= step.sink) & (positions <= step.start - self.local)
        if positions.shape[1] - self._num_empty(positions) > self.num_held:
            ranks = self.ranks(self.scores, positions, step.start)
            lightest = ranks.masked_fill(~outside, torch.inf).argmin(1, keepdim=True)
            self.store.drop(positions.gather(1, lightest))
            self.scores = self.scores.scatter(1, lightest, 0.0)

    def ranks(self, scores: Tensor, positions: Tensor, now: int) -> Tensor:
        """What decides who stays: the scores, or their mean over the queries up to `now` that saw the token."""
        return scores / (now - positions + 1).clamp(min=1) if self.method.normalize else scores

    def _num_empty(self, positions: Tensor) -> int:
        # Every head holds the same number of tokens: one leaves where one came.
        return int((positions[0] < 0).sum())

    def tensors(self) -> list[tuple[str, Tensor]]:
        return [("index", self.scores)]


@dataclass(frozen=True)
class H2O(Method):
    """Heavy-hitter oracle: `middle` heavy hitters and `local` recent tokens per KV head, besides the sink.

    mode: "drop" frees what is evicted; "mask" hides it and frees nothing, as most published numbers do: same sets.
    normalize: rank by the mean over the queries that saw a token, not the sum, which favours early tokens.
    count_current: the current token takes a place of the local window (the authors' simulation), not one on top.
    """

    observes = True

    mode: Literal["drop", "mask"] = "drop"
    normalize: bool = False
    count_current: bool = False

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (ColumnSums(layer),)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return EvictingStore(k, v) if self.mode == "drop" else MaskedStore(k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return H2OIndex(layer, store, budget, self)
