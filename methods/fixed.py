"""A decode step of fixed shapes: nothing waits for the device and no size changes, so a CUDA graph can capture it.

A method's `Index.fixed` hands its state over to one of these when the prompt is stored; from then on lengths are
tensors on the device and buffers have room for all tokens to come. The eager step stays the one that says what a method
is; both give the same tokens (tests/test_fixed.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Budget, Layer, Rest
from methods.fused import attend, put_rows
from methods.scores import merged
from methods.store import Part, Traffic, pick


@dataclass(frozen=True)
class Read:
    """What a step read: output y [H,D]; positions [G,r], -1 pads, None: every token up to the new one.

    selected: the part of them that was chosen from the middle [G,k], where something was.
    """

    y: Tensor
    positions: Tensor | None = None
    selected: Tensor | None = None


class FixedStep(ABC):
    """One layer of one arm, step by step."""

    def __init__(self, layer: Layer, budget: Budget) -> None:
        self.layer = layer
        self.budget = budget

    @abstractmethod
    def attend(self, queries: Tensor, k: Tensor, v: Tensor, now: Tensor) -> Read:
        """The token at position `now` (int64, 0-d, on the device): queries [H,D], k and v [G,D]."""

    @abstractmethod
    def traffic(self, start: int, num_steps: int) -> Traffic:
        """Bytes that `num_steps` steps have moved, the first of them at position `start`."""

    @abstractmethod
    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """(tier, tensor) of all memory held, as a store's and an index's."""

    def join(self) -> None:  # noqa: B027
        """A step of all layers is over: what runs beside the computation must end before the next one begins."""

    def notes(self) -> Mapping[str, float]:
        """As `Index.notes`."""
        return {}

    def row_bytes(self, num_rows: int) -> int:
        """K+V of so many tokens of each KV head."""
        layer = self.layer
        return 2 * num_rows * layer.num_kv_heads * layer.head_dim * layer.dtype.itemsize


class FixedRows(FixedStep):
    """All tokens stay on the device, K and V [G,C,D] by position, and some of them are read."""

    def __init__(self, layer: Layer, budget: Budget, parts: Iterable[Part], room: int) -> None:
        super().__init__(layer, budget)
        held = list(parts)
        self.k, self.v = roomy([p.k for p in held], room, 1), roomy([p.v for p in held], room, 1)
        self.sink, self.late = always(layer, budget)

    def attend(self, queries: Tensor, k: Tensor, v: Tensor, now: Tensor) -> Read:
        self.store(k, v, now)
        self.extend(k, v, now)
        chosen, rest = self.choose(queries, now)
        positions = torch.cat([self.sink, chosen, now + self.late], 1)
        y, lse = attend(queries, self.k, self.v, positions, None, self.layer)
        return Read(y if rest is None else merged(y[:, None], lse[:, None], rest)[:, 0], positions, chosen)

    def store(self, k: Tensor, v: Tensor, now: Tensor) -> None:
        """Write the rows [G,D] of the token at position `now`."""
        put_rows(self.k, self.v, k, v, now)

    def extend(self, k: Tensor, v: Tensor, now: Tensor) -> None:
        """A token [G,D] was stored: the index learns of it."""

    @abstractmethod
    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, Rest | None]:
        """Middle positions [G,k] that queries [H,D] read, always as many, and what stands in for the rest."""

    @property
    def num_read(self) -> int:
        """Rows of a step, the new one included."""
        return self.budget.total + 1

    def scanned(self, num_tokens: int) -> int:
        """Bytes of the index that a step reads with so many tokens stored."""
        return 0

    def traffic(self, start: int, num_steps: int) -> Traffic:
        index = sum(self.scanned(start + step + 1) for step in range(num_steps))
        return Traffic(kv=num_steps * self.row_bytes(self.num_read), index=index)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (("k", self.k), ("v", self.v))


class SlidingSlots(FixedStep):
    """What the prompt's choice left, for good, and the local window (StreamingLLM, one-shot eviction).

    k, v [G,r,D] at positions [G,r] (-1 pads) are what is held when the prompt is stored; those from `oldest` on are
    the local window. It becomes a ring behind the others: a token's place is its position modulo the ring's length,
    where it replaces the one that leaves the window.
    """

    def __init__(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor, positions: Tensor, oldest: int) -> None:
        super().__init__(layer, budget)
        ring = budget.local + 1
        early, late = (positions >= 0) & (positions < oldest), positions >= oldest
        self.num_kept = int(early.sum(1).max())
        order = first(early, self.num_kept)
        self.k, self.v = (roomy([pick(t, order)], ring, 1) for t in (k, v))
        self.positions = roomy([positions.masked_fill(~early, -1).gather(1, order)], ring, 1)
        window = first(late, int(late[0].sum()))  # as many in all heads
        at = positions.gather(1, window)
        place = self.num_kept + at % ring
        self.positions.scatter_(1, place, at)
        for own, rows in ((self.k, k), (self.v, v)):
            own.scatter_(1, place[..., None].expand(-1, -1, rows.shape[2]), pick(rows, window))
        # Rows never change: without pads the first `S` are read as they lie.
        everything = torch.arange(self.num_kept + ring, device=layer.device).expand_as(self.positions)
        padded = bool((self.positions[:, : self.num_kept] < 0).any())
        self.rows = torch.where(self.positions >= 0, everything, -1) if padded else None
        self.num_read = everything.numel()  # rows of all heads
        if self.rows is not None:
            self.rows[:, self.num_kept :] = everything[:, self.num_kept :]
            self.num_read = int((self.rows >= 0).sum())

    def attend(self, queries: Tensor, k: Tensor, v: Tensor, now: Tensor) -> Read:
        place = now % (self.budget.local + 1) + self.num_kept
        put_rows(self.k, self.v, k, v, place, self.positions, now)
        return Read(attend(queries, self.k, self.v, self.rows, None, self.layer)[0], self.positions)

    def traffic(self, start: int, num_steps: int) -> Traffic:
        return Traffic(kv=num_steps * self.row_bytes(1) * self.num_read // self.layer.num_kv_heads)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        rows = () if self.rows is None else (("index", self.rows),)
        return (("k", self.k), ("v", self.v), ("index", self.positions), *rows)


def always(layer: Layer, budget: Budget) -> tuple[Tensor, Tensor]:
    """What every step reads: sink positions [G,s], and local window and new token as distances from it [G,l+1]."""
    sink = torch.arange(budget.sink, device=layer.device)
    late = torch.arange(-budget.local, 1, device=layer.device)
    return sink.expand(layer.num_kv_heads, -1), late.expand(layer.num_kv_heads, -1)


def first(wanted: Tensor, number: int) -> Tensor:
    """Columns [G,number] of the first that are `wanted` [G,r], in order; others follow where there are fewer."""
    return (~wanted).to(torch.int8).argsort(dim=1, stable=True)[:, :number]


def roomy(parts: list[Tensor], room: int, dim: int) -> Tensor:
    """A copy of tensors, one after the other along `dim`, with `room` more rows there, zeroed."""
    shape = list(parts[0].shape)
    shape[dim] = room
    return torch.cat([*parts, parts[0].new_zeros(shape)], dim)


def put(buffer: Tensor, row: Tensor, at: Tensor, dim: int) -> None:
    """Write one row, without the axis `dim`, at place `at` (0-d, on the device) of a buffer."""
    buffer.index_copy_(dim, at[None], row.unsqueeze(dim))
