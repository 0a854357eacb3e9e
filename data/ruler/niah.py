"""RULER's needles in a haystack: `One of the special magic numbers for KEY is: VALUE.` in noise, essays or others."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from random import Random

from data.made import Ruler
from data.needle import NOISE
from data.ruler import words
from data.ruler.layout import Layout, Made

DEPTHS = tuple(round(100 * i / 39) for i in range(40))


def rows(layout: Layout, essays: str) -> Iterator[Made]:
    """Needles in as many units of haystack as fit. essays: their text, for haystack=essay."""
    ruler, random = layout.ruler, Random(layout.ruler.seed)
    unit = 500 if ruler.haystack == "essay" else 25 if ruler.length >= 4096 else 5
    text = " ".join(essays.split()).split(" ")

    def generate(num_units: int) -> Made:
        return needles(ruler, random, num_units, text)

    most = layout.largest(generate, unit)
    for _ in range(ruler.samples):
        yield layout.fitting(generate, most, unit)


def needles(ruler: Ruler, random: Random, num_units: int, text: list[str]) -> Made:
    """Keys with their values among `num_units` of haystack, and which of them are asked for."""
    keys, values, lines = [], [], []
    for _ in range(max(ruler.keys, ruler.queries)):
        keys.append(drawn(random, ruler.key))
        values.append([drawn(random, ruler.value) for _ in range(ruler.values)])
        lines += [told(ruler.value, keys[-1], value) for value in values[-1]]
    Random(ruler.seed).shuffle(lines)
    if ruler.haystack == "essay":
        context = among_sentences(random, lines, text, num_units)
    else:
        context = among_lines(random, lines, haystack(ruler, random, num_units))
    asked = random.sample(range(len(keys)), ruler.queries)
    named = [keys[i] for i in asked]
    query = ", ".join(named[:-1]) + ", and " + named[-1] if len(named) > 1 else named[0]
    return Made(context, query, tuple(value for i in asked for value in values[i]))


def told(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def haystack(ruler: Ruler, random: Random, num_units: int) -> list[str]:
    """Lines of noise, or of needles that nobody asks for."""
    if ruler.haystack == "noise":
        return [NOISE.strip()] * num_units
    return [told(ruler.value, drawn(random, ruler.key), drawn(random, ruler.value)) for _ in range(num_units)]


def among_lines(random: Random, lines: list[str], hay: list[str]) -> str:
    places = sorted(random.sample(range(len(hay)), len(lines)), reverse=True)
    for place, line in zip(places, lines, strict=True):
        hay.insert(place, line)
    return "\n".join(hay)


def among_sentences(random: Random, lines: list[str], text: list[str], num_words: int) -> str:
    """The first words of the essays, with each needle between two sentences."""
    times = -(-num_words // len(text))
    sentences = re.split(r"(?<=[.!?]) ", " ".join((text * times)[:num_words]))
    depths = sorted(random.sample(DEPTHS, len(lines)))
    places = [0, *(int(len(sentences) * depth / 100) for depth in depths), len(sentences)]
    parts: list[str] = []
    for i, line in enumerate([*lines, ""]):
        parts += [" ".join(sentences[places[i] : places[i + 1]]), line]
    return " ".join(part for part in parts if part)


def drawn(random: Random, kind: str) -> str:
    """A key or value: seven digits, `adjective-noun`, or a UUID."""
    if kind == "numbers":
        return str(random.randint(1_000_000, 9_999_999))
    if kind == "uuids":
        return str(uuid.UUID(int=random.getrandbits(128), version=4))
    return random.choice(words.pairs())
