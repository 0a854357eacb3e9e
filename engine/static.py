"""Decoding one arm in steps of fixed shapes, as a CUDA graph where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.arm import Arm, SelectiveLayer, SlidingLayer
from engine.ledger import LayerAudit
from engine.model import Model, rotary_of
from engine.seam import Call, forward_at
from methods.fixed import FixedStep, Read
from methods.store import Traffic

WAYS = ("eager", "static", "graph")  # of decoding
EVEN = 16  # elements: rows of scores, codes and channels that begin at multiples of it are read by wide loads
ASKING = ("dynamic", "longrope")  # rotary embeddings that look at the largest position on the host


def reason_against(way: str, model: Model, arms: Sequence[Arm]) -> str | None:
    """Why an arm cannot be decoded in fixed shapes here, whatever its method; None: it can."""
    if way == "graph" and model.device.type != "cuda":
        return "a CUDA graph needs a CUDA device"
    if len({g.device for g in model.geometry}) > 1:
        return "layers lie on several devices"
    if way == "graph" and any(kind in str(getattr(rotary_of(model.network), "rope_type", "")) for kind in ASKING):
        return "the rotary embedding asks the host for the length"
    if len(arms) > 1 or arms[0].plan.watch is not None:
        return "arms share a run or are watched, and speed is not measured"
    if any(g.window for g in model.geometry):
        return "layers with a sliding window have no step of fixed shapes"
    return None


def begin(way: str, model: Model, arms: Sequence[Arm], room: int, audited: bool = True) -> tuple[Static | None, str]:
    """What decodes arms whose prompt is stored, None for eager steps, and what the ledger says of it.

    way: one of WAYS. room: steps at most. audited: whether each step is checked against the budget.
    """
    if way == "eager":
        return None, way
    reason = reason_against(way, model, arms)
    if reason is None:
        layers = fixed_layers(arms[0], room, audited)
        if layers is not None:
            return Static(model, layers, arms[0].length, way == "graph"), way
        reason = f"{arms[0].plan.name} has no step of fixed shapes"
    return None, f"eager: {reason}"


class FixedLayer:
    """One layer of an arm from now on. audited: whether every step is checked against the budget."""

    def __init__(self, before: SelectiveLayer, step: FixedStep, first: int, room: int, audited: bool) -> None:
        self.layer, self.budget = before.layer, before.budget
        self.prompt_audit = before.prompt_audit
        self.codes = before.store.traffic.codes
        self.real = before.store.real
        self.step = step
        self.first, self.num_steps = first, 0
        shape = room, before.layer.num_kv_heads
        self.counts = torch.zeros(shape, dtype=torch.long, device=before.layer.device) if audited else None
        self.wrong = torch.zeros((), dtype=torch.bool, device=before.layer.device)

    def attend(self, call: Call, now: Tensor) -> Tensor:
        """Output [1,H,1,D] of the token at position `now` (0-d)."""
        read = self.step.attend(call.queries[0, :, 0], call.keys[0, :, 0], call.values[0, :, 0], now)
        if self.counts is not None:
            self._check(self.counts, read, now)
        return read.y[None, :, None]

    def _check(self, counts: Tensor, read: Read, now: Tensor) -> None:
        held = now.expand(counts.shape[1])
        if read.positions is not None:
            held = ((read.positions >= 0) & (read.positions < now)).sum(1)
        counts.index_copy_(0, (now - self.first)[None], held[None])
        if read.selected is not None:
            ordered = read.selected.sort(1).values
            twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
            end = now - self.budget.local
            outside = (ordered >= 0) & ((ordered < self.budget.sink) | (ordered >= end))
            self.wrong |= twice.any() | outside.any()

    @property
    def audit(self) -> LayerAudit:
        """What the steps so far have attended."""
        assert self.counts is not None
        counts = list(self.counts[: self.num_steps])
        return LayerAudit(counts, counts, self.wrong)

    @property
    def traffic(self) -> Traffic:
        """What they have moved."""
        traffic = self.step.traffic(self.first, self.num_steps)
        traffic.codes += self.codes
        return traffic

    def notes(self) -> Mapping[str, float]:
        """As the index's."""
        return self.step.notes()

    def tensors(self) -> list[tuple[str, Tensor]]:
        """(tier, tensor) of all that is held."""
        return list(self.step.tensors())


def fixed_layers(arm: Arm, room: int, audited: bool) -> Sequence[FixedLayer] | None:
    """An arm's layers in fixed shapes, with room for so many steps; None where its method has no such form.

    The arm is given up to them, layer by layer, so that no more than one is held twice.
    """
    found: list[FixedLayer] = []
    assert not any(isinstance(layer, SlidingLayer) for layer in arm.layers)
    layers = list(arm.selective)
    arm.layers = []
    room += -(arm.length + room) % EVEN
    while layers:
        layer = layers.pop(0)
        step = layer.index.fixed(room)
        if step is None:
            assert not found, "a method has fixed steps in all layers or in none"
            arm.layers = [layer, *layers]
            return None
        found.append(FixedLayer(layer, step, arm.length, room, audited))
    return found


@dataclass
class FixedState:
    """The state that the seam is given."""

    layers: Sequence[FixedLayer]
    now: Tensor

    def attend(self, call: Call) -> Tensor:
        return self.layers[call.layer].attend(call, self.now)


class Static:
    """Feeds one arm a token at a time. captured: from the second token on as a CUDA graph.

    The first step runs as it is, which also compiles the kernels; only then is one recorded (recording runs nothing).
    """

    def __init__(self, model: Model, layers: Sequence[FixedLayer], first: int, captured: bool) -> None:
        self.model, self.layers = model, layers
        self.captured = captured
        self.token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        self.now = torch.tensor(first, device=model.device)
        self.state = FixedState(layers, self.now)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits = torch.zeros(0)

    def step(self, token: Tensor) -> Tensor:
        """Logits float32 [1,V] after a token [1,1]; they are overwritten by the next step."""
        self.token.copy_(token)
        if self.graph is not None:
            self.graph.replay()
        else:
            self.logits = self._run()
            if self.captured:
                self.graph = self._recorded()
        for layer in self.layers:
            layer.num_steps += 1
        return self.logits

    def _run(self) -> Tensor:
        with self.model.compact:
            logits = forward_at(self.model.network, self.token, self.now[None, None], self.state)
        for layer in self.layers:
            layer.step.join()
        self.now += 1
        return logits

    def _recorded(self) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize(self.model.device)
        before, graph = self.logits.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._run()
        self.logits.copy_(before)  # those of the step that was run
        return graph
