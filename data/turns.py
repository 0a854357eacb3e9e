"""Several questions about one context: how they are asked, and what was said before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What templates may name besides context, input and answer; see `data.scbench`.
FIELDS = ("prefix", "first", "OPTION_A", "OPTION_B", "OPTION_C", "OPTION_D")


@dataclass(frozen=True)
class Part:
    """One of the tasks that a row mixes: how its questions are scored, and the most tokens of their answers.

    name: what its questions say in `task`.
    """

    name: str
    metric: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} of {self.name} is out of range: give 1 or more")


@dataclass(frozen=True)
class Turns:
    """How several questions about one context are asked (SCBench, arXiv 2412.10319); see `data.scbench`.

    mode: "conversation", where the questions before and their answers are in the cache, or "requests", where each
        question starts from the context alone.
    answers: the earlier answers of a conversation are the "gold" ones, or the run's "own" predictions.
    most: questions of a row that are asked, the first ones.
    follow: what a conversation goes on with, `{answer}` before `{input}`; chat_follow: the user's part of it, where a
        chat template says how turns end. miniature_follow: `follow` of miniature rows.
    chat_begun: what the answers of a chat begin with, but for the first one.
    request: what a request asks, with `{context}`, where its beginning must not be that of one question; None: the
        task's prompt.
    parts: the tasks that a row mixes, with metrics and lengths that stand for the task's own; each is also scored by
        itself.
    """

    follow: str
    chat_follow: str
    miniature_follow: str | None = None
    mode: Literal["conversation", "requests"] = "conversation"
    answers: Literal["gold", "own"] = "gold"
    most: int = 5
    chat_begun: str = ""
    request: str | None = None
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"task.turns.most={self.most}: give 1 or more")
        if self.mode == "requests" and self.answers == "own":
            raise ValueError(
                "task.turns.answers=own: requests know no earlier answers; give task.turns.mode=conversation"
            )
        for name in ("follow", "chat_follow", "miniature_follow"):
            text = getattr(self, name)
            if text is not None and not _holds_input(text):
                raise ValueError(
                    f"task.turns.{name}={text!r}: give a text with {{input}} and, but for chats, {{answer}}"
                )

    @property
    def from_records(self) -> bool:
        """Whether a question is asked with what the same run answered before."""
        return self.mode == "conversation" and self.answers == "own"


def _holds_input(text: str) -> bool:
    """Whether a template has `{input}`, and nothing in braces but that, `{answer}` and FIELDS."""
    try:
        return "<input>" in text.format(answer="", input="<input>", **dict.fromkeys(FIELDS, ""))
    except (ValueError, LookupError):
        return False


@dataclass(frozen=True)
class Turn:
    """A question that was asked before, its answer, and what templates name of it besides."""

    input: str
    answer: str
    fields: Mapping[str, str] = field(default_factory=dict)
