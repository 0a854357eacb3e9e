"""Keys with fewer channels (ThinK, arXiv 2407.21018): which ones stay, and a store that keeps no others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Observer, Selection, Step
from methods.scores import group_sum, top_k
from methods.store import KVStore, Part, ResidentStore, pick


class QueryEnergy(Observer):
    """Mean square of each channel of the last `window` prompt queries, and over a group's heads: float32 [G,D].

    A shorter prompt counts all its queries.
    """

    def __init__(self, layer: Layer, window: int) -> None:
        self.layer = layer
        self.window = window
        self.queries = torch.zeros(layer.num_heads, 0, layer.head_dim, dtype=layer.dtype, device=layer.device)

    @property
    def key(self) -> Hashable:
        return ("query_energy", self.window)

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        # A chunk's last rows are copied by the joining: a view would hold the whole chunk in memory.
        self.queries = torch.cat([self.queries, queries[:, -self.window :]], 1)[:, -self.window :]

    def finish(self, keys: Tensor, values: Tensor) -> Tensor:
        return group_sum(mean_square(self.queries), self.layer.num_kv_heads) / self.layer.group


def mean_square(rows: Tensor) -> Tensor:
    """Over the tokens of rows [..,n,D]: float32 [..,D]."""
    return rows.float().square().mean(-2)


@dataclass(frozen=True, eq=False)
class Channels:
    """Which channels of a KV head's keys stay. kept: int16 [G,c], ascending; dim: channels of a whole key."""

    kept: Tensor
    dim: int

    def of(self, keys: Tensor) -> Tensor:
        """Keys [G,r,D] as [G,r,c]."""
        return keys.gather(2, self.kept.long()[:, None].expand(-1, keys.shape[1], -1))

    def widened(self, keys: Tensor) -> Tensor:
        """Keys [G,r,c] as [G,r,D], with zeros for the channels that are gone."""
        out = keys.new_zeros(*keys.shape[:2], self.dim)
        return out.scatter_(2, self.kept.long()[:, None].expand_as(keys), keys)


@dataclass(frozen=True)
class Narrowing:
    """Keys of the prompt keep the channels with the largest mean q^2 times mean k^2.

    ratio: share of the channels that go, rounded down; 0: none. recent: latest prompt tokens whose keys stay whole, as
    those of all new tokens do. window: last prompt queries that say which channels are used, the mean over a group's
    heads. score_on: keys that are scored, "all" as released or only those that are "pruned".
    """

    ratio: float = 0.4
    recent: int = 32
    window: int = 32
    score_on: Literal["all", "pruned"] = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"method.ratio={self.ratio}: give the share of the channels that go, 0 or more, below 1")
        if self.recent < 0:
            raise ValueError(f"method.recent={self.recent}: give 0 or more tokens")
        if self.window < 1:
            raise ValueError(f"method.window={self.window}: give 1 token or more")

    def energy(self, layer: Layer) -> QueryEnergy:
        """What sees the queries."""
        return QueryEnergy(layer, self.window)

    def channels(self, layer: Layer, seen: Mapping[Hashable, object], keys: Tensor, num_old: int) -> Channels | None:
        """What stays of keys [G,n,D], the first `num_old` of which are pruned now; None: all channels."""
        num_gone = int(self.ratio * layer.head_dim)
        if not num_gone:
            return None
        energy = seen[self.energy(layer).key]
        assert isinstance(energy, Tensor)
        scored = keys[:, :num_old] if self.score_on == "pruned" and num_old else keys
        kept = top_k(energy * mean_square(scored), layer.head_dim - num_gone)
        return Channels(kept.to(torch.int16), layer.head_dim)


class NarrowStore(KVStore):
    """Everything stays on the device, but the keys of old tokens may have fewer channels than the others.

    k, v: the shared prompt [G,n,D]; tokens of full width, new ones among them, are in `wide`, which counts from the
    first of them. Reading puts zeros for the channels that are gone, in temporary memory.
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        super().__init__()
        self.wide = ResidentStore(k, v)
        self.old_k, self.old_v = k[:, :0].clone(), v[:, :0].clone()
        self.channels: Channels | None = None  # of old_k [G,o,c]

    @property
    def num_old(self) -> int:
        """Tokens whose keys are narrow; they come first."""
        return self.old_k.shape[1]

    def narrow(self, channels: Channels, num_old: int) -> None:
        """Keep only these channels of the keys of the first `num_old` prompt tokens. Said once."""
        k, v = self.wide.prefix_k, self.wide.prefix_v
        self.channels = channels
        self.old_k, self.old_v = channels.of(k[:, :num_old]), v[:, :num_old]
        self.wide = ResidentStore(k[:, num_old:].clone(), v[:, num_old:])

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        self.wide.append(k, v, start - self.num_old)

    def held(self) -> list[Part]:
        parts = [Part(p.k, p.v, p.positions + self.num_old) for p in self.wide.held()]
        for part in parts:
            self.count_rows(part.k, part.v)
        if self.channels is not None:
            self.count_rows(self.old_k, self.old_v)
            self.traffic.scan(self.channels.kept)
            parts.insert(0, Part(self.channels.widened(self.old_k), self.old_v, self.positions()[:, : self.num_old]))
        return parts

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVStore.gather`; every row counts as a whole one: which are narrow only the device knows."""
        rows = positions.clamp(min=0)
        k, v = self.wide.gather((rows - self.num_old).clamp(min=0))
        if self.channels is not None:
            old, row = (rows < self.num_old)[..., None], rows.clamp(max=self.num_old - 1)
            k = torch.where(old, self.channels.widened(pick(self.old_k, row)), k)
            v = torch.where(old, pick(self.old_v, row), v)
        self.count_rows(k, v)
        return k, v

    def positions(self) -> Tensor:
        return torch.arange(self.num_old + len(self.wide), device=self.old_k.device).expand(self.old_k.shape[0], -1)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        index = () if self.channels is None else (("index", self.channels.kept),)
        return (("k", self.old_k), ("v", self.old_v), *index, *self.wide.tensors())


class NarrowIndex(Index):
    """Has the store narrow its keys at the end of the prefill; selects everything."""

    def __init__(self, layer: Layer, store: NarrowStore, budget: Budget, narrowing: Narrowing) -> None:
        super().__init__(layer, store, budget)
        self.narrow_store = store
        self.narrowing = narrowing

    def build(self, seen: Mapping[Hashable, object]) -> None:
        keys = self.narrow_store.wide.prefix_k
        num_old = max(0, keys.shape[1] - self.narrowing.recent)
        channels = self.narrowing.channels(self.layer, seen, keys, num_old)
        if num_old and channels is not None:
            self.narrow_store.narrow(channels, num_old)

    def select(self, step: Step) -> Selection:
        return Selection()
