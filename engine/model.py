"""A loaded model as the loop needs it: the network behind the seam, its geometry, its tokenizer and stop tokens."""

from __future__ import annotations

import hashlib
import inspect
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from engine.compact import Compact
from engine.seam import Call, forward
from methods.base import Layer, ModelFacts

SAMPLED = 64  # numbers of each parameter that a fingerprint looks at


@dataclass(frozen=True)
class Geometry:
    """One attention layer as the seam shows it. window: sliding window in tokens; sinks: learned sink logits [H]."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Model:
    """A network with everything that asking it needs. attention: prefill backend; prefill_chunk: tokens at once."""

    name: str
    network: nn.Module
    tokenizer: PreTrainedTokenizerBase
    geometry: Sequence[Geometry]
    device: torch.device
    attention: str
    prefill_chunk: int
    stop_tokens: frozenset[int]
    revision: str | None = None

    @property
    def num_selectable(self) -> int:
        """Layers in which methods act: those without a sliding window."""
        return sum(1 for g in self.geometry if g.window is None)

    @property
    def bytes_per_token(self) -> int:
        """K+V bytes of one token over all selectable layers and KV heads, at the model's dtype."""
        return sum(2 * g.num_kv_heads * g.head_dim * g.dtype.itemsize for g in self.geometry if g.window is None)

    @cached_property
    def facts(self) -> ModelFacts:
        """What methods may know of this model."""
        first, rotary = self.geometry[0], rotary_of(self.network)
        return ModelFacts(
            name=self.name,
            num_layers=len(self.geometry),
            num_heads=first.num_heads,
            num_kv_heads=first.num_kv_heads,
            head_dim=first.head_dim,
            windows=tuple(g.window for g in self.geometry),
            rope_scaled=rotary is not None and getattr(rotary, "attention_scaling", 1.0) != 1.0,
            has_rope=rotary is not None,
            fingerprint=fingerprint(self.network),
        )

    @cached_property
    def compact(self) -> AbstractContextManager[None]:
        """What its network is entered with for steps of fixed shapes: its small kernels on a GPU, elsewhere nothing."""
        return Compact(self.network) if self.device.type == "cuda" else nullcontext()

    def layers(self, seed: int) -> list[Layer]:
        """The geometry of all layers, seeded for one sample."""
        out = []
        for number, g in enumerate(self.geometry):
            layer_seed = zlib.crc32(f"{seed}/{number}".encode())
            rotate = rotation(self.network, number)
            facts = (g.num_heads, g.num_kv_heads, g.head_dim, g.scale, g.softcap, g.dtype, g.device)
            out.append(Layer(number, len(self.geometry), *facts, rotate, layer_seed, g.sinks))
        return out


def fingerprint(network: nn.Module) -> str:
    """16 hex digits that tell models apart: names and shapes of weights and rotary tables, some numbers of each.

    "" where there are no numbers (meta device). They are compared in bfloat16, so that one checkpoint has one
    fingerprint whatever it is computed in.
    """
    digest = hashlib.sha256()
    for name, weight in chain(network.named_parameters(), network.named_buffers()):
        if weight.is_meta:
            return ""
        some = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLED)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(some.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


class Probe:
    """A state that attends nothing and notes what each layer is asked."""

    def __init__(self) -> None:
        self.found: dict[int, Geometry] = {}

    def attend(self, call: Call) -> Tensor:
        _, num_heads, num_new, head_dim = call.queries.shape
        assert call.keys.shape[2] == num_new, "a cache stands between the model and the seam"
        self.found[call.layer] = Geometry(
            num_heads=num_heads,
            num_kv_heads=call.keys.shape[1],
            head_dim=head_dim,
            scale=call.scale,
            window=call.window,
            softcap=call.softcap,
            sinks=call.sinks,
            dtype=call.keys.dtype,
            device=call.keys.device,
        )
        return torch.zeros_like(call.queries)


@torch.inference_mode()
def geometry_of(network: nn.Module, device: torch.device) -> list[Geometry]:
    """Every layer's geometry, from one token sent through the model: what is really passed, not what a config says.

    Raises ValueError where the attention function is not called once for each layer.
    """
    probe = Probe()
    forward(network, torch.zeros(1, 1, dtype=torch.long, device=device), 0, probe)
    expected = int(network.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr, operator]
    if sorted(probe.found) != list(range(expected)):
        raise ValueError(
            f"{type(network).__name__} cannot be run: {len(probe.found)} of {expected} layers use attention"
        )
    return [probe.found[number] for number in range(expected)]


def rotary_of(network: nn.Module) -> Any:
    """The model's rotary embedding module, or None."""
    return getattr(network.base_model, "rotary_emb", None)


def rotation(network: nn.Module, layer: int) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """The model's own RoPE of one layer: (x [A,r,D], positions [r] or [A,r], inverse) -> x turned, float32.

    Both the angles and the way channels are paired are the model's: its rotary module and its apply function.
    """
    rotary = rotary_of(network)

    def rotate(x: Tensor, positions: Tensor, inverse: bool) -> Tensor:
        if rotary is None:
            raise ValueError(f"{type(network).__name__} has no rotary embedding")
        apply = vars(sys.modules[type(rotary).__module__])["apply_rotary_pos_emb"]
        ids = positions.expand(x.shape[0], -1)
        wide = x.float()[:, None]
        extra = {}
        if "layer_type" in inspect.signature(rotary.forward).parameters:
            extra["layer_type"] = network.config.get_text_config().layer_types[layer]  # type: ignore[union-attr, operator]
        cos, sin = rotary(wide, ids, **extra)
        cos, sin = cos.to(x.device), sin.to(x.device)
        turned: Tensor = apply(wide, wide, cos, -sin if inverse else sin)[0]
        return turned[:, 0]

    return rotate
