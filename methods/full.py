"""The full KV cache: every token is kept and attended; what all other methods are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from methods.base import Budget, Index, Layer, Method, Rest, Selection, Step
from methods.fixed import FixedRows, FixedStep, Read
from methods.fused import attend
from methods.store import KVStore, Traffic


class FullIndex(Index):
    """Remembers nothing and selects everything."""

    def select(self, step: Step) -> Selection:
        return Selection()

    def fixed(self, room: int) -> FixedStep:
        return FixedFull(self.layer, self.budget, self.store.held(), room)


class FixedFull(FixedRows):
    """Reads every row up to the new one."""

    def attend(self, queries: Tensor, k: Tensor, v: Tensor, now: Tensor) -> Read:
        self.store(k, v, now)
        return Read(attend(queries, self.k, self.v, None, now + 1, self.layer)[0])

    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, Rest | None]:
        raise AssertionError("everything is read")

    def traffic(self, start: int, num_steps: int) -> Traffic:
        return Traffic(kv=sum(self.row_bytes(start + step + 1) for step in range(num_steps)))


@dataclass(frozen=True)
class Full(Method):
    """No selection; the budget is ignored."""

    kind: ClassVar[str] = "none"

    @property
    def block(self) -> int:
        return 1 << 30

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return FullIndex(layer, store, budget)
