"""InfiniteBench's rules, oddities included: what its own scorers of June and August 2024 say of constructed answers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import yaml

from configs.arguments import FOLDER
from configs.build import typed
from data.base import Task
from data.infinitebench import graded
from eval.longbench import score_sample
from eval.metrics import METRICS

# As InfiniteBench lists it (88b3daa, compute_scores.py), the ASCII full stop included.
CHINESE_MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
MC = ("Snow", "A lake", "Sun", "Rain")


@cache
def task_of(name: str, variant: str = "official") -> Task:
    values = yaml.safe_load((FOLDER / "task" / f"{name}.yaml").read_text(encoding="utf-8"))
    values["infinitebench"]["variant"] = variant
    return typed(Task, values, "task").chosen()


def score(name: str, variant: str, prediction: str, answer: object, options: tuple[str, ...] = ()) -> float:
    """As a run scores it: the best of the answers, by the metric of the task's YAML."""
    answers, classes = graded(answer, options)
    return score_sample(task_of(name, variant), prediction, answers, classes)


def among(text: str, letter: str) -> tuple[str, ...]:
    """Four options, with that text at that letter."""
    return tuple(text if letter == one else f"other {one.lower()}" for one in "ABCD")


@pytest.mark.parametrize(
    ("name", "prediction", "answer", "expected"),
    [
        ("passkey", " 71432. Remember it", ["71432"], 1.0),
        ("passkey", "99999 then 71432", ["71432"], 0.0),
        ("passkey", "071432", "71432", 0.0),
        ("passkey", "-71432", "71432", 1.0),
        ("passkey", "none", "71432", 0.0),
        ("number_string", "is 3000077442.", ["3000077442"], 1.0),
        ("number_string", "30000 77442", ["3000077442"], 0.0),
        ("kv_retrieval", '"00a0-1f" is it', "00a0-1f", 1.0),
        ("kv_retrieval", "00a0-1f-extra", "00a0-1f", 0.0),
        ("kv_retrieval", "00A0-1F", "00a0-1f", 0.0),
        ("kv_retrieval", "{key:'00a0-1f'}", ["00a0-1f"], 1.0),
        ("kv_retrieval", "value:00a0-1f", ["00a0-1f"], 1.0),
        ("code_run", "The return value is: 4.", [4], 1.0),
        ("code_run", "4\nThe return value is:", 4, 0.0),
        ("code_run", "4.0", 4, 0.0),
        ("code_run", "= -3.", [-3], 1.0),
        ("code_run", "", 4, 0.0),
        ("math_find", "= 48", [48.0], 1.0),
        ("math_find", "-5", [5], 1.0),
        ("math_find", "48.5", [48.5], 1.0),
        ("math_find", "48.5", [49.0], 0.0),
        ("math_find", "7 or 48", [48], 0.0),
        ("math_find", "no", [48], 0.0),
        ("math_find", "48.0", [48], 1.0),  # there a ValueError that ends the run; SCBench's repair
        ("math_calc", "[1, 3, -1]", [[1, 3, 1, 7]], 0.75),
        ("math_calc", "[1, 4, 1]", [1, 3, 1, 7], 0.25),
        ("math_calc", "so: 1 3 1 7 9", [[1, 3, 1, 7]], 1.0),
        ("math_calc", "", [[1, 3, 1, 7]], 0.0),
        ("longbook_qa_eng", "The  Snow-Queen!", ["nobody", "snowqueen"], 1.0),
        ("longbook_qa_eng", "", ["a"], 0.0),
        ("longbook_qa_eng", "an old king", ["old queen"], 0.5),
        ("longbook_qa_chn", "北京", ["北京大学"], 2 / 3),
        ("longbook_qa_chn", "京 北。“.！", ["北京"], 1.0),
        ("longbook_qa_chn", "《北京", ["北京"], 0.8),
        ("longbook_qa_chn", "Q 北", ["上海", "q北"], 1.0),
        ("longbook_sum_eng", "a cat sat", ["a cat sat"], 1.0),
        ("longbook_sum_eng", "one two\nthree four", ["three four\none two"], 1.0),
        ("longbook_sum_eng", "one two three four", ["three four one two"], 0.5),
        ("longbook_sum_eng", "cats", ["cat", "cats"], 1.0),
        ("longbook_sum_eng", "cats", ["cat"], 0.0),
    ],
)
def test_rules_that_never_changed(name: str, prediction: str, answer: object, expected: float) -> None:
    for variant in ("official", "june", "infllm"):
        assert score(name, variant, prediction, answer) == pytest.approx(expected), variant


@pytest.mark.parametrize(
    ("prediction", "text", "letter", "june", "august"),
    [
        ("B. foo", "foo", "B", 1, 1),
        ("The answer is: B", "foo", "B", 1, 1),
        ("The answer is: foo", "foo", "B", 1, 1),
        ("The answer is B", "foo", "B", 0, 1),
        ("I think B", "foo", "B", 0, 1),
        ("foo is broken", "foo", "B", 0, 1),
        ("First A, no: B\nor C", "foo", "B", 0, 1),
        ("A bug in foo", "foo", "A", 0, 1),
        ("B", "foo", "B", 0, 1),
        ("B: it", "foo", "B", 1, 1),
        ("answer: B", "foo", "B", 1, 1),
        ("The correct option is: B", "foo", "B", 1, 1),  # "option" is blanked, "is:" is left
        ("Is it foo? Option\nC", "foo", "C", 0, 1),
        ("foo", "foo", "C", 0, 1),
        ("The **answer is:** `foo`", "foo", "C", 1, 1),
        ("The answer is:`foo`", "foo", "C", 1, 1),
        ("is: A, answer is: C", "foo", "C", 1, 1),
        ("answer is: a, is: foo", "foo", "C", 0, 0),
        ("", "foo", "C", 0, 0),
        ("E", "foo", "C", 0, 0),
    ],
)
def test_code_debug(prediction: str, text: str, letter: str, june: float, august: float) -> None:
    options = among(text, letter)
    assert score("code_debug", "june", prediction, [text, letter], options) == june
    assert score("code_debug", "official", prediction, text, options) == august


@pytest.mark.parametrize(
    ("prediction", "text", "letter", "expected"),
    [
        ("B. foo", "foo", "B", 1),
        ("B: it", "foo", "B", 1),
        (" B. foo", "foo", "B", 0),  # unstripped, so that nothing is said: foo draws D
        ("I think B", "foo", "B", 0),
        ("I think B", "foo", "D", 1),  # the guess is right
        ("", "get", "A", 1),  # get draws A
        ("The answer is: B", "foo", "B", 1),
        ("The answer is B", "foo", "B", 1),
        ("The error is foo", "foo", "B", 1),
        ("The **answer is:** `foo`", "foo", "C", 1),
        ("The answer is: A", "foo", "D", 0),  # something is said: no guess
        ("answer: A. The answer is B", "foo", "B", 1),  # either of the two sayings
        ("The answer is A. Or: the error is B", "foo", "B", 0),  # the first of its kind
        ("The answer is", "foo", "D", 0),
        ("correct option is: B", "foo", "B", 1),  # "option" is blanked, "is:" is left
    ],
)
def test_code_debug_in_infllm(prediction: str, text: str, letter: str, expected: float) -> None:
    assert score("code_debug", "infllm", prediction, text, among(text, letter)) == expected


@pytest.mark.parametrize(
    ("prediction", "text", "letter", "june", "august", "infllm"),
    [
        ("C", "Snow", "C", 1, 1, 1),
        ("Snow", "Snow", "C", 1, 1, 0),  # InfLLM does not look at the whole
        ("answer is now", "Snow", "C", 0, 0, 1),  # nor for more than a character of the text
        ("answer is Ice", "Snow", "C", 0, 0, 0),
        ("The answer is C.", "Snow", "C", 1, 1, 1),
        ("answer is:C", "Snow", "C", 0, 1, 0),  # one character behind the prefix is skipped
        ("The option is Snow", "Snow", "C", 1, 1, 1),
        ("A or C", "Snow", "C", 0, 1, 0),
        ("Do not know, C", "Snow", "C", 0, 1, 0),
        ("A lake called Snow", "Snow", "C", 0, 0, 0),
        ("it must be AB then C", "Snow", "C", 0, 1, 0),  # AB is a stretch of ABCD
        ("it must be C then D", "Snow", "C", 1, 1, 1),
        ("it is B\nand C", "Snow", "C", 0, 0, 0),
        ("", "Snow", "C", 0, 0, 0),
        (" C", "Snow", "C", 1, 1, 1),
        ("Answers: B", "Snow", "C", 0, 0, 0),
        ("Dune", "Dune", "C", 0, 0, 0),  # its first letter is an option
        ("answer is", "Snow", "C", 0, 0, 0),
    ],
)
def test_choice(prediction: str, text: str, letter: str, june: float, august: float, infllm: float) -> None:
    options = among(text, letter)
    assert score("longbook_choice_eng", "june", prediction, text, options) == june
    assert score("longbook_choice_eng", "official", prediction, [text], options) == august
    assert score("longbook_choice_eng", "infllm", prediction, [text], options) == infllm


@pytest.mark.parametrize(
    ("prediction", "names", "june", "august", "infllm"),
    [
        ("ace", ["ACE", "ACE ROTHSTEIN"], 1, 1, 1),
        ("Remo", ["GAGGI", "Remo"], 0, 1, 0),
        ("REMO", ["GAGGI", "REMO"], 0, 1, 1),
        ("STAMP PAID", ["STAMP PAID"], 0, 1, 0),
        ("a palace", ["ACE"], 0, 1, 0),
        ("ACE's", ["ACE"], 1, 1, 1),
        ("name:ACE", ["ACE"], 1, 1, 1),
        ("nobody", ["ACE"], 0, 0, 0),
    ],
)
def test_dialogue(prediction: str, names: list[str], june: float, august: float, infllm: float) -> None:
    assert score("longdialogue_qa_eng", "june", prediction, names) == june
    assert score("longdialogue_qa_eng", "official", prediction, names) == august
    assert score("longdialogue_qa_eng", "infllm", prediction, names) == infllm


def test_zh_qa_deletes_its_own_list_of_punctuation() -> None:
    for mark in CHINESE_MARKS:
        assert score("longbook_qa_chn", "official", f"北{mark}京", ["北京"]) == 1.0, mark
    assert all(score("longbook_qa_chn", "official", f"北{mark}京", ["北京"]) < 1.0 for mark in "《·．")


def test_a_letter_that_a_row_gives_stands() -> None:
    assert graded(["foo", "D"], ["foo", "b", "c", "d"]) == (("foo",), ("foo", "b", "c", "foo"))
    assert graded(["D", "B"], MC) == (("D",), ("Snow", "D", "Sun", "Rain"))
    assert score("code_debug", "official", "B.", ["bar", "B"], MC) == 1.0
    with pytest.raises(ValueError, match="the answer 'Ice' is none of the first 4 options"):
        graded(["Ice"], MC)
    with pytest.raises(ValueError, match="none of the row's four options"):
        METRICS["option"]("C", "Ice", MC)


def test_numbers_keep_their_kind() -> None:
    assert graded([88], ())[0] == ("88",) and graded(48.0, ())[0] == ("48.0",)
    assert graded([[1, 2]], ())[0] == graded([1, 2], ())[0] == ("1, 2",)
    assert graded(["ACE", "ACE ROTHSTEIN"], ())[1] == ("ACE", "ACE ROTHSTEIN")


def test_the_rules_of_a_task_are_those_of_its_variant() -> None:
    for name, metrics in {
        "code_debug": ("buggy_function", "buggy_function_june", "buggy_function", "buggy_function_infllm"),
        "longbook_choice_eng": ("option", "option_june", "option", "option_infllm"),
        "longdialogue_qa_eng": ("speaker", "speaker_june", "speaker", "speaker_infllm"),
        "passkey": ("first_integer",) * 4,
    }.items():
        assert tuple(task_of(name, variant).metric for variant in ("official", "june", "yarn", "infllm")) == metrics
    assert replace(task_of("passkey", "june"), infinitebench=None) == replace(task_of("passkey"), infinitebench=None)
