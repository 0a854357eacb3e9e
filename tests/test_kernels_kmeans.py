"""The clustering kernels do what `methods.pqcache.codebook.kmeans` does; run on a CPU they are interpreted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods.kernels.kmeans import kmeans, kmeans_reference
from methods.pqcache import codebook

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
G = 2


def sub_vectors(num_sub: int, n: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Keys [G,n,D] inside a larger buffer, around a few centres, as sub-vectors [G,s,n,d] that are not copied."""
    generator = torch.Generator().manual_seed(n + dim)
    centres = 2 * torch.randn(9, num_sub * dim, generator=generator)
    near = torch.randint(9, (G, n), generator=generator)
    keys = centres[near] + torch.randn(G, n, num_sub * dim, generator=generator)
    wide = torch.nn.functional.pad(keys, (8, 8, 1, 2)).to(DEVICE, dtype)
    sub: Tensor = wide[:, 1:-2, 8:-8].unflatten(-1, (num_sub, -1))
    return sub.transpose(1, 2)


@pytest.mark.parametrize(
    ("num_sub", "n", "dim", "num_centroids", "rounds", "dtype"),
    [
        (2, 110, 32, 16, 2, torch.float32),
        (1, 97, 40, 10, 2, torch.float16),
        (2, 70, 16, 64, 1, torch.float16),
        (1, 40, 16, 40, 0, torch.float32),
        (1, 99, 16, 80, 1, torch.float16),
    ],
)
def test_the_same_clusters(num_sub: int, n: int, dim: int, num_centroids: int, rounds: int, dtype: torch.dtype) -> None:
    points = sub_vectors(num_sub, n, dim, dtype)
    start = torch.arange(num_centroids, device=DEVICE)
    given = points, points[:, :, start].float(), rounds
    centroids, labels = kmeans(*given, block=16, shares=3)
    expected, expected_labels = kmeans_reference(*given)
    torch.testing.assert_close(centroids, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(labels, expected_labels)
    plain, plain_labels = codebook.kmeans(points.float().flatten(0, 1), start, rounds)
    torch.testing.assert_close(centroids.flatten(0, 1), plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(labels.flatten(0, 1).long(), plain_labels)


def test_rounds_after_the_end_change_nothing() -> None:
    points = sub_vectors(1, 60, 16, torch.float32)
    start = points[:, :, :4].float()
    few, many = (kmeans(points, start, rounds, block=32) for rounds in (9, 10))
    assert torch.equal(few[0], many[0]) and torch.equal(few[1], many[1])
    assert not torch.equal(few[0], kmeans(points, start, 1, block=32)[0])


def test_an_empty_cluster_stays_and_of_equals_the_lower_label_wins() -> None:
    points = torch.tensor([[1.0], [-1.0], [0.0], [5.0]], device=DEVICE).repeat(1, 16)[None, None]
    start = torch.tensor([[-1.0], [1.0], [1.0], [90.0]], device=DEVICE).repeat(1, 16)[None, None]
    centroids, labels = kmeans(points, start, 0, block=16)
    assert torch.equal(centroids, start) and labels.tolist() == [[[1, 0, 0, 1]]]
    centroids, labels = kmeans(points, start, 1, block=16)
    assert centroids[0, 0, :, 0].tolist() == [-0.5, 3.0, 1.0, 90.0] and labels.tolist() == [[[2, 0, 0, 1]]]


def test_a_lower_label_wins_among_many_centroids_too() -> None:
    """Labels 3 and 66 are met at different times."""
    start = torch.full((1, 1, 70, 16), 9.0, device=DEVICE)
    start[0, 0, 66] = start[0, 0, 3] = 1.0
    assert kmeans(torch.ones(1, 1, 5, 16, device=DEVICE), start, 0, block=16)[1].tolist() == [[[3] * 5]]


def test_centroids_are_finer_than_half_precision_points() -> None:
    points = torch.ones(1, 1, 5, 16, dtype=torch.float16, device=DEVICE)
    start = torch.tensor([[1.5], [0.5 + 2.0**-13]], device=DEVICE).repeat(1, 16)[None, None]
    assert kmeans(points, start, 0, block=16)[1].tolist() == [[[1] * 5]]


def test_no_points() -> None:
    centroids, labels = kmeans(torch.zeros(2, 2, 0, 16, device=DEVICE), torch.ones(2, 2, 4, 16, device=DEVICE), 3)
    assert (centroids == 1).all() and labels.shape == (2, 2, 0)
