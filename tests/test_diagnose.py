"""Diagnostics: exact against an independent computation, without influence on the answer, ended by the oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.compose import compose_method
from engine.arm import Plan
from engine.diagnose import MEASURES, Best, Fidelity, Watch, mask_of, renormalised
from engine.generate import Answer, Question, Stop, answer
from engine.model import Model
from methods.base import Budget, Method, Step
from methods.budget import parse_budget, resolve
from methods.full import Full
from methods.oracle import Oracle
from methods.random import Random
from methods.window import Window
from tests.golden import layer_of
from tests.models import MHA, model_of, networks, prompt_ids

LENGTH, NUM_NEW, SHARE = 160, 12, 0.5
METHODS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(networks("llama3_rope")[0])


def plan_of(name: str, method: Method, watch: Watch | None, model: Model, share: float = 0.2) -> Plan:
    if method.kind == "none":
        return Plan(name, method, None, watch)
    budget = resolve(parse_budget(share), method, LENGTH, 4, SHARE, 0.0, model.bytes_per_token)
    return Plan(name, method, budget, watch)


def ask(model: Model, *plans: Plan, context_end: int | None = None) -> list[Answer]:
    question = Question(prompt_ids(LENGTH), 0, Stop(NUM_NEW, frozenset()), context_end)
    return answer(model, question, plans)


def watched(model: Model, method: Method, num_steps: int = 16, **how: Any) -> tuple[dict[str, np.ndarray], Watch]:
    watch = Watch(SHARE, num_steps)
    ask(model, plan_of("it", method, watch, model), **how)
    return watch.measured(), watch


@pytest.mark.parametrize("name", METHODS)
def test_a_watched_method_gives_the_same_answer_and_costs(name: str, model: Model) -> None:
    method = compose_method(name, ["method.iterations=4"] if name == "pqcache" else [])[1].untrained()
    watch = Watch(SHARE, 4, selections=True)
    plain, seen = (ask(model, plan_of(name, method, w, model))[0] for w in (None, watch))
    assert seen.tokens == plain.tokens
    for field in ("attended_mean", "attended_max", "budget_tokens", "resident", "moved", "notes"):
        assert getattr(seen.ledger, field) == getattr(plain.ledger, field), field
    assert seen.ledger.tpot_s is None and seen.ledger.ttft_s is None, "the times of a watched answer are no times"
    found = watch.measured()
    assert list(found["steps"]) == [0, 4, 8] and found["mass"].shape == (3, model.num_selectable, 4)
    assert (found["mass"] <= 1 + 1e-6).all() and (found["mass"] > 0).all()
    if method.kind == "tokens" and method.spread == "head":
        recall = found["recall"]
        assert ((recall >= 0) & (recall <= 1)).all()


def test_full_catches_everything(model: Model) -> None:
    found, _ = watched(model, Full())
    assert np.allclose(found["mass"], 1, atol=1e-6) and (found["error"] < 1e-5).all()
    for name in ("recall", "oracle_mass", "oracle_error"):
        assert np.isnan(found[name]).all(), "nothing was left out, so there is no choice to compare with"


@pytest.mark.parametrize("scope", ["kv_head", "q_head"])
@pytest.mark.parametrize("context_end", [None, LENGTH - 9])
def test_the_oracle_is_the_best_choice(scope: Any, context_end: int | None, model: Model) -> None:
    found, _ = watched(model, Oracle(scope), context_end=context_end)
    assert (found["recall"] == 1).all()
    assert np.allclose(found["mass"], found["oracle_mass"], atol=1e-6)
    assert np.allclose(found["error"], found["oracle_error"], atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "mistral_sliding", "qwen3"])
def test_soft_caps_and_sliding_layers(family: str) -> None:
    model = model_of(networks(family)[0])
    found, _ = watched(model, Oracle())
    assert found["recall"].shape[1] == model.num_selectable == len(found["layers"])
    assert (found["recall"] == 1).all() and np.allclose(found["mass"], found["oracle_mass"], atol=1e-6)


@pytest.mark.parametrize("heads", [{}, MHA], ids=["gqa", "mha"])
def test_window_and_random_have_their_expected_share(heads: dict[str, Any]) -> None:
    model = model_of(networks("llama3_rope", **heads)[0])
    random, _ = watched(model, Random())
    window, _ = watched(model, Window())
    for found in (random, window):
        grouped = found["oracle_mass"].mean(-1) - found["mass"].mean(-1)
        assert (grouped > -1e-6).all(), "over the heads of a group nothing holds more than the best choice"
    budget = plan_of("random", Random(), None, model).budget
    assert budget is not None
    # A draw of k of c candidates hits each of the true top-k with chance k / c.
    expected = budget.middle / (LENGTH - budget.sink - budget.local)
    assert random["recall"].mean() == pytest.approx(expected, abs=0.06)
    assert (random["recall"].mean() < 0.5) and (window["recall"].mean() < 0.5)


def test_dropped_tokens_count_as_missed(model: Model) -> None:
    """The window drops for good; the true attention is still over all tokens, generated ones included."""
    found, watch = watched(model, Window())
    shadow = watch.layers[0].fidelity
    assert shadow is not None and len(shadow.shadow) == LENGTH + NUM_NEW - 1
    assert found["mass"].max() < 1


def test_against_a_plain_computation() -> None:
    """One step of one layer by explicit loops over heads: also with learned sinks, ragged lists and a soft cap."""
    torch.manual_seed(0)
    layer = layer_of(4, 2, 8)
    keys, values = torch.randn(2, 30, 8), torch.randn(2, 30, 8)
    sinks, queries, y = torch.randn(4), torch.randn(4, 1, 8), torch.randn(4, 1, 8)
    budget = Budget(sink=2, local=5, middle=7)
    fidelity = Fidelity(layer, Best(budget, 0.5, each_head=False), 16, keys, values, sinks)
    seen = torch.tensor([[0, 1, 7, 9, 12, 29], [0, 1, 20, 21, 29, -1]])
    step = Step(queries, torch.tensor([29]), 29, 2, 24, 7)
    found = fidelity.measure(step, seen, None, y)
    weights = []
    for head in range(4):
        score = (queries[head] @ keys[head // 2].T)[0] * layer.scale
        weights.append(torch.cat([score, sinks[head][None]]).softmax(0)[:-1])
    for head in range(4):
        row, read = weights[head], sorted({p for p in seen[head // 2].tolist() if p >= 0})
        # 12 tokens: 6 of them local, so candidates are 2..22, the top 6 by the group's sum.
        group = weights[2 * (head // 2)] + weights[2 * (head // 2) + 1]
        top = sorted(range(2, 23), key=lambda p: -float(group[p]))[:6]
        chosen = [0, 1, *top, *range(23, 30)]
        true = row @ values[head // 2]
        kept = torch.cat([row[chosen], (1 - row.sum())[None]])
        best = (kept / kept.sum())[:-1] @ values[head // 2][chosen]
        expected = [
            len(set(top) & set(read)) / 6,
            row[read].sum() / row.sum(),
            row[chosen].sum() / row.sum(),
            (y[head, 0] - true).norm() / true.norm(),
            (best - true).norm() / true.norm(),
        ]
        for name, value, want in zip(MEASURES, found[:, head], expected, strict=True):
            assert float(value) == pytest.approx(float(want), abs=1e-5), (head, name)


def test_lists_of_query_heads_and_pads() -> None:
    seen, own = torch.tensor([[3, 1, -1]]), torch.tensor([[True, False, True], [False, True, True]])
    assert mask_of(seen, None, 2, 4).tolist() == [[False, True, False, True]] * 2
    assert mask_of(seen, own, 2, 4).tolist() == [[False, False, False, True], [False, True, False, False]]
    whole = renormalised(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[True, False, True]]), False)
    assert torch.allclose(whole, torch.tensor([[5 / 7, 0, 2 / 7]]))


@pytest.mark.parametrize(("most", "expected"), [(16, range(11)), (4, [0, 4, 8]), (3, [0, 4, 8]), (1, [0])])
def test_steps_are_sampled_evenly(most: int, expected: Any, model: Model) -> None:
    assert list(watched(model, Random(), num_steps=most)[0]["steps"]) == list(expected)


def test_selections_are_what_was_attended(model: Model) -> None:
    watch = Watch(SHARE, selections=True)
    [reply] = ask(model, plan_of("random", Random(), watch, model))
    found = watch.selected()
    positions = found["positions"]
    assert positions.dtype == np.int32 and positions.shape[:3] == (NUM_NEW - 1, model.num_selectable, 2)
    held = (positions >= 0).sum(-1)
    assert float(held.mean()) == pytest.approx(reply.ledger.attended_mean) and held.max() == reply.ledger.attended_max
    for step in range(NUM_NEW - 1):
        assert positions[step].max() < LENGTH + step, "the token that is being decoded is no past token"
        assert (positions[step, :, :, :4] == [0, 1, 2, 3]).all()
    assert (np.diff(positions.astype(np.int64), axis=-1)[positions[..., 1:] >= 0] > 0).all(), "ascending, each once"
    both = Watch(SHARE, selections=True)
    ask(model, plan_of("oracle", Oracle("q_head"), both, model))
    assert both.selected()["positions"].shape[2] == 4, "a list per query head where these choose for themselves"


def test_arms_side_by_side_see_the_same_as_alone(model: Model) -> None:
    methods: list[Method] = [Window(), Random(), Oracle()]
    alone = [watched(model, method)[0] for method in methods]
    watches = [Watch(SHARE, 16) for _ in methods]
    ask(
        model,
        *(
            plan_of(str(n), method, watch, model)
            for n, (method, watch) in enumerate(zip(methods, watches, strict=True))
        ),
    )
    for expected, watch in zip(alone, watches, strict=True):
        for name, values in watch.measured().items():
            assert np.allclose(values, expected[name], atol=1e-5, equal_nan=True), name


def test_a_second_attempt_starts_afresh(model: Model) -> None:
    watch = Watch(SHARE, 16)
    plan = plan_of("random", Random(), watch, model)
    ask(model, plan)
    once = watch.measured()
    ask(model, plan)
    assert {name: values.shape for name, values in watch.measured().items()} == {n: v.shape for n, v in once.items()}


def test_short_prompts_are_not_watched(model: Model) -> None:
    watch = Watch(SHARE, 16, selections=True)
    ask(model, Plan("random", Random(), None, watch))
    assert watch.layers == {} and watch.measured()["steps"].size == 0 and watch.selected()["steps"].size == 0
    assert math.prod(watch.measured()["mass"].shape) == 0
