"""Where tokens begin and end in a text: what rows of an exact length need of a tokenizer, without transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import shorten

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
FILE = "tokenizer.json"

Spans = list[tuple[int, int]]
# text -> the characters (from, to) of each token, special tokens left out
Cut = Callable[[str], Spans]


@dataclass(frozen=True)
class Vocabulary:
    """Whose tokens: path and revision of a model; random: of random weights, whose tokens are the bytes."""

    path: str
    revision: str | None = None
    random: bool = False

    def load(self) -> Cut:
        """How that model cuts texts. Raises ValueError where its `tokenizer.json` cannot be had."""
        return in_bytes if self.random else tokens_of(_found(self.path, self.revision))


def tokens_of(file: Path) -> Cut:
    """How a `tokenizer.json` cuts texts. Raises ValueError for a file that is none."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    # Any exception: the library raises bare ones.
    except Exception as error:
        raise ValueError(f"{file} cannot be read ({error}); rows of exact length need it") from None
    tokenizer.no_truncation()

    def cut(text: str) -> Spans:
        spans: Spans = tokenizer.encode(text, add_special_tokens=False).offsets
        return spans

    return cut


def in_bytes(text: str) -> Spans:
    """One token a byte of UTF-8."""
    return [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]


@lru_cache(maxsize=8)
def _found(path: str, revision: str | None) -> Path:
    for folder in (ROOT / path, Path(path).expanduser()):
        if folder.is_dir():
            return folder / FILE
    # Imported here, because it takes a second.
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, FILE, revision=revision))
    # Any exception: the client raises its own, the HTTP library's and the system's.
    except Exception as error:
        reason = shorten(str(error), 160, placeholder=" …")
        raise ValueError(
            f"{FILE} of {path} did not come from the hub ({reason}); rows of exact length need it: give "
            "model.path=FOLDER with a local copy"
        ) from None
