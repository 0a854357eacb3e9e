"""LongBench v2's rule (arXiv 2412.15204; THUDM/LongBench 2e00731, pred.py): the letter that an answer says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

# The first form that occurs anywhere decides, wherever the second one stands.
FORMS = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
GUESS = 0.25


def said_choice(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """1 if the letter behind the first "The correct answer is" is the right one; no such words: 0.

    Asterisks are dropped, cases are not. A bare letter is nothing.
    """
    return float(letter(prediction) == truth)


def said_choice_compensated(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """`said_choice`, but a prediction that names no letter counts as a guess among four, as one may ask there."""
    return GUESS if letter(prediction) is None else said_choice(prediction, truth)


RULES: Mapping[str, Callable[[str, str, Sequence[str] | None], float]] = {
    "said_choice": said_choice,
    "said_choice_compensated": said_choice_compensated,
}


def letter(prediction: str) -> str | None:
    """The letter that the prediction says, None where it says none."""
    text = prediction.replace("*", "")
    return next((found[1] for form in FORMS if (found := form.search(text)) is not None), None)
