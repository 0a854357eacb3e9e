"""Seconds to the first and second token with a real prefill: attention, observers, offload, index, waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import torch

from engine.arm import Plan
from engine.generate import NO_BUDGET, Question, Stop, answer
from engine.ledger import Ledger
from engine.memory import is_out_of_memory, release
from engine.model import Model
from methods.store import KVStore
from scripts.speed.bandwidth import seconds
from scripts.speed.observing import watched
from scripts.speed.report import Sheet
from scripts.speed.words import REFUSED, Asked, Contender, plan, prompt, ready, refusal

TWO_TOKENS = Stop(2, frozenset())


@dataclass(frozen=True)
class PrefillRow:
    """One method at one length, medians in seconds; where it could not be run, `note` says why.

    prefill_s: with what observers add. offload_s: making all layers' stores, timed apart on random tensors. index_s:
    what is built behind the prefill besides. wait_s: for index work in the background. ttft_s: to the first token,
    which waits for no index; tt2t_s: to the second, which does. adds: prefill, offload, index and waiting, over full's
    in this run, as a part of full's. scoring: what observers cost as a part of the dense attention (one layer).
    """

    model: str
    method: str
    budget: str
    tokens: int
    prefill_s: float | None = None
    offload_s: float | None = None
    index_s: float | None = None
    wait_s: float | None = None
    ttft_s: float | None = None
    tt2t_s: float | None = None
    adds: float | None = None
    scoring: float | None = None
    peak_bytes: int | None = None
    note: str = ""


def prefills(
    model: Model,
    asked: Asked,
    lengths: Sequence[int],
    repeats: int,
    sheet: Sheet[PrefillRow],
    fits: Callable[[float], bool] = lambda seconds: True,
) -> list[int]:
    """Rows of all contenders, length by length, by turns. Returns the lengths for which no time is left."""
    contenders = []
    for c in asked.contenders:
        reason = refusal(model, c)
        if reason is None:
            contenders.append(ready(model, c, max(lengths)))
        else:
            sheet.add(PrefillRow(asked.label, c.title, c.budget, max(lengths), note=f"{REFUSED}{reason}"))
    with ExitStack() as stack:
        for contender in contenders:
            stack.enter_context(contender.method.running())
        for c in contenders:  # starting processes and torch's first calls are no part of the figures
            asked_once(model, asked, c, min(512, min(lengths)))
        took = 0.0
        for number, length in enumerate(lengths):
            if not fits(took * max(1.0, (length / lengths[max(0, number - 1)]) ** 2)):
                return list(lengths[number:])
            took = seconds(model.device, lambda n=length: add_rows(model, asked, contenders, n, repeats, sheet))  # type: ignore[misc]
    return []


def add_rows(
    model: Model, asked: Asked, contenders: Sequence[Contender], length: int, repeats: int, sheet: Sheet[PrefillRow]
) -> None:
    """All rows of one length."""
    found: dict[Contender, list[Ledger] | None] = {c: [] for c in contenders}
    for _, c in product(range(repeats), contenders):
        ledger = asked_once(model, asked, c, length)
        past = found[c]
        found[c] = None if ledger is None or past is None else [*past, ledger]
    full = next((ledgers for c, ledgers in found.items() if c.name == "full" and ledgers), None)
    for c, ledgers in found.items():
        blank = PrefillRow(asked.label, c.title, c.budget, length)
        sheet.add(replace(blank, note="out of memory") if ledgers is None else row_of(model, c, blank, ledgers, full))


def asked_once(model: Model, asked: Asked, contender: Contender, length: int) -> Ledger | None:
    """The ledger of two tokens behind a prompt; None where memory ran out."""
    question = Question(prompt(model, asked.spec, length), contender.settings.seed, TWO_TOKENS)
    try:
        return answer(model, question, [plan(model, contender, length)])[0].ledger
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    release()
    return None


def row_of(
    model: Model, contender: Contender, blank: PrefillRow, ledgers: Sequence[Ledger], full: Sequence[Ledger] | None
) -> PrefillRow:
    """Medians of a contender's runs."""
    asked = plan(model, contender, blank.tokens)
    build, ours = middle(ledgers, "build_s"), behind(ledgers)
    offload = seconds(model.device, lambda: stores(model, asked, blank.tokens))
    seen = None if asked.active.own_prefill else watched(model, contender, blank.tokens, 1 + (blank.tokens <= 8192))
    notes = ["dense_short"] if asked.short else []
    if asked.active.own_prefill:  # its indexes grow with the prompt: nothing is left to tell apart
        notes.append("prefills through itself")
    return replace(
        blank,
        prefill_s=middle(ledgers, "prefill_s"),
        offload_s=None if asked.active.own_prefill else min(offload, build),
        index_s=None if asked.active.own_prefill else max(0.0, build - offload),
        wait_s=middle(ledgers, "wait_s"),
        ttft_s=middle(ledgers, "ttft_s"),
        tt2t_s=middle(ledgers, "tt2t_s"),
        adds=None if full is None else ours / behind(full) - 1,
        scoring=None if seen is None else seen.share,
        peak_bytes=max((ledger.peak_bytes or 0 for ledger in ledgers), default=0) or None,
        note=", ".join(notes),
    )


def middle(ledgers: Sequence[Ledger], name: str) -> float:
    """The median of a time."""
    return median(float(getattr(ledger, name)) for ledger in ledgers)


def behind(ledgers: Sequence[Ledger]) -> float:
    """Seconds until the second token can be asked for."""
    return sum(middle(ledgers, name) for name in ("prefill_s", "build_s", "wait_s"))


@torch.inference_mode()
def stores(model: Model, asked: Plan, num_tokens: int) -> list[KVStore]:
    """The stores of all selectable layers of a prompt, which move it to where it lives."""
    layers = [la for la, g in zip(model.layers(0), model.geometry, strict=True) if g.window is None]
    shape = layers[0].num_kv_heads, num_tokens, layers[0].head_dim
    k, v = (torch.randn(shape, dtype=layers[0].dtype, device=layers[0].device) for _ in range(2))
    budgets = asked.active.budgets(asked.budget or NO_BUDGET, len(layers), num_tokens)
    return [asked.active.store(layer, budget, k, v) for layer, budget in zip(layers, budgets, strict=True)]
