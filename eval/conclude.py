"""The second prompt of a sample: it asks for the answer that a first one reasoned about."""

from __future__ import annotations

from collections.abc import Callable

from data.base import Sample
from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.model import Model
from engine.prompt import Prompt, PromptRule, encode
from eval.job import Work
from methods.base import Budget


def text_of(model: Model, reply: Answer) -> str:
    """An answer as decoded, without special tokens."""
    return str(model.tokenizer.decode(list(reply.tokens), skip_special_tokens=True))


def conclude(
    work: Work,
    model: Model,
    sample: Sample,
    reasoning: str,
    rule: PromptRule,
    seed: int,
    budget_of: Callable[[Prompt], Budget | None],
) -> str:
    """What the same method, with its budget for this prompt, says when asked to conclude from the reasoning.

    The reasoning is stripped, as LongBench v2 does. Raises AuditError where the method broke its budget.
    """
    task = work.task
    assert task.conclusion is not None
    text = task.conclusion.prompt.format(input=sample.input, reasoning=reasoning.strip(), **sample.fields)
    prompt = encode(model.tokenizer, text, rule)
    stop = Stop(task.conclusion.max_new_tokens, model.stop_tokens)
    plan = Plan(work.job.method_name, work.job.method, budget_of(prompt))
    [reply] = answer(model, Question(prompt.ids, seed, stop, decode=work.job.settings.decode), [plan])
    return text_of(model, reply)
