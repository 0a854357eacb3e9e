"""RULER's common words: a numbered list in which ten words stand more often than all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from data.ruler import words
from data.ruler.layout import Layout, Made

NUM_COMMON = 10
UNIT = 10
FIRST = 4096  # words of the first list, which says how many tokens a word takes
SHORT = 4096  # tokens below which words are repeated less


@dataclass(frozen=True)
class Repeats:
    """How often a list says the common words and the others."""

    common: int
    other: int


def rows(layout: Layout) -> Iterator[Made]:
    """Lists of as many words as fit, each behind a solved example.

    Raises ValueError where all words there are would fit: RULER then draws from a list that is not to be had here.
    """
    ruler, draw = layout.ruler, Random(layout.ruler.seed)
    pool = words.single()
    Random(ruler.seed).shuffle(pool)
    short = ruler.length < SHORT
    of_example, of_question = (Repeats(3, 1), Repeats(6, 1)) if short else (Repeats(10, 3), Repeats(30, 3))

    def made(num_words: int, repeats: Repeats) -> Made:
        drawn = draw.sample(pool, num_words)
        said = drawn[:NUM_COMMON] * repeats.common + drawn[NUM_COMMON:] * repeats.other
        Random(ruler.seed).shuffle(said)
        return Made(ruler.instruction + numbered(said), "", tuple(drawn[:NUM_COMMON]))

    def generate(num_words: int) -> Made:
        example = made(20 if short else 40, of_example)
        question = made(num_words, of_question)
        solved = f"{layout.text(example)} {numbered(example.answers)}\n"
        return Made(solved + question.context, "", question.answers)

    most = layout.largest(generate, UNIT, first=FIRST, room=2, cap=len(pool))
    if most == len(pool):
        raise ValueError(
            f"task.ruler.length={ruler.length} has room for more than the {most} words of wonderwords; "
            "give a shorter one"
        )
    for _ in range(ruler.samples):
        yield layout.fitting(generate, most, UNIT)


def numbered(said: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(said, 1))
