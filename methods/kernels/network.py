"""What lies between a network's matrices in a decode step: norm, rotary embedding and gate, a launch each.

Numbers are rounded to the tensors' type wherever Hugging Face's modules round them, so that both say the same.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

GATED = 1024  # channels of a gate that a program takes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [...,n] over the root of its mean square, times weight [n]; the squares are summed in float32."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    block = triton.next_power_of_2(rows.shape[1])
    norm_kernel[(rows.shape[0],)](
        rows, weight, out, eps, rows.stride(0), N=rows.shape[1], BLOCK=block, num_warps=max(1, min(16, block // 256))
    )
    return out.view(x.shape)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of one token's q [1,H,1,D] and k [1,G,1,D] by cos, sin [1,1,D], halves against each other."""
    num_heads, dim = q.shape[1], q.shape[3]
    assert q.stride(3) == k.stride(3) == cos.stride(2) == sin.stride(2) == 1
    out_q, out_k = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k))
    rotate_kernel[(num_heads + k.shape[1],)](
        q, k, cos, sin, out_q, out_k, q.stride(1), k.stride(1), NUM_HEADS=num_heads, HALF=dim // 2,
        BLOCK=triton.next_power_of_2(dim // 2), num_warps=1,
    )  # fmt: skip
    return out_q, out_k


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both of one shape and contiguous."""
    assert gate.is_contiguous() and up.is_contiguous() and gate.shape == up.shape
    out = torch.empty_like(gate)
    n = gate.numel()
    gate_kernel[(triton.cdiv(n, GATED),)](gate, up, out, n, BLOCK=GATED, num_warps=4)
    return out


@triton.jit
def norm_kernel(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, eps: tl.tensor, stride: tl.tensor, N: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one row."""
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    real = channel < N
    value = tl.load(x + row * stride + channel, mask=real, other=0.0).to(tl.float32)
    normal = value * tl.rsqrt(tl.sum(value * value, 0) / N + eps)
    factor = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    rounded = normal.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * N + channel, (factor * rounded).to(out.dtype.element_ty), mask=real)


@triton.jit
def rotate_kernel(
    q: tl.tensor, k: tl.tensor, cos: tl.tensor, sin: tl.tensor, out_q: tl.tensor, out_k: tl.tensor, q_stride: tl.tensor,
    k_stride: tl.tensor, NUM_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A program: one head of the queries or of the keys."""
    head = tl.program_id(0)
    if head < NUM_HEADS:
        rotate_row(q + head * q_stride, cos, sin, out_q + head * 2 * HALF, HALF, BLOCK)
    else:
        head -= NUM_HEADS
        rotate_row(k + head * k_stride, cos, sin, out_k + head * 2 * HALF, HALF, BLOCK)


@triton.jit
def rotate_row(
    x: tl.tensor, cos: tl.tensor, sin: tl.tensor, out: tl.tensor, HALF: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """One row's halves, each turned against the other."""
    i = tl.arange(0, BLOCK)
    real = i < HALF
    a, b = tl.load(x + i, mask=real).to(tl.float32), tl.load(x + HALF + i, mask=real).to(tl.float32)
    first = product(a, cos + i, real, out) + product(-b, sin + i, real, out)
    second = product(b, cos + HALF + i, real, out) + product(a, sin + HALF + i, real, out)
    tl.store(out + i, first.to(out.dtype.element_ty), mask=real)
    tl.store(out + HALF + i, second.to(out.dtype.element_ty), mask=real)
    return first


@triton.jit
def product(value: tl.tensor, factor: tl.tensor, real: tl.tensor, like: tl.tensor) -> tl.tensor:
    """Values times the factors at an address, rounded to the type that `like` points to."""
    found = tl.load(factor, mask=real).to(tl.float32)
    return (value * found).to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def gate_kernel(gate: tl.tensor, up: tl.tensor, out: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> None:
    """A program: some channels."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = i < n
    value = tl.load(gate + i, mask=real).to(tl.float32)
    opened = (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty).to(tl.float32)
    other = tl.load(up + i, mask=real).to(tl.float32)
    tl.store(out + i, (opened * other).to(out.dtype.element_ty), mask=real)


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    tensors = dict.fromkeys(("x", "weight", "out", "q", "k", "cos", "sin", "out_q", "out_k", "gate", "up"), "*bf16")
    types = {**tensors, "eps": "fp32", **dict.fromkeys(("stride", "q_stride", "k_stride", "n"), "i32")}
    return [
        (norm_kernel, types, {"N": 4096, "BLOCK": 4096, "num_warps": 16}),
        (norm_kernel, types, {"N": 128, "BLOCK": 128, "num_warps": 1}),
        (rotate_kernel, types, {"NUM_HEADS": 32, "HALF": 64, "BLOCK": 64, "num_warps": 1}),
        (gate_kernel, types, {"BLOCK": GATED, "num_warps": 4}),
    ]
