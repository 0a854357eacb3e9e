"""RULER's rows are those of its own generator where that is known, and never longer than they may be."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from configs.compose import compose_config, job
from data.base import Task
from data.ruler import rows as ruler
from data.ruler import words
from data.tokens import Spans, in_bytes
from eval.job import load_rows, prepare
from eval.metrics import METRICS

# sha256[:16] of prompt and answer prefix, and lengths, of the first samples that RULER (c3f5e3b) makes with a
# whitespace tokenizer, seed 42, limit 4096, wonderwords 3.0.1.
GOLDEN = {
    "niah_single_1": (("3e8b187cd7419ca1", 4081), ("73b388e09e1e3a47", 4081), ("4f3b00334488e79a", 4081)),
    "niah_multikey_2": (("7293379f282a4b95", 4096), ("99dd4d431b49aa12", 3846), ("53d2adb9b82be644", 3846)),
    "niah_multikey_3": (("66ae70e05d4e7950", 4096), ("cf3c48bdc8ee276b", 4096), ("3f25b258e8917695", 4096)),
    "vt": (("7df7de84103a917e", 4093), ("aaaffd0cb8b896b8", 4093), ("4efa187b38acc679", 4093)),
    "cwe": (("47225e4dd438704f", 4096), ("ab87c1b1bd8e901c", 4096), ("8121abf56a82cd97", 4096)),
    "fwe": (("0d193ecd6018d8d3", 3990), ("8f375613c788a9d3", 3990), ("f658dc22b2171e06", 3990)),
}
TASKS = (
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery", "vt", "fwe"),
)


def whitespace(text: str) -> Spans:
    return [match.span() for match in re.finditer(r"\S+", text)]


def task_of(name: str, *words: str) -> Task:
    return job(compose_config([f"task={name}", *words]), ()).task


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole list takes seconds."""
    monkeypatch.setattr(words, "pairs", lambda: [f"{a}-{b}" for a in "abcdefghij" for b in "klmnopqrst"])


def essays(folder: Path) -> str:
    (folder / "a.txt").write_text("This is a sentence of seven words. " * 40 + "\nIs it?  Yes!\n")
    return str(folder)


def made(name: str) -> list[tuple[str, int]]:
    task = task_of(name, "task.ruler.samples=3")
    rows = ruler.load(task, "hub", whitespace)
    prompts = [task.asked(row.context, row.input) + task.begun(row.input) for row in rows]
    return [
        (hashlib.sha256(text.encode()).hexdigest()[:16], row.length) for text, row in zip(prompts, rows, strict=True)
    ]


@pytest.mark.parametrize("name", ["niah_multikey_3", "vt", "cwe", "fwe"])
def test_rows_are_the_official_ones(name: str) -> None:
    assert tuple(made(name)) == GOLDEN[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2"])
def test_rows_with_words_are_the_official_ones(name: str) -> None:
    assert tuple(made(name)) == GOLDEN[name]
    assert len(words.pairs()) == 6_171_620


@pytest.mark.parametrize("name", TASKS)
def test_lengths_are_counted_and_kept(name: str, few_words: None, tmp_path: Path) -> None:
    task = task_of(name, "task.ruler.samples=3", "task.ruler.length=9000")
    assert task.ruler is not None
    data = ruler.load(task, essays(tmp_path), in_bytes)
    for row in data:
        prompt = task.asked(row.context, row.input) + task.begun(row.input)
        assert row.length == len(prompt.encode()) + task.max_new_tokens
        assert 7000 < row.length <= 9000
        answers = row.answers[0].split("\n")
        assert len(answers) == {"fwe": 3, "vt": 5}.get(name, task.ruler.queries * task.ruler.values)
        assert all(answer in row.context for answer in answers)
        assert METRICS[task.metric](f" {' '.join(answers).upper()}.", row.answers[0], None) == 1.0
    assert data == ruler.load(task, str(tmp_path), in_bytes)
    assert len({row.id for row in data}) == 3


def test_what_is_asked_for_is_told(few_words: None, tmp_path: Path) -> None:
    four = task_of("niah_multiquery", "task.ruler.samples=2", "task.ruler.length=9000")
    for row in ruler.load(four, essays(tmp_path), in_bytes):
        keys = re.split(r", (?:and )?", row.input)
        assert len(keys) == 4 and ", and " in row.input
        told = [
            f"One of the special magic numbers for {k} is: {v}."
            for k, v in zip(keys, row.answers[0].split(), strict=True)
        ]
        assert all(row.context.count(line) == 1 for line in told)


def test_one_is_asked_for_in_the_singular() -> None:
    single, several = task_of("niah_single_3"), task_of("niah_multivalue")
    assert single.prompt.startswith("A special magic uuid is hidden")
    assert single.prompt.endswith("What is the special magic uuid for {input} mentioned in the provided text?")
    assert single.begun("k") == " The special magic uuid for k mentioned in the provided text is"
    assert several.prompt.startswith("Some special magic numbers are hidden")
    assert several.begun("k").endswith(" text are")


def test_a_chain_is_solved_before_it_is_asked_for() -> None:
    [row] = ruler.load(task_of("vt", "task.ruler.samples=1"), "hub", whitespace)
    example, asked = row.context.split("Memorize and track")[1:]
    names = row.answers[0].split("\n")
    assert f"VAR {names[0]} = {row.input}\n" in asked and row.input not in example
    for before, after in pairwise(names):
        assert f"VAR {after} = VAR {before} \n" in asked
    solution = example.splitlines()[-2].rpartition("they are: ")[2].split()
    assert len(solution) == 5 and all(f"VAR {name} = " in example and name not in names for name in solution)
    assert (
        f" 5 variables are assigned the value {row.input}, they are: " in f"{example}{task_of('vt').begun(row.input)}"
    )


def test_no_two_rows_have_the_same_example() -> None:
    rows = ruler.load(task_of("vt", "task.ruler.samples=3"), "hub", whitespace)
    assert len({row.context.split("Memorize and track")[1] for row in rows}) == 3


@pytest.mark.parametrize(("length", "common", "other", "shot"), [(4096, 30, 3, (10, 3, 40)), (3000, 6, 1, (3, 1, 20))])
def test_common_words_are_said_more_often(length: int, common: int, other: int, shot: tuple[int, int, int]) -> None:
    [row] = ruler.load(task_of("cwe", "task.ruler.samples=1", f"task.ruler.length={length}"), "hub", whitespace)
    example, asked = row.context.split("Below is a numbered list")[1:]
    answers = row.answers[0].split("\n")
    assert counts(asked) == {common: 10, other: len(set(said(asked))) - 10}
    assert all(said(asked).count(word) == common for word in answers)
    assert counts(example.split("\n")[1]) == {shot[0]: 10, shot[1]: shot[2] - 10}
    assert f"list are: 1. {said(example)[0]} " not in example, "the solution is no copy of the list"


def said(numbered: str) -> list[str]:
    """The words of the list, which is the text's second line."""
    line = numbered.split("\n")[1] if "\n" in numbered else numbered
    return [word for word in re.split(r" ?\d+\. ", line) if word]


def counts(numbered: str) -> dict[int, int]:
    """How many words are said how often."""
    return dict(Counter(Counter(said(numbered)).values()))


def test_a_list_of_more_words_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "single", lambda: [f"w{i}" for i in range(5000)])
    with pytest.raises(ValueError, match="length=99999 has room for more than the 5000 words of wonderwords"):
        ruler.load(task_of("cwe", "task.ruler.length=99999", "task.ruler.samples=1"), "hub", whitespace)


def test_the_three_most_frequent_words_are_the_answers() -> None:
    [row] = ruler.load(task_of("fwe", "task.ruler.samples=1"), "hub", whitespace)
    said = row.context.split()
    counts = sorted(set(said), key=lambda word: -said.count(word))
    assert counts[:4] == ["...", *row.answers[0].split("\n")]


def test_runs_are_named_by_their_rows_and_refused_where_prompts_would_be_cut() -> None:
    words = ["task=niah_multikey_3", "data=hub", "task.ruler.samples=2", "task.ruler.length=4096"]
    work = prepare(job(compose_config(words), words))
    assert work.config["data"] == "made" and work.config["task"]["ruler"]["length"] == 4096
    for word, message in {
        "task.ruler.length=8192": "over model.max_prompt=4608",
        "task.ruler.length=300": "too short for one unit",
        "task.ruler.samples=0": "task.ruler.samples=0: give 1 or more",
        "task.ruler.kind=vr": "'niah', 'vt', 'cwe', 'fwe' or 'qa'",
        "task=niah_single_2": "data=hub holds no haystack for task niah_single_2; give data=FOLDER",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_rows(job(compose_config([*words, word]), words))
