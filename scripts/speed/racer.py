"""The arms of one method in a race: their steps, the seconds of these, and what they read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch

from engine.arm import Arm, SlidingLayer
from engine.generate import make_arm
from engine.ledger import Clock, LayerAudit, audit, held_bytes
from engine.model import Model
from engine.prefill import Prefix
from scripts.speed.bandwidth import settle
from scripts.speed.steppers import Eager, Stepping, stepping
from scripts.speed.words import Contender, plan

WARM_UP = 3
LINK = ("misses", "refills", "spills")  # bytes over the host link in a step; codes came once


class Unaudited(LayerAudit):
    """Counts nothing: the tensors of an audit are no part of a step."""

    def step(self, *_: object) -> None:
        pass

    def selected(self, *_: object) -> None:
        pass


class Racer:
    """R arms of one contender, warmed up. seconds, processor: of their steps, on the clock and of processors.
    attended: tokens per step and KV head.

    way: of decoding; room: steps at most. The first steps are eager and audited, whatever the way: what they attend is
    what all attend. Raises AuditError.
    """

    def __init__(self, model: Model, contender: Contender, prefix: Prefix, num_rows: int, way: str, room: int) -> None:
        self.contender = contender
        self.arms = built(model, contender, prefix, num_rows)
        self.short = self.arms[0].plan.short
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.tokens = torch.zeros(num_rows, 1, dtype=torch.long, device=model.device)
        self.now = Stepping(Eager(model, self.arms), [], "eager")
        self.clock, self.num_steps = Clock(model.device), 0
        for arm in self.arms:
            arm.begin_decode()
        self.walk(WARM_UP)
        self.attended = self.unaudited()
        self.now = stepping(way, model, self.arms, room + WARM_UP)
        self.walk(WARM_UP)
        # What is read is counted from here on: by now the methods' caches are warm, too.
        self.before, self.num_steps = self.read(), 0

    def unaudited(self) -> float:
        """Judge the steps so far and audit no more; tokens attended per step and KV head."""
        means = []
        for arm in self.arms:
            asked, audits = arm.plan, [layer.audit for layer in arm.selective]
            means.append(audit(asked.name, asked.method, asked.budget, audits, WARM_UP)[0])
            for layer in arm.selective:
                layer.audit = Unaudited()
        return sum(means) / len(means)

    def walk(self, num_steps: int) -> list[int]:
        """Take steps; a mark before each and one after the last."""
        settle(self.tokens.device)
        self.clock = Clock(self.tokens.device)
        marks, self.busy = [self.clock.mark()], [time.process_time()]
        for _ in range(num_steps):
            self.tokens = self.now.stepper.step(self.tokens).argmax(-1, keepdim=True)
            marks.append(self.clock.mark())
            self.busy.append(time.process_time())
        self.num_steps += num_steps
        return marks

    def burst(self, num_steps: int) -> Racer:
        """Timed steps, after one that only brings this racer's data back into the processor's caches; itself."""
        marks = self.walk(num_steps + 1)
        self.seconds += [self.clock.seconds(a, b) for a, b in pairwise(marks[1:])]
        self.processor += [b - a for a, b in pairwise(self.busy[1:])]
        return self

    def read(self) -> list[int]:
        """Bytes read so far by all arms: rows of K and V, indexes, over the host link."""
        traffic = [layer.traffic for layer in self.now.layers]
        host = sum(getattr(t, name) for t in traffic for name in LINK)
        return [sum(t.kv for t in traffic), sum(t.index for t in traffic), host]

    def per_step(self) -> tuple[float, float, float]:
        """(KV, index, host) bytes of a step; sliding-window layers read their K and V as well."""
        kv, index, host = ((b - a) / self.num_steps for a, b in zip(self.before, self.read(), strict=True))
        return kv + sliding_bytes(self.arms), index, host

    def held(self) -> tuple[int, int]:
        """Bytes held on the device and on the host, each storage once."""
        found = held_bytes(pair for layer in self.now.layers for pair in layer.tensors())
        return sum(found.values()) - found["host"] + sliding_bytes(self.arms), found["host"]

    @property
    def note(self) -> str:
        """What a reader must know of the row."""
        notes = {
            "dense_short": self.short,
            "simulated": not all(layer.real for layer in self.now.layers),
            self.now.said: ":" in self.now.said,
        }
        return ", ".join(note for note, holds in notes.items() if holds)


def built(model: Model, contender: Contender, prefix: Prefix, num_rows: int) -> list[Arm]:
    """Arms that can decode."""
    asked = plan(model, contender, prefix.num_tokens)
    arms = [make_arm(model, model.layers(contender.settings.seed), asked, prefix) for _ in range(num_rows)]
    for layer in (layer for arm in arms for layer in arm.selective):
        layer.index.ready()
    return arms


def sliding_bytes(arms: Sequence[Arm]) -> int:
    """K and V bytes of the sliding-window layers."""
    layers = [layer for arm in arms for layer in arm.layers if isinstance(layer, SlidingLayer)]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
