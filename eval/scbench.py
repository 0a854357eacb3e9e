"""SCBench's own scoring rules (arXiv 2412.10319): what an answer must have in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def substring(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Key-value retrieval: 1 if the answer is part of the prediction as it is."""
    return float(truth in prediction)


def substring_any_case(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Questions about books, many shots: 1 if the answer is part of the prediction, both in upper case."""
    return float(truth.upper() in prediction.strip().upper())


def names_found(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Variable tracking: share of the answer's lines that are parts of the prediction, whatever the case.

    Rounded to two decimals for each sample.
    """
    said, wanted = prediction.lower(), truth.lower().split("\n")
    return round(sum(line in said for line in wanted) / len(wanted), 2)


RULES: Mapping[str, Callable[[str, str, Sequence[str] | None], float]] = {
    "substring": substring,
    "substring_any_case": substring_any_case,
    "names_found": names_found,
}
