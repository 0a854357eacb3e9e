"""PQCache's scores (arXiv 2407.12820, section 3.2) and codes on the device, without a look-up per query head in memory.

H query heads, G KV heads, s sub-spaces, C centroids each, n tokens. Every `NAME` is a Triton kernel and has a
`NAME_reference` in PyTorch. Launch grids depend on shapes alone and the host never waits: a CUDA graph can hold them.

A score takes three launches. Tables: the inner products of each query with each centroid. Peaks: maximum and sum of
exponentials of each stretch of tokens. Scores: every program merges the stretches' sums, looks the same logits up once
more, and writes the group's sum of probabilities. So codes are read twice, as bytes, and no tensor [H,n] is written.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.logits import capped, capped_reference

TILE = 4096  # logits that a program holds at once: 32 float32 registers for each of its 128 threads


def pq_scores(
    queries: Tensor,
    centroids: Tensor,
    codes: Tensor,
    limit: Tensor,
    scale: float,
    softcap: float | None,
    tile: int = TILE,
) -> Tensor:
    """Probabilities of tokens j < limit by their codes, summed over the group: float32 [G,n]; -1 for j >= limit.

    queries [H,D]; centroids float32 [G,s,C,D/s]; codes uint8 [G,s,n], of which only the first `limit` (int64, 0-d, on
    the device) are read. The softmax of each query head runs over these in float32. No score is below 0, so that a
    top-k takes none of the tokens beyond the limit as long as there are k others. tile: logits a program holds, a
    power of two.
    """
    num_kv_heads, num_sub, num_centroids, dim = centroids.shape
    num_tokens, group = codes.shape[2], queries.shape[0] // num_kv_heads
    padded = triton.next_power_of_2(group)
    block = max(1, min(tile // padded, triton.next_power_of_2(num_tokens)))
    splits = triton.cdiv(num_tokens, block)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=codes.device)

    tables = empty(num_kv_heads, num_sub, num_centroids, padded)
    peaks, sums = empty(num_kv_heads, splits, padded), empty(num_kv_heads, splits, padded)
    scores = empty(num_kv_heads, num_tokens)
    tables_kernel[(num_kv_heads * num_sub,)](
        queries, centroids.contiguous(), tables, scale, queries.stride(0), group, padded, num_sub, num_centroids, dim,
        triton.next_power_of_2(num_centroids), triton.next_power_of_2(dim), num_warps=8,
    )  # fmt: skip
    grid = (splits, num_kv_heads)
    strides = codes.stride(0), codes.stride(1)
    peaks_kernel[grid](
        tables, codes, limit, peaks, sums, *strides, num_tokens, splits, padded, num_sub, num_centroids, block, softcap
    )
    scores_kernel[grid](
        tables, codes, limit, peaks, sums, scores, *strides, num_tokens, splits, group, padded, num_sub, num_centroids,
        block, triton.next_power_of_2(splits), softcap,
    )  # fmt: skip
    return scores


def pq_scores_reference(
    queries: Tensor,
    centroids: Tensor,
    codes: Tensor,
    limit: Tensor,
    scale: float,
    softcap: float | None,
    tile: int = TILE,
) -> Tensor:
    """`pq_scores` with logits float32 [H,n] in memory; `tile` changes nothing."""
    num_kv_heads, num_sub, _, dim = centroids.shape
    parts = queries.float().view(num_kv_heads, -1, num_sub, dim)
    tables = torch.einsum("ghsd,gscd->ghsc", parts, centroids) * scale
    index = codes.long()[:, None].expand(-1, tables.shape[1], -1, -1)
    logits = capped_reference(tables.gather(3, index).sum(2), softcap)
    beyond = torch.arange(codes.shape[2], device=codes.device) >= limit
    shares = logits.masked_fill(beyond, -torch.inf).softmax(-1)
    return shares.sum(1).masked_fill(beyond, -1.0)


def encode_one(keys: Tensor, centroids: Tensor, codes: Tensor, at: Tensor) -> None:
    """Write the codes of one token's keys [G,D] into codes uint8 [G,s,n] at column `at` (int64, 0-d, on the device).

    The nearest centroid (L2) of each sub-space; equal distances: the lower code.
    """
    num_kv_heads, num_sub, num_centroids, dim = centroids.shape
    encode_kernel[(num_kv_heads, num_sub)](
        keys, centroids.contiguous(), codes, at, keys.stride(0), codes.stride(0), codes.stride(1), num_sub,
        num_centroids, dim, triton.next_power_of_2(num_centroids), triton.next_power_of_2(dim), num_warps=8,
    )  # fmt: skip


def encode_one_reference(keys: Tensor, centroids: Tensor, codes: Tensor, at: Tensor) -> None:
    """`encode_one` in PyTorch, without a wait of the host either."""
    parts = keys.float().view(*centroids.shape[:2], -1, 1)
    distances = (centroids * centroids).sum(-1) - 2 * (centroids @ parts)[..., 0]
    codes.index_copy_(2, at.view(1), distances.argmin(-1, keepdim=True).to(torch.uint8))


@triton.jit
def tables_kernel(
    queries: tl.tensor,
    centroids: tl.tensor,
    tables: tl.tensor,
    scale: tl.tensor,
    stride_head: tl.tensor,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    NUM_SUB: tl.constexpr,
    NUM_CENTROIDS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_CENTROIDS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
) -> None:
    """tables[g,s,c,r] = scale * (query head r of the group) . centroid; 0 for r >= GROUP. A program: one (g,s)."""
    part = tl.program_id(0)
    head, sub = part // NUM_SUB, part % NUM_SUB
    code = tl.arange(0, PADDED_CENTROIDS)
    channel = tl.arange(0, PADDED_DIM)
    real = (code < NUM_CENTROIDS)[:, None] & (channel < DIM)[None, :]
    row = part * NUM_CENTROIDS + code
    centroid = tl.load(centroids + row[:, None] * DIM + channel[None, :], mask=real, other=0.0)
    for member in tl.static_range(PADDED):
        here = queries + (head * GROUP + member) * stride_head + sub * DIM + channel
        query = tl.load(here, mask=(channel < DIM) & (member < GROUP), other=0.0).to(tl.float32)
        product = tl.sum(centroid * query[None, :], 1) * scale
        tl.store(tables + row * PADDED + member, product, mask=code < NUM_CENTROIDS)


@triton.jit
def looked_up(
    tables: tl.tensor,
    codes: tl.tensor,
    head: tl.tensor,
    token: tl.tensor,
    end: tl.tensor,
    num_tokens: tl.tensor,
    stride_head: tl.tensor,
    stride_sub: tl.tensor,
    PADDED: tl.constexpr,
    NUM_SUB: tl.constexpr,
    NUM_CENTROIDS: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> tl.tensor:
    """Logits [tokens, PADDED] of one KV head's group; -inf from `end` on.

    A token's entries for the whole group lie side by side in the table: one wide load. Codes beyond the end are loaded
    too, since only a mask by num_tokens lets several be loaded at once, but not used.
    """
    member = tl.arange(0, PADDED)
    seen = token < end
    logit = tl.zeros([token.shape[0], PADDED], tl.float32)
    for sub in tl.static_range(NUM_SUB):
        code = tl.load(codes + head * stride_head + sub * stride_sub + token, mask=token < num_tokens, other=0)
        row = (head * NUM_SUB + sub) * NUM_CENTROIDS + tl.where(seen, code.to(tl.int32), 0)
        logit += tl.load(tables + row[:, None] * PADDED + member[None, :])
    return tl.where(seen[:, None], capped(logit, SOFTCAP), float("-inf"))


@triton.jit
def peaks_kernel(
    tables: tl.tensor,
    codes: tl.tensor,
    limit: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    stride_head: tl.tensor,
    stride_sub: tl.tensor,
    num_tokens: tl.tensor,
    splits: tl.tensor,
    PADDED: tl.constexpr,
    NUM_SUB: tl.constexpr,
    NUM_CENTROIDS: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """Of each stretch of BLOCK tokens: the highest logit of each query head and the sum of exponentials below it."""
    split, head = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, PADDED)
    out = (head * splits + split) * PADDED + member
    end = tl.load(limit).to(tl.int32)
    if split * BLOCK >= end:
        tl.store(peaks + out, tl.full([PADDED], float("-inf"), tl.float32))
        tl.store(sums + out, tl.zeros([PADDED], tl.float32))
    else:
        token = split * BLOCK + tl.arange(0, BLOCK)
        logit = looked_up(
            tables,
            codes,
            head,
            token,
            end,
            num_tokens,
            stride_head,
            stride_sub,
            PADDED,
            NUM_SUB,
            NUM_CENTROIDS,
            SOFTCAP,
        )
        peak = tl.max(logit, 0)
        tl.store(peaks + out, peak)
        tl.store(sums + out, tl.sum(tl.exp(logit - peak[None, :]), 0))


@triton.jit
def scores_kernel(
    tables: tl.tensor,
    codes: tl.tensor,
    limit: tl.tensor,
    peaks: tl.tensor,
    sums: tl.tensor,
    scores: tl.tensor,
    stride_head: tl.tensor,
    stride_sub: tl.tensor,
    num_tokens: tl.tensor,
    splits: tl.tensor,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    NUM_SUB: tl.constexpr,
    NUM_CENTROIDS: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> None:
    """Probabilities of a stretch, summed over the group; -1 beyond the limit."""
    split, head = tl.program_id(0), tl.program_id(1)
    token = split * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    end = tl.load(limit).to(tl.int32)
    here = scores + head * num_tokens + token
    if split * BLOCK >= end:
        tl.store(here, tl.full([BLOCK], -1.0, tl.float32), mask=inside)
    else:
        member = tl.arange(0, PADDED)
        each = tl.arange(0, PADDED_SPLITS)[:, None]
        at = (head * splits + each) * PADDED + member[None, :]
        highs = tl.load(peaks + at, mask=each < splits, other=float("-inf"))
        peak = tl.max(highs, 0)
        total = tl.sum(tl.load(sums + at, mask=each < splits, other=0.0) * tl.exp(highs - peak[None, :]), 0)
        share = tl.where(member < GROUP, 1.0 / total, 0.0)
        logit = looked_up(
            tables,
            codes,
            head,
            token,
            end,
            num_tokens,
            stride_head,
            stride_sub,
            PADDED,
            NUM_SUB,
            NUM_CENTROIDS,
            SOFTCAP,
        )
        score = tl.sum(tl.exp(logit - peak[None, :]) * share[None, :], 1)
        tl.store(here, tl.where(token < end, score, -1.0), mask=inside)


@triton.jit
def encode_kernel(
    keys: tl.tensor,
    centroids: tl.tensor,
    codes: tl.tensor,
    at: tl.tensor,
    stride_key: tl.tensor,
    stride_head: tl.tensor,
    stride_sub: tl.tensor,
    NUM_SUB: tl.constexpr,
    NUM_CENTROIDS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_CENTROIDS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
) -> None:
    """A program: one KV head and sub-space of the token."""
    head, sub = tl.program_id(0), tl.program_id(1)
    code = tl.arange(0, PADDED_CENTROIDS)
    channel = tl.arange(0, PADDED_DIM)
    real = (code < NUM_CENTROIDS)[:, None] & (channel < DIM)[None, :]
    row = (head * NUM_SUB + sub) * NUM_CENTROIDS + code
    centroid = tl.load(centroids + row[:, None] * DIM + channel[None, :], mask=real, other=0.0)
    key = tl.load(keys + head * stride_key + sub * DIM + channel, mask=channel < DIM, other=0.0).to(tl.float32)
    distance = tl.sum(centroid * (centroid - 2 * key[None, :]), 1)
    nearest = tl.argmin(tl.where(code < NUM_CENTROIDS, distance, float("inf")), 0)
    tl.store(codes + head * stride_head + sub * stride_sub + tl.load(at), nearest.to(tl.uint8))


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    dims = {"NUM_SUB": 2, "NUM_CENTROIDS": 64, "DIM": 64, "PADDED_CENTROIDS": 64, "PADDED_DIM": 64, "num_warps": 8}
    shape = {"PADDED": 4, "NUM_SUB": 2, "NUM_CENTROIDS": 64, "BLOCK": 1024, "num_warps": 4}
    read = {"tables": "*fp32", "codes": "*u8", "limit": "*i64", "peaks": "*fp32", "sums": "*fp32"}
    strides = {"stride_head": "i32", "stride_sub": "i32"}
    lengths = {**strides, "num_tokens": "i32", "splits": "i32"}
    query = {"queries": "*bf16", "centroids": "*fp32", "tables": "*fp32", "scale": "fp32", "stride_head": "i32"}
    key = {"keys": "*bf16", "centroids": "*fp32", "codes": "*u8", "at": "*i64", "stride_key": "i32"}
    return [
        (tables_kernel, query, {"GROUP": 4, "PADDED": 4, **dims}),
        (peaks_kernel, {**read, **lengths}, {**shape, "SOFTCAP": None}),
        (peaks_kernel, {**read, **lengths}, {**shape, "SOFTCAP": 30.0}),
        (
            scores_kernel,
            {**read, "scores": "*fp32", **lengths},
            {**shape, "GROUP": 4, "PADDED_SPLITS": 256, "SOFTCAP": None},
        ),
        (encode_kernel, {**key, **strides}, dims),
    ]
