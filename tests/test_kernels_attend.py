"""The decode kernels, in Triton's interpreter, against their references and against formulas written out one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods.kernels.attend import attend, attend_reference
from methods.kernels.logits import channel_logits, channel_logits_reference, logits, logits_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def view(
    num_kv_heads: int, num_rows: int, dim: int, dtype: torch.dtype = torch.float32, spare: tuple[int, int] = (3, 16)
) -> Tensor:
    """Rows [G,C,D] inside a larger buffer [G+1,C+spare,D+spare], as a cache with spare capacity has them."""
    return random(num_kv_heads + 1, num_rows + spare[0], dim + spare[1], dtype=dtype)[1:, 2 : 2 + num_rows, :dim]


def plain(q: Tensor, k: Tensor, v: Tensor, rows: list[int], softcap: float | None, sink: float | None) -> Tensor:
    """One head in float64, a list of rows: [D+1], the output and the log-sum-exp."""
    q, k, v = (x.double().cpu() for x in (q, k, v))
    logits = [float(q @ k[j]) / math.sqrt(q.shape[0]) for j in rows]
    weights = [math.exp(x if softcap is None else softcap * math.tanh(x / softcap)) for x in logits]
    total = sum(weights) + (0.0 if sink is None else math.exp(sink))
    y = sum((w / total * v[j] for w, j in zip(weights, rows, strict=True)), torch.zeros_like(q))
    return torch.cat([y, torch.tensor([math.log(total) if total else -math.inf])])


@pytest.mark.parametrize(
    ("group", "dim", "num_rows", "listed", "length", "softcap", "sinks", "dtype"),
    [
        (4, 64, 41, None, None, None, False, torch.float32),
        (3, 80, 41, None, 18, 3.0, False, torch.float16),
        (1, 64, 41, 23, None, None, True, torch.float32),
        (3, 80, 41, 23, 9, 3.0, True, torch.float16),
        (2, 96, 41, 23, None, None, False, torch.float16),
        (2, 64, 41, 0, None, None, False, torch.float32),
        (2, 64, 41, None, 0, None, True, torch.float32),
        (16, 128, 5, None, 77, None, False, torch.float32),
    ],
)
def test_attend(
    group: int,
    dim: int,
    num_rows: int,
    listed: int | None,
    length: int | None,
    softcap: float | None,
    sinks: bool,
    dtype: torch.dtype,
) -> None:
    num_kv_heads = 2
    k, v = view(num_kv_heads, num_rows, dim, dtype), view(num_kv_heads, num_rows, dim, dtype, (6, 8))
    queries = random(num_kv_heads * group, dim + 8, dtype=dtype)[:, :dim]
    learned = random(num_kv_heads * group) if sinks else None
    rows = None
    if listed is not None:
        rows = torch.stack([torch.randperm(num_rows, device=DEVICE)[:listed] for _ in range(num_kv_heads)])
        rows[:, 1::4] = -1
        rows[1, 8:] = -1  # the second KV head's later shares read nothing at all
    limit = None if length is None else torch.tensor(length, device=DEVICE)
    given = queries, k, v, rows, limit, dim**-0.5, softcap, learned
    y, lse = attend(*given, block=16, shares=2)
    assert (y.dtype, lse.dtype) == (dtype, torch.float32)
    expected_y, expected_lse = attend_reference(*given)
    torch.testing.assert_close(y, expected_y, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)
    for h in range(num_kv_heads * group):
        g = h // group
        counted = list(range(num_rows)) if rows is None else rows[g].tolist()
        read = [j for j in counted[:length] if j >= 0]
        one = plain(queries[h], k[g], v[g], read, softcap, None if learned is None else float(learned[h]))
        found = torch.cat([y[h], lse[h, None].to(y.dtype)]).double().cpu()
        torch.testing.assert_close(found, one, atol=4e-3, rtol=2e-3)


def test_attend_does_not_depend_on_how_the_rows_are_shared_out() -> None:
    queries, k, v = random(4, 64), view(2, 340, 64), view(2, 340, 64)
    rest = None, torch.tensor(310, device=DEVICE), 0.125, None, None
    one = attend(queries, k, v, *rest, block=16, shares=1)
    for shares in (3, 20):
        for found, expected in zip(attend(queries, k, v, *rest, block=16, shares=shares), one, strict=True):
            torch.testing.assert_close(found, expected)


def test_attend_survives_large_logits() -> None:
    queries, k, v = 40 * random(2, 64), 40 * view(1, 40, 64), view(1, 40, 64)
    given = queries, k, v, None, None, 1.0, None, None
    y, lse = attend(*given, block=16)
    torch.testing.assert_close((y, lse), attend_reference(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("group", "dim", "num_rows", "softcap"), [(4, 64, 33, None), (3, 80, 20, 2.0), (1, 128, 1, None)]
)
def test_logits(group: int, dim: int, num_rows: int, softcap: float | None, dtype: torch.dtype) -> None:
    queries, keys = random(2 * group, dim + 8, dtype=dtype)[:, 4:-4], view(2, num_rows, dim, dtype)
    found = logits(queries, keys, 0.3, softcap, block=16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits_reference(queries, keys, 0.3, softcap), atol=1e-4, rtol=1e-4)
    plain = 0.3 * torch.einsum("hd,hcd->hc", queries.double(), keys.double().repeat_interleave(group, 0))
    plain = plain if softcap is None else softcap * (plain / softcap).tanh()
    torch.testing.assert_close(found.double(), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("group", "rank", "softcap"), [(4, 16, None), (3, 11, 2.0), (1, 1, None)])
def test_channel_logits(group: int, rank: int, softcap: float | None, dtype: torch.dtype) -> None:
    num_rows, dim = 75, 80
    keys_t = random(2, dim, num_rows + 9, dtype=dtype)[:, :, :num_rows]
    channels = torch.stack([torch.randperm(dim, device=DEVICE)[:rank] for _ in range(2)])
    part, factor = random(2 * group, rank), torch.rand(2 * group, device=DEVICE)
    found = channel_logits(part, channels, keys_t, factor, softcap, block=32)
    expected = channel_logits_reference(part, channels, keys_t, factor, softcap)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for h in range(2 * group):
        plain = sum(part[h, i].double() * keys_t[h // group, c].double() for i, c in enumerate(channels[h // group]))
        plain = plain * factor[h].double()
        plain = plain if softcap is None else softcap * (plain / softcap).tanh()
        torch.testing.assert_close(found[h].double(), plain, atol=1e-5, rtol=1e-5)


def test_no_rows_have_no_logits() -> None:
    assert logits(random(4, 64), random(2, 0, 64), 1.0, None).shape == (4, 0)
    none = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    assert channel_logits(random(4, 3), none, random(2, 64, 0), random(4), None).shape == (4, 0)
