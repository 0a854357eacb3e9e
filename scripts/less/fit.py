"""Trains the kernels of one layer: what they make of dropped tokens shall complete what is read to full attention."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Layer, Rest
from methods.less.kernels import START, Kernels, drawn
from methods.less.method import LEAST
from methods.scores import merged
from scripts.less.record import Example


@dataclass(frozen=True)
class Recipe:
    """Adam, its rate halved every `halve` epochs; a step is one text; the best epoch on held-out texts is kept.

    As the authors train, but for their rate of 1e-3, which wants the ten thousand steps that they take.
    """

    rank: int = 8
    hidden: int = 32
    epochs: int = 40
    rate: float = 1e-2
    halve: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """Kernels, and the mean squared error on held-out texts: `alone` the base's, `curve` after each epoch."""

    kernels: Kernels
    alone: float
    curve: tuple[float, ...]


def predicted(kernels: Kernels, example: Example) -> Tensor:
    """What each query finds in what it reads and in the state of all that is gone: [H,m,D]."""
    num_kv_heads = example.keys.shape[0]
    features = kernels.phi(example.queries).unflatten(0, (num_kv_heads, -1))
    weights = (features @ kernels.psi(example.keys)[:, None].mT) * example.gone[:, None]
    mass = weights.sum(-1).clamp(min=LEAST)
    value = (weights @ example.values[:, None].float()) / mass[..., None]
    return merged(example.read, example.lse, Rest(value.flatten(0, 1), mass.log().flatten(0, 1)))


def error(kernels: Kernels, example: Example) -> Tensor:
    """Mean squared error of the heads' outputs."""
    return (predicted(kernels, example) - example.target).square().mean()


def fit(layer: Layer, examples: Sequence[Example], held_out: Sequence[Example], recipe: Recipe) -> Fitted:
    """Train one layer's kernels on its examples."""
    generator = torch.Generator().manual_seed(recipe.seed + layer.index)
    heads = layer.num_heads, layer.num_kv_heads
    kernels = drawn(heads, layer.head_dim, recipe.hidden, recipe.rank, START, generator).to(layer.device)
    optimizer = torch.optim.Adam(kernels.parameters(), recipe.rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, recipe.halve, 0.5)
    alone = sum(float((e.read - e.target).square().mean()) for e in held_out) / len(held_out)
    curve: list[float] = []
    best = copy.deepcopy(kernels)
    for _ in range(recipe.epochs):
        kernels.train()
        for number in torch.randperm(len(examples), generator=generator).tolist():
            optimizer.zero_grad()
            error(kernels, examples[number]).backward()
            optimizer.step()
        schedule.step()
        curve.append(mean_error(kernels, held_out))
        if curve[-1] == min(curve):
            best = copy.deepcopy(kernels)
    return Fitted(best.requires_grad_(False).eval(), alone, tuple(curve))


@torch.no_grad()
def mean_error(kernels: Kernels, examples: Sequence[Example]) -> float:
    """Over texts, without dropout."""
    kernels.eval()
    return sum(float(error(kernels, e)) for e in examples) / len(examples)
