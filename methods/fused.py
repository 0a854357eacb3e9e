"""Arithmetic of a decode step that a kernel does in one pass on a GPU, and plain torch anywhere else.

Every function has fixed shapes and never waits for the device, so that a CUDA graph can capture it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Budget, Layer
from methods.scores import attention, group_sum, log_sum_exp, top_k
from methods.scores import logits as plain_logits
from methods.store import pick


def attend(
    queries: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, length: Tensor | None, layer: Layer
) -> tuple[Tensor, Tensor]:
    """Exact attention of queries [H,D] on rows [G,r] (-1 pads) of k, v [G,C,D]; rows None: on the first `length`,
    or all.

    Returns the output [H,D] in v's dtype and the softmax's log-sum-exp, float32 [H]. length: int64, 0-d.
    """
    if k.is_cuda:
        from methods.kernels.attend import attend as kernel

        return kernel(queries, k, v, rows, length, layer.scale, layer.softcap, layer.sinks)
    if rows is None:
        hidden = (torch.arange(k.shape[1], device=k.device) >= (k.shape[1] if length is None else length)).expand(
            k.shape[:2]
        )
    else:
        hidden, k, v = rows < 0, pick(k, rows.clamp(min=0)), pick(v, rows.clamp(min=0))
    score = plain_logits(queries[:, None], k, layer)
    score.masked_fill_(hidden.repeat_interleave(layer.group, 0)[:, None], -torch.inf)
    return weighted(attention(score, layer)[:, 0], v), log_sum_exp(score, layer)[:, 0]


def weighted(weights: Tensor, v: Tensor) -> Tensor:
    """Sum of values [G,r,D] with weights [H,r]: [H,D] in the values' dtype."""
    grouped = weights.to(v.dtype).unflatten(0, (v.shape[0], -1))
    out: Tensor = (grouped @ v).flatten(0, 1)
    return out


def logits(queries: Tensor, keys: Tensor, layer: Layer) -> Tensor:
    """Attention logits of queries [H,D] on keys [G,C,D], scaled and soft-capped, float32 [H,C]; keys are read once."""
    if keys.is_cuda:
        from methods.kernels.logits import logits as kernel

        return kernel(queries, keys, layer.scale, layer.softcap)
    return plain_logits(queries[:, None], keys, layer)[:, 0]


def channel_logits(part: Tensor, channels: Tensor, keys: Tensor, factor: Tensor, layer: Layer) -> Tensor:
    """factor[h] * sum over i of part[h,i] * keys[g,channels[g,i]], soft-capped: float32 [H,C].

    part float32 [H,r]; channels [G,r]; keys channel-major [G,D,C]; factor float32 [H].
    """
    if keys.is_cuda:
        from methods.kernels.logits import channel_logits as kernel

        return kernel(part, channels, keys, factor, layer.softcap)
    chosen = pick(keys, channels).float()
    out = (part.unflatten(0, (keys.shape[0], -1)) @ chosen).flatten(0, 1) * factor[:, None]
    return out if layer.softcap is None else layer.softcap * torch.tanh(out / layer.softcap)


def largest_channels(queries: Tensor, num: int, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """(part float32 [H,r], channels [G,r], factor float32 [H]) of queries [H,D]: the r = `num` largest channels of the
    group's sum of |q|, in order, each query's part in them, and scale / sqrt(|part|_1 / |q|_1)."""
    if queries.is_cuda:
        from methods.kernels.channels import largest_channels as kernel

        return kernel(queries, layer.num_kv_heads, num, layer.scale)
    wide, size = queries.float(), queries.float().abs()
    channels = top_k(group_sum(size, layer.num_kv_heads), num)
    each = channels.repeat_interleave(layer.group, 0)
    total = size.sum(1)
    coverage = torch.where(total > 0, size.gather(1, each).sum(1) / total, 1.0)  # a query of zeros has no scale
    return wide.gather(1, each), channels, layer.scale / coverage.sqrt()


def middle_shares(score: Tensor, now: Tensor, budget: Budget, layer: Layer, learned: bool = True) -> Tensor:
    """Softmax of logits [H,C] over the tokens up to `now` (0-d), summed over each group: float32 [G,C]; -1 for tokens
    that are no candidates. learned: whether the model's sinks take their part of it."""
    if score.is_cuda:
        from methods.kernels.shares import middle_shares as kernel

        return kernel(score, now, budget.sink, budget.local, layer.num_kv_heads, layer.sinks if learned else None)
    place = torch.arange(score.shape[1], device=score.device)
    seen = score.masked_fill(place > now, -torch.inf)
    shares = attention(seen[:, None], layer)[:, 0] if learned else seen.softmax(-1)
    candidates = (place >= budget.sink) & (place < now - budget.local)
    return group_sum(shares, layer.num_kv_heads).masked_fill(~candidates, -1.0)


def put_rows(
    k: Tensor,
    v: Tensor,
    new_k: Tensor,
    new_v: Tensor,
    place: Tensor,
    positions: Tensor | None = None,
    now: Tensor | None = None,
) -> None:
    """Write one row of K and of V for each KV head: new_k, new_v [G,D] at `place` (int64, [G] or 0-d) of k, v [G,C,D].

    positions [G,C]: note there, too, that it is the token at position `now` (0-d).
    """
    if k.is_cuda:
        from methods.kernels.rows import put_rows as kernel

        return kernel(k, v, new_k, new_v, place, positions, now)
    row = place.expand(k.shape[0])[:, None]
    for buffer, new in ((k, new_k), (v, new_v)):
        buffer.scatter_(1, row[..., None].expand(-1, -1, new.shape[1]), new[:, None])
    if positions is not None:
        assert now is not None
        positions.scatter_(1, row, now.expand_as(row))
    return None
