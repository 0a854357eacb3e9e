"""Tokenizers made in memory that behave like those of real models where prompts are concerned."""

from __future__ import annotations

from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from engine.load import byte_tokenizer

# Llama-3's in small: writes its own BOS, trims the turn, and ends with the assistant's header.
CHAT = (
    "{{ bos_token }}{% for turn in messages %}<user>{{ turn.content | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if thinking is defined and not thinking %}<quiet>{% endif %}"
)


def llama_like(chat_template: str | None = CHAT) -> PreTrainedTokenizerBase:
    """Bytes as tokens; a text gets one BOS in front; three tokens that only the chat template writes."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<eot>", "<assistant>"]})
    raw = tokenizer.backend_tokenizer
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.chat_template = chat_template
    return tokenizer
