"""Attention logits of one query per head on all keys: from whole keys, or from a few channels of a channel-major copy.

H query heads, G KV heads, group = H / G query heads that share a KV head, C rows, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_ROWS = 16  # a tensor core multiplies no fewer rows: smaller groups are padded


@triton.jit
def capped(logit: tl.tensor, SOFTCAP: tl.constexpr) -> tl.tensor:
    """softcap * tanh(logit / softcap); None leaves the logit as it is."""
    if SOFTCAP is not None:
        logit = SOFTCAP * (2.0 * tl.sigmoid(logit * (2.0 / SOFTCAP)) - 1.0)
    return logit


@triton.jit
def whole_keys(
    queries: tl.tensor,
    keys: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    num_rows: tl.tensor,
    query_stride: tl.tensor,
    head_stride: tl.tensor,
    row_stride: tl.tensor,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """One program: one block of rows of one KV head, for all query heads that share it."""
    kv_head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    head, dim = tl.arange(0, HEADS), tl.arange(0, DIMS)
    mine = head < GROUP
    heads = kv_head * GROUP + head
    q = tl.load(
        queries + heads[:, None] * query_stride + dim[None, :], mask=mine[:, None] & (dim < DIM)[None, :], other=0.0
    )
    place = keys + kv_head * head_stride + row[:, None] * row_stride + dim[None, :]
    k = tl.load(place, mask=(row < num_rows)[:, None] & (dim < DIM)[None, :], other=0.0)
    logit = capped(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, SOFTCAP)
    tl.store(out + heads[:, None] * num_rows + row[None, :], logit, mask=mine[:, None] & (row < num_rows)[None, :])


def whole_tiles(dim: int, size: int, block: int | None = None) -> dict[str, int]:
    """Constants of `whole_keys` for keys of `size` bytes an element: 32 KiB of keys a program, or the block given."""
    dims = triton.next_power_of_2(dim)
    return {"DIM": dim, "DIMS": dims, "BLOCK": block or min(128, 32768 // (dims * size)), "num_warps": 4}


def logits(queries: Tensor, keys: Tensor, scale: float, softcap: float | None, block: int | None = None) -> Tensor:
    """scale * q·k, soft-capped, of queries [H,D] on keys [G,C,D] of the same dtype: float32 [H,C].

    Keys are read once, in their dtype; products are summed in float32.
    """
    (num_heads, dim), (num_kv_heads, num_rows, _) = queries.shape, keys.shape
    assert queries.dtype == keys.dtype and queries.stride(1) == keys.stride(2) == 1
    out = torch.empty(num_heads, num_rows, dtype=torch.float32, device=keys.device)
    if num_rows == 0:
        return out
    group, tiles = num_heads // num_kv_heads, whole_tiles(dim, keys.element_size(), block)
    with torch.cuda.device_of(keys):
        whole_keys[triton.cdiv(num_rows, tiles["BLOCK"]), num_kv_heads](
            queries, keys, out, scale, num_rows, queries.stride(0), keys.stride(0), keys.stride(1),
            GROUP=group, HEADS=max(MIN_ROWS, triton.next_power_of_2(group)), SOFTCAP=softcap, **tiles,
        )  # fmt: skip
    return out


def logits_reference(queries: Tensor, keys: Tensor, scale: float, softcap: float | None) -> Tensor:
    """The same in PyTorch."""
    return capped_reference((grouped(queries, keys) @ keys.float().mT).flatten(0, 1) * scale, softcap)


def grouped(per_head: Tensor, per_kv_head: Tensor) -> Tensor:
    """Rows of query heads beside their KV head, as float32: [H,..] -> [G,group,..]."""
    out: Tensor = per_head.float().unflatten(0, (per_kv_head.shape[0], -1))
    return out


def capped_reference(logit: Tensor, softcap: float | None) -> Tensor:
    return logit if softcap is None else softcap * torch.tanh(logit / softcap)


@triton.jit
def chosen_channels(
    part: tl.tensor,
    channels: tl.tensor,
    keys: tl.tensor,
    factor: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    head_stride: tl.tensor,
    channel_stride: tl.tensor,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """One program: one block of rows of one KV head; STEP channels are asked for at once, each serves the whole group.

    Products and sums in float32: a group does not fill a tensor core, and the parts keep their digits.
    """
    kv_head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    head = tl.arange(0, HEADS)
    mine, heads = head < GROUP, kv_head * GROUP + head
    total = tl.zeros([HEADS, BLOCK], tl.float32)
    for first in range(0, RANK, STEP):
        i = first + tl.arange(0, STEP)
        channel = tl.load(channels + kv_head * RANK + i, mask=i < RANK, other=0)
        place = keys + kv_head * head_stride + channel[:, None] * channel_stride + row[None, :]
        k = tl.load(place, mask=(i < RANK)[:, None] & (row < num_rows)[None, :], other=0.0).to(tl.float32)
        q = tl.load(part + heads[:, None] * RANK + i[None, :], mask=mine[:, None] & (i < RANK)[None, :], other=0.0)
        total += tl.sum(q[:, :, None] * k[None, :, :], 1)
    logit = capped(total * tl.load(factor + heads, mask=mine, other=0.0)[:, None], SOFTCAP)
    tl.store(out + heads[:, None] * num_rows + row[None, :], logit, mask=mine[:, None] & (row < num_rows)[None, :])


def channel_tiles(group: int, block: int | None = None) -> dict[str, int]:
    """Constants of `chosen_channels`: as many rows as the registers of 4 warps hold for a group, or the block given."""
    heads = triton.next_power_of_2(group)
    return {"GROUP": group, "HEADS": heads, "BLOCK": block or (1024 if heads <= 4 else 512), "STEP": 8, "num_warps": 4}


def channel_logits(
    part: Tensor, channels: Tensor, keys_t: Tensor, factor: Tensor, softcap: float | None, block: int | None = None
) -> Tensor:
    """Logits from r channels of each KV head (SparQ, arXiv 2312.04985, section 3): float32 [H,C].

    part float32 [H,r]: the queries' values at channels int64 [G,r]; keys_t [G,D,C]: a channel-major copy of the keys,
    of which r rows a KV head are read; factor float32 [H]: what each head's sum is multiplied by before the soft cap.
    """
    (num_heads, rank), (num_kv_heads, _, num_rows) = part.shape, keys_t.shape
    part, channels, factor = part.contiguous(), channels.contiguous(), factor.contiguous()
    assert part.dtype == factor.dtype == torch.float32 and keys_t.stride(2) == 1
    out = torch.empty(num_heads, num_rows, dtype=torch.float32, device=keys_t.device)
    if num_rows == 0:
        return out
    tiles = channel_tiles(num_heads // num_kv_heads, block)
    with torch.cuda.device_of(keys_t):
        chosen_channels[triton.cdiv(num_rows, tiles["BLOCK"]), num_kv_heads](
            part, channels, keys_t, factor, out, num_rows, keys_t.stride(0), keys_t.stride(1),
            RANK=rank, SOFTCAP=softcap, **tiles,
        )  # fmt: skip
    return out


def channel_logits_reference(
    part: Tensor, channels: Tensor, keys_t: Tensor, factor: Tensor, softcap: float | None
) -> Tensor:
    """The same in PyTorch."""
    keys = keys_t.gather(1, channels[:, :, None].expand(-1, -1, keys_t.shape[2])).float()
    return capped_reference((grouped(part, keys) @ keys).flatten(0, 1) * factor[:, None], softcap)


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    whole = {"queries": "*bf16", "keys": "*bf16", "out": "*fp32", "scale": "fp32", "num_rows": "i32",
             "query_stride": "i32", "head_stride": "i32", "row_stride": "i32"}  # fmt: skip
    single = {**whole, "queries": "*fp32", "keys": "*fp32"}
    chosen = {"part": "*fp32", "channels": "*i64", "keys": "*bf16", "factor": "*fp32", "out": "*fp32",
              "num_rows": "i32", "head_stride": "i32", "channel_stride": "i32"}  # fmt: skip
    shape = {"GROUP": 4, "HEADS": MIN_ROWS, "SOFTCAP": None}
    return [
        (whole_keys, whole, {**shape, **whole_tiles(128, 2)}),
        (whole_keys, single, {**shape, **whole_tiles(128, 4)}),
        (chosen_channels, chosen, {**channel_tiles(4), "RANK": 32, "SOFTCAP": None}),
    ]
