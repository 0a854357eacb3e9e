"""Lloyd's algorithm for many problems at once, where the points lie: two launches a round, the points read once.

G x s problems, n points of d channels each, C centroids. The first launch labels a share of the points and adds those
of each label up; the second adds the shares up, in order, and divides. No float atomics and no wait of the host:
the same numbers each time, whatever else runs. A round too many changes nothing, so all are done.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100
DIVIDED = 16  # centroids that a program of the second launch divides


def kmeans(
    points: Tensor,
    start: Tensor,
    rounds: int,
    precision: str = "ieee",
    block: int | None = None,
    shares: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Centroids float32 [G,s,C,d] after `rounds` rounds from start [G,s,C,d], and the labels uint8 [G,s,n] they give.

    points [G,s,n,d], as a view of keys [G,n,D] too; C <= 256. A point goes to the nearest centroid (L2), equal
    distances: the lower label. An empty cluster keeps its centroid. Products are exact for points of two bytes, which
    meet centroids of twice their digits; for float32 points `precision` is that of tl.dot ("tf32" is faster). Sums are
    float32.
    block: points that a program holds at once. shares: programs that split the points of a problem.
    """
    num_kv_heads, num_sub, n, dim = points.shape
    num_centroids = start.shape[2]
    assert points.stride(3) == 1 and num_centroids <= 256
    centroids = start.float().contiguous().clone()
    labels = torch.empty(num_kv_heads, num_sub, n, dtype=torch.uint8, device=points.device)
    tiles = label_tiles(num_centroids, dim, points.element_size(), block)
    num_problems = num_kv_heads * num_sub
    most = shares or PROGRAMS // max(1, num_problems)
    shares = max(1, min(most, triton.cdiv(n, tiles["BLOCK"])))
    sums = torch.empty(shares, num_problems, num_centroids, dim, dtype=torch.float32, device=points.device)
    counts = torch.empty(shares, num_problems, num_centroids, dtype=torch.int32, device=points.device)
    if labels.numel() == 0:
        return centroids, labels
    strides = points.stride(0), points.stride(1), points.stride(2)
    stripes = triton.cdiv(num_centroids, DIVIDED)
    for number in range(rounds + 1):
        last = number == rounds
        label_points[num_problems, shares](
            points, centroids, labels, sums, counts, *strides, n, num_sub, num_centroids, dim, precision, last, **tiles
        )
        if not last:
            divide[num_problems, stripes](
                sums, counts, centroids, shares, num_centroids, dim, DIVIDED, tiles["DIMS"], num_warps=2
            )
    return centroids, labels


def label_tiles(num_centroids: int, dim: int, size: int, block: int | None = None) -> dict[str, int]:
    """Constants of `label_points` for points of `size` bytes a channel."""
    codes, dims = max(16, triton.next_power_of_2(num_centroids)), max(16, triton.next_power_of_2(dim))
    few = codes * dims <= 4096  # many sums leave registers for fewer points: 64 would spill (Triton 3.6)
    return {"CODES": codes, "STRIPE": min(codes, 64), "DIMS": dims, "BLOCK": block or (64 if few else 32),
            "num_warps": 4 if few else 8, "num_stages": 3 if size == 2 else 2}  # fmt: skip


@triton.jit
def distances(
    x: tl.tensor,
    centroids: tl.tensor,
    first: tl.tensor,
    NUM_CENTROIDS: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    STRIPE: tl.constexpr,
    DIMS: tl.constexpr,
) -> tl.tensor:
    """Squared distances of x [points,DIMS] from STRIPE centroids, less their own squares; inf from the last one on."""
    code, channel = first + tl.arange(0, STRIPE), tl.arange(0, DIMS)
    real = (code < NUM_CENTROIDS)[:, None] & (channel < DIM)[None, :]
    centroid = tl.load(centroids + code[:, None] * DIM + channel[None, :], mask=real, other=0.0)
    square = tl.where(code < NUM_CENTROIDS, tl.sum(centroid * centroid, 1), float("inf"))
    # The centroids as a sum of two numbers of the points' type: 16 digits of bfloat16, 22 of float16.
    high = centroid.to(x.dtype)
    product = tl.dot(x, tl.trans(high), input_precision=PRECISION)
    if x.dtype != tl.float32:
        low = (centroid - high.to(tl.float32)).to(x.dtype)
        product = tl.dot(x, tl.trans(low), product)
    return square[None, :] - 2.0 * product


@triton.jit
def label_points(
    points: tl.tensor,
    centroids: tl.tensor,
    labels: tl.tensor,
    sums: tl.tensor,
    counts: tl.tensor,
    stride_head: tl.tensor,
    stride_sub: tl.tensor,
    stride_point: tl.tensor,
    n: tl.tensor,
    NUM_SUB: tl.constexpr,
    NUM_CENTROIDS: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    LAST: tl.constexpr,
    CODES: tl.constexpr,
    STRIPE: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A share of a problem's points: their labels if LAST, else sums [share,p,C,d] and counts [share,p,C] by label."""
    problem, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    size = tl.cdiv(tl.cdiv(n, BLOCK), tl.num_programs(1)) * BLOCK
    first = share * size
    end = tl.minimum(first + size, n)
    code, channel = tl.arange(0, CODES), tl.arange(0, DIMS)
    real = (code < NUM_CENTROIDS)[:, None] & (channel < DIM)[None, :]
    point = points + problem // NUM_SUB * stride_head + problem % NUM_SUB * stride_sub
    total = tl.zeros([CODES, DIMS], tl.float32)
    number = tl.zeros([CODES], tl.int32)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        held = i < end
        here = point + i.to(tl.int64)[:, None] * stride_point + channel[None, :]
        x = tl.load(here, mask=held[:, None] & (channel < DIM)[None, :], other=0.0)
        label = tl.zeros([BLOCK], tl.int32)
        best = tl.full([BLOCK], float("inf"), tl.float32)
        # Of many centroids only some at a time: all would not fit the registers. Of few, this loop is none.
        for some in range(0, CODES, STRIPE):
            own_centroids = centroids + problem * NUM_CENTROIDS * DIM
            distance = distances(x, own_centroids, some, NUM_CENTROIDS, DIM, PRECISION, STRIPE, DIMS)
            near = tl.min(distance, 1)
            label = tl.where(near < best, tl.argmin(distance, 1) + some, label)
            best = tl.minimum(near, best)
        if LAST:
            tl.store(labels + problem * n + i, label.to(tl.uint8), mask=held)
        else:
            own = (code[:, None] == label[None, :]) & held[None, :]
            total = tl.dot(own.to(x.dtype), x, total, input_precision=PRECISION)
            number += tl.sum(own.to(tl.int32), 1)
    if not LAST:
        row = (share * tl.num_programs(0) + problem) * NUM_CENTROIDS + code
        tl.store(sums + row[:, None] * DIM + channel[None, :], total, mask=real)
        tl.store(counts + row, number, mask=code < NUM_CENTROIDS)


@triton.jit
def divide(
    sums: tl.tensor,
    counts: tl.tensor,
    centroids: tl.tensor,
    shares: tl.tensor,
    NUM_CENTROIDS: tl.constexpr,
    DIM: tl.constexpr,
    STRIPE: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """The new centroids of a stripe of a problem's: sums by counts; the old one where nothing was counted."""
    problem, num_problems = tl.program_id(0), tl.num_programs(0)
    code, channel = tl.program_id(1) * STRIPE + tl.arange(0, STRIPE), tl.arange(0, DIMS)
    real = (code < NUM_CENTROIDS)[:, None] & (channel < DIM)[None, :]
    total = tl.zeros([STRIPE, DIMS], tl.float32)
    number = tl.zeros([STRIPE], tl.int32)
    for share in range(shares):
        row = (share * num_problems + problem).to(tl.int64) * NUM_CENTROIDS + code
        total += tl.load(sums + row[:, None] * DIM + channel[None, :], mask=real, other=0.0)
        number += tl.load(counts + row, mask=code < NUM_CENTROIDS, other=0)
    place = centroids + (problem * NUM_CENTROIDS + code)[:, None] * DIM + channel[None, :]
    mean = total / tl.maximum(number, 1).to(tl.float32)[:, None]
    tl.store(place, mean, mask=real & (number > 0)[:, None])


def kmeans_reference(points: Tensor, start: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """The same in PyTorch, with all distances in memory and float64 arithmetic."""
    x, centroids = points.double(), start.double()
    labels = torch.cdist(x, centroids).argmin(-1)
    for _ in range(rounds):
        own = torch.nn.functional.one_hot(labels, start.shape[2]).double()
        number = own.sum(2)[..., None]
        centroids = torch.where(number > 0, own.mT @ x / number.clamp(min=1), centroids)
        labels = torch.cdist(x, centroids).argmin(-1)
    return centroids.float(), labels.to(torch.uint8)


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    strides = {"stride_head": "i32", "stride_sub": "i32", "stride_point": "i32"}
    types = {"points": "*bf16", "centroids": "*fp32", "labels": "*u8", "sums": "*fp32", "counts": "*i32", **strides,
             "n": "i32", "shares": "i32"}  # fmt: skip
    single = {**types, "points": "*fp32"}
    fixed = {"NUM_SUB": 2, "DIM": 64, "PRECISION": "ieee"}
    small, large = ({**fixed, "NUM_CENTROIDS": size, **label_tiles(size, 64, 2)} for size in (64, 256))
    wide = {**fixed, "NUM_CENTROIDS": 64, **label_tiles(64, 64, 4), "LAST": False}
    return [
        *((label_points, types, {**shape, "LAST": last}) for shape in (small, large) for last in (False, True)),
        (label_points, single, wide),
        (divide, types, {"NUM_CENTROIDS": 64, "DIM": 64, "STRIPE": DIVIDED, "DIMS": 64, "num_warps": 2}),
    ]
