"""PQCache over KIVI (arXiv 2407.12820, 2402.02750): codes find the tokens, and other codes are what is attended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from methods.base import Budget, Index, Layer, ModelFacts
from methods.fixed import FixedStep
from methods.pqcache.coding import Coded
from methods.pqcache.method import PQCache, PQIndex
from methods.quantised import Quantisation, QuantisedStore
from methods.store import KVStore


class QuantisedPQIndex(PQIndex):
    """PQCache's own; only its steps in fixed shapes know no codes."""

    def fixed(self, room: int) -> FixedStep | None:
        return None


@dataclass(frozen=True)
class QuantisedPQCache(PQCache):
    """PQCache whose middle K and V are KIVI's codes, on the host and in the cache of blocks.

    kivi: how they become codes. With tier "host" sink and local window are exact, and `kivi.residual` tokens go to the
    host together, K and V, when all of them have left the window. With tier "device" it is KIVI's store as it is.
    Clusters are those of the exact keys.
    """

    exact: ClassVar[bool] = False
    lossless: ClassVar[bool] = False

    kivi: Quantisation = field(default_factory=Quantisation)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kivi.bits != 16 and self.cache_block % self.kivi.group:
            raise ValueError(
                f"method.cache_block={self.cache_block}: give a multiple of method.kivi.group={self.kivi.group}, "
                "so that no block shares a scale with another"
            )

    def supports(self, model: ModelFacts) -> str | None:
        return super().supports(model) or self.kivi.supports(model)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        if self.kivi.bits == 16:
            return super().store(layer, budget, k, v)
        keys, values = self.kivi.grids(layer)
        if self.tier == "device":
            return QuantisedStore(k, v, self.kivi.residual, keys, values)
        return self.tiered(layer, budget, k, v, Coded(keys, values, self.kivi.residual, layer.dtype))

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        if self.kivi.bits == 16:
            return super().index(layer, store, budget)
        return QuantisedPQIndex(layer, store, budget, self)
