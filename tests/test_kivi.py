"""KIVI off is full attention, more bits come nearer to it, and its bytes are those of packed codes with scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from configs.compose import compose_method
from engine.arm import Plan
from engine.generate import Question, Stop, answer
from methods.base import Budget
from methods.kivi import Kivi
from methods.quantised import Grid, QuantisedStore, quantised, restored
from scripts.conformance import Case
from tests.golden import layer_of
from tests.models import model_of, networks, prompt_ids

NO_BUDGET = Budget(0, 0, 0)


def gap(bits: int) -> float:
    """How far logits are from full attention's, on a random model, with 3/4 of 150 tokens in codes."""
    case = Case(Kivi(bits, 16, 32), "group2")  # type: ignore[arg-type]
    found = case.follow(None, 150, 24).logits
    return float((found - case.tiny.dense(150, 24)).abs().max())


def test_off_is_full_attention_and_more_bits_come_nearer() -> None:
    gaps = [gap(bits) for bits in (16, 8, 4, 2)]
    assert gaps[0] < 1e-3
    assert gaps[0] < gaps[1] < gaps[2] / 4 < gaps[3] / 8, gaps


@pytest.mark.parametrize(("bits", "group", "each"), [(2, 32, 3.0), (2, 64, 2.5), (2, 128, 2.25), (4, 32, 5.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_are_counted(bits: int, group: int, each: float, dtype: torch.dtype) -> None:
    layer = replace(layer_of(4, 2, 128), dtype=dtype)
    k, v = torch.randn(2, 300, 128, dtype=dtype), torch.randn(2, 300, 128, dtype=dtype)
    store = Kivi(bits, group, 128).store(layer, NO_BUDGET, k, v)  # type: ignore[arg-type]
    assert isinstance(store, QuantisedStore)
    assert store.notes() == {"bits_per_number": each}
    num_codes, num_late = 256 + 172, 44 + 128
    held = sum(t.untyped_storage().nbytes() for _, t in store.tensors())
    assert held == 2 * 128 * (num_codes * each / 8 + num_late * k.element_size())
    store.held()
    assert store.traffic.kv == held, "a step reads codes, scales and the latest tokens"


def test_the_ledger_has_real_bytes_and_the_prompt_is_freed() -> None:
    model = model_of(networks("llama", head_dim=64)[0])
    question = Question(prompt_ids(700), 0, Stop(20, frozenset()))
    [found] = answer(model, question, [Plan("kivi", Kivi(residual=32), None)])
    ledger = found.ledger
    assert ledger.store == "real" and ledger.attended_max == 718 and ledger.budget_tokens is None
    assert ledger.notes == {"bits_per_number": 3.0}
    # 719 tokens are stored: 704 keys and 687 values are codes of 3 bits, in place of 32.
    exact = 2 * 3 * 64 * ((704 + 687) * 3 / 8 + (15 + 32) * 4)
    assert sum(ledger.resident.values()) == exact
    assert exact < 0.13 * ledger.resident_full and ledger.moved["kv"] < 0.15 * ledger.resident_full


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_half_a_step_at_most(bits: int, dim: int) -> None:
    x = torch.randn(2, 64, 64) * 3
    grid = Grid(bits, 32, dim, torch.float16)
    rows = quantised(x, grid)
    step = rows.scale.float().repeat_interleave(32, dim)
    error = (restored(rows, grid, x.dtype) - x).abs()
    # float16 holds scale and minimum to 2^-11 of their size.
    assert (error <= step * (0.5 + 2**bits * 2**-11) + x.abs().max() * 2**-10).all()


def test_equal_numbers_are_kept_and_nothing_is_nan() -> None:
    x = torch.full((1, 64, 32), 1.5)
    for dim in (1, 2):
        grid = Grid(2, 32, dim, torch.float16)
        rows = quantised(x, grid)
        assert torch.equal(restored(rows, grid, x.dtype), x)
        assert (rows.words == 0).all(), "a range of nothing was divided by"


def test_a_token_is_exact_in_its_own_step_and_reads_are_alike() -> None:
    torch.manual_seed(0)
    layer = layer_of(4, 2, 32)
    k, v = torch.randn(2, 95, 32), torch.randn(2, 95, 32)
    store = Kivi(residual=32).store(layer, NO_BUDGET, k, v)
    new = torch.randn(2, 1, 32), torch.randn(2, 1, 32)
    store.append(*new, 95)
    [part] = store.held()
    assert torch.equal(part.k[:, 64:], torch.cat([k[:, 64:], new[0]], 1))
    assert torch.equal(part.v[:, 63:], torch.cat([v[:, 63:], new[1]], 1))
    positions = torch.tensor([[5, 95, 64], [0, 63, 80]])
    for found, whole in zip(store.gather(positions), (part.k, part.v), strict=True):
        assert torch.equal(found, torch.stack([whole[head, row] for head, row in enumerate(positions)]))
    assert isinstance(store, QuantisedStore)
    store.settle()
    [part] = store.held()
    assert not torch.equal(part.k[:, 64:], torch.cat([k[:, 64:], new[0]], 1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.group=24", "method.group=24: give a multiple of 16"),
        ("method.residual=48", "method.residual=48: give a multiple of method.group=32"),
        ("method.bits=3", "method.bits=3: "),
    ],
)
def test_what_cannot_be_packed_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_method("kivi", [override])


def test_a_model_whose_heads_are_no_whole_groups_is_refused() -> None:
    facts = model_of(networks("llama", head_dim=48)[0]).facts
    assert "48 channels are no whole groups of method.group=32" in str(Kivi().supports(facts))
    assert Kivi(bits=16).supports(facts) is None and Kivi(group=16).supports(facts) is None
    assert "fill no whole words" in str(Kivi().supports(replace(facts, head_dim=8)))
