"""Softmax of a step's logits summed over each group, in two launches, with what may be chosen told apart.

H query heads, G KV heads, C columns, one a token. The first launch finds each stretch's maximum and sum of
exponentials, the second merges them and writes the shares: the logits are read twice, nothing else of their size is.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # logits that a program holds at once: 32 float32 registers for each of its 128 threads


def middle_shares(
    logits: Tensor, now: Tensor, sink: int, local: int, num_kv_heads: int, sinks: Tensor | None, tile: int = TILE
) -> Tensor:
    """Shares that a softmax of logits float32 [H,C] over the columns up to `now` (int64, 0-d, on the device) gives
    those of [sink, now - local), summed over each group: float32 [G,C]; -1 for all others.

    sinks [H]: learned logits that take their part of the softmax. tile: logits a program holds, a power of two.
    """
    num_heads, num_columns = logits.shape
    assert logits.stride(1) == 1
    group = num_heads // num_kv_heads
    padded = triton.next_power_of_2(group)
    block = max(1, min(tile // padded, triton.next_power_of_2(num_columns)))
    splits = triton.cdiv(num_columns, block)
    peaks = torch.empty(num_kv_heads, splits, padded, dtype=torch.float32, device=logits.device)
    sums = torch.empty_like(peaks)
    out = torch.empty(num_kv_heads, num_columns, dtype=torch.float32, device=logits.device)
    shape = {"GROUP": group, "PADDED": padded, "BLOCK": block}
    grid = (splits, num_kv_heads)
    stretch_peaks[grid](logits, now, peaks, sums, num_columns, splits, logits.stride(0), **shape)
    stretch_shares[grid](
        logits, now, sinks, peaks, sums, out, num_columns, splits, logits.stride(0), sink, local,
        PADDED_SPLITS=triton.next_power_of_2(splits), **shape,
    )  # fmt: skip
    return out


@triton.jit
def seen_logits(
    logits: tl.tensor, now: tl.tensor, stride: tl.tensor, GROUP: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """Logits [PADDED, BLOCK] of this program's KV head and stretch; -inf behind `now` and beyond the group."""
    member, column = tl.arange(0, PADDED), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1).to(tl.int64) * GROUP + member
    seen = (member < GROUP)[:, None] & (column <= tl.load(now))[None, :]
    return tl.load(logits + head[:, None] * stride + column[None, :], mask=seen, other=float("-inf"))


@triton.jit
def stretch_peaks(
    logits: tl.tensor,
    now: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    num_columns: tl.tensor,
    splits: tl.tensor,
    stride: tl.tensor,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Of a stretch: the highest logit of each query head, and the sum of exponentials below it."""
    logit = seen_logits(logits, now, stride, GROUP, PADDED, BLOCK)
    peak = tl.max(logit, 1)
    below = tl.where(peak == float("-inf"), 0.0, peak)
    place = (tl.program_id(1) * splits + tl.program_id(0)) * PADDED + tl.arange(0, PADDED)
    tl.store(peaks + place, peak)
    tl.store(sums + place, tl.sum(tl.exp(logit - below[:, None]), 1))


@triton.jit
def stretch_shares(
    logits: tl.tensor,
    now: tl.tensor,
    sinks: tl.tensor | None,
    peaks: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    num_columns: tl.tensor,
    splits: tl.tensor,
    stride: tl.tensor,
    sink: tl.tensor,
    local: tl.tensor,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
) -> None:
    """The shares of a stretch."""
    kv_head, member = tl.program_id(1), tl.arange(0, PADDED)
    each = tl.arange(0, PADDED_SPLITS)
    place = (kv_head * splits + each[None, :]) * PADDED + member[:, None]
    highs = tl.load(peaks + place, mask=(each < splits)[None, :], other=float("-inf"))
    peak = tl.max(highs, 1)
    own = member < GROUP
    if sinks is not None:
        peak = tl.maximum(peak, tl.load(sinks + kv_head * GROUP + member, mask=own, other=float("-inf")).to(tl.float32))
    peak = tl.where(own, peak, 0.0)
    total = tl.sum(tl.load(sums + place, mask=(each < splits)[None, :], other=0.0) * tl.exp(highs - peak[:, None]), 1)
    if sinks is not None:
        learned = tl.load(sinks + kv_head * GROUP + member, mask=own, other=float("-inf")).to(tl.float32)
        total += tl.exp(learned - peak)
    logit = seen_logits(logits, now, stride, GROUP, PADDED, BLOCK)
    factor = tl.where(own, 1.0 / tl.where(own, total, 1.0), 0.0)
    share = tl.sum(tl.exp(logit - peak[:, None]) * factor[:, None], 0)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chosen = (column >= sink) & (column < tl.load(now) - local)
    tl.store(
        out + kv_head.to(tl.int64) * num_columns + column, tl.where(chosen, share, -1.0), mask=column < num_columns
    )


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    floats = dict.fromkeys(("logits", "peaks", "sums", "out", "sinks"), "*fp32")
    types = {**floats, "now": "*i64", **dict.fromkeys(("num_columns", "splits", "stride", "sink", "local"), "i32")}
    shape = {"GROUP": 4, "PADDED": 4, "BLOCK": 1024, "num_warps": 4}
    return [
        (stretch_peaks, types, shape),
        (stretch_shares, types, {**shape, "PADDED_SPLITS": 128, "sinks": None}),
        (stretch_shares, types, {**shape, "PADDED_SPLITS": 128}),
    ]
