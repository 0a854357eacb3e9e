"""Norm, rotary embedding and gate as Hugging Face's formulas compute them, to the rounding."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from engine import compact
from methods.kernels import network

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is wrong; of two-byte types float16 shows the rounding.
TYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]


@pytest.fixture(params=TYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    out: torch.dtype = request.param
    return out


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To one rounding of the type, which the order of a sum may decide."""
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(expected.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 5, 3, 40), (2, 256)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (3 * torch.randn(shape, device=DEVICE)).to(dtype)
    weight = torch.randn(shape[-1], device=DEVICE).to(dtype)
    close(network.rms_norm(x, weight, 0.5), compact.rms_norm(x, weight, 0.5))


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 64), (1, 1, 8), (3, 3, 80)])
def test_rotate(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    both = torch.randn(1, 1, heads + kv_heads, dim, device=DEVICE).to(dtype).transpose(1, 2)  # views, as after a matrix
    q, k = both[:, :heads], both[:, heads:]
    cos, sin = torch.randn(2, 1, 1, dim, device=DEVICE).to(dtype)
    found, expected = network.rotate(q, k, cos, sin), compact.rotate(q, k, cos, sin)
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous() and one.shape == other.shape
        # Two products of size up to 9 and their sum: one float32 rounding apart where a product is not rounded first.
        torch.testing.assert_close(one, other, rtol=torch.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize("n", [1, 1024, 1500])
def test_gated(n: int, dtype: torch.dtype) -> None:
    gate, up = 4 * torch.randn(2, 1, 1, n, device=DEVICE).to(dtype)
    close(network.gated(gate, up), compact.gated(gate, up))
