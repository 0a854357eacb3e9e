"""Numbers as packed codes of a few bits with scales (KIVI, arXiv 2402.02750), and a store that keeps K and V so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from methods.base import Layer, ModelFacts
from methods.store import KVStore, Part, pick

WORD = 32  # bits of a word that holds several codes
DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Grid:
    """How numbers become codes: `group` neighbours along axis `dim` share a scale and a minimum, kept in `dtype`."""

    bits: int
    group: int
    dim: int
    dtype: torch.dtype

    @property
    def per_word(self) -> int:
        """Codes in a word; the first one lies in the lowest bits."""
        return WORD // self.bits

    @property
    def strides(self) -> tuple[int, int, int]:
        """Tokens that share a row of words, of scales and of minima."""
        return (self.per_word, self.group, self.group) if self.dim == 1 else (1, 1, 1)

    def shifts(self, device: torch.device) -> Tensor:
        """Where the codes of a word begin, [per_word, 1, ..]: they lie along `dim` of [G,n,D]."""
        shifts = torch.arange(0, WORD, self.bits, dtype=torch.int32, device=device)
        return shifts.view(-1, *[1] * (2 - self.dim))


class Quantised(NamedTuple):
    """words int32: as [G,n,D], but for `dim`, which is shorter by `per_word`; scale, low: shorter by `group`."""

    words: Tensor
    scale: Tensor
    low: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and minima."""
        return sum(t.nbytes for t in self)


def quantised(x: Tensor, grid: Grid) -> Quantised:
    """x [G,n,D] rounded to the grid's levels, half to even; a group of equal numbers is exact but for its minimum.

    `dim` of x must hold whole groups.
    """
    parts = x.float().unflatten(grid.dim, (-1, grid.group))
    along, levels = grid.dim + 1, 2**grid.bits - 1
    low, high = parts.amin(along, keepdim=True), parts.amax(along, keepdim=True)
    # What is stored is what codes are relative to, rounding included; a range of nothing must not divide by zero.
    scale, low = ((high - low) / levels).to(grid.dtype), low.to(grid.dtype)
    step = scale.float()
    codes = ((parts - low.float()) / step.masked_fill(step == 0, 1.0)).clamp_(0, levels).round_().to(torch.int32)
    codes = codes.flatten(grid.dim, along).unflatten(grid.dim, (-1, grid.per_word))
    # The codes' bits are disjoint, so that their sum joins them; the highest may be the sign.
    words = (codes << grid.shifts(x.device)).sum(along, dtype=torch.int32)
    return Quantised(words, scale.squeeze(along), low.squeeze(along))


def codes_of(words: Tensor, grid: Grid) -> Tensor:
    """Codes int32 [G,n,D] of words."""
    parts: Tensor = (words.unsqueeze(grid.dim + 1) >> grid.shifts(words.device)) & (2**grid.bits - 1)
    return torch.flatten(parts, grid.dim, grid.dim + 1)


def restored(rows: Quantised, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The numbers [G,n,D] that codes stand for."""
    codes = codes_of(rows.words, grid).float().unflatten(grid.dim, (-1, grid.group))
    along = grid.dim + 1
    numbers = codes.mul_(rows.scale.float().unsqueeze(along)).add_(rows.low.float().unsqueeze(along))
    return torch.flatten(numbers, grid.dim, along).to(dtype)


def restored_rows(rows: Quantised, tokens: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The numbers [..,D] of single tokens [..], from the rows [..,w] of words, scales and minima in which each lies."""
    mask = 2**grid.bits - 1
    if grid.dim == 1:
        codes: Tensor = (rows.words >> (tokens % grid.per_word * grid.bits).int()[..., None]) & mask
        return codes.float().mul_(rows.scale.float()).add_(rows.low.float()).to(dtype)
    codes = (rows.words[..., None] >> grid.shifts(rows.words.device)) & mask
    groups = codes.flatten(-2).float().unflatten(-1, (-1, grid.group))
    numbers: Tensor = groups.mul_(rows.scale.float()[..., None]).add_(rows.low.float()[..., None]).flatten(-2)
    return numbers.to(dtype)


def distinct(rows: Tensor) -> int:
    """How many different rows each head names, summed over heads: rows [G,r], negative ones are none. Waits once."""
    ordered = rows.sort(1).values
    again = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return int(((ordered >= 0) & ~again).sum())


def joined(old: Quantised, new: Quantised) -> Quantised:
    """The tokens of two, one after the other."""
    return Quantised(*(torch.cat(pair, 1) for pair in zip(old, new, strict=True)))


class QuantisedStore(KVStore):
    """K and V as packed codes, but for the latest tokens, which stay as they are.

    k, v: the shared prompt [G,n,D]; of a longer one than `residual` nothing is kept but codes and copies of the
    latest. Keys become codes `residual` at a time, values one by one, so that exactly `residual` of them (or all) are
    left. Reading restores all of them in temporary memory of the model's dtype.
    """

    def __init__(self, k: Tensor, v: Tensor, residual: int, keys: Grid, values: Grid) -> None:
        super().__init__()
        self.residual = residual
        self.key_grid, self.value_grid = keys, values
        self.k, self.v = quantised(k[:, :0], keys), quantised(v[:, :0], values)
        self.num_k = self.num_v = 0  # tokens whose keys and whose values are codes
        self.late_k, self.late_v = k, v
        self.settle()

    def __len__(self) -> int:
        return self.num_k + self.late_k.shape[1]

    def append(self, k: Tensor, v: Tensor, start: int) -> None:
        assert start == len(self), f"token {start} stored after {len(self)} tokens"
        self.settle()
        self.late_k, self.late_v = torch.cat([self.late_k, k], 1), torch.cat([self.late_v, v], 1)

    def settle(self) -> None:
        """Quantise what is due: a token is attended as it is in its own step, and only then may become codes."""
        due = self.late_k.shape[1] // self.residual * self.residual
        if due:
            self.k = joined(self.k, quantised(self.narrowed(self.late_k[:, :due]), self.key_grid))
            self.late_k = self.late_k[:, due:].clone()
            self.num_k += due
        due = self.late_v.shape[1] - self.residual
        if due > 0:
            self.v = joined(self.v, quantised(self.late_v[:, :due], self.value_grid))
            self.late_v = self.late_v[:, due:].clone()
            self.num_v += due

    def narrowed(self, keys: Tensor) -> Tensor:
        """What of keys [G,r,D] becomes codes."""
        return keys

    def widened(self, keys: Tensor) -> Tensor:
        """The inverse: keys [G,r,D] from what codes stand for."""
        return keys

    def held(self) -> list[Part]:
        return [Part(*self._read(), self.positions())]

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVStore.gather`; words and scales that several of the tokens share are counted once."""
        k, v = self._late_rows(self.late_k, self.num_k, positions), self._late_rows(self.late_v, self.num_v, positions)
        if self.num_k:
            found = self.widened(self._coded_rows(self.k, self.key_grid, self.num_k, positions))
            k = torch.where((positions < self.num_k)[..., None], found, k)
        if self.num_v:
            found = self._coded_rows(self.v, self.value_grid, self.num_v, positions)
            v = torch.where((positions < self.num_v)[..., None], found, v)
        return k, v

    def _late_rows(self, late: Tensor, num_coded: int, positions: Tensor) -> Tensor:
        """Keys or values [G,r,D] at positions [G,r] that are no codes; other rows are arbitrary."""
        self.traffic.kv += int((positions >= num_coded).sum()) * late.shape[2] * late.element_size()
        # One more row, so that there is one where all are codes.
        return pick(torch.nn.functional.pad(late, (0, 0, 0, 1)), (positions - num_coded).clamp(min=0))

    def _coded_rows(self, coded: Quantised, grid: Grid, num_coded: int, positions: Tensor) -> Tensor:
        """What codes stand for at positions [G,r]; rows of other tokens are arbitrary."""
        tokens, in_codes = positions.clamp(0, num_coded - 1), positions < num_coded
        parts = Quantised(*(pick(t, tokens // s) for t, s in zip(coded, grid.strides, strict=True)))
        for part, stride in zip(parts, grid.strides, strict=True):
            named = distinct((tokens // stride).masked_fill(~in_codes, -1))
            self.traffic.kv += named * part.shape[2] * part.element_size()
        return restored_rows(parts, tokens, grid, self.late_k.dtype)

    def _read(self) -> tuple[Tensor, Tensor]:
        """K and V [G,n,D] as they are attended."""
        self.traffic.kv += sum(t.nbytes for t in (*self.k, *self.v, self.late_k, self.late_v))
        k = self.widened(restored(self.k, self.key_grid, self.late_k.dtype))
        v = restored(self.v, self.value_grid, self.late_v.dtype)
        return torch.cat([k, self.late_k], 1), torch.cat([v, self.late_v], 1)

    def positions(self) -> Tensor:
        return torch.arange(len(self), device=self.late_k.device).expand(self.late_k.shape[0], -1)

    def notes(self) -> Mapping[str, float]:
        """Bits that a quantised number takes, scale and minimum included; nothing before there is one."""
        coded = ((self.k, self.key_grid), (self.v, self.value_grid))
        numbers = sum(rows.words.numel() * grid.per_word for rows, grid in coded)
        return {"bits_per_number": 8 * (self.k.nbytes + self.v.nbytes) / numbers} if numbers else {}

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        keys = (("k", t) for t in (*self.k, self.late_k))
        return (*keys, *(("v", t) for t in (*self.v, self.late_v)))


@dataclass(frozen=True)
class Quantisation:
    """How K and V become codes.

    bits: of a code; 16 quantises nothing. group: numbers that share scale and minimum, tokens of a channel for keys and
    channels of a token for values (a head with fewer channels is one group). residual: latest tokens whose values stay
    as they are, and the keys that become codes together; whole groups. scales: the type of scale and minimum, whatever
    the model's: two a group, which at 2 bits and 32 numbers makes 3 bits a number.
    """

    bits: Literal[2, 4, 8, 16] = 2
    group: int = 32
    residual: int = 128
    scales: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.bits == 16:
            return
        whole = WORD // self.bits
        if self.group < 1 or self.group % whole:
            raise ValueError(f"method.group={self.group}: give a multiple of {whole}, as many codes fill a word")
        if self.residual < 1 or self.residual % self.group:
            raise ValueError(f"method.residual={self.residual}: give a multiple of method.group={self.group}")

    def supports(self, model: ModelFacts) -> str | None:
        """The reason for which a model is refused, or None."""
        if self.bits == 16:
            return None
        group = min(self.group, model.head_dim)
        if model.head_dim % group:
            return f"its heads of {model.head_dim} channels are no whole groups of method.group={self.group}"
        if group % (WORD // self.bits):
            return f"its heads of {model.head_dim} channels fill no whole words of {WORD // self.bits} codes"
        return None

    def grids(self, layer: Layer) -> tuple[Grid, Grid]:
        """Of keys and of values."""
        kind = DTYPES[self.scales]
        keys = Grid(self.bits, self.group, 1, kind)
        return keys, Grid(self.bits, min(self.group, layer.head_dim), 2, kind)
