"""The conformance kit over every method YAML; and that each of its checks finds the fault it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from configs.arguments import choices
from configs.compose import compose_method
from methods.base import Budget, Index, Layer, Method, Observer, Selection, Step
from methods.scores import group_sum, logits, top_k
from methods.store import KVStore, ResidentStore
from scripts.conformance import CHECKS, SHAPES, Broken, Case, Check, Exempt

BY_NAME = {check.name: check for check in CHECKS}
# What the default suite tests besides all checks on "group2"; the rest is `slow`.
# "group4" repeats: "mqa" has a group of four, "group2" several groups.
ALSO = {("group1", "positions"), ("mqa", "positions"), ("mqa", "heads"), ("group1", "whole")}


def parameters() -> Iterator[Any]:
    """Each method YAML with each shape and check."""
    for name in choices("method"):
        for shape in SHAPES:
            for check in CHECKS:
                quick = shape == "group2" or (shape, check.name) in ALSO
                marks = () if quick else (pytest.mark.slow,)
                yield pytest.param(name, shape, check, marks=marks, id=f"{name}-{shape}-{check.name}")


@cache
def method_of(name: str) -> Method:
    return compose_method(name, ())[1]


@lru_cache(maxsize=1)
def case_of(name: str, shape: str) -> Case:
    return Case(method_of(name), shape)


@pytest.mark.parametrize(("name", "shape", "check"), list(parameters()))
def test_method_conforms(name: str, shape: str, check: Check) -> None:
    try:
        check.run(case_of(name, shape))
    except Exempt as reason:
        pytest.skip(str(reason))


class Exact(Index):
    """Reads the candidates with most attention; its subclasses each do one thing wrong."""

    def select(self, step: Step) -> Selection:
        return Selection(top_k(self.scores(step), self.number(step)) + step.sink)

    def scores(self, step: Step) -> Tensor:
        weights = logits(step.queries, self.store.keys(), self.layer).softmax(-1).sum(1)
        return group_sum(weights, self.layer.num_kv_heads)[:, step.sink : step.end]

    def number(self, step: Step) -> int:
        return step.k


@dataclass(frozen=True)
class Honest(Method):
    """A method with the index `made`, which keeps the contract."""

    made: ClassVar[type[Index]] = Exact

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return self.made(layer, store, budget)


class OneMore(Exact):
    def number(self, step: Step) -> int:
        return step.k + 1


class Half(Exact):
    def number(self, step: Step) -> int:
        return 0


class SkipsNew(Exact):
    """Forgets tokens that came after the prompt."""

    def build(self, seen: object) -> None:
        self.num_prompt = self.store.positions().shape[1]

    def scores(self, step: Step) -> Tensor:
        return super().scores(step)[:, : max(0, self.num_prompt - step.sink)]


class Beyond(Exact):
    """Takes the local window for candidates."""

    def select(self, step: Step) -> Selection:
        return Selection(super().select(step).positions.add(1))  # type: ignore[union-attr]


class Dice(Exact):
    """Draws from the global generator."""

    def scores(self, step: Step) -> Tensor:
        return torch.rand_like(super().scores(step))


class Remembers(Exact):
    """Keeps what it should forget with the sample."""

    counts: ClassVar[dict[int, Tensor]] = {}

    def scores(self, step: Step) -> Tensor:
        found = super().scores(step)
        old = self.counts.get(self.layer.index, torch.zeros(found.shape[0], 0))
        width = min(old.shape[1], found.shape[1])
        found[:, :width] += old[:, :width]
        self.counts[self.layer.index] = found
        return found


class FirstHead(Exact):
    def scores(self, step: Step) -> Tensor:
        weights = logits(step.queries, self.store.keys(), self.layer).softmax(-1).sum(1)
        return weights[:: self.layer.group, step.sink : step.end]


class Hoards(Exact):
    """Holds memory that it does not report."""

    def build(self, seen: object) -> None:
        self.hidden = {"deep": [self.store.keys().float() * 2]}


class Invents(Exact):
    """Reports memory that it does not hold."""

    def tensors(self) -> list[tuple[str, Tensor]]:
        return [("index", torch.zeros(100))]


class Writes(Exact):
    def build(self, seen: object) -> None:
        self.store.keys()[:, -1] *= 1.5


class OnlyFloat(Exact):
    def scores(self, step: Step) -> Tensor:
        return super().scores(step) + (step.queries[:1, 0] @ torch.ones(self.layer.head_dim, 1))


class NeedsTen(Exact):
    """Breaks where there are few candidates."""

    def select(self, step: Step) -> Selection:
        assert step.end - step.sink >= 10, "fewer than ten candidates"
        return super().select(step)


class Shifted(ResidentStore):
    """Gives another token than it was asked for."""

    def gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().gather((positions - 1).clamp(min=0))


@dataclass(frozen=True)
class Displaced(Honest):
    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        return Shifted(k, v)


@dataclass(frozen=True)
class Greedier(Honest):
    def split(self, total: int, local_share: float) -> tuple[int, int]:
        return total, total


class LastChunk(Observer):
    """Sees only the chunk it was shown last."""

    key = "last_chunk"

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        self.start = start

    def finish(self, keys: Tensor, values: Tensor) -> int:
        return self.start


class ByChunk(Exact):
    def build(self, seen: Any) -> None:
        self.start = seen["last_chunk"]

    def scores(self, step: Step) -> Tensor:
        late: Tensor = super().scores(step) * (torch.arange(step.sink, step.end) >= self.start)
        return late


@dataclass(frozen=True)
class Chunky(Honest):
    made: ClassVar[type[Index]] = ByChunk

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (LastChunk(),)


@dataclass(frozen=True)
class Holds(Honest):
    """Keeps what belongs to a sample in the method."""

    found: list[Tensor] = field(default_factory=list, init=False, compare=False)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        self.found.append(store.keys())
        return super().index(layer, store, budget)


def with_index(made: type[Index]) -> Method:
    kind: Any = type(made.__name__, (Honest,), {"made": made})
    method: Method = dataclass(frozen=True)(kind)()
    return method


FAULTS: list[tuple[str, Method, str]] = [
    ("declares", Greedier(), r"split\(1, 0.0\) gives \(1, 1\)"),
    ("whole", with_index(SkipsNew), "logits are .* away from full attention's"),
    ("budget", with_index(OneMore), "34 past tokens are attended"),
    ("selects", with_index(Half), "not a quarter of what it may choose"),
    ("candidates", with_index(Beyond), "is chosen; the candidates are 4 to"),
    ("seed", with_index(Dice), "reads other tokens"),
    ("reset", with_index(Remembers), "asked after another one: layer 0 reads other tokens"),
    ("short", with_index(NeedsTen), "a prompt of 5 tokens, .* fewer than ten candidates"),
    ("chunks", Chunky(), "in chunks of 32 tokens: layer 0 reads other tokens"),
    ("question", with_index(SkipsNew), "though its budget holds context, question and answer"),
    ("positions", Displaced(), "away from attention on the positions it says it reads"),
    ("heads", with_index(FirstHead), "in another order: layer 0 reads other tokens"),
    ("bytes", with_index(Hoards), r"layer 0\.hidden\['deep'\]\[0\] holds \d+ bytes that no tensors"),
    ("bytes", with_index(Invents), "reports memory that neither store nor index holds"),
    ("bytes", Holds(), r"the method\.found\[0\] is a tensor"),
    ("shared", with_index(Writes), "which other arms share|beside other arms"),
    ("half", with_index(OnlyFloat), "expected"),
]


@pytest.mark.parametrize(("check", "method", "message"), FAULTS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_check_finds_its_fault(check: str, method: Method, message: str) -> None:
    with pytest.raises((Broken, RuntimeError), match=message):
        BY_NAME[check].run(Case(method, "group2"))


def test_an_honest_method_passes_and_every_check_but_one_has_a_fault() -> None:
    for check in CHECKS:
        check.run(Case(Honest(), "group2"))
    # The engine feeds a question token by token, so that an index cannot see what comes later: this check guards it.
    assert {check.name for check in CHECKS} - {name for name, *_ in FAULTS} == {"causal"}


def test_methods_that_hold_to_no_budget_are_exempt_not_passed() -> None:
    full = Case(method_of("full"), "group1")
    for name in ("whole", "budget", "selects", "positions", "heads"):
        with pytest.raises(Exempt):
            BY_NAME[name].run(full)
