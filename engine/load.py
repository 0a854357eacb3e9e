"""Loads a model from its specification, or says in one line why it cannot be run."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers import logging as hf_logging

from engine.attention import BACKENDS
from engine.memory import explain_out_of_memory
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
    if where.index is not None:
        torch.cuda.set_device(where)  # clocks and kernels act on the current device
    check_attention(attention, where)
    path, random = path_of(spec), spec.weights == "random"
    config = config_of(spec, path)
    reason = refusal(config)
    if reason:
        raise ValueError(f"model={spec.name}: {reason}")
    network = network_of(spec, path, config, where, device, pick_dtype(dtype, config), seed)
    network.requires_grad_(False).eval()
    tokenizer = byte_tokenizer() if random else hub(AutoTokenizer.from_pretrained, spec, path)
    configured = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    # The YAML's stop tokens are those of the checkpoint's tokenizer, which random weights do without.
    stops = stop_ids(tokenizer, None, ()) if random else stop_ids(tokenizer, configured, spec.stop_tokens)
    return Model(
        name=spec.name,
        network=network,
        tokenizer=tokenizer,
        geometry=geometry_of(network, where),
        device=where,
        attention=attention,
        prefill_chunk=prefill_chunk,
        stop_tokens=stops,
        revision=None if random or Path(path).is_dir() else getattr(config, "_commit_hash", None) or spec.revision,
    )


def path_of(spec: ModelSpec) -> str:
    """The folder or the hub id of a model. Raises ValueError for what can be neither."""
    if (ROOT / spec.path).is_dir():
        return str(ROOT / spec.path)
    folder = Path(spec.path).expanduser()
    if spec.weights == "pretrained" and not folder.is_dir() and (spec.path[:1] in "./~" or spec.path.count("/") > 1):
        raise ValueError(f"model.path={spec.path} is no folder; give one that holds the model, or a hub id ORG/NAME")
    return str(folder)


def pick_device(name: str) -> torch.device:
    """The torch device of the input ids."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device(name)
    match = re.fullmatch(r"balanced|cuda(?::(\d+))?", name)
    if match is None:
        raise ValueError(f"device={name}: allowed are auto, cpu, cuda, cuda:0, balanced")
    if not torch.cuda.is_available():
        raise ValueError(f"device={name}: no CUDA device is visible; give device=cpu or device=auto")
    number = match.group(1)
    if number is not None and int(number) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: the visible ones are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return torch.device("cuda" if name == "balanced" else name)


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
    with one_line(f"model.weights=random: model.architecture of model={spec.name} is refused"):
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
        # Made on the device: normal numbers for billions of weights take minutes on a CPU.
        with one_line(f"model.weights=random: model={spec.name} could not be built"), where:
            network: nn.Module = AutoModelForCausalLM.from_config(own, dtype=dtype, attn_implementation=NAME)
            return network.to(where)
    network, found = hub(
        AutoModelForCausalLM.from_pretrained,
        spec,
        path,
        config=own,
        dtype=dtype,
        attn_implementation=NAME,
        use_safetensors=True,
        device_map="auto" if device == "balanced" else where,
        output_loading_info=True,
    )
    if found["missing_keys"]:  # they would silently be random
        names = sorted(found["missing_keys"])
        raise ValueError(f"model={spec.name}: {path} lacks {len(names)} weights, such as {names[0]}; fetch it again")
    return network


def hub(call: Any, spec: ModelSpec, path: str, **kwargs: Any) -> Any:
    """A from_pretrained call whose failure is one line: not found, gated, no network, damaged, or remote code."""
    revision = None if Path(path).is_dir() else spec.revision
    remedy = (
        "Give model.path=FOLDER with a local copy; for a gated model accept its licence and run `hf auth login`; "
        "model.weights=random needs no download"
    )
    with one_line(f"model={spec.name}: {path} (revision {revision}) could not be loaded", remedy):
        return call(path, revision=revision, trust_remote_code=False, **kwargs)


@contextmanager
def one_line(what: str, remedy: str = "") -> Iterator[None]:
    """Turns any failure of a library within into one line that begins with `what`.

    Raises MemoryError where memory ran out, OSError where the system refused, ValueError for everything else.
    """
    try:
        yield
    except Exception as error:  # the libraries raise their own, the HTTP client's, and bare ones
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk has a better message of its own
        explain_out_of_memory(error, "the model's weights")
        reason = shorten(str(error), 300, placeholder=" …")
        raise ValueError(f"{what}: {reason or type(error).__name__} {remedy}".rstrip()) from error


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
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        return f"{type(config).__name__} has no causal language model"
    if not getattr(kind, "_supports_attention_backend", False):
        return f"{kind.__name__} does not let its attention be replaced"
    return None


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of the 256 bytes, for random weights: any text goes in and comes out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{c: i + 3 for i, c in enumerate(alphabet)}}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template="{{ bos_token }}{% for turn in messages %}{{ turn.content }}{% endfor %}",
    )
