"""LESS (arXiv 2402.09398): what an eviction method drops goes into a small learned state, attended besides the rest."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, ModelFacts, Observer, Rest, Selection, Step
from methods.less.kernels import Kernels, drawn, load, misfit
from methods.store import EvictingStore, KVStore

UNTRAINED = "random"
RANK, HIDDEN = 8, 32  # of untrained kernels
ROWS = 4096  # keys whose features are computed at once
LEAST = 1e-6  # mass of a state that holds anything


class LESSIndex(Index):
    """The base's memory, and per KV head a state of constant size, in float32, of all that the base dropped.

    values [G,R,D] sums psi(k) v^T, mass [G,R] sums psi(k). A query finds phi(q) values / phi(q) mass in it, with the
    mass phi(q) mass beside the sum of e^logit of what is held.
    """

    def __init__(self, layer: Layer, store: EvictingStore, budget: Budget, base: Index, kernels: Kernels) -> None:
        super().__init__(layer, store, budget)
        self.base = base
        self.kernels = kernels
        self.values = torch.zeros(layer.num_kv_heads, kernels.rank, layer.head_dim, device=layer.device)
        self.mass = torch.zeros(layer.num_kv_heads, kernels.rank, device=layer.device)
        store.leaving = self.absorb

    def absorb(self, k: Tensor, v: Tensor, gone: Tensor) -> None:
        """Of k, v [G,r,D] take in those that are `gone` [G,r]."""
        for a in range(0, k.shape[1], ROWS):
            b = a + ROWS
            features = self.kernels.psi(k[:, a:b]) * gone[:, a:b, None]
            self.values += features.mT @ v[:, a:b].float()
            self.mass += features.sum(1)
        self.store.traffic.scan(k, v)

    def build(self, seen: Mapping[Hashable, object]) -> None:
        self.base.build(seen)

    def ready(self) -> object:
        return self.base.ready()

    def extend(self, k: Tensor, v: Tensor, start: int) -> None:
        self.base.extend(k, v, start)

    def select(self, step: Step) -> Selection:
        selection = self.base.select(step)  # may drop, and so fill the state
        return replace(selection, rest=self.rest(step.queries))

    def rest(self, queries: Tensor) -> Rest:
        """What the state holds for queries [H,m,D]; one that nothing went into weighs nothing."""
        self.store.traffic.scan(self.values, self.mass)
        features = self.kernels.phi(queries).unflatten(0, (self.layer.num_kv_heads, -1))
        mass = (features @ self.mass[:, None, :, None]).clamp(min=LEAST)
        value = (features @ self.values[:, None]) / mass
        empty = (self.mass == 0).all(1)[:, None, None]
        lse = mass[..., 0].log().masked_fill(empty, -torch.inf)
        return Rest(value.flatten(0, 1), lse.flatten(0, 1))

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        self.base.observe(step, positions, weights)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (*self.base.tensors(), ("index", self.values), ("index", self.mass))

    def notes(self) -> Mapping[str, float]:
        return {**self.base.notes(), "kernel_bytes": self.kernels.num_bytes}


@dataclass(frozen=True)
class LESS(Method):
    """An eviction method with a learned memory of what it drops.

    base: the eviction method, with one budget for every KV head and keys where they are, such as
    `methods.h2o.method.H2O` (the paper's) or `methods.window.Window` (its Lambda mask).
    weights: kernels that `python -m scripts.train_less` trained for this model and base, refused for any other;
    "random": untrained ones, whose answers mean nothing, for tests and speed.
    """

    observes = True

    base: Method
    weights: str = "data/tiny/less.safetensors"

    def __post_init__(self) -> None:
        base = self.base
        if not (base.spread == "head" and base.distance == "true" and base.exact and not base.own_prefill):
            raise ValueError(
                f"method.base={type(base).__name__}: give an eviction method with one budget for every KV head that "
                "neither merges nor moves keys, such as methods.h2o.method.H2O or methods.window.Window"
            )

    @property
    def kind(self) -> str:
        return self.base.kind

    @property
    def block(self) -> int:
        return self.base.block

    @property
    def min_tokens(self) -> int:
        return self.base.min_tokens

    def supports(self, model: ModelFacts) -> str | None:
        reason = self.base.supports(model)
        if reason is None and self.weights != UNTRAINED:
            reason = misfit(self.weights, model, repr(self.base))
        return reason

    def untrained(self) -> LESS:
        return replace(self, weights=UNTRAINED)

    def split(self, total: int, local_share: float) -> tuple[int, int]:
        return self.base.split(total, local_share)

    def budgets(self, budget: Budget, num_layers: int, num_tokens: int) -> tuple[Budget, ...]:
        return self.base.budgets(budget, num_layers, num_tokens)

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return self.base.observers(layer, budget)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return self.base.store(layer, budget, k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        if not isinstance(store, EvictingStore):
            raise ValueError(f"method.base={self.base} frees nothing; LESS keeps what an eviction method drops")
        return LESSIndex(layer, store, budget, self.base.index(layer, store, budget), self.kernels(layer))

    def kernels(self, layer: Layer) -> Kernels:
        """The feature maps of a layer. Raises ValueError where their file cannot be read."""
        if self.weights != UNTRAINED:
            return load(self.weights, layer.index, layer.device)
        heads, generator = (layer.num_heads, layer.num_kv_heads), torch.Generator().manual_seed(layer.index)
        return drawn(heads, layer.head_dim, HIDDEN, RANK, 1.0, generator).to(layer.device).requires_grad_(False).eval()
