"""The harness's own time in a decode step: full attention behind the seam against a bare loop with a `DynamicCache`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.generate import prefill
from engine.model import Model
from engine.seam import NAME
from methods.full import Full
from scripts.speed.racer import Racer
from scripts.speed.rows import ROUNDS, How
from scripts.speed.words import Asked, Contender, prompt


@dataclass(frozen=True)
class Overhead:
    """Processor seconds of a step at a cache of some tokens, medians of both, by turns: on one thread those of the
    clock, were the machine idle."""

    bare: float
    ours: float

    @property
    def ratio(self) -> float:
        """Ours by bare."""
        return self.ours / self.bare


class Bare:
    """`model(...)` with Hugging Face's own cache and attention, on the same weights."""

    def __init__(self, model: Model, ids: Tensor) -> None:
        self.model, self.cache = model, DynamicCache()
        self.seconds: list[float] = []
        self.token = self._forward(ids[None].to(model.device))

    def _forward(self, ids: Tensor) -> Tensor:
        out = self.model.network(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        token: Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
        return token

    def burst(self, num_steps: int) -> None:
        marks = []
        for _ in range(num_steps + 1):
            self.token = self._forward(self.token)
            marks.append(time.process_time())
        self.seconds += [b - a for a, b in pairwise(marks)]


@torch.inference_mode()
def overhead(model: Model, asked: Asked, num_tokens: int, how: How, way: str) -> Overhead:
    """Both behind the same prompt. The network's attention is put back as it was."""
    ids = prompt(model, asked.spec, num_tokens)
    full = Contender("full", Full(), "", asked.settings)
    racer = Racer(model, full, prefill(model, model.layers(0), ids, []), 1, way, how.room)
    swap(model, "sdpa")
    try:
        bare = Bare(model, ids)
        for _ in range(ROUNDS):
            swap(model, "sdpa")
            bare.burst(how.burst)
            swap(model, NAME)
            racer.burst(how.burst)
    finally:
        swap(model, NAME)
    return Overhead(median(bare.seconds), median(racer.processor))


def swap(model: Model, attention: str) -> None:
    """Let the network attend by another function."""
    model.network.set_attn_implementation(attention)  # type: ignore[operator]
