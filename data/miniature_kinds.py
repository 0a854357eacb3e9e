"""What miniature rows ask: facts, distractors and answers in the embedded model's closed vocabulary."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

TOKENIZER = Path(__file__).with_name("tiny") / "tokenizer.json"
NUM_CLASSES = 24

Sentence = tuple[str, ...]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Words:
    """The closed vocabulary by role. `values` are what is asked for and `symbols` stand for ids, labels and code."""

    names: Sequence[str]
    values: Sequence[str]
    filler: Sequence[str]
    attributes: Sequence[str]
    relations: Sequence[str]
    symbols: Sequence[str]


@dataclass(frozen=True)
class Question:
    """What one row asks.

    input: the row's `input`, which the task's template completes.
    facts: the sentences that answer it.
    distractors: endless sentences of the same form with other keys.
    spoken: what the embedded model says with everything in view, up to the last value.
    answer: the part of `spoken` that is scored, or what the task's metric compares it with.
    """

    input: str
    facts: tuple[Sentence, ...]
    distractors: Iterator[Sentence]
    spoken: str
    answer: str
    all_classes: tuple[str, ...] | None = None


class Draw:
    """Random choices made of `random.Random(text).random()` only, the sequence that Python promises to keep."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def one(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def some(self, items: Sequence[Item], num: int) -> list[Item]:
        """That many different items, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(num)]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        return self.some(items, len(items))


@lru_cache(maxsize=1)
def words() -> Words:
    """The vocabulary of `data/tiny`, told apart by spelling and by place."""
    vocabulary: dict[str, int] = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    common = ordered.index("color")
    return Words(
        names=[word for word in ordered if re.fullmatch(r"(?!Question|Answer)[A-Z][a-z]+", word)],
        values=[word for word in ordered if re.fullmatch(r"(?:[^aeiou][aeiou]){2}(?:sh|rm|lt|nd|ck)", word)],
        filler=[word for word in ordered if re.fullmatch(r"(?:[^aeiou][aeiou]){2}(?:ly|ing|al|er|ed)", word)],
        attributes=ordered[common : ordered.index("number")],
        relations=ordered[ordered.index("friend") : ordered.index("cousin") + 1],
        symbols=[word for word in ordered if re.fullmatch(r"[a-m]\d", word)],
    )


def _new(make: Callable[[], Sentence], used: set[Sentence]) -> Sentence:
    """The next key that is not in `used`, and adds it there."""
    while (key := make()) in used:
        pass
    used.add(key)
    return key


def _list(draw: Draw, num_values: int, one_name: bool = False) -> Question:
    """Three attributes of three names, or of one name: `Gudin color is wacash wesish .`"""
    w = words()
    names = draw.some(w.names, 1) * 3 if one_name else draw.some(w.names, 3)
    keys = list(zip(names, draw.some(w.attributes, 3), strict=True))
    used: set[Sentence] = set(keys)
    values = draw.some(w.values, 3 * num_values)
    facts = [(*key, "is", *values[i * num_values :][:num_values], ".") for i, key in enumerate(keys)]

    def distractors() -> Iterator[Sentence]:
        while True:
            key = _new(lambda: (draw.one(w.names), draw.one(w.attributes)), used)
            yield (*key, "is", *draw.some(w.values, num_values), ".")

    asked = " , ".join(" ".join(key) for key in keys)
    return Question(asked, tuple(facts), distractors(), _spoken(facts), " ".join(values))


def _two_hops(draw: Draw) -> Question:
    """An attribute of somebody's relation: `Gudin boss is Roror .` and `Roror color is wacash wesish peparm .`"""
    w = words()
    (first, second), relation, attribute = draw.some(w.names, 2), draw.one(w.relations), draw.one(w.attributes)
    values = draw.some(w.values, 3)
    facts = ((first, relation, "is", second, "."), (second, attribute, "is", *values, "."))
    used: set[Sentence] = {fact[:2] for fact in facts}

    def distractors() -> Iterator[Sentence]:
        while True:
            key = _new(lambda: (draw.one(w.names), draw.one(w.relations)), used)
            yield (*key, "is", draw.one(w.names), ".")
            key = _new(lambda: (draw.one(w.names), draw.one(w.attributes)), used)
            yield (*key, "is", *draw.some(w.values, 3), ".")

    return Question(
        f"{first} {relation} {attribute}", facts, distractors(), _spoken(facts), " ".join([second, *values])
    )


def _chain(draw: Draw, num_hops: int = 5) -> Question:
    """A linked list from its head: `a1 b2 -> c3 d4 .`, `c3 d4 -> e5 f6 .` and so on."""
    symbols = draw.some(words().symbols, 2 * num_hops + 2)
    nodes = [tuple(symbols[i : i + 2]) for i in range(0, len(symbols), 2)]
    used: set[Sentence] = set(nodes)

    def links(chain: Sequence[Sentence]) -> list[Sentence]:
        return [(*left, "->", *right, ".") for left, right in pairwise(chain)]

    def distractors() -> Iterator[Sentence]:
        while True:
            yield from links([_new(lambda: _symbols(draw, 2), used) for _ in range(num_hops + 1)])

    spoken = [" ".join(node) for node in nodes]
    return Question(spoken[0], tuple(links(nodes)), distractors(), " -> ".join(spoken), " ".join(spoken[1:]))


def _passage(draw: Draw) -> Question:
    """The paragraph that a key leads to: `a1 b2 c3 = a3 e3 c3 g3 ;` is Paragraph 3, every symbol carries its number."""

    def paragraph(number: int) -> Sentence:
        return tuple(f"{letter}{number}" for letter in draw.some("abcdefghk", 4))

    number = 1 + draw.below(9)
    asked = _lookup(draw, paragraph(number), lambda: paragraph(1 + draw.below(9)))
    return replace(asked, answer=f"Paragraph {number}")


def _labels(draw: Draw) -> Question:
    """The label that a text of three symbols had among the examples: `a1 b2 c3 = d4 e5 f6 g7 ;`"""
    # The same in each row, because LongBench scores a file with the classes of its last one.
    symbols = Draw("classes").shuffled(words().symbols)
    classes = [tuple(symbols[4 * i : 4 * i + 4]) for i in range(NUM_CLASSES)]
    right = draw.below(NUM_CLASSES)
    asked = _lookup(draw, classes[right], lambda: classes[(right + 1 + draw.below(NUM_CLASSES - 1)) % NUM_CLASSES])
    return replace(asked, all_classes=tuple(" ".join(name) for name in classes))


def _pairs(draw: Draw) -> Question:
    """The value of a key: `a1 b2 c3 = d4 e5 f6 g7 ;`"""
    return _lookup(draw, _symbols(draw, 4), lambda: _symbols(draw, 4))


def _lookup(draw: Draw, value: Sentence, other: Callable[[], Sentence]) -> Question:
    """A key of three symbols and its `value` of four, among other keys with `other` values."""
    key = tuple(draw.some([symbol for symbol in words().symbols if symbol not in value], 3))
    used: set[Sentence] = {key}

    def distractors() -> Iterator[Sentence]:
        while True:
            yield (*_new(lambda: _symbols(draw, 3), used), "=", *other(), ";")

    fact = (*key, "=", *value, ";")
    return Question(" ".join(key), (fact,), distractors(), _spoken([fact]), " ".join(value))


def _symbols(draw: Draw, num: int) -> Sentence:
    return tuple(draw.some(words().symbols, num))


def _spoken(facts: Sequence[Sentence]) -> str:
    """The facts one after the other, without the last stop."""
    return " ".join(word for fact in facts for word in fact)[:-2]


KINDS: dict[str, Callable[[Draw], Question]] = {
    "narrativeqa": partial(_list, num_values=3),
    "qasper": partial(_list, num_values=3, one_name=True),
    "hotpotqa": _two_hops,
    "musique": _chain,
    "qmsum": partial(_list, num_values=2),
    "trec": _labels,
    "passage_retrieval_en": _passage,
    "lcc": _pairs,
}
