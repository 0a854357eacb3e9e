"""The metrics give LongBench's numbers, and the usual mistakes would be caught."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from configs.arguments import FOLDER
from configs.build import typed
from data.made import Needle
from data.needle import answer_of
from eval import infinitebench, longbench_v2, metrics, scbench
from eval.metrics import METRICS, metric

GOLDEN = Path(__file__).parent / "fixtures" / "longbench_metrics.jsonl"


def golden(name: str) -> list[dict[str, Any]]:
    """The official scores of synthetic pairs; 40 for each metric."""
    rows = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").split("\n") if line]
    return [row for row in rows if row["metric"] == f"{name}_score"]


def score(name: str, row: dict[str, Any]) -> float:
    return METRICS[name](row["prediction"], row["ground_truth"], row["all_classes"])


def indel_similarity(a: str, b: str) -> float:
    """What `Levenshtein.ratio` computes: twice the longest common subsequence over both lengths."""
    best = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for i, y in enumerate(b, start=1):
            diagonal, best[i] = best[i], diagonal + 1 if x == y else max(best[i], best[i - 1])
    return 2 * best[-1] / (len(a) + len(b)) if a or b else 1.0


@pytest.fixture
def fresh() -> Iterator[None]:
    """Packages are looked up anew, and again after the test."""
    loaders = (metrics._rouge, metrics._levenshtein)
    for loader in loaders:
        loader.cache_clear()
    yield
    for loader in loaders:
        loader.cache_clear()


# The needle's and RULER's have cases of their own, in test_needle and test_ruler; others in their benchmark's test.
RECALL = ("word_recall", "rouge_1", "match_part", "match_all")
INFINITEBENCH = ("char_f1", "rouge_lsum", *infinitebench.RULES)
LATER = ("last_number", "repeated_function", *longbench_v2.RULES, *scbench.RULES)


NEEDLE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."


@pytest.mark.parametrize(
    ("prediction", "expected", "recall"),
    [
        ("eat a sandwich and sit in Dolores Park on a sunny day.", 0.72727, 1.0),
        (NEEDLE, 1.0, 1.0),
        ("go to the beach", 0.16, 0.0),
        ("eating sandwiches", 2 * 2 / 23, 0.0),  # stems
        ("", 0.0, 0.0),
    ],
)
def test_a_needle_by_the_score_that_is_stored_and_the_one_in_figures(
    prediction: str, expected: float, recall: float
) -> None:
    assert METRICS["rouge_1"](prediction, NEEDLE, None) == pytest.approx(expected, abs=1e-5)
    assert METRICS["word_recall"](prediction, NEEDLE.partition(" is ")[2], None) == recall


def test_each_score_of_a_needle_is_of_its_own_part() -> None:
    values = yaml.safe_load((FOLDER / "task" / "needle.yaml").read_text(encoding="utf-8"))
    needle = typed(Needle, values["needle"], "task.needle")
    assert answer_of(needle, "rouge_1") == NEEDLE
    assert NEEDLE.endswith(answer_of(needle, "word_recall")) and answer_of(needle, "match_part") in NEEDLE


@pytest.mark.parametrize("name", [name for name in METRICS if name not in (*RECALL, *INFINITEBENCH, *LATER)])
def test_golden_pairs_score_as_official(name: str) -> None:
    rows = golden(name)
    assert len(rows) == 40
    assert [score(name, row) for row in rows] == pytest.approx([row["score"] for row in rows], abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ("well-known", "well known", 0.0),
        ("U.S.", "US", 1.0),
        ("its", "it’s", 0.0),
        ("The a an Cat!", "cat", 1.0),
        ("", "", 0.0),
        ("the", "a", 0.0),
        ("a b b", "b c", 0.5),
    ],
)
def test_qa_f1_normalises_as_squad_does(prediction: str, truth: str, expected: float) -> None:
    assert METRICS["qa_f1"](prediction, truth, None) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [("北京", "北京大学", 0.0), ("北京大学。", "北京 大学", 0.0), ("“北京”！", "北京", 1.0), ("北京", "《北京", 2 / 3)],
)
def test_qa_f1_zh_compares_jieba_words(prediction: str, truth: str, expected: float) -> None:
    assert METRICS["qa_f1_zh"](prediction, truth, None) == pytest.approx(expected)


def test_exactly_the_official_chinese_punctuation_is_deleted() -> None:
    spans = "FF01-FF0D FF0F FF1A-FF20 FF3B-FF40 FF5B-FF64 3001-3003 300B-3011 3014-301F 3030 303E-303F"
    spans += " 2013-2014 2018-2019 201B-201F 2026-2027 FE4F"
    ends = [(span.split("-")[0], span.split("-")[-1]) for span in spans.split()]
    official = {code for low, high in ends for code in range(int(low, 16), int(high, 16) + 1)}
    assert set(metrics.CHINESE_PUNCTUATION) == official
    assert METRICS["qa_f1_zh"]("北" + "".join(map(chr, sorted(official))), "北", None) == 1.0


def test_words_that_others_add_to_jieba_change_nothing() -> None:
    import jieba

    before = METRICS["qa_f1_zh"]("锟斤拷烫烫", "锟斤拷", None)
    jieba.add_word("锟斤拷烫烫", freq=10**9)
    assert METRICS["qa_f1_zh"]("锟斤拷烫烫", "锟斤拷", None) == before
    assert list(jieba.cut("锟斤拷烫烫")) == ["锟斤拷烫烫"], "the word was not added, so nothing was tested"


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ("the cat sat", "the cat sat", 0.999999995),
        ("the cat sat. ", "the cat sat.", 6 / 7),
        ("The cat sat", "the cat sat", 2 / 3),
        ("the cat the cat", "the cat", 1.0),
        ("", "the", 0.0),
        (" ", "the", 0.0),
        ("...", "the", 0.0),
    ],
)
def test_rouge_keeps_the_quirks_of_its_package(prediction: str, truth: str, expected: float) -> None:
    assert METRICS["rouge"](prediction, truth, None) == pytest.approx(expected, abs=1e-8)


def test_rouge_is_not_rouge_score() -> None:
    rows = golden("rouge")
    others = [metrics.rouge_score(row["prediction"], row["ground_truth"]) for row in rows]
    for name in ("rougeL", "rougeLsum"):
        far = sum(abs(other[name] - row["score"]) > 1e-3 for other, row in zip(others, rows, strict=True))
        assert far >= 10, f"{name} of rouge-score would pass for LongBench's ROUGE"


@pytest.mark.parametrize("limit", [1_000, 20_000])
@pytest.mark.parametrize("frames", [0, 200])
def test_long_sentences_score_the_same_at_any_recursion_limit_and_depth(limit: int, frames: int) -> None:
    def at_depth(depth: int, length: int) -> float:
        # The package recurses once a word of the reference until it meets the one common word.
        reference = " ".join(f"w{i}" for i in range(length))
        return at_depth(depth - 1, length) if depth else METRICS["rouge"]("w0", reference, None)

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    try:
        found = [at_depth(frames, length) for length in (950, 991, 1200)]
        assert sys.getrecursionlimit() == limit
    finally:
        sys.setrecursionlimit(before)
    assert found == [pytest.approx(2 / 951), 0.0, 0.0]


@pytest.mark.usefixtures("fresh")
def test_a_foreign_rouge_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rouge:
        def __init__(self, metrics: list[str]) -> None: ...

        def get_scores(self, hyps: list[str], refs: list[str], avg: bool) -> dict[str, dict[str, float]]:
            return {"rouge-l": {"f": 0.5454545404958678}}  # what rouge-chinese 1.0.3 gives on the pair

    module = ModuleType("rouge")
    monkeypatch.setattr(module, "Rouge", Rouge, raising=False)
    monkeypatch.setitem(sys.modules, "rouge", module)
    with pytest.raises(ValueError, match=r"pip install --force-reinstall rouge==1\.0\.1") as error:
        METRICS["rouge"]("a", "a", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prediction", "truth", "classes", "expected"),
    [
        ("Human being", "Human being", ("Human being", "Food"), 1.0),
        ("Food or Human being", "Human being", ("Human being", "Food"), 0.5),
        ("human being", "Human being", ("Human being", "Food"), 0.0),
        ("ab", "ab", ("a", "ab"), 1.0),
        ("abcd", "abcd", ("a", "ab", "abc", "abcd"), 0.5),  # all of a, ab, abc should go, but ab is skipped
    ],
)
def test_classification_divides_by_the_classes_named(
    prediction: str, truth: str, classes: tuple[str, ...], expected: float
) -> None:
    assert METRICS["classification"](prediction, truth, classes) == expected


def test_classification_without_classes_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="all_classes"):
        METRICS["classification"]("a", "a", None)


@pytest.mark.parametrize(
    ("name", "prediction", "truth", "expected"),
    [
        ("retrieval", "Paragraph 7", "Paragraph 7", 1.0),
        ("retrieval", "Paragraph 7, not 8", "Paragraph 7", 0.5),
        ("retrieval", "Paragraph 07", "Paragraph 7", 0.0),
        ("retrieval", "none", "Paragraph 7", 0.0),
        ("retrieval_zh", "段落3\n段落4", "段落3", 0.5),
        ("count", "There are 5 of 10", "5", 0.5),
        ("count", "", "5", 0.0),
    ],
)
def test_numbers_count_by_their_share(name: str, prediction: str, truth: str, expected: float) -> None:
    assert METRICS[name](prediction, truth, None) == expected


@pytest.mark.parametrize("name", ["retrieval", "retrieval_zh"])
def test_a_reference_without_a_paragraph_raises_instead_of_scoring_0(name: str) -> None:
    with pytest.raises(ValueError, match="names no paragraph"):
        METRICS[name]("7", "7", None)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ("\n\n    x = 1\nmore", "    x = 1", 1.0),
        ("# comment\n\n x", " x", 0.0),
        ("# comment\n x", " x", 1.0),
        ("#include <vector>\nint x;", "int x;", 1.0),
        ("see http://a.b\ny", "y", 1.0),
        ("```python\nx", "x", 1.0),
        ("# only comments", "", 1.0),
        ("abc", "", 0.0),
    ],
)
def test_code_sim_takes_the_first_line_without_a_mark(prediction: str, truth: str, expected: float) -> None:
    assert METRICS["code_sim"](prediction, truth, None) == expected


def test_code_sim_is_fuzzywuzzy_on_difflib() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    if fuzz.SequenceMatcher is not SequenceMatcher:
        pytest.skip("Levenshtein is installed, so fuzzywuzzy gives its numbers")
    pairs = [("", ""), ("", "x"), ("return x", "return  y"), ("a" * 250, "ab" * 130), ("ab", "ba"), ("xay", "ya")]
    for line, truth in pairs:
        assert METRICS["code_sim"](line, truth, None) == fuzz.ratio(line, truth) / 100


def test_code_sim_is_neither_levenshtein_nor_symmetric_nor_unrounded() -> None:
    rows = golden("code_sim")
    lines = [metrics._first_code_line(row["prediction"]) for row in rows]
    pairs = [(line, row["ground_truth"], row["score"]) for line, row in zip(lines, rows, strict=True)]
    others: dict[str, Callable[[str, str], float]] = {
        "Levenshtein": lambda a, b: round(100 * indel_similarity(a, b)) / 100,
        "unrounded": lambda a, b: SequenceMatcher(None, a, b).ratio(),
        "stripped": lambda a, b: METRICS["code_sim"](a.strip(), b, None),
    }
    for name, other in others.items():
        assert any(abs(other(line, truth) - right) > 1e-12 for line, truth, right in pairs), name
    assert METRICS["code_sim"]("tide", "diet", None) != METRICS["code_sim"]("diet", "tide", None)


@pytest.mark.usefixtures("fresh")
def test_levenshtein_is_used_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("Levenshtein")
    monkeypatch.setattr(module, "ratio", indel_similarity, raising=False)
    monkeypatch.setitem(sys.modules, "Levenshtein", module)
    assert metric("code_sim", "levenshtein")("tide", "diet", None) == 0.5
    assert metric("code_sim")("tide", "diet", None) == 0.25
    assert metric("qa_f1", "levenshtein") is METRICS["qa_f1"]


@pytest.mark.usefixtures("fresh")
def test_a_missing_levenshtein_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Levenshtein", None)
    with pytest.raises(ValueError, match="pip install Levenshtein") as error:
        metric("code_sim", "levenshtein")
    assert "\n" not in str(error.value)


def test_other_names_are_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"'bleu'.*qa_f1.*code_sim"):
        metric("bleu")
    with pytest.raises(ValueError, match=r"'rapidfuzz'.*difflib, levenshtein"):
        metric("code_sim", "rapidfuzz")
