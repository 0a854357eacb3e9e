"""A network's small operations in a kernel each, for steps of fixed shapes on a GPU.

Hugging Face's Llama launches 28 small kernels a layer for two norms, the rotary embedding and the gate. What a module
computes is not told by its name: it is replaced where it agrees with a formula on a probe, bit for bit, and stays as it
is anywhere else (Gemma's norms, other activations).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

ROTARY = "apply_rotary_pos_emb"
Swap = tuple[object, str, Any]  # (where, the attribute, what it is meanwhile)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [...,n] over the root of its mean square, times weight [n] (Zhang and Sennrich, arXiv 1910.07467, as Llama)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [R,H,m,D] and k [R,G,m,D] turned by cos, sin [R,m,D] (RoPE, Su et al., arXiv 2104.09864, in halves)."""

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

    return turned(q), turned(k)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU's gate (Shazeer, arXiv 2002.05202)."""
    return silu(gate) * up


class Compact:
    """While it is entered, the network computes by kernels what is known of it. It may be entered again later.

    Making one runs every module that it looks at: a model keeps its own.
    """

    def __init__(self, network: nn.Module) -> None:
        self.swaps: list[Swap] = [*norms(network), *gates(network), *rotaries(network)]
        self.before: list[Swap] = []

    def __enter__(self) -> None:
        for where, name, new in self.swaps:
            self.before.append((where, name, vars(where).get(name)))
            setattr(where, name, new)

    def __exit__(self, *_: object) -> None:
        while self.before:
            where, name, old = self.before.pop()
            if old is None:
                delattr(where, name)
            else:
                setattr(where, name, old)


def norms(network: nn.Module) -> Iterable[Swap]:
    """Modules that are RMS norms."""
    for module in own_forward(network):
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
            continue
        if agree(module, lambda x, w=weight, e=eps: rms_norm(x, w, e), probe(weight, 2, weight.shape[0])):
            yield module, "forward", _norm(weight, eps)


def gates(network: nn.Module) -> Iterable[Swap]:
    """Modules that are gated with SiLU between three matrices."""
    for module in own_forward(network):
        gate, up, down = (getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down"))
        if not (isinstance(gate, nn.Linear) and isinstance(up, nn.Linear) and isinstance(down, nn.Linear)):
            continue
        if agree(module, lambda x, g=gate, u=up, d=down: d(gated(g(x), u(x))), probe(gate.weight, 1, gate.in_features)):
            yield module, "forward", _gate(gate, up, down)


def rotaries(network: nn.Module) -> Iterable[Swap]:
    """The function that a model's file calls for its rotary embedding."""
    files = {sys.modules.get(type(module).__module__) for module in network.modules()}
    [like, *_] = network.parameters()
    for file in files:
        if file is None or not callable(getattr(file, ROTARY, None)):
            continue
        values = probe(like, 5, 8).unflatten(0, (1, 5, 1))
        if agree(getattr(file, ROTARY), rotate, values[:, :2], values[:, 2:3], values[:, 3], values[:, 4]):
            yield file, ROTARY, _rotary(file)


def own_forward(network: nn.Module) -> Iterable[nn.Module]:
    """Modules whose `forward` is their class's."""
    return (module for module in network.modules() if "forward" not in vars(module))


def probe(like: Tensor, *shape: int) -> Tensor:
    """Numbers of `shape` from -3 to 3, no two of them alike in float32."""
    count = torch.Size(shape).numel()
    return torch.linspace(-3, 3, count, device=like.device).to(like.dtype).view(shape)


def agree(ours: Callable[..., Any], formula: Callable[..., Any], *given: Tensor) -> bool:
    """Whether both give the same, bit for bit."""
    try:
        found, expected = ours(*given), formula(*given)
        pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
        return all(torch.equal(one, other) for one, other in pairs)
    except Exception:  # whatever else it is, it is called otherwise or gives something else
        return False


def _norm(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    from methods.kernels.network import rms_norm as kernel

    return lambda x: kernel(x, weight, eps)


def _gate(gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> Callable[[Tensor], Tensor]:
    from methods.kernels.network import gated as kernel

    def forward(x: Tensor) -> Tensor:
        out: Tensor = down(kernel(gate(x), up(x)))
        return out

    return forward


def _rotary(file: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    from methods.kernels.network import rotate as kernel

    original = getattr(file, ROTARY)

    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **others: Any) -> tuple[Tensor, Tensor]:
        if more or others or q.shape[-1] != cos.shape[-1] or q.shape[0] * q.shape[2] != 1:
            turned: tuple[Tensor, Tensor] = original(q, k, cos, sin, *more, **others)
            return turned
        return kernel(q, k, cos, sin)

    return apply
