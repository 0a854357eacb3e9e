"""The models and prompts of the conformance kit: tiny random Llamas of several head layouts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from methods.full import Full
from scripts.networks import model_of, network
from scripts.watch import follow

SHAPES: Mapping[str, Mapping[str, int]] = {
    "group1": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "group2": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "group4": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "mqa": {"num_attention_heads": 4, "num_key_value_heads": 1},
}
NUM_LAYERS = 2
VOCABULARY = 2048


def distinct_ids(num_tokens: int, seed: int = 0) -> Tensor:
    """Token ids [n], none twice among 2,000: equal tokens have equal keys in the first layer, hence tied scores."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-num_tokens // (VOCABULARY - 3))
    ids = torch.cat([torch.randperm(VOCABULARY - 3, generator=generator) + 3 for _ in range(rounds)])
    return ids[:num_tokens]


class Tiny:
    """A tiny random Llama of one shape, and what full attention answers on it."""

    def __init__(self, shape: str) -> None:
        self.shape = shape
        sizes = {"num_hidden_layers": NUM_LAYERS, "vocab_size": VOCABULARY}
        config = {"model_type": "llama", **sizes, **SHAPES[shape]}
        self.network = network(config)
        self.model = model_of(self.network)
        self.swapped = model_of(swap_heads(network(config), self.group))
        self.half = model_of(network(config).to(torch.bfloat16))

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return SHAPES[self.shape]["num_attention_heads"] // SHAPES[self.shape]["num_key_value_heads"]

    @lru_cache(maxsize=64)  # noqa: B019  models live as long as the process
    def dense(self, num_prompt: int, num_new: int) -> Tensor:
        """Logits [1 + num_new, V] of full attention."""
        ids = distinct_ids(num_prompt + num_new)
        return follow(self.model, Full(), None, ids[:num_prompt], ids[num_prompt:].split(1)).logits


@lru_cache(maxsize=len(SHAPES))
def tiny(shape: str) -> Tiny:
    """The model of a shape; the same object each time."""
    return Tiny(shape)


def swap_heads(model: nn.Module, group: int) -> nn.Module:
    """The same function with the query heads of each group in reverse order."""
    for module in model.modules():
        if hasattr(module, "q_proj"):
            dim = int(module.head_dim)  # type: ignore[arg-type]
            rows, columns = module.q_proj.weight, module.o_proj.weight  # type: ignore[union-attr]
            rows.copy_(rows.unflatten(0, (-1, group, dim)).flip(1).flatten(0, 2))  # type: ignore[operator]
            columns.copy_(columns.unflatten(1, (-1, group, dim)).flip(2).flatten(1, 3))  # type: ignore[operator]
    return model
