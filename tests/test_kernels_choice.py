"""What a step chooses by, in a kernel or two: shares of a softmax, H2O's slots, Quest's pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods import fused, quest
from methods.base import Budget, Layer
from methods.h2o.method import H2O
from methods.kernels.channels import largest_channels
from methods.kernels.pages import page_bounds, put_page
from methods.kernels.shares import middle_shares
from methods.kernels.slots import weigh
from methods.scores import attention, group_sum, lightest
from tests.models import model_of, networks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
G = 2
# Called with lists of arguments.
WEIGH: Callable[..., Tensor] = weigh
BOUNDS: Callable[..., Tensor] = page_bounds


def layer_of(group: int, sinks: bool = False, softcap: float | None = None) -> Layer:
    """G KV heads and `group` query heads each."""
    layer = model_of(networks("llama")[0]).layers(0)[0]
    learned = torch.linspace(-1, 2, G * group) if sinks else None
    return replace(layer, num_heads=G * group, num_kv_heads=G, sinks=learned, softcap=softcap)


def on_device(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize(("num", "now", "tile"), [(70, 69, 32), (70, 40, 16), (33, 20, 4096)])
@pytest.mark.parametrize("sinks", [False, True])
def test_middle_shares(group: int, num: int, now: int, tile: int, sinks: bool) -> None:
    layer, budget, score = layer_of(group, sinks), Budget(3, 9, 8), 5 * torch.randn(G * group, num + 4)[:, :num]
    score[:, now + 1 :] = 99.0  # rows to come hold anything
    expected = fused.middle_shares(score, torch.tensor(now), budget, layer)
    found = middle_shares(on_device(score), on_device(torch.tensor(now)), 3, 9, G, on_device(layer.sinks), tile).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(found == -1.0, expected == -1.0)


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("by_age", [False, True])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("block", [8, 64])
def test_weigh_slots(group: int, by_age: bool, sinks: bool, block: int) -> None:
    """Two steps, so that what was vacant is taken and its score begins anew."""
    layer, method, num, now = layer_of(group, sinks), H2O(normalize=by_age), 29, 60
    positions = torch.stack([torch.randperm(now + 1)[:num].sort().values for _ in range(G)])
    scores, vacant = torch.rand(G, num, dtype=torch.float64), torch.tensor([[num - 1], [4]])
    ours = tuple(map(on_device, (scores.clone(), positions, vacant.clone())))
    for step in range(2):
        score, moment = 4 * torch.randn(G * group, num), torch.tensor(now + step)
        state: list[Any] = [on_device(value) for value in (score, *ours, moment)]
        found = WEIGH(*state, 4, 10, by_age, on_device(layer.sinks), torch.float32, block)
        scores.scatter_(1, vacant, 0.0)
        weights = attention(score[:, None], layer)[:, 0]
        scores += group_sum(weights, G)
        allowed = (positions >= 4) & (positions <= moment - 10)
        gone = lightest(method.rank(scores, positions, moment), positions, allowed)
        vacant = (positions == gone).to(torch.int8).argmax(1, keepdim=True)
        torch.testing.assert_close(found.cpu(), weights, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours[0].cpu(), scores, rtol=1e-6, atol=1e-7)
        assert torch.equal(ours[2].cpu(), vacant)


@pytest.mark.parametrize(("by_age", "goes"), [(False, 0), (True, 1)])
def test_an_age_counts_the_newest_query(by_age: bool, goes: int) -> None:
    """1 at the newest token against 1.5 one step before: 1 / 1 and 1.5 / 2 by age."""
    held, positions = torch.tensor([[1.0, 1.5, 9.0]]).double(), torch.tensor([[30, 29, 3]])
    state = [on_device(t) for t in (torch.zeros(1, 3), held, positions, torch.tensor([[5]]), torch.tensor(30))]
    WEIGH(*state, 20, 0, by_age, None, torch.float32)
    assert state[3].item() == goes


@pytest.mark.parametrize("block", [4, 32])
def test_of_equal_slots_the_later_token_goes_and_nobody_else_than_allowed(block: int) -> None:
    positions = torch.tensor([[7, 3, 9, 5, 0, 8, 30], [6, 12, 4, 10, 2, 11, 1]])
    scores = torch.ones(G, 7, dtype=torch.float64)
    scores[1, 1] = 0.5
    for sink, recent, expected in ((0, 20, [2, 3]), (4, 24, [3, 0]), (31, 0, [6, 1])):
        vacant = torch.tensor([[6], [6]])
        held = scores.clone()
        held[:, 6] = 9.0  # the newcomer: it begins at 0, and its share of an even softmax is everybody's
        score = torch.zeros(4, 7)
        score[:, 6] = 3.0
        now, vacant = on_device(torch.tensor(30)), on_device(vacant)
        given = (on_device(t) for t in (score, held, positions))
        WEIGH(*given, vacant, now, sink, recent, False, None, torch.float32, block)
        assert vacant.flatten().tolist() == expected, (sink, recent)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(("dim", "num"), [(64, 16), (80, 20), (16, 16), (256, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_largest_channels(group: int, dim: int, num: int, dtype: torch.dtype) -> None:
    """The first half of the channels tie in pairs; one query is of zeros."""
    layer, queries = layer_of(group), torch.randn(G * group, dim).to(dtype)
    queries[:, 1 : dim // 2 : 2] = -queries[:, : dim // 2 : 2]
    queries[group - 1] = 0
    expected = fused.largest_channels(queries, num, layer)
    for found, other in zip(largest_channels(on_device(queries), G, num, layer.scale), expected, strict=True):
        torch.testing.assert_close(found.cpu(), other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_pages(group: int, dtype: torch.dtype, softcap: float | None) -> None:
    layer, dim, page, sink, local, now = layer_of(group, softcap=softcap), 24, 5, 3, 11, 207
    keys = torch.randn(G, now + 1, dim).to(dtype)
    low = torch.full((G, 50, dim), torch.inf, dtype=dtype)
    high = -low
    places = ((torch.arange(sink, now) - sink) // page)[:, None].expand(-1, dim).expand(G, -1, -1)
    low.scatter_reduce_(1, places, keys[:, sink:now], "amin")
    high.scatter_reduce_(1, places, keys[:, sink:now], "amax")
    ours = tuple(map(on_device, (low.clone(), high.clone())))
    moment, new = torch.tensor(now), 9 * keys[:, now]
    put_page(ours[0], ours[1], on_device(new), on_device(moment), sink, page)
    last = (now - sink) // page
    for held, plain, widest in zip(ours, (low, high), (torch.minimum, torch.maximum), strict=True):
        plain[:, last] = widest(plain[:, last], new)
        assert torch.equal(held.cpu(), plain)
    queries = torch.randn(G * group, dim).to(dtype)
    asked: list[Any] = [on_device(value) for value in (queries, *ours, moment)]
    found = BOUNDS(*asked, sink, local, page, layer.scale, softcap).cpu()
    unused = torch.arange(50) * page + sink >= now - local
    expected = quest.bounds(queries, low, high, layer).masked_fill(unused, -torch.inf)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert 30 < int((found[0] > -torch.inf).sum()) < 50
