"""Scores that several methods share: logits, group sums, sums of the prompt's attention, pooling, top-k."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Layer, Observer, Rest

MAX_ELEMENTS = 1 << 25  # float32 logits held at once by a block-wise pass: 128 MiB


def logits(queries: Tensor, keys: Tensor, layer: Layer) -> Tensor:
    """Attention logits of queries [H,m,D] on keys [G,n,D], scaled and soft-capped: float32 [H,m,n].

    Query head h reads KV head h // group; keys are not repeated.
    """
    num_kv_heads, n, dim = keys.shape
    grouped = queries.float().reshape(num_kv_heads, -1, dim)
    out = (grouped @ keys.float().transpose(1, 2)).view(queries.shape[0], -1, n) * layer.scale
    return out if layer.softcap is None else layer.softcap * torch.tanh(out / layer.softcap)


def log_sum_exp(score: Tensor, layer: Layer) -> Tensor:
    """What a softmax over logits [H,m,n] divides by, in logarithms: float32 [H,m]; the model's learned sinks count."""
    total = score.logsumexp(-1)
    return total if layer.sinks is None else torch.logaddexp(total, layer.sinks.float()[:, None].expand_as(total))


def attention(score: Tensor, layer: Layer) -> Tensor:
    """Probabilities of logits [H,m,n]; with learned sinks they add up to less than 1, as in the model."""
    return (score - log_sum_exp(score, layer)[..., None]).exp()


def group_sum(per_head: Tensor, num_kv_heads: int) -> Tensor:
    """Sum over the query heads of each KV head: [H,..] -> [G,..]."""
    out: Tensor = per_head.unflatten(0, (num_kv_heads, -1)).sum(1)
    return out


def pooled(scores: Tensor, kernel: int, pool: Literal["max", "avg"]) -> Tensor:
    """Scores [G,n] pooled over `kernel` neighbours; beyond the ends an average counts zeros, a maximum nothing."""
    if kernel == 1 or scores.shape[-1] == 0:
        return scores
    how = torch.nn.functional.max_pool1d if pool == "max" else torch.nn.functional.avg_pool1d
    out: Tensor = how(scores[None], kernel, stride=1, padding=kernel // 2)[0]
    return out


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest of the last axis, ascending; equal scores: the lower index wins.

    Ties are real: tokens with equal PQ codes have equal scores. topk alone breaks them at will, so the threshold is
    found first, and what equals it is taken from the left.
    """
    n = scores.shape[-1]
    if k < n and scores.is_cuda and scores.dim() == 2 and scores.dtype == torch.float32:
        from methods.kernels.topk import top_k as kernel

        with torch.cuda.device_of(scores):
            return kernel(scores, k)
    everywhere = torch.arange(n, device=scores.device).expand_as(scores)
    if k >= n:
        return everywhere
    threshold = scores.topk(max(k, 1), dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above = scores > threshold
    equal = scores == threshold
    spare = k - above.sum(-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(-1) <= spare))
    # Exactly k are chosen in each row: each moves to its rank, the others to a column that is cut off again. No sort,
    # and no shape that depends on numbers, so that a CUDA graph can capture it.
    place = torch.where(chosen, chosen.cumsum(-1) - 1, k)
    # What is not a number is above nothing: the first positions then stand where too few are chosen.
    return everywhere[..., : k + 1].clone().scatter_(-1, place, everywhere)[..., :k]


def lightest(scores: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
    """Position [G,1] of the lowest score [G,r] where `allowed`; equal scores: the higher position goes."""
    ranks = scores.masked_fill(~allowed, torch.inf)
    return positions.masked_fill(ranks > ranks.amin(1, keepdim=True), -1).amax(1, keepdim=True)


def merged(y: Tensor, lse: Tensor, rest: Rest) -> Tensor:
    """The read part y [H,m,D], whose softmax has the log-sum-exp lse [H,m], and what stands in for the rest."""
    if rest.mass is not None:
        share = rest.mass
    else:
        assert rest.lse is not None
        share = torch.sigmoid(lse - rest.lse)
    out = share[..., None] * y.float()
    if rest.value is not None:
        out = out + (1.0 - share[..., None]) * rest.value.float()
    return out.to(y.dtype)


def flash_takes(rows: Tensor) -> bool:
    """Whether torch's flash attention on a GPU takes rows [..,D] of this kind: half precision, from Ampere on."""
    half = rows.dtype in (torch.float16, torch.bfloat16) and rows.shape[-1] % 8 == 0 and rows.shape[-1] <= 256
    return half and torch.cuda.get_device_capability(rows.device) >= (8, 0)


def row_blocks(num_rows: int, num_columns: int, num_heads: int) -> list[tuple[int, int]]:
    """Query ranges whose float32 logits over all heads stay below MAX_ELEMENTS."""
    size = max(1, MAX_ELEMENTS // max(1, num_columns * num_heads))
    return [(a, min(a + size, num_rows)) for a in range(0, num_rows, size)]


class ColumnSums(Observer):
    """How much attention each prompt token received: s_j = sum of P_ij over queries i and, if grouped, over the group.

    Two passes (H2O spec: the log-sum-exp of each query is known, so P needs no row of the whole matrix): never L x L.
    window: only queries with 0 <= i - j < window count (InfLLM's representatives). Result float32 [G,n], or [H,n].
    Each row of P sums to 1, hence sum_j s_j = number of queries x heads in the sum (without a window). Summed in
    float64: what one query adds to the sum of 200,000 others may lie below float32's last digit.
    """

    needs_lse: ClassVar[bool] = True

    def __init__(self, layer: Layer, window: int | None = None, grouped: bool = True) -> None:
        self.layer = layer
        self.window = window
        self.grouped = grouped
        self.sums = torch.zeros(0, dtype=torch.float64)

    @property
    def key(self) -> Hashable:
        return ("column_sums", self.window, self.grouped)

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        assert lse is not None
        n = keys.shape[1]
        old, self.sums = self.sums, torch.zeros(queries.shape[0], n, dtype=torch.float64, device=keys.device)
        self.sums[:, : old.shape[-1]] = old.to(keys.device)
        if keys.is_cuda:
            from methods.kernels.columns import column_sums

            scale, softcap = self.layer.scale, self.layer.softcap
            self.sums += column_sums(queries, keys, lse, start, self.window, scale, softcap)
            return
        for a, b in row_blocks(queries.shape[1], n, queries.shape[0]):
            last = start + b
            first = 0 if self.window is None else max(0, start + a - self.window + 1)
            row = torch.arange(start + a, last, device=keys.device)[:, None]
            column = torch.arange(first, last, device=keys.device)
            hidden = column > row
            if self.window is not None:
                hidden |= row - column >= self.window
            p = (logits(queries[:, a:b], keys[:, first:last], self.layer) - lse[:, a:b, None]).exp_()
            self.sums[:, first:last] += p.masked_fill_(hidden, 0.0).sum(1)

    def finish(self, keys: Tensor, values: Tensor) -> Tensor:
        return (group_sum(self.sums, self.layer.num_kv_heads) if self.grouped else self.sums).float()


class WindowSums(Observer):
    """How much attention the last `window` prompt queries gave each token, summed over them and over the group.

    Result float32 [G,n]; reduce="max" takes the largest query head of a group instead. A shorter prompt counts all its
    queries. The window may span chunks: its queries are kept, and meet the keys when all of those are there.
    """

    def __init__(self, layer: Layer, window: int, reduce: Literal["sum", "max"] = "sum") -> None:
        self.layer = layer
        self.window = window
        self.reduce = reduce
        self.queries = torch.zeros(layer.num_heads, 0, layer.head_dim, dtype=layer.dtype, device=layer.device)

    @property
    def key(self) -> Hashable:
        return ("window_sums", self.window, self.reduce)

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        # A chunk's last rows are copied by the joining: a view would hold the whole chunk in memory.
        self.queries = torch.cat([self.queries, queries[:, -self.window :]], 1)[:, -self.window :]

    def finish(self, keys: Tensor, values: Tensor) -> Tensor:
        fits = keys.is_cuda and flash_takes(keys) and self.layer.softcap is None
        sums = self.fused(keys) if fits else self.plain(keys)
        if self.reduce == "sum":
            return group_sum(sums, self.layer.num_kv_heads)
        highest: Tensor = sums.unflatten(0, (self.layer.num_kv_heads, -1)).amax(1)
        return highest

    def fused(self, keys: Tensor) -> Tensor:
        """The sums [H,n] on a GPU: float32 logits of a long prompt are never in memory."""
        from methods.kernels.columns import column_sums

        queries, layer = self.queries.contiguous(), self.layer
        # torch's flash attention tells the log-sum-exp; its causal mask is aligned to the last key. V is not used.
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        total = flash(queries[None], keys[None], keys[None], 0.0, True, scale=layer.scale)[1][0]
        if layer.sinks is not None:
            total = torch.logaddexp(total, layer.sinks.float()[:, None].expand_as(total))
        return column_sums(queries, keys, total.contiguous(), keys.shape[1] - queries.shape[1], None, layer.scale, None)

    def plain(self, keys: Tensor) -> Tensor:
        """The sums [H,n], block of queries by block."""
        n, num_rows = keys.shape[1], self.queries.shape[1]
        column = torch.arange(n, device=keys.device)
        sums = torch.zeros(self.layer.num_heads, n, device=keys.device)
        for a, b in row_blocks(num_rows, n, self.layer.num_heads):
            row = column[n - num_rows + a : n - num_rows + b, None]
            score = logits(self.queries[:, a:b], keys, self.layer).masked_fill_(column > row, -torch.inf)
            sums += attention(score, self.layer).sum(1)
        return sums
