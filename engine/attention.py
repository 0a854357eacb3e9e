"""Attention arithmetic: dense causal attention of a prompt, and exact attention on the tokens that a step reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from methods.base import Layer, Rest, Step
from methods.scores import logits as scaled_logits
from methods.scores import row_blocks
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


def read(
    layer: Layer, step: Step, parts: Sequence[Part], clip: int | None, sinks: Tensor | None, rest: Rest | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact attention of a step on the parts of a store.

    clip: the local window, if tokens outside it are read un-rotated at that distance (InfLLM); None: true distances.
    Returns output [H,m,D], positions [G,r] and float32 weights [H,m,r].
    """
    positions = torch.cat([p.positions for p in parts], 1)
    score = torch.cat([part_logits(layer, step, part, clip) for part in parts], 2)
    unseen = (positions[:, None] < 0) | (positions[:, None] > step.positions[:, None])
    score.masked_fill_(unseen.repeat_interleave(layer.group, 0), -torch.inf)
    weights, lse = normalise(score, sinks)
    shares = weights.split([p.positions.shape[1] for p in parts], 2)
    y = weighted(shares[0], parts[0].v)
    for share, part in zip(shares[1:], parts[1:], strict=True):
        y = y + weighted(share, part.v)
    return (y if rest is None else merged(y, lse, rest)), positions, weights


def part_logits(layer: Layer, step: Step, part: Part, clip: int | None) -> Tensor:
    """Logits [H,m,r] on one part; with `clip`, keys outside the local window all lie `clip` tokens away."""
    near = scaled_logits(step.queries, part.k, layer)
    if clip is None:
        return near
    plain = layer.rotate(step.queries, step.positions, True)
    queries = layer.rotate(plain, torch.full_like(step.positions, clip), False)
    far = scaled_logits(queries, layer.rotate(part.k, part.positions.clamp(min=0), True), layer)
    distance = step.positions[:, None] - part.positions[:, None]
    return torch.where((distance <= clip).repeat_interleave(layer.group, 0), near, far)


def merged(y: Tensor, lse: Tensor, rest: Rest) -> Tensor:
    """The read part y [H,m,D] and what stands in for the rest."""
    if rest.mass is not None:
        share = rest.mass
    else:
        assert rest.lse is not None
        share = torch.sigmoid(lse - rest.lse)
    out = share[..., None] * y.float()
    if rest.value is not None:
        out = out + (1.0 - share[..., None]) * rest.value.float()
    return out.to(y.dtype)
