"""What a model is, as `configs/model/<name>.yaml` writes it; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ModelSpec:
    """A model and how it is asked.

    path: a Hugging Face id, a folder, or a folder of this project. revision: commit of the hub repository.
    max_prompt: tokens of the task's prompt before truncation, chat wrapper on top. sink: first tokens always attended.
    chat: wrap tasks that allow it in the tokenizer's chat template; chat_kwargs go to the template.
    stop_tokens: besides those of the tokenizer and the generation config. dtype: "auto" is the checkpoint's own.
    data: what `data=auto` means for this model, "hub" or "miniature".
    weights: "pretrained", or "random" to build `architecture` (a Hugging Face config) without a download.
    """

    name: str
    path: str
    revision: str | None = None
    max_prompt: int = 31500
    sink: int = 32
    chat: bool = True
    chat_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stop_tokens: tuple[str, ...] = ()
    dtype: str = "auto"
    data: Literal["hub", "miniature"] = "hub"
    weights: Literal["pretrained", "random"] = "pretrained"
    architecture: Mapping[str, Any] = field(default_factory=dict)
