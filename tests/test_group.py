"""Runs that share a prefill: each answers as it would alone, and what befalls one leaves the others as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import eval.ask
from configs.compose import compose_config, job
from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.ledger import AuditError
from engine.memory import available
from engine.model import Model
from eval.crowd import Crowd
from eval.job import Job, Work, prepare
from eval.locks import hold
from eval.loop import Loaded, Seat, run_group
from eval.records import Record, read_records
from eval.run_file import read_run
from methods.base import Index
from methods.pqcache.method import PQCache
from tests.models import model_of, networks, prompt_ids
from tests.test_methods import LENGTH, NUM_NEW, SELECTING, method_of, tenth

LOADED = Loaded()  # the embedded model, once for all tests


@cache
def job_of(*words: str) -> Job:
    return job(compose_config(["progress=false", "device=cpu", "limit=1", *words]), [])


def work_of(results: Path, *words: str) -> Work:
    made = job_of(*words)
    return prepare(replace(made, settings=replace(made.settings, results=str(results))))


def works_of(results: Path, methods: Sequence[str], *words: str) -> list[Work]:
    return [work_of(results, f"method={method}", *words) for method in methods]


def group(works: Sequence[Work], shard: tuple[int, int] | None = None) -> list[Seat]:
    return run_group(works, shard, loaded=LOADED)


def records(work: Work) -> list[Record]:
    return list(read_records(work.folder).values())


def predictions(work: Work) -> list[str | None]:
    return [record.prediction for record in records(work)]


def test_all_methods_in_one_batch_answer_as_they_do_alone() -> None:
    """All methods at two budgets. None of these has a near tie, where answers might differ (DESIGN, section 4)."""
    model = model_of(networks("llama")[0])
    question = Question(prompt_ids(LENGTH), 3, Stop(NUM_NEW, frozenset()))
    plans = [Plan("full", method_of("full"), None)]
    plans += [Plan(name, m := method_of(name), tenth(m, model, r)) for name in SELECTING for r in ("0.2", "0.4")]
    for plan, together in zip(plans, answer(model, question, plans), strict=True):
        alone = answer(model, question, [plan])[0]
        assert together.tokens == alone.tokens, plan
        ours, theirs = asdict(together.ledger), asdict(alone.ledger)
        assert (ours["num_arms"], theirs["num_arms"]) == (len(plans), 1)
        for same in ("attended_mean", "attended_max", "resident", "moved", "budget_tokens", "hit_rates"):
            assert ours[same] == theirs[same], f"{plan}: {same}"
        assert together.own_bytes == alone.own_bytes


def test_shared_records_are_the_separate_ones_but_for_time(tmp_path: Path) -> None:
    names = ["full", "sparq", "h2o", "adakv"]
    shared, alone = works_of(tmp_path / "shared", names, *FAST), works_of(tmp_path / "alone", names, *FAST)
    assert [seat.error for seat in group(shared)] == [None] * 4
    for together, apart in zip(shared, alone, strict=True):
        group([apart])
        [ours], [theirs] = records(together), records(apart)
        assert (ours.prediction, ours.score, ours.prompt_sha) == (theirs.prediction, theirs.score, theirs.prompt_sha)
        assert (ours.ledger["num_arms"], theirs.ledger["num_arms"]) == (4, 1)
        assert ours.ledger["tpot_s"] is None and theirs.ledger["tpot_s"], "speed is not measured in shared runs"
        assert ours.seconds is None and theirs.seconds


FAST = ("task=narrativeqa", "task.miniature.max_new_tokens=6")


def test_equal_observers_work_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    original = PQCache.cluster

    def counted(self: PQCache, layer: int, keys: torch.Tensor, seed: int) -> Any:
        built.append(layer)
        return original(self, layer, keys, seed)

    monkeypatch.setattr(PQCache, "cluster", counted)
    budgets = (0.05, 0.1, 0.2)
    works = [work_of(tmp_path, "method=pqcache", "method.clustering=gpu", f"budget={b}", *FAST) for b in budgets]
    seats = group(works)
    assert all(seat.error is None for seat in seats)
    assert sorted(built) == list(range(len(LOADED.get(works[0].job).geometry))), "one codebook a layer for all budgets"
    assert len({id(seat.work.job.method) for seat in seats}) == 1, "one pool of workers"


def test_only_what_is_missing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["window", "random", "full"]
    group(works_of(tmp_path, names[:1], "limit=2", *FAST))
    before = (works_of(tmp_path, names[:1], "limit=2", *FAST)[0].folder / "records.jsonl").read_bytes()
    asked: list[list[str]] = []

    def watched(model: Model, question: Question, plans: Sequence[Any], kept: object) -> list[Answer]:
        asked.append([plan.name for plan in plans])
        return answer(model, question, plans)

    monkeypatch.setattr(eval.ask, "answer", watched)
    works = works_of(tmp_path, names, "limit=3", *FAST)
    seats = group(works)
    assert asked == [names[1:], names[1:], names]
    assert (works[0].folder / "records.jsonl").read_bytes().startswith(before)
    assert [seat.scores and seat.scores["n"] for seat in seats] == [3, 3, 3]
    assert {r.ledger["num_arms"] for r in records(works[1])} == {2, 3}


def failing(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], when: Callable[[list[str]], bool]
) -> list[Any]:
    """`answer` raises where the names of its arms say so; what it is asked is noted."""
    asked: list[list[str]] = []

    def fake(model: Model, question: Question, plans: Sequence[Any], kept: object) -> list[Answer]:
        names = [plan.name for plan in plans]
        asked.append(names)
        if when(names):
            raise error()
        return answer(model, question, plans)

    monkeypatch.setattr(eval.ask, "answer", fake)
    return asked


NAMES = ["window", "random", "full", "oracle"]


def test_memory_that_runs_out_halves_the_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch, lambda: torch.OutOfMemoryError("CUDA out of memory."), lambda names: len(names) > 2)
    seats = group(works_of(tmp_path, NAMES, "limit=2", *FAST))
    assert asked == [NAMES, NAMES[:2], NAMES[2:], NAMES[:2], NAMES[2:]], "the second sample knows what fits"
    assert all(seat.error is None and seat.scores and seat.scores["n"] == 2 for seat in seats)


def test_an_arm_that_fits_nowhere_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda: MemoryError(), lambda names: "random" in names)
    seats = group(works_of(tmp_path, NAMES, "limit=2", *FAST))
    assert [isinstance(seat.error, MemoryError) for seat in seats] == [False, True, False, False]
    assert all(seat.scores and seat.scores["n"] == 2 for seat in seats if seat.error is None)


def test_arms_are_split_before_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LOADED.get(work_of(tmp_path, *FAST).job)
    assert available(model) > 2**27
    asked = failing(monkeypatch, RuntimeError, lambda names: False)
    prompt = 1000 * model.bytes_per_token
    monkeypatch.setattr("eval.crowd.available", lambda model: 2.2 * prompt)  # the prefix, and one arm by the bound
    assert all(seat.error is None for seat in group(works_of(tmp_path, NAMES, "limit=2", *FAST)))
    assert asked == [["window"], ["random", "full"], ["oracle"], NAMES], "later samples go by what was measured"


def test_a_failing_arm_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of its own gives failed records; the next samples do not suffer from it."""
    asked = failing(monkeypatch, lambda: IndexError("a bug of its own"), lambda names: "random" in names)
    works = works_of(tmp_path, NAMES, "limit=2", *FAST)
    seats = group(works)
    assert [seat.scores and (seat.scores["n"], seat.scores["failed"]) for seat in seats] == [
        (2, 0),
        (0, 2),
        (2, 0),
        (2, 0),
    ]
    assert [r.error for r in records(works[1])] == ["IndexError: a bug of its own"] * 2
    assert asked[-2:] == [["window", "full", "oracle"], ["random"]]


def test_an_audited_arm_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda: AuditError("audit: method random is over its budget"), lambda names: "random" in names)
    works = works_of(tmp_path, NAMES, "limit=2", *FAST)
    seats = group(works)
    assert [isinstance(seat.error, AuditError) for seat in seats] == [False, True, False, False]
    assert records(works[1]) == [] and all(seat.scores for seat in seats if seat.error is None)
    hold(works[1].folder, None).release()  # nobody holds it any more


def test_an_error_within_a_method_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a stand-in: the index itself raises amid a step of all arms."""
    from methods.random import RandomIndex

    def broken(self: Index, step: Any) -> Any:
        raise IndexError("a bug of its own")

    monkeypatch.setattr(RandomIndex, "select", broken)
    works = works_of(tmp_path, NAMES, *FAST)
    group(works)
    assert [record.error for work in works for record in records(work)] == [
        None, "IndexError: a bug of its own", None, None
    ]  # fmt: skip


def test_a_sample_that_fails_for_all_keeps_the_arms_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = failing(monkeypatch, lambda: IndexError("the sample's fault"), lambda names: len(asked) < 8)
    group(works_of(tmp_path, NAMES, "limit=2", *FAST))
    assert asked[-1] == NAMES


def test_a_folder_in_use_spoils_only_its_own_run(tmp_path: Path) -> None:
    works = works_of(tmp_path, NAMES[:2], *FAST)
    works[0].folder.mkdir(parents=True)
    lock = hold(works[0].folder, None)
    seats = group(works)
    lock.release()
    assert "is being written by" in str(seats[0].error) and seats[1].scores and seats[1].scores["n"] == 1
    assert group(works)[0].scores


def test_shards_of_a_group_add_up(tmp_path: Path) -> None:
    works = works_of(tmp_path, NAMES[:2], "limit=3", *FAST)
    first = group(works, (0, 2))
    assert [seat.scores and (seat.scores["n"], seat.scores["missing"]) for seat in first] == [(2, 1)] * 2
    second = group(works, (1, 2))
    assert [seat.scores and (seat.scores["n"], seat.scores["missing"]) for seat in second] == [(3, 0)] * 2
    files = {path.name for path in works[0].folder.glob("records*.jsonl")}
    assert files == {"records-0.jsonl", "records-1.jsonl"}
    assert [session["shard"] for session in read_run(works[0].folder).sessions] == [0, 1]
    whole = works_of(tmp_path / "whole", NAMES[:2], "limit=3", *FAST)
    group(whole)
    assert sorted(map(str, predictions(works[0]))) == sorted(map(str, predictions(whole[0])))


def test_records_without_the_number_of_arms_are_read(tmp_path: Path) -> None:
    [work] = works_of(tmp_path, ["window"], *FAST)
    group([work])
    path = work.folder / "records.jsonl"
    row = json.loads(path.read_text())
    del row["ledger"]["num_arms"]
    path.write_text(json.dumps(row) + "\n")
    assert records(work)[0].score is not None and group([work])[0].scores


def test_an_own_prefill_runs_beside_the_shared_one(tmp_path: Path) -> None:
    works = works_of(tmp_path, ["infllm", "window"], *FAST)
    assert all(seat.error is None for seat in group(works))
    assert {record.ledger["num_arms"] for work in works for record in records(work)} == {2}


def test_crowd_forgets_nothing_that_ran_out() -> None:
    crowd = Crowd()
    crowd.ran_out(24, 8000)
    crowd.ran_out(12, 16000)
    assert crowd.most == [(8000, 12), (16000, 6)]
