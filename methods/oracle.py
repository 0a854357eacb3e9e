"""Exact top-k: the middle tokens with the largest true attention, found by scanning all keys at every step.

The upper bound for methods that choose tokens (PQCache's "no_drop" baseline, arXiv 2407.12820): per KV head, as they
must read them, or per query head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Selection, Step, packed
from methods.fixed import FixedRows, FixedStep
from methods.fused import logits as fused_logits
from methods.fused import middle_shares
from methods.scores import attention, group_sum, logits, top_k
from methods.store import KVStore


class OracleIndex(Index):
    """No memory: the whole key cache is the index."""

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: Oracle) -> None:
        super().__init__(layer, store, budget)
        self.method = method

    def select(self, step: Step) -> Selection:
        # Softmax over all tokens, then the middle slice: heads weigh by the mass they really have there.
        weights = attention(logits(step.queries, self.store.keys(), self.layer), self.layer).sum(1)
        if self.method.scope == "kv_head":
            weights = group_sum(weights, self.layer.num_kv_heads)
        scores = weights[:, step.sink : step.end]
        positions = top_k(scores, step.k)
        if self.method.top_p is not None:
            total = weights.sum(1, keepdim=True)
            positions = nucleus(scores, positions, total - scores.sum(1, keepdim=True), self.method.top_p * total)
        return Selection(positions + step.sink * (positions >= 0))

    def fixed(self, room: int) -> FixedStep | None:
        plain = self.method.scope == "kv_head" and self.method.top_p is None
        return FixedOracle(self.layer, self.budget, self.store.held(), room) if plain else None


class FixedOracle(FixedRows):
    """Scans all keys, chooses by the whole softmax."""

    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, None]:
        scores = middle_shares(fused_logits(queries, self.k, self.layer), now, self.budget, self.layer)
        return top_k(scores, self.budget.middle), None

    def scanned(self, num_tokens: int) -> int:
        return self.row_bytes(num_tokens) // 2


def nucleus(scores: Tensor, chosen: Tensor, certain: Tensor, wanted: Tensor) -> Tensor:
    """Of the chosen candidates [h,k] the fewest, heaviest first, whose mass and the certain one reach the wanted mass.

    scores [h,c]: mass of each candidate; certain, wanted [h,1]. -1 pads.
    """
    mass, order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True)
    before = certain + mass.cumsum(1) - mass
    return packed(chosen.gather(1, order).masked_fill(before >= wanted, -1))


@dataclass(frozen=True)
class Oracle(Method):
    """Exact top-k of the softmax probabilities at each step.

    scope: one list per KV head, by the sum over its group ("kv_head"), or one per query head ("q_head"); then the
    budget holds per query head, and up to H/G times as many tokens are read.
    top_p: stop as soon as sink, local window and the chosen tokens hold this share of the attention (the mean over the
    group), within the budget; None: use the whole budget.
    """

    scope: Literal["kv_head", "q_head"] = "kv_head"
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"method.top_p={self.top_p}: give a share of the attention in (0, 1], or null")

    @property
    def spread(self) -> str:
        return "q_head" if self.scope == "q_head" else "head"

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return OracleIndex(layer, store, budget, self)
