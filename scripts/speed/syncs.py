"""Where a decode step makes the host wait for the device: counted in a profiler's trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from engine.filled import Sample, filled
from engine.model import Model
from scripts.speed.bandwidth import settle
from scripts.speed.racer import Racer
from scripts.speed.words import Contender, plan

# A copy to pageable memory waits, too, and shows itself as a stream's synchronisation.
CALLS = ("cudaStreamSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense", "aten::nonzero")


@dataclass(frozen=True)
class Waits:
    """How often a step called what waits, by name. said: the way it was done, and why not as asked."""

    said: str
    counts: Mapping[str, int]


@torch.inference_mode()
def waits(model: Model, contender: Contender, sample: Sample, length: int, way: str, trace: Path) -> Waits:
    """Of one step. trace: a file for the profiler's trace."""
    asked = plan(model, contender, length)
    prefix = filled(model, sample, length, [asked], contender.settings.seed)
    racer = Racer(model, contender, prefix, 1, way, room=2)
    del prefix
    settle(model.device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        racer.now.stepper.step(racer.tokens)
        # The profiler itself waits for the device, after this.
    trace.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(trace))
    counts = {event.key: event.count for event in seen.key_averages() if event.key in CALLS}
    return Waits(racer.now.said, counts)
