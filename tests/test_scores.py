"""What `scores.json` says, and what it leaves empty."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.longbench import score_task
from eval.records import Record
from eval.scores import Header, derive, write
from tests.test_records import answer

HEADER = Header("tiny", "qasper", "pqcache", 0.1, "longbench", "qa_f1", miniature=True, metric_backend=None)
FULL_LEDGER: dict[str, Any] = {
    "attended_mean": 100.0,
    "attended_max": 120,
    "budget_tokens": 96,
    "resident": {"k": 10, "v": 20, "index": 5, "host": 7},
    "resident_full": 300,
    "moved": {"kv": 8, "index": 2, "host": 1},
    "ttft_s": 0.5,
    "tt2t_s": None,
    "tpot_s": [0.1, 0.2, 0.3],
    "prefill_s": 0.4,
    "build_s": 0.1,
    "store": "real",
}


def records(*items: Record) -> dict[str, Record]:
    return {record.id: record for record in items}


def test_failures_and_holes_are_counted_not_scored() -> None:
    found = records(answer("a", 1.0), Record.failed("b", "boom", 1), answer("c", 0.25), answer("z", 0.0))
    scores = derive(HEADER, found, ["a", "b", "c", "d"])
    assert scores["score"] == 62.5
    assert (scores["n"], scores["failed"], scores["missing"], scores["n_expected"]) == (2, 1, 1, 4)
    assert scores["ci95"] == [25.0, 100.0]
    assert (scores["model"], scores["task"], scores["method"], scores["budget"]) == ("tiny", "qasper", "pqcache", 0.1)
    assert (scores["protocol"], scores["metric"], scores["miniature"]) == ("longbench", "qa_f1", True)


def test_nothing_is_made_up_where_nothing_was_answered() -> None:
    for found in ({}, records(Record.failed("a", "boom", 1))):
        scores = derive(replace(HEADER, e=True), found, ["a"])
        assert scores["score"] is None and scores["ci95"] is None and scores["n"] == 0
        assert scores["buckets"] == {"0-4k": None, "4-8k": None, "8k+": None}
        assert scores["ledger"]["ttft_s"] == {"mean": None, "median": None, "n": 0}
        assert scores["ledger"]["tpot_s"] == {"median": None, "p90": None, "n": 0}
        assert scores["ledger"]["attended_max"] is None and scores["ledger"]["store"] is None


def test_one_answer_has_a_score_and_no_interval() -> None:
    scores = derive(HEADER, records(answer("a", 0.5)), ["a"])
    assert scores["score"] == 50.0 and scores["ci95"] is None


def test_a_smaller_limit_scores_the_first_ids_only() -> None:
    found = records(*(answer(str(number), number / 10) for number in range(10)))
    assert derive(HEADER, found, ["0", "1", "2"])["score"] == 10.0
    with pytest.raises(ValueError, match="id '1' stands twice"):
        derive(HEADER, found, ["0", "1", "1"])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1 / 3] * 3, 33.33), ([2 / 3], 66.67), ([0.00125], 0.12), ([0.00375], 0.38), ([0.0, 0.0], 0.0)],
)
def test_scores_round_as_longbench_rounds(scores: list[float], expected: float) -> None:
    assert score_task(scores) == expected


def test_buckets_use_the_stored_length_with_the_official_edges() -> None:
    lengths = {"a": (0, 0.0), "b": (3999, 1.0), "c": (4000, 0.5), "d": (7999, 0.25)}
    found = records(*(replace(answer(name, score), length=length) for name, (length, score) in lengths.items()))
    buckets = derive(replace(HEADER, e=True), found, list(lengths))["buckets"]
    assert buckets["0-4k"] == {"score": 50.0, "ci95": [0.0, 100.0], "n": 2}
    assert buckets["4-8k"]["score"] == 37.5
    assert buckets["8k+"] is None
    found["e"] = replace(answer("e", 0.75), length=8000)
    assert derive(replace(HEADER, e=True), found, ["e"])["buckets"]["8k+"]["score"] == 75.0
    assert derive(HEADER, found, ["e"])["buckets"] is None


def test_the_ledger_is_summed_up_and_absent_parts_stay_missing() -> None:
    half = {"attended_mean": 50.0, "resident": {"k": 30, "v": 20}, "ttft_s": 1.5, "tpot_s": [0.4], "store": "simulated"}
    found = records(
        replace(answer("a"), ledger=FULL_LEDGER, dense_short=True, truncated=True),
        replace(answer("b"), ledger=half),
        replace(answer("c"), ledger={}),
        Record.failed("d", "boom", 1),
    )
    scores = derive(HEADER, found, ["a", "b", "c", "d"])
    ledger = scores["ledger"]
    assert (scores["dense_short"], scores["truncated"]) == (1, 1)
    assert ledger["attended_tokens"] == {"mean": 75.0, "median": 75.0, "n": 2}
    assert ledger["attended_max"] == 120
    assert ledger["budget_tokens"] == {"mean": 96.0, "median": 96.0, "n": 1}
    assert ledger["resident"]["k"] == {"mean": 20.0, "median": 20.0, "n": 2}
    assert ledger["resident"]["device"] == {"mean": 35.0, "median": 35.0, "n": 1}
    assert ledger["resident"]["host"]["mean"] == 7 and ledger["resident"]["full"]["mean"] == 300
    assert ledger["moved"]["device"]["mean"] == 10 and ledger["moved"]["host"]["mean"] == 1
    assert ledger["ttft_s"] == {"mean": 1.0, "median": 1.0, "n": 2}
    assert ledger["tt2t_s"] == {"mean": None, "median": None, "n": 0}
    assert ledger["tpot_s"] == {"median": pytest.approx(0.25), "p90": pytest.approx(0.37), "n": 4}
    assert ledger["store"] == "mixed"


def test_mean_and_median_are_not_the_same_number() -> None:
    found = records(*(replace(answer(str(t)), ledger={"ttft_s": t}) for t in (1.0, 2.0, 9.0)))
    assert derive(HEADER, found, list(found))["ledger"]["ttft_s"] == {"mean": 4.0, "median": 2.0, "n": 3}


def test_scores_json_is_written_in_one_step_and_replaced(tmp_path: Path) -> None:
    scores = derive(HEADER, records(answer("a", 0.5)), ["a"])
    assert write(tmp_path, {**scores, "score": 1.0}) == tmp_path / "scores.json"
    write(tmp_path, scores)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    with pytest.raises(ValueError, match=r"scores\.json\.score is nan"):
        write(tmp_path, {**scores, "score": float("nan")})
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
