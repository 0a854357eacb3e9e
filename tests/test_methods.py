"""Every method keeps the contract: dense when it may read everything, within its budget always, the same twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from configs.build import instance
from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.ledger import AuditError, Ledger
from engine.model import Model
from methods.base import Budget, Index, Layer, Method, Selection, Step
from methods.budget import parse_budget, resolve
from methods.store import EvictingStore, KVStore
from tests.models import FAMILIES, MHA, greedy, model_of, networks, prompt_ids

FOLDER = Path(__file__).parent.parent / "configs" / "method"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Of kind "none": they have no budget; what KIVI and ThinK keep is not exact, and tests of their own say how far.
UNBUDGETED = {"full", "kivi", "kivi_think", "think"}
OPEN = {"corm"}  # of kind "open": held to no budget
SELECTING = [name for name in NAMES if name not in UNBUDGETED | OPEN]
LOSSY = {"snapkv_think", "pqcache_kivi"}  # whatever the budget, K and V lose something
EXACT = [name for name in SELECTING if name not in LOSSY]
NUM_NEW = 20
LENGTH = 150
# InfLLM reads what is outside the local window at one distance, by design; its window then holds the whole prompt.
CLIPPED = {"infllm"}


def method_of(name: str, **changes: object) -> Method:
    node = {**yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), **changes}
    if name == "infllm":
        node.setdefault("block_tokens", 16)
        node["block_tokens"] = min(16, node["block_tokens"])
    built = instance(node, "method")
    assert isinstance(built, Method)
    return built.untrained()


def ask(model: Model, name: str, budget: Budget | None, method: Method | None = None, seed: int = 0) -> Answer:
    question = Question(prompt_ids(LENGTH), seed, Stop(NUM_NEW, frozenset()))
    return answer(model, question, [Plan(name, method or method_of(name), budget)])[0]


def whole(name: str, method: Method) -> Budget:
    """A budget that holds prompt and answer, with the method at work all the same."""
    if name in CLIPPED or method.split(10, 0.5)[1] == 0:
        return Budget(4, LENGTH + NUM_NEW, 0)
    return Budget(4, 20, LENGTH + NUM_NEW)


def tenth(method: Method, model: Model, ratio: str = "0.2") -> Budget:
    budget = resolve(parse_budget(ratio), method, LENGTH, 4, 0.5, 0, model.bytes_per_token)
    assert budget is not None
    return budget


def used(method: Method, ledger: Ledger) -> float:
    """Tokens of a step that the budget is held to: of the busiest head, or of the mean one where heads share it."""
    return ledger.attended_mean if method.spread in ("layer", "model") else ledger.attended_max


@lru_cache
def dense(family: str, grouped: bool = True) -> tuple[Model, list[int]]:
    """A model, and what Hugging Face itself answers with its weights."""
    ours, theirs = networks(family, **({} if grouped else MHA))
    return model_of(ours), greedy(theirs, prompt_ids(LENGTH), NUM_NEW)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral_sliding"])
@pytest.mark.parametrize("name", ["full", *EXACT])
def test_whole_budget_equals_generate(name: str, family: str) -> None:
    model, expected = dense(family)
    method = method_of(name)
    found = ask(model, name, None if name == "full" else whole(name, method), method)
    assert list(found.tokens) == expected


@pytest.mark.parametrize("name", EXACT)
def test_whole_budget_equals_generate_without_groups(name: str) -> None:
    model, expected = dense("llama", grouped=False)
    method = method_of(name)
    found = ask(model, name, whole(name, method), method)
    assert list(found.tokens) == expected


VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("oracle", {"scope": "q_head"}),
    ("oracle", {"top_p": 0.999999}),
    ("kcache", {"scope": "q_head"}),
    ("kcache", {"renormalise": True}),
    ("kcache", {"dense_layers": 2}),
    ("window", {"positions": "cache"}),
]


@pytest.mark.parametrize("family", ["llama3_rope", "qwen3", "gemma2"])
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_variants_with_a_whole_budget_equal_generate(name: str, changes: dict[str, object], family: str) -> None:
    model, expected = dense(family)
    method = method_of(name, **changes)
    found = ask(model, name, whole(name, method), method)
    assert list(found.tokens) == expected


@pytest.mark.parametrize("name", SELECTING)
def test_budget_is_kept_and_used(name: str) -> None:
    model, _ = dense("llama")
    method = method_of(name)
    budget = tenth(method, model)
    ledger = ask(model, name, budget, method).ledger
    assert ledger.budget_tokens == budget.total
    assert used(method, ledger) <= budget.total
    # Block methods round down; a token-wise one that reads less than its budget would be unfair to itself.
    assert ledger.attended_mean >= (0.75 if name in ("infllm", "quest") else 1.0) * budget.total
    assert ledger.moved["kv"] < LENGTH * model.bytes_per_token


@pytest.mark.parametrize("name", SELECTING)
def test_selection_changes_the_answer_or_at_least_the_reading(name: str) -> None:
    model, _ = dense("llama")
    method = method_of(name)
    full, small = ask(model, "full", None), ask(model, name, tenth(method, model, "0.1"), method)
    assert full.ledger.attended_mean > 3 * small.ledger.attended_mean


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_answer(name: str) -> None:
    model, _ = dense("llama")
    method = method_of(name)
    budget = None if name in UNBUDGETED else tenth(method, model)
    first, second = ask(model, name, budget, method), ask(model, name, budget, method)
    assert first.tokens == second.tokens
    assert first.ledger.resident == second.ledger.resident


@pytest.mark.parametrize("name", NAMES)
def test_lockstep_rows_equal_single_runs(name: str) -> None:
    model, _ = dense("llama")
    names = [name, "full", "h2o", "oracle"]
    methods = [method_of(n) for n in names]
    plans = [Plan(n, m, None if n in UNBUDGETED else tenth(m, model)) for n, m in zip(names, methods, strict=True)]
    question = Question(prompt_ids(LENGTH), 3, Stop(NUM_NEW, frozenset()))
    together = answer(model, question, plans)
    for plan, found in zip(plans, together, strict=True):
        assert found.tokens == answer(model, question, [plan])[0].tokens
        assert found.ledger.tpot_s is None, "speed is not measured in shared runs"


@pytest.mark.parametrize("name", SELECTING)
def test_short_prompt_is_dense_and_says_so(name: str) -> None:
    ours, theirs = networks("llama")
    found = ask(model_of(ours), name, None)
    assert found.dense_short
    assert list(found.tokens) == greedy(theirs, prompt_ids(LENGTH), NUM_NEW)


@pytest.mark.parametrize("name", SELECTING)
def test_question_after(name: str) -> None:
    """The later prompt tokens pass through the compressed cache; with a whole budget that is the dense answer."""
    ours, theirs = networks("llama")
    model, method = model_of(ours), method_of(name)
    question = Question(prompt_ids(LENGTH), 0, Stop(NUM_NEW, frozenset()), context_end=LENGTH - 12)
    found = answer(model, question, [Plan(name, method, whole(name, method))])[0]
    assert name in LOSSY or list(found.tokens) == greedy(theirs, prompt_ids(LENGTH), NUM_NEW)
    small = answer(model, question, [Plan(name, method, tenth(method, model))])[0]
    assert used(method, small.ledger) <= tenth(method, model).total
    # Bytes a step are those of decode steps: the question's own 12 steps would make it 1.6 times as much.
    assert small.ledger.moved["kv"] < 1.4 * (small.ledger.attended_max + 1) * model.bytes_per_token


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("middle", [0, 1])
def test_a_budget_with_nothing_to_choose_is_kept(name: str, middle: int) -> None:
    method = method_of(name)
    found = ask(dense("llama")[0], name, Budget(4, 10, middle), method)
    assert used(method, found.ledger) <= 14 + middle


def test_evicted_memory_is_really_freed() -> None:
    model, _ = dense("llama")
    for name in ("h2o", "window"):
        method = method_of(name)
        ledger = ask(model, name, tenth(method, model), method).ledger
        assert ledger.resident["k"] + ledger.resident["v"] < 0.4 * ledger.resident_full


@pytest.mark.parametrize("changes", [{}, {"normalize": True}, {"count_current": True}])
def test_h2o_masked_answers_as_it_drops_and_says_that_it_frees_nothing(changes: dict[str, object]) -> None:
    model, _ = dense("llama")
    drop, mask = method_of("h2o", **changes), method_of("h2o", mode="mask", **changes)
    real, simulated = ask(model, "h2o", tenth(drop, model), drop), ask(model, "h2o", tenth(mask, model), mask)
    assert real.tokens == simulated.tokens
    assert (real.ledger.store, simulated.ledger.store) == ("real", "simulated")
    assert simulated.ledger.resident["k"] > 4 * real.ledger.resident["k"]
    held = tenth(drop, model).total - ("count_current" in changes)
    assert real.ledger.attended_max == simulated.ledger.attended_max == held


class Greedy(Index):
    """Reads one token more than it may."""

    def select(self, step: Step) -> Selection:
        some = torch.arange(step.sink, step.sink + step.k + 1)
        return Selection(some.expand(self.layer.num_kv_heads, -1))


class Twice(Index):
    """Names a token twice, which would count its weight twice."""

    def select(self, step: Step) -> Selection:
        return Selection(torch.full((self.layer.num_kv_heads, 2), step.sink))


class Outside(Index):
    """Names a token of the local window."""

    def select(self, step: Step) -> Selection:
        return Selection(torch.full((self.layer.num_kv_heads, 1), step.end))


class Idle(Index):
    """Keeps everything in an evicting store and drops nothing: silently off."""

    def select(self, step: Step) -> Selection:
        return Selection()


@dataclass(frozen=True)
class Cheat(Method):
    """A method with a given index."""

    made: ClassVar[Callable[..., Index]]

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return EvictingStore(k, v) if self.made is Idle else super().store(layer, budget, k, v)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return type(self).made(layer, store, budget)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (Greedy, "attended 31 tokens"),
        (Twice, "twice or outside"),
        (Outside, "twice or outside"),
        (Idle, "its budget is"),
    ],
)
def test_audit_fails_a_cheating_method_by_name(index: type[Index], message: str) -> None:
    method = type("C", (Cheat,), {"made": index})()
    with pytest.raises(AuditError, match=f"method cheat .*{message}"):
        ask(model_of(networks("llama")[0]), "cheat", Budget(4, 10, 16), method)


class Marked(Index):
    """Says that it was asked."""

    asked = False

    def select(self, step: Step) -> Selection:
        Marked.asked = True
        return Selection()


@dataclass(frozen=True)
class WithoutBudget(Method):
    """A method of kind "none", as quantisation is: it has no budget and must run all the same."""

    kind: ClassVar[str] = "none"

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return Marked(layer, store, budget)


def test_a_method_without_a_budget_is_not_replaced_by_full_attention() -> None:
    found = ask(model_of(networks("llama")[0]), "quantised", None, WithoutBudget())
    assert Marked.asked and not found.dense_short
