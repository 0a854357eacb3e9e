"""Small random models of the families that must run, built in memory, and prompts for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from engine.load import byte_tokenizer
from engine.model import Model, geometry_of
from engine.seam import NAME

COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,  # tied ones make small random networks repeat the last token
    "initializer_range": 0.2,  # large enough that greedy tokens differ from step to step
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama3_rope": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral_sliding": {"model_type": "mistral", "sliding_window": 24},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "gemma2": {"model_type": "gemma2", "sliding_window": 24, "query_pre_attn_scalar": 16, "layer_types": SLIDING},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 24, "query_pre_attn_scalar": 16, "layer_types": SLIDING},
    "phi3": {"model_type": "phi3"},
}
MHA = {"num_key_value_heads": 4}


def networks(family: str, seed: int = 0, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """(the network behind the seam, the same weights in Hugging Face's own eager attention), float32."""
    config = AutoConfig.for_model(**copy.deepcopy({**COMMON, **FAMILIES[family], **changes}))
    torch.manual_seed(seed)
    ours = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=NAME, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager", dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval().requires_grad_(False), theirs.eval().requires_grad_(False)


def model_of(network: nn.Module, prefill_chunk: int = 1 << 20, attention: str = "sdpa") -> Model:
    """A network as the loop needs it, with the byte tokenizer."""
    device = torch.device("cpu")
    return Model(
        name="random",
        network=network,
        tokenizer=byte_tokenizer(),
        geometry=geometry_of(network, device),
        device=device,
        attention=attention,
        prefill_chunk=prefill_chunk,
        stop_tokens=frozenset(),
    )


def prompt_ids(length: int, seed: int = 0, vocabulary: int = 320) -> Tensor:
    """Random token ids [n] without special tokens."""
    return torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(seed))


def greedy(network: nn.Module, ids: Tensor, num_new: int) -> list[int]:
    """Hugging Face's own greedy tokens, none of which stops."""
    out = network.generate(  # type: ignore[operator]
        ids[None], max_new_tokens=num_new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return list(out[0, ids.shape[0] :].tolist())
