"""Predictions in LongBench's own file layout, so that its scorer reads ours (`eval.longbench` reads such files)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.base import Sample, Task
from eval.json_files import encode, strict_json, write_bytes
from eval.records import Record
from eval.run_folder import safe_name


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
