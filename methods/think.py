"""ThinK (arXiv 2407.21018): every token is kept; its key loses the channels that the last queries use least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Observer
from methods.narrow import NarrowIndex, Narrowing, NarrowStore
from methods.store import KVStore


@dataclass(frozen=True)
class Think(Narrowing, Method):
    """Nothing is left out but channels of old keys; with `ratio` 0 it is full attention."""

    kind: ClassVar[str] = "none"

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (self.energy(layer),)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return NarrowStore(k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        assert isinstance(store, NarrowStore)
        return NarrowIndex(layer, store, budget, self)
