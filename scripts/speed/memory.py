"""Device memory: what the weights take, what a step reads of them, and the ledger's sum beside the measured peak."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from engine.filled import Sample, filled
from engine.ledger import storages
from engine.memory import release
from engine.model import Model
from scripts.memory import PeakBytes
from scripts.speed.racer import Racer
from scripts.speed.words import Contender, plan

STEPS = 2


@dataclass(frozen=True)
class Peak:
    """Bytes. measured: most that the device's allocator gave out at once. ledger: weights, what the arm holds, and the
    tensors that a step makes and holds at once."""

    measured: int
    ledger: int


def weight_bytes(network: nn.Module) -> int:
    """Of all parameters and buffers, each storage once."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def weights_read(network: nn.Module) -> int:
    """Bytes of the weights that a step reads: all but the table of input embeddings, of which it reads a row, unless
    that table is the output's, too."""
    table = network.get_input_embeddings().weight  # type: ignore[operator]
    output = network.get_output_embeddings()  # type: ignore[operator]
    tied = output is not None and output.weight.data_ptr() == table.data_ptr()
    return sum(p.nbytes for p in network.parameters()) - (0 if tied else int(table.nbytes))


@torch.inference_mode()
def peak_alone(model: Model, contender: Contender, sample: Sample, length: int, way: str) -> Peak:
    """Of steps with nothing else on the device (CUDA)."""
    release()
    prefix = filled(model, sample, length, [plan(model, contender, length)], contender.settings.seed)
    racer = Racer(model, contender, prefix, 1, way, 2 * STEPS)
    del prefix
    release()
    held = [tensor for layer in racer.now.layers for _, tensor in layer.tensors()]
    made = PeakBytes(storages([*model.network.parameters(), *model.network.buffers(), *held]))
    del held
    with made:
        racer.walk(STEPS)
    torch.cuda.reset_peak_memory_stats(model.device)
    racer.walk(STEPS)
    measured = torch.cuda.max_memory_allocated(model.device)
    return Peak(measured, weight_bytes(model.network) + racer.held()[0] + made.most)
