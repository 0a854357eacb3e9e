"""Scores of retrieval benchmarks: what of the answer a prediction says, whatever else it says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def word_recall(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the answer's different words, in lower case and cut at blanks only, that the prediction has.

    The number behind the needle heat maps of KVCache-Factory (c97f9d7, visualize.py), not the ROUGE that it stores.
    """
    wanted = set(truth.lower().split())
    if not wanted:
        raise ValueError("the metric word_recall needs an answer with words; it is empty")
    return len(wanted & set(prediction.lower().split())) / len(wanted)


def rouge_1(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """ROUGE-1 F of PyPI `rouge-score` on stemmed words: what KVCache-Factory stores of a needle, there times ten.

    See `run_needle_in_haystack.py` of c97f9d7; its figures are of `word_recall`.
    """
    return float(_stemmer().score(truth, prediction)["rouge1"].fmeasure)


def match_part(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """1 if the answer is part of the prediction, whatever the case; over several answers, 1 if one is.

    RULER's string_match_part (c3f5e3b, evaluate.py).
    """
    return float(truth.lower() in printable(prediction).lower())


def match_all(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the answer's lines that are parts of the prediction, whatever the case (RULER's string_match_all)."""
    said, wanted = printable(prediction).lower(), truth.lower().split("\n")
    return sum(line in said for line in wanted) / len(wanted)


def printable(prediction: str) -> str:
    """The prediction with a new line for each control character, as RULER reads it."""
    return "".join("\n" if character < " " else character for character in prediction.strip()).strip()


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    # Imported here, because it takes a second.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], use_stemmer=True)
