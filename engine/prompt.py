"""From the text of a task to the token ids of a prompt: truncation, chat template, stop tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptRule:
    """max_prompt: tokens before the chat wrapper. truncate: cut the middle of longer prompts; else they are errors."""

    max_prompt: int
    truncate: bool
    chat: bool
    chat_kwargs: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.max_prompt < 2:
            raise ValueError(f"model.max_prompt={self.max_prompt} is out of range: give 2 tokens or more")


@dataclass(frozen=True)
class Prompt:
    """ids: int64 [n] on the host. sha: first 16 hex digits of sha256 over the ids. truncated: the middle was cut.

    context_end: tokens up to and with the last character of the context, if it was asked for.
    """

    ids: Tensor
    sha: str
    truncated: bool
    context_end: int | None = None


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, rule: PromptRule, context: str | None = None, prefix: str = ""
) -> Prompt:
    """The prompt that LongBench's rule makes of a text (pred.py, spec 1.3).

    Too long: the first and last max_prompt/2 tokens are decoded and tokenised again, before the chat wrapper.
    context: find the end of this stretch of the text, at which question-after methods act.
    prefix: what the answer begins with, behind the chat wrapper; it is never cut.
    """
    behind = "" if context is None else text[text.index(context) + len(context) :]
    ids = token_ids(tokenizer, text)
    room = rule.max_prompt - (len(token_ids(tokenizer, prefix, special=False)) if prefix else 0)
    truncated = len(ids) > room
    if truncated and not rule.truncate:
        raise ValueError(
            f"a prompt of {len(ids) + rule.max_prompt - room} tokens is over model.max_prompt={rule.max_prompt}; "
            "give truncate=true or raise it"
        )
    if truncated:
        text = middle_cut(tokenizer, ids, room)
    rendered = (chat_text(tokenizer, text, rule.chat_kwargs) if rule.chat else text) + prefix
    # A chat template writes the special tokens itself; adding them again would give two BOS.
    ids = token_ids(tokenizer, rendered, special=not rule.chat)
    end = None if context is None else context_end(tokenizer, rendered, context, behind, special=not rule.chat)
    return _prompt(torch.tensor(ids, dtype=torch.long), truncated, end)


def _prompt(ids: Tensor, truncated: bool, end: int | None) -> Prompt:
    return Prompt(ids, hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16], truncated, end)


def longer(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, later: Sequence[str]) -> Prompt:
    """The prompt with texts behind it, each tokenised by itself: methods act where they did without them."""
    ids = [prompt.ids, *(torch.tensor(token_ids(tokenizer, text, special=False), dtype=torch.long) for text in later)]
    return _prompt(torch.cat(ids), prompt.truncated, prompt.context_end or len(prompt.ids))


def fitting(tokenizer: PreTrainedTokenizerBase, text: str, room: int) -> str:
    """The text, without its middle if it has more than `room` tokens. Raises ValueError where there is no room."""
    if room < 2:
        raise ValueError(f"the questions leave {room} tokens for their context: give a larger model.max_prompt")
    ids = token_ids(tokenizer, text, special=False)
    return middle_cut(tokenizer, ids, room) if len(ids) > room else text


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    """Token ids of a text, with or without the tokenizer's own special tokens."""
    return list(tokenizer(text, add_special_tokens=special, verbose=False).input_ids)


def middle_cut(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_prompt: int) -> str:
    """The text of the first and last half of `max_prompt` tokens, special tokens left out."""
    half = max_prompt // 2
    return "".join(str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids[:half], ids[-half:]))


def chat_text(tokenizer: PreTrainedTokenizerBase, text: str, kwargs: Mapping[str, Any]) -> str:
    """The text as one user turn in the tokenizer's own template, with generation prompt and no system turn of ours."""
    if not tokenizer.chat_template:
        raise ValueError("model.chat=true, but the tokenizer has no chat template; give model.chat=false")
    turn = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **kwargs))


def chat_goes_on(tokenizer: PreTrainedTokenizerBase, answer: str, text: str, kwargs: Mapping[str, Any]) -> str:
    """What the template writes from the start of an answer on, if the user then says `text`, with generation prompt.

    Raises ValueError for a template without answers.
    """
    mark = "0answer0"  # templates may strip a text, and what stands before it may differ from a generation prompt
    turns = [("user", "0"), ("assistant", mark), ("user", text)]
    talk = [{"role": role, "content": content} for role, content in turns]
    rendered = str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **kwargs))
    if mark not in rendered:
        raise ValueError("the tokenizer's chat template does not write an assistant's turn; give model.chat=false")
    return answer + rendered.partition(mark)[2]


def context_end(tokenizer: PreTrainedTokenizerBase, rendered: str, context: str, behind: str, special: bool) -> int:
    """Whole tokens up to the last character of the context, by the tokenizer's offsets.

    Its tail is searched together with the text behind it: truncation may have cut its middle, a chat template trims
    the end, and a short context may stand in the question again.
    """
    tail = context[-50:]
    place = rendered.rfind((tail + behind).rstrip())
    if not tail.strip() or place < 0:
        raise ValueError(
            "protocol=question_after: the prompt's context was not found in it; give protocol=longbench or, where the "
            "prompt was cut, a larger model.max_prompt"
        )
    last = place + len(tail.rstrip())
    offsets = tokenizer(rendered, add_special_tokens=special, return_offsets_mapping=True, verbose=False).offset_mapping
    return next((i for i, (_, stop) in enumerate(offsets) if stop > last), len(offsets))


def stop_ids(tokenizer: PreTrainedTokenizerBase, configured: object, extra: tuple[str, ...]) -> frozenset[int]:
    """All tokens that end an answer: the tokenizer's, the generation config's (one or several) and the YAML's.

    Llama-3 ends a turn with <|eot_id|> and a text with <|end_of_text|>: missing one of them ruins F1.
    """
    found = {tokenizer.eos_token_id} | set(configured if isinstance(configured, list) else [configured])
    for token in extra:
        number = tokenizer.convert_tokens_to_ids(token)
        if number is None or number == tokenizer.unk_token_id:
            raise ValueError(f"model.stop_tokens: {token} is not a token of this model's tokenizer")
        found.add(number)
    return frozenset(int(t) for t in found if t is not None)


def saying(tokenizer: PreTrainedTokenizerBase, text: str) -> Callable[[Sequence[int]], bool]:
    """Whether the latest tokens of an answer say the text; to be asked after each token."""
    most = len(text.encode()) + 1  # a token is a byte at least
    return lambda tokens: text in str(tokenizer.decode(list(tokens[-most:]), skip_special_tokens=True))


def newline_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The last token of a newline, at which samsum stops; None where the vocabulary has none."""
    ids = token_ids(tokenizer, "\n", special=False)
    return ids[-1] if ids and ids[-1] != tokenizer.unk_token_id else None
