"""How long the prompts of a run are, exactly where a tokenizer is at hand, by their bytes elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.base import Sample
from eval.job import Work

BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Length:
    """Tokens of a prompt, whether its middle was cut, and where its context ends if methods act there."""

    num_tokens: int
    truncated: bool
    context_end: int | None


@dataclass(frozen=True)
class Size:
    """One prompt, its place among the others, and the bytes of its text, by which prompts are compared."""

    label: str
    num_bytes: int
    length: Length


def sizes(work: Work, length_of: Callable[[Sample], Length]) -> list[Size]:
    """The shortest, the median and the longest prompt. length_of: exact, or `guessed`."""
    ordered = sorted(work.samples, key=lambda sample: num_bytes(work, sample))
    places = {"shortest": 0, "median": len(ordered) // 2, "longest": len(ordered) - 1}
    found = {label: ordered[place] for label, place in places.items()}
    return [Size(label, num_bytes(work, sample), length_of(sample)) for label, sample in found.items()]


def guessed(work: Work, sample: Sample) -> Length:
    """The length that the bytes of a prompt suggest, for want of a tokenizer."""
    wanted, most = num_bytes(work, sample) // BYTES_PER_TOKEN, work.job.spec.max_prompt
    context = len(sample.context.encode("utf-8", "replace")) // BYTES_PER_TOKEN
    end = min(context, most) if work.job.settings.protocol == "question_after" else None
    return Length(min(wanted, most), wanted > most, end)


def num_bytes(work: Work, sample: Sample) -> int:
    """UTF-8 bytes of a prompt without its chat wrapper; unlike characters they count Chinese and English alike."""
    return len((work.task.prompt + work.task.answer_prefix + sample.context + sample.input).encode("utf-8", "replace"))


def num_tokens(work: Work, samples: Sequence[Sample], known: Sequence[Size]) -> float:
    """Prompt tokens of all these samples, estimated between the prompts of known size."""
    x, y = [each.num_bytes for each in known], [each.length.num_tokens for each in known]
    return float(np.interp([num_bytes(work, sample) for sample in samples], x, y).sum())
