"""PQCache's kernels give the scores and codes of the plain formulas; run on a CPU they are interpreted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods.kernels.pq import encode_one, encode_one_reference, pq_scores, pq_scores_reference
from methods.pqcache.codebook import Codebook, split_heads
from methods.scores import group_sum

G = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_case(group: int, num_sub: int, num_centroids: int, dim: int, num_tokens: int) -> tuple[Tensor, Codebook]:
    """Queries [H,D] and a codebook: logits spread so far that a softmax has both large and vanishing parts."""
    generator = torch.Generator().manual_seed(group * num_centroids + num_tokens)
    queries = torch.randn(G * group, dim, generator=generator) * 2
    centroids = torch.randn(G, num_sub, num_centroids, dim // num_sub, generator=generator) * 2
    codes = torch.randint(num_centroids, (G, num_sub, num_tokens), generator=generator, dtype=torch.uint8)
    return queries.to(DEVICE), Codebook(centroids.to(DEVICE), codes.to(DEVICE))


def plain(queries: Tensor, book: Codebook, limit: int, scale: float, softcap: float | None) -> Tensor:
    """What `PQIndex.select` computes for the first `limit` tokens."""
    logits = book.inner_products(queries, book.codes[:, :, :limit]) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return group_sum(logits.softmax(-1), G)


@pytest.mark.parametrize(
    ("group", "num_sub", "num_centroids", "dim", "softcap"),
    [(3, 2, 16, 32, None), (4, 2, 64, 32, None), (1, 4, 256, 48, 3.0), (7, 4, 100, 24, None), (3, 1, 32, 16, 20.0)],
)
def test_scores_are_the_group_sums_of_the_softmax(
    group: int, num_sub: int, num_centroids: int, dim: int, softcap: float | None
) -> None:
    num_tokens, scale = 50, dim**-0.5
    tile = 32 << (group - 1).bit_length()  # programs of 32 tokens
    queries, book = random_case(group, num_sub, num_centroids, dim, num_tokens)
    given = queries, book.centroids, book.codes
    for limit in (1, 32, 33, num_tokens):
        end = torch.tensor(limit, device=DEVICE)
        scores = pq_scores(*given, end, scale, softcap, tile)
        expected = plain(queries, book, limit, scale, softcap)
        torch.testing.assert_close(scores[:, :limit], expected, atol=1e-6, rtol=1e-5)
        assert (scores[:, limit:] == -1).all()
        reference = pq_scores_reference(*given, end, scale, softcap)
        torch.testing.assert_close(scores, reference, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(scores[:, :limit].sum(1), torch.full((G,), float(group), device=DEVICE))


def test_one_program_or_many_give_the_same_scores() -> None:
    queries, book = random_case(3, 2, 16, 32, 75)
    end = torch.tensor(70, device=DEVICE)
    whole, split = (pq_scores(queries, book.centroids, book.codes, end, 0.3, None, tile) for tile in (4096, 64))
    torch.testing.assert_close(whole, split, atol=1e-6, rtol=1e-5)


def test_codes_of_a_larger_buffer_and_strided_queries() -> None:
    """Codes have room behind their tokens; what lies there, and beyond the limit, is not read."""
    queries, book = random_case(4, 2, 16, 32, 40)
    buffer = torch.full((G, 3, 60), 255, dtype=torch.uint8, device=DEVICE)  # no such centroid
    buffer[:, :2, :40] = book.codes
    wide = torch.nn.functional.pad(queries, (0, 8))
    scores = pq_scores(wide[:, :32], book.centroids, buffer[:, :2], torch.tensor(40, device=DEVICE), 0.2, None, tile=64)
    torch.testing.assert_close(scores[:, :40], plain(queries, book, 40, 0.2, None), atol=1e-6, rtol=1e-5)
    assert (scores[:, 40:] == -1).all()


def test_a_vanishing_token_ranks_before_any_beyond_the_limit() -> None:
    """A probability that underflows to 0 is still a candidate; logits of +-1e4 overflow nothing."""
    centroids = torch.tensor([[[[100.0], [-100.0]]]], device=DEVICE)
    codes = torch.tensor([[[0, 1, 0, 1]]], dtype=torch.uint8, device=DEVICE)
    scores = pq_scores(
        torch.full((1, 1), 100.0, device=DEVICE), centroids, codes, torch.tensor(2, device=DEVICE), 1.0, None
    )
    assert scores.tolist() == [[1.0, 0.0, -1.0, -1.0]]


def test_no_candidates_no_scores() -> None:
    queries, book = random_case(3, 2, 16, 32, 10)
    none = torch.tensor(0, device=DEVICE)
    for score in (pq_scores, pq_scores_reference):
        assert (score(queries, book.centroids, book.codes, none, 1.0, None) == -1).all()


@pytest.mark.parametrize(("num_sub", "num_centroids", "dim"), [(2, 64, 32), (4, 20, 48), (2, 256, 16)])
def test_a_new_token_is_coded_like_those_of_the_prompt(num_sub: int, num_centroids: int, dim: int) -> None:
    keys, book = random_case(3, num_sub, num_centroids, dim, 6)
    found, reference = book.codes.clone(), book.codes.clone()
    expected = book.codes.clone()
    for at in (4, 0):
        key = keys[at : at + G]
        encode_one(key, book.centroids, found, torch.tensor(at, device=DEVICE))
        encode_one_reference(key, book.centroids, reference, torch.tensor(at, device=DEVICE))
        expected[:, :, at] = book.encode(key[:, None])[:, :, 0]
        distances = torch.cdist(split_heads(key[:, None], num_sub), book.centroids)[:, :, 0]
        taken = distances.gather(2, found[:, :, at, None].long())[..., 0]
        torch.testing.assert_close(taken, distances.amin(-1))
    assert torch.equal(found, expected) and torch.equal(reference, expected)


def test_equal_distances_take_the_lower_code_and_half_precision_keys_are_read() -> None:
    keys = torch.tensor([[1.0, 0.0]], device=DEVICE).half()
    centroids = torch.tensor([[[[0.0], [2.0]], [[1.0], [-1.0]]]], device=DEVICE)
    codes = torch.full((1, 2, 3), 9, dtype=torch.uint8, device=DEVICE)
    encode_one(keys, centroids, codes, torch.tensor(1, device=DEVICE))
    assert codes.tolist() == [[[9, 0, 9], [9, 0, 9]]]
