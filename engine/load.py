"""Loads a model from its specification, or says in one line why it cannot be run."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers import logging as hf_logging

from engine.attention import BACKENDS
from engine.model import Model, geometry_of
from engine.prompt import stop_ids
from engine.seam import NAME
from engine.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYER_TYPES = {"full_attention", "sliding_attention"}


def load(spec: ModelSpec, device: str, dtype: str, attention: str, prefill_chunk: int, seed: int) -> Model:
    """The model, ready to be asked.

    device: "auto" (a GPU if there is one), "cpu", "cuda[:i]", or "balanced" (layers spread over all GPUs).
    Raises ValueError, in one line, for what cannot be found, run or asked for here.
    """
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    where = pick_device(device)
    check_attention(attention, where)
    path = str(ROOT / spec.path) if (ROOT / spec.path).is_dir() else spec.path
    config = config_of(spec, path)
    reason = refusal(config)
    if reason:
        raise ValueError(f"model={spec.name}: {reason}")
    network = network_of(spec, path, config, where, device, pick_dtype(dtype, config), seed)
    network.requires_grad_(False).eval()
    if not getattr(network, "_supports_attention_backend", False):
        raise ValueError(f"model={spec.name}: {type(network).__name__} does not let its attention be replaced")
    tokenizer = byte_tokenizer() if spec.weights == "random" else hub(AutoTokenizer.from_pretrained, spec, path)
    configured = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    stops = stop_ids(tokenizer, configured if spec.weights == "pretrained" else None, spec.stop_tokens)
    return Model(
        name=spec.name,
        network=network,
        tokenizer=tokenizer,
        geometry=geometry_of(network, where),
        device=where,
        attention=attention,
        prefill_chunk=prefill_chunk,
        stop_tokens=stops,
        revision=getattr(config, "_commit_hash", None) or spec.revision,
    )


def pick_device(name: str) -> torch.device:
    """The torch device of the input ids."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "balanced":
        name = "cuda"
    if name != "cpu" and not name.startswith("cuda"):
        raise ValueError(f"device={name}: allowed are auto, cpu, cuda, cuda:0, balanced")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}: no CUDA device is visible; give device=cpu or device=auto")
    return torch.device(name)


def check_attention(backend: str, device: torch.device) -> None:
    """Refuse a prefill backend that is unknown or not installed."""
    if backend not in BACKENDS:
        raise ValueError(f"attention={backend}: allowed are {', '.join(BACKENDS)}")
    if backend == "flash" and (device.type != "cuda" or importlib.util.find_spec("flash_attn") is None):
        raise ValueError(
            "attention=flash needs a CUDA device and the flash-attn package "
            "(pip install flash-attn --no-build-isolation); attention=sdpa works everywhere"
        )


def pick_dtype(name: str, config: PreTrainedConfig) -> torch.dtype:
    """The dtype of weights and KV cache; "auto" is the checkpoint's."""
    if name == "auto":
        found = getattr(config, "dtype", None)
        return found if isinstance(found, torch.dtype) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype={name}: allowed are auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def config_of(spec: ModelSpec, path: str) -> PreTrainedConfig:
    """The Hugging Face config: of the checkpoint, or built from `architecture` for random weights."""
    if spec.weights == "pretrained":
        return hub(AutoConfig.from_pretrained, spec, path)  # type: ignore[no-any-return]
    if spec.weights != "random":
        raise ValueError(f"model.weights={spec.weights}: allowed are pretrained, random")
    if "model_type" not in spec.architecture:
        raise ValueError(f"model.weights=random: model={spec.name} has no model.architecture with a model_type")
    return AutoConfig.for_model(**copy.deepcopy(dict(spec.architecture)))


def network_of(
    spec: ModelSpec,
    path: str,
    config: PreTrainedConfig,
    where: torch.device,
    device: str,
    dtype: torch.dtype,
    seed: int,
) -> nn.Module:
    """The network behind the seam. The config is copied: two models made from one would share their attention."""
    own = copy.deepcopy(config)
    if spec.weights == "random":
        torch.manual_seed(seed)
        network: nn.Module = AutoModelForCausalLM.from_config(own, dtype=dtype, attn_implementation=NAME)
        return network.to(where)
    return hub(  # type: ignore[no-any-return]
        AutoModelForCausalLM.from_pretrained,
        spec,
        path,
        config=own,
        dtype=dtype,
        attn_implementation=NAME,
        use_safetensors=True,
        device_map="auto" if device == "balanced" else where,
    )


def hub(call: Any, spec: ModelSpec, path: str, **kwargs: Any) -> Any:
    """A from_pretrained call whose failure is one line: not found, gated, no network, or remote code."""
    revision = None if Path(path).is_dir() else spec.revision
    try:
        return call(path, revision=revision, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk or a broken file has a better message of its own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"model={spec.name}: {path} (revision {revision}) could not be loaded: {reason} "
            "Give model.path=FOLDER with a local copy; for a gated model accept its licence and run `hf auth login`; "
            "model.weights=random needs no download"
        ) from error


def refusal(config: PreTrainedConfig) -> str | None:
    """Why an architecture cannot be run behind the seam, or None (specs of the seam, B.4)."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder models have no single KV cache to select from"
    if getattr(text, "kv_lora_rank", None):
        return "multi-head latent attention (kv_lora_rank) caches a latent, not keys and values per head"
    if getattr(text, "attention_chunk_size", None):
        return "chunked attention layers carry their window in the mask only"
    if getattr(text, "num_kv_shared_layers", 0):
        return "layers that share another layer's KV cache would be counted twice"
    other = set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES
    if other:
        return f"layers of type {', '.join(sorted(other))} are not attention over a KV cache"
    return None


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of the 256 bytes, for random weights: any text goes in and comes out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{c: i + 3 for i, c in enumerate(alphabet)}}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
