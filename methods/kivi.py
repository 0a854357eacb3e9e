"""KIVI (arXiv 2402.02750): every token is kept, in 2 or 4 bits; keys are quantised per channel, values per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Selection, Step
from methods.quantised import Quantisation, QuantisedStore
from methods.store import KVStore


class KiviIndex(Index):
    """Selects everything, and has the store quantise what is due once a step is over."""

    def select(self, step: Step) -> Selection:
        return Selection()

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        if isinstance(self.store, QuantisedStore):
            self.store.settle()

    def notes(self) -> Mapping[str, float]:
        return {} if not isinstance(self.store, QuantisedStore) else self.store.notes()


@dataclass(frozen=True)
class Kivi(Quantisation, Method):
    """Nothing is left out; all tokens but the latest are read as codes with a scale and a minimum for each group."""

    observes: ClassVar[bool] = True
    kind: ClassVar[str] = "none"

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        if self.bits == 16:
            return super().store(layer, budget, k, v)
        return QuantisedStore(k, v, self.residual, *self.grids(layer))

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return KiviIndex(layer, store, budget)
