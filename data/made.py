"""How the rows of a task are made, where they are made for the run's tokenizer and not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Needle:
    """A needle in a haystack: rows that are made for the run's tokenizer, one for each length, depth and repeat.

    needle: the hidden text. question: what `{input}` becomes. answer: what word recall is taken of. phrase: the
        shorter text that `metric=match_part` looks for; `metric=rouge_1` compares with the needle.
    lengths: tokens of a row; its context, needle included, has exactly `buffer` fewer.
    depths: percent of the haystack before the needle; see `place`.
    miniature_lengths: `lengths` of miniature rows, whose needles and haystacks are made of the closed vocabulary.
    repeats: rows of one cell; all but the first begin at another sentence, which `seed` draws.
    place: "sentence" steps back to the end of a sentence, as the original does; "token" stays at the nominal token.
    haystack: "essays" (the *.txt files of the folder `data` names) or "noise" (RULER's five repeated sentences).
    """

    needle: str
    question: str
    answer: str
    phrase: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    miniature_lengths: tuple[int, ...]
    buffer: int = 200
    repeats: int = 1
    seed: int = 0
    place: Literal["sentence", "token"] = "sentence"
    haystack: Literal["essays", "noise"] = "essays"

    def __post_init__(self) -> None:
        for name in ("lengths", "miniature_lengths"):
            if not getattr(self, name) or min(getattr(self, name)) <= self.buffer or self.buffer < 0:
                raise ValueError(
                    f"task.needle.{name}={list(getattr(self, name))}: give lengths over buffer={self.buffer}"
                )
        if not self.depths or not all(0 <= depth <= 100 for depth in self.depths):
            raise ValueError(f"task.needle.depths={list(self.depths)}: give percents from 0 to 100")
        if self.repeats < 1:
            raise ValueError(f"task.needle.repeats={self.repeats}: give 1 or more")
        for name in ("lengths", "miniature_lengths", "depths"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(
                    f"task.needle.{name}={list(getattr(self, name))}: a value stands twice; give each once"
                )


@dataclass(frozen=True)
class Ruler:
    """How the rows of a RULER task are made; see `data.ruler`.

    kind: "niah" (needles), "vt" (chains of variables), "cwe" and "fwe" (frequent words) or "qa" (questions about one of
        many documents). length: most tokens of prompt, answer prefix and answer together.
    miniature_samples: `samples` of miniature rows, which have the same length.
    haystack: what needles are hidden in; "essay" is the *.txt files of the folder that `data` names.
    key, value: what a needle says. keys, values, queries: how many keys, values of each, and keys asked for.
    instruction: what a context begins with, behind its solved example (vt and cwe).
    documents: whose questions and documents (qa); their file lies in the folder that `data` names.
    """

    kind: Literal["niah", "vt", "cwe", "fwe", "qa"]
    length: int = 4096
    samples: int = 500
    miniature_samples: int = 24
    seed: int = 42
    haystack: Literal["none", "noise", "essay", "needle"] = "none"
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "words", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    instruction: str = ""
    documents: Literal["none", "squad", "hotpotqa"] = "none"

    def __post_init__(self) -> None:
        for name in ("length", "samples", "miniature_samples", "keys", "values", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.ruler.{name}={getattr(self, name)}: give 1 or more")
