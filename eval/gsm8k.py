"""GSM8K's rule as PQCache scores it (0b74e12, evaluation_gsm8k.py): the last number of the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

NEXT_QUESTION = "\nQuestion: "
NUMBER = re.compile(r"\d*\.?\d+")


def last_number(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """1 if the last number before the next question, which a model may go on to write, is the truth's last number.

    Commas are dropped, and so are signs: -5 is 5. "The answer is" is not looked for: a later number counts.
    Raises ValueError for a truth without a number.
    """
    wanted = _last(truth)
    if wanted is None:
        raise ValueError(f"the answer {truth[:80]!r} has no number; GSM8K's answers have one")
    return float(_last(prediction.split(NEXT_QUESTION)[0]) == wanted)


def _last(text: str) -> float | None:
    found = NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else None
