"""Checks of what a method is given: short prompts, prompts in chunks, questions, half precision."""

from __future__ import annotations

from dataclasses import replace

from engine.arm import Plan
from methods.budget import parse_budget, resolve
from methods.full import Full
from scripts.contract.case import NUM_NEW, NUM_QUESTION, SINK, Broken, Case, Exempt, require, said
from scripts.contract.models import distinct_ids
from scripts.contract.same import same_logits, same_trace
from scripts.watch import follow


def answers_short_prompts(case: Case) -> None:
    if case.method.kind != "none":
        dense = case.answer([case.plan(None), Plan("full", Full(), None)], case.length, 8)
        require(dense[0].dense_short and dense[0].tokens == dense[1].tokens, "a prompt within the budget is not dense")
    for num in (1, 2, SINK - 1, SINK, SINK + 1, SINK + 2, SINK + 3, SINK + 8, SINK + 17, SINK + 40):
        budget = None
        if case.method.kind != "none":
            budget = resolve(parse_budget("0.5"), case.method, num, SINK, 0.5, 0, case.model.bytes_per_token)
        try:
            [found] = case.answer([case.plan(budget)], num, 4)
        except Exception as error:
            raise Broken(f"a prompt of {num} tokens, {budget or 'dense'}: {said(error)}") from error
        require(len(found.tokens) == 4, f"a prompt of {num} tokens gets {len(found.tokens)} of 4 tokens")


def is_the_same_in_chunks(case: Case) -> None:
    # A prompt in blocks is the method's own affair: chunks then are whole blocks.
    chunk = case.method.block if case.method.own_prefill else 32
    if chunk > 2048:
        raise Exempt(f"blocks of {chunk} tokens are too long to test")
    num = max(case.length, 2 * chunk + 40)
    budget = case.small(num)
    one = case.trace if num == case.length else case.follow(budget, num, 4)
    chunked = replace(case.model, prefill_chunk=chunk)
    found = case.follow(budget, num, NUM_NEW if num == case.length else 4, model=chunked)
    same_trace(found, one, f"a prefill in chunks of {chunk} tokens")


def takes_a_question(case: Case) -> None:
    num, asked = case.length, NUM_QUESTION
    ids = distinct_ids(num + asked + NUM_NEW)
    prompt, question, new = ids[:num], ids[num : num + asked], ids[num + asked :].split(1)
    if case.held and case.method.lossless:
        found = follow(case.model, case.method, case.whole(ids.shape[0]), prompt, [question, *new]).logits
        dense = case.tiny.dense(num, asked + NUM_NEW)[[0, *range(asked, asked + NUM_NEW + 1)]]
        same_logits(found, dense, "full attention's, though its budget holds context, question and answer")
    case.answer([case.plan(case.small())], num + asked, NUM_NEW, context_end=num)
    if case.method.block == 1:
        budget = case.small()
        together = follow(case.model, case.method, budget, prompt, [question, *new]).logits
        alone = follow(case.model, case.method, budget, prompt, [*question.split(1), *new]).logits
        same_logits(together[1:], alone[asked:], "those of the same question token by token")


def runs_in_half_precision(case: Case) -> None:
    found = case.follow(case.small(), case.length, 6, model=case.tiny.half)
    require(found.logits.isfinite().all(), "logits are not finite in bfloat16")
    for number, layer in enumerate(found.watched.layers):
        for seen in layer.steps:
            where = f"layer {number}, at position {seen.step.start}"
            require(seen.weights.isfinite().all(), f"{where}: weights are not finite in bfloat16")
