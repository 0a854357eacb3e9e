"""KIVI over ThinK (arXiv 2402.02750, 2407.21018): keys lose channels when they become codes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from methods.base import Budget, Index, Layer, Method, ModelFacts, Observer, Selection, Step
from methods.narrow import Channels, NarrowIndex, Narrowing, NarrowStore
from methods.quantised import Grid, Quantisation, QuantisedStore, quantised
from methods.store import KVStore, Part


class NarrowQuantisedStore(QuantisedStore):
    """As its base, but only some channels of the keys become codes; nothing does before `narrow` says which."""

    def __init__(self, k: Tensor, v: Tensor, residual: int, keys: Grid, values: Grid) -> None:
        self.told = False
        self.channels: Channels | None = None
        super().__init__(k, v, residual, keys, values)

    def narrow(self, channels: Channels | None) -> None:
        """Which channels stay of keys that become codes, later ones, too; None: all of them. Said once."""
        self.told, self.channels = True, channels
        self.k = quantised(self.narrowed(self.late_k[:, :0]), self.key_grid)
        self.settle()

    def settle(self) -> None:
        if self.told:
            super().settle()

    def narrowed(self, keys: Tensor) -> Tensor:
        return keys if self.channels is None else self.channels.of(keys)

    def widened(self, keys: Tensor) -> Tensor:
        return keys if self.channels is None else self.channels.widened(keys)

    def held(self) -> list[Part]:
        if self.channels is not None:
            self.traffic.scan(self.channels.kept)
        return super().held()

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        index = () if self.channels is None else (("index", self.channels.kept),)
        return (*super().tensors(), *index)


class KiviThinkIndex(Index):
    """Says which channels stay when the prompt is over, and has the store quantise what is due after each step."""

    def __init__(self, layer: Layer, store: NarrowQuantisedStore, budget: Budget, think: Narrowing) -> None:
        super().__init__(layer, store, budget)
        self.narrow_store = store
        self.think = think

    def build(self, seen: Mapping[Hashable, object]) -> None:
        store = self.narrow_store
        num_old = len(store) // store.residual * store.residual
        store.narrow(self.think.channels(self.layer, seen, store.late_k, num_old))

    def select(self, step: Step) -> Selection:
        return Selection()

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        self.narrow_store.settle()

    def notes(self) -> Mapping[str, float]:
        return self.narrow_store.notes()


@dataclass(frozen=True)
class KiviThink(Method):
    """Nothing is left out; keys are codes of fewer channels, values are codes.

    kivi: how they become codes. think: which channels of the prompt's keys go. These go from keys of new tokens, too,
    once they become codes, and what is no code yet is whole: `think.recent` has a say with `kivi.bits` 16 alone.
    """

    observes: ClassVar[bool] = True
    kind: ClassVar[str] = "none"

    kivi: Quantisation = field(default_factory=Quantisation)
    think: Narrowing = field(default_factory=Narrowing)

    def supports(self, model: ModelFacts) -> str | None:
        return self.kivi.supports(model)

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (self.think.energy(layer),)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        if self.kivi.bits == 16:
            return NarrowStore(k, v)
        return NarrowQuantisedStore(k, v, self.kivi.residual, *self.kivi.grids(layer))

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        if isinstance(store, NarrowStore):
            return NarrowIndex(layer, store, budget, self.think)
        assert isinstance(store, NarrowQuantisedStore)
        return KiviThinkIndex(layer, store, budget, self.think)
