"""The full KV cache: every token is kept and attended; what all other methods are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.base import Budget, Index, Layer, Method, Selection, Step
from methods.store import KVStore


class FullIndex(Index):
    """Remembers nothing and selects everything."""

    def select(self, step: Step) -> Selection:
        return Selection()


@dataclass(frozen=True)
class Full(Method):
    """No selection; the budget is ignored."""

    kind: ClassVar[str] = "none"

    @property
    def block(self) -> int:
        return 1 << 30

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return FullIndex(layer, store, budget)
