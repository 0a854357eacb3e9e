"""SparQ attention (arXiv 2312.04985): the largest query channels approximate the scores of all keys."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, ModelFacts, Rest, Selection, Step
from methods.fixed import FixedRows, FixedStep, put, roomy
from methods.fused import channel_logits, largest_channels, middle_shares
from methods.scores import group_sum, top_k
from methods.store import GROW, KVStore


class SparQIndex(Index):
    """A second, channel-major copy of the keys [G,D,n], so that r channels are r contiguous reads, and value sums.

    The sums are float64: a value may lie below the last digit of the float32 sum of all values before it.
    """

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: SparQ) -> None:
        super().__init__(layer, store, budget)
        self.method = method
        shape = layer.num_kv_heads, layer.head_dim
        self.channels = torch.zeros(*shape, 0, dtype=layer.dtype, device=layer.device)
        self.value_sum = torch.zeros(shape, dtype=torch.float64, device=layer.device)
        self.length = 0

    def build(self, seen: Mapping[Hashable, object]) -> None:
        for part in self.store.held():
            self.extend(part.k, part.v, self.length)

    def extend(self, k: Tensor, v: Tensor, start: int) -> None:
        end = self.length + k.shape[1]
        if end > self.channels.shape[2]:
            self.channels = torch.nn.functional.pad(self.channels, (0, end - self.channels.shape[2] + GROW))
        self.channels[:, :, self.length : end] = k.transpose(1, 2)
        self.value_sum += v.sum(1, dtype=torch.float64)
        self.length = end

    def select(self, step: Step) -> Selection:
        approximate = self.approximate_logits(step.queries[:, 0])
        shares = approximate.softmax(-1)
        basis = shares if self.method.reduce == "softmax" else approximate
        scores = group_sum(basis, self.layer.num_kv_heads)
        positions = top_k(scores[:, step.sink : step.end], step.k) + step.sink
        return Selection(positions, self.rest(shares, positions, step) if self.method.reallocates(self.layer) else None)

    def approximate_logits(self, queries: Tensor) -> Tensor:
        """Of queries [H,D] on all stored keys, float32 [H,n]."""
        keys = self.channels[:, :, : self.length]
        self.store.traffic.scan(keys[:, : self.method.num_channels(self.layer)])
        return self.method.approximate(queries, keys, self.layer)

    def rest(self, shares: Tensor, positions: Tensor, step: Step) -> Rest:
        middle = shares[:, step.sink : step.end].sum(-1)
        return mean_value(shares, positions, middle, self.value_sum / self.length)

    def tensors(self) -> list[tuple[str, Tensor]]:
        return [("index", self.channels), ("index", self.value_sum)]

    def fixed(self, room: int) -> FixedStep:
        return FixedSparQ(self, room)


class FixedSparQ(FixedRows):
    """The same with room for all tokens to come."""

    def __init__(self, index: SparQIndex, room: int) -> None:
        super().__init__(index.layer, index.budget, index.store.held(), room)
        self.method = index.method
        self.channels = roomy([index.channels[:, :, : index.length]], room, 2)
        self.value_sum = index.value_sum

    def extend(self, k: Tensor, v: Tensor, now: Tensor) -> None:
        put(self.channels, k, now, 2)
        self.value_sum += v

    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, Rest | None]:
        approximate = self.method.approximate(queries, self.channels, self.layer)
        if self.method.reduce == "softmax" and not self.method.reallocates(self.layer):
            scores = middle_shares(approximate, now, self.budget, self.layer, learned=False)
            return top_k(scores, self.budget.middle), None
        place = torch.arange(approximate.shape[1], device=approximate.device)
        shares = approximate.masked_fill(place > now, -torch.inf).softmax(-1)
        scores = group_sum(shares if self.method.reduce == "softmax" else approximate, self.layer.num_kv_heads)
        candidates = (place >= self.budget.sink) & (place < now - self.budget.local)
        positions = top_k(scores.masked_fill(~candidates, -torch.inf), self.budget.middle)
        if not self.method.reallocates(self.layer):
            return positions, None
        middle = shares.masked_fill(~candidates, 0.0).sum(-1)
        return positions, mean_value(shares, positions, middle, self.value_sum / (now + 1))

    def scanned(self, num_tokens: int) -> int:
        layer = self.layer
        return layer.num_kv_heads * self.method.num_channels(layer) * num_tokens * layer.dtype.itemsize

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (*super().tensors(), ("index", self.channels), ("index", self.value_sum))


def mean_value(shares: Tensor, positions: Tensor, middle: Tensor, mean: Tensor) -> Rest:
    """The mean value [G,D] stands in for what is not read, with the approximate mass that the read part lacks.

    shares [H,n] of all tokens; middle [H]: those of the candidates; positions [G,k]: the candidates that are read.
    """
    group = shares.shape[0] // positions.shape[0]
    read = shares.gather(1, positions.repeat_interleave(group, 0)).sum(-1)
    return Rest(value=mean.float().repeat_interleave(group, 0)[:, None], mass=(1.0 - middle + read)[:, None])


@dataclass(frozen=True)
class SparQ(Method):
    """Sparse queries.

    rank: channels r read of every key; None: a quarter of the head dimension (the paper's r=32 at D=128).
    mean_value: give the unread mass to the mean value; None: as the authors do, only without grouped queries.
    reduce: "softmax" sums probabilities over the group (the paper's snippet), "logit" raw scores (its library).
    """

    rank: int | None = None
    mean_value: bool | None = None
    reduce: Literal["softmax", "logit"] = "softmax"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"method.rank={self.rank}: rank counts channels, give 1 or more (null: head_dim / 4)")

    def num_channels(self, layer: Layer) -> int:
        """Channels r that are read of every key."""
        return self.rank or layer.head_dim // 4

    def reallocates(self, layer: Layer) -> bool:
        """The authors compensate without grouped queries and not with them, where it costs quality (spec 2.2)."""
        return layer.group == 1 if self.mean_value is None else self.mean_value

    def approximate(self, queries: Tensor, keys: Tensor, layer: Layer) -> Tensor:
        """q[i]·k[i] / tau, tau = sqrt(D |q[i]|_1 / |q|_1) (section 3): float32 [H,n] of queries [H,D].

        keys channel-major [G,D,n]; i: the r channels whose |q|, summed over the group, is largest.
        """
        part, channels, factor = largest_channels(queries, self.num_channels(layer), layer)
        return channel_logits(part, channels, keys, factor, layer)

    def supports(self, model: ModelFacts) -> str | None:
        if self.rank is not None and self.rank > model.head_dim:
            return f"method.rank={self.rank} is more than its head_dim of {model.head_dim} channels"
        return None

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return SparQIndex(layer, store, budget, self)
