"""What PQCache's step asks of codes and tiers: kernels on a GPU, plain torch anywhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Layer
from methods.pqcache import directory as plain
from methods.pqcache.blocks import Policy
from methods.pqcache.codebook import Codebook
from methods.pqcache.directory import Directory, Tiers
from methods.scores import group_sum


def pq_scores(queries: Tensor, centroids: Tensor, codes: Tensor, limit: Tensor, layer: Layer) -> Tensor:
    """Probabilities of tokens j < limit (int64, 0-d) by their codes, summed over the group: float32 [G,n]; -1 beyond.

    queries [H,D]; centroids float32 [G,s,C,D/s]; codes uint8 [G,s,n]. The softmax of each query head runs over these
    tokens in float32.
    """
    if codes.is_cuda:
        from methods.kernels.pq import pq_scores as kernel

        return kernel(queries, centroids, codes, limit, layer.scale, layer.softcap)
    logits = Codebook(centroids, codes).inner_products(queries, codes) * layer.scale
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    beyond = torch.arange(codes.shape[2], device=codes.device) >= limit
    shares = logits.masked_fill_(beyond, -torch.inf).softmax(-1)
    return group_sum(shares, layer.num_kv_heads).masked_fill_(beyond, -1.0)


def encode_one(keys: Tensor, centroids: Tensor, codes: Tensor, at: Tensor) -> None:
    """Write the codes of one token's keys [G,D] into codes uint8 [G,s,n] at column `at` (int64, 0-d)."""
    if codes.is_cuda:
        from methods.kernels.pq import encode_one as kernel

        return kernel(keys, centroids, codes, at)
    codes.index_copy_(2, at[None], Codebook(centroids, codes).encode(keys[:, None]))
    return None


def offer(held: Directory, blocks: Tensor, policy: Policy) -> Tensor:
    """`methods.pqcache.directory.offer`."""
    if blocks.is_cuda:
        from methods.kernels.cache import offer as kernel

        return kernel(*held.tensors(), blocks, policy)
    return plain.offer(held, blocks, policy)


def gather_rows(rows: Tensor, table: Tensor, tiers: Tiers, out: tuple[Tensor, Tensor]) -> Tensor:
    """`methods.pqcache.directory.gather_rows`."""
    if rows.is_cuda:
        from methods.kernels.cache import gather_rows as kernel

        return kernel(rows, table, tiers.block, *tiers.cache, *tiers.host, *out)
    return plain.gather_rows(rows, table, tiers, out)


def refill(blocks: Tensor, slots: Tensor, num_rows: Tensor, tiers: Tiers) -> None:
    """`methods.pqcache.directory.refill`."""
    if blocks.is_cuda:
        from methods.kernels.cache import refill as kernel

        return kernel(blocks, slots, num_rows, tiers.block, *tiers.host, *tiers.cache)
    return plain.refill(blocks, slots, num_rows, tiers)


def spill(row: Tensor, new: tuple[Tensor, Tensor], table: Tensor, tiers: Tiers) -> None:
    """`methods.pqcache.directory.spill`."""
    if row.is_cuda:
        from methods.kernels.cache import spill as kernel

        return kernel(*new, row, table, tiers.block, *tiers.host, *tiers.cache)
    return plain.spill(row, new, table, tiers)
