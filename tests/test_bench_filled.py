"""A filled cache is like that of a real prefill of its length, and noise is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.miniature import read
from engine.arm import Plan
from engine.filled import SEEN, LastQueries, Watching, drawn, filled, sampled, turned
from engine.generate import NO_BUDGET, prefill
from engine.load import load
from engine.model import Model
from engine.prompt import token_ids
from engine.spec import ModelSpec
from methods.base import Budget, Layer
from methods.h2o.method import H2O
from methods.pqcache.codebook import fit
from methods.scores import ColumnSums, logits

LENGTH = 1536


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load(ModelSpec("tiny", "data/tiny"), "cpu", "float32", "sdpa", 4096, seed=0)


def text(model: Model, task: str, num_tokens: int) -> Tensor:
    ids = [token for sample in read(task).samples[8:11] for token in token_ids(model.tokenizer, sample.context)]
    return torch.tensor(ids[:num_tokens])


def described(layer: Layer, keys: Tensor, queries: Tensor) -> Tensor:
    """Spread of the logits, attention on the heaviest tenth, and what 32 clusters leave of the keys' variance."""
    score = logits(queries[:, ::2], keys, layer)
    heaviest = score.softmax(-1).sort(-1, descending=True).values[..., : keys.shape[1] // 10].sum(-1)
    book = fit(keys, 2, 32, 3, seed=0)
    parts = keys.unflatten(-1, (2, -1)).transpose(1, 2)
    nearest = book.centroids.gather(2, book.codes.long()[..., None].expand(-1, -1, -1, parts.shape[3]))
    left = (parts - nearest).square().sum() / (parts - parts.mean(2, keepdim=True)).square().sum()
    return torch.stack([score.std(-1).mean(), heaviest.mean(), left])


def test_a_filled_cache_has_the_statistics_of_a_real_prefill_and_noise_has_not(tiny: Model) -> None:
    sample = sampled(tiny, text(tiny, "narrativeqa", 768))
    fake = filled(tiny, sample, LENGTH, [], seed=0)
    real = prefill(tiny, tiny.layers(0), text(tiny, "qasper", LENGTH), [Plan("real", Watching(), NO_BUDGET)])
    for number, layer in enumerate(tiny.layers(0)):
        plain, seen = sample.layers[number].queries, real.seen[number]["last_queries"]
        assert plain is not None and isinstance(seen, Tensor)
        want = described(layer, real.keys[number], seen)
        have = described(layer, fake.keys[number], turned(layer, plain, LENGTH - SEEN, True, False))
        torch.testing.assert_close(have, want, rtol=0.08, atol=0.01)
        keys = real.keys[number]
        noise = torch.randn(keys.shape, generator=torch.Generator().manual_seed(0)) * keys.std()
        off = (described(layer, noise, seen) / want - 1).abs()
        assert off.max() > 0.25, f"layer {number}: noise would do, {off.tolist()}"


def test_keys_are_those_of_the_sample_turned_to_their_new_positions(tiny: Model) -> None:
    sample = sampled(tiny, text(tiny, "narrativeqa", 512))
    prefix = filled(tiny, sample, 700, [], seed=1)
    rows, layer = drawn(512, 700, seed=1), tiny.layers(1)[1]
    plain = turned(layer, prefix.keys[1], 0, True, True)
    close = (plain - sample.layers[1].keys[:, rows]).abs() / sample.layers[1].keys.std(1, keepdim=True)
    assert close.median() < 0.06 and close.max() < 0.4  # the noise, not another row
    assert prefix.num_tokens == 700 and prefix.values[0].shape == (4, 700, 64)
    assert len(torch.unique(prefix.keys[1][0], dim=0)) == 700  # no two tokens are equal


def test_first_and_last_tokens_stay_where_they_were() -> None:
    rows = drawn(1024, 5000, seed=0)
    assert rows[:64].tolist() == list(range(64)) and rows[-SEEN:].tolist() == list(range(1024 - SEEN, 1024))
    assert rows.shape == (5000,) and (rows[64:128].diff() == 1).all()
    with pytest.raises(ValueError, match="a sample of 100 tokens"):
        drawn(100, 5000, seed=0)


def test_observers_see_the_last_queries_over_all_keys(tiny: Model) -> None:
    sample = sampled(tiny, text(tiny, "narrativeqa", 512))
    plan = Plan("h2o", H2O(), Budget(4, 64, 64))
    prefix = filled(tiny, sample, 1000, [plan], seed=0)
    layer = tiny.layers(0)[0]
    sums = prefix.seen[0][ColumnSums(layer).key]
    assert isinstance(sums, Tensor) and sums.shape == (4, 1000)
    assert torch.allclose(sums.sum(1), torch.full((4,), 2.0 * SEEN), rtol=1e-3)  # each query's row adds up to 1


def test_last_queries_may_span_chunks() -> None:
    observer, q = LastQueries(), torch.randn(2, 400, 4)
    for a in range(0, 400, 100):
        observer.see(q[:, a : a + 100], q, None, a)
    assert torch.equal(observer.queries if observer.queries is not None else q, q[:, -SEEN:])
