"""LongBench v2: rows, published prompts, the letter that is said, the parts of the task, reasoning before answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from configs.compose import compose_config, job
from data import longbench_v2
from data.base import Task
from data.longbench import git_blob_sha1
from engine.ledger import AuditError
from engine.prompt import Prompt, PromptRule, encode
from eval.job import Work, load_rows
from eval.longbench import score_sample
from eval.loop import Loaded, Seat, run_group
from eval.records import read_records
from eval.rehearse import rehearse
from eval.report import rows as report_rows
from eval.scores import derive
from tests.runs import composed
from tests.test_records import answer as record_of
from tests.test_scores import HEADER, records

ROW: dict[str, Any] = {
    "_id": "a",
    "difficulty": "hard",
    "length": "long",
    "question": " Who {Q}? ",
    "choice_A": "Ann\n",
    "choice_B": "$Q$",
    "choice_C": "Cid",
    "choice_D": "Dan",
    "answer": "B",
    "context": "\n A story. ",
}
# sha256[:16] of the published templates (2e00731, prompts/*.txt), with $DOC$ and the like in their places.
PROMPTS = {
    "official": "68a162252bc9ff71",
    "no_context": "125fb44183af01ff",
    "cot": "6cc33d92fd8f6116",
    "conclusion": "85ec59df4ac0e27a",
}
MARKS = {"context": "$DOC$", "input": "$Q$", **{f"choice_{letter}": f"$C_{letter}$" for letter in "ABCD"}}
LOADED = Loaded()


@cache
def task_of(*words: str) -> Task:
    return job(compose_config(["task=longbench_v2", *words]), []).task.chosen()


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "data.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return folder


def test_the_prompts_are_the_published_ones() -> None:
    found = {}
    for variant in ("official", "no_context", "cot"):
        task = task_of(f"task.longbench_v2.variant={variant}")
        found[variant] = task.prompt.format(**MARKS)
        assert (task.max_new_tokens, task.conclusion is not None) == (
            (1024, True) if variant == "cot" else (128, False)
        )
    conclusion = task_of("task.longbench_v2.variant=cot").conclusion
    assert conclusion is not None and conclusion.max_new_tokens == 128
    found["conclusion"] = conclusion.prompt.format(reasoning="$COT$", **MARKS)
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in found.items()} == PROMPTS


def test_rows_are_stripped_and_stay_as_they_are(tmp_path: Path) -> None:
    task = task_of()
    dataset = longbench_v2.load(task, str(written(tmp_path, ROW, ROW)))
    first, second = dataset
    assert (first.id, second.id, first.answers, first.length) == ("a", "a-2", ("B",), 2)
    assert first.groups == ("hard", "long") and dataset.official is None
    text = task.asked(first.context, first.input, first.fields)
    assert "<text>\nA story.\n</text>" in text and "question: Who {Q}?\n" in text
    assert "(A) Ann\n(B) $Q$\n(C) Cid\n" in text
    assert dataset.revision == git_blob_sha1((tmp_path / "data.json").read_bytes())
    assert longbench_v2.load(task, str(tmp_path / "data.json")) == dataset


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "E"}, 'x: row 0 has a value of the wrong type: answer="E"; a row must hold _id, question'),
        ({"difficulty": "mild"}, 'difficulty="mild"'),
        ({"length": 12}, "length=12"),
        ({"length": ["short"]}, 'length=["short"]'),
        ({"choice_C": None}, "choice_C=null"),
    ],
)
def test_other_rows_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        longbench_v2.parse(json.dumps([ROW | change]).encode(), "x")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "x is empty; it must hold a list of objects with _id"),
        (b"{}", "x is no JSON list of objects"),
        (b"[1]", "x is no JSON list of objects"),
        (b"[", "x is no complete JSON"),
    ],
)
def test_other_files_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        longbench_v2.parse(data, "x")


def test_files_lie_in_a_folder_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "abc").mkdir()
    file = written(tmp_path / "abc", ROW) / "data.json"
    work = composed("model=tiny", "task=longbench_v2", f"data={file.parent}")
    assert work.config["data"] == "longbench_v2" and work.config["data_revision"] == git_blob_sha1(file.read_bytes())
    rehearse(work)
    asked: list[str] = []

    def download(repository: str, name: str, **words: Any) -> str:
        asked.extend((repository, name))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    rows = longbench_v2.load(task_of(), "hub")
    assert asked == ["zai-org/LongBench-v2", "data.json"]
    assert rows.source == "hub:zai-org/LongBench-v2@abc:data.json" and rows.samples == work.dataset.samples
    with pytest.raises(ValueError, match=r"data.json is not there; give data=hub or data=PATH of a folder with data"):
        longbench_v2.load(task_of(), str(tmp_path))


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("The correct answer is (B).", 1.0),
        ("The correct answer is B", 1.0),
        ("**The correct answer is (B)**", 1.0),
        ("The correct answer is **(B)** blue", 1.0),
        ("The correct answer is (A). No: The correct answer is (B)", 0.0),  # the first one
        ("The correct answer is A or The correct answer is (B)", 1.0),  # the form in brackets goes first
        ("The correct answer is (E), The correct answer is B", 1.0),
        ("The correct answer is Because", 1.0),  # no end of the word is asked for
        ("the correct answer is (B)", 0.0),
        ("The correct answer is (b)", 0.0),
        ("The correct answer is: (B)", 0.0),
        ("The correct answer is\n(B)", 0.0),
        ("B", 0.0),
        ("", 0.0),
    ],
)
def test_the_letter_that_is_said(prediction: str, expected: float) -> None:
    assert score_sample(task_of(), prediction, ("B",), None) == expected


def test_no_letter_may_count_as_a_guess() -> None:
    task = replace(task_of(), metric="said_choice_compensated")
    said = ["The correct answer is (B)", "The correct answer is (C)", "blue", ""]
    assert [score_sample(task, text, ("B",), None) for text in said] == [1.0, 0.0, 0.25, 0.25]


def test_scores_by_difficulty_and_length() -> None:
    groups = (("easy", "short"), ("hard", "short"), ("hard", "long"))
    found = records(*(replace(record_of(f"s{i}", s), groups=list(groups[i])) for i, s in enumerate((1.0, 0.0, 1.0))))
    scores = derive(HEADER, found, ["s0", "s1", "s2"])
    parts = {name: (part["score"], part["n"]) for name, part in scores["groups"].items()}
    assert parts == {"easy": (100.0, 1), "hard": (50.0, 2), "short": (50.0, 2), "long": (100.0, 1)}
    assert derive(HEADER, records(record_of("s0", 1.0)), ["s0"])["groups"] is None


def reasoned(tmp_path: Path, *words: str) -> tuple[Work, Seat]:
    folder = written(tmp_path, ROW | {"context": "Gudi color is fash fevu puru. " * 60})
    variant = "task.longbench_v2.variant=cot"
    work = composed("model=tiny", "task=longbench_v2", variant, f"data={folder}", f"results={tmp_path}/r", *words)
    [seat] = run_group([work], loaded=LOADED)
    return work, seat


def test_reasoning_is_asked_about_without_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def watched(tokenizer: Any, text: str, rule: PromptRule) -> Prompt:
        asked.append(text)
        return encode(tokenizer, text, rule)

    monkeypatch.setattr("eval.conclude.encode", watched)
    monkeypatch.setattr("eval.conclude.text_of", lambda *_: "The correct answer is (B)")
    work, seat = reasoned(tmp_path, "method=h2o")
    assert seat.error is None
    [record] = read_records(seat.work.folder).values()
    assert record.prediction == "The correct answer is (B)" and record.score == 1.0
    assert record.reasoning and record.groups == ["hard", "long"]
    [text] = asked
    assert "Gudi" not in text and f"step by step: {record.reasoning.strip()}\n\nBased on the above" in text
    assert (record.num_prompt_tokens or 0) > 400 and seat.scores is not None
    by_group = dict(report_rows(work, seat.scores))["  by group"]
    assert by_group == "hard: 100.0, n=1 · long: 100.0, n=1"


def test_a_second_answer_over_its_budget_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def over(*_: object) -> None:
        raise AuditError("audit: method h2o attended 9 tokens")

    monkeypatch.setattr("eval.conclude.answer", over)
    _, seat = reasoned(tmp_path, "method=h2o", "limit=1")
    assert isinstance(seat.error, AuditError)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there are no miniature rows for task longbench_v2; give data=hub or data=PATH"),
        (("task.longbench_v2.variant=rag",), "task.longbench_v2.variant='rag': input should be 'official'"),
        (("task.longbench_v2.conclusion.max_new_tokens=0",), "conclusion.max_new_tokens=0 is out of range"),
        (
            ("task.longbench_v2.variant=cot", "task.max_new_tokens=9", "data=hub"),
            "task.max_new_tokens does not act, as the variant has its own; give task.longbench_v2.cot.max_new_tokens",
        ),
    ],
)
def test_what_does_not_act_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError) as error:
        load_rows(job(compose_config(["model=tiny", "task=longbench_v2", *words]), words))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("task.longbench_v2.variant=no_context", "protocol=question_after"),
            "task.prompt has no {context} that could",
        ),
        (
            ("task.longbench_v2.variant=cot", "task.longbench_v2.conclusion.prompt='{what}'"),
            "task.longbench_v2.conclusion.prompt has more in braces than {input}, {reasoning}, {choice_A}",
        ),
    ],
)
def test_what_would_fail_for_every_sample_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    work = composed("model=tiny", "task=longbench_v2", f"data={written(tmp_path, ROW)}", *words)
    with pytest.raises(ValueError) as error:
        rehearse(work)
    assert said in str(error.value)
