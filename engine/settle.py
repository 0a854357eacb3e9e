"""The end of an answer: its audit, and the ledger of what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from engine.arm import Arm, SelectiveLayer, SlidingLayer
from engine.ledger import Clock, Ledger, audit, held_bytes, mean_notes
from engine.model import Model
from engine.static import FixedLayer

MOVED = ("kv", "index", "host", "misses", "refills", "codes", "spills")


@dataclass(frozen=True)
class Answer:
    """The new tokens of one arm, the stop token included, and what they cost.

    own_bytes: what it held on the device at the end beside the shared prefix.
    """

    tokens: tuple[int, ...]
    ledger: Ledger
    dense_short: bool
    own_bytes: int


@dataclass(frozen=True)
class Marks:
    """Numbers of the clock's marks: start, prefilled, indexes built, background work done, first token, steps.

    reused: the prefill was an earlier question's.
    """

    start: int
    prefilled: int
    built: int
    waited: int
    first: int
    steps: list[int]
    question_after: bool
    reused: bool = False


@dataclass(frozen=True)
class End:
    """What all arms of a run have in common when it is over. shared: the storages of the prefix; decode: see Ledger."""

    clock: Clock
    marks: Marks
    num_arms: int
    shared: frozenset[StorageWeakRef]
    decode: str


def settle(
    model: Model, arm: Arm, selective: Sequence[SelectiveLayer | FixedLayer], tokens: list[int], end: End
) -> Answer:
    """Audit an arm, given its selectable layers, raise if it failed, and write its ledger."""
    plan, alone = arm.plan, end.num_arms == 1 and arm.plan.watch is None
    held = [pair for layer in selective for pair in layer.tensors()]
    num_steps = len(tokens) - 1
    prompt_audits = [layer.prompt_audit for layer in selective if layer.prompt_audit.counts]
    audit(plan.name, plan.method, plan.budget, prompt_audits, 0)
    mean, most = audit(plan.name, plan.method, plan.budget, [layer.audit for layer in selective], num_steps)
    steps = max(1, num_steps)
    traffic = [layer.traffic for layer in selective]
    sliding = [t for layer in arm.layers if isinstance(layer, SlidingLayer) for t in (layer.keys, layer.values)]
    seconds = _seconds(end.clock, end.marks, plan.active.own_prefill) if alone else Seconds()
    ledger = Ledger(
        attended_mean=mean,
        attended_max=most,
        num_steps=num_steps,
        budget_tokens=None if plan.budget is None or plan.method.kind == "none" else plan.budget.total,
        extra_tokens=0 if plan.budget is None else plan.budget.extra,
        resident=held_bytes(held),
        resident_full=arm.length * model.bytes_per_token,
        resident_sliding=sum(t.numel() * t.element_size() for t in sliding),
        moved={name: sum(getattr(t, name) for t in traffic) / steps for name in MOVED},
        cache_lookups=sum(t.lookups for t in traffic),
        cache_hits=sum(t.hits for t in traffic),
        hit_rates=[t.hits / t.lookups for t in traffic] if all(t.lookups for t in traffic) else None,
        store="real" if all(layer.real for layer in selective) else "simulated",
        notes=mean_notes([layer.notes() for layer in selective]),
        peak_bytes=torch.cuda.max_memory_allocated(model.device) if alone and model.device.type == "cuda" else None,
        num_arms=end.num_arms,
        decode=end.decode,
        **asdict(seconds),
    )
    own = held_bytes([(tier, tensor) for tier, tensor in held if tier != "host"], end.shared)
    return Answer(tuple(tokens), ledger, plan.short, sum(own.values()))


@dataclass(frozen=True)
class Seconds:
    """The ledger's times; all None where arms shared a run."""

    prefill_s: float | None = None
    build_s: float | None = None
    wait_s: float | None = None
    ttft_s: float | None = None
    tt2t_s: float | None = None
    tpot_s: list[float] | None = None


def _seconds(clock: Clock, marks: Marks, own_prefill: bool) -> Seconds:
    prefilled = marks.built if own_prefill else marks.prefilled
    build, wait = clock.seconds(prefilled, marks.built), clock.seconds(marks.built, marks.waited)
    ends = [marks.first, *marks.steps]
    # After a dense prefill the first token does not wait for the index; it does where the question comes after it.
    later = 0.0 if marks.question_after else build + wait
    return Seconds(
        prefill_s=None if marks.reused else clock.seconds(marks.start, prefilled),
        build_s=build,
        wait_s=wait,
        ttft_s=None if marks.reused else clock.seconds(marks.start, marks.first) - later,
        tt2t_s=clock.seconds(marks.start, ends[1]) if len(ends) > 1 and not marks.reused else None,
        tpot_s=[clock.seconds(a, b) for a, b in pairwise(ends)],
    )
