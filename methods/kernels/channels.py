"""SparQ's query: which channels a group reads, its part in them, and what scales their products; one launch.

A channel's place among the chosen is the number of those before it, and it is chosen if fewer than r are larger: no
sort, and equal channels go to the lower one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COMPARED = 32  # channels that all others are compared with at once


def largest_channels(queries: Tensor, num_kv_heads: int, num: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(part float32 [H,r], channels int64 [G,r], factor float32 [H]) of queries [H,D]: the r = `num` largest channels
    of the group's summed magnitudes, in order, what each query has there, and scale / sqrt(the share of its magnitude
    that lies there), which for a query of zeros is 1."""
    num_heads, dim = queries.shape
    assert queries.stride(1) == 1 and num <= dim
    part = torch.empty(num_heads, num, dtype=torch.float32, device=queries.device)
    channels = torch.empty(num_kv_heads, num, dtype=torch.int64, device=queries.device)
    factor = torch.empty(num_heads, dtype=torch.float32, device=queries.device)
    dims = triton.next_power_of_2(dim)
    channels_kernel[(num_kv_heads,)](
        queries, part, channels, factor, queries.stride(0), scale, NUM=num, GROUP=num_heads // num_kv_heads, DIM=dim,
        DIMS=dims, COMPARED=min(COMPARED, dims), num_warps=4,
    )  # fmt: skip
    return part, channels, factor


@triton.jit
def magnitudes(
    queries: tl.tensor, channel: tl.tensor, stride: tl.tensor, GROUP: tl.constexpr, DIM: tl.constexpr
) -> tl.tensor:
    """Summed over the group, in order; -1 beyond the last channel."""
    total = tl.zeros([channel.shape[0]], tl.float32)
    for member in tl.static_range(GROUP):
        here = queries + (tl.program_id(0).to(tl.int64) * GROUP + member) * stride + channel
        total += tl.abs(tl.load(here, mask=channel < DIM, other=0.0).to(tl.float32))
    return tl.where(channel < DIM, total, -1.0)


@triton.jit
def channels_kernel(
    queries: tl.tensor,
    part: tl.tensor,
    channels: tl.tensor,
    factor: tl.tensor,
    stride: tl.tensor,
    scale: tl.tensor,
    NUM: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
    COMPARED: tl.constexpr,
) -> None:
    """A program: one KV head."""
    kv_head, channel = tl.program_id(0).to(tl.int64), tl.arange(0, DIMS)
    own = magnitudes(queries, channel, stride, GROUP, DIM)
    before = tl.zeros([DIMS], tl.int32)
    for first in tl.static_range(0, DIMS, COMPARED):
        other = first + tl.arange(0, COMPARED)
        size = magnitudes(queries, other, stride, GROUP, DIM)
        first_of_equals = (size[None, :] == own[:, None]) & (other[None, :] < channel[:, None])
        larger = (size[None, :] > own[:, None]) | first_of_equals
        before += tl.sum(larger.to(tl.int32), 1)
    chosen = (before < NUM) & (channel < DIM)
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(channels + kv_head * NUM + place, channel.to(tl.int64), mask=chosen)
    for member in tl.static_range(GROUP):
        head = kv_head * GROUP + member
        query = tl.load(queries + head * stride + channel, mask=channel < DIM, other=0.0).to(tl.float32)
        tl.store(part + head * NUM + place, query, mask=chosen)
        total, covered = tl.sum(tl.abs(query), 0), tl.sum(tl.where(chosen, tl.abs(query), 0.0), 0)
        share = tl.where(total > 0.0, covered / tl.where(total > 0.0, total, 1.0), 1.0)
        tl.store(factor + head, scale / tl.sqrt(share))


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    types = {"queries": "*bf16", "part": "*fp32", "channels": "*i64", "factor": "*fp32", "stride": "i32",
             "scale": "fp32"}  # fmt: skip
    shape = {"NUM": 32, "GROUP": 4, "DIM": 128, "DIMS": 128, "COMPARED": COMPARED, "num_warps": 4}
    return [(channels_kernel, types, shape), (channels_kernel, types, {**shape, "DIM": 256, "DIMS": 256})]
