"""ThinK over an eviction (arXiv 2407.21018): what the prompt's eviction leaves loses channels of its keys, too."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, ModelFacts, Observer
from methods.eviction import OneShot, OneShotIndex, WindowScored
from methods.fixed import FixedStep
from methods.narrow import Channels, Narrowing
from methods.store import EvictingStore, KVStore, Part


class NarrowEvictingStore(KVStore):
    """Two evicting stores of one prompt: `old` tokens have narrow keys; the `recent` latest of the kept are `wide`.

    k, v: the shared prompt [G,n,D], in `wide` alone until `keep` says what stays. New tokens are wide. The slot of an
    old token that leaves is not used again; with no fewer `recent` tokens than the local window has, none leaves.
    """

    def __init__(self, k: Tensor, v: Tensor, recent: int) -> None:
        super().__init__()
        self.recent = recent
        self.wide = EvictingStore(k, v)
        self.old = EvictingStore(k[:, :0].clone(), v[:, :0].clone())
        self.channels: Channels | None = None

    def keep(self, positions: Tensor) -> None:
        """Free all but positions [G,c], ascending in each row."""
        num_old = max(0, positions.shape[1] - self.recent)
        self.old = EvictingStore(self.wide.k, self.wide.v)
        self.old.keep(positions[:, :num_old])
        self.wide.keep(positions[:, num_old:])

    def narrow(self, channels: Channels) -> None:
        """Keep only these channels of old keys. Said once, after `keep`."""
        self.channels = channels
        self.old.k = channels.of(self.old.k)

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        self.wide.append(k, v, start)

    def drop(self, positions: Tensor) -> None:
        self.old.drop(positions)
        self.wide.drop(positions)

    def held(self) -> list[Part]:
        parts = [*self.old.held(), *self.wide.held()]
        for part in parts:
            self.count_rows(part.k, part.v)
        if self.channels is not None:
            self.traffic.scan(self.channels.kept)
        parts[0] = self._whole(parts[0])
        return [part for part in parts if part.k.shape[1]]

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVStore.gather`; every row counts as a whole one: which are narrow only the device knows."""
        parts = [self._whole(Part(self.old.k, self.old.v, self.old.slots)), *self.wide.held()]
        everything = EvictingStore(*(torch.cat(rows, 1) for rows in ([p.k for p in parts], [p.v for p in parts])))
        everything.slots = self.positions()
        k, v = everything.gather(positions)
        self.count_rows(k, v)
        return k, v

    def _whole(self, part: Part) -> Part:
        """A stretch of old tokens with keys of full width."""
        return part if self.channels is None else part._replace(k=self.channels.widened(part.k))

    def positions(self) -> Tensor:
        return torch.cat([self.old.slots, self.wide.slots], 1)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        index = () if self.channels is None else (("index", self.channels.kept),)
        return (*self.old.tensors(), *self.wide.tensors(), *index)


class NarrowEvictionIndex(OneShotIndex):
    """Evicts, and has the store narrow the keys of what is left."""

    def __init__(self, layer: Layer, store: NarrowEvictingStore, budget: Budget, method: NarrowEviction) -> None:
        super().__init__(layer, store, budget, method)
        self.narrow_store = store
        self.think = method.think

    def build(self, seen: Mapping[Hashable, object]) -> None:
        super().build(seen)
        old, wide = self.narrow_store.old.k, self.narrow_store.wide.k
        channels = self.think.channels(self.layer, seen, torch.cat([old, wide], 1), old.shape[1])
        if channels is not None:
            self.narrow_store.narrow(channels)

    def fixed(self, room: int) -> FixedStep | None:
        return None  # its slots would be as wide as the others


@dataclass(frozen=True)
class NarrowEviction(OneShot):
    """A one-shot eviction whose tokens, but the latest, have narrow keys.

    think: which channels go; its `recent` counts among the tokens that stay, and its "all" are these. scorer: a method
    that scores a prompt once and keeps the same number of tokens in all heads of a layer.
    """

    exact: ClassVar[bool] = False
    lossless: ClassVar[bool] = False

    think: Narrowing = field(default_factory=Narrowing)
    scorer: OneShot = field(default_factory=WindowScored)

    def __post_init__(self) -> None:
        # The schema checks values, not which method a `_target_` names.
        if not isinstance(self.scorer, OneShot) or self.scorer.spread not in ("head", "model") or not self.scorer.exact:
            raise ValueError(
                f"method.scorer={type(self.scorer).__name__}: give a method that scores a prompt once and keeps "
                "as many tokens in each head of a layer, such as methods.snapkv.SnapKV or methods.pyramidkv.PyramidKV"
            )

    @property
    def spread(self) -> str:
        return self.scorer.spread

    def supports(self, model: ModelFacts) -> str | None:
        return self.scorer.supports(model)

    def split(self, total: int, local_share: float) -> tuple[int, int]:
        return self.scorer.split(total, local_share)

    def budgets(self, budget: Budget, num_layers: int, num_tokens: int) -> tuple[Budget, ...]:
        return self.scorer.budgets(budget, num_layers, num_tokens)

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (*self.scorer.observers(layer, budget), self.think.energy(layer))

    def scores(self, layer: Layer, seen: Mapping[Hashable, object], end: int) -> Tensor:
        return self.scorer.scores(layer, seen, end)

    def choose(self, scores: Tensor, k: int) -> Tensor:
        return self.scorer.choose(scores, k)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return NarrowEvictingStore(k, v, self.think.recent)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        assert isinstance(store, NarrowEvictingStore)
        return NarrowEvictionIndex(layer, store, budget, self)
