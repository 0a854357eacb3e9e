"""The official LongBench v1 metrics (arXiv 2308.14508), number for number, quirks included; and all by name."""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from eval import functions, infinitebench, longbench_v2, scbench
from eval.gsm8k import last_number
from eval.recall import match_all, match_part, rouge_1, word_recall

# (prediction, one reference answer, the task's classes or None) -> score in 0..1
Metric = Callable[[str, str, Sequence[str] | None], float]

FUZZ = ("difflib", "levenshtein")
ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The official list, which leaves out the full stop ．, the middle dot · and the opening 《.
CHINESE_PUNCTUATION = str.maketrans(
    "",
    "",
    "！＂＃＄％＆＇（）＊＋，－／：；＜＝＞？＠［＼］＾＿｀｛｜｝～｟｠｡｢｣､"
    "、。〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏",
)
COMMENT_MARKS = ("`", "#", "//")
# Frames that `rouge` may use under the official scorer: Python's default limit of 1000 less the three callers.
ROUGE_FRAMES = 997
ROUGE_PROBE = ("a b a b. c a", "b a. a c d", 0.8571428522448981)


def qa_f1(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """F1 of the bags of words, in lower case, without ASCII punctuation and English articles."""
    return _f1(_english_tokens(prediction), _english_tokens(truth))


def qa_f1_zh(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """F1 of the bags of jieba words, without ASCII and Chinese punctuation."""
    return _f1(_chinese_tokens(prediction), _chinese_tokens(truth))


def rouge(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """ROUGE-L F of PyPI `rouge` 1.0.1 (not of `rouge-score`); 0.0 where that package raises.

    It raises on empty texts, and where its recursion over the words of a sentence meets Python's default limit, at
    about 990 words. That outcome is kept, whatever the limit and the caller's depth are.
    Raises ValueError if another package has replaced the module `rouge`.
    """
    scorer = _rouge()
    try:
        with _official_recursion_limit():
            return float(scorer.get_scores([prediction], [truth], avg=True)["rouge-l"]["f"])
    except Exception:
        return 0.0


def rouge_zh(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """`rouge` on jieba words; punctuation stays."""
    return rouge(" ".join(_jieba().cut(prediction)), " ".join(_jieba().cut(truth)))


def classification(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """One over the number of classes that the prediction names, if the right one is among them."""
    if all_classes is None:
        raise ValueError("the metric classification needs all_classes, the task's list of class names; it is null")
    named = [name for name in all_classes if name in prediction]
    # Removing while iterating skips the element after each removal; the official numbers depend on it.
    for name in named:
        if name in truth and name != truth:
            named.remove(name)
    return 1.0 / len(named) if truth in named else 0.0


def retrieval(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the numbers in the prediction that are the right paragraph's."""
    return _share_of_numbers(prediction, _paragraph(r"Paragraph (\d+)", truth))


def retrieval_zh(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """`retrieval` where the answer is written 段落N."""
    return _share_of_numbers(prediction, _paragraph(r"段落(\d+)", truth))


def count(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the numbers in the prediction that are the right one."""
    return _share_of_numbers(prediction, truth)


def code_sim(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Edit similarity of the first line that is no comment, as fuzzywuzzy gives it without Levenshtein (difflib)."""
    line = _first_code_line(prediction)
    # fuzzywuzzy itself is not called: it changes its numbers as soon as Levenshtein can be imported.
    return _percent(line, truth, SequenceMatcher(None, line, truth).ratio()) / 100


def code_sim_levenshtein(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """`code_sim` as fuzzywuzzy gives it with Levenshtein: 1 to 3 points higher over a task.

    Raises ValueError if the package Levenshtein is not installed.
    """
    line = _first_code_line(prediction)
    return _percent(line, truth, _levenshtein()(line, truth)) / 100


def char_f1(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """InfiniteBench's Zh.QA: F1 of the bags of characters, without blanks, ASCII and Chinese punctuation."""
    return _f1(_characters(prediction), _characters(truth))


def rouge_lsum(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """InfiniteBench's En.Sum: rougeLsum of PyPI `rouge-score`, sentences cut at newlines."""
    return rouge_score(prediction, truth)["rougeLsum"]


METRICS: dict[str, Metric] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge": rouge,
    "rouge_zh": rouge_zh,
    "classification": classification,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "count": count,
    "code_sim": code_sim,
    "word_recall": word_recall,
    "rouge_1": rouge_1,
    "match_part": match_part,
    "match_all": match_all,
    "char_f1": char_f1,
    "rouge_lsum": rouge_lsum,
    **infinitebench.RULES,
    **scbench.RULES,
    **longbench_v2.RULES,
    "last_number": last_number,
    "repeated_function": functions.repeated_function,
}


def metric(name: str, fuzz: str = "difflib") -> Metric:
    """The metric of that name; `fuzz` (one of FUZZ) says how code_sim compares.

    Raises ValueError for other names, and for one whose packages (Levenshtein, parsers of code) are not installed.
    """
    if fuzz not in FUZZ:
        raise ValueError(f"fuzz is {fuzz!r}; allowed: {', '.join(FUZZ)}")
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; allowed: {', '.join(METRICS)}")
    if name == "code_sim" and fuzz == "levenshtein":
        _levenshtein()
        return code_sim_levenshtein
    if name == "repeated_function":
        functions.parser("python")
    return METRICS[name]


def rouge_score(prediction: str, truth: str) -> dict[str, float]:
    """rougeL and rougeLsum (F, no stemming, 0..1) of PyPI `rouge-score`: other numbers than LongBench's `rouge`.

    It lowers the case and keeps only a-z and 0-9, so it says nothing about Chinese text.
    """
    return {name: float(value.fmeasure) for name, value in _rouge_scorer().score(truth, prediction).items()}


def _f1(prediction: list[str], truth: list[str]) -> float:
    common = sum((Counter(prediction) & Counter(truth)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(truth)
    return 2 * precision * recall / (precision + recall)


def _english_tokens(text: str) -> list[str]:
    bare = text.lower().translate(ASCII_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _chinese_tokens(text: str) -> list[str]:
    words = (word.lower().translate(ASCII_PUNCTUATION).translate(CHINESE_PUNCTUATION) for word in _jieba().cut(text))
    return [word for word in ("".join(word.split()) for word in words) if word]


def _characters(text: str) -> list[str]:
    return list("".join(text.lower().translate(ASCII_PUNCTUATION).translate(CHINESE_PUNCTUATION).split()))


def _paragraph(pattern: str, truth: str) -> str:
    found = re.search(pattern, truth)
    if found is None:
        raise ValueError(f"the answer {truth[:80]!r} names no paragraph; it must match {pattern!r}")
    return found.group(1)


def _share_of_numbers(prediction: str, right: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def _first_code_line(prediction: str) -> str:
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in COMMENT_MARKS)), "")


def _percent(line: str, truth: str, ratio: float) -> int:
    if line == truth:
        return 100
    return round(100 * ratio) if line and truth else 0


@contextmanager
def _official_recursion_limit() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(_depth() + ROUGE_FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge import Rouge

    scorer = Rouge(metrics=["rouge-l"])
    prediction, truth, expected = ROUGE_PROBE
    found = scorer.get_scores([prediction], [truth], avg=True)["rouge-l"]["f"]
    if abs(found - expected) > 1e-12:
        raise ValueError(
            f"the module 'rouge' is not that of rouge 1.0.1 ({found} instead of {expected} on a test pair); "
            "rouge-chinese overwrites it: pip uninstall rouge-chinese, then pip install --force-reinstall rouge==1.0.1"
        )
    return scorer


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL", "rougeLsum"])


@lru_cache(maxsize=1)
def _jieba() -> Any:
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    # An own tokenizer: words that someone adds to jieba's shared one must not change scores.
    return jieba.Tokenizer()


@lru_cache(maxsize=1)
def _levenshtein() -> Callable[[str, str], float]:
    try:
        from Levenshtein import ratio
    except ImportError:
        raise ValueError("fuzz=levenshtein needs the package Levenshtein: pip install Levenshtein") from None
    return ratio  # type: ignore[no-any-return]
