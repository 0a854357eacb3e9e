"""RULER's variable tracking: a chain of assignments among lines of noise, all of whose names are asked for."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np

from data.needle import NOISE
from data.ruler.layout import Layout, Made

NUM_NAMES = 5  # one chain of four hops, as the prompt says
EXAMPLE_TOKENS = 500
EXAMPLE_VALUE = "12345"


def rows(layout: Layout) -> Iterator[Made]:
    """Chains in as much noise as fits, each behind a solved example with names and a value of its own."""
    ruler = layout.ruler
    draw = Draw(ruler.seed, ruler.instruction)
    unit = 10 if ruler.length >= 4096 else 5
    example = solved(layout, draw)
    most = layout.largest(draw.chain, unit, more=len(layout.cut(example)))

    def generate(num_lines: int) -> Made:
        made = draw.chain(num_lines)
        return replace(made, context=f"{draw.renamed(example)}\n{made.context}")

    for _ in range(ruler.samples):
        yield layout.fitting(generate, most, unit)


def solved(layout: Layout, draw: Draw) -> str:
    """A question of up to 500 tokens with its answer."""
    task = replace(layout.task, max_new_tokens=0, ruler=replace(layout.ruler, length=EXAMPLE_TOKENS))
    short = Layout(task, layout.cut)

    def generate(num_lines: int) -> Made:
        return draw.chain(num_lines, letters=3, value=EXAMPLE_VALUE)

    made = generate(short.largest(generate, 5))
    return f"{short.text(made)} {' '.join(made.answers)}\n"


class Draw:
    """RULER's two sources of random numbers: Python's for names and places, NumPy's for values."""

    def __init__(self, seed: int, instruction: str) -> None:
        self._random, self._numbers = Random(seed), np.random.RandomState(seed)
        self._instruction = instruction

    def chain(self, num_lines: int, letters: int = 5, value: str | None = None) -> Made:
        """A chain among that many lines of noise; `value` is drawn where none is given."""
        names = self._names(letters)
        value = value or self._value()
        said = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(names))]
        lines = [NOISE.strip()] * num_lines
        places = sorted(self._random.sample(range(num_lines), len(said)))
        for number, (place, line) in enumerate(zip(places, said, strict=True)):
            lines.insert(place + number, line)
        return Made(self._instruction + "\n".join(lines), value, tuple(names))

    def renamed(self, example: str) -> str:
        """The example with other names of the same length, and another value."""
        for name in example.split()[-NUM_NAMES:]:
            example = example.replace(name, self._name(len(name)))
        return example.replace(EXAMPLE_VALUE, self._value())

    def _names(self, letters: int) -> list[str]:
        names = [self._name(letters) for _ in range(NUM_NAMES)]
        while len(set(names)) < NUM_NAMES:
            names.append(self._name(letters))
        return list(dict.fromkeys(names))

    def _name(self, letters: int) -> str:
        return "".join(self._random.choices(string.ascii_uppercase, k=letters))

    def _value(self) -> str:
        return str(self._numbers.randint(10_000, 99_999))
