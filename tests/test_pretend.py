"""The CUDA branches of all methods without a GPU: same answers, sides never mixed, steps that wait for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer, make_arm, prefill
from engine.model import Model
from engine.static import begin
from methods.base import Budget, Method
from methods.h2o.method import H2O, FixedH2O
from methods.pqcache.method import PQCache
from tests.models import model_of, networks, prompt_ids
from tests.pretend import CUDA, Graph, Mixed, Pinned, There, Waited, on_gpu, pretended
from tests.test_fixed import BUDGET as FIXED_BUDGET
from tests.test_fixed import METHODS as FIXED
from tests.test_methods import NAMES, method_of, tenth

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/test_gpu.py")

SLOW = {"sparq", "sparq_mean", "sparq_logit", "oracle", "pq_device", "pq_lru", "pq_uncached", "quest_max", "h2o_mean"}


def model() -> Model:
    return model_of(networks("llama", head_dim=32)[0])


def ask(model: Model, method: Method, decode: str, budgeted: bool = False) -> Answer:
    question = Question(prompt_ids(150), 1, Stop(6, frozenset()), decode=decode)
    budget = FIXED_BUDGET if budgeted else tenth(method, model)
    return answer(model, question, [Plan("it", method, None if method.kind == "none" else budget)])[0]


def quick(method: Method) -> Method:
    """Clustering takes the interpreter longest."""
    return replace(method, iterations=2, bits=3) if isinstance(method, PQCache) else method


@pytest.mark.parametrize("name", NAMES)
def test_methods_answer_as_on_the_host(name: str) -> None:
    method = quick(method_of(name))
    expected = ask(model(), method, "eager")
    with pretended():
        found = ask(on_gpu(model()), method, "eager")
    assert found.tokens == expected.tokens
    ours, theirs = found.ledger, expected.ledger
    assert (ours.attended_mean, ours.moved, ours.hit_rates) == (theirs.attended_mean, theirs.moved, theirs.hit_rates)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FIXED])
def test_a_graph_answers_as_the_host_s_steps_and_waits_for_nothing(name: str) -> None:
    """A wait within the captured step raises."""
    method = FIXED[name] if name in SLOW else quick(FIXED[name])
    expected = ask(model(), method, "static", budgeted=True)
    with pretended():
        found = ask(on_gpu(model()), method, "graph", budgeted=True)
    assert (expected.ledger.decode, found.ledger.decode) == ("static", "graph")
    assert found.tokens == expected.tokens
    ours, theirs = found.ledger, expected.ledger
    assert (ours.attended_mean, ours.moved, ours.hit_rates) == (theirs.attended_mean, theirs.moved, theirs.hit_rates)
    assert ours.resident == theirs.resident


@pytest.mark.parametrize("method", [H2O(), H2O(normalize=True)])
def test_the_kernel_is_told_how_h2o_ranks(method: H2O) -> None:
    """Slots that weigh alike by their sums, and not by their ages, and the other way round."""

    def given_up() -> int:
        layer = model().layers(0)[0]
        layer = replace(layer, num_heads=1, num_kv_heads=1)
        held = {"scores": torch.tensor([[1.0, 1.5, 9.0]]).double(), "positions": torch.tensor([[30, 29, 3]])}
        state = {**held, "vacant": torch.tensor([[2]]), "v": torch.zeros(1, 3, 32), "now": torch.tensor(30)}
        there = {name: tensor.to("cuda") if pretending else tensor for name, tensor in state.items()}
        now, score = there.pop("now"), torch.zeros(1, 3, device="cuda" if pretending else "cpu")
        own = SimpleNamespace(layer=layer, budget=Budget(0, 0, 0), recent=0, method=method, **there)
        own.positions[0, 2] = 31  # not allowed
        FixedH2O.weigh(own, score, now)  # type: ignore[arg-type]
        return int(own.vacant)

    pretending = False
    expected = given_up()
    with pretended():
        pretending = True
        assert given_up() == expected == int(method.normalize)


FREE = {
    *("view", "_unsafe_view", "_reshape_alias", "reshape", "flatten", "unflatten", "t", "transpose", "permute", "mT"),
    *("unsqueeze", "squeeze", "expand", "expand_as", "slice", "select", "narrow", "split", "chunk", "unbind"),
    *("as_strided", "diagonal", "detach", "alias", "lift_fresh"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
}


class Operations(TorchDispatchMode):
    """How often torch was asked for something that is neither a view nor empty memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += int(func.overloadpacket.__name__ not in FREE)
        return func(*args, **(kwargs or {}))


def launches(method: Method, num_layers: int) -> int:
    """Operations and kernels of a captured step, as many as the nodes of its graph or a few more."""
    with pretended() as device, torch.inference_mode():
        model = on_gpu(model_of(networks("llama", head_dim=32, num_hidden_layers=num_layers)[0]))
        layers, ids = model.layers(0), prompt_ids(120)
        plan = Plan("it", method, None if method.kind == "none" else FIXED_BUDGET)
        arm = make_arm(model, layers, plan, prefill(model, layers, ids, [plan]))
        for layer in arm.selective:
            layer.index.ready()
        static, _ = begin("static", model, [arm], 8, audited=False)
        assert static is not None
        token = torch.full((1, 1), 5, device="cuda")
        static.step(token)
        before = len(device.launches)
        asked = Operations()
        with asked:
            static.step(token)
        return asked.number + len(device.launches) - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [
        *[("full", 17), ("window", 18), ("snapkv", 18), ("h2o", 19), ("oracle", 22), ("sparq", 25), ("quest", 27)],
        *[("pq_device", 27), ("pq_host", 61)],
    ],
)
def test_a_layer_asks_for_few_launches(name: str, most: int) -> None:
    """7 of them are the layer's matrices."""
    method = quick(FIXED[name])
    assert launches(method, 2) - launches(method, 1) <= most


def test_sides_are_not_mixed() -> None:
    with pretended():
        there, host = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.is_cuda and there.device == CUDA and not host.is_cuda
        assert isinstance(there[1:] * 2, There) and isinstance(torch.zeros_like(there), There)
        assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2], "a single number may come from the host"
        with pytest.raises(Mixed, match=r"on the host, others on the GPU, at tests/test_pretend\.py"):
            there + host
        with pytest.raises(Mixed, match="an index on the GPU"):
            host[there.long()]
        assert not there.cpu().is_cuda and host.to("cuda").is_cuda and not isinstance(there.to("cpu"), There)
        assert isinstance(torch.empty(4, pin_memory=True)[1:], Pinned)


def test_waits_are_noted_and_free_copies_are_none() -> None:
    with pretended() as device:
        there, pinned = torch.arange(4, device="cuda"), torch.zeros(4, dtype=torch.long, pin_memory=True)
        pinned.copy_(there, non_blocking=True)
        there.copy_(pinned, non_blocking=True)
        there.masked_fill_(there > 2, 0)
        there[there > 2] = 0
        assert device.waits == []
        asking: list[Callable[[], object]] = [
            lambda: there.sum().item(), lambda: bool(there.any()), lambda: there.nonzero(), lambda: there[there > 0],
            lambda: there[torch.tensor([1])], lambda: there[there[1]], lambda: there.cpu(),
            lambda: there.copy_(torch.ones(4)), lambda: torch.tensor([1], device="cuda"),
            lambda: there.repeat_interleave(there), lambda: torch.equal(there, there),
        ]  # fmt: skip
        for number, call in enumerate(asking, 1):
            call()
            assert len(device.waits) == number, number


def test_a_graph_repeats_what_was_asked_on_the_same_memory() -> None:
    with pretended():
        total, step = torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")
        number, graph = 3, Graph()
        with torch.cuda.graph(graph):  # type: ignore[arg-type]
            out = total + step * number
            total += step
        assert total.tolist() == [0, 0], "capturing runs nothing"
        number = 100
        step.fill_(2)
        for _ in range(2):
            graph.replay()
        assert (out.tolist(), total.tolist()) == ([8, 8], [4, 4]), "the 3 is in the graph, memory is read anew"
        with pytest.raises(Waited, match=r"item at tests/test_pretend\.py"), torch.cuda.graph(Graph()):  # type: ignore[arg-type]
            total.sum().item()
