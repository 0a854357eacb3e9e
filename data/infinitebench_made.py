"""Rows of InfiniteBench's six synthetic tasks (arXiv 2402.13718, section 3), made for any tokenizer and length.

A prompt, without special tokens and chat wrapper, has exactly `tokens` tokens (passkey, number_string, kv_retrieval),
or as many values or functions as fit in them. The original's generator has no seed; random numbers here are our own.
"""

from __future__ import annotations

import json
import statistics
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from data import filler
from data.base import Sample, Task
from data.kinds import KINDS
from data.miniature import plain
from data.tokens import Cut
from data.variants import InfiniteBench
from data.words import Draw

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
NEEDLES = {
    "passkey": ("The pass key is {0}. Remember it. {0} is the pass key.\n", "What is the pass key?"),
    "number_string": (
        "The sequence of digits is {0}. Remember it. {0} is the sequence of digits.\n",
        "What is the sequence of digits?",
    ),
}
EXTRA = 96  # characters that a record may have more, so that rows have an exact length
TARGETS = (
    *("largest number", "second largest number", "third largest number"),
    *("smallest number", "second smallest number", "third smallest number", "median number"),
)
DEPTHS = (2, 4, 6, 8, 10)
FEW = 4  # units of the short texts in which the tokens of a part are counted
TRIES = 24
# Kind of fact and share of a context that is facts; and how many rows of a length.
MINIATURE = {"passkey": ("paragraph", 0.0), "kv_retrieval": ("pairs", 0.9)}
REPEATS = 8

Row = dict[str, Any]
SampleOf = Callable[[Task, Row, str], Sample]


@dataclass(frozen=True)
class Recipe:
    """How rows are made. build: (units, extra characters) -> a row; least: units; extra: most extra characters."""

    build: Callable[[int, int], Row]
    least: int = 1
    extra: int = 0


def text(rows: Iterable[Row]) -> bytes:
    """The jsonl text of rows, laid out as InfiniteBench lays out its files."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def rows(task: Task, spec: InfiniteBench, tokens: int, cut: Cut, sample_of: SampleOf) -> Iterator[Row]:
    """The rows of a task, the same at every call. Raises ValueError for a task that is not made, or too few tokens."""
    if task.name not in RECIPES:
        raise ValueError(f"task.infinitebench.tokens: only {', '.join(RECIPES)} are made; read {task.name}")

    def size(row: Row) -> int:
        sample = sample_of(task, row, "")
        return len(cut(task.asked(sample.context, sample.input, sample.fields)))

    for number in range(spec.samples):
        draw = Draw(f"infinitebench/{task.name}/{spec.seed}/{number}")
        yield {"id": number, **fitted(RECIPES[task.name](task.name, draw, number, spec.samples), tokens, size)}


def fitted(recipe: Recipe, tokens: int, size: Callable[[Row], int]) -> Row:
    """The row with the most units that fit, and as many extra characters as make its size exact, if it may have any.

    Raises ValueError where not even the least fits, or no number of extra characters gives that size.
    """
    num = most(lambda units: size(recipe.build(units, 0)), recipe.least, tokens)
    if recipe.extra == 0:
        return recipe.build(num, 0)
    lacking = tokens - size(recipe.build(num, 0))
    few = min(num, FEW)
    base = size(recipe.build(few, 0))
    # A part adds as many tokens to a short text as to a long one, but for what merges where they meet.
    guesses = {extra: abs(size(recipe.build(few, extra)) - base - lacking) for extra in range(recipe.extra + 1)}
    for extra in sorted(guesses, key=lambda extra: (guesses[extra], extra))[:TRIES]:
        row = recipe.build(num, extra)
        if size(row) == tokens:
            return row
    raise ValueError(f"task.infinitebench.tokens={tokens}: no row has exactly so many; give one more or less")


def most(size: Callable[[int], int], least: int, limit: int) -> int:
    """The most units whose size is within the limit, for a size that grows about evenly. Raises ValueError for none."""
    low, found = least, size(least)
    if found > limit:
        raise ValueError(f"task.infinitebench.tokens={limit} is too few, the least is {found}; give more")
    high: int | None = None
    guess = max(low + 1, FEW)
    while high is None or high - low > 1:
        found = size(guess)
        if found <= limit:
            low = guess
        else:
            high = guess
        guess = max(guess * limit // found, low + 1)
        guess = guess if high is None else min(guess, high - 1)
    return low


def hidden(name: str, draw: Draw, number: int, samples: int) -> Recipe:
    """A number in repeated lines, as deep as the row's place among the rows; the first line may lack its beginning."""
    needle, question = NEEDLES[name]
    key = "".join(str(draw.below(10)) for _ in range(5))
    for length in range(5, 10 if name == "number_string" else 5):
        place = draw.below(length)
        key = key[:place] + key[place] + key[place:]
    depth = number / max(1, samples - 1)

    def build(num: int, extra: int) -> Row:
        before = int(depth * num)
        begun = NOISE[len(NOISE) - extra :]
        context = begun + NOISE * before + needle.format(key) + NOISE * (num - before)
        return {"context": context, "input": question, "answer": [key]}

    return Recipe(build, extra=len(NOISE) - 1)


def records(name: str, draw: Draw, number: int, samples: int) -> Recipe:
    """One of many random keys; the record behind the asked one may have a longer value."""
    made: list[tuple[str, str]] = []

    def build(num: int, extra: int) -> Row:
        while len(made) < num:
            made.append((identifier(draw), identifier(draw)))
        asked = number * num // samples
        said = list(made[:num])
        key, value = said[(asked + 1) % num]
        said[(asked + 1) % num] = (key, value + longer[:extra])
        context = "JSON data:\n{" + ", ".join(f'"{key}": "{value}"' for key, value in said) + "}"
        key, value = made[asked]
        question = f'\nKey: "{key}"\nThe value associated with the specified key is: '
        return {"context": context, "input": question, "answer": [value]}

    longer = hexadecimal(draw, EXTRA)
    return Recipe(build, least=2, extra=EXTRA)


def numbers(name: str, draw: Draw, number: int, samples: int) -> Recipe:
    """An extreme value or the median of a list; the second and third are among different values."""
    target = TARGETS[number % len(TARGETS)]
    median = target.startswith("median")
    low, high = 0, 99
    if "largest" in target or (median and draw.below(2)):
        high = 79 + draw.below(21)
    else:
        low = draw.below(20)
    made: list[int] = []

    def build(num: int, extra: int) -> Row:
        while len(made) < num:
            made.append(low + draw.below(high - low + 1))
        values = made[:num]
        ranked = sorted(set(values), reverse="largest" in target)
        rank = ("second" in target) + 2 * ("third" in target)
        # In few values all ranks may not exist; such a list is only counted, never asked.
        answer = statistics.median(values) if median else ranked[min(rank, len(ranked) - 1)]
        question = f"You should answer with only one number, no other words. The {target} of the list is: "
        return {"context": str(values), "input": question, "answer": [answer]}

    return Recipe(build, least=64)


def expression(name: str, draw: Draw, number: int, samples: int) -> Recipe:
    """A sum of many numbers whose value stays within 0 and 99; the answer is its value after each operation."""
    said, values = [str(first := draw.below(100))], [first]

    def build(num: int, extra: int) -> Row:
        while len(values) < num:
            plus, operand, value = draw.below(2) == 1, draw.below(100), values[-1]
            room = 99 - value if plus else value
            operand = operand if operand <= room else draw.below(room + 1)
            said.append(f"{'+' if plus else '-'} {operand}")
            values.append(value + operand if plus else value - operand)
        return {"context": " ".join(said[:num]), "input": "", "answer": [values[1:num]]}

    return Recipe(build, least=2)


def functions(name: str, draw: Draw, number: int, samples: int) -> Recipe:
    """Layers of functions, each of which calls one of the next layer; a unit is a function of every layer."""
    depth = DEPTHS[number % len(DEPTHS)]
    argument, seed = draw.below(21) - 10, draw.below(2**32)

    def build(num: int, extra: int) -> Row:
        own = Draw(f"{seed}/{num}")
        ids = own.some(range(1, 2 * depth * num + 1), depth * num)
        layers = [ids[i * num : (i + 1) * num] for i in range(depth)]
        calls: dict[int, tuple[int | None, int]] = {}
        for i, layer in enumerate(layers):
            for one in layer:
                calls[one] = (own.one(layers[i + 1]) if i + 1 < depth else None, own.below(30) - 12)
        context = "\nHere is the content of functions_module.py:\n\n" + "\n".join(
            defined(one, *calls[one]) for one in sorted(calls)
        )
        asked = own.one(layers[0])
        question = (
            f"Please give me the exact number of the return value of func_{asked}({argument}). Your response should "
            "end with the sentence 'The return value is:'."
        )
        return {"context": context, "input": question, "answer": [argument + total(calls, asked)]}

    return Recipe(build)


def defined(one: int, called: int | None, added: int) -> str:
    body = "x" if called is None else f"func_{called}(x)"
    more = f" {'+' if added > 0 else '-'} {abs(added)}" if added else ""
    return f"def func_{one}(x):\n    return {body}{more}\n"


def total(calls: Mapping[int, tuple[int | None, int]], one: int | None) -> int:
    """What a function adds to its argument, by way of those that it calls."""
    added = 0
    while one is not None:
        one, more = calls[one]
        added += more
    return added


def identifier(draw: Draw) -> str:
    """A random UUID, version 4."""
    return str(uuid.UUID(int=int(hexadecimal(draw, 32), 16), version=4))


def hexadecimal(draw: Draw, num: int) -> str:
    return "".join("0123456789abcdef"[draw.below(16)] for _ in range(num))


RECIPES: Mapping[str, Callable[[str, Draw, int, int], Recipe]] = {
    "passkey": hidden,
    "number_string": hidden,
    "kv_retrieval": records,
    "math_find": numbers,
    "math_calc": expression,
    "code_run": functions,
}


def miniature_rows(name: str, source: str, spec: InfiniteBench) -> Iterator[Row]:
    """Rows in the embedded model's closed vocabulary: one number in filler, or almost nothing but keys and values."""
    kind, density = MINIATURE[name]
    for length, repeat in product(spec.miniature_lengths, range(REPEATS)):
        draw = Draw(f"{source}/{name}/{spec.seed}/{length}/{repeat}")
        episode = KINDS[kind](draw, int(density * length), set())
        asked = draw.one(episode.asks)
        yield {
            "id": f"{length}-{repeat}",
            "context": "".join(filler.context(draw, episode.facts, length))[1:],
            "input": plain(asked.question),
            "answer": [plain(asked.values).replace(" ", "")],
        }
