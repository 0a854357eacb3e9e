"""One sample: from its row to the prompt, the answers of all arms, their scores and records."""

from __future__ import annotations

import hashlib
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from data.base import Sample, Task
from engine.arm import Plan
from engine.diagnose import Watch
from engine.generate import Answer, Question, Stop, answer
from engine.kept import Kept
from engine.ledger import AuditError
from engine.memory import explain_out_of_memory, is_out_of_memory, release
from engine.model import Model
from engine.prompt import Prompt, PromptRule, encode, newline_id, saying
from eval.conclude import conclude, text_of
from eval.crowd import Crowd, Seated
from eval.diagnostics import DIAGNOSTICS, SELECTIONS, wanted, write_arrays
from eval.job import Work
from eval.json_files import encode as encode_text
from eval.longbench import score_sample
from eval.records import Record
from eval.turns import render_turn, told
from methods.base import Budget
from methods.budget import parse_budget, resolve


def ask(
    works: Sequence[Work], model: Model, sample: Sample, crowd: Crowd, kept: Kept | None = None
) -> list[Record | Exception]:
    """Answer and score one sample for all works, which share its prefill as far as the device has room for them.

    kept: keeps the prefill for the next question about the same context.
    An error of this sample alone becomes a record that says so; AuditError and MemoryError, which end a run, come in
    place of its record.
    """
    began = time.perf_counter()
    try:
        prompt = render(works[0], model, told(works[0], sample))
    except Exception as error:
        return [broken(sample, None, error, began) for _ in works]
    rendered = time.perf_counter() - began
    found: dict[int, Record | Exception] = {}
    arms = []
    for number, work in enumerate(works):
        try:
            budget = budget_of(work, model, prompt)
            plan = Plan(work.job.method_name, work.job.method, budget, watch_of(work))
            arms.append(Asking(work.folder, plan, number))
        except Exception as error:
            found[number] = broken(sample, prompt, error, began)
    stop, decode = stop_of(works[0].task.of(sample), model), works[0].job.settings.decode
    question = Question(prompt.ids, seed_of(works[0], sample), stop, prompt.context_end, decode)
    for reply in replies(model, question, arms, crowd, kept):
        if isinstance(reply.answer, Exception):
            found[reply.arm.number] = broken(sample, prompt, reply.answer, began)
        else:
            # Speed is not measured in shared runs.
            seconds = rendered + reply.seconds if reply.answer.ledger.ttft_s is not None else None
            work = works[reply.arm.number]
            try:
                keep_seen(work, sample, prompt, reply.arm.plan.watch, reply.answer)
                found[reply.arm.number] = record_of(work, model, sample, prompt, reply.answer, seconds)
            except OSError as error:
                found[reply.arm.number] = error  # as where a record cannot be written
            except Exception as error:
                found[reply.arm.number] = broken(sample, prompt, error, began)
    return [found[number] for number in range(len(works))]


@dataclass(frozen=True)
class Asking(Seated):
    """number: of its work among those that are asked."""

    number: int


@dataclass(frozen=True)
class Reply:
    """What came of an arm, and the seconds of the prefill and decoding that it was in."""

    arm: Asking
    answer: Answer | Exception
    seconds: float


def watch_of(work: Work) -> Watch | None:
    """What shall be seen of an arm besides its answer; None in a usual run."""
    settings = work.job.settings
    if not wanted(settings):
        return None
    return Watch(settings.local_share, settings.diagnose_steps if settings.diagnose else 0, settings.export_selections)


def keep_seen(work: Work, sample: Sample, prompt: Prompt, watch: Watch | None, reply: Answer) -> None:
    """Write what was seen of an answer, before its record: a sample with a record lacks nothing. Raises OSError."""
    if watch is None:
        return
    if work.job.settings.diagnose:
        write_arrays(work.folder, DIAGNOSTICS, sample.id, watch.measured())
    if work.job.settings.export_selections:
        ids = {"prompt_sha": np.array(prompt.sha), "prompt": prompt.ids.numpy().astype(np.int32)}
        tokens = np.array(reply.tokens, np.int32)
        write_arrays(work.folder, SELECTIONS, sample.id, {**ids, "tokens": tokens, **watch.selected()})


def replies(
    model: Model, question: Question, arms: Sequence[Asking], crowd: Crowd, kept: Kept | None
) -> Iterator[Reply]:
    """A reply for each arm. Arms that fail together are tried again in halves, until the one that fails is alone."""
    num_tokens = len(question.ids)
    waiting, failed = crowd.parts(arms, model, num_tokens), []
    while waiting:
        part = waiting.pop(0)
        began = time.perf_counter()
        found = attempt(model, question, part, kept)
        seconds = time.perf_counter() - began
        if not isinstance(found, Exception):
            for arm, reply in zip(part, found, strict=True):
                crowd.answered(arm, reply.own_bytes, num_tokens)
                yield Reply(arm, reply, seconds)
        elif len(part) == 1:
            failed.append(part[0].key)
            yield Reply(part[0], found, seconds)
        else:
            if is_out_of_memory(found):
                crowd.ran_out(len(part), num_tokens)
            del found
            release()
            half = (len(part) + 1) // 2
            waiting[:0] = [part[:half], part[half:]]
    if len(failed) < len(arms):  # else it was the sample's fault
        crowd.alone.update(failed)


def attempt(model: Model, question: Question, part: Sequence[Asking], kept: Kept | None) -> list[Answer] | Exception:
    """The answers of these arms, or the error of one of them. What the attempt held is free again."""
    try:
        return answer(model, question, [arm.plan for arm in part], kept)
    except Exception as error:
        if kept is not None:
            kept.clear()
        traceback.clear_frames(error.__traceback__)
        return error


def broken(sample: Sample, prompt: Prompt | None, error: Exception, began: float) -> Record | Exception:
    """What an error makes of a sample: the end of its run, or a record that says why there is no answer."""
    if isinstance(error, AuditError):
        return error
    try:
        explain_out_of_memory(error, f"a prompt of {'unknown' if prompt is None else len(prompt.ids)} tokens")
    except MemoryError as explained:
        return explained
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
    if sample.row is not None:
        return render_turn(work, model, sample, rule_of(work))
    text = work.task.asked(sample.context, sample.input, sample.fields)
    context = sample.context if work.job.settings.protocol == "question_after" else None
    return encode(model.tokenizer, text, rule_of(work), context, work.task.begun(sample.input))


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
    """A seed of the run's seed and the sample, whatever was asked before; one for all questions of a row."""
    return zlib.crc32(f"{work.job.settings.seed}/{sample.row or sample.id}".encode())


def stop_of(task: Task, model: Model) -> Stop:
    """LongBench's rule: only samsum stops at a newline, and then not before one token. Others may stop at a text."""
    newline = newline_id(model.tokenizer) if task.newline_stop else None
    if newline is None:
        said = saying(model.tokenizer, task.stop_text) if task.stop_text else None
        return Stop(task.max_new_tokens, model.stop_tokens, said=said)
    return Stop(task.max_new_tokens, model.stop_tokens | {newline}, min_new=1)


def record_of(work: Work, model: Model, sample: Sample, prompt: Prompt, reply: Answer, seconds: float | None) -> Record:
    """The record of an answer. The prediction is kept as decoded, never stripped.

    Where a second prompt asks for the answer, the prediction is that to it, and all else is of the first prompt.
    """
    prediction, reasoning = text_of(model, reply), None
    if work.task.conclusion is not None:
        began, reasoning = time.perf_counter(), prediction
        of = partial(budget_of, work, model)
        prediction = conclude(work, model, sample, reasoning, rule_of(work), seed_of(work, sample), of)
        seconds = None if seconds is None else seconds + time.perf_counter() - began
    return Record(
        id=sample.id,
        prediction=prediction,
        score=score_sample(
            work.task.of(sample), prediction, sample.answers, sample.all_classes, work.job.settings.fuzz
        ),
        num_prompt_tokens=len(prompt.ids),
        num_new_tokens=len(reply.tokens),
        prompt_sha=prompt.sha,
        truncated=prompt.truncated,
        dense_short=reply.dense_short,
        length=sample.length,
        ledger=asdict(reply.ledger),
        error=None,
        seconds=seconds,
        # GSM8K's questions share their worked examples, but no document: each is a case of its own.
        context_sha=None if work.task.gsm8k else hashlib.sha256(encode_text(sample.context)).hexdigest()[:16],
        turn=sample.turn,
        groups=list(sample.groups) or None,
        reasoning=reasoning,
    )
