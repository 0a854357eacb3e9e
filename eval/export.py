"""Predictions in LongBench's own file layout: its scorer reads ours, and we read its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.base import Sample, Task
from eval.json_files import encode, strict_json, write_bytes
from eval.records import Record
from eval.run_folder import safe_name


class Prediction(NamedTuple):
    """One row of a LongBench prediction file; `length` is None in files that leave it out."""

    prediction: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None
    length: int | None


def prediction_path(root: Path, model: str, task: Task, miniature: bool = False) -> Path:
    """Where LongBench looks: `pred/<model>/<task>.jsonl`, `pred_e` for LongBench-E, `pred_miniature` for our rows."""
    folder = "pred_miniature" if miniature else "pred_e" if task.e else "pred"
    return root / folder / safe_name(model) / f"{task.name}.jsonl"


def write_predictions(path: Path, samples: Sequence[Sample], records: Mapping[str, Record]) -> None:
    """Writes the predictions on `samples`, in their order, replacing the file in one step.

    Raises ValueError where a sample failed or was not asked: the official scorer would average over the rest.
    """
    if lacking := [sample.id for sample in samples if sample.id not in records or records[sample.id].error is not None]:
        raise ValueError(
            f"{len(lacking)} of {len(samples)} samples have no prediction (first: {lacking[0]!r}); "
            "run again to ask them, or export fewer samples"
        )
    text = "".join(strict_json(_row(sample, records[sample.id]), sample.id) + "\n" for sample in samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode(text))


def _row(sample: Sample, record: Record) -> dict[str, Any]:
    return {
        "pred": record.prediction,
        "answers": list(sample.answers),
        "all_classes": None if sample.all_classes is None else list(sample.all_classes),
        "length": sample.length,
    }


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """The rows of a LongBench prediction file, in file order (which need not be the data's: rows carry no id).

    Raises ValueError that names file and line for a row that is none.
    """
    lines = path.read_bytes().split(b"\n")
    return tuple(_read(path, number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _read(path: Path, number: int, line: bytes) -> Prediction:
    try:
        row = json.loads(line)
        classes = row.get("all_classes")
        prediction = Prediction(row["pred"], tuple(row["answers"]), classes and tuple(classes), row.get("length"))
        if not isinstance(prediction.prediction, str):
            raise TypeError(f"pred is {prediction.prediction!r}, not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}:{number} is no LongBench prediction ({error!r}); it needs pred and answers"
        ) from error
    return prediction
