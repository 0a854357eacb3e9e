"""Attention arithmetic: dense causal attention of a prompt, and exact attention on the tokens that a step reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from methods.base import Layer, Rest, Step, packed
from methods.scores import flash_takes, merged, row_blocks
from methods.scores import logits as scaled_logits
from methods.store import Part

BACKENDS = ("sdpa", "flash", "eager")


@dataclass(frozen=True)
class Dense:
    """How the layers of a prefill attend. backend: one of BACKENDS; window: sliding window in tokens or None."""

    backend: str
    window: int | None = None
    sinks: Tensor | None = None


def dense(
    layer: Layer, how: Dense, queries: Tensor, keys: Tensor, values: Tensor, start: int, want_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Causal attention of a chunk [H,c,D], the first query at `start`, on all keys so far [G,start+c,D].

    Returns ([H,c,D], natural log-sum-exp [H,c] in float32 if wanted). A soft cap or learned sinks take the eager path,
    as no fused kernel knows both.
    """
    if layer.softcap is not None or how.sinks is not None or how.backend == "eager":
        return eager(layer, how, queries, keys, values, start)
    if how.backend == "flash":
        return flash(layer, how, queries, keys, values)
    if want_lse and fused_lse(how, queries, keys, start):
        return sdpa_with_lse(layer, queries, keys, values)
    y = sdpa(layer, how, queries, keys, values, start)
    return y, log_sum_exp(layer, how, queries, keys, start) if want_lse else None


def hidden(first: int, last: int, start: int, stop: int, window: int | None, device: torch.device) -> Tensor:
    """Mask [stop-start, last-first]: True where query position i must not see key position j."""
    row = torch.arange(start, stop, device=device)[:, None]
    column = torch.arange(first, last, device=device)
    mask = column > row
    return mask if window is None else mask | (row - column >= window)


def first_key(row: int, window: int | None) -> int:
    """The first key that the query at position `row` sees."""
    return 0 if window is None else max(0, row - window + 1)


def eager(layer: Layer, how: Dense, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Block-wise attention with a float32 softmax; knows soft caps, windows and learned sinks."""
    out, lse = [], []
    for a, b in row_blocks(queries.shape[1], keys.shape[1], queries.shape[0]):
        first, last = first_key(start + a, how.window), start + b
        score = scaled_logits(queries[:, a:b], keys[:, first:last], layer)
        score.masked_fill_(hidden(first, last, start + a, last, how.window, score.device), -torch.inf)
        weights, total = normalise(score, how.sinks)
        out.append(weighted(weights, values[:, first:last]))
        lse.append(total)
    return torch.cat(out, 1), torch.cat(lse, 1)


def sdpa(layer: Layer, how: Dense, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """torch's scaled_dot_product_attention, without repeating KV heads."""

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        return scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, is_causal=causal, scale=layer.scale, enable_gqa=True
        )[0]

    num_queries, n = queries.shape[1], keys.shape[1]
    if how.window is None or n <= how.window:
        if start == 0:
            return call(queries, keys, values, None, num_queries > 1)
        if queries.is_cuda:  # the fused kernels know this bias; elsewhere it would be the whole matrix
            return call(queries, keys, values, causal_lower_right(num_queries, n), False)
    out = []
    for a, b in row_blocks(num_queries, n, 1):
        first, last = first_key(start + a, how.window), start + b
        seen = ~hidden(first, last, start + a, last, how.window, queries.device)
        out.append(call(queries[:, a:b], keys[:, first:last], values[:, first:last], seen, False))
    return torch.cat(out, 1)


def fused_lse(how: Dense, queries: Tensor, keys: Tensor, start: int) -> bool:
    """Whether torch's flash kernels take this call: on a GPU half precision, elsewhere the first chunk."""
    if how.window is not None and keys.shape[1] > how.window:
        return False
    if queries.is_cuda:
        return flash_takes(queries)
    return start == 0 and queries.device.type == "cpu"


def sdpa_with_lse(layer: Layer, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What scaled_dot_product_attention computes on its way, and does not return: the log-sum-exp."""
    name = "_scaled_dot_product_flash_attention" + ("" if queries.is_cuda else "_for_cpu")
    fused = getattr(torch.ops.aten, name)
    # The causal mask of the one for CUDA is aligned to the last key, as a chunk needs it.
    y, lse, *_ = fused(queries[None], keys[None], values[None], 0.0, True, scale=layer.scale)
    return y[0], lse[0]


def flash(layer: Layer, how: Dense, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
    """flash-attn; its causal mask is aligned to the last key, as a chunk needs it."""
    from flash_attn import flash_attn_func

    window = (-1, -1) if how.window is None else (how.window - 1, 0)
    q, k, v = (t.transpose(0, 1)[None] for t in (queries, keys, values))
    y, lse, _ = flash_attn_func(
        q, k, v, softmax_scale=layer.scale, causal=True, window_size=window, return_attn_probs=True
    )
    return y[0].transpose(0, 1), lse[0]


def log_sum_exp(layer: Layer, how: Dense, queries: Tensor, keys: Tensor, start: int) -> Tensor:
    """ln of the sum of exp(logits) that each query of a chunk sees, float32 [H,c]: one more pass over the keys."""
    out = []
    for a, b in row_blocks(queries.shape[1], keys.shape[1], queries.shape[0]):
        first, last = first_key(start + a, how.window), start + b
        score = scaled_logits(queries[:, a:b], keys[:, first:last], layer)
        score.masked_fill_(hidden(first, last, start + a, last, how.window, score.device), -torch.inf)
        out.append(score.logsumexp(-1))
    return torch.cat(out, 1)


def normalise(score: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax weights of score [H,m,r] and its log-sum-exp [H,m]; learned sinks [H] take their share of the mass."""
    total = score.logsumexp(-1)
    if sinks is not None:
        total = torch.logaddexp(total, sinks.float()[:, None].expand_as(total))
    return (score - total[..., None]).exp_(), total


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Sum of values [G,r,D] with weights [H,m,r]: [H,m,D] in the values' dtype."""
    grouped = weights.to(values.dtype).reshape(values.shape[0], -1, values.shape[1])
    return (grouped @ values).view(weights.shape[0], -1, values.shape[2])


@dataclass(frozen=True)
class View:
    """How a step sees what is read. distance: as `Method.distance`; local: the window in tokens.

    own: bool [H,r], the columns that each query head attends; None: all.
    """

    distance: str = "true"
    local: int = 0
    own: Tensor | None = None


def union(lists: Tensor, num_kv_heads: int) -> tuple[Tensor, Tensor]:
    """The distinct positions of each group, ascending [G,u] (-1 pads), and which of them each query head listed [H,u].

    lists [H,k], -1 pads. A group with fewer distinct ones than another is padded, as rows of one tensor must be.
    """
    grouped = lists.unflatten(0, (num_kv_heads, -1)).flatten(1).sort(1).values
    twice = torch.nn.functional.pad(grouped[:, 1:] == grouped[:, :-1], (1, 0))
    distinct = packed(grouped.masked_fill(twice, -1))
    num = distinct.shape[1]
    ordered = distinct.masked_fill(distinct < 0, torch.iinfo(torch.long).max)
    column = torch.searchsorted(ordered.repeat_interleave(lists.shape[0] // num_kv_heads, 0), lists.contiguous())
    # Pads are marked on a column of their own, which is cut off again.
    own = torch.zeros(lists.shape[0], num + 1, dtype=torch.bool, device=lists.device)
    own.scatter_(1, column.masked_fill(lists < 0, num), True)
    return distinct, own[:, :num]


def read(
    layer: Layer, step: Step, parts: Sequence[Part], view: View, sinks: Tensor | None, rest: Rest | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact attention of a step on the parts of a store.

    Returns output [H,m,D], positions [G,r] and float32 weights [H,m,r].
    """
    positions = torch.cat([p.positions for p in parts], 1)
    score = part_scores(layer, step, parts, positions, view)
    if not sees_all(step, parts, view):
        unseen = (positions[:, None] < 0) | (positions[:, None] > step.positions[:, None])
        unseen = unseen.repeat_interleave(layer.group, 0)
        score.masked_fill_(unseen if view.own is None else unseen | ~view.own[:, None], -torch.inf)
    if sinks is None and rest is None:
        weights, lse = score.softmax(-1), None
    else:
        weights, lse = normalise(score, sinks)
    shares = weights.split([p.positions.shape[1] for p in parts], 2)
    y = weighted(shares[0], parts[0].v)
    for share, part in zip(shares[1:], parts[1:], strict=True):
        y = y + weighted(share, part.v)
    if rest is not None:
        assert lse is not None
        y = merged(y, lse, rest)
    return y, positions, weights


def sees_all(step: Step, parts: Sequence[Part], view: View) -> bool:
    """Whether every row is seen, as far as the host knows: one new token, which is stored last."""
    return step.queries.shape[1] == 1 and view.own is None and all(part.whole for part in parts)


def part_scores(layer: Layer, step: Step, parts: Sequence[Part], positions: Tensor, view: View) -> Tensor:
    """Logits [H,m,r] on all parts, whose positions [G,r] are given, at the distances that `view` asks for."""
    if view.distance == "clipped":
        return torch.cat([clipped_logits(layer, step, part, view.local) for part in parts], 2)
    if view.distance == "cache":
        queries, keys = at_cache_index(layer, step, parts, positions)
    else:
        queries, keys = step.queries, [part.k for part in parts]
    return torch.cat([scaled_logits(queries, k, layer) for k in keys], 2)


def at_cache_index(layer: Layer, step: Step, parts: Sequence[Part], positions: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Queries [H,m,D] and the keys of each part, turned from their positions to their rank among positions [G,r]."""
    held = positions >= 0
    rank = positions.argsort(1).argsort(1) - (~held).sum(1, keepdim=True)  # pads sort first
    before = (held[:, None] & (positions[:, None] < step.positions[:, None])).sum(2).repeat_interleave(layer.group, 0)
    queries = layer.rotate(layer.rotate(step.queries, step.positions, True), before, False)
    ranks = rank.clamp(min=0).split([p.positions.shape[1] for p in parts], 1)
    plain = [layer.rotate(p.k, p.positions.clamp(min=0), True) for p in parts]
    return queries, [layer.rotate(k, r, False) for k, r in zip(plain, ranks, strict=True)]


def clipped_logits(layer: Layer, step: Step, part: Part, clip: int) -> Tensor:
    """Logits [H,m,r] on one part; keys outside the local window all lie `clip` tokens away."""
    near = scaled_logits(step.queries, part.k, layer)
    plain = layer.rotate(step.queries, step.positions, True)
    queries = layer.rotate(plain, torch.full_like(step.positions, clip), False)
    far = scaled_logits(queries, layer.rotate(part.k, part.positions.clamp(min=0), True), layer)
    distance = step.positions[:, None] - part.positions[:, None]
    return torch.where((distance <= clip).repeat_interleave(layer.group, 0), near, far)
