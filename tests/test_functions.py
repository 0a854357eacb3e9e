"""RepoQA's rule in SCBench: which function a prediction repeats, in six languages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data import scbench
from eval import functions
from eval.functions import bleu, first_function, repeated_function, said_function
from eval.longbench import score_sample
from eval.metrics import metric
from tests.test_scbench import task_of

ADD = "def add(one, two):\n    total = one + two\n    return total * 1"
SUB = "def sub(one, two):\n    total = one - two\n    return total * 1"
ALL = ("python", ADD, SUB)


def block(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"


@pytest.mark.parametrize(
    ("language", "before", "function"),
    [
        ("python", "@cached\n", ADD),
        ("java", "class A { int a; ", "int b() { return 1; }"),
        ("typescript", "const a = 1;\n", "function b(): number { return 1; }"),
        ("rust", "struct A;\n", "fn b() -> i32 { 1 }"),
        ("cpp", "int a; int* p() { return 0; } void A::q() {}\n", "int b() { return 1; }"),
        ("go", "package a\nfunc (a A) m() {}\n", "func b() int { return 1 }"),
    ],
)
def test_the_first_function_of_a_block_counts(language: str, before: str, function: str) -> None:
    """Not: pointers and members of C++, methods of Go."""
    assert first_function(f"{before}{function}\n", language) == function
    assert said_function(f"Here.\n{block(before, '')}\n{block(before + function, language)}", language) == function
    assert tuple(functions.NODES) == scbench.LANGUAGES


def test_where_there_is_no_function_the_block_counts_or_all() -> None:
    assert said_function(f"Sure:\n{block('a = 1')}\n{block('b = 2')}", "python") == "a = 1\n"
    assert said_function(f" {ADD}\n", "python") == ADD
    assert said_function(f"```python\n{ADD}", "python") == f"```python\n{ADD}", "a block has an end"
    assert said_function(f"It is ```{ADD}```", "python").startswith("It is"), "and a line of its own"


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (block(ADD), ADD, 1.0),
        (f"It is this one:\n{block(ADD)}\nand so on.", ADD, 1.0),
        (ADD, ADD, 1.0),
        (block(SUB), ADD, 0.0),  # the other one is nearest
        (block(f"# A comment\n{ADD}"), ADD, 1.0),  # not of the function
        (f"It is this one, as far as I can see: {ADD}", ADD, 0.0),  # nearest, but below 0.8
        (block(ADD.replace("total * 1", "total * 2")), ADD, 1.0),
        (block(f"{SUB}\n\n{ADD}"), ADD, 0.0),  # the first function
        ("", ADD, 0.0),
        ("no", ADD, 0.0),
    ],
)
def test_the_nearest_function_must_be_the_right_one(prediction: str, truth: str, expected: float) -> None:
    assert repeated_function(prediction, truth, ALL) == expected


def test_bleu_is_of_the_words_between_blanks() -> None:
    assert bleu(ADD, ADD) == 1.0 and bleu(ADD.replace("\n", " \t "), ADD) == 1.0
    # The seventh of 12 words is wrong, and so are two of 11 pairs, three of 10 triples and four of 9.
    assert bleu(ADD.replace("+", "-"), ADD) == pytest.approx((11 / 12 * 9 / 11 * 7 / 10 * 5 / 9) ** 0.25)
    assert 0 < bleu("def add(one,", ADD) < 0.1 and bleu("", ADD) == 0.0


def repo(name: str, lang: str, *turns: tuple[str, str]) -> dict[str, Any]:
    asked = [{"input": "which?", "answer": answer, "task": task} for task, answer in turns]
    return {"id": f"{name}{len(asked)}", "repo": name, "lang": lang, "context": "code", "multi_turns": asked}


def written(folder: Path, task: str, *rows: dict[str, Any]) -> str:
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("name", ["scbench_repoqa", "scbench_repoqa_and_kv"])
def test_functions_are_those_of_the_repository(name: str, tmp_path: Path) -> None:
    asked = ("scbench_repoqa", ADD), ("scbench_repoqa", SUB)
    rows = (repo("a", "python", asked[0]), repo("b", "go", asked[1]), repo("a", "python", asked[1], asked[0]))
    task = task_of(name)
    found = scbench.load(task, written(tmp_path, name, *rows)).samples
    assert [sample.all_classes for sample in found] == [ALL, ("go", SUB), ALL, ALL]
    scores = [score_sample(task.of(one), block(ADD), one.answers, one.all_classes) for one in found]
    assert scores == [1.0, 0.0, 0.0, 1.0]


def test_keys_among_functions_are_looked_up_as_keys(tmp_path: Path) -> None:
    task = task_of("scbench_repoqa_and_kv")
    row = repo("a", "python", ("scbench_repoqa", ADD), ("scbench_kv", "00a0-1f"))
    function, key = scbench.load(task, written(tmp_path, task.name, row)).samples
    assert function.all_classes == key.all_classes == ("python", ADD)
    assert score_sample(task.of(key), "it is 00a0-1f.", key.answers, key.all_classes) == 1.0
    assert score_sample(task.of(key), "00A0-1F", key.answers, key.all_classes) == 0.0
    assert (task.of(function).max_new_tokens, task.of(key).max_new_tokens) == (1024, 80)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"lang": "perl"}, r"row 0 .*lang=\"perl\"; a row must hold repo .*python, java"), ({"repo": 3}, r"repo=3")],
)
def test_other_rows_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    row = repo("a", "python", ("", ADD)) | change
    with pytest.raises(ValueError, match=said):
        scbench.load(task_of("scbench_repoqa"), written(tmp_path, "scbench_repoqa", row))


def test_missing_parsers_are_named_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    functions.parser.cache_clear()
    monkeypatch.setitem(sys.modules, "tree_sitter_python", None)
    with pytest.raises(
        ValueError, match=r"needs the parsers of code \(tree_sitter_python\): pip install '\.\[repoqa\]'"
    ):
        metric("repeated_function")
    with pytest.raises(ValueError, match="needs a language and functions"):
        repeated_function("", "", None)
