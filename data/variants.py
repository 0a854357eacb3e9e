"""A benchmark that is asked in several published ways, and how a run chooses one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Variant:
    """What another published way of asking a task changes in it; None: nothing."""

    prompt: str | None = None
    max_new_tokens: int | None = None
    metric: str | None = None
    chat: bool | None = None


@dataclass(frozen=True)
class InfiniteBench:
    """How a task of InfiniteBench (arXiv 2402.13718) is asked; see `data.infinitebench`.

    variant: "official" (the repository's prompts for GPT-4, scored by its rules since August 2024), or one of these:
    june: the official prompts, scored by the rules until then.
    yarn: the repository's completion prompts for local base models, without a chat template.
    infllm: the prompts, generation lengths and rules of InfLLM, which PQCache copies; of questions that its own script
        does not ask (En.QA, Zh.QA, En.Dia) the answers are taken as texts, not character by character.
    tokens: make rows of that many tokens (synthetic tasks only) instead of reading the published ones.
    samples, seed: of rows that are made. miniature_lengths: tokens of the contexts of miniature rows.
    """

    variant: Literal["official", "june", "yarn", "infllm"] = "official"
    june: Variant = field(default_factory=Variant)
    yarn: Variant = field(default_factory=Variant)
    infllm: Variant = field(default_factory=Variant)
    tokens: int | None = None
    samples: int = 100
    seed: int = 0
    miniature_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("tokens", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"task.infinitebench.{name}={value}: give 1 or more")

    @property
    def chosen(self) -> Variant:
        """What the chosen variant changes."""
        return {"official": Variant(), "june": self.june, "yarn": self.yarn, "infllm": self.infllm}[self.variant]


@dataclass(frozen=True)
class Conclusion:
    """A second prompt that asks for the answer alone, with `{reasoning}`, what was said to the first one.

    max_new_tokens: of that answer.
    """

    prompt: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"conclusion.max_new_tokens={self.max_new_tokens} is out of range: give 1 or more")


@dataclass(frozen=True)
class LongBenchV2:
    """How LongBench v2 (arXiv 2412.15204) is asked; see `data.longbench_v2`.

    variant: "official"; "no_context", the choices without the text; or "cot", whose reasoning `conclusion` follows.
    """

    conclusion: Conclusion
    variant: Literal["official", "no_context", "cot"] = "official"
    no_context: Variant = field(default_factory=Variant)
    cot: Variant = field(default_factory=Variant)

    @property
    def chosen(self) -> Variant:
        """What the chosen variant changes."""
        return {"official": Variant(), "no_context": self.no_context, "cot": self.cot}[self.variant]


@dataclass(frozen=True)
class Gsm8k:
    """Where GSM8K's worked examples are; see `data.gsm8k`.

    examples: their file, beside the rows or a path. blob, examples_blob: git blob hashes of the official jsonl file,
        and of the examples that PQCache (arXiv 2407.12820) asks behind.
    """

    examples: str
    blob: str
    examples_blob: str
