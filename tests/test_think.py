"""ThinK with nothing pruned is full attention; pruned keys are stored narrow, and read as keys with zeros."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from configs.compose import compose_method
from engine.arm import Plan
from engine.generate import Question, Stop, answer
from methods.base import Budget
from methods.narrow import NarrowStore
from methods.think import Think
from scripts.conformance import Case
from tests.golden import Driven, layer_of
from tests.models import greedy, model_of, networks, prompt_ids

NO_BUDGET = Budget(0, 0, 0)


@pytest.mark.parametrize("method", [Think(ratio=0), Think(recent=150)], ids=["ratio", "recent"])
def test_nothing_pruned_is_full_attention(method: Think) -> None:
    case = Case(method, "group2")
    assert torch.equal(case.follow(None, 150, 24).logits, case.tiny.dense(150, 24))


def test_more_channels_come_nearer_to_full_attention() -> None:
    case = Case(Think(), "group2")
    dense, gaps = case.tiny.dense(150, 24), []
    for ratio in (0.2, 0.5, 0.9):
        found = case.follow(None, 150, 24, method=Think(ratio)).logits
        gaps.append(float((found - dense).square().mean().sqrt()))
    assert 1e-3 < gaps[0] < gaps[1] < gaps[2], gaps


@pytest.mark.parametrize("score_on", ["all", "pruned"])
def test_steps_equal_attention_on_keys_with_zeros(score_on: Literal["all", "pruned"]) -> None:
    """Channels, outputs and reads by the definition, in plain loops; new tokens stay whole."""
    torch.manual_seed(1)
    n, recent, dim = 60, 10, 16
    q, k, v = torch.randn(4, 70, dim), torch.randn(2, 70, dim), torch.randn(2, 70, dim)
    k[:, 55:60] *= torch.rand(2, 1, dim) * 8  # what is recent has a say only if all keys are scored
    layer = layer_of(4, 2, dim)
    method = Think(0.4, recent, 8, score_on)
    driven = Driven.start(method, NO_BUDGET, layer, q[:, :n], k[:, :n], v[:, :n])
    zeroed = k.clone()
    for head in range(2):
        scored = k[head, : n if score_on == "all" else n - recent]
        score = [
            float(q[2 * head : 2 * head + 2, n - 8 : n, c].square().mean() * scored[:, c].square().mean())
            for c in range(dim)
        ]
        gone = sorted(range(dim), key=lambda c: score[c])[:6]
        zeroed[head, : n - recent, gone] = 0
    for t in range(n, 70):
        y = driven.step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], t)
        for h in range(4):
            weights = (zeroed[h // 2, : t + 1] @ q[h, t] * dim**-0.5).softmax(0)
            torch.testing.assert_close(y[h, 0], weights @ v[h // 2, : t + 1], rtol=1e-4, atol=1e-5)
    store = driven.state.store
    assert isinstance(store, NarrowStore) and store.old_k.shape == (2, 50, 10)
    positions = torch.tensor([[69, 3, 55], [49, 50, 0]])
    found_k, found_v = store.gather(positions)
    for head, row in enumerate(positions):
        assert torch.equal(found_k[head], zeroed[head, row]) and torch.equal(found_v[head], v[head, row])


def test_keys_are_stored_narrow_and_bytes_say_so() -> None:
    model = model_of(networks("llama", head_dim=64)[0])
    question = Question(prompt_ids(600), 0, Stop(20, frozenset()))
    [found] = answer(model, question, [Plan("think", Think(), None)])
    ledger = found.ledger
    assert ledger.store == "real" and ledger.budget_tokens is None and ledger.attended_max == 618
    # int(0.4 * 64) = 25 of 64 channels go; 568 of 600 keys are narrow, and 19 new tokens have room for 34.
    assert ledger.resident["k"] == 2 * 3 * 4 * (568 * 39 + 32 * 64 + 34 * 64)
    assert ledger.resident["v"] == 2 * 3 * 4 * 64 * (600 + 34)
    assert ledger.resident["index"] == 2 * 3 * 39 * 2
    per_step = 2 * 3 * 4 * (568 * (39 + 64) + 32 * 128)
    assert per_step < ledger.moved["kv"] < per_step + 2 * 3 * 4 * 128 * 20


def test_a_prompt_that_is_all_recent_is_answered_densely() -> None:
    ours, theirs = networks("llama")
    [found] = answer(model_of(ours), Question(prompt_ids(30), 0, Stop(12, frozenset())), [Plan("t", Think(), None)])
    assert list(found.tokens) == greedy(theirs, prompt_ids(30), 12)


@pytest.mark.parametrize("override", ["method.ratio=1.0", "method.ratio=-0.1", "method.recent=-1", "method.window=0"])
def test_senseless_parameters_are_refused(override: str) -> None:
    with pytest.raises(ValueError, match=override.replace("method.", r"method\.")):
        compose_method("think", [override])
