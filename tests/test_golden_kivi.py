"""KIVI gives the codes, the flow and the outputs of its authors' code."""

from __future__ import annotations

import pytest
import torch

from methods.base import Budget
from methods.kivi import Kivi
from methods.quantised import Grid, QuantisedStore, codes_of, quantised, restored
from tests.golden import Driven, Golden, layer_of, names


@pytest.mark.parametrize("name", names("kivi_pack"))
def test_codes_scales_and_words(name: str) -> None:
    g = Golden(name)
    for which, dim in (("k", 1), ("v", 2)):
        x, grid = g[which], Grid(g.p("bits"), g.p("group"), dim, torch.float32)
        found = quantised(x, grid)
        torch.testing.assert_close(found.scale, g[f"out_{which}_scale"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.low, g[f"out_{which}_min"], rtol=1e-4, atol=1e-5)
        assert torch.equal(codes_of(found.words, grid), g[f"out_{which}_code"].int())
        assert torch.equal(found.words[0], g[f"out_{which}_packed_head0"].int())
        torch.testing.assert_close(restored(found, grid, x.dtype), g[f"out_{which}_dequant"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", names("kivi_flow"))
def test_what_is_quantised_when_and_what_is_answered(name: str) -> None:
    g = Golden(name)
    n, (q, k, v) = g.p("prompt_len"), (g[x] for x in "qkv")
    method = Kivi(g.p("bits"), g.p("group"), g.p("residual"), "float32")  # type: ignore[arg-type]
    layer = layer_of(q.shape[0], k.shape[0], q.shape[2])
    driven = Driven.start(method, Budget(0, 0, 0), layer, q[:, :n], k[:, :n], v[:, :n])
    store = driven.state.store
    assert isinstance(store, QuantisedStore)
    for t in range(g.p("steps") + 1):
        assert [store.num_k, store.late_k.shape[1]] == g["out_k_counts"][t].tolist()
        assert [store.num_v, store.late_v.shape[1]] == g["out_v_counts"][t].tolist()
        if t < g.p("steps"):
            at = slice(n + t, n + t + 1)
            y = driven.step(q[:, at], k[:, at], v[:, at], n + t)
            torch.testing.assert_close(y[:, 0], g["out_y"][t], rtol=1e-4, atol=1e-3)
    [part] = store.held()
    torch.testing.assert_close(part.k, g["out_k_final"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part.v, g["out_v_final"], rtol=1e-4, atol=1e-4)
