"""Needle in a haystack: contexts of an exact number of tokens with one sentence hidden at a given depth.

The protocol is that of LLMTest_NeedleInAHaystack (7b90d28) as KVCache-Factory (c97f9d7) runs it, except that lengths
are exact: a text is cut where its own tokens end, so that encoding it again gives the same number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from data import filler, longbench
from data.base import Dataset, Task
from data.kinds import KINDS
from data.longbench import git_blob_sha1
from data.made import Needle
from data.tokens import Cut, Spans
from data.words import Draw

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
# Tokens of filler for a context: more than it needs, because a haystack is cut at its end.
SPARE = 1.25
STEPS = 64
NEAR = 64  # characters around the nearest end that are tried one by one
CELL = re.compile(r"L(\d+)-D([\d.]+)-R(\d+)-P(\d+)")


@dataclass(frozen=True)
class Cell:
    """Where a row stands in the grid, as its id says. place: tokens of the context before the needle's first one."""

    length: int
    depth: float
    repeat: int
    place: int

    def __str__(self) -> str:
        return f"L{self.length}-D{self.depth:g}-R{self.repeat}-P{self.place}"


@dataclass(frozen=True)
class Hidden:
    """A context with its needle. size: tokens of all; place: those before the needle's first one."""

    context: str
    size: int
    place: int


def cell_of(row_id: str) -> Cell:
    """The cell that a row's id names. Raises ValueError for the id of another task's row."""
    match = CELL.fullmatch(row_id)
    if match is None:
        raise ValueError(f"{row_id!r} is no row of task needle; its ids read L1000-D50-R0-P373")
    return Cell(int(match[1]), float(match[2]), int(match[3]), int(match[4]))


def load(task: Task, source: str, cut: Cut) -> Dataset:
    """The rows of the grid for one tokenizer, the same at every call. source: as in `data.rows.read`.

    Raises ValueError for a source without a haystack, and for lengths that no text of it has.
    """
    needle = task.needle
    assert needle is not None
    small = source.startswith("miniature")
    if small:
        where, rows = source, miniature_rows(needle, source, cut)
    else:
        where, text = haystack(needle, source)
        rows = real_rows(needle, text, answer_of(needle, task.metric), cut)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    samples = longbench.parse(data, f"{task.name} of {where}")
    return Dataset(samples, where, git_blob_sha1(data), official=None, miniature=small)


def answer_of(needle: Needle, metric: str) -> str:
    """What a prediction is compared with: the metrics of needles each take another part of it."""
    return {"match_part": needle.phrase, "rouge_1": needle.needle.strip()}.get(metric, needle.answer)


def haystack(needle: Needle, source: str) -> tuple[str, str]:
    """Where the text comes from, and the text: the noise, or essays."""
    if needle.haystack == "noise":
        return "noise", NOISE
    return essays(source, "task needle", "or task.needle.haystack=noise")


def essays(source: str, who: str, other: str = "") -> tuple[str, str]:
    """A folder and the text of all its *.txt in the order of their names. other: another remedy."""
    folder = Path(source).expanduser()
    remedy = f"give data=FOLDER of *.txt files (the original has 49 essays of Paul Graham) {other}".strip()
    if source == "hub" or source.startswith("miniature") or not folder.is_dir():
        raise ValueError(f"data={source} holds no haystack for {who}; {remedy}")
    files = sorted(folder.glob("*.txt"))
    try:
        text = "".join(longbench.read_file(file).decode() for file in files)
    except UnicodeDecodeError as error:
        raise ValueError(f"a *.txt of {folder} is no UTF-8 ({error}); save it as such") from None
    if not text.strip():
        raise ValueError(f"data={source} holds no *.txt with text; {remedy}")
    return str(folder), text


def real_rows(needle: Needle, text: str, answer: str, cut: Cut) -> Iterator[dict[str, Any]]:
    """The grid, by length, depth and repeat; the haystack is repeated where it is too short."""
    begun = [turned(text, needle.seed, repeat, max(needle.lengths), cut) for repeat in range(needle.repeats)]
    spans = [cut(each) for each in begun]
    for length, depth, repeat in product(needle.lengths, needle.depths, range(needle.repeats)):
        size = length - needle.buffer
        hidden = hide(begun[repeat], spans[repeat], needle.needle, size, depth, needle.place, cut)
        yield row(Cell(length, depth, repeat, hidden.place), hidden.context, needle.question, answer)


def miniature_rows(needle: Needle, source: str, cut: Cut) -> Iterator[dict[str, Any]]:
    """The grid in the closed vocabulary: a fact with a key and four values, hidden in filler; the answer is the values.

    Each cell has a needle of its own, each length and repeat one haystack for all depths.
    """
    for length, depth, repeat in product(needle.miniature_lengths, needle.depths, range(needle.repeats)):
        size, name = length - needle.buffer, f"{source}/needle/{needle.seed}/{length}/{repeat}"
        draw = Draw(f"{name}/{depth:g}")
        ask = KINDS["qa"](draw, 1, set()).asks[0]
        text = "".join(token for said in filler.fill(Draw(name), int(SPARE * size)) for token in said)[1:]
        fact, question, values = ("".join(tokens) for tokens in (ask.spoken, ask.question, ask.values))
        hidden = hide(text, cut(text), fact, size, depth, needle.place, cut)
        yield row(Cell(length, depth, repeat, hidden.place), hidden.context, question[1:], values[1:])


def row(cell: Cell, context: str, question: str, answer: str) -> dict[str, Any]:
    """A row in LongBench's layout."""
    return {
        "input": question,
        "context": context,
        "answers": [answer],
        "length": cell.length,
        "dataset": "needle",
        "language": "en",
        "all_classes": None,
        "_id": str(cell),
    }


def turned(text: str, seed: int, repeat: int, num_tokens: int, cut: Cut) -> str:
    """The text, repeated until it has more tokens than that; repeats after the first begin at a drawn sentence."""
    starts = [match.end() for match in re.finditer(r"[.!?]\s+(?=\S)", text)]
    if repeat and starts:
        start = Draw(f"needle/{seed}/{repeat}").one(starts)
        text = text[start:] + text[:start]
    times = 1
    while len(cut(text * times)) <= num_tokens:
        times *= 2
    return text * times


def hide(text: str, spans: Spans, needle: str, size: int, depth: float, place: str, cut: Cut) -> Hidden:
    """A context of exactly `size` tokens: the text's beginning with the needle after `depth` percent of its tokens.

    At 100 the needle is last. Else it is put after the latest "." token at or before that place (to be first, if there
    is none), or with place="token" at that very token.
    Raises ValueError if the needle alone is too long, or no cut of the text gives that size.
    """
    room = size - len(cut(needle))
    if room < 1:
        raise ValueError(f"the needle has {size - room} tokens, too many for a context of {size}; give longer lengths")
    if depth == 100:
        end = exact(lambda end: text[:end] + needle, spans, room, size, cut)
        return measured(text[:end], needle, "", cut)
    target = int(room * depth / 100)
    start = before(text, spans, target) if place == "sentence" else at(text, spans, target, needle, cut)
    end = exact(lambda end: text[:start] + needle + text[start : max(start, end)], spans, room, size, cut)
    return measured(text[:start], needle, text[start:end], cut)


def before(text: str, spans: Spans, target: int) -> int:
    """The character behind the latest of the first `target` tokens that is "." or " ."; 0 for none."""
    return next((b for a, b in reversed(spans[:target]) if text[a:b].lstrip(" ") == "."), 0)


def at(text: str, spans: Spans, target: int, needle: str, cut: Cut) -> int:
    """The character at which the needle's first token is the context's token number `target`.

    Raises ValueError where tokens merge across all ends near by.
    """
    if target == 0:
        return 0
    end = spans[target - 1][1]
    for candidate in nearest(end, len(text)):
        if measured(text[:candidate], needle, "", cut).place == target:
            return candidate
    raise ValueError(f"the needle cannot stand at token {target}: tokens merge around it; give place=sentence")


def exact(make: Callable[[int], str], spans: Spans, room: int, size: int, cut: Cut) -> int:
    """The character at which the text must end so that `make` of it has `size` tokens. Raises ValueError for none."""
    index, tried = room, set[int]()
    while index not in tried and len(tried) < STEPS and 0 < index <= len(spans):
        tried.add(index)
        found = len(cut(make(spans[index - 1][1])))
        if found == size:
            return spans[index - 1][1]
        index += size - found
    end = spans[min(max(index, 1), len(spans)) - 1][1]
    for candidate in nearest(end, spans[-1][1]):
        if len(cut(make(candidate))) == size:
            return candidate
    raise ValueError(f"no cut of the haystack gives {size} tokens; give another task.needle.lengths, or more text")


def nearest(end: int, last: int) -> list[int]:
    """The characters around `end`, nearest first."""
    around = range(max(0, end - NEAR), min(last, end + NEAR) + 1)
    return sorted(around, key=lambda place: abs(place - end))


def measured(head: str, needle: str, tail: str, cut: Cut) -> Hidden:
    """The context of these three, counted as it is read: tokens may merge where they meet."""
    context = head + needle + tail
    spans = cut(context)
    # The first token with a character of the needle; one that holds text and needle is the needle's.
    return Hidden(context, len(spans), next(i for i, (_, end) in enumerate(spans) if end > len(head)))
