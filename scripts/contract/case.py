"""A method on one model of the kit, and the two ways in which a check ends early."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.ledger import AuditError
from methods.base import Budget, Method
from methods.budget import parse_budget, resolve
from scripts.contract.models import NUM_LAYERS, distinct_ids, tiny
from scripts.watch import Trace, follow

SINK = 4
NUM_PROMPT = 150
NUM_NEW = 24  # more than the small budget's local window, so that new tokens leave it
NUM_QUESTION = 12
RATIO = "0.2"


class Broken(AssertionError):
    """A method breaks the contract; the message says where and how, in one line."""


class Exempt(Exception):
    """A check does not apply to what a method declares; the message says why."""


def require(true: bool | Tensor, message: str) -> None:
    """Raise Broken unless it is true."""
    if not bool(true):
        raise Broken(message)


def said(error: Exception) -> str:
    """An error in one line; one that is no verdict with its kind and the line of code that raised it."""
    text = " ".join(str(error).split())
    if isinstance(error, Broken):
        return text
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {text}{place}"


class Case:
    """A method on a tiny model; `trace` is computed once for all checks that look at it."""

    def __init__(self, method: Method, shape: str) -> None:
        self.method = method = method.untrained()
        self.tiny = tiny(shape)
        self.model = self.tiny.model
        reason = method.supports(self.model.facts)
        if reason is not None:
            raise Exempt(f"it does not run on this model: {reason}")

    @property
    def length(self) -> int:
        """Tokens of the usual prompt, enough for the method to act."""
        return max(NUM_PROMPT, 2 * self.method.min_tokens)

    @property
    def held(self) -> bool:
        """Whether the method is held to a budget."""
        return self.method.kind == "tokens"

    def small(self, num_tokens: int | None = None, ratio: str = RATIO) -> Budget | None:
        """A fifth of a prompt; None for a method without a budget. Raises Broken where that is answered densely."""
        if self.method.kind == "none":
            return None
        num = num_tokens or self.length
        budget = resolve(parse_budget(ratio), self.method, num, SINK, 0.5, 0, self.model.bytes_per_token)
        require(budget is not None, f"a prompt of {num} tokens is answered densely at budget={ratio}")
        return budget

    def whole(self, num_tokens: int) -> Budget:
        """A budget that holds `num_tokens` in every layer, with the method at work all the same."""
        total = 2 * num_tokens
        while True:
            # Where keys outside the local window are not at their true distance, all must be inside of it.
            share = 20 / total if self.method.distance == "true" else 1.0
            budget = Budget(SINK, *self.method.split(total, share))
            layers = self.method.budgets(budget, NUM_LAYERS, num_tokens)
            if all(max(b.local, b.middle) >= num_tokens for b in layers):
                return budget
            total *= 2
            require(total < 1000 * num_tokens, "no budget is so large that every layer may hold the whole prompt")

    def follow(self, budget: Budget | None, num_prompt: int, num_new: int = NUM_NEW, **changes: Any) -> Trace:
        """The method on a prompt, then tokens one by one. changes: model, method, seed, tokens (their seed)."""
        ids = distinct_ids(num_prompt + num_new, changes.get("tokens", 0))
        model, method = changes.get("model", self.model), changes.get("method", self.method)
        return follow(model, method, budget, ids[:num_prompt], ids[num_prompt:].split(1), changes.get("seed", 0))

    @cached_property
    def trace(self) -> Trace:
        """The usual prompt at the small budget."""
        return self.follow(self.small(), self.length)

    def answer(
        self, plans: Sequence[Plan], num_prompt: int, num_new: int, context_end: int | None = None
    ) -> list[Answer]:
        """Greedy answers through the real loop. Raises Broken where the audit does not let one pass."""
        question = Question(distinct_ids(num_prompt), 0, Stop(num_new, frozenset()), context_end)
        try:
            return answer(self.model, question, plans)
        except AuditError as error:
            raise Broken(str(error)) from error

    def plan(self, budget: Budget | None) -> Plan:
        """An arm of the method."""
        return Plan("it", self.method, budget)
