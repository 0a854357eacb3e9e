"""RULER's questions about documents: the right ones are there, among as many others as fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from configs.arguments import FOLDER
from configs.build import typed
from data.base import Dataset, Task
from data.ruler import qa, rows
from data.tokens import in_bytes
from eval.longbench import score_sample

NUM_ARTICLES, NUM_PARAGRAPHS = 6, 5


def task_of(name: str, length: int = 4096, samples: int = 1, seed: int = 42) -> Task:
    task = typed(Task, yaml.safe_load((FOLDER / "task" / f"{name}.yaml").read_text()), "task")
    assert task.ruler is not None
    return replace(task, ruler=replace(task.ruler, length=length, samples=samples, seed=seed))


def paragraph(article: int, number: int) -> dict[str, Any]:
    key = f"a{article}p{number}"
    answers = [{"text": f"{key}-gold", "answer_start": 0}, {"text": f"{key}-other", "answer_start": 0}]
    asked = {"question": f"What is {key}?", "is_impossible": False, "answers": answers}
    void = {"question": f"What is not {key}?", "is_impossible": True, "answers": []}
    return {"context": f"Text {key} says {key}-gold. " + "More. " * 6, "qas": [void, asked]}


def squad() -> Any:
    made = [[paragraph(a, p) for p in range(NUM_PARAGRAPHS)] for a in range(NUM_ARTICLES)]
    return {"version": "v2.0", "data": [{"title": f"T{a}", "paragraphs": each} for a, each in enumerate(made)]}


def hotpotqa() -> Any:
    def own(number: int) -> list[Any]:
        return [[f"Title {number}.{i}", [f"First {number}.{i}.", " Second."]] for i in range(10)]

    return [{"question": f"Who is {n}?", "answer": f"Gold {n}", "context": own(n)} for n in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(squad()))
    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(json.dumps(hotpotqa()))
    return tmp_path


def load(name: str, folder: Path, length: int, samples: int = 4) -> Dataset:
    return rows.load(task_of(name, length, samples), str(folder), in_bytes)


def texts(context: str) -> list[str]:
    numbers = [int(number) for number in re.findall(r"^Document (\d+):$", context, re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    return re.split(r"\n*Document \d+:\n", context)[1:]


@pytest.mark.parametrize(("name", "length"), [("qa_1", 1800), ("qa_2", 1400)])
def test_rows_are_as_long_as_they_may_be(name: str, length: int, folder: Path) -> None:
    task = task_of(name)
    for row in load(name, folder, length):
        prompt = task.asked(row.context, row.input) + task.begun(row.input)
        assert prompt.endswith(f"Question: {row.input} Answer:")
        assert row.length == len(prompt.encode()) + 32
        longest = max(len(text) for text in texts(row.context)) + len("\n\nDocument 10:\n")
        assert length - longest < row.length <= length
        assert len(set(texts(row.context))) == len(texts(row.context)) > 10


def test_a_question_of_squad_comes_with_its_article(folder: Path) -> None:
    for number, row in enumerate(load("qa_1", folder, 1800)):
        key = f"a0p{number}"
        assert (row.input, row.answers) == (f"What is {key}?", (f"{key}-gold", f"{key}-other"))
        assert all(f"Text a0p{other} says" in row.context for other in range(NUM_PARAGRAPHS))


@pytest.mark.parametrize("num", [1, 2, 4, 5, 6, 29])
def test_its_own_paragraph_is_there_however_few_there_are(num: int) -> None:
    corpus = qa.squad(squad())
    for question in corpus.questions[:8]:
        chosen = [corpus.documents.index(text) for text in qa.documents(Random(num), corpus, question, num)]
        assert len(set(chosen)) == num and set(question.own) <= set(chosen)
        assert len(set(question.related) & set(chosen)) == min(num - 1, NUM_PARAGRAPHS - 1)


def test_a_question_of_hotpotqa_comes_with_its_ten_paragraphs(folder: Path) -> None:
    for number, row in enumerate(load("qa_2", folder, 1400)):
        assert (row.input, row.answers) == (f"Who is {number}?", (f"Gold {number}",))
        for i in range(10):
            assert f"Title {number}.{i}\nFirst {number}.{i}. Second." in texts(row.context)


def test_documents_are_said_again_where_there_are_no_more(folder: Path) -> None:
    [row] = load("qa_1", folder, 6000, samples=1)
    found = texts(row.context)
    assert len(found) > len(set(found)) == NUM_ARTICLES * NUM_PARAGRAPHS


def test_equal_seeds_give_equal_rows(folder: Path) -> None:
    assert load("qa_1", folder, 1800) == load("qa_1", folder, 1800)
    other = rows.load(task_of("qa_1", 1800, samples=4, seed=7), str(folder), in_bytes)
    assert other.revision != load("qa_1", folder, 1800).revision


@pytest.mark.parametrize(
    ("prediction", "score"), [(" A0P0-OTHER.", 1.0), ("it is a0p0-gold", 1.0), ("a0p0", 0.0), ("a0p0-\ngold", 0.0)]
)
def test_any_of_the_answers_will_do(prediction: str, score: float, folder: Path) -> None:
    [row] = load("qa_1", folder, 1800, samples=1)
    assert score_sample(task_of("qa_1"), prediction, row.answers, None) == score


@pytest.mark.parametrize(
    ("name", "file", "address"),
    [("qa_1", "dev-v2.0.json", "SQuAD-explorer"), ("qa_2", "hotpot_dev_distractor_v1.json", "curtis.ml.cmu.edu")],
)
def test_a_missing_or_malformed_file_is_one_line(name: str, file: str, address: str, tmp_path: Path) -> None:
    for source in ("hub", str(tmp_path)):
        with pytest.raises(ValueError) as caught:
            rows.load(task_of(name), source, in_bytes)
        assert f"data={source} holds no {file} for task {name}; give data=FOLDER with it, from http" in str(
            caught.value
        )
        assert address in str(caught.value) and "\n" not in str(caught.value)
    task = task_of(name)
    for content in ("{", "[]", '{"data": [{"title": "x"}]}', "[1]", '{"data": 3}', '[{"context": [["a"]]}]'):
        (tmp_path / file).write_text(content)
        with pytest.raises(ValueError, match=r"is no |is over the 0 questions") as caught:
            rows.load(task, str(tmp_path), in_bytes)
        assert "\n" not in str(caught.value) and file in str(caught.value)


def test_there_are_only_so_many_questions(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"task.ruler.samples=31 is over the 30 questions of dev-v2.0.json; give fewer"
    ):
        load("qa_1", folder, 1800, samples=31)
    with pytest.raises(ValueError, match=r"too short for one unit"):
        load("qa_1", folder, 900)
