"""What a finished run prints: its score and its cost in one small table, and what to type next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.job import Work
from eval.records import read_records
from eval.units import in_bytes, in_time

COMPARED = ("full", "oracle", "pqcache", "window")


def print_scores(console: Console, work: Work, scores: Mapping[str, Any]) -> None:
    """The table of one run."""
    label = " · MINIATURE, not LongBench" if scores["miniature"] else ""
    title = f"{scores['method']} on {scores['task']} with {scores['model']}{label}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in rows(work, scores):
        table.add_row(name, text)
    console.print(table)
    for line in [*warnings(scores), *failures(work, scores)]:
        console.print(line, style="bold red", markup=False, soft_wrap=True)
    console.print(f"next: {next_command(work)}", markup=False, soft_wrap=True)


def rows(work: Work, scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of each line; a missing number is a dash."""
    cost = scores["ledger"]
    share = _ratio(cost["resident"]["device"]["mean"], cost["resident"]["full"]["mean"])
    parts = " · ".join(_bytes(_total(cost, *tiers)) for tiers in (("k", "v"), ("index",), ("host",)))
    moved = cost["moved"]
    budget = "none" if scores["budget"] is None else f"{scores['budget']}, sink {work.job.settings.sink} on top"
    return [
        ("score", f"{_score(scores)} · {scores['metric']}, n={scores['n']} of {scores['n_expected']}"),
        *((f"  by {kind[:-1]}", _parts(scores[kind])) for kind in ("turns", "groups") if scores.get(kind)),
        ("budget", f"{budget} · protocol {scores['protocol']}"),
        ("tokens attended", f"{_number(cost['attended_tokens']['mean'])} a step and KV head"),
        ("bytes resident", f"{_bytes(cost['resident']['device']['mean'])}{share} · store {cost['store'] or '–'}"),
        ("  K+V, index, host", parts),
        ("bytes moved a step", f"{_bytes(moved['device']['mean'])}, host link {_bytes(moved['host']['mean'])}"),
        ("TTFT, TT2T", f"{_seconds(cost['ttft_s']['median'])}, {_seconds(cost['tt2t_s']['median'])} (median)"),
        ("TPOT", f"{_seconds(cost['tpot_s']['median'])} median, {_seconds(cost['tpot_s']['p90'])} p90"),
        *([("  steps", cost["decode"])] if cost.get("decode") not in (None, "eager") else []),
    ]


def _parts(parts: Mapping[str, Mapping[str, Any]]) -> str:
    return " · ".join(f"{name}: {part['score']:.1f}, n={part['n']}" for name, part in parts.items())


def warnings(scores: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the score."""
    out = []
    if scores["failed"]:
        out.append(f"{scores['failed']} samples FAILED and are not in the score; the same command asks them again")
    if scores["missing"]:
        out.append(f"{scores['missing']} samples are not asked yet; the same command goes on")
    if scores["dense_short"]:
        out.append(f"{scores['dense_short']} prompts were within the budget and were answered with the full cache")
    return out


def failures(work: Work, scores: Mapping[str, Any]) -> list[str]:
    """Why the first of the failed samples failed."""
    records = read_records(work.folder) if scores["failed"] else {}
    for sample in work.samples:
        error = records[sample.id].error if sample.id in records else None
        if error is not None:
            return [f"first failure: {sample.id}: {' '.join(error.split())} (all are in {work.folder}/records.jsonl)"]
    return []


def next_command(work: Work) -> str:
    """The first of the usual comparisons that has no results yet, or a budget curve; the rest of the command stays."""
    root = work.folder.parent.parent
    done = {path.parent.name for path in root.glob("*/*") if (path / "scores.json").exists()}
    argv = [word for word in work.job.argv if not re.match(r"[~+]*method\b", word)]
    for method in COMPARED:
        if method not in done:
            return shlex.join(["python", "run.py", f"method={method}", *argv])
    # A sweep's arms share runs, which are decoded eagerly.
    words = [word for word in argv if not word.startswith(("-", "budget=", "decode="))]
    curve = ["method=oracle,pqcache,h2o,sparq,infllm", "budget=0.02,0.05,0.1,0.2"]
    return shlex.join(["python", "run.py", "-m", *curve, *words])


def _score(scores: Mapping[str, Any]) -> str:
    if scores["score"] is None:
        return "–"
    interval = scores["ci95"]
    return f"{scores['score']:.2f}" + ("" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}] 95 %")


def _total(cost: Mapping[str, Any], *parts: str) -> float | None:
    found = [cost["resident"][part]["mean"] for part in parts]
    return None if None in found else sum(found)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else in_time(value)


def _bytes(value: float | None) -> str:
    return "–" if value is None else in_bytes(value)


def _ratio(part: float | None, whole: float | None) -> str:
    return "" if part is None or not whole else f", {100 * part / whole:.0f} % of the full cache"
