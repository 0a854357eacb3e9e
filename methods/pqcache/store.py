"""PQCache's two tiers: middle K and V on the host, sink and window on the device beside a cache of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from methods.base import Budget, Layer
from methods.pqcache.beside import beside
from methods.pqcache.blocks import BlockCache, Policy
from methods.pqcache.coding import Coding, Exact
from methods.store import GROW, KVStore, Part, grown, pick


class TieredStore(KVStore):
    """Middle tokens live in (pinned) host memory; the device holds what is read at every step, and popular blocks.

    k, v: the prompt [G,n,D]; it is copied to both tiers and not kept. Host and cache hold the planes of a `coding`.
    Tokens leave the device by its whole units: until one is full, they stay beside the window. `cache` has blocks of
    cache_block consecutive tokens, all KV heads together, on the device. A look-up is per token and KV head: a hit is
    read on the device, a miss is gathered on the host and copied over. After each step the `refresh` blocks with most
    look-ups are offered to the cache. What leaves the device is written to the host and, if its block is cached, there,
    too: a growing block is never stale.

    Refills run beside the computation, after all reads of the step that caused them; the next read or write of the
    cache waits for them. All else runs on the current stream. The host waits for that one in every step, when it reads
    which rows are missing, so that its gather never meets a row that is still on its way to the host.
    """

    def __init__(
        self,
        layer: Layer,
        budget: Budget,
        k: Tensor,
        v: Tensor,
        cache: BlockCache,
        cache_block: int,
        refresh: int,
        coding: Coding,
    ) -> None:
        super().__init__()
        n = k.shape[1]
        self.coding = coding
        self.sink, self.local = budget.sink, budget.local
        self.length = n
        self.window_start = self.sink + self._whole_units(n - budget.local - self.sink)  # what follows is on the device
        near = [*range(self.sink), *range(self.window_start, n)]
        self.near_k, self.near_v = k[:, near], v[:, near]
        self.cache, self.cache_block, self.refresh = cache, cache_block, refresh
        planes = coding.encode(*(t[:, self.sink : self.window_start] for t in (k, v)))
        self.host = [self._to_host(plane) for plane in planes]
        rows = cache.capacity * cache_block
        self.cached = [
            plane.new_zeros(rows // stride, layer.num_kv_heads, plane.shape[2])
            for plane, stride in zip(planes, coding.strides, strict=True)
        ]
        self.beside = beside(*self.cached)
        self.table = torch.full((self._num_blocks(),), -1, device=layer.device)

    def _whole_units(self, num_tokens: int) -> int:
        return max(0, num_tokens) // self.coding.unit * self.coding.unit

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        assert start == self.length, f"token {start} stored after {self.length} tokens"
        self._spill(max(self.window_start, start - self.local))
        end = self._num_near + k.shape[1]
        if end > self.near_k.shape[1]:
            room = end - self.near_k.shape[1] + GROW
            self.near_k, self.near_v = grown(self.near_k, room), grown(self.near_v, room)
        self.near_k[:, self._num_near : end] = k
        self.near_v[:, self._num_near : end] = v
        self.length += k.shape[1]

    @property
    def _num_near(self) -> int:
        return self.sink + self.length - self.window_start

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        middle = (positions >= self.sink) & (positions < self.window_start)
        near = torch.where(positions >= self.window_start, positions - self.window_start + self.sink, positions)
        near = near.masked_fill(middle, 0).clamp(min=0)
        k, v = pick(self.near_k, near), pick(self.near_v, near)
        # [q,2] of (KV head, column). The host waits for the device here: rows that left the window have arrived.
        wanted = middle.nonzero()
        self.traffic.kv += 2 * (positions.numel() - wanted.shape[0]) * k.shape[2] * k.element_size()
        if wanted.shape[0]:
            self._read_middle(positions, wanted, k, v)
        return k, v

    def _read_middle(self, positions: Tensor, wanted: Tensor, k: Tensor, v: Tensor) -> None:
        """Fill the wanted places of k, v [G,r,D] from the cache and, where it has them not, from the host."""
        head, column = wanted.unbind(1)
        token = positions[head, column] - self.sink
        slot = self.table[token // self.cache_block]
        hit = slot >= 0
        place = slot.clamp(min=0) * self.cache_block + token % self.cache_block
        missing = (~hit).nonzero()[:, 0]
        asked = torch.stack((token, head))[:, missing].cpu()
        if self.cache.capacity:
            self.beside.wait()
        rows = []
        for plane, cached, stride in zip(self.host, self.cached, self.coding.strides, strict=True):
            found = cached.new_empty(token.shape[0], cached.shape[2])
            if self.cache.capacity:
                found = cached[place // stride, head]
            found[missing] = self._fetch(plane, stride, *asked)
            num_read = found.shape[0] if stride == 1 else len((token // stride * k.shape[0] + head).unique())
            self.traffic.kv += num_read * found.shape[1] * found.element_size()
            rows.append(found)
        k[head, column], v[head, column] = self.coding.decode(rows, token)
        self.traffic.lookups += wanted.shape[0]
        self.traffic.hits += wanted.shape[0] - missing.shape[0]
        self._refill(token)

    def _fetch(self, plane: Tensor, stride: int, token: Tensor, head: Tensor) -> Tensor:
        """From a plane on the host, the row of each token [q] of a KV head: [q,w]; what tokens share comes once."""
        flat, back = token // stride * plane.shape[1] + head, None
        if stride > 1:
            flat, back = flat.unique(return_inverse=True)
        # New pinned memory each time: torch gives it out again only when the copy from it has ended.
        rows = self._empty_on_host(plane[:, 0], flat.shape[0])
        torch.index_select(plane.flatten(0, 1), 0, flat, out=rows)
        self.traffic.misses += rows.nbytes
        came = rows.to(self.near_k.device, non_blocking=True)
        return came if back is None else came[back.to(came.device)]

    def _refill(self, token: Tensor) -> None:
        """Offer the blocks of these look-ups to the cache and copy what it lets in."""
        counts = torch.bincount(token // self.cache_block, minlength=self._num_blocks()).cpu()
        most = counts.argsort(descending=True, stable=True)[: self.refresh]
        came = self.cache.offer(int(block) for block in most if counts[block])
        if came:
            self.beside.start(partial(copy_all, [pair for item in came.items() for pair in self._block_copies(*item)]))
            table = torch.full((self._num_blocks(),), -1)
            for block, slot in self.cache.slots().items():
                table[block] = slot
            self.table = table.to(self.table.device, non_blocking=True)

    def _block_copies(self, block: int, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(to, from) of what the host has of a block, counted."""
        for cached, plane, stride in zip(self.cached, self.host, self.coding.strides, strict=True):
            size = self.cache_block // stride
            source = plane[block * size : min((block + 1) * size, self._num_host // stride)]
            self.traffic.refills += source.nbytes
            yield cached[slot * size : slot * size + source.shape[0]], source

    @property
    def _num_host(self) -> int:
        return self.window_start - self.sink

    def _num_blocks(self) -> int:
        return -(-max(1, self._num_host) // self.cache_block)

    def _spill(self, start: int) -> None:
        """Whole units of tokens before `start` leave the device: to the host, and through to cached blocks."""
        count = self._whole_units(start - self.window_start)
        if not count:
            return
        out = slice(self.sink, self.sink + count)
        first, last = self._num_host, self._num_host + count
        self._make_room(last)
        slots = self.cache.slots()
        self.beside.wait()
        coded = self.coding.encode(self.near_k[:, out], self.near_v[:, out])
        for rows, plane, cached, stride in zip(coded, self.host, self.cached, self.coding.strides, strict=True):
            plane[first // stride : last // stride].copy_(rows.transpose(0, 1), non_blocking=True)
            self.traffic.spills += rows.numel() * rows.element_size()
            for number, token in enumerate(range(first, last, stride)):
                slot = slots.get(token // self.cache_block)
                if slot is not None:
                    cached[(slot * self.cache_block + token % self.cache_block) // stride] = rows[:, number]
        self.near_k, self.near_v = (
            torch.cat([t[:, : self.sink], t[:, out.stop :]], 1) for t in (self.near_k, self.near_v)
        )
        self.window_start += count
        if self._num_blocks() > self.table.shape[0]:
            self.table = torch.nn.functional.pad(self.table, (0, self._num_blocks() - self.table.shape[0]), value=-1)

    def _make_room(self, num_tokens: int) -> None:
        """Let the host have room for so many tokens."""
        if num_tokens <= self.host[0].shape[0] * self.coding.strides[0]:
            return
        self.beside.finish()  # rows of earlier tokens may still be on their way
        self.host = [
            self._pinned(plane, num_tokens // stride - plane.shape[0] + self.cache_block // stride)
            for plane, stride in zip(self.host, self.coding.strides, strict=True)
        ]

    def _to_host(self, plane: Tensor) -> Tensor:
        """A plane [G,r,w] as host memory [r,G,w], so that a block of all heads is one stretch."""
        return self._pinned(plane.transpose(0, 1).to("cpu"), 0)

    def _pinned(self, rows: Tensor, room: int) -> Tensor:
        out = self._empty_on_host(rows, rows.shape[0] + room)
        out[: rows.shape[0]] = rows
        return out

    def _empty_on_host(self, like: Tensor, num_rows: int) -> Tensor:
        """Room for so many rows of a plane."""
        return torch.empty(num_rows, *like.shape[1:], dtype=like.dtype, pin_memory=self.near_k.is_cuda)

    def far(self, room: int) -> list[Tensor]:
        """The host's planes, with room for so many more units of tokens to leave the window."""
        used = [self._num_host // stride for stride in self.coding.strides]
        return [self._pinned(plane[:num], room) for plane, num in zip(self.host, used, strict=True)]

    def held(self) -> list[Part]:
        positions = self.positions()
        return [Part(*self.gather(positions), positions)]

    def positions(self) -> Tensor:
        return torch.arange(self.length, device=self.near_k.device).expand(self.near_k.shape[0], -1)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        half = len(self.cached) // 2
        k = (("k", t) for t in (self.near_k, *self.cached[:half]))
        v = (("v", t) for t in (self.near_v, *self.cached[half:]))
        return (*k, *v, ("index", self.table), *(("host", plane) for plane in self.host))


def copy_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each (to, from)."""
    for to, source in pairs:
        to.copy_(source, non_blocking=True)


def tiered(
    layer: Layer,
    budget: Budget,
    k: Tensor,
    v: Tensor,
    cache_blocks: int,
    cache_block: int,
    policy: Policy,
    refresh: int,
    coding: Coding | None = None,
) -> TieredStore:
    """A fresh store with an empty cache, no larger than the prompt's middle needs; coding None: K and V as they are."""
    num_middle = k.shape[1] - budget.sink - budget.local
    capacity = min(cache_blocks, -(-num_middle // cache_block))
    cache = BlockCache(capacity, policy)
    return TieredStore(layer, budget, k, v, cache, cache_block, refresh, coding or Exact())
