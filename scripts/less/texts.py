"""The texts that LESS learns from and is measured on: none of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.words import Draw
from scripts.tiny import sequences


@dataclass(frozen=True)
class Text:
    """ids [n] of a prompt and what follows it, of which the first `num_prompt` are the prompt.

    asked bool [n - num_prompt]: tokens whose prediction needs the prompt; all where that is not known.
    """

    ids: Tensor
    num_prompt: int
    asked: Tensor


def generated(
    seed: str, number: int, lengths: Sequence[int], num_later: int, vocabulary: Mapping[str, int]
) -> list[Text]:
    """`number` sequences such as the embedded model was trained on, with prompts of `lengths` in turn.

    Another seed gives others; none is one of its training or of the miniature, which are drawn from seeds of their own.
    """
    out: list[Text] = []
    for i in count():
        if len(out) == number:
            break
        length = lengths[len(out) % len(lengths)]
        made = sequences.make(Draw(f"less/{seed}/{i}"), length, num_later, vocabulary)
        end = int((made.ids != vocabulary[sequences.PAD]).sum())  # pads stand at the end only
        text = Text(made.ids[:end], length, made.kind[length:end] >= 0)
        if text.asked.any():  # a short one may have no room for a question
            out.append(text)
    return out


def of_file(
    path: Path, tokenizer: PreTrainedTokenizerBase, number: int, lengths: Sequence[int], num_later: int
) -> list[Text]:
    """`number` stretches of a text file, one after the other. Raises ValueError where they cannot be had."""
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--text {path} cannot be read ({error}); give a plain text in UTF-8") from error
    ids = torch.tensor(tokenizer(whole, add_special_tokens=False).input_ids)
    sizes = [lengths[i % len(lengths)] for i in range(number)]
    need = sum(sizes) + number * num_later
    if ids.shape[0] < need:
        raise ValueError(f"--text {path} has {ids.shape[0]} tokens, {need} are needed; give more text or fewer --texts")
    everything = torch.ones(num_later, dtype=torch.bool)
    parts = ids[:need].split([size + num_later for size in sizes])
    return [Text(part, size, everything) for part, size in zip(parts, sizes, strict=True)]
