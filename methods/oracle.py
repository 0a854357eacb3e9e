"""Exact top-k: the middle tokens with the largest true attention, found by scanning all keys at every step.

The upper bound for methods with one list of positions per KV head (PQCache's "no_drop" baseline, arXiv 2407.12820).
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.base import Budget, Index, Layer, Method, Selection, Step
from methods.scores import group_sum, logits, top_k
from methods.store import KVStore


class OracleIndex(Index):
    """No memory: the whole key cache is the index."""

    def select(self, step: Step) -> Selection:
        # Softmax over all tokens, then the middle slice: heads weigh by the mass they really have there.
        weights = logits(step.queries, self.store.keys(), self.layer).softmax(-1)[..., step.sink : step.end]
        scores = group_sum(weights.sum(1), self.layer.num_kv_heads)
        return Selection(top_k(scores, step.k) + step.sink)


@dataclass(frozen=True)
class Oracle(Method):
    """Exact top-k of the group-summed softmax probabilities, per KV head and step."""

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return OracleIndex(layer, store, budget)
