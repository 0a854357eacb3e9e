"""Quest's pages: their channel-wise extremes with a new key, and the bounds that these give a query.

H query heads, G KV heads, P pages, D head dimension. Extremes are read once for the whole group, in their own type.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.logits import capped

BLOCK = 32  # pages that a program bounds


def put_page(low: Tensor, high: Tensor, k: Tensor, now: Tensor, sink: int, page: int) -> None:
    """The key k [G,D] of the token at position `now` (int64, 0-d, on the device) widens its page of low, high [G,P,D];
    pages hold `page` tokens and begin behind the sink."""
    num_kv_heads, dim = k.shape
    assert k.stride(1) == low.stride(2) == high.stride(2) == 1 and low.stride() == high.stride()
    page_kernel[(num_kv_heads,)](
        low, high, k, now, low.stride(0), low.stride(1), k.stride(0), sink, page, DIM=dim,
        DIMS=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip


def page_bounds(
    queries: Tensor,
    low: Tensor,
    high: Tensor,
    now: Tensor,
    sink: int,
    local: int,
    page: int,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """What no logit of queries [H,D] with a key between low and high [G,P,D] exceeds: float32 [H,P]; -inf for pages
    that begin in the local window of the token at position `now`, or later."""
    num_kv_heads, num_pages, dim = low.shape
    assert queries.stride(1) == low.stride(2) == high.stride(2) == 1 and low.stride() == high.stride()
    out = torch.empty(queries.shape[0], num_pages, dtype=torch.float32, device=low.device)
    bounds_kernel[(triton.cdiv(num_pages, BLOCK), num_kv_heads)](
        queries, low, high, now, out, scale, num_pages, queries.stride(0), low.stride(0), low.stride(1), sink, local,
        page, GROUP=queries.shape[0] // num_kv_heads, DIM=dim, DIMS=triton.next_power_of_2(dim), BLOCK=BLOCK,
        SOFTCAP=softcap, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def page_kernel(
    low: tl.tensor,
    high: tl.tensor,
    k: tl.tensor,
    now: tl.tensor,
    head_stride: tl.tensor,
    page_stride: tl.tensor,
    k_stride: tl.tensor,
    sink: tl.tensor,
    page: tl.tensor,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """A program: one KV head."""
    kv_head, channel = tl.program_id(0).to(tl.int64), tl.arange(0, DIMS)
    real = channel < DIM
    place = kv_head * head_stride + (tl.load(now) - sink) // page * page_stride + channel
    key = tl.load(k + kv_head * k_stride + channel, mask=real)
    tl.store(low + place, tl.minimum(tl.load(low + place, mask=real), key), mask=real)
    tl.store(high + place, tl.maximum(tl.load(high + place, mask=real), key), mask=real)


@triton.jit
def bounds_kernel(
    queries: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    now: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    num_pages: tl.tensor,
    query_stride: tl.tensor,
    head_stride: tl.tensor,
    page_stride: tl.tensor,
    sink: tl.tensor,
    local: tl.tensor,
    page: tl.tensor,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """A program: some pages of one KV head."""
    number, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, DIMS)
    kv_head = tl.program_id(1).to(tl.int64)
    used = (number < num_pages) & (number.to(tl.int64) * page + sink < tl.load(now) - local)
    real = used[:, None] & (channel < DIM)[None, :]
    place = kv_head * head_stride + number.to(tl.int64)[:, None] * page_stride + channel[None, :]
    least = tl.load(low + place, mask=real, other=0.0).to(tl.float32)
    most = tl.load(high + place, mask=real, other=0.0).to(tl.float32)
    for member in tl.static_range(GROUP):
        head = kv_head * GROUP + member
        query = tl.load(queries + head * query_stride + channel, mask=channel < DIM, other=0.0).to(tl.float32)
        bound = tl.sum(tl.maximum(query[None, :] * least, query[None, :] * most), 1) * scale
        bound = tl.where(used, capped(bound, SOFTCAP), float("-inf"))
        tl.store(out + head * num_pages + number, bound, mask=number < num_pages)


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    numbers = ("num_pages", "query_stride", "head_stride", "page_stride", "k_stride", "sink", "local", "page")
    types = {"low": "*bf16", "high": "*bf16", "k": "*bf16", "queries": "*bf16", "now": "*i64", "out": "*fp32",
             "scale": "fp32", **dict.fromkeys(numbers, "i32")}  # fmt: skip
    shape = {"DIM": 128, "DIMS": 128}
    wide = {**shape, "GROUP": 4, "BLOCK": BLOCK, "num_warps": 4}
    return [
        (page_kernel, types, {**shape, "num_warps": 1}),
        (bounds_kernel, types, {**wide, "SOFTCAP": None}),
        (bounds_kernel, types, {**wide, "SOFTCAP": 30.0}),
    ]
