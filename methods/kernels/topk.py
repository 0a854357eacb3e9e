"""The k largest of each row, by a radix select: no sort, no float sum, and integers alone cross from launch to launch.

G rows of n scores. A score's order is that of 32 bits, found out eight at a time. A short row is one program's, in one
launch. A long one is shared out, in five: in each of the first four, every program counts the next digits of its share
in a histogram of its own, and the launch after it adds a row's histograms up, so that nothing is set to zero before
and no atomic is needed; the fifth writes. Each program carries along how many scores of earlier shares are chosen for
certain: it knows where its first one goes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SHARES = 24  # of a long row: with 8 rows, one or two programs for each of an H100's 132 multiprocessors
WHOLE = 8192  # scores of a row that one program takes alone: 16 for each of its 512 threads
LEVELS: tl.constexpr = tl.constexpr(4)
BINS: tl.constexpr = tl.constexpr(256)


def top_k(scores: Tensor, k: int, tile: int | None = None, shares: int = SHARES) -> Tensor:
    """Indices int64 [G,k] of the k largest of scores float32 [G,n], ascending; equal scores: the lower index wins.

    0 <= k <= n. +0 equals -0; not-a-number with a clear sign bit ranks above, with a set one below everything else.
    tile: scores that a program holds at once, a power of two; a row of no more than that is one program's. shares: of
    a longer one, at most.
    """
    num_rows, n = scores.shape
    assert scores.dtype == torch.float32 and 0 <= k <= n
    out = torch.empty(num_rows, k, dtype=torch.int64, device=scores.device)
    if out.numel() == 0:
        return out
    if scores.stride(1) != 1:
        scores = scores.contiguous()
    if n <= (tile or WHOLE):
        whole = tile or max(64, triton.next_power_of_2(n))
        whole_row[(num_rows,)](scores, out, scores.stride(0), n, k, TILE=whole, num_warps=warps(whole))
        return out
    tile = tile or min(8192, max(1024, triton.next_power_of_2(triton.cdiv(n, shares))))
    size = triton.cdiv(triton.cdiv(n, shares), tile) * tile
    shares = triton.cdiv(n, size)
    counts = torch.empty(LEVELS.value, num_rows, shares, BINS.value, dtype=torch.int32, device=scores.device)
    state = torch.empty(LEVELS.value, num_rows, shares, 3, dtype=torch.int32, device=scores.device)
    lengths = scores.stride(0), n, size, k
    constants = {"SHARES": triton.next_power_of_2(shares), "TILE": tile, "num_warps": max(8, warps(tile))}
    for level in range(LEVELS.value):
        count_digits[shares, num_rows](scores, counts, state, *lengths, level, **constants)
    write_chosen[shares, num_rows](scores, counts, state, out, *lengths, **constants)
    return out


def warps(tile: int) -> int:
    """For a program with so many scores: 16 or fewer registers of a thread each for scores and what is made of them."""
    return max(2, min(16, tile // 256))


@triton.jit
def ranks(scores: tl.tensor, row: tl.tensor, stride: tl.tensor, column: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Scores as uint32 whose order is the reverse of theirs."""
    score = tl.load(scores + row.to(tl.int64) * stride + column, mask=inside, other=0.0)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits ^ 0x7FFFFFFF, bits).to(tl.uint32, bitcast=True)


@triton.jit
def next_digits(rank: tl.tensor, inside: tl.tensor, prefix: tl.tensor, level: tl.tensor) -> tl.tensor:
    """Of the ranks whose first `level` digits are `prefix`: how many have each next digit, int32 [BINS]."""
    left = rank >> (24 - 8 * level)
    alike = inside & ((left >> 8) == prefix.to(tl.uint32, bitcast=True))
    return tl.histogram((left & 255).to(tl.int32), BINS, mask=alike)


@triton.jit
def digit_of(total: tl.tensor, spare: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The digit of the rank in place `spare` (from 1) where `total` [BINS] have each, and its place among its like."""
    running = tl.cumsum(total, 0)
    reached = running < spare
    return tl.sum(reached.to(tl.int32), 0), spare - tl.sum(tl.where(reached, total, 0), 0)


@triton.jit
def write_tile(
    out: tl.tensor,
    column: tl.tensor,
    rank: tl.tensor,
    inside: tl.tensor,
    threshold: tl.tensor,
    spare: tl.tensor,
    below: tl.tensor,
    equal: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """Write the columns that are chosen; below and equal: how many ranks are so before the tile, returned: after it."""
    limit = threshold.to(tl.uint32, bitcast=True)
    is_below, is_equal = inside & (rank < limit), inside & (rank == limit)
    # Both running numbers in one sum: a tile has less than 2^15 scores.
    own = is_below.to(tl.int32) + (is_equal.to(tl.int32) << 16)
    seen = tl.cumsum(own, 0) - own
    num_below, num_equal = below + (seen & 0xFFFF), equal + (seen >> 16)
    chosen = is_below | (is_equal & (num_equal < spare))
    tl.store(out + num_below + tl.minimum(num_equal, spare), column.to(tl.int64), mask=chosen)
    total = tl.sum(own, 0)
    return below + (total & 0xFFFF), equal + (total >> 16)


@triton.jit(do_not_specialize=["k"])
def whole_row(
    scores: tl.tensor, out: tl.tensor, stride: tl.tensor, n: tl.tensor, k: tl.tensor, TILE: tl.constexpr
) -> None:
    """A program: one row, held in registers."""
    row = tl.program_id(0)
    column = tl.arange(0, TILE)
    inside = column < n
    rank = ranks(scores, row, stride, column, inside)
    prefix, spare = k * 0, k
    for level in range(LEVELS):
        digit, spare = digit_of(next_digits(rank, inside, prefix, level), spare)
        prefix = (prefix << 8) | digit
    write_tile(out + row.to(tl.int64) * k, column, rank, inside, prefix, spare, k * 0, k * 0)


@triton.jit
def narrowed(
    counts: tl.tensor, state: tl.tensor, k: tl.tensor, level: tl.tensor, SHARES: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """What the `level` digits counted so far say about the k-th rank of this program's row.

    prefix: these digits of it; spare: its place among the ranks that begin so, from 1; of earlier shares' ranks, how
    many are below all that begin so, and how many begin so.
    """
    share, row, shares = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    first = ((level - 1) * tl.num_programs(1) + row) * shares
    own = state + (first + share) * 3  # as the launch before knew it
    prefix, spare, before = tl.load(own), tl.load(own + 1), tl.load(own + 2)
    each, digit = tl.arange(0, SHARES)[:, None], tl.arange(0, BINS)
    held = tl.load(counts + (first + each) * BINS + digit[None, :], mask=each < shares, other=0)
    reached, spare = digit_of(tl.sum(held, 0), spare)
    earlier = tl.sum(tl.where(each < share, held, 0), 0)
    before += tl.sum(tl.where(digit < reached, earlier, 0), 0)
    return (prefix << 8) | reached, spare, before, tl.sum(tl.where(digit == reached, earlier, 0), 0)


@triton.jit(do_not_specialize=["k", "level"])
def count_digits(
    scores: tl.tensor,
    counts: tl.tensor,
    state: tl.tensor,
    stride: tl.tensor,
    n: tl.tensor,
    size: tl.tensor,
    k: tl.tensor,
    level: tl.tensor,
    SHARES: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """counts[level,row,share]: of the share's ranks that begin like the k-th, how many have each next digit."""
    share, row, shares = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    prefix, spare, before = k * 0, k, k * 0
    if level > 0:
        prefix, spare, before, _ = narrowed(counts, state, k, level, SHARES)
    slot = (level * tl.num_programs(1) + row) * shares + share
    own = state + slot * 3
    tl.store(own, prefix)
    tl.store(own + 1, spare)
    tl.store(own + 2, before)
    found = tl.zeros([BINS], tl.int32)
    end = tl.minimum((share + 1) * size, n)
    for start in range(share * size, end, TILE):
        column = start + tl.arange(0, TILE)
        found += next_digits(ranks(scores, row, stride, column, column < end), column < end, prefix, level)
    tl.store(counts + slot * BINS + tl.arange(0, BINS), found)


@triton.jit(do_not_specialize=["k"])
def write_chosen(
    scores: tl.tensor,
    counts: tl.tensor,
    state: tl.tensor,
    out: tl.tensor,
    stride: tl.tensor,
    n: tl.tensor,
    size: tl.tensor,
    k: tl.tensor,
    SHARES: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """out[row]: where the ranks below the k-th are and, from the left, as many of its equals as there is room for."""
    share, row = tl.program_id(0), tl.program_id(1)
    threshold, spare, below, equal = narrowed(counts, state, k, LEVELS, SHARES)
    end = tl.minimum((share + 1) * size, n)
    for start in range(share * size, end, TILE):
        column = start + tl.arange(0, TILE)
        rank = ranks(scores, row, stride, column, column < end)
        here = out + row.to(tl.int64) * k
        below, equal = write_tile(here, column, rank, column < end, threshold, spare, below, equal)


def top_k_reference(scores: Tensor, k: int) -> Tensor:
    """The same in PyTorch, by a stable sort."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :k].sort(1).values


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at up to 128k scores."""
    numbers = dict.fromkeys(("stride", "n", "size", "k", "level"), "i32")
    types = {"scores": "*fp32", "counts": "*i32", "state": "*i32", "out": "*i64", **numbers}
    tiles = [{"TILE": tile, "num_warps": max(8, warps(tile))} for tile in (1024, 8192)]
    shared = [(kernel, types, {"SHARES": 32, **tile}) for kernel in (count_digits, write_chosen) for tile in tiles]
    return [*shared, (whole_row, types, tiles[0]), (whole_row, types, tiles[1])]
