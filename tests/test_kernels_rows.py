"""A row of K and V and its position go where they belong, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods.fused import put_rows as plain
from methods.kernels.rows import put_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def buffers(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """k, v [3,9,20], float16, and positions [3,9], columns of larger ones."""
    k, v = torch.zeros(2, 4, 12, 32, dtype=torch.float16, device=device)
    return k[1:, 2:11, 4:24], v[:3, 3:, :20], torch.zeros(3, 12, dtype=torch.int64, device=device)[:, 2:11]


@pytest.mark.parametrize("place", [4, [0, 8, 3]])
@pytest.mark.parametrize("counted", [False, True])
def test_one_row_of_each_head(place: int | list[int], counted: bool) -> None:
    new_k, new_v = torch.randn(2, 3, 40, device=DEVICE).half()[:, :, 5:25]
    at, now = torch.tensor(place, device=DEVICE), torch.tensor(77, device=DEVICE)
    found, expected = buffers(DEVICE), buffers("cpu")
    for put, (k, v, positions) in ((put_rows, found), (plain, expected)):
        given = (t.to(k.device) for t in (new_k, new_v, at, *((now,) if counted else ())))
        one, other, where, *when = given
        put(k, v, one, other, where, *((positions, *when) if counted else ()))
    rows = at.expand(3).tolist()
    for head, row in enumerate(rows):
        assert torch.equal(found[0][head, row], new_k[head]) and torch.equal(found[1][head, row], new_v[head])
        assert found[2][head, row] == (77 if counted else 0)
    for one, other in zip(found, expected, strict=True):
        whole, like = (t._base if t._base is not None else t for t in (one, other))
        assert torch.equal(whole.cpu(), like)
