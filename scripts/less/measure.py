"""What LESS gets back of what its base loses, at the same bytes, on held-out texts that are fed token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from engine.arm import Arm, Lockstep, Plan
from engine.generate import make_arm, prefill
from engine.ledger import held_bytes
from engine.model import Model
from engine.seam import forward
from eval.statistics import bootstrap_mean
from methods.full import Full
from scripts.less.texts import Text


@dataclass(frozen=True)
class Loss:
    """Of one arm on one text, means over the tokens after the prompt.

    kl: of its predictions from full attention's, in nats. asked: cross-entropy of the tokens that need the prompt.
    num_bytes: what store and index held at the prompt's end.
    """

    kl: float
    asked: float
    num_bytes: int


@torch.inference_mode()
def losses(model: Model, text: Text, plans: Sequence[Plan]) -> list[Loss]:
    """Each arm's on one text; all are fed the same tokens, and full attention with them."""
    plans = [Plan("full", Full(), None), *plans]
    layers, n = model.layers(0), text.num_prompt
    prefix = prefill(model, layers, text.ids[:n], plans)
    arms = [make_arm(model, layers, plan, prefix) for plan in plans]
    num_bytes = [held(arm) for arm in arms]
    state, rows = Lockstep(arms), [prefix.logits.expand(len(arms), -1)]
    for token in text.ids[n:-1]:
        ids = token.expand(len(arms), 1).to(model.device)
        rows.append(forward(model.network, ids, arms[0].length, state))
        state.advance(1)
    logits = torch.stack(rows, 1).log_softmax(-1)
    return [loss(logits[row], logits[0], text, num_bytes[row]) for row in range(1, len(arms))]


def loss(logits: Tensor, full: Tensor, text: Text, num_bytes: int) -> Loss:
    """From log-probabilities [m,V], full attention's beside them."""
    kl = kl_div(logits, full, log_target=True, reduction="none").sum(-1).mean()
    later = text.ids[text.num_prompt :].to(logits.device)
    asked = text.asked.to(logits.device)
    return Loss(float(kl), float(cross_entropy(logits[asked], later[asked])), num_bytes)


def held(arm: Arm) -> int:
    """Bytes of all that an arm holds."""
    return sum(held_bytes(tensor for layer in arm.selective for tensor in layer.tensors()).values())


@dataclass(frozen=True)
class Recovered:
    """Of a loss that the base has, in paired means over texts with 95 % bootstrap intervals: base less LESS."""

    base: float
    less: float
    difference: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, base: Sequence[float], less: Sequence[float]) -> Recovered:
        """From the losses on the same texts."""
        gains = [b - a for a, b in zip(less, base, strict=True)]
        mean = sum(gains) / len(gains)
        return cls(sum(base) / len(base), sum(less) / len(less), mean, bootstrap_mean(gains))
