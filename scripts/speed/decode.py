"""Seconds of a decode step at fixed cache lengths, all methods by turns, each beside its floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from statistics import median, quantiles
from textwrap import shorten
from typing import TypeVar

import torch

from engine.filled import Sample, filled, sampled
from engine.memory import available, is_out_of_memory, release
from engine.model import Model
from engine.prefill import Prefix
from scripts.speed.bandwidth import Bandwidth
from scripts.speed.memory import peak_alone, weights_read
from scripts.speed.racer import Racer
from scripts.speed.report import Sheet
from scripts.speed.rows import ROUNDS, DecodeRow, How
from scripts.speed.words import REFUSED, Asked, Contender, plan, prompt, ready, refusal

T = TypeVar("T")


@torch.inference_mode()
def decode(
    model: Model,
    asked: Asked,
    lengths: Sequence[int],
    how: How,
    speed: Bandwidth,
    sheet: Sheet[DecodeRow],
    fits: Callable[[float], bool] = lambda seconds: True,
) -> list[int]:
    """Rows of all contenders, length by length. Returns the lengths for which, by the one before, there was no time.

    Raises ValueError for a method that cannot be run from a filled cache.
    """
    contenders = []
    for c in asked.contenders:
        reason = refusal(model, c)
        if reason is None:
            contenders.append(ready(model, c, max(lengths)))
            continue
        for way, length in product(how.ways, lengths):
            sheet.add(DecodeRow(asked.label, c.title, c.budget, way, length, 1, note=f"{REFUSED}{reason}"))
    own = next((c for c in contenders if c.method.own_prefill), None)
    if own is not None:
        raise ValueError(
            f"{own.name} sends the prompt through itself and cannot be filled: give {own.name}.prefill=dense"
        )
    with ExitStack() as stack:
        for contender in contenders:
            stack.enter_context(contender.method.running())
        sample = sampled(model, prompt(model, asked.spec, how.sample))
        per_token, skipped = 0.0, []
        for length in lengths:
            if not fits(per_token * length):
                skipped.append(length)
                continue
            began = time.monotonic()
            for row in at_length(Stage(model, asked.label, sample, length, how, speed), contenders):
                sheet.add(row)
            per_token = (time.monotonic() - began) / length
    return skipped


@dataclass(frozen=True)
class Stage:
    """What all racers of one length have in common."""

    model: Model
    label: str
    sample: Sample
    length: int
    how: How
    speed: Bandwidth

    def blank(self, entry: Entry, note: str = "") -> DecodeRow:
        """A row without figures."""
        c = entry.contender
        return DecodeRow(self.label, c.title, c.budget, entry.way, self.length, entry.num_rows, note=note)

    @property
    def full_bytes(self) -> int:
        """K and V of the full cache."""
        return self.length * self.model.bytes_per_token


@dataclass(frozen=True)
class Entry:
    """Who races: a contender, decoded in one way, with so many rows."""

    contender: Contender
    way: str
    num_rows: int = 1


def at_length(stage: Stage, contenders: Sequence[Contender]) -> Iterator[DecodeRow]:
    """Batch 1; then, if wanted, each method's peak, alone; then the batches of equal memory."""
    rows = {}
    for entry, row in raced(stage, [Entry(c, way) for c in contenders for way in stage.how.ways]):
        rows[entry] = row
        if not stage.how.memory:
            yield row
    if stage.how.memory:  # nothing of the race is held any more
        yield from (with_peak(stage, entry, row) for entry, row in rows.items())
    if stage.how.batch == "memory":
        held: dict[Contender, int] = {}
        for entry, row in rows.items():
            held[entry.contender] = max(held.get(entry.contender, 1), row.resident_bytes or 1)
        many = [
            Entry(c, "eager", 1 if c.name == "full" else int(stage.full_bytes // n)) for c, n in held.items() if n > 1
        ]
        for _, row in raced(stage, [e for e in many if e.num_rows > 1 or e.contender.name == "full"]):
            yield replace(row, note=f"equal memory{', ' if row.note else ''}{row.note}")


def raced(stage: Stage, entries: Sequence[Entry]) -> Iterator[tuple[Entry, DecodeRow]]:
    """The rows of all entries, in heats of as many as there is memory for."""
    plans = [plan(stage.model, entry.contender, stage.length) for entry in entries]
    seed = entries[0].contender.settings.seed
    prefix = attempt(lambda: filled(stage.model, stage.sample, stage.length, plans, seed))
    if isinstance(prefix, str):
        yield from ((entry, stage.blank(entry, f"the full cache: {prefix}")) for entry in entries)
        return
    waiting, full = list(entries), None
    while waiting:
        rows, full = heat(stage, prefix, waiting, full)
        release()
        yield from rows.items()


def heat(
    stage: Stage, prefix: Prefix, waiting: list[Entry], full: Times | None
) -> tuple[dict[Entry, DecodeRow], Times | None]:
    """Rows of those in front, who are taken from `waiting`, and the times of full at its best so far.

    They are stepped by turns, so that the machine's noise hits all alike.
    """
    racers: dict[Entry, Racer | str] = {}
    # A racer may hold a copy of the whole cache, and for a while parts of it in float32.
    while waiting and (not racers or available(stage.model) > 2 * stage.full_bytes):
        entry = waiting.pop(0)
        racers[entry] = attempt(lambda e=entry: racer_of(stage, e, prefix))  # type: ignore[misc]
    racers = {e: r for e, r in racers.items() if isinstance(r, str) or wanted(stage, e, r)}
    for _, entry in product(range(ROUNDS), list(racers)):
        racer = racers[entry]
        if not isinstance(racer, str):
            racers[entry] = attempt(lambda r=racer: r.burst(stage.how.burst))  # type: ignore[misc]
    fulls = [r for e, r in racers.items() if e.contender.name == "full" and e.num_rows == 1]
    full = min([Times.of(r) for r in fulls if not isinstance(r, str)], default=full)
    return {e: stage.blank(e, r) if isinstance(r, str) else row_of(stage, e, r, full) for e, r in racers.items()}, full


def racer_of(stage: Stage, entry: Entry, prefix: Prefix) -> Racer:
    """A racer of an entry."""
    return Racer(stage.model, entry.contender, prefix, entry.num_rows, entry.way, stage.how.room)


def wanted(stage: Stage, entry: Entry, racer: Racer) -> bool:
    """Whether a racer runs as nobody else does: where a way is not to be had, it is decoded eagerly, once."""
    return racer.now.said == entry.way or "eager" not in stage.how.ways


def attempt(make: Callable[[], T]) -> T | str:
    """What a call makes, or in a line why it failed: one method that breaks must not cost the others their figures."""
    try:
        return make()
    except Exception as error:
        memory = is_out_of_memory(error)
        reason = "out of memory" if memory else f"{type(error).__name__}: {shorten(str(error), 200, placeholder=' …')}"
    release()
    return reason


@dataclass(frozen=True, order=True)
class Times:
    """Seconds of a step: median, p10, p90; processor: median of its own."""

    step: float
    low: float
    high: float
    processor: float

    @staticmethod
    def of(racer: Racer) -> Times:
        """Of all timed steps."""
        cuts = quantiles(racer.seconds, n=10, method="inclusive")
        return Times(median(racer.seconds), cuts[0], cuts[-1], median(racer.processor))


def row_of(stage: Stage, entry: Entry, racer: Racer, full: Times | None) -> DecodeRow:
    """The figures of a racer; full: those of full at its best, one row."""
    times, host_only = Times.of(racer), stage.model.device.type == "cpu"
    weights = weights_read(stage.model.network)
    kv, index, host = racer.per_step()
    floor = stage.speed.floor(weights + kv + index, host)
    near, far = racer.held()
    return replace(
        stage.blank(entry, racer.note),
        decode=racer.now.said.partition(":")[0],
        tpot_ms=1e3 * times.step,
        p10_ms=1e3 * times.low,
        p90_ms=1e3 * times.high,
        tokens_per_s=entry.num_rows / times.step,
        attended=racer.attended,
        kv_bytes=kv,
        index_bytes=index,
        host_bytes=host,
        weight_bytes=weights,
        resident_bytes=near,
        host_resident_bytes=far,
        floor_ms=1e3 * floor,
        of_floor=times.step / floor,
        of_full=None if full is None else times.step / entry.num_rows / full.step,
        cpu_ms=1e3 * times.processor if host_only else None,
        of_full_cpu=times.processor / entry.num_rows / full.processor if full and host_only else None,
    )


def with_peak(stage: Stage, entry: Entry, row: DecodeRow) -> DecodeRow:
    """The row with its peak and the ledger's sum; as it is where it has no figures."""
    if row.tpot_ms is None:
        return row
    peak = attempt(lambda: peak_alone(stage.model, entry.contender, stage.sample, stage.length, entry.way))
    if isinstance(peak, str):
        return replace(row, note=f"{row.note} peak: {peak}".strip())
    return replace(row, peak_bytes=peak.measured, ledger_bytes=peak.ledger)
