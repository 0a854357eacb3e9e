"""The miniature of LongBench: generated rows in its file format, written in the embedded model's closed vocabulary."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from data import longbench
from data.base import Dataset, Task

FOLDER = Path(__file__).with_suffix("")
TOKENIZER = Path(__file__).with_name("tiny") / "tokenizer.json"
# Context lengths in tokens, one a row. The embedded model was trained up to 4096 tokens, prompt included.
LENGTHS = (1024,) * 12 + (2048,) * 8 + (3900,) * 4
# Share of a context's tokens that are facts of the asked kind; the rest is filler.
DENSITY = 0.2
NUM_CLASSES = 24
SUCCESSORS = 4

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
    """The paragraph about two words: `wacash wesish in passage a3 e3 c3 .`, where every symbol carries its number."""
    w = words()
    used: set[Sentence] = set()

    def passage(number: int) -> Sentence:
        topics = _new(lambda: tuple(draw.some(w.values, 2)), used)
        return (*topics, "in", "passage", *(f"{letter}{number}" for letter in draw.some("abcdefghk", 3)), ".")

    def distractors() -> Iterator[Sentence]:
        while True:
            yield passage(1 + draw.below(9))

    number = 1 + draw.below(9)
    fact = passage(number)
    return Question(" ".join(fact[:2]), (fact,), distractors(), _spoken([("about", *fact)]), f"Paragraph {number}")


def _labels(draw: Draw) -> Question:
    """The label of the one telling word in a text of four: `text gurely wacash sotuing sapial label a1 b2 c3 .`"""
    w = words()
    # The same in each row, because LongBench scores a file with the classes of its last one.
    symbols = Draw("classes").shuffled(w.symbols)
    classes = [tuple(symbols[3 * i : 3 * i + 3]) for i in range(NUM_CLASSES)]
    keywords = draw.some(w.values, NUM_CLASSES)
    right = draw.below(NUM_CLASSES)

    def noisy(keyword: str) -> Sentence:
        noise = draw.some(w.filler, 3)
        # Close enough to `label` for the model's look-back heads, which reach four tokens.
        place = 1 + draw.below(2)
        return (*noise[:place], keyword, *noise[place:])

    def example(index: int) -> Sentence:
        return ("text", *noisy(keywords[index]), "label", *classes[index], ".")

    def distractors() -> Iterator[Sentence]:
        while True:
            yield example((right + 1 + draw.below(NUM_CLASSES - 1)) % NUM_CLASSES)

    answer = " ".join(classes[right])
    all_classes = tuple(" ".join(name) for name in classes)
    facts = (example(right), example(right))
    return Question(" ".join(noisy(keywords[right])), facts, distractors(), answer, answer, all_classes)


def _pairs(draw: Draw) -> Question:
    """The value of a key: `a1 b2 c3 = d4 e5 f6 g7 ;`"""
    symbols = _symbols(draw, 7)
    key, value = symbols[:3], symbols[3:]
    used: set[Sentence] = {key}

    def distractors() -> Iterator[Sentence]:
        while True:
            yield (*_new(lambda: _symbols(draw, 3), used), "=", *_symbols(draw, 4), ";")

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
