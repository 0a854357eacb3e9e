"""SparQ gives the numbers of its authors' library and of the snippet beside their paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.attention import View, read
from methods.base import Budget, Rest, Step
from methods.fused import largest_channels
from methods.scores import group_sum
from methods.sparq.method import SparQ, SparQIndex
from methods.store import Part
from tests.golden import Driven, Golden, layer_of, names, selections_of, sets

NONE = torch.zeros(0)


def started(method: SparQ, budget: Budget, q: Tensor, k: Tensor, v: Tensor) -> tuple[Driven, SparQIndex]:
    """After a prompt k, v [G,n,D]; of the queries [H,D] only the shape counts."""
    driven = Driven.start(method, budget, layer_of(q.shape[0], k.shape[0], q.shape[1]), NONE, k, v)
    index = driven.state.index
    assert isinstance(index, SparQIndex)
    return driven, index


@pytest.mark.parametrize("name", names("sparq_"))
def test_sparq_library(name: str) -> None:
    """Channels, logits and their group sums, sets, share of what is read, mean value, outputs.

    Their newest local_k + 1 tokens are forced, of which the current one is on top here.
    """
    g = Golden(name)
    k, v, reallocates = g["k"], g["v"], bool(g.p("reallocate"))
    method = SparQ(rank=g.p("r"), mean_value=reallocates, reduce="logit")
    budget = Budget(0, g.p("local_k"), g.p("k") - g.p("local_k"))
    for t, length in enumerate(g["lens"].tolist()):
        q, last = g["q"][t], length - 1
        driven, index = started(method, budget, q, k[:, :last], v[:, :last])
        found = selections_of(index)
        y = driven.step(q[:, None], k[:, last:length], v[:, last:length], last)
        torch.testing.assert_close(y[:, 0], g["out_y"][t], rtol=1e-4, atol=1e-4)
        [selection] = found
        assert selection.positions is not None
        local = torch.arange(last - budget.local, length).expand(k.shape[0], -1)
        assert sets(torch.cat([selection.positions, local], 1)) == sets(g["out_selected"][t])
        assert sets(largest_channels(q, method.num_channels(index.layer), index.layer)[1]) == sets(g["out_channels"][t])
        logits = index.approximate_logits(q)
        torch.testing.assert_close(logits, g["out_approx_logits"][t][:, :length], rtol=1e-4, atol=1e-4)
        group_score = g["out_group_score"][t][:, :length]
        torch.testing.assert_close(group_sum(logits, k.shape[0]), group_score, rtol=1e-4, atol=1e-4)
        assert (selection.rest is not None) == reallocates
        if selection.rest is not None:
            assert_rest(selection.rest, g["out_alpha"][t], g["out_mean_value"][t])


def assert_rest(rest: Rest, alpha: Tensor, mean: Tensor) -> None:
    """alpha [H]: share of what is read; mean [G,D]: the value that stands in for the rest."""
    assert rest.mass is not None and rest.value is not None
    torch.testing.assert_close(rest.mass[:, 0], alpha, rtol=1e-4, atol=1e-4)
    group = alpha.shape[0] // mean.shape[0]
    torch.testing.assert_close(rest.value[:, 0], mean.repeat_interleave(group, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", names("sparqsnippet_"))
def test_sparq_snippet(name: str) -> None:
    """All tokens, the current one too, compete for the k that are read."""
    g = Golden(name)
    for t, length in enumerate(g["lens"].tolist()):
        q, k, v = g["q"][t], g["k"][:, :length], g["v"][:, :length]
        driven, index = started(SparQ(rank=g.p("r"), mean_value=True), Budget(0, 0, g.p("k")), q, k, v)
        step = Step(q[:, None], torch.tensor([length - 1]), length - 1, 0, length, g.p("k"))
        selection = index.select(step)
        chosen, rest = selection.positions, selection.rest
        assert chosen is not None and sets(chosen) == sets(g["out_selected"][t])
        shares = index.approximate_logits(q).softmax(-1)
        torch.testing.assert_close(shares, g["out_approx_prob"][t][:, :length], rtol=1e-4, atol=1e-4)
        assert rest is not None
        assert_rest(rest, g["out_alpha"][t], v.mean(1))
        part = Part(*driven.state.store.gather(chosen), chosen)
        y, _, _ = read(driven.state.layer, step, [part], View(), None, rest)
        torch.testing.assert_close(y[:, 0], g["out_y"][t], rtol=1e-4, atol=1e-4)
