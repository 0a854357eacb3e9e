"""Real rows of all 21 LongBench tasks pass through prompt, cut, chat wrapper, generation and scoring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.compose import compose_config, job
from data.base import Sample
from eval.ask import render
from eval.job import Work, prepare
from eval.loop import Loaded, run_group
from eval.records import Record, read_records
from scripts.score import read_tasks
from tests.forks import ROOT
from tests.tokens import llama_like

DATA = ROOT.parent / "shared" / "longbench" / "data"
BOS = 1
MAX_PROMPT = 600
MAX_NEW = 6
FEW = 3  # rows of each task in the default suite
# Llama-3.1 in small: its RoPE scaling and grouped queries.
ARCHITECTURE = (
    "{vocab_size: 264, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, initializer_range: 0.2, rope_parameters: {original_max_position_embeddings: 64}}"
)
MODEL = [
    "model=llama31_8b",
    "model.weights=random",
    f"model.architecture={ARCHITECTURE}",
    "dtype=float32",
    "device=cpu",
]

LOADED = Loaded()  # the model, once for all tests that cut prompts alike

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real rows are not here")


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights with a tokenizer that puts one BOS before a text."""
    monkeypatch.setattr("engine.load.byte_tokenizer", llama_like)


def work_of(task: str, results: Path, *words: str) -> Work:
    limits = [f"model.max_prompt={MAX_PROMPT}", f"task.max_new_tokens={MAX_NEW}"]
    argv = [*MODEL, *limits, f"data={DATA}", f"results={results}", "progress=false", f"task={task}", *words]
    return prepare(job(compose_config(argv), argv))


def answered(work: Work) -> dict[str, Record]:
    """The records of a run, in which nothing is wrong."""
    [seat] = run_group([work], loaded=LOADED)
    work, scores = seat.work, seat.scores
    assert seat.error is None and scores is not None
    assert (scores["n"], scores["failed"], scores["missing"]) == (len(work.samples), 0, 0)
    records = read_records(work.folder)
    for sample in work.samples:
        record, length = records[sample.id], num_tokens(work, sample)
        assert record.error is None and record.score is not None and 0 <= record.score <= 1
        assert record.truncated is (length > work.job.spec.max_prompt)
        assert record.num_new_tokens is not None and 0 < record.num_new_tokens <= MAX_NEW
        assert not record.dense_short
    sample = work.samples[0]
    prompt = render(work, LOADED.get(work.job), sample)
    assert prompt.ids.tolist().count(BOS) == 1 and prompt.ids[0] == BOS
    assert (records[sample.id].prompt_sha, records[sample.id].num_prompt_tokens) == (prompt.sha, len(prompt.ids))
    return records


def num_tokens(work: Work, sample: Sample) -> int:
    """Tokens of a prompt before it is cut and wrapped: its bytes and one BOS."""
    return len(work.task.prompt.format(context=sample.context, input=sample.input).encode()) + 1


@pytest.mark.parametrize("limit", [FEW, pytest.param("null", marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("task", sorted(read_tasks()))
def test_rows_are_answered(task: str, limit: object, tmp_path: Path) -> None:
    words = ("method=pqcache", "method.bits=3", "method.clustering=gpu", f"limit={limit}")
    records = answered(work_of(task, tmp_path, *words))
    assert any(record.truncated for record in records.values())
    assert any(record.prediction for record in records.values())
    full = answered(work_of(task, tmp_path, "method=full", "limit=1"))
    assert all(records[name].prompt_sha == record.prompt_sha for name, record in full.items())


@pytest.mark.parametrize("task", ["qasper", "samsum"])
def test_only_chat_tasks_are_wrapped(task: str, tmp_path: Path) -> None:
    chat = work_of(task, tmp_path, "method=window", "limit=1")
    [wrapped] = answered(chat).values()
    [bare] = answered(work_of(task, tmp_path, "method=window", "limit=1", "model.chat=false")).values()
    assert (wrapped.prompt_sha != bare.prompt_sha) is chat.task.chat is (task == "qasper")


@pytest.mark.parametrize("task", sorted(read_tasks()))
def test_the_context_ends_where_the_template_says(task: str, tmp_path: Path) -> None:
    work = work_of(task, tmp_path, "protocol=question_after", "model.max_prompt=8000")
    model = LOADED.get(work.job)
    sample = work.samples[0]
    prompt = render(work, model, sample)
    assert prompt.context_end is not None
    head, tail = (str(model.tokenizer.decode(ids)) for ids in prompt.ids.tensor_split([prompt.context_end]))
    assert head.endswith(sample.context.rstrip()[-40:])
    behind = work.task.prompt.split("{context}")[1].format(input=sample.input).strip()
    assert tail.replace("<eot><assistant>", "").strip() == behind


@pytest.mark.parametrize("method", ["pqcache", "infllm", "h2o"])
def test_methods_act_where_the_context_ends(method: str, tmp_path: Path) -> None:
    answered(
        work_of("qasper", tmp_path, "protocol=question_after", f"method={method}", "limit=1", "model.max_prompt=3000")
    )


@pytest.mark.parametrize("spare", [0, -1])
def test_a_prompt_is_cut_from_its_first_token_too_many(spare: int, tmp_path: Path) -> None:
    work = work_of("lcc", tmp_path, "method=window")
    length = num_tokens(work, work.samples[0])
    [record] = answered(
        work_of("lcc", tmp_path, "method=window", "limit=1", f"model.max_prompt={length + spare}")
    ).values()
    assert record.truncated is (spare < 0) and record.num_prompt_tokens is not None
    assert record.num_prompt_tokens == length + spare - (spare < 0 and length % 2 == 0)


def test_the_committed_names_are_those_of_the_rows() -> None:
    assert {path.stem for path in DATA.glob("*.jsonl")} == set(read_tasks())
    for path in DATA.glob("*.jsonl"):
        assert json.loads(path.read_text().splitlines()[0])["dataset"] == path.stem
