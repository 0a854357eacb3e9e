"""The select kernel chooses what `methods.scores.top_k` chooses; run on a CPU it is interpreted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods.kernels.topk import top_k, top_k_reference
from methods.scores import top_k as plain

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N = 60


def scores() -> Tensor:
    """[6,N], columns of a larger buffer: ties of all kinds, all kinds of bit patterns, and what methods mask with."""
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(N, generator=generator)
    masked = normal.softmax(0)
    masked[40:], masked[:9] = -1.0, -torch.inf
    bits = torch.randint(-(2**31), 2**31, (N,), generator=generator).to(torch.int32).view(torch.float32).nan_to_num()
    close = 1.0 + torch.randint(0, 30, (N,), generator=generator) * 2.0**-23
    few = torch.tensor([-torch.inf, -3.0, -0.0, 0.0, 1e-42, 2.5, torch.inf])
    zeros = torch.where(normal > 0, 0.0, -0.0)
    rows = torch.stack([normal, masked, bits, close, few[torch.randint(0, 7, (N,), generator=generator)], zeros])
    return torch.nn.functional.pad(rows, (3, 5), value=9.0)[:, 3:-5].to(DEVICE)


@pytest.mark.parametrize(("k", "tile"), [(17, 8), (1, 16), (N - 1, 64), (17, None), (N, None), (0, None)])
def test_the_same_indices(k: int, tile: int | None) -> None:
    """Several shares of one or more tiles, and rows that are one program's."""
    found = top_k(scores(), k, tile, shares=3)
    assert found.dtype == torch.int64 and torch.equal(found, plain(scores(), k))
    assert torch.equal(found, top_k_reference(scores(), k))


def test_every_k_among_ties() -> None:
    few = scores()[4:5, :12]
    for k in range(13):
        assert torch.equal(top_k(few, k), plain(few, k)), k
        assert k % 5 or torch.equal(top_k(few, k, 4), plain(few, k)), k


def test_what_is_not_a_number_does_no_harm() -> None:
    """The indices are valid and ascend; without a sign bit it counts as the largest."""
    some = scores()[:2].contiguous()
    some[0, 7], some[1] = torch.nan, -torch.nan
    for tile in (32, None):
        found = top_k(some, 40, tile, shares=2)
        assert 7 in found[0] and (found.diff(dim=1) > 0).all() and found.min() >= 0 and found.max() < N


def test_no_rows() -> None:
    assert top_k(torch.zeros(0, 9, device=DEVICE), 4).shape == (0, 4)
