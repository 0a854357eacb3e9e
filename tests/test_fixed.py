"""Steps of fixed shapes give the same answers, bytes and audits as the eager ones that say what a method is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from engine.arm import Arm, Plan
from engine.generate import Answer, Question, Stop, answer, make_arm, prefill
from engine.ledger import AuditError
from engine.model import Model, rotary_of
from engine.static import EVEN, begin, fixed_layers, reason_against
from methods.adakv import AdaKV
from methods.base import Budget, Index, Layer, Method
from methods.expected import ExpectedAttention
from methods.full import Full
from methods.h2o.method import H2O
from methods.kcache import KCache
from methods.oracle import FixedOracle, Oracle, OracleIndex
from methods.pqcache.method import PQCache
from methods.pyramidkv import PyramidKV
from methods.quest import Quest
from methods.snapkv import SnapKV
from methods.sparq.method import SparQ
from methods.store import KVStore, Part
from methods.window import Window
from tests.models import MHA, model_of, networks, prompt_ids

NUM_NEW = 40  # more than the local window, so that new tokens leave it
BUDGET = Budget(4, 24, 40)
METHODS: dict[str, Method] = {
    "full": Full(),
    "window": Window(),
    "oracle": Oracle(),
    "h2o": H2O(),
    "h2o_mean": H2O(normalize=True, count_current=True),
    "snapkv": SnapKV(),
    "adakv": AdaKV(),
    "expected_attention": ExpectedAttention(),
    "pyramidkv": PyramidKV(),
    "sparq": SparQ(),
    "sparq_mean": SparQ(mean_value=True),
    "sparq_logit": SparQ(reduce="logit"),
    "pq_device": PQCache(clustering="gpu", bits=4, iterations=5, tier="device"),
    "pq_host": PQCache(clustering="gpu", bits=4, iterations=5, cache_block=8, cache_blocks=9, refresh=4),
    "pq_lru": PQCache(clustering="gpu", bits=4, iterations=5, cache_block=16, cache_blocks=3, refresh=8, policy="lru"),
    "pq_uncached": PQCache(clustering="gpu", bits=4, iterations=5, cache_blocks=0),
    "quest": Quest(page_tokens=8),
    "quest_max": Quest(page_tokens=5, reduce="max"),
}
TIERED = {"pq_host", "pq_lru", "pq_uncached"}
SLOTS = {"window", "h2o", "h2o_mean", "snapkv", "adakv", "expected_attention", "pyramidkv"}


def model(family: str = "llama", **changes: int) -> Model:
    return model_of(networks(family, **changes)[0])


def ask(model: Model, method: Method, decode: str, budget: Budget = BUDGET, num_tokens: int = 301) -> Answer:
    question = Question(prompt_ids(num_tokens), 0, Stop(NUM_NEW, frozenset()), decode=decode)
    plan = Plan("it", method, None if method.kind == "none" else budget)
    return answer(model, question, [plan])[0]


def both(model: Model, method: Method, budget: Budget = BUDGET) -> tuple[Answer, Answer]:
    """(static, eager), which has been checked to have been so."""
    static, eager = ask(model, method, "static", budget), ask(model, method, "eager", budget)
    assert (static.ledger.decode, eager.ledger.decode) == ("static", "eager")
    return static, eager


@lru_cache
def usual(name: str, grouped: bool) -> tuple[Answer, Answer]:
    """`both` at the usual budget, once for the tests that look at different sides of it."""
    return both(model("llama", **({} if grouped else MHA)), METHODS[name])


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "mha"])
@pytest.mark.parametrize("name", METHODS)
def test_same_answer_and_audit(name: str, grouped: bool) -> None:
    static, eager = usual(name, grouped)
    assert static.tokens == eager.tokens
    ours, theirs = static.ledger, eager.ledger
    assert (ours.attended_mean, ours.attended_max) == (theirs.attended_mean, theirs.attended_max)
    assert (ours.notes, ours.store, ours.budget_tokens) == (theirs.notes, theirs.store, theirs.budget_tokens)


@pytest.mark.parametrize("name", METHODS)
def test_same_traffic_but_for_free_slots(name: str) -> None:
    # An eager store of slots has up to 8 free ones, a static one has one; both are read.
    static, eager = usual(name, True)
    row = 2 * 2 * 16 * 4 * 3  # K and V, KV heads, head dim, float32, layers
    slots = 9 * row if name in SLOTS else 0
    assert static.ledger.moved["kv"] == pytest.approx(eager.ledger.moved["kv"], abs=slots)
    index = 9 * 2 * 8 * 3 if name in SLOTS else 0
    assert static.ledger.moved["index"] == pytest.approx(eager.ledger.moved["index"], abs=index)
    assert static.ledger.moved["kv"] > 0
    for name in ("misses", "refills", "codes", "spills"):
        assert static.ledger.moved[name] == eager.ledger.moved[name]
    assert static.ledger.cache_lookups == eager.ledger.cache_lookups
    assert static.ledger.cache_hits == eager.ledger.cache_hits


@pytest.mark.parametrize("family", ["qwen3", "llama3_rope"])
@pytest.mark.parametrize("name", ["full", "oracle", "h2o"])
def test_other_families(name: str, family: str) -> None:
    static, eager = both(model(family), METHODS[name])
    assert static.tokens == eager.tokens


@pytest.mark.parametrize("budget", [Budget(0, 0, 33), Budget(0, 33, 0), Budget(7, 0, 30), Budget(1, 1, 1)])
@pytest.mark.parametrize("name", ["oracle", "snapkv", "sparq", "h2o"])
def test_budgets_with_nothing_of_something(name: str, budget: Budget) -> None:
    static, eager = both(model(), METHODS[name], budget)
    assert static.tokens == eager.tokens
    assert static.ledger.attended_max == eager.ledger.attended_max


class Greedy(FixedOracle):
    """Reads one token more than it may."""

    def __init__(self, layer: Layer, budget: Budget, parts: Iterable[Part], room: int) -> None:
        super().__init__(layer, replace(budget, middle=budget.middle + 1), parts, room)


class Twice(FixedOracle):
    """Reads a token twice in place of another."""

    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, None]:
        chosen, _ = super().choose(queries, now)
        return torch.cat([chosen[:, :1], chosen[:, :-1]], 1), None


class Ahead(FixedOracle):
    """Reads the local window as its choice."""

    def choose(self, queries: Tensor, now: Tensor) -> tuple[Tensor, None]:
        chosen, _ = super().choose(queries, now)
        return torch.cat([now.expand(chosen.shape[0], 1), chosen[:, 1:]], 1), None


@pytest.mark.parametrize(("step", "says"), [(Greedy, "attended"), (Twice, "twice"), (Ahead, "outside")])
def test_the_audit_sees_static_steps(step: type[FixedOracle], says: str) -> None:
    class Cheat(OracleIndex):
        def fixed(self, room: int) -> FixedOracle:
            return step(self.layer, self.budget, self.store.held(), room)

    @dataclass(frozen=True)
    class Cheating(Oracle):
        def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
            return Cheat(layer, store, budget, self)

    with pytest.raises(AuditError, match=says):
        ask(model(), Cheating(), "static")


@pytest.mark.parametrize("name", ["full", "oracle", "sparq", "sparq_mean", "pq_device"])
def test_rows_to_come_weigh_nothing(name: str) -> None:
    """Buffers have room for later tokens; whatever lies there changes no answer."""
    network, method, ids = model(), METHODS[name], prompt_ids(150)
    plan = Plan(name, method, None if method.kind == "none" else BUDGET)
    expected = answer(network, Question(ids, 0, Stop(12, frozenset())), [plan])[0].tokens
    layers = network.layers(0)
    with torch.inference_mode():
        prefix = prefill(network, layers, ids, [plan])
        arm = make_arm(network, layers, plan, prefix)
        static, _ = begin("static", network, [arm], 16)
        assert static is not None
        for layer in static.layers:
            for _, held in layer.tensors():
                for dim in range(1, held.dim()):
                    if held.shape[dim] >= 150:  # tokens lie along it
                        held.narrow(dim, 150, held.shape[dim] - 150).fill_(30 if held.is_floating_point() else 3)
        found = [int(prefix.logits.argmax())]
        while len(found) < len(expected):
            found.append(int(static.step(torch.tensor([[found[-1]]])).argmax()))
    assert tuple(found) == expected


def test_what_stays_eager_says_so() -> None:
    network = model()
    found = ask(network, KCache(dense_layers=1), "static").ledger.decode
    assert found == "eager: it has no step of fixed shapes"
    assert ask(network, Full(), "graph").ledger.decode == "eager: a CUDA graph needs a CUDA device"
    sliding = ask(model("mistral_sliding"), Full(), "static").ledger.decode
    assert sliding == "eager: layers with a sliding window have no step of fixed shapes"
    question = Question(prompt_ids(301), 0, Stop(4, frozenset()), decode="static")
    plans = [Plan("a", Full(), None), Plan("b", Oracle(), BUDGET)]
    for each in answer(network, question, plans):
        assert each.ledger.decode.startswith("eager: arms share a run")


def test_a_graph_is_refused_where_the_model_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    network = replace(model(), device=torch.device("cuda"))
    arm = Arm(Plan("it", Full(), None), [], 301)
    assert reason_against("graph", network, [arm]) is None
    first, *others = network.geometry
    apart = replace(network, geometry=[replace(first, device=torch.device("cuda:1")), *others])
    assert reason_against("static", apart, [arm]) == "layers lie on several devices"
    monkeypatch.setattr(rotary_of(network.network), "rope_type", "dynamic")
    assert reason_against("static", network, [arm]) is None
    assert reason_against("graph", network, [arm]) == "the rotary embedding asks the host for the length"


def test_rows_begin_where_wide_loads_may() -> None:
    network = model()
    layers, plan = network.layers(0), Plan("it", SparQ(), BUDGET)
    with torch.inference_mode():
        arm = make_arm(network, layers, plan, prefill(network, layers, prompt_ids(301), [plan]))
        steps = fixed_layers(arm, 5, True)
    assert steps is not None
    for capacity in (dict(steps[0].tensors())["k"].shape[1], steps[0].step.channels.shape[2]):  # type: ignore[attr-defined]
        assert capacity == 320 and capacity % EVEN == 0


def test_no_step_waits_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph cannot capture, told without one: no tensor's number is asked for within a step."""

    def forbidden(*_: object) -> object:
        raise AssertionError("a step asked for a number")

    network = model()
    for name, method in METHODS.items():
        if name in TIERED:  # plain torch asks there; the kernels that do it on a GPU have tests of their own
            continue
        question = Question(prompt_ids(301), 0, Stop(2, frozenset()))
        layers = network.layers(0)
        plan = Plan(name, method, None if method.kind == "none" else BUDGET)
        with torch.inference_mode():
            arm = make_arm(network, layers, plan, prefill(network, layers, question.ids, [plan]))
            for layer in arm.selective:
                layer.index.ready()
            static, way = begin("static", network, [arm], 8)
            assert static is not None and way == "static"
            with monkeypatch.context() as patch:
                for asking in ("item", "tolist", "__bool__", "__int__", "__index__", "__float__", "nonzero", "cpu"):
                    patch.setattr(Tensor, asking, forbidden)
                static.step(torch.tensor([[5]]))
