"""What of a model lies on this disk: asks no network and imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

ROOT = Path(__file__).resolve().parent.parent
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def local_file(path: str, revision: str | None, name: str) -> Path | None:
    """A file of a model, from its folder or the hub's cache; None where it is not on this disk.

    path, revision: as `ModelSpec` has them; a folder of this project wins over one of the working directory.
    """
    for folder in (ROOT / path, Path(path).expanduser()):
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
    try:
        found = try_to_load_from_cache(path, name, revision=revision)
    except ValueError:  # neither a folder nor a name that the hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def missing_parts(path: str, revision: str | None) -> tuple[str, ...]:
    """Which of config, tokenizer and weights a model lacks here; empty if it loads without a network."""
    lacks = {
        "config": local_file(path, revision, "config.json") is None,
        "tokenizer": all(local_file(path, revision, name) is None for name in TOKENIZERS),
        "weights": any(local_file(path, revision, name) is None for name in weight_files(path, revision)),
    }
    return tuple(part for part, lacking in lacks.items() if lacking)


def weight_files(path: str, revision: str | None) -> list[str]:
    """The names of the safetensors files: those of the index if there is one here."""
    index = local_file(path, revision, "model.safetensors.index.json")
    if index is None:
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["a readable model.safetensors.index.json"]
