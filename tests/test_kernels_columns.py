"""The column sums' kernel, in Triton's interpreter, against its reference, ColumnSums and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods.kernels.columns import column_sums, column_sums_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(
    group: int, dim: int, num_queries: int, num_keys: int, start: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and their log-sum-exp as views of larger buffers, and float64 logits [H,c,n], -inf where j > i."""
    queries = torch.randn(2 * group, num_queries + 3, dim + 8, device=DEVICE).to(dtype)[:, 1:-2, :dim]
    keys = torch.randn(3, num_keys + 5, dim, device=DEVICE).to(dtype)[1:, 5:]
    score = 0.2 * torch.einsum("hcd,hnd->hcn", queries.double(), keys.double().repeat_interleave(group, 0))
    position = torch.arange(start, start + num_queries, device=DEVICE)[:, None]
    score = score.masked_fill(torch.arange(num_keys, device=DEVICE) > position, -torch.inf)
    lse = torch.zeros(2 * group, num_queries + 2, device=DEVICE)[:, 1:-1]
    lse.copy_(score.logsumexp(-1))
    return queries, keys, lse, score


@pytest.mark.parametrize(
    ("group", "dim", "num_queries", "start", "window", "dtype"),
    [
        (3, 80, 35, 0, None, torch.float16),
        (2, 64, 37, 21, None, torch.float32),
        (1, 64, 70, 0, 20, torch.float16),
        (1, 64, 45, 40, 25, torch.float32),
        (1, 96, 40, 16, 1, torch.float32),
    ],
)
def test_column_sums(
    group: int, dim: int, num_queries: int, start: int, window: int | None, dtype: torch.dtype
) -> None:
    num_keys = start + num_queries
    queries, keys, lse, score = inputs(group, dim, num_queries, num_keys, start, dtype)
    found = column_sums(queries, keys, lse, start, window, 0.2, None, block_keys=16, block_queries=16)
    assert found.dtype == torch.float32
    reference = column_sums_reference(queries, keys, lse, start, window, 0.2, None)
    torch.testing.assert_close(found, reference, atol=2e-5, rtol=2e-5)
    p = score.softmax(-1)
    if window is not None:
        column = torch.arange(num_keys, device=DEVICE)
        p = p.masked_fill(column[start:, None] - column >= window, 0.0)
    torch.testing.assert_close(found.double(), p.sum(1), atol=2e-5, rtol=2e-5)


def test_blocks_of_other_sizes_and_a_soft_cap() -> None:
    queries, keys, lse, _ = inputs(1, 64, 60, 90, 30, torch.float32)
    given = queries, keys, lse, 30, 41, 0.2, 1.5
    expected = column_sums_reference(*given)
    for block_keys, block_queries in ((64, 16), (16, 64), (32, 32)):
        found = column_sums(*given, block_keys=block_keys, block_queries=block_queries)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_keys_that_no_query_sees_get_zero() -> None:
    queries, keys, lse, _ = inputs(1, 64, 16, 80, 40, torch.float32)
    found = column_sums(queries, keys, lse, 40, 8, 0.2, None, block_keys=16, block_queries=16)
    assert (found[:, :33] == 0).all() and (found[:, 56:] == 0).all() and (found[:, 33:56] > 0).all()


def test_chunks_add_up_to_the_whole() -> None:
    queries, keys, lse, _ = inputs(1, 64, 64, 64, 0, torch.float32)
    whole = column_sums(queries, keys, lse, 0, None, 0.2, None, block_keys=32, block_queries=16)
    total = torch.zeros_like(whole)
    for a, b in ((0, 20), (20, 64)):
        part = column_sums(queries[:, a:b], keys[:, :b], lse[:, a:b], a, None, 0.2, None, 32, 16)
        total[:, :b] += part
    torch.testing.assert_close(whole, total, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.sum(1), torch.full([2], 64.0, device=DEVICE), atol=1e-4, rtol=1e-4)


def test_many_small_shares_are_not_lost() -> None:
    """Blocks of 1.6e-5 on top of a first query's 1000, whose last digit is 6e-5: float32 alone would lose them all."""
    num_queries = 16 * 100
    queries, keys = torch.zeros(1, num_queries, 16, device=DEVICE), torch.zeros(1, 1, 16, device=DEVICE)
    lse = torch.full((1, num_queries), 1e-6, device=DEVICE).log().neg()
    lse[0, 0] = -torch.tensor(1000.0).log()
    one, all_of_them = (
        column_sums(queries[:, :n], keys, lse[:, :n], 0, None, 1.0, None, block_keys=16, block_queries=16).item()
        for n in (1, num_queries)
    )
    assert abs(all_of_them - one - 1e-6 * (num_queries - 1)) <= 1e-4
