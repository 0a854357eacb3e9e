"""What LESS learns from: one layer's stream in full attention, and what an eviction method drops of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.arm import Plan, SelectiveLayer
from engine.attention import Dense, log_sum_exp, normalise, weighted
from engine.generate import prefill
from engine.model import Model
from engine.seam import Call
from methods.base import Budget, Layer, Method, Observer
from methods.full import Full
from methods.scores import logits
from scripts.watch import Watched


@dataclass(frozen=True)
class Stream:
    """Queries [H,n,D], keys and values [G,n,D] of one layer, as full attention has them."""

    layer: Layer
    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Example:
    """What one layer's kernels are shown of one text: m queries [H,m,D] and all keys and values [G,n,D].

    gone bool [G,m,n]: what each query no longer reads; read [H,m,D] and lse [H,m]: what it finds in the rest;
    target [H,m,D]: what it finds in full attention.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    gone: Tensor
    read: Tensor
    lse: Tensor
    target: Tensor

    @classmethod
    def of(cls, layer: Layer, queries: Tensor, keys: Tensor, values: Tensor, kept: Tensor, at: Tensor) -> Example:
        """From what each query, at positions `at` [m], still reads: kept bool [G,m,n]."""
        later = torch.arange(keys.shape[1], device=keys.device) > at[:, None]
        score = logits(queries, keys, layer)
        full, _ = normalise(score.masked_fill(later, -torch.inf), layer.sinks)
        unread = (~kept | later).repeat_interleave(layer.group, 0)
        weights, lse = normalise(score.masked_fill(unread, -torch.inf), layer.sinks)
        read, target = weighted(weights, values), weighted(full, values)
        return cls(queries, keys, values, ~kept & ~later, read.float(), lse, target.float())


class Queries(Observer):
    """Keeps all queries of a layer."""

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []

    @property
    def key(self) -> Hashable:
        return "queries"

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        self.chunks.append(queries.clone())

    def finish(self, keys: Tensor, values: Tensor) -> Tensor:
        return torch.cat(self.chunks, 1)


@dataclass(frozen=True)
class Recorded(Full):
    """Full attention whose queries are kept."""

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (Queries(),)


def streams(model: Model, ids: Tensor) -> list[Stream]:
    """Of ids [n], one for each layer that methods act on."""
    layers = model.layers(0)
    found = prefill(model, layers, ids, [Plan("full", Recorded(), None)])
    out = []
    for layer, geometry, keys, values, seen in zip(
        layers, model.geometry, found.keys, found.values, found.seen, strict=True
    ):
        if geometry.window is None:
            queries = seen["queries"]
            assert isinstance(queries, Tensor)
            out.append(Stream(layer, queries, keys, values))
    return out


def example(base: Method, budget: Budget, stream: Stream, num_prompt: int) -> Example:
    """The tokens after the first `num_prompt` pass through the base one by one, as they would while decoding."""
    layer, n = stream.layer, stream.keys.shape[1]
    watched = Watched(base)
    queries, keys, values = (t[:, :num_prompt] for t in (stream.queries, stream.keys, stream.values))
    state = SelectiveLayer(layer, Plan("base", watched.plan_method, budget), budget, keys, values, layer.sinks)
    state.build(seen_by(base.observers(layer, budget), layer, queries, keys, values))
    for now in range(num_prompt, n):
        q, k, v = (t[None, :, now : now + 1] for t in (stream.queries, stream.keys, stream.values))
        state.attend(Call(layer.index, q, k, v, layer.scale, None, layer.softcap, layer.sinks), 0, now)
    kept = torch.zeros(layer.num_kv_heads, n - num_prompt, n + 1, dtype=torch.bool, device=layer.device)
    for number, step in enumerate(watched.layers[0].steps):
        # -1 pads fall on a column of their own, which is cut off again.
        kept[:, number].scatter_(1, step.positions + 1, True)
    at = torch.arange(num_prompt, n, device=layer.device)
    return Example.of(layer, stream.queries[:, num_prompt:], stream.keys, stream.values, kept[..., 1:], at)


def seen_by(
    observers: Sequence[Observer], layer: Layer, queries: Tensor, keys: Tensor, values: Tensor
) -> dict[Hashable, object]:
    """What observers find in a prompt in one piece."""
    out: dict[Hashable, object] = {}
    for observer in observers:
        lse = log_sum_exp(layer, Dense("sdpa"), queries, keys, 0) if observer.needs_lse else None
        observer.see(queries, keys, lse, 0)
        out[observer.key] = observer.finish(keys, values)
    return out
