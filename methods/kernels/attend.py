"""Decode attention over chosen rows of K and V, read where they lie ("flash decoding", split over the rows).

H query heads, G KV heads, group = H / G, C rows, D head dimension, r chosen rows. Each program reads its share of one
KV head's rows once for the whole group; a second kernel merges the shares, always in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.logits import MIN_ROWS, capped, logits_reference

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100: enough loads in flight to fill its memory bus
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_share(
    queries: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    rows: tl.tensor | None,
    length: tl.tensor | None,
    part: tl.tensor,
    part_lse: tl.tensor,
    scale: tl.tensor,
    num_rows: tl.tensor,
    query_stride: tl.tensor,
    k_head_stride: tl.tensor,
    k_row_stride: tl.tensor,
    v_head_stride: tl.tensor,
    v_row_stride: tl.tensor,
    list_stride: tl.tensor,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """One program: one of num_programs(1) shares of one KV head's rows; part [shares,H,D], part_lse (base 2)."""
    kv_head, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    end = num_rows
    if length is not None:
        end = tl.minimum(num_rows, tl.load(length).to(tl.int32))
    # The rows that count are shared out, not the capacity: no program idles because a buffer is half empty.
    size = tl.cdiv(tl.cdiv(end, BLOCK), tl.num_programs(1)) * BLOCK
    first = share * size
    end = tl.minimum(first + size, end)
    head, dim = tl.arange(0, HEADS), tl.arange(0, DIMS)
    heads = kv_head * GROUP + head
    own = (head < GROUP)[:, None] & (dim < DIM)[None, :]
    q = tl.load(queries + heads[:, None] * query_stride + dim[None, :], mask=own, other=0.0)
    highest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    y = tl.zeros([HEADS, DIMS], tl.float32)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        held = i < end
        row = i.to(tl.int64)
        if rows is not None:
            row = tl.load(rows + kv_head * list_stride + i, mask=held, other=-1)
            held = row >= 0
        read = held[:, None] & (dim < DIM)[None, :]
        keys = tl.load(k + kv_head * k_head_stride + row[:, None] * k_row_stride + dim[None, :], mask=read, other=0.0)
        values = tl.load(v + kv_head * v_head_stride + row[:, None] * v_row_stride + dim[None, :], mask=read, other=0.0)
        logit = capped(tl.dot(q, tl.trans(keys), input_precision="ieee") * scale, SOFTCAP) * LOG2E
        logit = tl.where(held[None, :], logit, float("-inf"))
        top = tl.maximum(highest, tl.max(logit, 1))
        base = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(logit - base[:, None])
        shrink = tl.exp2(highest - base)
        total = total * shrink + tl.sum(p, 1)
        y = y * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        highest = top
    # An empty share has the mass 2^-inf; its zeros are written, as the merge reads them.
    divisor = tl.where(total == 0.0, 1.0, total)
    slot = share * tl.num_programs(0) * GROUP + heads
    tl.store(part + slot[:, None] * DIM + dim[None, :], y / divisor[:, None], mask=own)
    tl.store(part_lse + slot, highest + tl.log2(divisor), mask=head < GROUP)


@triton.jit
def merge_shares(
    part: tl.tensor,
    part_lse: tl.tensor,
    sinks: tl.tensor | None,
    y: tl.tensor,
    lse: tl.tensor,
    num_shares: tl.tensor,
    SHARES: tl.constexpr,
    STEP: tl.constexpr,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """One program: one query head; the mean of the shares' outputs, weighted by their masses, with the sink's mass."""
    head, num_heads = tl.program_id(0), tl.num_programs(0)
    share, dim = tl.arange(0, SHARES), tl.arange(0, DIMS)
    mass = tl.load(part_lse + share * num_heads + head, mask=share < num_shares, other=float("-inf"))
    top = tl.max(mass, 0)
    if sinks is not None:
        top = tl.maximum(top, tl.load(sinks + head).to(tl.float32) * LOG2E)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(mass - base), 0)
    if sinks is not None:
        total += tl.exp2(tl.load(sinks + head).to(tl.float32) * LOG2E - base)
    mean = tl.zeros([DIMS], tl.float32)
    for first in range(0, num_shares, STEP):
        some = first + tl.arange(0, STEP)
        here = some < num_shares
        weight = tl.exp2(tl.load(part_lse + some * num_heads + head, mask=here, other=float("-inf")) - base)
        place = part + (some[:, None] * num_heads + head) * DIM + dim[None, :]
        mean += tl.sum(weight[:, None] * tl.load(place, mask=here[:, None] & (dim < DIM)[None, :], other=0.0), 0)
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(y + head * DIM + dim, (mean / divisor).to(y.dtype.element_ty), mask=dim < DIM)
    tl.store(lse + head, (top + tl.log2(divisor)) / LOG2E)


def share_tiles(dim: int, size: int, listed: bool, block: int | None = None) -> dict[str, int]:
    """Constants of `attend_share` for K and V of `size` bytes an element: what lets two programs fit a multiprocessor.

    Two blocks are loaded ahead, of float32 one; a listed row is loaded in two steps, its number and itself.
    """
    dims, ahead = triton.next_power_of_2(dim), 2 if size == 2 else 1
    return {"DIM": dim, "DIMS": dims, "BLOCK": block or (64 if dims <= 128 else 32),
            "num_warps": 4 if dims * size < 512 else 8, "num_stages": 1 + ahead * (2 if listed else 1)}  # fmt: skip


def attend(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | None,
    length: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    block: int | None = None,
    shares: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact attention of queries [H,D] over rows of k and v [G,C,D], all of one dtype: y [H,D], log-sum-exp [H].

    rows int64 [G,r]: the rows each KV head reads, -1 is skipped; None: all C. length int64 0-d, on the device: only
    the first `length` entries of that list count; None: all. sinks [H]: learned logits that take their share of the
    softmax and belong to the log-sum-exp (float32, natural). y has v's dtype; nothing read: y is 0, the log-sum-exp
    -inf or the sink's logit. Logits, maxima and sums are float32, probabilities are rounded to v's dtype for the
    product with v. shares: programs that split the rows of one KV head.
    """
    (num_heads, dim), num_kv_heads = queries.shape, k.shape[0]
    num_rows = k.shape[1] if rows is None else rows.shape[1]
    assert queries.dtype == k.dtype == v.dtype
    assert queries.stride(1) == k.stride(2) == v.stride(2) == 1
    assert rows is None or rows.stride(1) == 1 or num_rows < 2
    group, tiles = num_heads // num_kv_heads, share_tiles(dim, k.element_size(), rows is not None, block)
    most = shares or triton.cdiv(PROGRAMS, num_kv_heads)
    shares = max(1, min(most, triton.cdiv(num_rows, tiles["BLOCK"])))
    part = torch.empty(shares, num_heads, dim, dtype=torch.float32, device=k.device)
    part_lse = torch.empty(shares, num_heads, dtype=torch.float32, device=k.device)
    y, lse = torch.empty(num_heads, dim, dtype=v.dtype, device=v.device), torch.empty_like(part_lse[0])
    with torch.cuda.device_of(k):
        attend_share[num_kv_heads, shares](
            queries, k, v, rows, length, part, part_lse, scale, num_rows, queries.stride(0), k.stride(0), k.stride(1),
            v.stride(0), v.stride(1), 0 if rows is None else rows.stride(0),
            GROUP=group, HEADS=max(MIN_ROWS, triton.next_power_of_2(group)), SOFTCAP=softcap, **tiles,
        )  # fmt: skip
        merge_shares[(num_heads,)](part, part_lse, sinks, y, lse, shares, **merge_tiles(dim, shares))
    return y, lse


def merge_tiles(dim: int, shares: int) -> dict[str, int]:
    """Constants of `merge_shares`."""
    padded = triton.next_power_of_2(shares)
    return {"SHARES": padded, "STEP": min(padded, 16), "DIM": dim, "DIMS": triton.next_power_of_2(dim), "num_warps": 4}


def attend_reference(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | None,
    length: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch, with copies of the rows."""
    num_kv_heads, num_rows = k.shape[0], k.shape[1] if rows is None else rows.shape[1]
    column = torch.arange(num_rows, device=k.device)
    held = torch.ones(num_kv_heads, num_rows, dtype=torch.bool, device=k.device) if rows is None else rows >= 0
    if length is not None:
        held = held & (column < length)
    if rows is not None:
        kv_head = torch.arange(num_kv_heads, device=k.device)[:, None]
        k, v = k[kv_head, rows.clamp_min(0)], v[kv_head, rows.clamp_min(0)]
    logit = logits_reference(queries, k, scale, softcap).unflatten(0, (num_kv_heads, -1))
    logit = logit.masked_fill(~held[:, None], -torch.inf)
    lse = logit.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float().view_as(lse))
    p = (logit - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    return (p @ v.float()).flatten(0, 1).to(v.dtype), lse.flatten()


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    pointers = {"queries": "*bf16", "k": "*bf16", "v": "*bf16", "rows": "*i64", "length": "*i64", "part": "*fp32",
                "part_lse": "*fp32"}  # fmt: skip
    numbers = ("num_rows", "query_stride", "k_head_stride", "k_row_stride", "v_head_stride", "v_row_stride",
               "list_stride")  # fmt: skip
    share = {**pointers, "scale": "fp32", **dict.fromkeys(numbers, "i32")}
    single = {**share, "queries": "*fp32", "k": "*fp32", "v": "*fp32"}
    merge = {"part": "*fp32", "part_lse": "*fp32", "sinks": "*bf16", "y": "*bf16", "lse": "*fp32",
             "num_shares": "i32"}  # fmt: skip
    shape = {"GROUP": 4, "HEADS": MIN_ROWS, "SOFTCAP": None}
    return [
        (attend_share, share, {**shape, **share_tiles(128, 2, True)}),
        (attend_share, share, {**shape, **share_tiles(128, 2, False), "rows": None}),
        (attend_share, single, {**shape, **share_tiles(128, 4, True)}),
        (merge_shares, merge, merge_tiles(128, 33)),
    ]
