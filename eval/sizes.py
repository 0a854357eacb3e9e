"""How long the prompts of a run are, and what its budget lets a step read of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.base import Sample
from eval.job import Work
from methods.budget import parse_budget, resolve

BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Length:
    """Tokens of a prompt, whether its middle was cut, and where its context ends if methods act there."""

    num_tokens: int
    truncated: bool
    context_end: int | None


@dataclass(frozen=True)
class Size:
    """One prompt: its place among the others, and what a step may read of it per KV head.

    num_bytes: of its text, by which prompts are compared. num_read: None where it is not known. parts: num_read in words.
    """

    label: str
    num_bytes: int
    length: Length
    num_read: int | None
    parts: str


def sizes(work: Work, length_of: Callable[[Sample], Length], bytes_per_token: int | None) -> list[Size]:
    """The shortest, the median and the longest prompt.

    length_of: exact, or `guessed`. bytes_per_token: K+V over the selectable layers, None where the model is not known.
    """
    ordered = sorted(work.samples, key=lambda sample: num_bytes(work, sample))
    places = {"shortest": 0, "median": len(ordered) // 2, "longest": len(ordered) - 1}
    return [size(work, label, ordered[place], length_of, bytes_per_token) for label, place in places.items()]


def size(
    work: Work, label: str, sample: Sample, length_of: Callable[[Sample], Length], bytes_per_token: int | None
) -> Size:
    """The size of one prompt."""
    length = length_of(sample)
    num_read, parts = reading(work, length, bytes_per_token)
    return Size(label, num_bytes(work, sample), length, num_read, parts)


def reading(work: Work, length: Length, bytes_per_token: int | None) -> tuple[int | None, str]:
    """The past tokens that a step may read per KV head, as a number and in words."""
    settings, method = work.job.settings, work.job.method
    if method.kind == "none":
        return length.num_tokens, "all"
    rule, acts_on = parse_budget(settings.budget), length.context_end or length.num_tokens
    if bytes_per_token is None and rule.unit not in ("ratio", "tok"):
        return None, "unknown"
    shares = (settings.sink, settings.local_share, settings.compensate)
    budget = resolve(rule, method, acts_on, *shares, bytes_per_token or 1)
    if budget is None:
        return length.num_tokens, "all (within the budget)"
    return budget.total, f"{budget.sink} + {budget.local} + {budget.middle} = {budget.total:,}"


def guessed(work: Work, sample: Sample) -> Length:
    """The length that the bytes of a prompt suggest, for want of a tokenizer."""
    wanted, most = num_bytes(work, sample) // BYTES_PER_TOKEN, work.job.spec.max_prompt
    context = len(sample.context.encode("utf-8", "replace")) // BYTES_PER_TOKEN
    end = min(context, most) if work.job.settings.protocol == "question_after" else None
    return Length(min(wanted, most), wanted > most, end)


def num_bytes(work: Work, sample: Sample) -> int:
    """UTF-8 bytes of a prompt without its chat wrapper: unlike characters, they tell Chinese and English alike."""
    return len((work.task.prompt + sample.context + sample.input).encode("utf-8", "replace"))


def num_tokens(work: Work, samples: Sequence[Sample], known: Sequence[Size]) -> float:
    """Prompt tokens of all these samples, estimated between the prompts of known size."""
    x, y = [each.num_bytes for each in known], [each.length.num_tokens for each in known]
    return float(np.interp([num_bytes(work, sample) for sample in samples], x, y).sum())
