"""Checks of independence: of chance, of other samples, of the order of heads, and of other arms."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.arm import Plan
from methods.full import Full
from scripts.contract.case import NUM_NEW, Broken, Case, Exempt, require
from scripts.contract.same import overlap, same_trace


def is_deterministic(case: Case) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1234)
        again = case.follow(case.small(), case.length, method=replace(case.method))
    same_trace(again, case.trace, "another run with the same seed, but another state of torch's global generator")


def forgets_the_last_sample(case: Case) -> None:
    before = case.trace
    case.follow(case.small(case.length - 13), case.length - 13, tokens=5)
    same_trace(case.follow(case.small(), case.length), before, "the same sample asked after another one")


def does_not_care_for_the_order_of_heads(case: Case) -> None:
    if case.tiny.group == 1:
        raise Exempt("groups of one query head have no order")
    swapped = case.follow(case.small(), case.length, model=case.tiny.swapped)
    try:
        same_trace(swapped, case.trace, "the query heads of each group in another order")
    except Broken:
        # What a head draws at random may depend on its place; then another order is no more than another seed.
        drawn = overlap(case.follow(case.small(), case.length, seed=1), case.trace)
        if drawn > 0.99 or overlap(swapped, case.trace) < drawn - 0.1:
            raise


def shares_its_prefix(case: Case) -> None:
    small = case.small()
    plans = [case.plan(small), Plan("full", Full(), None)]
    if small is not None:
        plans.append(case.plan(case.small(ratio="0.35")))
    together = case.answer(plans, case.length, NUM_NEW)
    for plan, found in zip(plans, together, strict=True):
        [alone] = case.answer([plan], case.length, NUM_NEW)
        name = "full attention" if plan.name == "full" else f"the method at {plan.budget}"
        require(found.tokens == alone.tokens, f"{name} answers otherwise when it runs beside other arms")
    for number, (k, v, k_before, v_before) in enumerate(case.trace.watched.prompts):
        intact = torch.equal(k, k_before) and torch.equal(v, v_before)
        require(intact, f"layer {number}: it wrote to the prompt's K and V, which other arms share")
