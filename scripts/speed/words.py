"""Who is timed: the words of run.py, several methods and budgets at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from configs.arguments import choices, jobs, parse
from configs.compose import compose_config, job
from data import miniature
from engine.arm import Plan
from engine.calibrate import calibrated
from engine.load import load
from engine.model import Model
from engine.prompt import token_ids
from engine.spec import ModelSpec
from eval.settings import Settings
from methods.base import Method
from methods.budget import parse_budget, resolve

REFUSED = "refused: "  # begins the note of a row whose method cannot run with the model
DOCS = Path(__file__).resolve().parents[2] / "docs"
# What `method=all` needs: a prompt that is not prefilled cannot pass through a method, and no clustering is timed in
# decoding. A word of the user's comes later and wins.
ALL = ("infllm.prefill=dense", "pqcache.clustering=gpu")


@dataclass(frozen=True)
class Contender:
    """One method at one budget. budget: as it was written; "" where the method knows none.

    variant: its parameters of which several values were asked for, as `cache_blocks=256`.
    """

    name: str
    method: Method
    budget: str
    settings: Settings
    variant: str = ""

    @property
    def title(self) -> str:
        """The method as rows name it."""
        return f"{self.name} {self.variant}".rstrip()

    def __str__(self) -> str:
        return f"{self.title} {self.budget}".rstrip()


@dataclass(frozen=True)
class Asked:
    """What the words ask for."""

    spec: ModelSpec
    settings: Settings
    contenders: tuple[Contender, ...]

    @property
    def label(self) -> str:
        """The model as tables name it: the embedded one is never without its label."""
        return f"{self.spec.name} (miniature)" if self.spec.data == "miniature" else self.spec.name


def asked(words: Sequence[str]) -> Asked:
    """Methods and budgets, all combinations; a method that knows no budget once. Raises ValueError, in one line.

    `method=all` is all there are; `pqcache.bits=4` sets a parameter of that method alone, `pqcache.bits=4,6` makes two.
    """
    names = choices("method")
    if not any(word.startswith(("method=", "method._target_=")) for word in words):
        words = ["method=all", *words]
    if "method=all" in words:
        words = [*ALL, *(f"method={','.join(names)}" if word == "method=all" else word for word in words)]
    own = [word for word in words if owner(word) in names]
    found: dict[tuple[str, str], Contender] = {}
    specs: list[ModelSpec] = []
    for combination in jobs([word for word in words if word not in own]):
        chosen = next((str(parse(word).value()) for word in combination if word.startswith("method=")), "")
        mine = [f"method.{word.partition('.')[2]}" for word in own if owner(word) == chosen]
        several = [parse(word).is_sweep_override() for word in mine]
        for single in jobs(mine):
            made = job(compose_config([*combination, *single]), [])
            specs.append(made.spec)
            budget = "" if made.method.kind == "none" else str(parse_budget(made.settings.budget))
            variant = " ".join(word.partition(".")[2] for word, one_of in zip(single, several, strict=True) if one_of)
            contender = Contender(made.method_name, made.method, budget, made.settings, variant)
            found[contender.title, budget] = contender
    contenders = tuple(found.values())
    refuse(specs, own, contenders)
    return Asked(specs[0], contenders[0].settings, contenders)


def owner(word: str) -> str:
    """What stands before the first dot of a word: a method's name, if it sets a parameter of that method alone."""
    return word.lstrip("+").partition("=")[0].partition(".")[0]


def refuse(specs: Sequence[ModelSpec], own: Sequence[str], contenders: Sequence[Contender]) -> None:
    """Raise ValueError for what cannot be timed side by side."""
    other = next((spec for spec in specs if spec != specs[0]), None)
    if other is not None:
        raise ValueError(f"model={other.name} beside {specs[0].name}: give one model a run")
    names = sorted({c.name for c in contenders})
    idle = next((word for word in own if owner(word) not in names), None)
    if idle is not None:
        raise ValueError(f"{idle} sets a parameter of a method that is not in this run; these are {', '.join(names)}")


def loaded(asked: Asked) -> Model:
    """The model, on its device."""
    s = asked.settings
    return load(asked.spec, s.device, s.dtype, s.attention, s.prefill_chunk, s.seed)


def refusal(model: Model, contender: Contender) -> str | None:
    """Why a method cannot run with the model, or None."""
    return contender.method.supports(model.facts)


def ready(model: Model, contender: Contender, longest: int) -> Contender:
    """The contender with what its method measures on this machine."""
    if not contender.method.unmeasured:
        return contender
    return replace(contender, method=calibrated(model, contender.method, longest))


def plan(model: Model, contender: Contender, num_tokens: int) -> Plan:
    """The arm of a prompt of so many tokens."""
    if contender.method.kind == "none":
        return Plan(contender.name, contender.method, None)
    s = contender.settings
    rule, sizes = parse_budget(contender.budget), (s.sink, s.local_share, s.compensate, model.bytes_per_token)
    return Plan(contender.name, contender.method, resolve(rule, contender.method, num_tokens, *sizes))


def prompt(model: Model, spec: ModelSpec, num_tokens: int) -> Tensor:
    """Token ids [n] that the model can take: words of a text, over and over if it is short; any for random weights."""
    if spec.weights == "random":
        vocabulary = int(model.network.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        return torch.randint(vocabulary, (num_tokens,), generator=torch.Generator().manual_seed(0))
    ids: list[int] = []
    while len(ids) < num_tokens:
        for text in texts(spec):
            ids += token_ids(model.tokenizer, text, special=not ids)
            if len(ids) >= num_tokens:
                break
    return torch.tensor(ids[:num_tokens])


def texts(spec: ModelSpec) -> Iterator[str]:
    """Natural words: those of the miniature for its model, this project's own pages for all others."""
    if spec.data == "miniature":
        yield from (sample.context for sample in miniature.read("narrativeqa").samples)
    else:
        yield from (path.read_text() for path in sorted(DOCS.glob("*.md")))
