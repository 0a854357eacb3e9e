"""RULER's frequent words: coded words whose counts fall with the square of their rank."""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import partial
from random import Random

from data.ruler.layout import Layout, Made

WORD_LENGTH = 6
ZETA_2 = 1.6449340668482264  # the sum of r**-2


def rows(layout: Layout) -> Iterator[Made]:
    """The most frequent word is `...`; the next three are asked for."""
    ruler = layout.ruler
    limit = ruler.length - layout.task.max_new_tokens
    random = Random(ruler.seed)

    def counted(names: list[str], num_words: int) -> Made:
        said = [name for rank, name in enumerate(names, 1) for _ in range(int(num_words * rank**-2 / ZETA_2))]
        Random(ruler.seed).shuffle(said)
        return Made(" ".join(said), "", tuple(names[1:4]))

    step, most, names = limit // 32, limit // 6, code(random, limit // 50, ruler.seed)
    if step <= 0 or len(names) < 4:
        raise ValueError(f"task.ruler.length={ruler.length} is too short for coded words; give a longer one")
    while layout.size(counted(names, most)) < ruler.length:
        most += step
    for _ in range(ruler.samples):
        yield layout.fitting(partial(counted, code(random, limit // 50, ruler.seed)), most - step, step)


def code(random: Random, num: int, seed: int) -> list[str]:
    """That many different words of six letters, the first replaced by dots."""
    made: set[str] = set()
    while len(made) < num:
        made.add("".join(random.choices(string.ascii_lowercase, k=WORD_LENGTH)))
    names = sorted(made)
    Random(seed).shuffle(names)
    return ["...", *names[1:]]
