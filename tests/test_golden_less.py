"""LESS gives the outputs and states of its authors' code, in generation and in the form that it is trained in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from methods.base import Budget, Layer, Method
from methods.h2o.method import H2O
from methods.less.kernels import Kernels
from methods.less.method import LESS, LESSIndex
from methods.window import Window
from scripts.less.fit import predicted
from scripts.less.record import Example
from tests.golden import Driven, Golden, layer_of, names, sets

OURS = {"q1": "q1", "q2": "q2", "k1": "k1", "k2": "k2", "mix": "interaction", "scale": "D", "mixed_scale": "D2"}


@dataclass(frozen=True)
class Given(LESS):
    """LESS with the kernels of a file."""

    file: str = ""

    def kernels(self, layer: Layer) -> Kernels:
        return kernels_of(Golden(self.file))


def kernels_of(g: Golden) -> Kernels:
    return Kernels({ours: g[f"w_{theirs}"] for ours, theirs in OURS.items()}).eval()


@pytest.mark.parametrize("name", names("less_gen"))
@torch.no_grad()
def test_generation(name: str) -> None:
    """Their first `heavy` tokens of a Lambda mask are our sink."""
    g = Golden(name)
    n, heavy, recent = g.p("prompt_len"), g.p("heavy"), g.p("recent")
    base: Method = Window() if g.p("lambda_mask") else H2O()
    budget = Budget(heavy, recent, 0) if g.p("lambda_mask") else Budget(0, recent, heavy)
    q, k, v = g["q"], g["k"], g["v"]
    layer = layer_of(q.shape[0], k.shape[0], q.shape[2])
    driven = Driven.start(Given(base, file=name), budget, layer, q[:, :n], k[:, :n], v[:, :n])
    index = driven.state.index
    assert isinstance(index, LESSIndex)
    for t in range(g.p("steps")):
        torch.testing.assert_close(index.values, g["out_H"][t], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(index.mass, g["out_z"][t], rtol=1e-4, atol=1e-4)
        at = n + t
        held = [[*row, at] for row in sets(index.store.positions())]
        assert [row[-recent - 1 :] for row in held] == [row[-recent - 1 :] for row in sets(g["out_attended"][t])]
        y = driven.step(q[:, at : at + 1], k[:, at : at + 1], v[:, at : at + 1], at)
        assert held == sets(g["out_attended"][t])
        torch.testing.assert_close(y[:, 0], g["out_y"][t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", names("less_parallel"))
@torch.no_grad()
def test_training_form(name: str) -> None:
    """All queries at once, each with its own set of dropped tokens, as kernels are trained."""
    g = Golden(name)
    q, k, v = g["q"], g["k"], g["v"]
    n = q.shape[1]
    layer = layer_of(q.shape[0], k.shape[0], q.shape[2])
    kept = g["out_sparse_mask"].bool()
    example = Example.of(layer, q, k, v, kept, torch.arange(n))
    found = predicted(kernels_of(g), example)
    torch.testing.assert_close(found, g["out_y"], rtol=1e-4, atol=1e-4)
