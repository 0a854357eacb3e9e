"""The seam and the loop give Hugging Face's own greedy tokens, for every family that is supported."""

from __future__ import annotations

import pytest

from engine.arm import Plan
from engine.generate import Question, Stop, answer
from engine.model import Model
from methods.full import Full
from tests.models import FAMILIES, greedy, model_of, networks, prompt_ids

NUM_NEW = 24
FULL = Plan("full", Full(), None)


def tokens(model: Model, length: int, plan: Plan = FULL) -> list[int]:
    question = Question(prompt_ids(length), 0, Stop(NUM_NEW, frozenset()))
    return list(answer(model, question, [plan])[0].tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_equals_generate(family: str) -> None:
    ours, theirs = networks(family)
    expected = greedy(theirs, prompt_ids(90), NUM_NEW)
    assert len(set(expected)) > 4, "the random network repeats itself; the test would say little"
    assert tokens(model_of(ours), 90) == expected


@pytest.mark.parametrize("family", ["llama3_rope", "gemma2", "gemma3", "mistral_sliding", "phi3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_chunked_prefill_equals_one_chunk(family: str, attention: str) -> None:
    ours, theirs = networks(family)
    expected = greedy(theirs, prompt_ids(90), NUM_NEW)
    for chunk in (1, 7, 64):
        assert tokens(model_of(ours, prefill_chunk=chunk, attention=attention), 90) == expected
