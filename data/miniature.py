"""The miniature of LongBench: generated rows in its file format, written in the embedded model's closed vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data import longbench
from data.base import Dataset, Task
from data.miniature_kinds import KINDS, Draw, Question, Sentence, words

FOLDER = Path(__file__).with_suffix("")
# Context lengths in tokens, one a row. The embedded model was trained up to 4096 tokens, prompt included.
LENGTHS = (1024,) * 12 + (2048,) * 8 + (3900,) * 4
# Share of a context's tokens that are facts of the asked kind; the rest is filler.
DENSITY = 0.2
SUCCESSORS = 4


def load(task: Task, limit: int | None = None) -> Dataset:
    """The committed rows of a task, as they are asked with `task.small()`.

    limit: the first rows only. Raises ValueError for a task without miniature rows or a damaged file.
    """
    task.small()
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1, or null for all rows")
    path = committed(task.name)
    data = longbench.read_file(path)
    samples = longbench.parse(data, path.name, limit)
    return Dataset(samples, "miniature", longbench.git_blob_sha1(data), official=None, miniature=True)


def committed(task_name: str) -> Path:
    """Where the generated rows of a task lie in the repository."""
    return FOLDER / f"{task_name}.jsonl"


def text(task_name: str, seed: int = 0) -> str:
    """The jsonl text of `generate`, laid out as LongBench lays out its files."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in generate(task_name, seed))


def generate(task_name: str, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a task, the same on every machine. Raises ValueError for a task that has none."""
    return [_row(task_name, seed, index, length) for index, length in enumerate(LENGTHS)]


def question(task_name: str, seed: int, index: int) -> Question:
    """What the row of that index asks. Raises ValueError for a task that has no miniature."""
    if task_name not in KINDS:
        raise ValueError(f"there is no miniature of task {task_name!r}; allowed: {', '.join(KINDS)}")
    return KINDS[task_name](Draw(f"{task_name}/{seed}/{index}/question"))


def _row(task_name: str, seed: int, index: int, length: int) -> dict[str, Any]:
    asked = question(task_name, seed, index)
    context = _context(asked, length, Draw(f"{task_name}/{seed}/{index}/context"))
    texts = (context, asked.input, asked.answer)
    return {
        "input": asked.input,
        "context": context,
        "answers": [asked.answer],
        "length": sum(len(part.split()) for part in texts),
        "dataset": task_name,
        "language": "en",
        "all_classes": None if asked.all_classes is None else list(asked.all_classes),
        "_id": hashlib.sha256(f"{task_name}/{seed}/{index}".encode()).hexdigest()[:48],
    }


def _context(asked: Question, length: int, draw: Draw) -> str:
    """The facts among distractors and filler, in random order: `length` tokens and at most one sentence more."""
    sentences = list(asked.facts)
    filler = _filler(draw)
    num_tokens = sum(map(len, sentences))
    while num_tokens < length:
        sentences.append(next(asked.distractors if num_tokens < DENSITY * length else filler))
        num_tokens += len(sentences[-1])
    return " ".join(word for sentence in draw.shuffled(sentences) for word in sentence)


def _filler(draw: Draw) -> Iterator[Sentence]:
    """Sentences of 5 to 10 filler words, each followed by one of its few successors."""
    successors = _successors()
    while True:
        sentence = [draw.one(words().filler)]
        for _ in range(4 + draw.below(6)):
            sentence.append(draw.one(successors[sentence[-1]]))
        yield (*sentence, ".")


@lru_cache(maxsize=1)
def _successors() -> dict[str, list[str]]:
    # One bank for all rows: with free word order the embedded model misses facts.
    draw = Draw("filler")
    return {word: draw.some(words().filler, SUCCESSORS) for word in words().filler}
