"""An arm: one method and budget answering a prompt; and the lockstep in which arms decode as rows of a batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention import View, hidden, normalise, read, union, weighted
from engine.diagnose import Watch
from engine.ledger import LayerAudit
from engine.seam import Call
from methods.base import Budget, Layer, Method, Selection, Step
from methods.full import Full
from methods.scores import logits as scaled_logits
from methods.store import KVStore, Part, Traffic


@dataclass(frozen=True)
class Plan:
    """What an arm shall be: a name for messages, a method, and its budget for this prompt.

    budget None: the method knows none (kind "none"), or the prompt is too short for it and is answered densely.
    watch: what shall be seen of its steps besides; their times are then not measured.
    """

    name: str
    method: Method
    budget: Budget | None
    watch: Watch | None = None

    @property
    def active(self) -> Method:
        """The method that really runs: full attention where a prompt is too short to select from."""
        return Full() if self.short else self.method

    @property
    def short(self) -> bool:
        """Whether the prompt is answered densely because it is short."""
        return self.budget is None and self.method.kind != "none"


class SelectiveLayer:
    """One selectable layer of one arm: store, index, and the reading of what the index selects."""

    def __init__(
        self, layer: Layer, plan: Plan, budget: Budget, keys: Tensor, values: Tensor, sinks: Tensor | None
    ) -> None:
        self.layer = layer
        self.method = plan.active
        self.budget = budget
        self.sinks = sinks
        self.store: KVStore = self.method.store(layer, budget, keys, values)
        self.index = self.method.index(layer, self.store, budget)
        self.prompt_audit = self.audit = LayerAudit()
        watch = None if plan.short else plan.watch
        self.watch = None if watch is None else watch.layer(layer, self.method, budget, keys, values, sinks)

    def build(self, seen: Mapping[Hashable, object]) -> None:
        """The dense prefill is over."""
        self.index.build(seen)

    def attend(self, call: Call, row: int, start: int) -> Tensor:
        """m new tokens, the first at position `start`; those of a block share one selection. [H,m,D]."""
        num_new = call.keys.shape[2]
        out = []
        for a in range(0, num_new, self.method.block):
            b = min(a + self.method.block, num_new)
            q, k, v = (t[row, :, a:b] for t in (call.queries, call.keys, call.values))
            self.store.append(k, v, start + a)
            self.index.extend(k, v, start + a)
            if self.watch is not None:
                self.watch.append(k, v, start + a)
            out.append(self._step(q, start + a))
        return out[0] if len(out) == 1 else torch.cat(out, 1)

    def _step(self, queries: Tensor, start: int) -> Tensor:
        positions = torch.arange(start, start + queries.shape[1], device=queries.device)
        end = max(0, start - self.budget.local)
        step = Step(queries, positions, start, self.budget.sink, end, self.budget.middle)
        selection = self.index.select(step)
        parts, own = self._parts(step, selection)
        view = View(self.method.distance, self.budget.local, own)
        y, seen, weights = read(self.layer, step, parts, view, self.sinks, selection.rest)
        self.audit.step(step, seen, own)
        if self.watch is not None:
            self.watch.step(step, seen, own, y)
        if self.method.observes:
            self.index.observe(step, seen, weights)
        return y

    def _parts(self, step: Step, selection: Selection) -> tuple[list[Part], Tensor | None]:
        """What a step reads and, where query heads chose for themselves, which columns each attends: bool [H,r]."""
        chosen = selection.positions
        if chosen is None:
            return self.store.held(), None
        self.audit.selected(step, chosen)
        if chosen.shape[0] == self.layer.num_kv_heads:
            return [self._gather(step, chosen, selection.values_only)], None
        chosen, listed = union(chosen, self.layer.num_kv_heads)
        part = self._gather(step, chosen, selection.values_only)
        num_sink = min(step.sink, step.end)
        num_late = part.positions.shape[1] - chosen.shape[1] - num_sink
        return [part], torch.nn.functional.pad(listed, (num_sink, num_late), value=True)

    def _gather(self, step: Step, chosen: Tensor, values_only: bool) -> Part:
        """Sink, chosen, local window, new tokens: in this order."""
        device = chosen.device
        sink = torch.arange(min(step.sink, step.end), device=device)
        late = torch.arange(step.end, step.start + step.positions.shape[0], device=device)
        num_kv_heads = chosen.shape[0]
        positions = torch.cat([sink.expand(num_kv_heads, -1), chosen, late.expand(num_kv_heads, -1)], 1)
        rows = self.store.gather_values(positions) if values_only else self.store.gather(positions)
        return Part(*rows, positions)

    def begin_decode(self) -> None:
        """Start to count: what the prompt cost is no decode step (it is audited all the same); codes came for all."""
        self.audit = LayerAudit()
        self.store.traffic = Traffic(codes=self.store.traffic.codes)
        if self.watch is not None:
            self.watch.begin_decode()

    @property
    def traffic(self) -> Traffic:
        """What has been moved since then."""
        return self.store.traffic

    @property
    def real(self) -> bool:
        """Whether what is dropped is freed."""
        return self.store.real

    def notes(self) -> Mapping[str, float]:
        """The index's numbers for the record."""
        return self.index.notes()

    def tensors(self) -> list[tuple[str, Tensor]]:
        """(tier, tensor) of store and index."""
        return [*self.store.tensors(), *self.index.tensors()]


class SlidingLayer:
    """A layer with sliding-window attention: always dense, keeps its window only."""

    def __init__(self, layer: Layer, window: int, keys: Tensor, values: Tensor, sinks: Tensor | None) -> None:
        self.layer = layer
        self.window = window
        self.sinks = sinks
        # A copy: a view would hold the whole prompt in memory.
        self.keys, self.values = self._trimmed(keys).clone(), self._trimmed(values).clone()

    def attend(self, call: Call, row: int, start: int) -> Tensor:
        """m new tokens, the first at position `start`: [H,m,D]."""
        keys = torch.cat([self.keys, call.keys[row]], 1)
        values = torch.cat([self.values, call.values[row]], 1)
        last = start + call.keys.shape[2]
        score = scaled_logits(call.queries[row], keys, self.layer)
        mask = hidden(last - keys.shape[1], last, start, last, self.window, keys.device)
        weights, _ = normalise(score.masked_fill_(mask, -torch.inf), self.sinks)
        self.keys, self.values = self._trimmed(keys), self._trimmed(values)
        return weighted(weights, values)

    def _trimmed(self, rows: Tensor) -> Tensor:
        return rows[:, max(0, rows.shape[1] - self.window + 1) :]


class Arm:
    """The layers of one method and budget for one prompt, and how far it has come.

    layers: by layer number. length: tokens stored so far, prompt included. None of them are left once the arm is
    decoded in other steps than these (`engine.static`).
    """

    def __init__(self, plan: Plan, layers: Sequence[SelectiveLayer | SlidingLayer], length: int) -> None:
        self.plan = plan
        self.layers = layers
        self.length = length

    @property
    def selective(self) -> list[SelectiveLayer]:
        """The layers in which the method acts."""
        return [layer for layer in self.layers if isinstance(layer, SelectiveLayer)]

    def begin_decode(self) -> None:
        """The prompt is stored; steps count from here."""
        for layer in self.selective:
            layer.begin_decode()


class Lockstep:
    """Arms as rows of one batch: the model's weights are read once a step for all of them."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = arms

    def attend(self, call: Call) -> Tensor:
        rows = [arm.layers[call.layer].attend(call, row, arm.length) for row, arm in enumerate(self.arms)]
        return torch.stack(rows)

    def advance(self, num_tokens: int) -> None:
        """All layers have stored `num_tokens` more."""
        for arm in self.arms:
            arm.length += num_tokens
