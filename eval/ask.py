"""One sample: from its row to the prompt, the answer, the score and the record."""

from __future__ import annotations

import time
import zlib
from dataclasses import asdict

from data.base import Sample, Task
from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.ledger import AuditError
from engine.memory import explain_out_of_memory
from engine.model import Model
from engine.prompt import Prompt, PromptRule, encode, newline_id
from eval.job import Work
from eval.longbench import score_sample
from eval.metrics import metric
from eval.records import Record
from methods.base import Budget
from methods.budget import parse_budget, resolve


def rehearse(work: Work) -> None:
    """Refuse, before a model is loaded, what would fail for every sample. Raises ValueError."""
    task = work.task
    metric(task.metric, work.job.settings.fuzz)
    rule_of(work)
    if task.max_new_tokens < 1:
        raise ValueError(f"task.max_new_tokens={task.max_new_tokens} is out of range: give 1 or more")
    try:
        task.prompt.format(context="", input="")
    except (ValueError, LookupError) as error:
        raise ValueError(f"task.prompt has more in braces than {{context}} and {{input}}: {error!r}") from error


def ask(work: Work, model: Model, sample: Sample) -> Record:
    """Answer and score one sample; an error of this sample alone becomes a record that says so."""
    began = time.perf_counter()
    prompt: Prompt | None = None
    try:
        prompt = render(work, model, sample)
        plan = Plan(work.job.method_name, work.job.method, budget_of(work, model, prompt))
        question = Question(prompt.ids, seed_of(work, sample), stop_of(work.task, model), prompt.context_end)
        [reply] = answer(model, question, [plan])
        return record_of(work, model, sample, prompt, reply, time.perf_counter() - began)
    except AuditError:
        raise
    except Exception as error:
        explain_out_of_memory(error, f"a prompt of {'unknown' if prompt is None else len(prompt.ids)} tokens")
        return Record.failed(
            sample.id,
            error=f"{type(error).__name__}: {error}",
            length=sample.length,
            num_prompt_tokens=None if prompt is None else len(prompt.ids),
            prompt_sha=None if prompt is None else prompt.sha,
            seconds=time.perf_counter() - began,
        )


def render(work: Work, model: Model, sample: Sample) -> Prompt:
    """The prompt of a sample: template, truncation, chat wrapper."""
    text = work.task.prompt.format(context=sample.context, input=sample.input)
    after = work.job.settings.protocol == "question_after"
    return encode(model.tokenizer, text, rule_of(work), sample.context if after else None)


def rule_of(work: Work) -> PromptRule:
    """How prompts are cut and wrapped."""
    spec = work.job.spec
    chat = spec.chat and work.task.chat
    return PromptRule(spec.max_prompt, work.job.settings.truncate, chat, spec.chat_kwargs)


def budget_of(work: Work, model: Model, prompt: Prompt) -> Budget | None:
    """The budget of one prompt, None where it is answered densely."""
    settings, method = work.job.settings, work.job.method
    if method.kind == "none":
        return None
    length = prompt.context_end or len(prompt.ids)
    rule = parse_budget(settings.budget)
    share, extra = settings.local_share, settings.compensate
    return resolve(rule, method, length, settings.sink, share, extra, model.bytes_per_token)


def seed_of(work: Work, sample: Sample) -> int:
    """A seed of the run's seed and the sample, whatever was asked before."""
    return zlib.crc32(f"{work.job.settings.seed}/{sample.id}".encode())


def stop_of(task: Task, model: Model) -> Stop:
    """LongBench's rule: only samsum stops at a newline, and then not before one token."""
    newline = newline_id(model.tokenizer) if task.newline_stop else None
    if newline is None:
        return Stop(task.max_new_tokens, model.stop_tokens)
    return Stop(task.max_new_tokens, model.stop_tokens | {newline}, min_new=1)


def record_of(work: Work, model: Model, sample: Sample, prompt: Prompt, reply: Answer, seconds: float) -> Record:
    """The record of an answer. The prediction is kept as decoded, never stripped."""
    prediction = str(model.tokenizer.decode(list(reply.tokens), skip_special_tokens=True))
    return Record(
        id=sample.id,
        prediction=prediction,
        score=score_sample(work.task, prediction, sample.answers, sample.all_classes, work.job.settings.fuzz),
        num_prompt_tokens=len(prompt.ids),
        num_new_tokens=len(reply.tokens),
        prompt_sha=prompt.sha,
        truncated=prompt.truncated,
        dense_short=reply.dense_short,
        length=sample.length,
        ledger=asdict(reply.ledger),
        error=None,
        seconds=seconds,
    )
