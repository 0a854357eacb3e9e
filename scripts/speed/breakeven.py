"""KCache's break-even on this device: from which context on fetching U tokens' values beats reading all of them.

The formula (derived, not the paper's): s* = U * B_h / B_p, with values read in one stretch at B_h bytes/s and gathered
from the host at B_p. Beside it, what was measured: where the times of the two cross, on the values alone and on a whole
attention step of one layer, which also ranks the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle

import torch
from torch import Tensor

from engine.arm import Plan, SelectiveLayer
from engine.attention import weighted
from engine.model import Model
from engine.seam import Call
from methods.base import Budget, Layer, Method
from methods.full import Full
from methods.kcache import KCache
from scripts.payoff import DIM, HEADS, KV_HEADS
from scripts.speed.bandwidth import seconds
from scripts.speed.curves import break_even

REPEATS = 15
NUM_DRAWS = 8  # different rows in turn: those just fetched would come from the processor's cache
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class BreakEven:
    """Of U fetched tokens: lengths in tokens, bandwidths in bytes per second. formula: s*; values, step: measured, None
    if there is no crossing up to `longest`, 0 if it lies before `shortest`."""

    fetched: int
    read: float
    fetch: float
    formula: float
    values: float | None
    step: float | None
    shortest: int
    longest: int


@torch.inference_mode()
def measured(model: Model, lengths: Sequence[int], fetched: int) -> BreakEven:
    """On one layer of Llama-3.1-8B's shape, where the model is; each time is the least of REPEATS runs: noise adds."""
    layer = replace(model.layers(0)[0], num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM)
    layer = replace(layer, scale=DIM**-0.5, softcap=None, sinks=None)
    all_values: Curve = []
    some: Curve = []
    full: Curve = []
    kcache: Curve = []
    for n in lengths:
        k, v = (random(layer, layer.num_kv_heads, n) for _ in range(2))
        weights = random(layer, layer.num_heads, 1, n).softmax(-1)
        all_values.append((n, least(layer, lambda w=weights, v=v: weighted(w, v))))  # type: ignore[misc]
        some.append((n, least(layer, fetching(layer, v, weights[..., :fetched], fetched))))
        full.append((n, least(layer, stepping(layer, Full(), Budget(0, 0, 0), k, v))))
        kcache.append((n, least(layer, stepping(layer, KCache(), Budget(0, 0, fetched), k, v))))
    row = layer.num_kv_heads * layer.head_dim * layer.dtype.itemsize
    read = lengths[-1] * row / all_values[-1][1]
    fetch = fetched * row / sorted(s for _, s in some)[len(some) // 2]
    crossings = break_even(some, all_values), break_even(kcache, full)
    return BreakEven(fetched, read, fetch, fetched * read / fetch, *crossings, lengths[0], lengths[-1])


def random(layer: Layer, *shape: int) -> Tensor:
    """Normal numbers of a shape, of a head's size behind it if it has two."""
    full = (*shape, layer.head_dim) if len(shape) == 2 else shape
    return torch.randn(full, dtype=layer.dtype, device=layer.device)


def least(layer: Layer, work: Callable[[], object]) -> float:
    """The least seconds of REPEATS calls after two."""
    work(), work()
    return min(seconds(layer.device, work) for _ in range(REPEATS))


def fetching(layer: Layer, v: Tensor, weights: Tensor, fetched: int) -> Callable[[], object]:
    """Gather the values of `fetched` tokens of each KV head on the host, bring them over, and weigh them."""
    host = v.transpose(0, 1).cpu().contiguous()
    host = host.pin_memory() if v.is_cuda else host
    draws = cycle(spread(v.shape[1], v.shape[0], fetched) for _ in range(NUM_DRAWS))

    def fetch() -> Tensor:
        rows = torch.empty(v.shape[0] * fetched, v.shape[2], dtype=v.dtype, pin_memory=v.is_cuda)
        torch.index_select(host.flatten(0, 1), 0, next(draws), out=rows)
        return weighted(weights, rows.to(v.device, non_blocking=True).view(v.shape[0], fetched, -1))

    return fetch


def spread(length: int, num_heads: int, fetched: int) -> Tensor:
    """Ascending rows of [n*G], `fetched` tokens anywhere for each head, head by head."""
    chosen = torch.rand(num_heads, length).argsort(1)[:, :fetched].sort(1).values
    return (chosen * num_heads + torch.arange(num_heads)[:, None]).flatten()


def stepping(layer: Layer, method: Method, budget: Budget, k: Tensor, v: Tensor) -> Callable[[], object]:
    """One decode step of a layer that holds k and v: store, choose, attend."""
    state = SelectiveLayer(layer, Plan("break-even", method, budget), budget, k, v, None)
    state.build({})
    new, place = random(layer, layer.num_kv_heads, 1)[None], count(k.shape[1])
    queries = cycle([random(layer, layer.num_heads, 1)[None] for _ in range(NUM_DRAWS)])
    return lambda: state.attend(Call(0, next(queries), new, new, layer.scale, None, None, None), 0, next(place))
