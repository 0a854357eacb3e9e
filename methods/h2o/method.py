"""H2O (arXiv 2306.14048): heavy hitters by accumulated attention; what is dropped is gone."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Observer, Selection, Step
from methods.fixed import FixedStep, Read, first, roomy
from methods.fused import logits, put_rows, weighted
from methods.scores import ColumnSums, attention, group_sum, lightest, top_k
from methods.store import EvictingStore, KVStore, MaskedStore, Traffic, pick


class H2OIndex(Index):
    """Accumulated scores, one float64 per slot of the store: what a step adds may lie below a float32 sum's last digit.

    After the prefill: s_j = sum over all prompt queries of P_ij, summed over the group; sink, the heaviest `middle` and
    the latest `local` tokens stay. Each step attends what is held and itself, adds its probabilities, and drops the
    lightest token outside the local window: one-shot, then greedy one per step (section 4 of the paper, real drop).
    """

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: H2O) -> None:
        super().__init__(layer, store, budget)
        self.method = method
        # What stays whatever its score. With the current token inside the budget, its place is kept free; a token in
        # the hole stays unread for a step before it competes.
        self.recent = max(0, budget.local - method.count_current) + method.hole
        self.capacity = budget.sink + self.recent + budget.middle
        self.num_held = 0
        self.scores = torch.zeros(layer.num_kv_heads, 0, dtype=torch.float64, device=layer.device)

    def build(self, seen: Mapping[Hashable, object]) -> None:
        sums = cast(Tensor, seen[ColumnSums(self.layer).key])
        n, sink = sums.shape[1], self.budget.sink
        end = max(sink, n - self.recent)
        everywhere = torch.arange(n, device=sums.device)
        heavy = top_k(self.method.rank(sums, everywhere, n - 1)[:, sink:end], self.budget.middle) + sink
        always = torch.cat([everywhere[:sink], everywhere[end:]])
        self.store.keep(torch.cat([heavy, always.expand(heavy.shape[0], -1)], 1).sort(1).values)
        self.num_held = heavy.shape[1] + always.shape[0]
        held = self.store.positions()
        self.scores = sums.double().gather(1, held.clamp(min=0)).masked_fill(held < 0, 0.0)

    def select(self, step: Step) -> Selection:
        if not self.method.hole:
            return Selection()
        held = self.store.positions()
        readable = held.masked_fill((held < step.sink) | (held >= step.end - 1), -1)
        return Selection(readable.topk(min(step.k, held.shape[1])).values)

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        drawn = group_sum(weights.sum(1), self.layer.num_kv_heads).double()
        if self.method.hole:  # the columns are a selection's; the slots of a masked store are positions
            held = self.store.positions()
            drawn = torch.zeros_like(held, dtype=drawn.dtype).scatter_add_(1, positions.clamp(min=0), drawn)
            positions = held
        self.scores = torch.nn.functional.pad(self.scores, (0, positions.shape[1] - self.scores.shape[1])) + drawn
        self.store.traffic.scan(self.scores)
        self.num_held += 1
        if self.num_held > self.capacity:
            # After this step the window starts one token later: what left it competes with the heavy hitters.
            outside = (positions >= step.sink) & (positions <= step.start - self.recent)
            gone = lightest(self.method.rank(self.scores, positions, step.start), positions, outside)
            self.store.drop(gone)
            self.scores = self.scores.masked_fill(positions == gone, 0.0)
            self.num_held -= 1

    def tensors(self) -> list[tuple[str, Tensor]]:
        return [("index", self.scores)]

    def fixed(self, room: int) -> FixedStep | None:
        # Below its capacity it grows, and a masked store keeps everything: neither has a fixed number of slots.
        if self.method.mode == "mask" or self.num_held < self.capacity:
            return None
        return FixedH2O(self)


class FixedH2O(FixedStep):
    """The same, one token out for each that comes in: into its slot, so that all slots are full when they are read."""

    def __init__(self, index: H2OIndex) -> None:
        super().__init__(index.layer, index.budget)
        [held] = index.store.held()
        # A store may have free slots; one is needed, for the first token to come.
        taken = first(held.positions >= 0, index.num_held)
        self.k, self.v = (roomy([pick(rows, taken)], 1, 1) for rows in (held.k, held.v))
        self.positions = roomy([held.positions.gather(1, taken)], 1, 1)
        self.scores = roomy([index.scores.gather(1, taken)], 1, 1)
        self.vacant = torch.full_like(self.positions[:, :1], index.num_held)
        self.method, self.recent = index.method, index.recent

    def attend(self, queries: Tensor, k: Tensor, v: Tensor, now: Tensor) -> Read:
        put_rows(self.k, self.v, k, v, self.vacant[:, 0], self.positions, now)
        weights = self.weigh(logits(queries, self.k, self.layer), now)
        return Read(weighted(weights, self.v), self.positions)

    def weigh(self, score: Tensor, now: Tensor) -> Tensor:
        """Probabilities [H,r] of logits [H,r]; they are added to the scores, and the lightest slot becomes vacant."""
        sink, recent, layer = self.budget.sink, self.recent, self.layer
        if score.is_cuda:
            from methods.kernels.slots import weigh as kernel

            state, dtype = (self.scores, self.positions, self.vacant), self.v.dtype
            return kernel(score, *state, now, sink, recent, self.method.normalize, layer.sinks, dtype)
        self.scores.scatter_(1, self.vacant, 0.0)
        weights = attention(score[:, None], layer)[:, 0]
        self.scores += group_sum(weights, layer.num_kv_heads)
        outside = (self.positions >= sink) & (self.positions <= now - recent)
        gone = self.positions == lightest(self.method.rank(self.scores, self.positions, now), self.positions, outside)
        self.vacant.copy_(gone.to(torch.int8).argmax(1, keepdim=True))
        return weights

    def traffic(self, start: int, num_steps: int) -> Traffic:
        kv = num_steps * self.row_bytes(self.positions.shape[1])
        return Traffic(kv=kv, index=num_steps * self.scores.nbytes)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        index = self.positions, self.scores, self.vacant
        return (("k", self.k), ("v", self.v), *(("index", t) for t in index))


@dataclass(frozen=True)
class H2O(Method):
    """Heavy-hitter oracle: `middle` heavy hitters and `local` recent tokens per KV head, besides the sink.

    mode: "drop" frees what is evicted; "mask" hides it and frees nothing, as most published numbers do: same sets.
    normalize: rank by the mean over the queries that saw a token, not the sum, which favours early tokens.
    count_current: the current token takes a place of the local window (the authors' simulation), not one on top.
    hole: parity with the released masked code only: the youngest token outside the local window is read by nobody for
    one step, and then competes with the score it had. `local` is then their recent budget less the current token.
    """

    observes = True

    mode: Literal["drop", "mask"] = "drop"
    normalize: bool = False
    count_current: bool = False
    hole: bool = False

    def __post_init__(self) -> None:
        if self.hole and (self.mode != "mask" or self.count_current):
            raise ValueError("method.hole=true is the released masked code: give mode=mask and count_current=false")

    def rank(self, scores: Tensor, positions: Tensor, now: int | Tensor) -> Tensor:
        """What decides who stays: the scores, or their mean over the queries up to `now` that saw the token."""
        return scores / (now - positions + 1).clamp(min=1) if self.normalize else scores

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (ColumnSums(layer),)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return EvictingStore(k, v) if self.mode == "drop" else MaskedStore(k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return H2OIndex(layer, store, budget, self)
