"""The one place where transformers meets the engine: a registered attention function that owns no state.

No mask is registered under its name, so transformers builds none; causality, windows and lengths are ours. What
remembers K and V comes as a keyword of `model(...)`, which transformers hands through to the attention function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "kvarena"  # no "flash", "sdpa", "flex" or "/" in it: transformers tests for those substrings


@dataclass(frozen=True)
class Call:
    """What one attention layer is asked: R rows of m new tokens.

    queries [R,H,m,D], keys and values [R,G,m,D] of the new tokens only, post-norm and post-RoPE. window: sliding window
    in tokens or None. softcap: soft cap of the logits or None. sinks: learned sink logits [H] or None (GPT-OSS).
    """

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None


class State(Protocol):
    """Whatever remembers K and V during a forward pass: a prefill, or arms in lockstep."""

    def attend(self, call: Call) -> Tensor:
        """Attention output [R,H,m,D]."""
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    kv_state: State,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; returns ([R,m,H,D], no weights)."""
    assert attention_mask is None, "a mask reached the seam: padded batches are not supported"
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    call = Call(layer, query, key, value, scaling, sliding_window, softcap, s_aux)
    return kv_state.attend(call).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)


def forward(model: nn.Module, ids: Tensor, start: int, state: State) -> Tensor:
    """One forward pass of token ids [R,m], the first at position `start`: float32 logits [R,V] of the last token."""
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
    return forward_at(model, ids, positions, state)


def forward_at(model: nn.Module, ids: Tensor, positions: Tensor, state: State) -> Tensor:
    """The same at positions [R,m], on the device."""
    out = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, kv_state=state)
    logits: Tensor = out.logits[:, -1]
    return logits.float()
