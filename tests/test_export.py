"""LongBench's prediction files, written and read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.base import Sample, Task
from eval.export import prediction_path, write_predictions
from eval.longbench import Prediction, read_predictions
from eval.records import Record
from tests.test_records import answer

TASK = Task("trec", "few-shot", "en", "classification", 64, 200, "{context}{input}")
SAMPLES = (
    Sample("b", "c", "i", ("Paris", "巴黎"), ("x", "y"), 120),
    Sample("a", "c", "i", ("Rome",), ("x",), 130),
)
RECORDS = {"a": answer("a", prediction="Rome\u2028\n!"), "b": answer("b", prediction="巴黎 \ud83d"), "z": answer("z")}


def test_rows_are_longbenchs_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = prediction_path(tmp_path, "org/name", TASK)
    write_predictions(path, SAMPLES, RECORDS)
    assert path == tmp_path / "pred" / "org--name" / "trec.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    assert [list(row) for row in rows] == [["pred", "answers", "all_classes", "length"]] * 2
    assert rows[1] == {"pred": "Rome\u2028\n!", "answers": ["Rome"], "all_classes": ["x"], "length": 130}
    assert "巴黎" in path.read_text(encoding="utf-8")
    assert read_predictions(path, TASK) == (
        Prediction("巴黎 \ud83d", ("Paris", "巴黎"), ("x", "y"), 120),
        Prediction("Rome\u2028\n!", ("Rome",), ("x",), 130),
    )


def test_e_and_miniature_rows_have_folders_of_their_own(tmp_path: Path) -> None:
    assert prediction_path(tmp_path, "m", replace(TASK, e=True)) == tmp_path / "pred_e" / "m" / "trec.jsonl"
    assert prediction_path(tmp_path, "m", TASK, miniature=True) == tmp_path / "pred_miniature" / "m" / "trec.jsonl"


@pytest.mark.parametrize("found", [{"b": RECORDS["b"]}, {**RECORDS, "a": Record.failed("a", "boom", 1)}])
def test_holes_are_not_exported(tmp_path: Path, found: dict[str, Record]) -> None:
    with pytest.raises(ValueError, match=r"1 of 2 samples have no prediction \(first: 'a'\)"):
        write_predictions(tmp_path / "x.jsonl", SAMPLES, found)
    assert not (tmp_path / "x.jsonl").exists()
