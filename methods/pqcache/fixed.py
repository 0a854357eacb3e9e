"""PQCache's step in fixed shapes: codes, look-ups, directory and misses stay with the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from methods.base import Budget, Layer
from methods.fixed import FixedRows, FixedStep, Read, always, roomy
from methods.fused import attend, put_rows
from methods.pqcache.beside import beside
from methods.pqcache.codebook import Codebook
from methods.pqcache.directory import Tiers, most_read, taken_over
from methods.pqcache.fused import encode_one, gather_rows, offer, pq_scores, refill, spill
from methods.pqcache.store import TieredStore
from methods.scores import top_k
from methods.store import Part, Traffic


class Codes:
    """Codes uint8 [G,s,C] of all tokens behind the sink, with room for those to come, and the choice by them."""

    def __init__(self, layer: Layer, budget: Budget, book: Codebook, later: Tensor, room: int) -> None:
        self.layer, self.budget = layer, budget
        self.centroids = book.centroids
        self.codes = roomy([book.codes, later], room, 2)

    def extend(self, k: Tensor, now: Tensor) -> None:
        """A token [G,D] at position `now` came."""
        encode_one(k, self.centroids, self.codes, now - self.budget.sink)

    def choose(self, queries: Tensor, now: Tensor) -> Tensor:
        """Middle positions [G,k] of queries [H,D]."""
        limit = now - self.budget.local - self.budget.sink
        scores = pq_scores(queries, self.centroids, self.codes, limit, self.layer)
        return top_k(scores, self.budget.middle) + self.budget.sink

    def scanned(self, num_tokens: int) -> int:
        """Bytes that a choice reads, with so many tokens stored."""
        num_candidates = max(0, num_tokens - 1 - self.budget.local - self.budget.sink)
        return self.codes.shape[0] * self.codes.shape[1] * num_candidates + self.centroids.nbytes

    def tensors(self) -> list[tuple[str, Tensor]]:
        """As an index's."""
        return [("index", self.centroids), ("index", self.codes)]


class FixedPQRows(FixedRows):
    """All K and V on the device."""

    def __init__(self, codes: Codes, parts: Iterable[Part], room: int, notes: Mapping[str, float]) -> None:
        super().__init__(codes.layer, codes.budget, parts, room)
        self.codes = codes
        self.said = notes

    def extend(self, k: Tensor, v: Tensor, now: Tensor) -> None:
        self.codes.extend(k, now)

    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, None]:
        return self.codes.choose(queries, now), None

    def scanned(self, num_tokens: int) -> int:
        return self.codes.scanned(num_tokens)

    def notes(self) -> Mapping[str, float]:
        return self.said

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (*super().tensors(), *self.codes.tensors())


class FixedPQTiers(FixedStep):
    """Middle K and V in host memory behind a cache of blocks, as `TieredStore`, of which this takes over all.

    k, v [G,S,D]: sink, a ring of the local window and the new token, and what was chosen, copied there at each step: a
    hit from the cache, a miss straight from pinned host memory. A token's place in the ring is its position modulo the
    ring's length, where it replaces the one that leaves the window: that one goes to the host, and to the cache if its
    block is there. The cache is refilled beside the computation of later layers.
    """

    def __init__(self, codes: Codes, store: TieredStore, room: int, notes: Mapping[str, float]) -> None:
        super().__init__(codes.layer, codes.budget)
        self.codes, self.said = codes, notes
        store.beside.wait()  # a refill of the last step may still be on its way
        store.beside.finish()
        self.ring = self.budget.local + 1
        self.num_near = self.budget.sink + self.ring
        self.k = self._arranged(store, store.near_k, store.host[0])
        self.v = self._arranged(store, store.near_v, store.host[1])
        (host_k, host_v), (cache_k, cache_v) = store.far(room), store.cached
        self.tiers = Tiers((host_k, host_v), (cache_k, cache_v), store.cache_block)
        self.refresh, self.policy = store.refresh, store.cache.policy
        num_blocks = -(-self.tiers.host[0].shape[0] // self.tiers.block)
        self.directory = taken_over(store.cache, num_blocks, self.layer.device)
        self.beside = beside(*self.tiers.cache)
        self.hits = torch.zeros((), dtype=torch.long, device=self.layer.device)
        self.refilled = torch.zeros_like(self.hits)
        self.kept: tuple[Tensor, ...] = ()
        self.sink, self.late = always(self.layer, self.budget)

    def _arranged(self, store: TieredStore, near: Tensor, host: Tensor) -> Tensor:
        sink, first = self.budget.sink, store.window_start
        out = near.new_zeros(near.shape[0], self.num_near + self.budget.middle, near.shape[2])
        out[:, :sink] = near[:, :sink]
        place = torch.arange(first, store.length, device=near.device) % self.ring + sink
        out[:, place] = near[:, sink : sink + store.length - first]
        if first > sink:  # the first step replaces it, too: it is written to the host a second time
            out[:, (first - 1) % self.ring + sink] = host[first - 1 - sink].to(near.device)
        return out

    def attend(self, queries: Tensor, k: Tensor, v: Tensor, now: Tensor) -> Read:
        sink, num_rows = self.budget.sink, now - self.budget.local - self.budget.sink
        place = now % self.ring + sink
        left = self.k.index_select(1, place[None])[:, 0], self.v.index_select(1, place[None])[:, 0]
        spill(num_rows - 1, left, self.directory.table, self.tiers)
        put_rows(self.k, self.v, k, v, place)
        self.codes.extend(k, now)
        chosen = self.codes.choose(queries, now)
        rows, out = chosen - sink, (self.k[:, self.num_near :], self.v[:, self.num_near :])
        self.hits += gather_rows(rows, self.directory.table, self.tiers, out)
        self._refill(rows, num_rows)
        y, _ = attend(queries, self.k, self.v, None, None, self.layer)
        return Read(y, torch.cat([self.sink, chosen, now + self.late], 1), chosen)

    def _refill(self, rows: Tensor, num_rows: Tensor) -> None:
        if self.directory.owner.shape[0] == 0 or self.refresh == 0:
            return
        # The second stream reads them: they must not be given to anybody else until it is done.
        self.kept = (rows, num_rows)
        self.beside.start(partial(self._take_in, rows, num_rows))

    def _take_in(self, rows: Tensor, num_rows: Tensor) -> None:
        blocks = most_read(rows, self.directory.table.shape[0], self.tiers.block, self.refresh)
        slots = offer(self.directory, blocks, self.policy)
        refill(blocks, slots, num_rows, self.tiers)
        came = (num_rows - blocks * self.tiers.block).clamp(0, self.tiers.block)
        self.refilled += came.masked_fill(slots < 0, 0).sum()

    def join(self) -> None:
        # Only for what this very step has started: a graph cannot wait for what was started outside of it.
        if self.kept:
            self.beside.wait()

    def traffic(self, start: int, num_steps: int) -> Traffic:
        layer, hits, refilled = self.layer, int(self.hits), int(self.refilled)
        lookups = num_steps * layer.num_kv_heads * self.budget.middle
        row = self.row_bytes(1)
        return Traffic(
            kv=num_steps * self.row_bytes(self.budget.total + 1),
            index=sum(self.codes.scanned(start + step + 1) for step in range(num_steps)),
            misses=(lookups - hits) * row // layer.num_kv_heads,
            refills=refilled * row,
            spills=max(0, num_steps - 1) * row,
            lookups=lookups,
            hits=hits,
        )

    def notes(self) -> Mapping[str, float]:
        return self.said

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        on_device = (("k", self.k), ("v", self.v), ("k", self.tiers.cache[0]), ("v", self.tiers.cache[1]))
        counts = (*self.directory.tensors(), self.hits, self.refilled)
        host = (("host", t) for t in self.tiers.host)
        return (*on_device, *host, *(("index", t) for t in counts), *self.codes.tensors())
