"""Checks of the budget: what a method declares, and that it spends no more, nor much less."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from itertools import product

import torch

from methods.base import Budget
from scripts.contract.case import NUM_NEW, SINK, Case, Exempt, require
from scripts.contract.models import NUM_LAYERS
from scripts.contract.reading import num_attended
from scripts.contract.same import NEAR, same_logits
from scripts.watch import Trace


def declares(case: Case) -> None:
    method, num = case.method, case.length
    require(is_dataclass(method) and type(method).__dataclass_params__.frozen, "it is no frozen dataclass")  # type: ignore[attr-defined]
    require(replace(method) == method, "a copy with the same parameters is not equal to it")
    for name, allowed in (
        ("kind", ("tokens", "none", "open")),
        ("spread", ("head", "q_head", "layer", "model")),
        ("distance", ("true", "clipped", "cache")),
    ):
        found = getattr(method, name)
        require(found in allowed, f"{name}={found!r}; allowed are {', '.join(allowed)}")
    require(method.block >= 1, f"block={method.block}; give 1 or more")
    require(method.min_tokens >= 0, f"min_tokens={method.min_tokens}; give 0 or more")
    for total, share in product((0, 1, 2, 7, 100), (0.0, 0.3, 0.5, 1.0)):
        parts = method.split(total, share)
        good = sum(parts) == total and min(parts) >= 0
        require(good, f"split({total}, {share}) gives {parts}: not two numbers of 0 or more with that sum")
        budget = Budget(SINK, *parts)
        layers = method.budgets(budget, NUM_LAYERS, num)
        right = len(layers) == NUM_LAYERS and sum(b.total for b in layers) <= NUM_LAYERS * budget.total
        require(right, f"budgets({budget}, {NUM_LAYERS}, {num}) gives {[b.total for b in layers]} tokens: more in sum")


def is_dense_when_it_may_read_all(case: Case) -> None:
    if not case.held:
        raise Exempt(f'it is of kind "{case.method.kind}": nothing says when it reads everything')
    if not case.method.lossless:
        raise Exempt("what it keeps has lost something, whatever its budget")
    num = case.length
    found = case.follow(case.whole(num + NUM_NEW), num).logits
    same_logits(found, case.tiny.dense(num, NUM_NEW), "full attention's, though its budget holds everything")


def keeps_its_budget(case: Case) -> None:
    if not case.held:
        raise Exempt(f'it is of kind "{case.method.kind}": it is held to no budget')
    budget = case.small()
    assert budget is not None
    within(case, case.trace, budget)
    case.answer([case.plan(budget)], case.length, NUM_NEW)
    for tight in (Budget(SINK, 10, 0), Budget(SINK, 10, 1), Budget(SINK, 0, 0), Budget(0, 3, 3)):
        within(case, case.follow(tight, case.length, 4), tight)


def within(case: Case, trace: Trace, budget: Budget) -> None:
    """Every step of a trace is within its budget over the declared spread. Raises Broken."""
    spent = [torch.stack([num_attended(case, layer, seen) for seen in layer.steps]) for layer in trace.watched.layers]
    if case.method.spread == "model":
        most = float(torch.cat(spent, 1).float().mean(1).max())
        require(most <= budget.total, f"a step attends {most:g} tokens, mean over the model; its budget is {budget}")
        return
    for number, counts in enumerate(spent):
        held = counts.float().mean(1, keepdim=True) if case.method.spread == "layer" else counts
        step, head = divmod(int(held.argmax()), held.shape[1])
        most, where = float(held[step, head]), f"layer {number}, step {step}, head {head}"
        require(most <= budget.total, f"{where}: {most:g} past tokens are attended; its budget is {budget}")


def really_selects(case: Case) -> None:
    if not case.held:
        raise Exempt(f'it is of kind "{case.method.kind}": it need not leave anything out')
    budget, trace = case.small(), case.trace
    assert budget is not None
    require(
        len(trace.watched.layers) == NUM_LAYERS, f"{len(trace.watched.layers)} of {NUM_LAYERS} layers have an index"
    )
    means = []
    for number, layer in enumerate(trace.watched.layers):
        steps = [seen for seen in layer.steps if seen.step.start >= case.length]
        require(len(steps) == NUM_NEW, f"layer {number} was asked at {len(steps)} of {NUM_NEW} steps")
        counts = torch.stack([num_attended(case, layer, seen) for seen in steps])
        require((counts < case.length // 2).all(), f"layer {number} reads {int(counts.max())} of {case.length} tokens")
        means.append(counts.float().mean())
    mean = float(torch.stack(means).mean())
    least = budget.sink + budget.local + budget.middle / 4  # block methods round down
    require(mean >= least, f"it reads {mean:.1f} tokens a step, not a quarter of what it may choose: {budget}")
    differs = (trace.logits - case.tiny.dense(case.length, NUM_NEW)).abs().max()
    require(differs > NEAR, "its answers are those of full attention")
