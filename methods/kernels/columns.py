"""How much attention each key received from a chunk of prompt queries: exact column sums, without an n x n matrix.

H query heads, G KV heads, c queries of a chunk, n keys, D head dimension. Key-major: a program owns a block of keys of
one query head and walks over the queries that see it, so nothing is added by two programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.logits import capped, logits_reference

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def block_sums(
    k: tl.tensor,
    column: tl.tensor,
    queries: tl.tensor,
    lse: tl.tensor,
    block: tl.tensor,
    start: tl.tensor,
    num_queries: tl.tensor,
    window: tl.tensor,
    query_stride: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> tl.tensor:
    """What the queries of one block give to each key of k: float32 [BLOCK_KEYS]."""
    i = block + tl.arange(0, BLOCK_QUERIES)
    dim = tl.arange(0, DIMS)
    there = i < num_queries
    place = queries + i[:, None].to(tl.int64) * query_stride + dim[None, :]
    q = tl.load(place, mask=there[:, None] & (dim < DIM)[None, :], other=0.0)
    # A query that is not there divides by infinity: no other mask is needed for it.
    mass = tl.load(lse + i, mask=there, other=float("inf")) * LOG2E
    logit = tl.dot(k, tl.trans(q), input_precision="ieee")
    if SOFTCAP is None:
        p = tl.exp2(logit * (scale * LOG2E) - mass[None, :])
    else:
        p = tl.exp2(capped(logit * scale, SOFTCAP) * LOG2E - mass[None, :])
    if MASKED:
        distance = (start + i)[None, :] - column[:, None]
        p = tl.where((distance >= 0) & (distance < window), p, 0.0)
    return tl.sum(p, 1)


@triton.jit
def added(total: tl.tensor, lost: tl.tensor, more: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Kahan's sum: `lost` carries what float32 rounded away (Communications of the ACM 8(1), 1965)."""
    more -= lost
    new = total + more
    return new, (new - total) - more


@triton.jit(do_not_specialize=["start", "num_queries", "num_keys", "window"])
def key_block(
    queries: tl.tensor,
    keys: tl.tensor,
    lse: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    start: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    window: tl.tensor,
    query_head_stride: tl.tensor,
    query_stride: tl.tensor,
    key_head_stride: tl.tensor,
    key_stride: tl.tensor,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """One program: BLOCK_KEYS keys of one query head, all queries with 0 <= i - j < window for some of them."""
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_KEYS
    column, dim = first + tl.arange(0, BLOCK_KEYS), tl.arange(0, DIMS)
    place = keys + head // GROUP * key_head_stride + column[:, None].to(tl.int64) * key_stride + dim[None, :]
    k = tl.load(place, mask=(column < num_keys)[:, None] & (dim < DIM)[None, :], other=0.0)
    queries += head * query_head_stride
    lse += head * num_queries
    # Queries of the chunk in four marks, all but the last at whole blocks: those that see some of these keys begin at
    # `begin` and stop before `stop`; between `inner` and `outer` they see all of them and need no mask.
    last = first + BLOCK_KEYS - 1
    begin = tl.maximum(first - start, 0) // BLOCK_QUERIES * BLOCK_QUERIES
    stop = tl.minimum(tl.maximum(last + window - start, 0), num_queries)
    inner = tl.minimum(tl.cdiv(tl.maximum(last - start, 0), BLOCK_QUERIES) * BLOCK_QUERIES, stop)
    outer = tl.maximum(first + window - start, 0) // BLOCK_QUERIES * BLOCK_QUERIES
    outer = tl.maximum(tl.minimum(outer, stop), inner)
    total, lost = tl.zeros([BLOCK_KEYS], tl.float32), tl.zeros([BLOCK_KEYS], tl.float32)
    for block in range(begin, inner, BLOCK_QUERIES):
        more = block_sums(k, column, queries, lse, block, start, num_queries, window, query_stride, scale, True,
                          DIM, DIMS, BLOCK_QUERIES, SOFTCAP)  # fmt: skip
        total, lost = added(total, lost, more)
    for block in range(inner, outer, BLOCK_QUERIES):
        more = block_sums(k, column, queries, lse, block, start, num_queries, window, query_stride, scale, False,
                          DIM, DIMS, BLOCK_QUERIES, SOFTCAP)  # fmt: skip
        total, lost = added(total, lost, more)
    for block in range(outer, stop, BLOCK_QUERIES):
        more = block_sums(k, column, queries, lse, block, start, num_queries, window, query_stride, scale, True,
                          DIM, DIMS, BLOCK_QUERIES, SOFTCAP)  # fmt: skip
        total, lost = added(total, lost, more)
    tl.store(out + head * num_keys + column, total, mask=column < num_keys)


def column_tiles(dim: int, size: int, keys: int | None = None, queries: int | None = None) -> dict[str, int]:
    """Constants of `key_block` for queries and keys of `size` bytes an element; keys, queries: other blocks.

    Two programs fit a multiprocessor of 64 k registers: the exponentials of one hide behind the products of the other.
    float32 has no exact product on tensor cores and takes smaller blocks.
    """
    dims, half = triton.next_power_of_2(dim), size == 2
    return {"DIM": dim, "DIMS": dims, "BLOCK_KEYS": keys or (128 if half and dims <= 128 else 64),
            "BLOCK_QUERIES": queries or (64 if half else 32), "num_warps": 8,
            "num_stages": 3 if dims <= 128 else 2}  # fmt: skip


def column_sums(
    queries: Tensor,
    keys: Tensor,
    lse: Tensor,
    start: int,
    window: int | None,
    scale: float,
    softcap: float | None,
    block_keys: int | None = None,
    block_queries: int | None = None,
) -> Tensor:
    """Sum over the chunk's queries i of exp(logit_ij - lse_i) on keys j <= i, and i - j < window: float32 [H,n].

    queries [H,c,D] at positions start.., keys [G,n,D] of the same dtype, lse float32 [H,c] (natural). Products and
    exponentials are float32; a block's queries are summed in float32, blocks with Kahan's carry: the error does not
    grow with the number of queries.
    """
    (num_heads, num_queries, dim), (num_kv_heads, num_keys, _) = queries.shape, keys.shape
    assert queries.dtype == keys.dtype and queries.stride(2) == keys.stride(2) == 1
    assert lse.dtype == torch.float32
    out = torch.empty(num_heads, num_keys, dtype=torch.float32, device=keys.device)
    if num_keys == 0:
        return out
    tiles = column_tiles(dim, keys.element_size(), block_keys, block_queries)
    with torch.cuda.device_of(keys):
        key_block[triton.cdiv(num_keys, tiles["BLOCK_KEYS"]), num_heads](
            queries, keys, lse.contiguous(), out, scale, start, num_queries, num_keys,
            start + num_queries if window is None else window,
            queries.stride(0), queries.stride(1), keys.stride(0), keys.stride(1),
            GROUP=num_heads // num_kv_heads, SOFTCAP=softcap, **tiles,
        )  # fmt: skip
    return out


def column_sums_reference(
    queries: Tensor, keys: Tensor, lse: Tensor, start: int, window: int | None, scale: float, softcap: float | None
) -> Tensor:
    """The same in PyTorch, with all probabilities of the chunk at once: float32 [H,c,n] in memory."""
    (num_heads, num_queries, _), (num_kv_heads, num_keys, _) = queries.shape, keys.shape
    position = torch.arange(start, start + num_queries, device=keys.device)
    distance = position[:, None] - torch.arange(num_keys, device=keys.device)
    hidden = (distance < 0) | (distance >= (start + num_queries if window is None else window))
    rows = queries.unflatten(0, (num_kv_heads, -1)).flatten(1, 2).flatten(0, 1)
    logit = logits_reference(rows, keys, scale, softcap).view(num_heads, num_queries, num_keys)
    return (logit - lse[..., None]).exp_().masked_fill_(hidden, 0.0).sum(1)


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    numbers = ("start", "num_queries", "num_keys", "window", "query_head_stride", "query_stride", "key_head_stride",
               "key_stride")  # fmt: skip
    half = {"queries": "*bf16", "keys": "*bf16", "lse": "*fp32", "out": "*fp32", "scale": "fp32",
            **dict.fromkeys(numbers, "i32")}  # fmt: skip
    single = {**half, "queries": "*fp32", "keys": "*fp32"}
    return [
        (key_block, half, {"GROUP": 4, "SOFTCAP": None, **column_tiles(128, 2)}),
        (key_block, single, {"GROUP": 4, "SOFTCAP": None, **column_tiles(128, 4)}),
    ]
