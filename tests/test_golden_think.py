"""ThinK keeps the channels that its authors' code and kvpress keep."""

from __future__ import annotations

import pytest
import torch

from methods.base import Budget
from methods.eviction import WindowScored
from methods.narrow import Narrowing, NarrowStore, mean_square
from methods.narrow_eviction import NarrowEvictingStore, NarrowEviction
from methods.think import Think
from tests.golden import Driven, Golden, layer_of, names, rotate_half, sets

NO_BUDGET = Budget(0, 0, 0)


@pytest.mark.parametrize("name", names("think_"))
def test_channels_and_pruned_keys(name: str) -> None:
    """What SnapKV evicts before, in one of the files, is taken from there: tokens in the order of the file."""
    g = Golden(name)
    q, all_keys, kept = g["q"], g["k"], g["out_kept_tokens"]
    k = torch.stack([head[rows] for head, rows in zip(all_keys, kept, strict=True)])
    method = Think(round(float(g.arrays["p_ratio"]), 6), g.p("recent"))
    layer = layer_of(q.shape[0], k.shape[0], q.shape[2])
    score = method.energy(layer)
    score.see(q, k, None, 0)
    found = score.finish(k, k) * mean_square(k)
    torch.testing.assert_close(found, g["out_channel_score"], rtol=1e-4, atol=0)
    store = Driven.start(method, NO_BUDGET, layer, q, k, k).state.store
    assert isinstance(store, NarrowStore) and store.channels is not None
    assert sets(store.channels.kept) == sets(g["out_kept_channels"])
    assert torch.equal(store.old_k[0], g["out_pruned_k_head0"])


@pytest.mark.parametrize("name", names("kvpress_think"))
def test_channels_of_a_group(name: str) -> None:
    g = Golden(name)
    everywhere = torch.arange(g.p("prompt_len"))
    q, k = (rotate_half(g[x], everywhere, False) for x in ("q_prerope", "k_prerope"))
    method = Think(round(float(g.arrays["p_ratio"]), 6), window=g.p("window_size"))
    layer = layer_of(q.shape[0], k.shape[0], q.shape[2])
    score = method.energy(layer)
    score.see(q, k, None, 0)
    torch.testing.assert_close(score.finish(k, k) * mean_square(k), g["out_score"], rtol=1e-4, atol=1e-4)
    store = Driven.start(method, NO_BUDGET, layer, q, k, k).state.store
    assert isinstance(store, NarrowStore) and store.channels is not None
    assert sets(store.channels.kept) == sets(g["out_kept_channels"])


@pytest.mark.parametrize("name", [name for name in names("think_") if Golden(name).p("capacity")])
def test_after_snapkv_s_eviction(name: str) -> None:
    """Tokens, channels and narrow keys of the composition. Only scores may differ by the order of summation."""
    g = Golden(name)
    q, k, kept = g["q"], g["k"], g["out_kept_tokens"]
    think = Narrowing(round(float(g.arrays["p_ratio"]), 6), g.p("recent"))
    method = NarrowEviction(think, WindowScored(g.p("window"), kernel=7, pool="avg"))
    layer, window = layer_of(q.shape[0], k.shape[0], q.shape[2]), g.p("window")
    store = Driven.start(method, Budget(0, window, g.p("capacity") - window), layer, q, k, k).state.store
    assert isinstance(store, NarrowEvictingStore) and store.channels is not None
    assert sets(store.positions()) == sets(kept)
    assert sets(store.channels.kept) == sets(g["out_kept_channels"])
    # The file has the tokens by score, the store by position.
    by_position = kept[0, : kept.shape[1] - g.p("recent")].argsort()
    assert torch.equal(store.old.k[0], g["out_pruned_k_head0"][by_position])
