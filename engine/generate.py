"""The loop: one dense prefill, then greedy decoding of all arms in lockstep, with explicit positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from engine.arm import Arm, Lockstep, Plan, SelectiveLayer, SlidingLayer
from engine.attention import Dense
from engine.kept import Kept
from engine.ledger import Clock, Ledger, audit, held_bytes, mean_notes, storages
from engine.model import Model
from engine.prefill import LayerPrefill, Prefill, Prefix
from engine.seam import forward
from engine.static import FixedLayer, Static, begin
from methods.base import Budget, Layer, Observer

NO_BUDGET = Budget(0, 0, 0)
MOVED = ("kv", "index", "host", "misses", "refills", "codes", "spills")


@dataclass(frozen=True)
class Stop:
    """When an answer ends. tokens: any of these ends it and is part of it; before `min_new` tokens they are barred.

    said: whether the tokens so far end it, for what no single token says.
    """

    max_new: int
    tokens: frozenset[int]
    min_new: int = 0
    said: Callable[[Sequence[int]], bool] | None = None

    def over(self, tokens: Sequence[int]) -> bool:
        """Whether the answer ends with the last of these tokens."""
        return tokens[-1] in self.tokens or (self.said is not None and self.said(tokens))


@dataclass(frozen=True)
class Question:
    """A prompt to answer. ids: int64 [n] on the host. seed: of this sample.

    context_end: how many tokens the methods act on before the rest of the prompt passes through the compressed cache
    (protocol question_after); None: all of them.
    decode: how steps are done, one of `engine.static.WAYS`; where an arm cannot be decoded so, its ledger says why.
    """

    ids: Tensor
    seed: int
    stop: Stop
    context_end: int | None = None
    decode: str = "eager"


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
    shared: frozenset[int]
    decode: str


@torch.inference_mode()
def answer(model: Model, question: Question, plans: Sequence[Plan], kept: Kept | None = None) -> list[Answer]:
    """Answers of all arms, in order. Arms with a dense prefill share one; each then decodes greedily.

    kept: where the prefill is kept for the next question on the same context; None lets it go as soon as it can.
    Raises AuditError where a method broke its budget. Times are reported for a single arm only.
    """
    clock = Clock(model.device)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    start = clock.mark()
    num_context = question.context_end or question.ids.shape[0]
    layers = model.layers(question.seed)
    shared = [p for p in plans if not p.active.own_prefill]
    prefix, reused = _prefix(model, layers, question.ids[:num_context], question.seed, shared, kept)
    prefilled = clock.mark()
    arms, logits = [], []
    for plan in plans:
        arm, last = _start(model, layers, question.ids[:num_context], plan, prefix)
        arms.append(arm)
        logits.append(last)
    shared_storages = storages([*prefix.keys, *prefix.values]) if prefix else frozenset()
    prefix = None  # what an arm has dropped is free from here on
    built = clock.mark()
    for layer in (layer for arm in arms for layer in arm.selective):
        layer.index.ready()
    waited = clock.mark()
    later = question.ids[num_context:]
    batch = _feed(model, arms, later) if later.shape[0] else torch.stack(logits)
    for arm in arms:
        arm.begin_decode()
    static, way = begin(question.decode, model, arms, question.stop.max_new)
    tokens, marks = _decode(model, arms, batch, question.stop, clock, static)
    times = Marks(start, prefilled, built, waited, marks[0], marks[1:], later.shape[0] > 0, reused)
    end = End(clock, times, len(plans), shared_storages, way)
    layers_of = [arm.selective if static is None else static.layers for arm in arms]
    return [_settle(model, arm, its, new, end) for arm, its, new in zip(arms, layers_of, tokens, strict=True)]


def _prefix(
    model: Model, layers: Sequence[Layer], ids: Tensor, seed: int, plans: Sequence[Plan], kept: Kept | None
) -> tuple[Prefix | None, bool]:
    """The prefix of ids [n] for these plans, None for no plans, and whether it is one that was kept."""
    if not plans or kept is None:
        return (prefill(model, layers, ids, plans) if plans else None), False
    wanted = [
        frozenset() if geometry.window else frozenset(o.key for p in plans for o in _observers(p, layer))
        for layer, geometry in zip(layers, model.geometry, strict=True)
    ]
    found = kept.find(ids, seed, wanted)
    if found is not None:
        return found, True
    prefix = prefill(model, layers, ids, plans)
    kept.keep(ids, seed, prefix)
    return prefix, False


def prefill(model: Model, layers: Sequence[Layer], ids: Tensor, plans: Sequence[Plan]) -> Prefix:
    """Dense prefill of ids [n] in chunks of `model.prefill_chunk`, seen by the observers of all plans."""
    states = []
    for layer, geometry in zip(layers, model.geometry, strict=True):
        wanted = [] if geometry.window else [o for p in plans for o in _observers(p, layer)]
        how = Dense(model.attention, geometry.window, geometry.sinks)
        states.append(LayerPrefill(layer, how, ids.shape[0], wanted))
    state = Prefill(states)
    logits = torch.zeros(0)
    for start in range(0, ids.shape[0], model.prefill_chunk):
        state.start = start
        chunk = ids[start : start + model.prefill_chunk]
        logits = forward(model.network, chunk[None].to(model.device), start, state)
    return state.finish(logits[0])


def _observers(plan: Plan, layer: Layer) -> tuple[Observer, ...]:
    return plan.active.observers(layer, plan.budget or NO_BUDGET)


def _start(model: Model, layers: Sequence[Layer], ids: Tensor, plan: Plan, prefix: Prefix | None) -> tuple[Arm, Tensor]:
    """An arm that has stored ids [n], and the logits [V] of the last of them."""
    if prefix is not None and not plan.active.own_prefill:
        return make_arm(model, layers, plan, prefix), prefix.logits
    arm = make_arm(model, layers, plan, None)
    for layer in arm.selective:
        layer.store.reserve(ids.shape[0])
    logits = torch.zeros(0)
    for a in range(0, ids.shape[0], model.prefill_chunk):
        logits = _feed(model, [arm], ids[a : a + model.prefill_chunk])
    return arm, logits[0]


def make_arm(model: Model, layers: Sequence[Layer], plan: Plan, prefix: Prefix | None) -> Arm:
    num_tokens = 0 if prefix is None else prefix.num_tokens
    budgets = iter(plan.active.budgets(plan.budget or NO_BUDGET, model.num_selectable, num_tokens))
    states: list[SelectiveLayer | SlidingLayer] = []
    for number, (layer, geometry) in enumerate(zip(layers, model.geometry, strict=True)):
        empty = torch.empty(layer.num_kv_heads, 0, layer.head_dim, dtype=layer.dtype, device=layer.device)
        keys, values = (empty, empty) if prefix is None else (prefix.keys[number], prefix.values[number])
        if geometry.window:
            states.append(SlidingLayer(layer, geometry.window, keys, values, geometry.sinks))
            continue
        state = SelectiveLayer(layer, plan, next(budgets), keys, values, geometry.sinks)
        if prefix is not None:
            state.build(prefix.seen[number])
        states.append(state)
    return Arm(plan, states, 0 if prefix is None else prefix.num_tokens)


def _feed(model: Model, arms: Sequence[Arm], ids: Tensor) -> Tensor:
    """Logits [R,V] after feeding ids, [m] the same for all arms or [R,m]."""
    rows = ids.expand(len(arms), -1).to(model.device)
    state = Lockstep(arms)
    logits = forward(model.network, rows, arms[0].length, state)
    state.advance(rows.shape[1])
    return logits


def _decode(
    model: Model, arms: Sequence[Arm], logits: Tensor, stop: Stop, clock: Clock, static: Static | None
) -> tuple[list[list[int]], list[int]]:
    """Greedy tokens of each arm, and a mark after the first token and each step. Finished rows leave the batch.

    static: what feeds a single arm; None: arms are fed in lockstep.
    """
    tokens: list[list[int]] = [[] for _ in arms]
    rows = list(range(len(arms)))
    marks: list[int] = []
    barred = torch.tensor(sorted(stop.tokens), dtype=torch.long, device=logits.device)
    while True:
        num_new = len(marks) + 1
        if num_new <= stop.min_new:
            logits = logits.index_fill(1, barred, -torch.inf)
        chosen = logits.argmax(-1).tolist()
        marks.append(clock.mark())
        for row, token in zip(rows, chosen, strict=True):
            tokens[row].append(token)
        rows = [row for row in rows if not stop.over(tokens[row])]
        if not rows or num_new >= stop.max_new:
            return tokens, marks
        latest = torch.tensor([[tokens[row][-1]] for row in rows])
        logits = _feed(model, [arms[row] for row in rows], latest) if static is None else static.step(latest)


def _settle(
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
