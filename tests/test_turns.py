"""Several questions about one context: one prefill, the same answers as with a prefill each, a record a question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import engine.generate
from configs.compose import compose_config, job
from data import scbench
from data.base import Task
from data.turns import Turn
from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.kept import Kept
from engine.prompt import chat_goes_on, fitting
from eval.job import Work, prepare
from eval.longbench import score_sample
from eval.loop import Loaded, run_group
from eval.metrics import metric
from eval.records import Record, read_records
from eval.scores import derive
from tests.models import model_of, networks, prompt_ids
from tests.test_methods import method_of, tenth
from tests.test_records import answer as record_of
from tests.test_scores import HEADER, records
from tests.tokens import llama_like

CONTEXT = 150
METHODS = ("full", "pqcache", "snapkv", "h2o", "adakv", "infllm", "kivi")
LOADED = Loaded()  # the embedded model, once for all tests
CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><quiet>{% endif %}"
)


def composed(*words: str) -> Work:
    return prepare(job(compose_config(["task=scbench_kv", "progress=false", "device=cpu", "limit=3", *words]), []))


def run(tmp_path: Path, *words: str) -> dict[str, Record]:
    work = composed(f"results={tmp_path}", *words)
    [seat] = run_group([work], loaded=LOADED)
    assert seat.error is None
    return read_records(seat.work.folder)


def task_of(name: str = "scbench_kv") -> Task:
    return job(compose_config([f"task={name}"]), []).task


def prefills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each dense prefill from now on."""
    original, found = engine.generate.prefill, list[int]()

    def counted(model: Any, layers: Any, ids: torch.Tensor, plans: Any) -> Any:
        found.append(len(ids))
        return original(model, layers, ids, plans)

    monkeypatch.setattr(engine.generate, "prefill", counted)
    return found


def same(ours: Answer, theirs: Answer) -> None:
    assert ours.tokens == theirs.tokens and ours.own_bytes == theirs.own_bytes
    costs = [asdict(reply.ledger) for reply in (ours, theirs)]
    for name in ("attended_mean", "attended_max", "resident", "moved", "budget_tokens", "notes"):
        assert costs[0][name] == costs[1][name], name


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_kept_prefill_changes_nothing_but_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three questions of 9, 20 and 0 tokens behind one context; the second is asked of fewer methods."""
    model, names = model_of(networks(family)[0]), METHODS if family == "llama" else ("h2o",)
    plans = []
    for name in names:
        method = method_of(name)
        plans.append(Plan(name, method, tenth(method, model) if method.kind == "tokens" else None))
    found, kept = prefills(monkeypatch), Kept()
    for number, (later, asked) in enumerate(((9, plans), (20, plans[::2]), (0, plans))):
        ids = torch.cat([prompt_ids(CONTEXT), prompt_ids(300)[300 - later :]])
        question = Question(ids, 3, Stop(6, frozenset()), CONTEXT)
        del found[:]
        together = answer(model, question, asked, kept)
        assert found == ([CONTEXT] if number == 0 else [])
        for ours, theirs in zip(together, answer(model, question, asked), strict=True):
            same(ours, theirs)


def test_what_is_kept_serves_only_its_own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found, kept = model_of(networks("llama")[0]), prefills(monkeypatch), Kept()
    full, snapkv = (Plan(n, m := method_of(n), None if n == "full" else tenth(m, model)) for n in ("full", "snapkv"))

    def asked(num: int, seed: int, plan: Plan) -> Answer:
        return answer(model, Question(prompt_ids(num), seed, Stop(3, frozenset())), [plan], kept)[0]

    first, again = asked(99, 1, full), asked(99, 1, full)
    assert first.ledger.prefill_s and first.ledger.ttft_s and len(first.ledger.tpot_s or ()) == 2
    assert again.ledger.prefill_s is again.ledger.ttft_s is again.ledger.tt2t_s is None, "nobody waited for a prefill"
    assert len(again.ledger.tpot_s or ()) == 2
    assert found == [99]
    for num, seed, plan in ((98, 1, full), (98, 2, full), (98, 2, snapkv), (98, 2, full)):
        asked(num, seed, plan)
    assert found == [99, 98, 98, 98], "other ids, another seed, an observer that has not seen; then nothing"
    kept.clear()
    asked(98, 2, full)
    assert len(found) == 5


# InfLLM's tokens share a selection where several come at once, which is how it reads a prompt.
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("full", "infllm")])
def test_an_answer_that_is_fed_again_is_as_one_that_was_decoded(name: str) -> None:
    """A conversation is replayed on a new arm: its state is that of an arm that went on."""
    model, method = model_of(networks("llama")[0]), method_of(name)
    plan = Plan(name, method, tenth(method, model) if method.kind == "tokens" else None)
    ids = prompt_ids(CONTEXT)
    [long] = answer(model, Question(ids, 3, Stop(24, frozenset())), [plan])
    said = torch.tensor(long.tokens[:12])
    [replayed] = answer(model, Question(torch.cat([ids, said]), 3, Stop(12, frozenset()), CONTEXT), [plan])
    assert replayed.tokens == long.tokens[12:]


def test_a_conversation_is_one_prefill_and_a_record_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prefills(monkeypatch)
    first = run(tmp_path, "method=sparq", "task.miniature.max_new_tokens=6")
    assert list(first) == ["0-turn1", "0-turn2", "0-turn3"] and [r.turn for r in first.values()] == [1, 2, 3]
    assert len(found) == 1 and found[0] == first["0-turn1"].num_prompt_tokens
    assert len({record.context_sha for record in first.values()}) == 1
    assert {r.ledger["budget_tokens"] for r in first.values()} == {first["0-turn1"].ledger["budget_tokens"]}
    # 10 tokens of an answer, the end token, and the question with its frame.
    lengths = [record.num_prompt_tokens or 0 for record in first.values()]
    assert lengths[2] - lengths[1] == lengths[1] - lengths[0] == 9 + 1 + 10
    [path] = tmp_path.glob("tiny/*/*/*/records.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    resumed = run(tmp_path, "method=sparq", "task.miniature.max_new_tokens=6")
    assert len(found) == 2
    ours, before = resumed["0-turn2"], first["0-turn2"]
    assert (ours.prediction, ours.prompt_sha, ours.turn) == (before.prediction, before.prompt_sha, 2)


@pytest.mark.parametrize(
    ("words", "num"), [(("task.turns.mode=requests", "protocol=question_after"), 1), (("task.turns.mode=requests",), 3)]
)
def test_requests_start_from_the_same_context(
    words: Sequence[str], num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the question in view of the methods, each question needs a prefill of its own."""
    found = prefills(monkeypatch)
    answered = run(tmp_path, "method=snapkv", "task.miniature.max_new_tokens=3", *words)
    assert len(found) == num
    assert len({record.num_prompt_tokens for record in answered.values()}) == 1, "nothing of an earlier question"
    assert len({record.prompt_sha for record in answered.values()}) == 3


def test_own_answers_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("method=window", "task.turns.answers=own", "task.miniature.max_new_tokens=4")
    answered = run(tmp_path, *words)
    gold = run(tmp_path, words[0], words[2])
    assert answered["0-turn1"].prompt_sha == gold["0-turn1"].prompt_sha
    assert answered["0-turn2"].num_prompt_tokens != gold["0-turn2"].num_prompt_tokens, "an answer of 4 tokens, not 9"
    paths = tmp_path.glob("tiny/*/*/*/records.jsonl")
    [path] = [path for path in paths if '"own"' in (path.parent / "run.json").read_text()]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(json.dumps({**rows[0], "prediction": " re re re re re re"}) + "\n")
    other = run(tmp_path, *words)
    assert other["0-turn2"].prompt_sha != answered["0-turn2"].prompt_sha
    with pytest.raises(ValueError, match=r"shards=2.*give 1"):
        composed(*words, "shards=2")
    keys = [composed(f"method={m}", "task.turns.answers=own").job.prefill_key for m in ("window", "full")]
    assert keys[0] != keys[1], "their prompts differ"


def test_a_context_is_cut_alone(tmp_path: Path) -> None:
    """The same stretch for all questions; the frame, and five questions with answers, keep their room."""
    answered = run(tmp_path, "method=full", "model.max_prompt=300", "task.turns.mode=requests")
    assert all(record.truncated and record.error is None for record in answered.values())
    assert {record.num_prompt_tokens for record in answered.values()} <= set(range(200, 290))
    tokenizer = llama_like()
    assert fitting(tokenizer, "abcdefghij", 4) == "abij" and fitting(tokenizer, "abc", 4) == "abc"
    with pytest.raises(ValueError, match=r"leave 1 tokens.*larger model\.max_prompt"):
        fitting(tokenizer, "abc", 1)


def test_a_conversation_that_grows_too_long_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    turns = [{"input": "ka", "answer": "b " * 400}, {"input": "re", "answer": "c"}]
    (folder / "scbench_kv.jsonl").write_text(json.dumps({"id": 1, "context": "a " * 100, "multi_turns": turns}) + "\n")
    words = ("model.max_prompt=1000", "task.max_new_tokens=2")
    answered = run(tmp_path, "method=full", f"data={folder}", *words, "truncate=false")
    assert answered["1-turn1"].error is None
    assert "over model.max_prompt=1000" in (answered["1-turn2"].error or "")
    cut = run(tmp_path, "method=full", f"data={folder}", *words)
    assert all(record.truncated and record.error is None for record in cut.values())


def test_a_chat_goes_on_where_the_assistant_speaks() -> None:
    tokenizer = llama_like(CHAT)
    assert chat_goes_on(tokenizer, " 42 ", "why?", {}) == " 42 <eot><user>why?<eot><assistant><quiet>"
    with pytest.raises(ValueError, match=r"give model\.chat=false"):
        chat_goes_on(llama_like("{{ messages[0].content }}"), "42", "why?", {})


ROW = {"id": 7, "context": "a b", "multi_turns": [{"input": "i", "answer": "x"}, {"input": "j", "answer": ["y", "z"]}]}


def written(tmp_path: Path, name: str, *rows: dict[str, Any]) -> str:
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def test_each_question_is_a_sample(tmp_path: Path) -> None:
    where = written(tmp_path, "scbench_kv", ROW, {**ROW, "id": None})
    data = scbench.load(task_of(), where)
    assert [sample.id for sample in data] == ["7-turn1", "7-turn2", "row-1-turn1", "row-1-turn2"]
    first, second = data.samples[:2]
    assert (first.input, first.answers, first.turn, first.earlier) == ("i", ("x",), 1, ())
    assert (second.answers, second.turn, second.earlier) == (("y\nz",), 2, (Turn("i", "x"),))
    assert first.length == 2 and data.official is None and not data.miniature
    task = task_of()
    assert task.turns is not None
    assert len(scbench.load(replace(task, turns=replace(task.turns, most=1)), where)) == 2


def test_the_hubs_layout_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "scbench_vt"
    folder.mkdir()
    turns = [{"input": "j", "answer": ["Y", "Z"]}]
    row = {"input": "the context", "multi_turns": turns}  # of variable tracking, on the hub
    pq.write_table(pa.Table.from_pylist([row]), folder / "test-00000-of-00001.parquet")
    [sample] = scbench.load(task_of("scbench_vt"), str(tmp_path))
    assert (sample.context, sample.answers) == ("the context", ("Y\nZ",))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], r"has no questions; it must hold rows"),
        ([ROW, ROW], r"has equal ids"),
        ([{"id": 1, "context": "a"}], r"row 0 lacks multi_turns"),
        ([{**ROW, "context": 3}], r"context=3"),
        ([{**ROW, "multi_turns": [{"input": "i"}]}], r"multi_turns=.*a row must hold context"),
        ([{**ROW, "multi_turns": [{"input": "i", "answer": []}]}], r"multi_turns="),
    ],
)
def test_what_is_no_row_is_refused(rows: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        scbench.load(task_of(), written(tmp_path, "scbench_kv", *rows))


def test_rows_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no scbench_kv\.jsonl"):
        scbench.load(task_of(), str(tmp_path))
    with pytest.raises(ValueError, match=r"no miniature rows for task scbench_vt"):
        scbench.load(task_of("scbench_vt"), "miniature")


@pytest.mark.parametrize(
    ("rule", "prediction", "answer", "score"),
    [
        ("substring", "it is 00a0-1f-extra", "00a0-1f", 1.0),  # no words: InfiniteBench's rule says 0 here
        ("substring", "00A0-1F", "00a0-1f", 0.0),
        ("substring", "", "00a0-1f", 0.0),
        ("substring_any_case", " in a Palace.", "ACE", 1.0),
        ("substring_any_case", "the lake", "the lake.", 0.0),
        ("names_found", "abc, and xyz", "ABC\nXYZ\nQQQ", 0.67),  # rounded
        ("names_found", "abc xyz qqq", "ABC\nXYZ\nQQQ", 1.0),
        ("names_found", "", "ABC\nXYZ\nQQQ", 0.0),
    ],
)
def test_the_rules(rule: str, prediction: str, answer: str, score: float) -> None:
    assert metric(rule)(prediction, answer, None) == score


def test_the_character_rule_takes_an_answer_as_one_text() -> None:
    """SCBench would take a plain text character by character, and the best of them."""
    assert metric("char_f1")("北京 市。", "北京", None) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("task.turns.most=0", r"task\.turns\.most=0: give 1 or more"),
        ("task.turns.follow=again", r"task\.turns\.follow='again': give a text with \{input\}"),
        ("task.turns.chat_follow='{input}{other}'", r"task\.turns\.chat_follow="),
        ("task.turns.mode=requests task.turns.answers=own", r"requests know no earlier answers"),
        ("task.turns.mode=both", r"task\.turns\.mode='both'.*'conversation' or 'requests'"),
    ],
)
def test_turns_that_cannot_be_asked_are_refused(words: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        composed(*words.split())


@pytest.mark.parametrize("name", sorted(scbench.MINIATURE))
def test_miniature_answers_score_in_full(name: str) -> None:
    task = task_of(name)
    data = scbench.load(task, "miniature")
    assert data.miniature and len(data) == 24 * 5 and data == scbench.load(task, "miniature")
    assert data.revision != scbench.load(task, "miniature_hard").revision
    last = data.samples[4]
    assert last.turn == 5 and len({turn.input for turn in last.earlier} | {last.input}) == 5
    small = task.small()
    for sample, spoken in zip(data.samples, [*last.earlier], strict=False):
        assert score_sample(small, spoken.answer, sample.answers, None) == 1.0
        assert score_sample(small, sample.input, sample.answers, None) == 0.0
        assert spoken.answer.strip() in sample.context


def test_scores_say_how_each_turn_fared() -> None:
    found = [replace(record_of(f"{row}-turn{n}", s), turn=n, context_sha=row) for row, n, s in TURNS]
    scores = derive(HEADER, records(*found), [record.id for record in found])
    assert scores["score"] == 60.0 and scores["n"] == 5
    assert {name: (part["score"], part["n"]) for name, part in scores["turns"].items()} == {
        "1": (100.0, 2),
        "2": (50.0, 2),
        "3": (0.0, 1),
    }
    assert derive(HEADER, records(record_of("a", 1.0)), ["a"])["turns"] is None


TURNS = [("a", 1, 1.0), ("a", 2, 1.0), ("a", 3, 0.0), ("b", 1, 1.0), ("b", 2, 0.0)]
