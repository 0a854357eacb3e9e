"""The same answers on a CUDA device: every method against the host, both fused prefill backends against eager."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from engine.arm import Plan
from engine.generate import Question, Stop, answer, make_arm, prefill
from engine.model import Model, geometry_of
from engine.static import begin
from methods.pqcache.beside import SecondStream
from tests.models import greedy, model_of, networks, prompt_ids
from tests.test_fixed import BUDGET as FIXED_BUDGET
from tests.test_fixed import METHODS as FIXED
from tests.test_fixed import ask as ask_fixed
from tests.test_methods import NAMES, method_of, tenth
from tests.test_tiers import N, Walk

pytestmark = pytest.mark.gpu
NUM_NEW = 20


@pytest.fixture(autouse=True)
def _device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def on_gpu(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Model:
    device = torch.device("cuda")
    network = networks("llama", head_dim=64)[0].to(device, dtype)
    return replace(model_of(networks("llama")[0]), network=network, device=device, attention=attention,
                   geometry=geometry_of(network, device))  # fmt: skip


def tokens(model: Model, name: str, length: int = 300) -> tuple[int, ...]:
    method = method_of(name)
    plan = Plan(name, method, None if method.kind == "none" else tenth(method, model))
    question = Question(prompt_ids(length), 1, Stop(NUM_NEW, frozenset()))
    return answer(model, question, [plan])[0].tokens


@pytest.mark.parametrize("name", NAMES)
def test_methods_answer_as_on_the_host(name: str) -> None:
    host = model_of(networks("llama", head_dim=64)[0])
    found, expected = tokens(on_gpu(), name), tokens(host, name)
    # float32 sums differ in order; a near tie may flip a late token, not the early ones.
    assert found[:8] == expected[:8]


def test_full_equals_generate_on_the_device() -> None:
    ours, theirs = networks("llama", head_dim=64)
    assert ours is not None
    assert list(tokens(on_gpu(), "full"))[:8] == greedy(theirs.cuda(), prompt_ids(300).cuda(), NUM_NEW)[:8]


@pytest.mark.parametrize("attention", ["sdpa", "flash"])
def test_fused_prefill_agrees_with_eager_in_bfloat16(attention: str) -> None:
    if attention == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    fused, plain = on_gpu(torch.bfloat16, attention), on_gpu(torch.bfloat16, "eager")
    with torch.inference_mode():
        found, expected = (
            prefill(model, model.layers(0), prompt_ids(300), [Plan("h2o", method_of("h2o"), FIXED_BUDGET)])
            for model in (fused, plain)
        )
    # Two halves of a tie may swap, so that tokens are no measure.
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.05, atol=0.1)
    for ours, theirs in zip(found.seen, expected.seen, strict=True):
        [(_, sums)], [(_, wanted)] = ours.items(), theirs.items()
        torch.testing.assert_close(sums, wanted, rtol=0.05, atol=0.1)


def test_times_and_peak_memory_come_from_the_device() -> None:
    model = on_gpu(torch.bfloat16)
    question = Question(prompt_ids(300), 1, Stop(NUM_NEW, frozenset()))
    ledger = answer(model, question, [Plan("full", method_of("full"), None)])[0].ledger
    assert ledger.peak_bytes is not None and ledger.peak_bytes > ledger.resident_full
    assert ledger.ttft_s and ledger.tpot_s and len(ledger.tpot_s) == NUM_NEW - 1
    assert all(0 < step < 1 for step in ledger.tpot_s)


@pytest.mark.parametrize("decode", ["static", "graph"])
@pytest.mark.parametrize("name", FIXED)
def test_steps_of_fixed_shapes_answer_as_eager_ones(name: str, decode: str) -> None:
    model = on_gpu()
    fixed, eager = ask_fixed(model, FIXED[name], decode), ask_fixed(model, FIXED[name], "eager")
    assert fixed.ledger.decode == decode
    assert fixed.tokens[:8] == eager.tokens[:8]
    assert fixed.ledger.attended_mean == eager.ledger.attended_mean
    # A near tie among scores may send another row over the host link.
    assert fixed.ledger.moved["host"] == pytest.approx(eager.ledger.moved["host"], rel=0.02)


def test_a_graph_is_captured_in_bfloat16_without_a_wait_for_the_host() -> None:
    model = on_gpu(torch.bfloat16)
    for name, method in FIXED.items():
        layers = model.layers(0)
        plan = Plan(name, method, None if method.kind == "none" else FIXED_BUDGET)
        with torch.inference_mode():
            arm = make_arm(model, layers, plan, prefill(model, layers, prompt_ids(301), [plan]))
            for layer in arm.selective:
                layer.index.ready()
            static, _ = begin("graph", model, [arm], 16, audited=False)
            assert static is not None
            token = torch.full((1, 1), 5, device="cuda")
            static.step(token)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(4):
                    static.step(token)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            assert bool(static.logits.isfinite().all()), name


class Slow(SecondStream):
    """A second stream whose copies begin and end much later than they could."""

    def start(self, copy: Callable[[], None]) -> None:
        def slowly() -> None:
            torch.cuda._sleep(200_000)
            copy()
            torch.cuda._sleep(200_000)

        super().start(slowly)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("sizes", [(3, 8, 2), (4, 16, 8)])
def test_ten_thousand_steps_without_a_stale_or_torn_read(sizes: tuple[int, int, int], slow: bool) -> None:
    walk = Walk(sizes, 5, device="cuda", room=10_000)
    assert walk.tiered.host[0].is_pinned() and isinstance(walk.tiered.beside, SecondStream)
    if slow:
        walk.tiered.beside = Slow(*walk.tiered.cached)
    for now in range(N, N + 10_000):
        walk.step(now)
    assert not walk.wrong
    assert walk.tiered.traffic.hits > 0 and walk.tiered.traffic.refills > 0
