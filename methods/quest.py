"""Quest (arXiv 2406.10774): pages of keys, found by an upper bound on their attention logits."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Selection, Step
from methods.fixed import FixedRows, FixedStep
from methods.scores import top_k
from methods.store import KVStore

GROW = 16  # pages by which the index grows


class QuestIndex(Index):
    """Channel-wise minimum and maximum of the keys of each page, [G,p,D]; the first page begins behind the sink.

    A page that is not full has the bounds of the tokens it has, and competes like the others.
    """

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: Quest) -> None:
        super().__init__(layer, store, budget)
        self.method = method
        self.page = page_size(method.page_tokens, budget.middle)
        shape = layer.num_kv_heads, 0, layer.head_dim
        self.low = torch.zeros(shape, dtype=layer.dtype, device=layer.device)
        self.high = torch.zeros(shape, dtype=layer.dtype, device=layer.device)

    def build(self, seen: Mapping[Hashable, object]) -> None:
        start = 0
        for part in self.store.held():
            self.extend(part.k, part.v, start)
            start += part.k.shape[1]

    def extend(self, k: Tensor, v: Tensor, start: int) -> None:
        end, sink = start + k.shape[1], self.budget.sink
        if end <= sink:
            return
        self._make_room(self.num_pages(end))
        page = (torch.arange(max(start, sink), end, device=k.device) - sink) // self.page
        keys = k[:, max(0, sink - start) :]
        index = page[:, None].expand_as(keys)
        self.low.scatter_reduce_(1, index, keys, "amin")
        self.high.scatter_reduce_(1, index, keys, "amax")

    def _make_room(self, num_pages: int) -> None:
        if num_pages > self.low.shape[1]:
            room = (0, 0, 0, num_pages - self.low.shape[1] + GROW)
            self.low = torch.nn.functional.pad(self.low, room, value=torch.inf)
            self.high = torch.nn.functional.pad(self.high, room, value=-torch.inf)

    def num_pages(self, end: int) -> int:
        """Pages that hold the tokens from the sink to `end`, the last of them perhaps in part."""
        return -(-max(0, end - self.budget.sink) // self.page)

    def select(self, step: Step) -> Selection:
        scores = self.bounds(step.queries[:, 0], self.num_pages(step.end))
        if self.method.scope == "kv_head":
            scores = self.method.reduced(scores, self.layer)
        pages = top_k(scores, min(step.k // self.page, scores.shape[1]))
        inside = torch.arange(self.page, device=pages.device)
        positions = (pages[..., None] * self.page + inside).flatten(1) + step.sink
        return Selection(positions.masked_fill(positions >= step.end, -1))

    def bounds(self, queries: Tensor, num_pages: int) -> Tensor:
        """Of the first pages, float32 [H,p]; they are read."""
        low, high = self.low[:, :num_pages], self.high[:, :num_pages]
        self.store.traffic.scan(low, high)
        return bounds(queries, low, high, self.layer)

    def tensors(self) -> list[tuple[str, Tensor]]:
        return [("index", self.low), ("index", self.high)]

    def notes(self) -> Mapping[str, float]:
        return {"page_tokens": self.page}

    def fixed(self, room: int) -> FixedStep | None:
        return FixedQuest(self, room) if self.method.scope == "kv_head" else None


class FixedQuest(FixedRows):
    """The same with pages for all tokens to come."""

    def __init__(self, index: QuestIndex, room: int) -> None:
        super().__init__(index.layer, index.budget, index.store.held(), room)
        self.method, self.page = index.method, index.page
        index._make_room(index.num_pages(self.k.shape[1]))
        self.low, self.high = index.low, index.high
        self.first = torch.arange(self.low.shape[1], device=self.layer.device) * self.page + self.budget.sink
        self.tokens = self.first[:, None] + torch.arange(self.page, device=self.layer.device)  # of each page

    def extend(self, k: Tensor, v: Tensor, now: Tensor) -> None:
        if k.is_cuda:
            from methods.kernels.pages import put_page as kernel

            return kernel(self.low, self.high, k, now, self.budget.sink, self.page)
        page = ((now - self.budget.sink) // self.page).expand_as(k)[:, None]
        self.low.scatter_reduce_(1, page, k[:, None], "amin")
        self.high.scatter_reduce_(1, page, k[:, None], "amax")
        return None

    def bounds(self, queries: Tensor, now: Tensor) -> Tensor:
        """`bounds` [H,p]; -inf for pages that are not in the middle."""
        (sink, local), layer = (self.budget.sink, self.budget.local), self.layer
        if queries.is_cuda:
            from methods.kernels.pages import page_bounds as kernel

            return kernel(queries, self.low, self.high, now, sink, local, self.page, layer.scale, layer.softcap)
        return bounds(queries, self.low, self.high, layer).masked_fill(self.first >= now - local, -torch.inf)

    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, None]:
        end = now - self.budget.local
        scores = self.bounds(queries, now)
        pages = top_k(self.method.reduced(scores, self.layer), self.budget.middle // self.page)
        positions = self.tokens[pages].flatten(1)
        return positions.masked_fill(positions >= end, -1), None

    def scanned(self, num_tokens: int) -> int:
        num_pages = -(-max(0, num_tokens - 1 - self.budget.local - self.budget.sink) // self.page)
        return self.row_bytes(num_pages)

    def notes(self) -> Mapping[str, float]:
        return {"page_tokens": self.page}

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (*super().tensors(), ("index", self.low), ("index", self.high), ("index", self.tokens))


def bounds(queries: Tensor, low: Tensor, high: Tensor, layer: Layer) -> Tensor:
    """What no logit of a page exceeds: sum over channels of max(q·low, q·high), scaled, float32 [H,p]; q [H,D].

    NaN for a page without tokens, whose extremes are infinite.
    """
    grouped = queries.float().unflatten(0, (layer.num_kv_heads, -1))
    out = grouped.clamp(min=0) @ high.float().mT + grouped.clamp(max=0) @ low.float().mT
    out = out.flatten(0, 1) * layer.scale
    return out if layer.softcap is None else layer.softcap * torch.tanh(out / layer.softcap)


def page_size(wish: int, middle: int) -> int:
    """Tokens a page: the wish, or less where the budget does not hold three pages, the authors' least number."""
    return max(1, min(wish, middle // 3))


@dataclass(frozen=True)
class Quest(Method):
    """Query-aware sparsity: whole pages are read, as many as the budget holds; nothing is dropped.

    page_tokens: tokens a page, fewer where the budget does not hold three of them (noted in the record).
    scope: pages for each KV head ("kv_head") or query head ("q_head", the authors': the budget holds per query head).
    reduce: "sum" or "max" over the query heads of a group of what a KV head's pages promise them.
    """

    page_tokens: int = 16
    scope: Literal["kv_head", "q_head"] = "kv_head"
    reduce: Literal["sum", "max"] = "sum"

    def __post_init__(self) -> None:
        if self.page_tokens < 1:
            raise ValueError(f"method.page_tokens={self.page_tokens}: give 1 or more")

    @property
    def spread(self) -> str:
        return "q_head" if self.scope == "q_head" else "head"

    def reduced(self, scores: Tensor, layer: Layer) -> Tensor:
        """What pages promise a group [G,p], from the bounds [H,p] of its query heads."""
        # Per query head a softmax over the pages; in logarithms, so that far pages do not tie at 0.
        shares = scores.log_softmax(-1).unflatten(0, (layer.num_kv_heads, -1))
        out: Tensor = shares.logsumexp(1) if self.reduce == "sum" else shares.amax(1)
        return out

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return QuestIndex(layer, store, budget, self)
