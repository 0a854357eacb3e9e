"""A prefix of any length without its prefill: for timing the steps behind it, and for nothing else."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.arm import Plan
from engine.attention import Dense, log_sum_exp
from engine.generate import NO_BUDGET, prefill
from engine.model import Model
from engine.prefill import Prefix
from methods.base import Budget, Index, Layer, Method, Observer
from methods.store import KVStore

SEGMENT = 64  # consecutive tokens that are drawn together: neighbours of a text are alike
SEEN = 256  # last queries that observers are shown: no method asks for a wider window
NOISE = 0.05  # of a channel's standard deviation: a token that is drawn twice must not be there twice
BLOCK = 16384  # tokens that are rotated at once


class LastQueries(Observer):
    """The last SEEN queries of a layer, as they are: [H,c,D]."""

    def __init__(self) -> None:
        self.queries: Tensor | None = None

    @property
    def key(self) -> Hashable:
        return "last_queries"

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        rows = queries if self.queries is None else torch.cat([self.queries, queries], 1)
        self.queries = rows[:, -SEEN:].clone()

    def finish(self, keys: Tensor, values: Tensor) -> object:
        return self.queries


@dataclass(frozen=True)
class Watching(Method):
    """Only there so that a prefill shows its queries."""

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (LastQueries(),)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        raise NotImplementedError("it answers nothing")


@dataclass(frozen=True)
class LayerSample:
    """One layer of a real prefill of m tokens, on the host: keys [G,m,D] and queries [H,c,D] (the last ones; None where
    no method acts) without their rotation, values [G,m,D]."""

    keys: Tensor
    values: Tensor
    queries: Tensor | None


@dataclass(frozen=True)
class Sample:
    """What a real prefill left, to be resampled. logits: float32 [V] of its last token."""

    num_tokens: int
    layers: Sequence[LayerSample]
    logits: Tensor


@torch.inference_mode()
def sampled(model: Model, ids: Tensor) -> Sample:
    """The dense prefill of ids [m], on the host and without rotation."""
    layers = model.layers(0)
    prefix = prefill(model, layers, ids, [Plan("sample", Watching(), NO_BUDGET)])
    m, rotary = ids.shape[0], model.facts.has_rope
    parts = []
    for layer, keys, values, seen in zip(layers, prefix.keys, prefix.values, prefix.seen, strict=True):
        queries = seen.get("last_queries")
        assert queries is None or isinstance(queries, Tensor)
        first = m if queries is None else m - queries.shape[1]
        parts.append(
            LayerSample(
                keys=turned(layer, keys, 0, rotary, True).cpu(),
                values=values.cpu(),
                queries=None if queries is None else turned(layer, queries, first, rotary, True).cpu(),
            )
        )
    return Sample(m, parts, prefix.logits)


@torch.inference_mode()
def filled(model: Model, sample: Sample, num_tokens: int, plans: Sequence[Plan], seed: int) -> Prefix:
    """A prefix of `num_tokens` with the statistics of a real one, and what the observers of all plans made of it.

    Its tokens are those of the sample: the first ones first (sinks), the last ones last, and between them segments of
    the sample drawn at random, all layers alike, with a little noise. Keys and queries are turned to their new
    positions by the model's own rotation. Observers see the last SEEN queries alone, with the log-sum-exp over all
    keys: H2O's sums are those of these queries, not of the prompt's, so that what is selected need not be what a real
    prefill would select. Shapes and traffic are the same.
    """
    rows = drawn(sample.num_tokens, num_tokens, seed)
    keys, values, seen = [], [], []
    for layer, geometry, part in zip(model.layers(seed), model.geometry, sample.layers, strict=True):
        generator = torch.Generator(layer.device).manual_seed(layer.seed)
        k, v = (resampled(t, rows, layer, generator) for t in (part.keys, part.values))
        k = turned(layer, k, 0, model.facts.has_rope, False)
        wanted = [] if geometry.window else [o for p in plans for o in p.active.observers(layer, p.budget or NO_BUDGET)]
        how = Dense(model.attention, geometry.window, geometry.sinks)
        seen.append(shown(layer, how, part, k, v, {o.key: o for o in wanted}.values(), model.facts.has_rope))
        keys.append(k)
        values.append(v)
    return Prefix(num_tokens, keys, values, seen, sample.logits)


def drawn(num_sampled: int, num_tokens: int, seed: int) -> Tensor:
    """Which tokens of the sample are taken: int64 [num_tokens]. Raises ValueError for a sample that is too short."""
    if num_sampled < 2 * SEGMENT:
        raise ValueError(f"a sample of {num_sampled} tokens cannot be resampled: give {2 * SEGMENT} or more")
    head, tail = min(SEGMENT, num_tokens // 4), min(SEEN, num_sampled // 2, num_tokens // 2)
    between = num_tokens - head - tail
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(head, num_sampled - SEGMENT + 1, (-(-between // SEGMENT),), generator=generator)
    segments = (first[:, None] + torch.arange(SEGMENT)).flatten()[:between]
    return torch.cat([torch.arange(head), segments, torch.arange(num_sampled - tail, num_sampled)])


def resampled(source: Tensor, rows: Tensor, layer: Layer, generator: torch.Generator) -> Tensor:
    """Those rows [n] of source [G,m,D] with noise, on the layer's device: [G,n,D]."""
    source = source.to(layer.device)
    spread = NOISE * source.float().std(1, keepdim=True)
    out = torch.empty(source.shape[0], rows.shape[0], source.shape[2], dtype=layer.dtype, device=layer.device)
    for a in range(0, rows.shape[0], BLOCK):
        part = source[:, rows[a : a + BLOCK].to(layer.device)].float()
        noise = torch.randn(part.shape, generator=generator, device=layer.device)
        out[:, a : a + BLOCK] = part + spread * noise
    return out


def turned(layer: Layer, x: Tensor, first: int, rotary: bool, inverse: bool) -> Tensor:
    """x [A,n,D] at positions from `first` on, rotated or un-rotated, in its own dtype; as it is without a rotation."""
    if not rotary:
        return x
    out = torch.empty_like(x)
    for a in range(0, x.shape[1], BLOCK):
        part = x[:, a : a + BLOCK]
        positions = torch.arange(first + a, first + a + part.shape[1], device=x.device)
        out[:, a : a + BLOCK] = layer.rotate(part, positions, inverse)
    return out


def shown(
    layer: Layer,
    how: Dense,
    part: LayerSample,
    keys: Tensor,
    values: Tensor,
    observers: Iterable[Observer],
    rotary: bool,
) -> Mapping[Hashable, object]:
    """What observers make of keys and values [G,n,D] and of the sample's last queries, moved to the end."""
    observers = list(observers)
    if not observers:
        return {}
    assert part.queries is not None
    queries = part.queries[:, -keys.shape[1] :].to(layer.device)
    start = keys.shape[1] - queries.shape[1]
    queries = turned(layer, queries, start, rotary, False)
    lse = log_sum_exp(layer, how, queries, keys, start) if any(o.needs_lse for o in observers) else None
    for observer in observers:
        observer.see(queries, keys, lse, start)
    return {o.key: o.finish(keys, values) for o in observers}
