"""A model without its weights: its shapes on torch's meta device, and its tokenizer if that lies on this disk."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers import logging as hf_logging

from engine.cached import TOKENIZERS, local_file
from engine.load import byte_tokenizer, config_of, hub, one_line, path_of, pick_dtype, refusal
from engine.model import Model, geometry_of
from engine.seam import NAME
from engine.spec import ModelSpec


@dataclass(frozen=True)
class Outline:
    """model: has shapes and no numbers; its tokenizer is a stand-in where `has_tokenizer` is False.

    source: where the shapes come from, in words. num_parameters: all of them. num_layer_parameters: those that multiply
    every token (no embeddings), None for a mixture of experts, where only some do.
    """

    model: Model
    dtype: torch.dtype
    source: str
    has_tokenizer: bool
    num_parameters: int
    num_layer_parameters: int | None

    @property
    def weight_bytes(self) -> int:
        """What the weights take at their dtype."""
        return self.num_parameters * self.dtype.itemsize

    def kv_bytes(self, num_tokens: int) -> int:
        """K+V of a dense prefill of `num_tokens`, over all layers, sliding ones included."""
        return num_tokens * sum(2 * g.num_kv_heads * g.head_dim * g.dtype.itemsize for g in self.model.geometry)


def outline(spec: ModelSpec, dtype: str, attention: str, prefill_chunk: int) -> Outline:
    """What can be known of a model from this disk and its YAML; nothing is downloaded.

    Raises LookupError, with the reason, where its shapes are not known here; ValueError for a model that cannot be run.
    """
    hf_logging.set_verbosity_error()
    path = path_of(spec)
    config, source = local_config(spec, path)
    reason = refusal(config)
    if reason:
        raise ValueError(f"model={spec.name}: {reason}")
    kind, meta = pick_dtype(dtype, config), torch.device("meta")
    tokenizer, network = local_tokenizer(spec, path), meta_network(spec, config, kind)
    try:
        geometry = geometry_of(network, meta)
    except RuntimeError as error:
        raise LookupError(f"its shapes cannot be worked out without weights ({error})") from error
    stand_in = tokenizer or byte_tokenizer()
    model = Model(spec.name, network, stand_in, geometry, meta, attention, prefill_chunk, frozenset(), spec.revision)
    num_parameters = sum(p.numel() for p in network.parameters())
    return Outline(model, kind, source, tokenizer is not None, num_parameters, layer_parameters(network))


def local_config(spec: ModelSpec, path: str) -> tuple[PreTrainedConfig, str]:
    """The Hugging Face config that is on this disk, or the YAML's, and which of them it is."""
    if spec.weights == "random":
        return config_of(spec, path), "model.architecture, random weights"
    # By its folder: given a hub id, transformers asks the hub even where it is told to read local files only.
    if file := local_file(path, spec.revision, "config.json"):
        return hub(AutoConfig.from_pretrained, spec, str(file.parent)), "the checkpoint's config"
    if "model_type" in spec.architecture:
        with one_line(f"model.architecture of model={spec.name} is refused"):
            return AutoConfig.for_model(**copy.deepcopy(dict(spec.architecture))), "model.architecture in its YAML"
    raise LookupError(f"{spec.path} is not on this disk, and there is no model.architecture for it")


def local_tokenizer(spec: ModelSpec, path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None where it is not on this disk."""
    if spec.weights == "random":
        return byte_tokenizer()
    files = (local_file(path, spec.revision, name) for name in TOKENIZERS)
    file = next((file for file in files if file is not None), None)
    return None if file is None else hub(AutoTokenizer.from_pretrained, spec, str(file.parent))


def meta_network(spec: ModelSpec, config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The network behind the seam, on the meta device: no memory, no numbers."""
    with one_line(f"model={spec.name} could not be built"), torch.device("meta"):
        network: nn.Module = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=NAME
        )
    return network.requires_grad_(False).eval()


def layer_parameters(network: nn.Module) -> int | None:
    """Parameters that multiply every token of a prompt; None where a router picks some of them."""
    text = network.config.get_text_config()  # type: ignore[union-attr, operator]
    if getattr(text, "num_experts_per_tok", None):
        return None
    base, embeddings = network.base_model, network.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(base, nn.Module) and isinstance(embeddings, nn.Module)
    return sum(p.numel() for p in base.parameters()) - sum(p.numel() for p in embeddings.parameters())
