"""Where the keys and values of one layer of one arm live, with every read counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

GROW = 16  # slots by which a tail grows: small beside any prompt, and 512 new tokens re-allocate 32 times


@dataclass
class Traffic:
    """Bytes that one layer of one arm has moved so far.

    kv: rows of K and V read for attention. index: what was read to choose them (key scans, codes, representatives).
    misses, refills, codes, spills: what crossed the host link, and why: rows that were not cached, blocks that came
    into the cache, index codes, rows that left the local window. lookups, hits: tokens asked of the cache, and found.
    """

    kv: int = 0
    index: int = 0
    misses: int = 0
    refills: int = 0
    codes: int = 0
    spills: int = 0
    lookups: int = 0
    hits: int = 0

    @property
    def host(self) -> int:
        """All that crossed the host link."""
        return self.misses + self.refills + self.codes + self.spills

    def scan(self, *tensors: Tensor) -> None:
        """Count a full read of index tensors."""
        self.index += sum(t.numel() * t.element_size() for t in tensors)


class Part(NamedTuple):
    """A stretch of a store as it lies: k, v [G,r,D]; positions [G,r] with -1 on empty slots.

    whole: known to have no empty slot.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    whole: bool = False


class KVStore(ABC):
    """K and V of one layer of one arm: an immutable shared prefix and an own tail; copies before it changes.

    real: whether what is dropped is freed; False for masked simulations.
    """

    real: ClassVar[bool] = True

    def __init__(self) -> None:
        self.traffic = Traffic()

    @abstractmethod
    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        """Store m tokens [G,m,D], the first at position `start`."""

    def reserve(self, num_tokens: int) -> None:  # noqa: B027
        """Make room for tokens that are known to come: a prompt in blocks."""

    @abstractmethod
    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [G,r,D] at positions [G,r]; rows of -1 are arbitrary."""

    def gather_values(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `gather`, after a scan that read and counted all keys: of these rows only V counts."""
        k, v = self.gather(positions)
        self.traffic.kv -= k.numel() * k.element_size()
        return k, v

    @abstractmethod
    def held(self) -> list[Part]:
        """Everything held, as it lies, without a copy; counted as read."""

    @abstractmethod
    def positions(self) -> Tensor:
        """[G,c] positions held, -1 on empty slots."""

    @abstractmethod
    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """(tier, tensor) of all memory held; tier is "k", "v", "index" (on the device) or "host"."""

    def keys(self) -> Tensor:
        """All keys [G,n,D] in order of position: a whole scan, counted as index traffic."""
        raise TypeError(f"{type(self).__name__} cannot be scanned")

    def keep(self, positions: Tensor) -> None:
        """Free all but positions [G,c] (-1 pads)."""
        raise TypeError(f"{type(self).__name__} does not free tokens; the method must bring an EvictingStore")

    def drop(self, positions: Tensor) -> None:
        """Free positions [G,e] (-1 pads); their slots are used again."""
        raise TypeError(f"{type(self).__name__} does not free tokens; the method must bring an EvictingStore")

    def count_rows(self, k: Tensor, v: Tensor, num_rows: int | None = None) -> None:
        """Count a read of `num_rows` rows per KV head of both K and V."""
        rows = k.shape[1] if num_rows is None else num_rows
        self.traffic.kv += k.shape[0] * rows * (k.shape[2] * k.element_size() + v.shape[2] * v.element_size())


class ResidentStore(KVStore):
    """Everything stays on the device: the shared prefix as it is, new tokens in a growing tail of its own.

    k, v: the prefix [G,n,D], positions 0..n-1; n may be 0.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        super().__init__()
        self.prefix_k, self.prefix_v = k, v
        self.tail_k, self.tail_v = k[:, :0].clone(), v[:, :0].clone()
        self.num_tail = 0

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        assert start == len(self), f"token {start} stored after {len(self)} tokens"
        need = self.num_tail + k.shape[1]
        if need > self.tail_k.shape[1]:
            self.reserve(need - self.tail_k.shape[1] + GROW)
        self.tail_k[:, self.num_tail : need] = k
        self.tail_v[:, self.num_tail : need] = v
        self.num_tail = need

    def reserve(self, num_tokens: int) -> None:
        self.tail_k, self.tail_v = grown(self.tail_k, num_tokens), grown(self.tail_v, num_tokens)

    def __len__(self) -> int:
        return self.prefix_k.shape[1] + self.num_tail

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        num_prefix = self.prefix_k.shape[1]
        rows = positions.clamp(min=0)
        if num_prefix == 0:
            k, v = pick(self.tail_k, rows), pick(self.tail_v, rows)
        else:
            k, v = (pick(t, rows.clamp(max=num_prefix - 1)) for t in (self.prefix_k, self.prefix_v))
            if self.num_tail:
                late = (rows >= num_prefix)[..., None]
                tail_rows = (rows - num_prefix).clamp(min=0)
                k = torch.where(late, pick(self.tail_k, tail_rows), k)
                v = torch.where(late, pick(self.tail_v, tail_rows), v)
        self.count_rows(k, v)
        return k, v

    def held(self) -> list[Part]:
        num_prefix = self.prefix_k.shape[1]
        position = self.positions()
        parts = []
        if num_prefix:
            parts.append(Part(self.prefix_k, self.prefix_v, position[:, :num_prefix], True))
        if self.num_tail:
            tail = slice(0, self.num_tail)
            parts.append(Part(self.tail_k[:, tail], self.tail_v[:, tail], position[:, num_prefix:], True))
        for part in parts:
            self.count_rows(part.k, part.v)
        return parts

    def positions(self) -> Tensor:
        return torch.arange(len(self), device=self.prefix_k.device).expand(self.prefix_k.shape[0], -1)

    def keys(self) -> Tensor:
        parts = self.key_parts()
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def key_parts(self) -> list[Tensor]:
        """The same scan, without a copy: the keys of prefix and tail as they lie."""
        tail = self.tail_k[:, : self.num_tail]
        self.traffic.scan(self.prefix_k, tail)
        return [self.prefix_k, tail] if self.num_tail else [self.prefix_k]

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (("k", self.prefix_k), ("v", self.prefix_v), ("k", self.tail_k), ("v", self.tail_v))


class EvictingStore(KVStore):
    """Tokens that are dropped are gone: a small set of slots per KV head, re-used as tokens leave.

    k, v: the shared prefix [G,n,D]; nothing is copied until `keep` says what stays.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        super().__init__()
        self.k, self.v = k, v
        self.slots = torch.arange(k.shape[1], device=k.device).repeat(k.shape[0], 1)
        self.owned = False
        self.num_free = 0  # free slots that every head has for certain
        # Told, before tokens are freed: k, v [G,r,D] and bool [G,r], which of them go.
        self.leaving: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def keep(self, positions: Tensor) -> None:
        assert not self.owned, "keep is said once, at the end of the prefill"
        if self.leaving is not None:
            # -1 pads fall on a column of their own, which is cut off again.
            gone = torch.ones(positions.shape[0], self.k.shape[1] + 1, dtype=torch.bool, device=positions.device)
            self.leaving(self.k, self.v, gone.scatter_(1, positions + 1, False)[:, 1:])
        rows = positions.clamp(min=0)
        self.k, self.v = pick(self.k, rows), pick(self.v, rows)
        self.slots = positions.clone()
        self.owned = True

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        num_new = k.shape[1]
        self._make_room(num_new)
        # Free slots first, in order of slot: stable, so that nothing depends on the sort's whim.
        slot = (self.slots >= 0).to(torch.int8).argsort(dim=1, stable=True)[:, :num_new]
        new = torch.arange(start, start + num_new, device=k.device).expand(k.shape[0], -1)
        self.slots.scatter_(1, slot, new)
        self.k.scatter_(1, slot[..., None].expand_as(k), k)
        self.v.scatter_(1, slot[..., None].expand_as(v), v)
        self.num_free -= num_new

    def _make_room(self, num_new: int) -> None:
        if self.num_free < num_new:
            self.num_free = int((self.slots < 0).sum(1).min())
        if self.num_free < num_new or not self.owned:
            room = max(num_new, 8)
            self.k, self.v = grown(self.k, room), grown(self.v, room)
            empty = self.slots.new_full((self.slots.shape[0], room), -1)
            self.slots = torch.cat([self.slots, empty], 1)
            self.num_free += room
            self.owned = True

    def drop(self, positions: Tensor) -> None:
        found = (self.slots[:, :, None] == positions[:, None, :]) & (self.slots >= 0)[:, :, None]
        if self.leaving is not None:
            slot = found.to(torch.int8).argmax(1)
            self.leaving(pick(self.k, slot), pick(self.v, slot), found.any(1))
        gone = found.any(-1)
        self.slots = self.slots.masked_fill(gone, -1)
        self.owned = True

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        slot = (self.slots[:, None, :] == positions[:, :, None]).to(torch.int8).argmax(-1)
        k, v = pick(self.k, slot), pick(self.v, slot)
        self.count_rows(k, v)
        return k, v

    def held(self) -> list[Part]:
        self.count_rows(self.k, self.v)
        return [Part(self.k, self.v, self.slots)]

    def positions(self) -> Tensor:
        return self.slots

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (("k", self.k), ("v", self.v), ("index", self.slots))


class MaskedStore(ResidentStore):
    """A simulation of an EvictingStore: what is dropped is hidden from attention and stays in memory."""

    real: ClassVar[bool] = False

    def __init__(self, k: Tensor, v: Tensor) -> None:
        super().__init__(k, v)
        self.visible = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        super().append(k, v, start)
        self.visible = torch.nn.functional.pad(self.visible, (0, k.shape[1]), value=True)

    def keep(self, positions: Tensor) -> None:
        self.visible = torch.zeros_like(self.visible)
        self._mark(positions, True)

    def drop(self, positions: Tensor) -> None:
        self._mark(positions, False)

    def held(self) -> list[Part]:
        return [part._replace(whole=False) for part in super().held()]

    def positions(self) -> Tensor:
        return super().positions().masked_fill(~self.visible, -1)

    def _mark(self, positions: Tensor, value: bool) -> None:
        # -1 pads fall on a column of their own, which is cut off again.
        wide = torch.nn.functional.pad(self.visible, (1, 0))
        wide.scatter_(1, positions + 1, value)
        self.visible = wide[:, 1:]

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (*super().tensors(), ("index", self.visible))


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """rows [G,n,D] at index [G,r] -> [G,r,D], row by row: `gather` would go element by element."""
    return rows[torch.arange(rows.shape[0], device=rows.device)[:, None], index]


def grown(rows: Tensor, room: int) -> Tensor:
    """A copy of rows [G,n,D] with `room` more slots, zeroed."""
    return torch.cat([rows, rows.new_zeros(rows.shape[0], room, rows.shape[2])], 1)
