"""PQCache (arXiv 2407.12820): product-quantised keys find the middle tokens, exact K and V are attended."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, ModelFacts, Observer, Selection, Speed, Step
from methods.fixed import FixedStep
from methods.pqcache.adaptive import Fit, measured, rounds
from methods.pqcache.blocks import Policy
from methods.pqcache.codebook import Codebook
from methods.pqcache.coding import Coding, Exact
from methods.pqcache.fixed import Codes, FixedPQRows, FixedPQTiers
from methods.pqcache.store import TieredStore, tiered
from methods.pqcache.workers import Job, Workers
from methods.scores import group_sum, top_k
from methods.store import GROW, KVStore


class KeyClusters(Observer):
    """The codebook of one layer's prompt keys, sink excluded; it depends on no budget, so all budgets share it."""

    def __init__(self, layer: Layer, sink: int, method: PQCache) -> None:
        self.layer = layer
        self.sink = sink
        self.method = method

    @property
    def key(self) -> Hashable:
        m = self.method
        return ("pq", self.sink, m.num_sub, m.bits, m.iterations, m.fit)

    def finish(self, keys: Tensor, values: Tensor) -> Job:
        m = self.method
        return m.cluster(self.layer.index, keys[:, self.sink :], self.layer.seed)


class PQIndex(Index):
    """Codes of all tokens behind the sink, uint8 [G,s,n-sink]: those of the prompt shared, later ones in a tail."""

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: PQCache) -> None:
        super().__init__(layer, store, budget)
        self.method = method
        self.job: Job | None = None
        self.codebook: Codebook | None = None
        self.tail = torch.zeros(layer.num_kv_heads, method.num_sub, 0, dtype=torch.uint8, device=layer.device)
        self.num_tail = 0

    def build(self, seen: Mapping[Hashable, object]) -> None:
        self.job = cast(Job, seen[KeyClusters(self.layer, self.budget.sink, self.method).key])

    def ready(self) -> Codebook:
        if self.codebook is None:
            assert self.job is not None
            came = self.job.apart
            self.codebook = self.job.result()
            if came:
                self.store.traffic.codes += sum(t.nbytes for t in (self.codebook.centroids, self.codebook.codes))
        return self.codebook

    def extend(self, k: Tensor, v: Tensor, start: int) -> None:
        # Coded at once with the existing centroids; a token becomes a candidate when it leaves the local window.
        end = self.num_tail + k.shape[1]
        if end > self.tail.shape[2]:
            self.tail = torch.nn.functional.pad(self.tail, (0, end - self.tail.shape[2] + GROW))
        self.tail[:, :, self.num_tail : end] = self.ready().encode(k)
        self.num_tail = end

    def select(self, step: Step) -> Selection:
        codebook = self.ready()
        codes = self.candidate_codes(max(0, step.end - step.sink))
        self.store.traffic.scan(codes, codebook.centroids)
        logits = codebook.inner_products(step.queries[:, 0], codes) * self.layer.scale
        if self.layer.softcap is not None:
            logits = self.layer.softcap * torch.tanh(logits / self.layer.softcap)
        # Softmax over the candidates alone, per query head, in float32: half precision would tie most of them at zero.
        scores = group_sum(logits.softmax(-1), self.layer.num_kv_heads)
        return Selection(top_k(scores, step.k) + step.sink)

    def candidate_codes(self, num_candidates: int) -> Tensor:
        """Codes [G,s,c] of the first tokens behind the sink."""
        prompt = self.ready().codes
        num_prefix = prompt.shape[2]
        if num_candidates <= num_prefix:
            return prompt[:, :, :num_candidates]
        return torch.cat([prompt, self.tail[:, :, : num_candidates - num_prefix]], 2)

    def tensors(self) -> list[tuple[str, Tensor]]:
        shared = [] if self.codebook is None else [self.codebook.centroids, self.codebook.codes]
        return [("index", t) for t in (*shared, self.tail)]

    def notes(self) -> Mapping[str, float]:
        return {"iterations": self.method.rounds(self.ready().codes.shape[2])}

    def fixed(self, room: int) -> FixedStep | None:
        codes = Codes(self.layer, self.budget, self.ready(), self.tail[:, :, : self.num_tail], room)
        if not isinstance(self.store, TieredStore):
            return FixedPQRows(codes, self.store.held(), room, self.notes())
        # What is coded in units of several tokens has no row that one step could replace.
        return FixedPQTiers(codes, self.store, room, self.notes()) if self.store.coding.strides == (1, 1) else None


@dataclass(frozen=True)
class PQCache(Method):
    """PQCache.

    num_sub: sub-vectors a head (m of the paper). bits: log2 of the centroids of each (b). iterations: Lloyd's rounds;
    "adaptive": as many as hide behind the prefill of a layer, 3 to 300, by a fit that is measured before the first
    sample. fit: that fit (`methods.pqcache.adaptive.Fit`); None: to be measured.
    clustering: "cpu" in worker processes, beside the prefill of later layers; "gpu" where the keys are, one by one.
    num_workers: of these processes; 0: one for each core but one, at most 16.
    tier: "host" keeps middle K and V in host memory behind a cache of `cache_blocks` blocks of `cache_block` tokens on
    the device, with `policy`, to which the `refresh` most read blocks are offered at a step; "device" keeps all there.
    """

    num_sub: int = 2
    bits: int = 6
    iterations: Literal["adaptive"] | int = 25
    fit: Fit | None = None
    clustering: Literal["cpu", "gpu"] = "cpu"
    num_workers: int = 0
    tier: Literal["host", "device"] = "host"
    cache_blocks: int = 32
    cache_block: int = 128
    policy: Policy = "lfu"
    refresh: int = 32
    workers: Workers = field(default_factory=Workers, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"method.bits={self.bits}: codes are uint8, give 1 to 8")
        if self.num_sub < 1 or (self.iterations != "adaptive" and self.iterations < 1):
            raise ValueError(f"method.num_sub={self.num_sub}, method.iterations={self.iterations}: give 1 or more")
        self._check_fit()
        if self.num_workers < 0:
            raise ValueError(f"method.num_workers={self.num_workers}: give 1 or more, or 0 for one for each spare core")
        if self.cache_blocks < 0 or self.cache_block < 1 or self.refresh < 0:
            sizes = f"cache_blocks={self.cache_blocks}, cache_block={self.cache_block}, refresh={self.refresh}"
            raise ValueError(f"method.{sizes}: give 0 or more blocks of 1 or more tokens, and refresh 0 or more")

    def _check_fit(self) -> None:
        if self.iterations != "adaptive" and self.fit is not None:
            raise ValueError(f"method.fit={self.fit}: only method.iterations=adaptive has one")
        if self.iterations == "adaptive" and self.clustering != "cpu":
            raise ValueError(f"method.iterations=adaptive needs method.clustering=cpu, not {self.clustering}: "
                             "only worker processes can hide behind the prefill")  # fmt: skip
        good = self.fit is None or (all(0 <= x < math.inf for x in self.fit) and self.fit[-1] > 0)
        if self.fit is not None and not (good and len(self.fit) == 5):
            raise ValueError(f"method.fit={self.fit}: give 5 finite numbers of 0 or more, the last more than 0")

    @property
    def unmeasured(self) -> tuple[str, ...]:
        return ("fit",) if self.iterations == "adaptive" and self.fit is None else ()

    def calibrate(self, speed: Speed) -> PQCache:
        if not self.unmeasured:
            return self
        with self.running():
            fit = measured(speed, lambda keys, number: self._submit(0, keys, number, 0).result())
        return replace(self, fit=fit)

    def rounds(self, num_tokens: int) -> int:
        """Rounds of clustering for so many keys."""
        if self.iterations != "adaptive":
            return self.iterations
        assert self.fit is not None, "iterations=adaptive is measured before the first sample"
        return rounds(self.fit, num_tokens)

    def cluster(self, layer: int, keys: Tensor, seed: int) -> Job:
        """Start to cluster the keys [G,n,D] of a layer."""
        return self._submit(layer, keys, self.rounds(keys.shape[1]), seed)

    def _submit(self, layer: int, keys: Tensor, num_rounds: int, seed: int) -> Job:
        return self.workers.submit(layer, keys, self.num_sub, 1 << self.bits, num_rounds, seed)

    @property
    def min_tokens(self) -> int:
        return 1 << self.bits

    def supports(self, model: ModelFacts) -> str | None:
        if model.head_dim % self.num_sub:
            return f"head_dim {model.head_dim} is not a multiple of method.num_sub={self.num_sub}"
        return None

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (KeyClusters(layer, budget.sink, self),)

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        if self.tier == "device":
            return super().store(layer, budget, k, v)
        return self.tiered(layer, budget, k, v, Exact())

    def tiered(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor, coding: Coding) -> TieredStore:
        """The prompt in two tiers."""
        return tiered(layer, budget, k, v, self.cache_blocks, self.cache_block, self.policy, self.refresh, coding)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return PQIndex(layer, store, budget, self)

    def running(self) -> AbstractContextManager[None]:
        return self.workers.open(self.num_workers) if self.clustering == "cpu" else nullcontext()
