"""RULER's questions in the embedded model's closed vocabulary: facts with a key among filler, or chains of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from data import filler
from data.kinds import KINDS, Ask, Episode, lists
from data.made import Ruler
from data.miniature import plain
from data.ruler.layout import Layout, Made
from data.words import Draw

FACT = 8  # tokens of a fact with four values, such as `Gudi color is fash fevu puru kola.`
ASKED = 3  # keys in a question of several: the embedded model was trained on three
WORD = filler.WORDS[0].strip()  # one token; without a context a blank of the template would be a token of its own
LIST_FACT = 6  # tokens of a fact with two values


def rows(layout: Layout, source: str) -> Iterator[Made]:
    """Rows of exactly `length` tokens, prompt and answer."""
    for number in range(layout.ruler.miniature_samples):
        draw = Draw(f"{source}/{layout.task.name}/{layout.ruler.seed}/{number}")
        episode = facts(draw, layout.ruler, layout.ruler.length - layout.size(Made("", "", ())))
        ask = draw.one(episode.asks)
        made = Made(WORD, plain(ask.question), answers(ask, layout.ruler))
        room = layout.ruler.length - layout.size(made) + 1
        if room < episode.size:
            raise ValueError(f"task.ruler.length={layout.ruler.length} is too short for a row; give a longer one")
        text = "".join(filler.context(draw, episode.facts, room))[1:]
        yield Made(text, made.query, made.answers)


def facts(draw: Draw, ruler: Ruler, room: int) -> Episode:
    """What a task of that form hides: a chain, as many facts as fit, or one for each key."""
    if ruler.kind == "vt":
        return KINDS["chain"](draw, 0, set())
    if ruler.haystack == "needle":
        return KINDS["qa"](draw, room - 4 * FACT, set())
    if ruler.queries > 1:
        return partial(lists, num_values=2, one_name=False)(draw, ruler.queries * LIST_FACT, set())
    return KINDS["qa"](draw, ruler.keys * FACT, set())


def answers(ask: Ask, ruler: Ruler) -> tuple[str, ...]:
    """What must be named: each key's values, or each link of a chain, as one text."""
    num = 4 if ruler.kind == "vt" else ASKED if ruler.queries > 1 else 1
    each = len(ask.values) // num
    return tuple(plain(ask.values[i : i + each]) for i in range(0, len(ask.values), each))
