"""Predictions of any harness get LongBench's scores, to the last digit."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from data.base import Task
from eval import longbench
from eval.longbench import (
    Prediction,
    TaskScore,
    postprocess,
    read_predictions,
    rouge_score_columns,
    score_buckets,
    score_rows,
    score_sample,
    score_task,
)
from eval.metrics import METRICS
from scripts import score
from scripts.score import main, read_tasks
from tests.test_metrics import indel_similarity

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "longbench"
PREDS = SHARED / "preds" / "llama3-8b-instruct"
needs_preds = pytest.mark.skipif(not PREDS.is_dir(), reason="the reference predictions are not beside the repository")
TASKS = read_tasks()
# These three take half a minute; by default every tenth of their rows is scored.
LONG = {"gov_report", "multi_news", "vcsum"}
ROW: dict[str, Any] = {"pred": "Ann", "answers": ["Ann"], "all_classes": None, "length": 10}


def rows_of(name: str) -> tuple[Prediction, ...]:
    return read_predictions(PREDS / f"{name}.jsonl", TASKS[name])


@lru_cache(maxsize=1)
def official_samples() -> Mapping[str, Sequence[float]]:
    found: dict[str, list[float]] = {}
    for line in (SHARED / "preds" / "per_sample_difflib.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert len(found.setdefault(row["task"], [])) == row["row"]
        found[row["task"]].append(row["score"])
    return found


def official(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@needs_preds
@pytest.mark.parametrize("name", sorted(set(TASKS) - LONG))
def test_every_sample_and_task_scores_as_official(name: str) -> None:
    samples = list(score_rows(TASKS[name], rows_of(name)))
    assert len(samples) == TASKS[name].num_rows
    assert samples == pytest.approx(official_samples()[name], abs=1e-12)
    assert score_task(samples) == official(PREDS)[name]


@needs_preds
@pytest.mark.parametrize("name", sorted(LONG))
def test_every_tenth_sample_of_the_long_tasks_scores_as_official(name: str) -> None:
    samples = list(score_rows(TASKS[name], rows_of(name)[::10]))
    assert len(samples) == 20
    assert samples == pytest.approx(official_samples()[name][::10], abs=1e-12)


@needs_preds
@pytest.mark.slow
def test_the_script_reproduces_all_4750_samples_and_21_scores(tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    assert main([str(PREDS), "--out", str(tmp_path / "out"), "--per-sample", str(samples)]) == 0
    assert official(tmp_path / "out") == official(PREDS)
    found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert len(found) == 4750
    for row in found:
        assert row["score"] == pytest.approx(official_samples()[row["task"]][row["row"]], abs=1e-12)


@needs_preds
@pytest.mark.parametrize("name", ["2wikimqa", "hotpotqa", "lcc", "passage_retrieval_en", "qasper"])
def test_longbench_e_buckets_score_as_official(name: str) -> None:
    check_buckets(name)


@needs_preds
@pytest.mark.slow
def test_the_long_longbench_e_task_scores_as_official() -> None:
    check_buckets("multi_news")


def check_buckets(name: str) -> None:
    task = replace(TASKS[name], e=True)
    rows = read_predictions(SHARED / "preds_e" / f"{name}.jsonl", task)
    found = score_buckets(list(score_rows(task, rows)), [row.length or 0 for row in rows])
    assert found == official(SHARED / "preds_e")[name]


@needs_preds
@pytest.mark.parametrize(("name", "wrong"), [("lcc", 52.27), ("repobench-p", 46.9)])
def test_stripped_predictions_would_be_noticed(name: str, wrong: float) -> None:
    stripped = [replace(row, pred=row.pred.lstrip()) for row in rows_of(name)]
    assert score_task(list(score_rows(TASKS[name], stripped))) == wrong != official(PREDS)[name]


@needs_preds
@pytest.mark.parametrize(("name", "wrong"), [("lcc", 64.89), ("repobench-p", 56.84)])
def test_levenshtein_would_be_noticed(name: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.metrics._levenshtein", lambda: indel_similarity)
    assert score_task(list(score_rows(TASKS[name], rows_of(name), "levenshtein"))) == wrong != official(PREDS)[name]


@needs_preds
def test_rouge_score_would_be_noticed() -> None:
    columns = rouge_score_columns(TASKS["samsum"], rows_of("samsum"))
    assert columns == {"rougeL": 40.37, "rougeLsum": 40.37}
    assert official(PREDS)["samsum"] == 44.44


def test_only_few_shot_tasks_keep_the_first_line() -> None:
    assert postprocess(TASKS["trec"], "\n\nFood\nHuman") == "Food"
    assert postprocess(TASKS["trec"], " \nFood") == " "
    assert postprocess(TASKS["lcc"], "\n  x \ny ") == "\n  x \ny "


def test_a_miniature_prediction_is_its_values() -> None:
    small = replace(TASKS["qasper"], extract=r"v\d+")
    assert postprocess(small, "what is v1 ? v22 .") == "v1 v22"
    assert score_sample(small, "the answer is v1", ["v1"], None) == 1.0
    assert score_sample(small, "the answer is", ["v1"], None) == 0.0


def test_a_sample_has_the_score_of_its_best_answer() -> None:
    assert score_sample(TASKS["qasper"], "red cat", ["dog", "cat", "red cat", "x"], None) == 1.0
    with pytest.raises(ValueError, match="no answers"):
        score_sample(TASKS["qasper"], "red cat", [], None)


def test_the_last_rows_classes_stand_for_the_file() -> None:
    rows = [Prediction("Food City", ("Food",), ("Food", "City")), Prediction("", ("Food",), ("Food",))]
    assert list(score_rows(TASKS["trec"], rows)) == [1.0, 0.0]
    assert list(score_rows(TASKS["trec"], rows[::-1])) == [0.0, 0.5]


def test_a_row_that_cannot_be_scored_is_named() -> None:
    rows = [Prediction("1", ("Paragraph 1",)), Prediction("1", ("one",))]
    with pytest.raises(ValueError, match=r"row 1 of passage_retrieval_en: .*'one' names no paragraph"):
        list(score_rows(TASKS["passage_retrieval_en"], rows))


def test_task_scores_round_a_plain_sum() -> None:
    assert score_task([1, 0, 0]) == 33.33
    assert score_task([0.00125, 0.0]) == 0.06
    # An exact sum (and Python's own from 3.12 on) is a little over 1, and 0.125 becomes 0.13.
    lost = [1.0, *[2.0**-54] * 799]
    assert (score_task(lost), round(100 * math.fsum(lost) / 800, 2)) == (0.12, 0.13)
    with pytest.raises(ValueError, match="no score"):
        score_task([])


def test_buckets_end_before_their_edge_and_may_be_empty() -> None:
    lengths = [0, 3999, 4000, 7999]
    assert score_buckets([1.0, 0.0, 0.25, 0.25], lengths) == {"0-4k": 50.0, "4-8k": 25.0, "8k+": None}
    assert [longbench.bucket(length) for length in (3999, 4000, 7999, 8000, 10**6)] == [
        "0-4k",
        "4-8k",
        "4-8k",
        "8k+",
        "8k+",
    ]


def test_buckets_round_as_numpy_does() -> None:
    assert round(100 * 0.02675, 2) == 2.67
    assert score_buckets([0.02675], [1])["0-4k"] == 2.68


def test_a_folder_gets_the_official_result_and_the_details(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "qasper.jsonl", ROW, ROW | {"pred": "Bob"})
    write(tmp_path / "lcc.llama.v2.jsonl", ROW)
    write(tmp_path / "samsum.jsonl", ROW | {"pred": "Ann sat.\nBob", "answers": ["ann sat."]})
    assert main([str(tmp_path)]) == 0
    assert read(tmp_path / "result.json") == {"lcc": 100.0, "qasper": 50.0, "samsum": 50.0}
    assert read(tmp_path / "scores.json") == {
        "lcc": {"metric": "code_sim", "score": 100.0, "n": 1, "num_rows": 500, "fuzz": "difflib"},
        "qasper": {"metric": "qa_f1", "score": 50.0, "n": 2, "num_rows": 200},
        "samsum": {
            "metric": "rouge",
            "score": 50.0,
            "n": 1,
            "num_rows": 200,
            "rouge_score": {"rougeL": 100.0, "rougeLsum": 100.0},
        },
    }
    shown = capsys.readouterr().out
    assert re.search(r"qasper +qa_f1 +50\.00 +2 of 200", shown)
    assert "mean" not in shown


def test_longbench_e_writes_buckets_and_null_for_an_empty_one(tmp_path: Path) -> None:
    write(tmp_path / "qasper.jsonl", ROW, ROW | {"pred": "Bob", "length": 8000}, ROW | {"length": 9000})
    assert main([str(tmp_path), "--e", "--out", str(tmp_path / "out")]) == 0
    buckets = {"0-4k": 100.0, "4-8k": None, "8k+": 50.0}
    assert read(tmp_path / "out" / "result.json") == {"qasper": buckets}
    details = read(tmp_path / "out" / "scores.json")["qasper"]
    assert (details["buckets"], details["bucket_n"]) == (buckets, {"0-4k": 1, "4-8k": 0, "8k+": 2})


def test_a_differing_file_is_only_replaced_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "qasper.jsonl", ROW)
    (tmp_path / "result.json").write_text('{"qasper":   100}', encoding="utf-8")
    assert main([str(tmp_path)]) == 0, "the same content in another layout is no difference"
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == '{"qasper":   100}'
    before = (tmp_path / "scores.json").read_text(encoding="utf-8")
    write(tmp_path / "qasper.jsonl", ROW | {"pred": "Bob"})
    capsys.readouterr()
    assert main([str(tmp_path)]) == 2
    assert re.fullmatch(
        r"nothing written: .*result\.json, .*scores\.json would change; --force .*\n", capsys.readouterr().err
    )
    assert read(tmp_path / "result.json") == {"qasper": 100}
    assert (tmp_path / "scores.json").read_text(encoding="utf-8") == before
    assert main([str(tmp_path), "--force"]) == 0
    assert read(tmp_path / "result.json") == {"qasper": 0.0}


def test_several_folders_share_one_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in "ab":
        write(tmp_path / "pred" / model / "qasper.jsonl", ROW | {"pred": "Ann" if model == "a" else "Bob"})
    assert main([str(tmp_path / "pred"), "--out", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out" / "a" / "result.json") == {"qasper": 100.0}
    assert read(tmp_path / "out" / "b" / "result.json") == {"qasper": 0.0}
    write(tmp_path / "other" / "a" / "qasper.jsonl", ROW)
    both = [str(tmp_path / "pred" / "a"), str(tmp_path / "other" / "a")]
    assert main([*both, "--out", str(tmp_path / "new")]) == 1
    assert "folders of one name" in capsys.readouterr().err
    assert main([*both, "--per-sample", str(tmp_path / "s.jsonl")]) == 1
    assert "--per-sample takes one folder" in capsys.readouterr().err


def test_each_row_can_be_written_with_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "m" / "qasper.jsonl", ROW | {"pred": "red cat", "answers": ["cat"]}, ROW)
    assert main([str(file), "--per-sample", str(tmp_path / "rows.jsonl")]) == 0
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"task": "qasper", "row": 0, "score": pytest.approx(2 / 3)},
        {"task": "qasper", "row": 1, "score": 1.0},
    ]
    assert main([str(file), "--per-sample", str(tmp_path / "m" / "rows.jsonl")]) == 1
    assert "among the predictions" in capsys.readouterr().err


def test_means_name_their_tasks_and_need_all_of_them() -> None:
    def scored(task: Task, value: float) -> TaskScore:
        return TaskScore(task, [value] * task.num_rows, [], None, {})

    english = [scored(task, 0.5) for task in TASKS.values() if task.language == "en"]
    code = [scored(task, 1.0) for task in TASKS.values() if task.language == "code"]
    assert list(score._footnotes(english + code, TASKS)) == [
        "mean of the 14 English tasks: 50.00",
        "mean of the 16 English and code tasks: 56.25",
    ]
    short = replace(english[0], samples=english[0].samples[1:])
    assert not list(score._footnotes([short, *english[1:], *code], TASKS))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("records.jsonl", json.dumps(ROW), "is of no known task ('records'); known: 2wikimqa, "),
        ("qasper.jsonl", "", "qasper.jsonl is empty"),
        ("qasper.jsonl", json.dumps(ROW) + '\n{"pred": "An', "qasper.jsonl:2 is no complete JSON"),
        ("qasper.jsonl", "[]", "qasper.jsonl:1 is a JSON list"),
        ("qasper.jsonl", json.dumps({"pred": "Ann"}), "qasper.jsonl:1 lacks answers"),
        ("qasper.jsonl", json.dumps(ROW | {"pred": None}), "pred=null"),
        ("qasper.jsonl", json.dumps(ROW | {"answers": []}), "answers=[]"),
        ("qasper.jsonl", json.dumps(ROW | {"answers": "Ann"}), 'answers="Ann"'),
        ("trec.jsonl", json.dumps(ROW), "all_classes=null"),
        ("trec.jsonl", json.dumps({"pred": "Ann", "answers": ["Ann"]}), "lacks all_classes"),
        ("passage_retrieval_en.jsonl", json.dumps(ROW), "row 0 of passage_retrieval_en"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "result.json").exists()


def test_only_longbench_e_needs_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "qasper.jsonl", {"pred": "Ann", "answers": ["Ann"]})
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert main([str(tmp_path), "--e", "--out", str(tmp_path / "e")]) == 1
    assert "lacks length" in capsys.readouterr().err
    write(tmp_path / "qasper.jsonl", ROW | {"length": None})
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert main([str(tmp_path), "--e", "--out", str(tmp_path / "e")]) == 1
    assert "length=null" in capsys.readouterr().err


def test_paths_without_predictions_and_tasks_given_twice_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "holds no <task>.jsonl" in capsys.readouterr().err
    assert main([str(tmp_path / "gone")]) == 1
    assert "is no file or folder" in capsys.readouterr().err
    write(tmp_path / "qasper.jsonl", ROW)
    write(tmp_path / "qasper.old.jsonl", ROW)
    assert main([str(tmp_path)]) == 1
    assert "are both task qasper" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "qasper.jsonl", ROW)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main([str(tmp_path / "qasper.jsonl"), "--out", str(tmp_path / "file" / "below")]) == 1
    error = capsys.readouterr().err
    assert "cannot be written" in error and "--out DIR" in error and error.count("\n") == 1


def test_fuzz_is_named_in_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.metrics._levenshtein", lambda: indel_similarity)
    write(tmp_path / "lcc.jsonl", ROW | {"pred": "tide", "answers": ["diet"]})
    assert main([str(tmp_path), "--fuzz", "levenshtein"]) == 0
    details = read(tmp_path / "scores.json")["lcc"]
    assert (details["score"], details["fuzz"]) == (50.0, "levenshtein")
    assert METRICS["code_sim"]("tide", "diet", None) == 0.25


def test_the_script_starts_without_torch_and_explains_itself() -> None:
    code = "import sys, scripts.score; print(sorted({'torch', 'transformers', 'datasets', 'rouge'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    helped = subprocess.run(
        [sys.executable, "-m", "scripts.score", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m scripts.score pred/llama3-8b-instruct" in helped.stdout
