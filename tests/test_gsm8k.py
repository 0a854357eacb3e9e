"""GSM8K: rows, worked examples, the stop at the next question, the last number, and long answers under a budget."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.compose import compose_config, job, task_values
from data import gsm8k
from data.base import Task
from data.longbench import git_blob_sha1
from engine.arm import Plan
from engine.generate import Question, Stop, answer
from engine.prompt import saying
from eval.ask import stop_of
from eval.job import load_rows, prepare
from eval.longbench import score_sample
from eval.loop import Loaded, run_group
from eval.records import read_records
from eval.rehearse import rehearse
from tests.models import model_of, networks, prompt_ids
from tests.runs import composed
from tests.test_methods import method_of, tenth

EXAMPLES = "Question: One and one?\nLet's think step by step\n1 + 1 = 2\nThe answer is 2"
ROWS = [
    {"question": "Ann’s {two} apples?", "answer": "1 + 1 = <<1+1=2>>2\n#### 1,002"},
    {"question": "Less?", "answer": "so\n#### -5"},
]
LOADED = Loaded()


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@cache
def task_of(*words: str) -> Task:
    return job(compose_config(["task=gsm8k", *words]), []).task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gsm8k_test.jsonl").write_bytes(jsonl(*ROWS))
    (tmp_path / "gsm8k_prompt_formal.txt").write_text(EXAMPLES, encoding="utf-8")
    return tmp_path


def test_a_prompt_is_the_examples_one_newline_and_the_question(folder: Path) -> None:
    task = task_of()
    first, second = gsm8k.load(task, str(folder))
    assert task.asked(first.context, first.input) == f"{EXAMPLES}\nQuestion: Ann’s {{two}} apples?\n"
    assert (first.id, first.answers, first.length) == ("row-0", ("1,002",), 3) and second.answers == ("-5",)
    assert gsm8k.load(task, str(folder / "gsm8k_test.jsonl")) == gsm8k.load(task, str(folder))
    assert not task.chat and task.max_new_tokens == 256 and task.num_rows == 1319


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ("Let's think\n1 + 1 = 2\nThe answer is 2", "2", 1.0),
        ("The answer is 2.", "2", 1.0),
        ("The answer is 2, not 3", "2", 0.0),  # a later number wins
        ("The answer is 2\n\nQuestion: And 7?\nThe answer is 7", "2", 1.0),
        ("The answer is 2\nQuestion:7", "2", 0.0),  # no blank: not the mark
        ("Question: 7", "7", 1.0),  # no newline before it
        ("\nQuestion: 7", "7", 0.0),
        ("-5", "5", 1.0),
        ("5", "-5", 1.0),
        ("it is $1,234.50", "1234.5", 1.0),
        ("1,00,2", "1,002", 1.0),
        ("2.0", "2", 1.0),
        (".5", "0.5", 1.0),
        ("1.2.3", "0.3", 1.0),  # 1.2 and .3
        ("3/4", "4", 1.0),
        ("70 000", "70000", 0.0),
        ("10%", "10", 1.0),
        ("none", "0", 0.0),
        ("", "0", 0.0),
    ],
)
def test_the_last_number_counts(prediction: str, truth: str, expected: float) -> None:
    assert score_sample(task_of(), prediction, (truth,), None) == expected


def test_an_answer_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="the answer 'none' has no number"):
        score_sample(task_of(), "1", ("none",), None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a"}, "x:1 lacks answer; a row must hold question"),
        ({"question": 1, "answer": "#### 1"}, "x:1 has a value of the wrong type: question=1"),
        ({"question": "a", "answer": "no mark 5"}, "x:1: no number stands behind #### in the answer"),
        ({"question": "a", "answer": "#### five"}, "x:1: no number stands behind ####"),
    ],
)
def test_other_rows_are_refused_with_their_line(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        gsm8k.parse(jsonl(row), "x", "")
    assert said in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="x is empty"):
        gsm8k.parse(b"", "x", "")


def test_examples_lie_beside_the_rows_or_where_one_says(folder: Path, tmp_path: Path) -> None:
    beside = gsm8k.load(task_of(), str(folder))
    other = tmp_path / "other.txt"
    other.write_text("Question: Two?\n2", encoding="utf-8")
    named = gsm8k.load(task_of(f"task.gsm8k.examples={other}"), str(folder))
    assert named.samples[0].context == "Question: Two?\n2" and named.revision != beside.revision
    other.unlink()
    with pytest.raises(ValueError, match=r"other.txt is not there: give the PATH of the worked .* HugoZHL/PQCache"):
        gsm8k.load(task_of(f"task.gsm8k.examples={other}"), str(folder))
    other.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"other.txt is no UTF-8 text"):
        gsm8k.load(task_of(f"task.gsm8k.examples={other}"), str(folder))
    with pytest.raises(ValueError, match=r"holds no test.jsonl or gsm8k_test.jsonl; give data=hub"):
        gsm8k.load(task_of(), str(tmp_path / "nowhere"))


def test_official_are_rows_and_examples_with_their_hashes(folder: Path) -> None:
    task = task_of()
    assert task.gsm8k is not None and gsm8k.load(task, str(folder)).official is False
    spec = replace(task.gsm8k, blob=git_blob_sha1(jsonl(*ROWS)), examples_blob=git_blob_sha1(EXAMPLES.encode()))
    assert gsm8k.load(replace(task, gsm8k=spec), str(folder)).official is True
    one_wrong = replace(task, gsm8k=replace(spec, examples_blob=task.gsm8k.examples_blob))
    assert gsm8k.load(one_wrong, str(folder)).official is False


def test_rows_of_the_hub_are_laid_out_as_the_published_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "abc" / "main" / "test.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *words, **named: str(file))
    task = task_of(f"task.gsm8k.examples={folder}/gsm8k_prompt_formal.txt")
    rows = gsm8k.load(task, "hub")
    assert rows.source == "hub:openai/gsm8k@abc:main/test-00000-of-00001.parquet" and rows.official is None
    assert rows.samples == gsm8k.load(task, str(folder)).samples
    assert rows.revision == gsm8k.load(task, str(folder)).revision
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"cannot be read .*; give data=PATH"):
        gsm8k.load(task, "hub")


def test_a_run_is_named_by_its_rows_and_examples(folder: Path) -> None:
    words = ("model=tiny", "task=gsm8k", f"data={folder}")
    work = prepare(job(compose_config(list(words)), words))
    assert work.config["data"] == "gsm8k" and work.config["data_revision"] == work.dataset.revision
    rehearse(work)
    (folder / "gsm8k_prompt_formal.txt").write_text("other", encoding="utf-8")
    assert prepare(job(compose_config(list(words)), words)).folder != work.folder
    assert not {"gsm8k", "longbench_v2", "stop_text"} & set(task_values(composed("model=tiny", "task=qasper").task))


def test_there_are_no_miniature_rows() -> None:
    with pytest.raises(ValueError, match=r"^there are no miniature rows for task gsm8k; give data=hub or data=PATH$"):
        load_rows(job(compose_config(["task=gsm8k"]), []))


class Spelled:
    """A tokenizer of characters."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode(errors="replace")


def test_an_answer_stops_where_the_next_question_begins() -> None:
    ends = saying(Spelled(), "\nQuestion: ")  # type: ignore[arg-type]
    text = b"The answer is 2\n\nQuestion: And 7?"
    stops = [number for number in range(1, len(text) + 1) if ends(list(text[:number]))]
    assert text[: stops[0]].endswith(b"\nQuestion: ") and stops[0] == text.index(b"And")
    assert score_sample(task_of(), text[: stops[0]].decode(), ("2",), None) == 1.0
    model = model_of(networks("llama")[0])
    assert stop_of(task_of(), model).said is not None and stop_of(task_of("task.stop_text=''"), model).said is None


def test_arms_stop_by_what_each_has_said() -> None:
    """A text ends one row of a batch, and the others go on."""
    model, full = model_of(networks("llama")[0]), method_of("full")
    h2o = method_of("h2o")
    plans = [Plan("full", full, None), Plan("h2o", h2o, tenth(h2o, model))]

    def asked(stop: Stop) -> list[tuple[int, ...]]:
        return [reply.tokens for reply in answer(model, Question(prompt_ids(400), 1, stop), plans)]

    whole = asked(Stop(24, frozenset()))
    mark = list(whole[0][5:7])
    cut = asked(Stop(24, frozenset(), said=lambda tokens: list(tokens[-2:]) == mark))
    ends = [next((i + 2 for i in range(23) if list(tokens[i : i + 2]) == mark), 24) for tokens in whole]
    assert cut == [tokens[:end] for tokens, end in zip(whole, ends, strict=True)]
    assert ends[0] < ends[1], "the same tokens would end both"


def test_each_question_is_a_case_of_its_own(folder: Path) -> None:
    """The examples are the same for all: samples that share a document would be one case for the interval."""
    results = f"results={folder / 'results'}"
    words = ("model=tiny", "task=gsm8k", f"data={folder}", results, "task.max_new_tokens=3")
    [seat] = run_group([composed(*words)], loaded=LOADED)
    assert seat.error is None and seat.scores is not None and seat.scores["n"] == 2
    records = read_records(seat.work.folder)
    assert [record.context_sha for record in records.values()] == [None, None]
    assert seat.scores["ci95"] is not None


@pytest.mark.parametrize("name", ["h2o", "snapkv", "pqcache"])
def test_a_long_answer_stays_within_the_budget_of_its_prompt(name: str) -> None:
    """An answer longer than the local window: what it generated leaves the window, and the budget stays."""
    model, method = model_of(networks("llama")[0]), method_of(name)
    budget = tenth(method, model)
    assert budget is not None and budget.local < 30
    held = []
    for num in (60, 120):
        question = Question(prompt_ids(400), 1, Stop(num, frozenset()))
        [reply] = answer(model, question, [Plan(name, method, budget)])
        assert len(reply.tokens) == num and not reply.dense_short
        assert 0 < reply.ledger.attended_max <= budget.total < reply.ledger.num_steps
        held.append(reply.ledger.resident)
    # One-shot methods free what leaves the window; a retrieving one finds it again by its index.
    if name == "pqcache":
        assert held[0]["index"] < held[1]["index"]
    else:
        assert held[0] == held[1]
