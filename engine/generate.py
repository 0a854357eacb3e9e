"""The loop: one dense prefill, then greedy decoding of all arms in lockstep, with explicit positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.arm import Arm, Lockstep, Plan, SelectiveLayer, SlidingLayer
from engine.attention import Dense
from engine.kept import Kept
from engine.ledger import Clock, storages
from engine.model import Model
from engine.prefill import LayerPrefill, Prefill, Prefix
from engine.seam import forward
from engine.settle import Answer as Answer
from engine.settle import End, Marks, settle
from engine.static import Static, begin
from methods.base import Budget, Layer, Observer

NO_BUDGET = Budget(0, 0, 0)


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
    return [settle(model, arm, its, new, end) for arm, its, new in zip(arms, layers_of, tokens, strict=True)]


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
