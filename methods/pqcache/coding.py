"""How the host tier keeps K and V: as they are, or as KIVI's codes (arXiv 2402.02750)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from methods.quantised import Grid, Quantised, quantised, restored_rows


class Coding(ABC):
    """K and V of consecutive tokens as planes, first those of K, then as many of V.

    unit: tokens that are coded together. strides: of each plane, the tokens that share a row; they divide the unit.
    """

    unit: int
    strides: tuple[int, ...]

    @abstractmethod
    def encode(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Planes [G,n/stride,w] of K and V [G,n,D], for whole units of tokens."""

    @abstractmethod
    def decode(self, rows: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [q,D] of tokens [q], from the row of each plane [q,w] in which each lies."""


class Exact(Coding):
    """K and V themselves."""

    unit = 1
    strides = (1, 1)

    def encode(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return k, v

    def decode(self, rows: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        k, v = rows
        return k, v


class Coded(Coding):
    """Words, scales and minima of K and of V; tokens are numbered from the first that was coded."""

    def __init__(self, keys: Grid, values: Grid, unit: int, dtype: torch.dtype) -> None:
        self.keys, self.values = keys, values
        self.unit = unit
        self.dtype = dtype
        self.strides = (*keys.strides, *values.strides)

    def encode(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (*quantised(k, self.keys), *quantised(v, self.values))

    def decode(self, rows: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        k = restored_rows(Quantised(*rows[:3]), tokens, self.keys, self.dtype)
        return k, restored_rows(Quantised(*rows[3:]), tokens, self.values, self.dtype)
