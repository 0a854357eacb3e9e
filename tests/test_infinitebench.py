"""InfiniteBench's rows are read as they are written, made to the token, and asked with the published prompts."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from configs.compose import compose_config, job
from data import infinitebench
from data.base import Dataset, Task
from data.infinitebench import parse
from data.infinitebench_made import RECIPES
from data.longbench import git_blob_sha1
from data.tokens import Cut, Vocabulary, in_bytes
from eval.job import load_rows, prepare
from eval.longbench import score_sample
from eval.rehearse import rehearse
from eval.task_sets import INFINITEBENCH
from tests.runs import composed
from tests.test_infinitebench_scores import task_of
from tests.test_needle import bpe, cut_of, metaspace

ROW: dict[str, Any] = {"id": 3, "context": "A story.", "input": "Who?", "answer": ["Ann"], "options": []}
# sha256[:16] of the published templates as JSON with sorted keys (88b3daa; InfLLM 12b7079).
PROMPTS = {"official": "3debaa609e174553", "yarn": "ede60cb9c1c20f1d", "infllm": "e6a8c1621aeff501"}
LENGTHS = {
    "official": (6, 12, 50, 1200, 40, 40, 40, 40, 3, 30000, 5, 5),
    "infllm": (32, 32, 100, 1536, 32, 32, 32, 32, 32, 64000, 32, 32),
}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def made(task: Task, tokens: int, cut: Cut, samples: int = 3, seed: int = 0) -> Dataset:
    """Rows for a tokenizer that no file holds."""
    assert task.infinitebench is not None
    spec = replace(task.infinitebench, tokens=tokens, samples=samples, seed=seed)

    class Here(Vocabulary):
        def load(self) -> Cut:
            return cut

    return infinitebench.load(replace(task, infinitebench=spec), "hub", Here(""))


def text_of(task: Task, number: int, rows: Dataset) -> str:
    row = rows.samples[number]
    return task.asked(row.context, row.input, row.fields)


def test_the_prompts_are_the_published_ones() -> None:
    for variant, sha in PROMPTS.items():
        official = {name: task_of(name).prompt for name in INFINITEBENCH}
        prompts = {name: task_of(name, variant).prompt for name in INFINITEBENCH}
        if variant == "infllm":
            prompts = {name: prompt for name, prompt in prompts.items() if prompt != official[name]}
            assert len(prompts) == 3
        text = json.dumps(prompts, ensure_ascii=False, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == sha


def test_lengths_and_chat_are_those_of_the_variant() -> None:
    for variant, lengths in LENGTHS.items():
        assert tuple(task_of(name, variant).max_new_tokens for name in INFINITEBENCH) == lengths
    assert sum(task_of(name).num_rows for name in INFINITEBENCH) == 3932
    assert all(task_of(name).chat and not task_of(name, "yarn").chat for name in INFINITEBENCH)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("code_run", {"input": "What of func_12(-3)? Or func_9(1)"}, "a function called named func_12.\n"),
        ("code_run", {"input": "What of func_12(-3)? Or func_9(1)"}, "return value of func_12(-3). Be"),
        (
            "math_find",
            {"input": "One number. The Second largest number of the list is: "},
            "What is the second largest n",
        ),
        ("math_find", {"input": "The Median of the list is: "}, "What is the median in the following list?\n\nA story"),
        ("longbook_qa_eng", {}, "Question: Who?\n\nPlease answer as"),
        ("longbook_choice_eng", {"options": list("wxyz"), "answer": "y"}, "\nA. w\nB. x\nC. y\nD. z"),
        ("kv_retrieval", {"input": '\nKey: "' + "a" * 36 + '"\nThe'}, 'key "' + "a" * 36 + '" in the'),
    ],
)
def test_a_prompt_names_parts_of_its_row(name: str, change: dict[str, Any], said: str) -> None:
    task = task_of(name, "infllm")
    [row] = parse(task, jsonl(ROW | change), "x")
    assert said in task.asked(row.context, row.input, row.fields)
    assert "A story." in task.asked(row.context, row.input, row.fields)


def test_rows_are_read_as_they_are() -> None:
    task = task_of("longdialogue_qa_eng")
    rows = [ROW | {"answer": ["ACE", "Sam"]}, ROW, {"content": "{old}", "input": "", "answer": 5}]
    first, second, third = parse(task, jsonl(*rows), "x")
    assert (first.id, second.id, third.id) == ("3", "3-2", "2")
    assert first.answers == first.all_classes == ("ACE", "Sam") and third.answers == ("5",)
    assert third.context == "{old}" and "{old}" in task.asked(third.context, third.input, third.fields)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("passkey", {"id": 1, "input": "", "answer": "a"}, "x:1 has a value of the wrong type: context=null"),
        ("passkey", ROW | {"answer": None}, "answer=null"),
        ("passkey", ROW | {"answer": []}, "answer="),
        ("passkey", ROW | {"answer": True}, "answer=true"),
        ("passkey", ROW | {"answer": [["a"]]}, "answer="),
        ("passkey", ROW | {"options": "a"}, 'options="a"'),
        ("longbook_choice_eng", ROW, "x:1: the prompt of longbook_choice_eng names {OPTION_A}, which this row"),
        ("longbook_choice_eng", ROW | {"options": list("abcd")}, "x:1: the answer 'Ann' is none of the first 4"),
        ("code_run", ROW, "names {func}, which this row's input and options lack"),
        ("math_find", ROW, "names {prefix}, which"),
    ],
)
def test_other_rows_are_refused_with_their_line(name: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(task_of(name), jsonl(row), "x")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_of_ones_own_may_name_what_rows_give() -> None:
    own = replace(task_of("kv_retrieval"), prompt="{context} {what} {input}")
    with pytest.raises(ValueError, match=r"task.prompt names \{what\}; allowed are context, input, question, func"):
        parse(own, jsonl(ROW), "x")
    with pytest.raises(ValueError, match="x is empty"):
        parse(own, b"", "x")


def test_files_lie_in_a_folder_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "abc").mkdir()
    file = tmp_path / "abc" / "passkey.jsonl"
    file.write_bytes(jsonl(ROW))
    work = composed("model=tiny", "task=passkey", f"data={file.parent}")
    assert work.config["data"] == "infinitebench" and work.config["data_revision"] == git_blob_sha1(jsonl(ROW))
    assert work.dataset.official is None and not work.dataset.miniature
    rehearse(work)
    asked: dict[str, str] = {}

    def download(repository: str, name: str, **words: Any) -> str:
        asked.update(repository=repository, name=name)
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    words = ["model=tiny", "task=passkey", "data=hub"]
    rows = load_rows(job(compose_config(words), words))
    assert asked == {"repository": "xinrongzhang2022/InfiniteBench", "name": "passkey.jsonl"}
    assert rows.dataset.source == "hub:xinrongzhang2022/InfiniteBench@abc:passkey.jsonl"
    assert rows.dataset.samples == work.samples


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **words: Any) -> str:
        raise OSError("no\nroute")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        ValueError, match=r"^passkey.jsonl of xinrong\S+ did not come from the hub \(no route\); give data"
    ):
        infinitebench.load(task_of("passkey"), "hub", Vocabulary("nowhere"))


@pytest.mark.parametrize("name", ["passkey", "number_string", "kv_retrieval"])
def test_made_rows_have_exactly_that_many_tokens(name: str, tmp_path: Path) -> None:
    for variant, tokens, cut in (
        ("official", 3000, in_bytes),
        ("infllm", 3001, cut_of(bpe(), tmp_path)),
        ("official", 2502, cut_of(metaspace(), tmp_path)),
    ):
        task = task_of(name, variant)
        rows = made(task, tokens, cut, samples=2)
        assert [len(cut(text_of(task, i, rows))) for i in range(2)] == [tokens] * 2
        for row in rows:
            assert row.context.count(row.answers[0]) == (1 if name == "kv_retrieval" else 2)
            assert score_sample(task, f" {row.answers[0]}.", row.answers, row.all_classes) == 1.0


def test_a_length_that_no_row_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task.infinitebench.tokens=3001: no row has exactly so many"):
        made(task_of("passkey"), 3001, lambda text: 2 * in_bytes(text))


def test_rows_are_the_same_at_every_call_and_others_for_another_seed() -> None:
    for name in RECIPES:
        first, again, other = (made(task_of(name), 1500, in_bytes, samples=1, seed=seed) for seed in (0, 0, 1))
        assert first == again and first.revision != other.revision


def test_needles_go_from_the_first_line_to_the_last() -> None:
    rows = made(task_of("number_string"), 4000, in_bytes, samples=5)
    places = [row.context.index("The sequence") / len(row.context) for row in rows]
    assert places == sorted(places) and places[0] < 0.03 and 0.4 < places[2] < 0.6 and places[4] > 0.96
    assert all(re.fullmatch(r"\d{10}", row.answers[0]) for row in rows)
    assert all(any(a == b for a, b in pairwise(key)) for key in (row.answers[0] for row in rows))
    assert all(re.fullmatch(r"\d{5}", row.answers[0]) for row in made(task_of("passkey"), 900, in_bytes))


def test_records_are_json_and_each_value_is_asked_by_its_key() -> None:
    rows = made(task_of("kv_retrieval"), 4003, in_bytes, samples=5)
    for number, row in enumerate(rows):
        held = json.loads(row.context.removeprefix("JSON data:\n"))
        key = row.input.split('"')[1]
        assert row.input == f'\nKey: "{key}"\nThe value associated with the specified key is: '
        assert held[key] == row.answers[0] and list(held).index(key) == number * len(held) // 5
        assert len(row.answers[0]) == 36 and sum(len(value) != 36 for value in held.values()) <= 1


@pytest.mark.parametrize("name", ["math_find", "math_calc", "code_run"])
def test_what_cannot_be_cut_is_as_long_as_fits(name: str) -> None:
    task = task_of(name)
    rows = made(task, 4000, in_bytes, samples=7)
    for number, row in enumerate(rows):
        # Up to ten functions make one unit of code.
        assert 3300 < len(text_of(task, number, rows)) <= 4000
        assert score_sample(task, row.answers[0], row.answers, row.all_classes) == 1.0


def test_answers_of_the_lists_are_right() -> None:
    for row in made(task_of("math_find"), 3000, in_bytes, samples=14):
        values = ast.literal_eval(row.context)
        rank = {"second": 1, "third": 2}
        _, target = re.findall(r"(The) (.+) number of", row.input)[0]
        ordered = sorted(set(values), reverse="largest" in target)
        middle = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
        right = sum(middle) / len(middle) if target == "median" else ordered[rank.get(target.split()[0], 0)]
        assert float(row.answers[0]) == right and all(0 <= value <= 99 for value in values)


def test_answers_of_sums_and_code_are_right() -> None:
    for row in made(task_of("math_calc"), 2000, in_bytes):
        said, value, right = row.context.split(), 0, []
        for sign, operand in zip(["+", *said[1::2]], said[::2], strict=True):
            value += int(operand) if sign == "+" else -int(operand)
            right.append(value)
        assert row.answers[0] == ", ".join(map(str, right[1:])) and 0 <= min(right) <= max(right) <= 99
    for row in made(task_of("code_run"), 6000, in_bytes, samples=5):
        names: dict[str, Any] = {}
        exec(row.context.partition(".py:")[2], names)
        assert eval(row.fields["func_call"], names) == int(row.answers[0])


@cache
def small(name: str) -> Dataset:
    words = ["model=tiny", f"task={name}"]
    return load_rows(job(compose_config(words), words)).dataset


@pytest.mark.parametrize("name", ["passkey", "kv_retrieval"])
def test_miniature_rows_are_scored_by_the_real_rule(name: str) -> None:
    task, rows = task_of(name).small(), small(name)
    assert len(rows) == 24 and rows.miniature and rows.source == "miniature"
    cut = Vocabulary("data/tiny").load()
    assert [len(cut(f" {row.context}")) for row in rows] == [1000] * 8 + [2000] * 8 + [3900] * 8
    for row in rows:
        [answer] = row.answers
        said = f" {row.input} Paragraph {answer}." if name == "passkey" else f" {row.input} = {spaced(answer)};"
        assert said[1:] in row.context
        assert score_sample(task, said, row.answers, row.all_classes) == 1.0
        assert score_sample(task, f" {row.input}", row.answers, row.all_classes) == 0.0
    if name == "kv_retrieval":
        assert all(row.context.count("=") * 9 > 0.85 * len(cut(row.context)) for row in rows)


def spaced(syllables: str) -> str:
    return " ".join(syllables[i : i + 2] for i in range(0, len(syllables), 2))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=math_find"], "there are no miniature rows for task math_find; give data=hub or data=PATH"),
        (
            ["task=passkey", "task.infinitebench.tokens=999"],
            "does not act on miniature rows; give task.infinitebench.min",
        ),
        (["task=passkey", "task.infinitebench.variant=june"], "variant does not act on miniature rows"),
        (["task=passkey", "task.infinitebench.tokens=9000", "data=hub"], "tokens=9000 is over model.max_prompt=4608"),
        (["task=passkey", "task.infinitebench.tokens=20", "data=hub"], "tokens=20 is too few, the least is"),
        (["task=passkey", "task.infinitebench.samples=0"], "samples=0: give 1 or more"),
        (["task=code_debug", "task.infinitebench.tokens=900", "data=hub"], "only passkey, number_string, kv_retrieval"),
        (
            ["task=passkey", "task.infinitebench.variant=x"],
            "task.infinitebench.variant='x': input should be 'official'",
        ),
        (
            ["task=passkey", "task.infinitebench.variant=infllm", "task.max_new_tokens=9", "data=hub"],
            "task.max_new_tokens does not act, as the variant has its own; give task.infinitebench.infllm.max_new",
        ),
    ],
)
def test_what_does_not_act_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ValueError) as error:
        load_rows(job(compose_config(["model=tiny", *words]), words))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_run_of_made_rows_is_named_by_them() -> None:
    words = ["model=tiny", "task=kv_retrieval", "data=hub", "task.infinitebench.tokens=1200"]
    words += ["task.infinitebench.samples=2", "task.infinitebench.variant=infllm"]
    work = prepare(job(compose_config(words), words))
    assert (work.config["data"], work.source, work.dataset.source) == ("made", "hub", "generated")
    assert work.task.max_new_tokens == 100 and "key" in work.samples[0].fields
    rehearse(work)


def test_every_synthetic_task_of_the_paper_is_made() -> None:
    assert set(RECIPES) < set(INFINITEBENCH) and len(INFINITEBENCH) == len(set(INFINITEBENCH)) == 12
