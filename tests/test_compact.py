"""Which formulas of a network are recognised, that a step computes them by kernels, and that nothing of it stays."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

pytest.importorskip("triton")

from engine.compact import ROTARY, Compact, agree, norms, rotate
from tests.models import model_of, networks
from tests.pretend import on_gpu, pretended

NUM_LAYERS = 3


def found(network: nn.Module) -> Counter[str]:
    """Classes of the modules that are swapped, `rotary` for the function."""
    return Counter("rotary" if name == ROTARY else type(where).__name__ for where, name, _ in Compact(network).swaps)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"LlamaRMSNorm": 2 * NUM_LAYERS + 1, "LlamaMLP": NUM_LAYERS, "rotary": 1}),
        ("mistral", {"MistralRMSNorm": 2 * NUM_LAYERS + 1, "MistralMLP": NUM_LAYERS, "rotary": 1}),
        ("qwen2", {"Qwen2RMSNorm": 2 * NUM_LAYERS + 1, "Qwen2MLP": NUM_LAYERS, "rotary": 1}),
        ("qwen3", {"Qwen3RMSNorm": 4 * NUM_LAYERS + 1, "Qwen3MLP": NUM_LAYERS, "rotary": 1}),
        ("phi3", {"Phi3RMSNorm": 2 * NUM_LAYERS + 1, "rotary": 1}),  # gate and up are one matrix
        ("gemma2", {"rotary": 1}),  # norms by 1 + weight, a gate of GELU
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_families(family: str, expected: dict[str, int], dtype: torch.dtype) -> None:
    assert found(networks(family)[0].to(dtype)) == expected


class OnePlus(LlamaRMSNorm):
    """Gemma's: a weight of 0 leaves the norm as it is."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        x: Tensor = super().forward(hidden_states)
        return x * (1 + self.weight) / self.weight


class Shifted(LlamaRMSNorm):
    """Centred first, as a LayerNorm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        x: Tensor = super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))
        return x


@pytest.mark.parametrize(("kind", "known"), [(LlamaRMSNorm, 1), (OnePlus, 0), (Shifted, 0), (nn.LayerNorm, 0)])
def test_a_norm_is_known_by_what_it_computes(kind: type[nn.Module], known: int) -> None:
    module = kind(40)
    nn.init.uniform_(module.weight, 0.5, 2.0)  # type: ignore[arg-type]
    assert len(list(norms(module))) == known
    module.forward = module.forward  # somebody's hook
    assert not list(norms(module))


def test_it_is_there_while_entered_and_gone_after_an_error() -> None:
    network = networks("llama")[0]
    file = sys.modules[type(network.model).__module__]
    modules = [m for m in network.modules() if isinstance(m, (LlamaRMSNorm, LlamaMLP))]
    original, x = getattr(file, ROTARY), torch.randn(1, 1, 64)
    q, k, cos, sin = torch.randn(1, 4, 2, 16), torch.randn(1, 2, 2, 16), torch.randn(1, 2, 16), torch.randn(1, 2, 16)
    plain = [module(x) for module in modules]
    with pytest.raises(KeyError), Compact(network):
        assert all("forward" in vars(module) for module in modules) and getattr(file, ROTARY) is not original
        for module, expected in zip(modules, plain, strict=True):
            torch.testing.assert_close(module(x), expected)
        for given in ((q, k, cos, sin), (q[:, :, :1], k[:, :, :1], cos[:, :1], sin[:, :1])):  # two tokens, one
            found, expected = getattr(file, ROTARY)(*given), original(*given)
            torch.testing.assert_close(found, expected)
        raise KeyError
    assert not any("forward" in vars(module) for module in modules) and getattr(file, ROTARY) is original


def test_what_gives_something_else_or_nothing_does_not_agree() -> None:
    q, k, cos, sin = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 1, 16), torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    assert agree(rotate, rotate, q, k, cos, sin)
    for other in (lambda *_: q, lambda *_: (q,), lambda *_: None, lambda a: a, lambda *_: [1, 2]):
        assert not agree(other, rotate, q, k, cos, sin)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_model_looks_at_its_network_once() -> None:
    assert not isinstance(model_of(networks("llama")[0]).compact, Compact), "on the host nothing is replaced"
    with pretended():
        model = on_gpu(model_of(networks("llama")[0]))
        assert isinstance(model.compact, Compact) and model.compact is model.compact
        assert len(model.compact.swaps) == 3 * NUM_LAYERS + 2
