"""`scores.json`: what a run's records say, on LongBench's 0-100 scale. Derived, so it can be rebuilt at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.json_files import write_json
from eval.longbench import bucket, score_buckets, score_task
from eval.records import Record
from eval.statistics import bootstrap_mean, quantile

SCORES_FILE = "scores.json"

_Reader = Callable[[Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class Header:
    """What `scores.json` says of its run besides numbers.

    budget: as the user gave it; None for methods that have none.
    metric_backend: what the metric was computed with where that changes scores (`difflib` or `Levenshtein`).
    e: LongBench-E, scored by length bucket.
    miniature: generated rows; such scores never stand beside real ones.
    """

    model: str
    task: str
    method: str
    budget: str | float | None
    protocol: str
    metric: str
    miniature: bool
    e: bool = False
    metric_backend: str | None = None


def derive(header: Header, records: Mapping[str, Record], ids: Sequence[str]) -> dict[str, Any]:
    """The content of `scores.json`, over the samples `ids` (in dataset order) and no others.

    score, ci95: 0-100 over the answered samples, rounded as LongBench does; null where there is none. A failed or
        missing sample is not scored as 0, it is counted, and whoever prints the score must look at these counts.
    n, failed, missing: answered, failed and not yet asked samples; they add up to n_expected.
    turns: score, ci95 and n of the first, second ... question of each row, null where rows have one question.
    groups: the same of each part of the task that samples name, null where they name none.
    buckets: LongBench-E only: score, ci95 and n of each length bucket, null where it is empty.
    ledger: see `summarise`; seconds, bytes and tokens over the answered samples.

    Raises ValueError for an id that stands twice in `ids`.
    """
    if len(set(ids)) != len(ids):
        twice = next(name for position, name in enumerate(ids) if name in ids[:position])
        raise ValueError(f"id {twice!r} stands twice among the ids to score; ids are unique in a task")
    found = [records[name] for name in ids if name in records]
    answered = [record for record in found if record.error is None]
    return {
        **asdict(header),
        "score": score_task(_scores(answered)) if answered else None,
        "ci95": _interval(answered),
        "n": len(answered),
        "n_expected": len(ids),
        "failed": len(found) - len(answered),
        "missing": len(ids) - len(found),
        "dense_short": sum(record.dense_short for record in answered),
        "truncated": sum(record.truncated for record in answered),
        "turns": _turns(answered),
        "groups": _groups(answered),
        "buckets": _buckets(answered) if header.e else None,
        "ledger": summarise([record.ledger for record in answered]),
    }


def write(folder: Path, scores: Mapping[str, Any]) -> Path:
    """Writes `folder/scores.json` in one step. Shards do it within `eval.run_folder.exclusive`, reading included."""
    path = folder / SCORES_FILE
    write_json(path, scores)
    return path


def _scores(records: Sequence[Record]) -> list[float]:
    return [record.score for record in records if record.score is not None]


def _interval(records: Sequence[Record]) -> list[float] | None:
    interval = bootstrap_mean(_scores(records), clusters=[record.context_sha or record.id for record in records])
    return None if interval is None else [round(100 * bound, 2) for bound in interval]


def _buckets(records: Sequence[Record]) -> dict[str, Any]:
    official = score_buckets(_scores(records), [record.length for record in records])
    return {name: _part_of(score, [r for r in records if bucket(r.length) == name]) for name, score in official.items()}


def _turns(records: Sequence[Record]) -> dict[str, Any] | None:
    numbers = sorted({record.turn for record in records if record.turn is not None})
    parts = {str(number): [record for record in records if record.turn == number] for number in numbers}
    return {name: _part_of(score_task(_scores(part)), part) for name, part in parts.items()} or None


def _groups(records: Sequence[Record]) -> dict[str, Any] | None:
    names = sorted({name for record in records for name in record.groups or ()})
    parts = {name: [record for record in records if name in (record.groups or ())] for name in names}
    return {name: _part_of(score_task(_scores(part)), part) for name, part in parts.items()} or None


def _part_of(score: float | None, records: Sequence[Record]) -> dict[str, Any] | None:
    return None if score is None else {"score": score, "ci95": _interval(records), "n": len(records)}


def summarise(ledgers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the answers cost: mean, median and n (samples that have the number) of each quantity; null where n is 0.

    attended_tokens, budget_tokens: tokens a step read, or might read, per KV head; attended_max is the largest step.
    resident: bytes at the end, by part; `device` is K + V + index, `full` the K + V of a full cache.
    moved: bytes a decode step reads, by part; `device` is KV + index, `host` what crosses the host link.
    ttft_s, tt2t_s, prefill_s, build_s, wait_s: seconds a sample.
    tpot_s: median and p90 seconds over all decode steps of all samples, n steps.
    store: "real", "simulated", or "mixed". decode: how steps were done, and why not as asked; all ways that there were.
    """
    return {
        "attended_tokens": _summary(ledgers, _part("attended_mean")),
        "attended_max": _largest(ledgers, _part("attended_max")),
        "budget_tokens": _summary(ledgers, _part("budget_tokens")),
        "resident": {
            "device": _summary(ledgers, _total("resident", "k", "v", "index")),
            **{part: _summary(ledgers, _part("resident", part)) for part in ("k", "v", "index", "host")},
            "full": _summary(ledgers, _part("resident_full")),
        },
        "moved": {
            "device": _summary(ledgers, _total("moved", "kv", "index")),
            **{part: _summary(ledgers, _part("moved", part)) for part in ("kv", "index", "host")},
        },
        **{name: _summary(ledgers, _part(name)) for name in ("ttft_s", "tt2t_s", "prefill_s", "build_s", "wait_s")},
        "tpot_s": _steps([step for ledger in ledgers for step in ledger.get("tpot_s") or ()]),
        "store": _store(ledgers),
        "decode": "; ".join(sorted({str(ledger["decode"]) for ledger in ledgers if "decode" in ledger})) or None,
    }


def _part(*keys: str) -> _Reader:
    def read(ledger: Mapping[str, Any]) -> float | None:
        value: Any = ledger
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, int | float) else None

    return read


def _total(group: str, *parts: str) -> _Reader:
    """A sum that is missing as soon as one of its parts is."""

    def read(ledger: Mapping[str, Any]) -> float | None:
        values = [value for part in parts if (value := _part(group, part)(ledger)) is not None]
        return sum(values) if len(values) == len(parts) else None

    return read


def _read_all(ledgers: Sequence[Mapping[str, Any]], read: _Reader) -> list[float]:
    return [value for ledger in ledgers if (value := read(ledger)) is not None]


def _summary(ledgers: Sequence[Mapping[str, Any]], read: _Reader) -> dict[str, Any]:
    values = _read_all(ledgers, read)
    mean = sum(values) / len(values) if values else None
    return {"mean": mean, "median": quantile(values, 0.5), "n": len(values)}


def _largest(ledgers: Sequence[Mapping[str, Any]], read: _Reader) -> float | None:
    return max(_read_all(ledgers, read), default=None)


def _steps(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median": quantile(seconds, 0.5), "p90": quantile(seconds, 0.9), "n": len(seconds)}


def _store(ledgers: Sequence[Mapping[str, Any]]) -> str | None:
    stores = {str(ledger["store"]) for ledger in ledgers if ledger.get("store") is not None}
    return stores.pop() if len(stores) == 1 else ("mixed" if stores else None)
