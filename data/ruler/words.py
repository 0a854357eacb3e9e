"""The English words that RULER's keys and lists are drawn from: those of the package wonderwords."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def pairs() -> list[str]:
    """All `adjective-noun`, sorted. Raises ValueError as `listed` does."""
    return sorted({f"{adjective}-{noun}" for adjective in listed("adjective") for noun in listed("noun")})


def single() -> list[str]:
    """All nouns, adjectives and verbs, sorted, each once. Raises ValueError as `listed` does."""
    return sorted({word for kind in ("noun", "adjective", "verb") for word in listed(kind)})


def listed(kind: str) -> set[str]:
    """The words of one kind. Raises ValueError where wonderwords is not installed."""
    try:
        lists = files("wonderwords.assets")
    except ModuleNotFoundError:
        raise ValueError("RULER's words need the package wonderwords: pip install wonderwords==3.0.1") from None
    lines = (lists / f"{kind}list.txt").read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines} - {""}
