"""Train the kernels of LESS for a model and an eviction method, and measure what they get back on held-out texts.

python -m scripts.train_less --out data/tiny/less.safetensors # the embedded model over H2O, as shipped
python -m scripts.train_less --out FILE method.base._target_=methods.window.Window
python -m scripts.train_less --text FILE --out FILE model=llama31_8b   # any model, from a plain text of your own
Then: python run.py method=less method.weights=FILE, with the same model and base.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from configs.compose import compose_config, job
from engine.arm import Plan
from engine.load import load
from engine.model import Model
from methods.base import Budget, Method
from methods.budget import parse_budget, resolve
from methods.less.kernels import save
from methods.less.method import LESS
from scripts.less.fit import Fitted, Recipe, fit
from scripts.less.measure import Recovered, losses
from scripts.less.record import Example, example, streams
from scripts.less.texts import Text, generated, of_file
from scripts.tiny import tokenizer

BUDGETS = ("0.02", "0.05", "0.1")  # one text has one, in turn, so that kernels learn all of them
SINK = 4
LENGTHS = (512, 1024, 1536)  # tokens of a prompt, in turn
NUM_LATER = 128  # tokens after it
TITLE = "Held-out texts: what the base loses at no fewer bytes, less what LESS loses, 95 % interval"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 for what cannot be trained."""
    args = arguments(argv)
    try:
        check_numbers(args)
        model, method = asked(args.words)
        train, validation, held_out = texts_of(model, args)
        began, recipe = time.perf_counter(), Recipe(args.rank, args.hidden, args.epochs, args.rate)
        fitted = trained(model, method.base, train, validation, recipe)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write(args.out, model, method.base, fitted, recipe, train)
    print(f"{args.out}: {time.perf_counter() - began:.0f} s", flush=True)
    if held_out:
        report = measured(model, replace(method, weights=str(args.out.resolve())), held_out, args.budgets)
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        show(report)
    return 0


def check_numbers(args: argparse.Namespace) -> None:
    """Raises ValueError for a number that trains nothing."""
    for name in ("texts", "validation", "later", "rank", "hidden", "epochs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: give 1 or more")


def asked(words: Sequence[str]) -> tuple[Model, LESS]:
    """The model and the method that the words ask for. Raises ValueError."""
    work = job(compose_config(["method=less", *words]), [])
    settings, method = work.settings, work.method
    if not isinstance(method, LESS):
        raise ValueError("method: only LESS has kernels; give method.base._target_=CLASS for another base")
    spec = work.spec
    return load(spec, settings.device, settings.dtype, settings.attention, settings.prefill_chunk, 0), method


def texts_of(model: Model, args: argparse.Namespace) -> tuple[list[Text], list[Text], list[Text]]:
    """For training, for choosing the best epoch, and for measuring. Raises ValueError where there are none."""
    numbers = {"train": args.texts, "validation": args.validation, "held-out": args.held_out}
    if args.text is not None:
        found = of_file(args.text, model.tokenizer, sum(numbers.values()), args.lengths, args.later)
        first, second = args.texts, args.texts + args.validation
        return found[:first], found[first:second], found[second:]
    if model.name != "tiny":
        raise ValueError(f"model={model.name}: give --text FILE, a plain text that is of no benchmark")
    vocabulary = tokenizer.ids(model.tokenizer)  # type: ignore[arg-type]
    made = [generated(seed, number, args.lengths, args.later, vocabulary) for seed, number in numbers.items()]
    return made[0], made[1], made[2]


def budget_of(model: Model, base: Method, text: Text, ratio: str) -> Budget:
    """As a run would give it, with a sink of 4 and half of the budget local."""
    found = resolve(parse_budget(ratio), base, text.num_prompt, SINK, 0.5, 0, model.bytes_per_token)
    assert found is not None, "the prompts are longer than their budgets"
    return found


def trained(
    model: Model, base: Method, train: Sequence[Text], validation: Sequence[Text], recipe: Recipe
) -> dict[int, Fitted]:
    """Kernels by layer number. Raises ValueError for a base that drops nothing."""
    examples, held_out = (examples_of(model, base, texts) for texts in (train, validation))
    if not any(bool(e.gone.any()) for layer in examples.values() for e in layer):
        raise ValueError(f"method.base={base} drops nothing: give an eviction, such as methods.window.Window")
    out = {}
    for layer in model.layers(0):
        if layer.index in examples:
            out[layer.index] = found = fit(layer, examples[layer.index], held_out[layer.index], recipe)
            print(f"layer {layer.index}: error {found.alone:.4g} -> {min(found.curve):.4g}", flush=True)
    return out


@torch.no_grad()
def examples_of(model: Model, base: Method, texts: Sequence[Text]) -> dict[int, list[Example]]:
    """By layer number; one budget a text, in turn."""
    out: dict[int, list[Example]] = {}
    for number, text in enumerate(texts):
        budget = budget_of(model, base, text, BUDGETS[number % len(BUDGETS)])
        for stream in streams(model, text.ids):
            out.setdefault(stream.layer.index, []).append(example(base, budget, stream, text.num_prompt))
    return out


def write(
    path: Path, model: Model, base: Method, fitted: Mapping[int, Fitted], recipe: Recipe, texts: Sequence[Text]
) -> None:
    """The kernels, with all that tells what they are for and how they came about."""
    card = {
        "model": model.name,
        "fingerprint": model.facts.fingerprint,
        "base": repr(base),
        "budgets": ", ".join(BUDGETS),
        "texts": str(len(texts)),
        "tokens": str(sum(text.ids.shape[0] for text in texts)),
        "recipe": json.dumps(asdict(recipe)),
        "validation": json.dumps({n: {"base": f.alone, "epochs": f.curve} for n, f in fitted.items()}),
    }
    save(path, {number: found.kernels for number, found in fitted.items()}, card)


def measured(model: Model, method: LESS, texts: Sequence[Text], ratios: Sequence[str]) -> list[dict[str, Any]]:
    """For each budget and loss: the base, the base with the bytes of LESS or more, LESS, and what it gets back."""
    extra = extra_tokens(model, method)
    found = [losses(model, text, plans_of(model, method, text, ratios, extra)) for text in texts]
    out: list[dict[str, Any]] = []
    for number, ratio in enumerate(ratios):
        base, more, less = zip(*(arms[3 * number : 3 * number + 3] for arms in found), strict=True)
        num_bytes = {"base": mean(loss.num_bytes for loss in more), "less": mean(loss.num_bytes for loss in less)}
        for name in ("kl", "asked"):
            plain, other, own = ([getattr(loss, name) for loss in arm] for arm in (base, more, less))
            row = {"budget": ratio, "loss": name, "texts": len(texts), "extra_tokens": extra, "bytes": num_bytes}
            out.append({**row, "base_alone": mean(plain), **asdict(Recovered.of(other, own))})
    return out


def extra_tokens(model: Model, method: LESS) -> int:
    """Tokens per KV head whose K and V take the bytes of a state, or more."""
    layer = next(
        layer for layer, geometry in zip(model.layers(0), model.geometry, strict=True) if geometry.window is None
    )
    state = method.kernels(layer).rank * (layer.head_dim + 1) * torch.float32.itemsize
    return -(-state // (2 * layer.head_dim * layer.dtype.itemsize))


def plans_of(model: Model, method: LESS, text: Text, ratios: Sequence[str], extra: int) -> list[Plan]:
    """For each budget: the base, the base with `extra` tokens, LESS."""
    out = []
    for ratio in ratios:
        budget = budget_of(model, method.base, text, ratio)
        out.append(Plan(f"base {ratio}", method.base, budget))
        out.append(Plan(f"more {ratio}", method.base, with_more(budget, extra)))
        out.append(Plan(f"less {ratio}", method, budget))
    return out


def with_more(budget: Budget, extra: int) -> Budget:
    """The budget with more tokens, where its method spends them."""
    if budget.middle:
        return replace(budget, middle=budget.middle + extra)
    return replace(budget, local=budget.local + extra)


def show(report: Sequence[Mapping[str, Any]]) -> None:
    """The report as a table."""
    table = Table(title=TITLE, title_justify="left", box=None)
    for name in ("budget", "loss", "base alone", "base + tokens", "LESS", "difference", "bytes base, LESS"):
        table.add_column(name)
    for row in report:
        low, high = row["interval"] or (float("nan"), float("nan"))
        table.add_row(
            row["budget"],
            row["loss"],
            f"{row['base_alone']:.4f}",
            f"{row['base']:.4f} (+{row['extra_tokens']})",
            f"{row['less']:.4f}",
            f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]",
            f"{row['bytes']['base']:,.0f}, {row['bytes']['less']:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m scripts.train_less", None, __doc__, formatter_class=form)
    parser.add_argument("words", nargs="*", help="as run.py takes them: model=NAME, method.base.PARAM=value")
    out = Path("results/less/less.safetensors")
    parser.add_argument("--out", type=Path, default=out, help="file to write (%(default)s)")
    parser.add_argument("--text", type=Path, help="a plain text of no benchmark; tiny generates its own")
    parser.add_argument("--texts", type=int, default=30, help="texts to train on (%(default)s)")
    parser.add_argument("--validation", type=int, default=9, help="texts to choose the best epoch on (%(default)s)")
    held_out = "texts to measure on afterwards, 0 for none (%(default)s)"
    parser.add_argument("--held-out", type=int, default=40, help=held_out)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a prompt, in turn")
    parser.add_argument("--later", type=int, default=NUM_LATER, help="tokens after the prompt, which are learned from")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS[1:], help="to measure at")
    parser.add_argument("--rank", type=int, default=Recipe.rank, help="features of a state (%(default)s)")
    hidden = "width of the kernels' hidden layer (%(default)s)"
    parser.add_argument("--hidden", type=int, default=Recipe.hidden, help=hidden)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="passes over the texts (%(default)s)")
    rate = "of Adam (%(default)s); the paper's is 1e-3, for more texts"
    parser.add_argument("--rate", type=float, default=Recipe.rate, help=rate)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
