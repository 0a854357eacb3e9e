"""What methods share is right: column sums without the whole matrix, top-k with ties, the model's own rotation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.attention import Dense, dense, eager, log_sum_exp
from engine.prefill import LayerPrefill, Prefill
from engine.seam import forward
from methods import scores
from methods.base import Observer
from methods.scores import ColumnSums, group_sum, logits, top_k
from tests.golden import layer_of
from tests.models import FAMILIES, model_of, networks, prompt_ids

H, G, D, N = 4, 2, 16, 70


def rows(count: int, heads: int, seed: int) -> Tensor:
    return torch.randn(heads, count, D, generator=torch.Generator().manual_seed(seed)) * 2


def attention(q: Tensor, k: Tensor, window: int | None = None) -> Tensor:
    score = logits(q, k, layer_of(H, G, D)).masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf)
    weights = score.softmax(-1)
    if window is not None:
        weights = weights * (torch.arange(N)[:, None] - torch.arange(N) < window)
    return weights


@pytest.mark.parametrize("chunk", [N, 1, 7, 64])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("limit", [1 << 25, H * N * 3])
def test_column_sums_equal_the_whole_matrix(
    chunk: int, window: int | None, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "MAX_ELEMENTS", limit)
    q, k = rows(N, H, 1), rows(N, G, 2)
    layer = layer_of(H, G, D)
    seen = ColumnSums(layer, window, grouped=window is None)
    for start in range(0, N, chunk):
        stop = min(N, start + chunk)
        lse = log_sum_exp(layer, Dense("sdpa"), q[:, start:stop], k[:, :stop], start)
        seen.see(q[:, start:stop], k[:, :stop], lse, start)
    expected = attention(q, k, window).sum(1)
    found = seen.finish(k, k)
    torch.testing.assert_close(found, expected if window else group_sum(expected, G), rtol=1e-4, atol=1e-4)
    if window is None:
        torch.testing.assert_close(found.sum(1), torch.full((G,), float(N * H // G)))


@pytest.mark.parametrize("window", [None, 13])
@pytest.mark.parametrize("start", [0, 30])
def test_backends_agree(window: int | None, start: int) -> None:
    q, k, v = rows(N - start, H, 1), rows(N, G, 2), rows(N, G, 3)
    layer = layer_of(H, G, D)
    expected, expected_lse = eager(layer, Dense("eager", window), q, k, v, start)
    found, lse = dense(layer, Dense("sdpa", window), q, k, v, start, True)
    assert lse is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_top_k_takes_the_lower_position_of_equal_scores() -> None:
    score = torch.tensor([[1.0, 3.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert top_k(score, 3).tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert top_k(score, 1).tolist() == [[1], [0], [0]]
    assert top_k(score, 9).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert top_k(score, 0).shape == (3, 0)


def test_top_k_equals_a_sort_on_random_scores_with_ties() -> None:
    score = torch.randint(0, 6, (50, 40), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 7, 39):
        expected = (-score).argsort(dim=1, stable=True)[:, :k].sort(1).values
        assert torch.equal(top_k(score, k), expected)


@pytest.mark.parametrize("family", ["llama", "llama3_rope", "gemma3", "phi3", "qwen3"])
def test_rotation_is_the_models_own(family: str) -> None:
    """Un-rotating the seam's keys and rotating them elsewhere keeps inner products at equal distances."""
    assert family in FAMILIES
    model = model_of(networks(family)[0])
    layer = model.layers(0)[1]
    x, y = rows(5, G, 4), rows(5, G, 5)
    at = torch.tensor([0, 3, 11, 200, 900])
    there = layer.rotate(x, at, False)
    torch.testing.assert_close(layer.rotate(there, at, True), x, rtol=1e-4, atol=1e-4)
    near = (layer.rotate(x, at, False) * layer.rotate(y, at + 7, False)).sum(-1)
    far = (layer.rotate(x, at + 500, False) * layer.rotate(y, at + 507, False)).sum(-1)
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(there[:, 1:], x[:, 1:])


class Diary(Observer):
    """Writes down when a layer was seen and finished."""

    def __init__(self, layer: int, pages: list[str]) -> None:
        self.layer, self.pages = layer, pages

    @property
    def key(self) -> str:
        return "diary"

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        self.pages.append(f"see {self.layer}")

    def finish(self, keys: Tensor, values: Tensor) -> None:
        self.pages.append(f"finish {self.layer}")


def test_a_layer_is_finished_before_the_next_one_is_prefilled() -> None:
    """What an observer leaves to worker processes can only so run beside the later layers."""
    model = model_of(networks("llama")[0], prefill_chunk=40)
    layers, pages = model.layers(0), list[str]()
    states = [LayerPrefill(layer, Dense("sdpa"), N, [Diary(layer.index, pages)]) for layer in layers]
    state = Prefill(states)
    for start in (0, 40):
        state.start = start
        forward(model.network, prompt_ids(N)[None, start : start + 40], start, state)
    last = ["see 0", "finish 0", "see 1", "finish 1", "see 2", "finish 2"]
    assert pages == ["see 0", "see 1", "see 2", *last]
