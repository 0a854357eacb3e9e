"""SCBench task by task: the published prompts, what they name of a row, the rule of each, rows that mix tasks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import eval.ask
from configs.compose import compose_config, job
from data import scbench
from data.base import Sample, Task
from engine.prompt import PromptRule
from eval.job import Work, prepare
from eval.longbench import score_sample
from eval.lookup import complete, num_rows, rows_of
from eval.loop import Loaded, run_group
from eval.plan import data_of
from eval.records import Record, read_records
from eval.rehearse import rehearse
from eval.table import Asked, examine
from eval.task_sets import SCBENCH, SUITES
from eval.turns import opening, since, talk
from tests.tokens import llama_like

# sha256[:16] of the published templates as JSON with sorted keys (fb56c91, eval_utils.py): of a first turn, and of
# later ones outside and inside of a chat template.
PROMPTS = "bf5fbe813314e890"
CHOICE = {"input": "Who?", "answer": "Ann", "options": ["Bob", "Cid", "Ann", "Dan"]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "scbench_choice_eng": [CHOICE, {"input": "Whose?", "answer": "Eva", "options": ["Eva", "Fay", "Gil", "Hal"]}],
    "scbench_mf": [
        {"input": "One number. The second Largest number of the list is: ", "answer": 48},
        {"input": "One number. The median of the list is: ", "answer": 48.5},
    ],
    "scbench_summary": [{"input": "Sum up A.", "answer": "a cat sat"}, {"input": "Sum up B.", "answer": "on a mat"}],
    "scbench_summary_with_needles": [
        {"input": "Sum up A.", "answer": "a cat sat", "task": "scbench_summary"},
        {"input": "What is the pass key?", "answer": ["71432"], "task": "scbench_passkey"},
    ],
}
CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PARTS = ("scbench_summary", "scbench_passkey")
LOADED = Loaded()


@cache
def task_of(name: str, *words: str) -> Task:
    return job(compose_config([f"task={name}", *words]), []).task


def written(folder: Path, name: str, *turns: dict[str, Any], context: str = "A text.") -> Path:
    row = {"id": 1, "context": context, "multi_turns": turns or ROWS[name]}
    (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


def samples(folder: Path, name: str, *words: str) -> tuple[Task, tuple[Sample, ...]]:
    task = task_of(name, *words)
    return task, scbench.load(task, str(written(folder, name))).samples


def work_of(folder: Path, name: str, *words: str) -> Work:
    asked = [f"task={name}", f"data={written(folder, name)}", f"results={folder}/r", "device=cpu", "progress=false"]
    return prepare(job(compose_config([*asked, "method=full", *words]), words))


def parts(metric: str, *lengths: int) -> str:
    """Other lengths for the mixed task, and another rule for its summaries."""
    rules = zip(PARTS, (metric, "first_integer"), lengths, strict=True)
    listed = (f"{{name: {name}, metric: {rule}, max_new_tokens: {length}}}" for name, rule, length in rules)
    return f"task.turns.parts=[{', '.join(listed)}]"


def run(work: Work) -> dict[str, Record]:
    [seat] = run_group([work], loaded=LOADED)
    assert seat.error is None
    return read_records(seat.work.folder)


def speaking(template: str | None = None) -> Any:
    """All that is needed of a model here: its tokenizer."""
    return SimpleNamespace(tokenizer=llama_like(template))


def published(name: str, text: str) -> str:
    """A template of ours with the names that SCBench's has."""
    question = name in ("scbench_qa_eng", "scbench_qa_chn", "scbench_choice_eng")
    return text.replace("{input}", "{question}" if question else "{input}").replace("{answer}", "{pre_ans}")


def test_the_prompts_are_the_published_ones() -> None:
    found = {}
    for name in SCBENCH:
        task = task_of(name)
        assert task.turns is not None
        texts = (task.prompt, task.turns.follow, task.turns.chat_follow)
        found[name] = [published(name, text) for text in texts]
    text = json.dumps(found, ensure_ascii=False, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PROMPTS
    assert SUITES["scbench"] == SCBENCH and len(SCBENCH) == 12


@pytest.mark.parametrize(
    ("name", "metric", "length"),
    [
        ("scbench_kv", "substring", 150),
        ("scbench_prefix_suffix", "substring", 150),
        ("scbench_vt", "names_found", 30),
        ("scbench_qa_eng", "substring_any_case", 40),
        ("scbench_qa_chn", "char_f1", 40),
        ("scbench_choice_eng", "option_june", 40),
        ("scbench_many_shot", "substring_any_case", 10),
        ("scbench_mf", "first_number", 5),
        ("scbench_summary", "rouge_lsum", 200),
        ("scbench_repoqa", "repeated_function", 1024),
    ],
)
def test_each_task_has_its_rule_and_length(name: str, metric: str, length: int) -> None:
    task = task_of(name)
    assert (task.metric, task.max_new_tokens, task.metrics) == (metric, length, (metric,))


@pytest.mark.parametrize(
    ("name", "turn", "prediction", "expected"),
    [
        ("scbench_choice_eng", 0, "C", 1.0),
        ("scbench_choice_eng", 0, "Ann", 0.0),  # its first letter is an option
        ("scbench_choice_eng", 0, "The answer is C.", 1.0),
        ("scbench_choice_eng", 0, "It is Ann", 0.0),
        ("scbench_choice_eng", 0, "Not B but C", 0.0),  # until August 2024 the first such word
        ("scbench_choice_eng", 1, "A", 1.0),  # by its own options
        ("scbench_choice_eng", 1, "Eva", 1.0),
        ("scbench_choice_eng", 1, "C", 0.0),
        ("scbench_mf", 0, "48", 1.0),
        ("scbench_mf", 0, "48.0, I think", 1.0),  # int(float()): InfiniteBench's own rule raises an error
        ("scbench_mf", 0, "-48", 1.0),
        ("scbench_mf", 0, "7 or 48", 0.0),
        ("scbench_mf", 0, "none", 0.0),
        ("scbench_mf", 1, "48.5", 1.0),
        ("scbench_mf", 1, "48", 0.0),
        ("scbench_summary", 0, "a cat sat", 1.0),
        ("scbench_summary", 0, "a cat", 0.8),
        ("scbench_summary", 0, "", 0.0),
        ("scbench_summary_with_needles", 0, "a cat", 0.8),
        ("scbench_summary_with_needles", 1, "it is 71432.", 1.0),
        ("scbench_summary_with_needles", 1, "9 or 71432", 0.0),
    ],
)
def test_the_rules(name: str, turn: int, prediction: str, expected: float, tmp_path: Path) -> None:
    task, found = samples(tmp_path, name)
    sample = found[turn]
    score = score_sample(task.of(sample), prediction, sample.answers, sample.all_classes)
    assert score == pytest.approx(expected)


def test_a_choice_is_asked_with_its_own_options(tmp_path: Path) -> None:
    task, (first, second) = samples(tmp_path, "scbench_choice_eng")
    assert first.answers == ("Ann",) and first.all_classes == ("Bob", "Cid", "Ann", "Dan")
    asked = talk(task, second)
    assert opening(task, asked[0], "A text.").endswith(
        "Question: Who?\nA. Bob\nB. Cid\nC. Ann\nD. Dan\n\nThe the correct answer is"
    )
    plain, chat = PromptRule(100, True, False, {}), PromptRule(100, True, True, {})
    options = "Question: Whose?\nA. Eva\nB. Fay\nC. Gil\nD. Hal\n\n"
    assert since(task, speaking(), asked, plain) == [f"Ann\n\n{options}The letter of the correct answer is"]
    said = since(task, speaking(CHAT), asked, chat)
    assert said == [f"Ann<eot><user>{options}The the correct answer is<eot><assistant>"]
    assert since(task, speaking(), talk(task, first), plain) == []


def test_what_is_to_be_found_is_said_before_a_list(tmp_path: Path) -> None:
    task, (first, second) = samples(tmp_path, "scbench_mf")
    assert first.answers == ("48",) and second.answers == ("48.5",)
    assert opening(task, talk(task, first)[0], "[4, 8]").startswith(
        "What is the second largest number of the list?\n\n[4, 8]\n\nOne number. The second Largest"
    )
    [later] = since(task, speaking(), talk(task, second), PromptRule(100, True, False, {}))
    assert later.startswith("48\n\nWhat is the median of the list?\n\nOne number. The median")
    alone = task_of("scbench_mf", "task.turns.mode=requests")
    [asked] = talk(alone, second)
    # The first question's own words stand before the list, so that all requests share their context.
    assert opening(alone, asked, "[4, 8]").startswith(
        "One number. The second Largest number of the list is: \n\n[4, 8]\n\nWhat is the median of the list?\n\nOne"
    )


def test_later_summaries_of_a_chat_are_begun(tmp_path: Path) -> None:
    task, (_, second) = samples(tmp_path, "scbench_summary")
    asked = talk(task, second)
    [chat] = since(task, speaking(CHAT), asked, PromptRule(100, True, True, {}))
    assert chat == "a cat sat<eot><user>Sum up B.<eot><assistant>This paper"
    assert since(task, speaking(), asked, PromptRule(100, True, False, {})) == ["a cat sat\n\nSum up B."]


def test_rows_that_mix_tasks_ask_and_count_each_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(tmp_path, "scbench_summary_with_needles")
    seen: list[tuple[str, object]] = []
    for name, says in (("stop_of", "max_new_tokens"), ("score_sample", "metric")):
        original = getattr(eval.ask, name)

        def spied(task: Task, *rest: Any, original: Any = original, says: str = says) -> Any:
            seen.append((says, getattr(task, says)))
            return original(task, *rest)

        monkeypatch.setattr(eval.ask, name, spied)
    answered = run(work)
    assert [value for what, value in seen if what == "max_new_tokens"] == [800, 15]
    assert [value for what, value in seen if what == "metric"] == ["rouge_lsum", "first_integer"]
    assert [record.groups for record in answered.values()] == [[part] for part in PARTS]
    scores = json.loads((work.folder / "scores.json").read_text())
    assert list(scores["groups"]) == sorted(PARTS) and scores["metric"] == "rouge_lsum+first_integer"


def test_a_cut_row_has_room_for_all_that_it_asks(tmp_path: Path) -> None:
    """The options of later questions take more than SCBench's reserve, the answers alone."""
    name = "scbench_choice_eng"
    written(tmp_path, name, *[CHOICE | {"input": "Who " * 9}] * 5, context="a b " * 400)
    words = ("model.max_prompt=900", "task.max_new_tokens=2", "task=scbench_choice_eng", f"data={tmp_path}")
    work = prepare(
        job(compose_config([*words, "method=full", "device=cpu", f"results={tmp_path}/r", "progress=false"]), [])
    )
    found = list(run(work).values())
    assert len(found) == 5 and all(record.truncated and record.error is None for record in found)
    assert 800 < (found[-1].num_prompt_tokens or 0) <= 900


@pytest.mark.parametrize(
    ("name", "turn", "said"),
    [
        ("scbench_choice_eng", CHOICE | {"answer": "Eve"}, r"row 0, turn 1: the answer 'Eve' is none of the first 4"),
        ("scbench_choice_eng", CHOICE | {"options": ["Ann"]}, r"turn 1: options=\[\"Ann\"\]; a choice has 4 texts"),
        ("scbench_choice_eng", {"input": "Who?", "answer": "Ann"}, r"options=null; a choice has 4 texts"),
        ("scbench_mf", {"input": "How many?", "answer": 3}, r"turn 1: input='How many\?' names nothing to find"),
        (
            "scbench_summary_with_needles",
            {"input": "a", "answer": "b", "task": "x"},
            r"task='x'; allowed are scbench_s",
        ),
        ("scbench_summary_with_needles", {"input": "a", "answer": "b"}, r"task=None; allowed are"),
    ],
)
def test_rows_that_lack_what_is_asked_are_refused(name: str, turn: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        scbench.load(task_of(name), str(written(tmp_path, name, turn)))


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("scbench_summary_with_needles", ["task.metric=rouge"], r"give task\.turns\.parts"),
        ("scbench_summary_with_needles", [parts("rouge_lsum", 0, 1)], r"max_new_tokens=0 of scb"),
        ("scbench_summary_with_needles", [parts("x", 2, 1)], r"there is no metric 'x'"),
        ("scbench_mf", ["task.turns.request='{context} {what}'"], r"task\.turns\.request has more in braces"),
    ],
)
def test_what_does_not_act_is_refused(name: str, words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        rehearse(work_of(tmp_path, name, *words))


def test_a_run_over_the_rows_at_hand_is_complete(tmp_path: Path) -> None:
    """`num_rows` is the most that a row may ask; these two are all there are."""
    work = work_of(tmp_path, "scbench_mf", "task.max_new_tokens=1")
    with pytest.raises(ValueError, match="no run"):
        complete(work)
    run(work)
    assert len(complete(work)) == num_rows(work) == 2 < work.task.num_rows
    cell, _ = examine(Asked("full", "", work.job), {})
    assert cell.whole and cell.estimate is not None and cell.estimate.n == 2


def test_rows_of_the_hub_are_those_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is published that could stand for them: a table finds the run by the rows themselves."""
    data = scbench.load(task_of("scbench_mf"), str(written(tmp_path, "scbench_mf")))
    monkeypatch.setattr(scbench, "load", lambda task, source: replace(data, source=source))
    found = rows_of(job(compose_config(["task=scbench_mf", "data=hub", "model=tiny"]), []))
    assert found.dataset.revision == data.revision and len(found.dataset) == 2


def test_a_plan_says_what_benchmark_published_other_rows(tmp_path: Path) -> None:
    work = work_of(tmp_path, "scbench_mf")
    assert data_of(work) == work.dataset.source, "no hash is published"
    for name, said in (("gsm8k", "GSM8K"), ("qasper", "LongBench")):
        other = replace(work, task=task_of(name), dataset=replace(work.dataset, official=False))
        assert data_of(other).endswith(f" · NOT known to be the rows that {said} published")
    assert data_of(replace(work, dataset=replace(work.dataset, official=True))) == work.dataset.source
