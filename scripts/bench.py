"""Speed, as ratios measured side by side in one run.

python -m scripts.bench all         # every speed goal with a verdict, within 8 minutes
python -m scripts.bench decode model=tiny method=full,quest --lengths 1k,4k  # steps at fixed cache lengths, and floors
python -m scripts.bench prefill model=tiny method=full,h2o --lengths 1k,2k   # first and second token
python -m scripts.bench overlap     # PQCache's clustering beside the prefill against one after the other
python -m scripts.bench kcache --plot docs/kcache.png  # KCache's fetched values against all values read
python -m scripts.bench sharing     # a sweep with shared prefills against one full run and against single runs
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from engine.arm import Plan
from engine.generate import Question, Stop, answer
from engine.load import load
from engine.model import Model
from engine.spec import ModelSpec
from eval.failures import guarded
from methods.base import Method
from methods.budget import parse_budget, resolve
from methods.full import Full
from methods.pqcache.method import PQCache
from scripts import payoff, sharing
from scripts.speed import cli

SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 131072,
}


def main(argv: Sequence[str]) -> int:
    """Exit status 0, and 1 for an error or a goal that was missed."""
    if argv and argv[0] in cli.COMMANDS:
        return guarded(lambda: cli.main(argv))
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__, formatter_class=form)
    what = parser.add_subparsers(dest="what", required=True)
    for name, text in cli.HELP.items():
        what.add_parser(name, help=text.splitlines()[0])
    beside = what.add_parser("overlap", help="PQCache's clustering beside the prefill against one after the other")
    beside.add_argument("--layers", type=int, default=32)
    beside.add_argument("--tokens", type=int, default=8192)
    beside.add_argument("--workers", type=int, default=1)
    values = what.add_parser("kcache", help="KCache's fetched values against all values read, over context lengths")
    values.add_argument("--longest", type=int, default=32768, help="tokens; shorter contexts halve it down to 512")
    values.add_argument(
        "--fetched", type=int, nargs="+", default=[32, 128, 512], help="tokens whose values are fetched"
    )
    values.add_argument("--repeats", type=int, default=9)
    values.add_argument("--plot", type=Path, help="a PNG to write")
    arms = what.add_parser("sharing", help="a sweep with shared prefills against one full run and against single runs")
    arms.add_argument(
        "--methods", nargs="+", default=sharing.METHODS, help="names, each with words of its own in quotes"
    )
    arms.add_argument("--budgets", nargs="+", default=sharing.BUDGETS)
    arms.add_argument("words", nargs="*", help="overrides as run.py takes them, such as task=qasper limit=4 model=tiny")
    arguments = parser.parse_args(argv)
    if arguments.what == "overlap":
        overlap(arguments.layers, arguments.tokens, arguments.workers)
    elif arguments.what == "sharing":
        share(arguments.methods, arguments.budgets, arguments.words)
    else:
        kcache(arguments.longest, arguments.fetched, arguments.repeats, arguments.plot)
    return 0


def overlap(num_layers: int, num_tokens: int, num_workers: int) -> None:
    """Seconds to the second token of a random model on one thread: no clustering, after the prefill, beside it."""
    torch.set_num_threads(1)
    spec = ModelSpec("bench", "none", weights="random", architecture={**SMALL, "num_hidden_layers": num_layers})
    model = load(spec, "auto", "auto", "sdpa", num_tokens, seed=0)
    ids = torch.randint(3, 500, (num_tokens,), generator=torch.Generator().manual_seed(0))
    apart = PQCache(num_workers=num_workers)
    cases: list[tuple[str, Method, AbstractContextManager[None]]] = [
        ("full: no clustering", Full(), nullcontext()),
        ("pqcache: each layer's keys after its prefill", PQCache(clustering="gpu"), nullcontext()),
        (f"pqcache: {num_workers} worker process(es) beside it", apart, apart.running()),
    ]
    table = Table(title=f"{num_layers} layers, {num_tokens} tokens, {platform.processor() or 'cpu'}, {model.device}")
    for name in ("case", "prefill s", "wait s", "TT2T s", "ratio"):
        table.add_column(name, justify="left" if name == "case" else "right")
    slowest: float | None = None
    for name, method, context in cases:
        with context:
            warm(model, method)
            prefill, wait, second = measure(model, method, ids)
        if method.kind != "none":
            slowest = slowest or second
        ratio = "" if slowest is None else f"{second / slowest:.2f}"
        table.add_row(name, f"{prefill:.2f}", f"{wait:.2f}", f"{second:.2f}", ratio)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def warm(model: Model, method: Method) -> None:
    """A short answer first: starting a process and torch's first calls are no part of the figure."""
    measure(model, method, torch.arange(3, 403))
    time.sleep(0.1)


def measure(model: Model, method: Method, ids: torch.Tensor) -> tuple[float, float, float]:
    """Seconds of prefill, of waiting for the index, and to the second token."""
    budget = resolve(parse_budget(0.1), method, len(ids), 32, 0.5, 0.0, model.bytes_per_token)
    plan = Plan("bench", method, None if method.kind == "none" else budget)
    ledger = answer(model, Question(ids, 0, Stop(2, frozenset())), [plan])[0].ledger
    assert ledger.prefill_s is not None and ledger.wait_s is not None and ledger.tt2t_s is not None
    return ledger.prefill_s, ledger.wait_s, ledger.tt2t_s


def kcache(longest: int, fetched: Sequence[int], repeats: int, picture: Path | None) -> None:
    """Milliseconds of values and of an attention step, all read and U tokens fetched, and where they break even."""
    lengths = [longest >> halvings for halvings in range(longest.bit_length()) if longest >> halvings >= 512][::-1]
    found = payoff.measure(lengths, fetched, repeats)
    speed = payoff.bandwidth(found)
    table = Table(title=f"one layer, 32 query and 8 KV heads of 128, float32, one thread, {platform.machine()} CPU")
    for name in ("context", "V read ms", *(f"U={n} ms" for n in fetched), "step ms", *(f"U={n} ms" for n in fetched)):
        table.add_column(name, justify="right")
    for p in found:
        cells = [f"{1e3 * t.get(n, float('nan')):.2f}" for t in (p.fetch, p.kcache) for n in fetched]
        values, steps = cells[: len(fetched)], cells[len(fetched) :]
        table.add_row(f"{p.length:,}", f"{1e3 * p.values:.2f}", *values, f"{1e3 * p.step:.2f}", *steps)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for n in speed.fetch:
        rates = f"read {speed.read / 1e9:.2f} GB/s, fetched {speed.fetch[n] / 1e9:.2f} GB/s"
        console.print(f"U={n}: {rates}, s* = {speed.break_even(n):,.0f} tokens")
    if picture is not None:
        payoff.plot(found, picture)


def share(methods: Sequence[str], budgets: Sequence[str], words: Sequence[str]) -> None:
    """Seconds of one full run, of the shared sweep and of its runs one by one, without and with start-up."""
    found = sharing.measure(methods, budgets, words)
    num = found.num_arms
    rows = (
        ("one run of full", found.full, 1),
        (f"{num} arms, one prefill a sample", found.shared, 1),
        (f"{num} arms, run by run", found.separate, num),
    )
    table = Table(title=f"{', '.join(methods)} x {', '.join(budgets)} {' '.join(words)}, {platform.machine()}")
    for name in ("case", "seconds", "CPU s", "of full", "of separate", "with start-up s", "of separate"):
        table.add_column(name, justify="left" if name == "case" else "right")
    whole = found.separate.wall + num * found.start.wall
    for name, took, starts in rows:
        begun = took.wall + starts * found.start.wall
        ratios = [took.wall / found.full.wall, took.wall / found.separate.wall]
        cells = [f"{took.wall:.2f}", f"{took.processor:.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
        table.add_row(name, *cells, f"{begun:.2f}", f"{begun / whole:.2f}")
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(f"start-up of a process: {found.start.wall:.2f} s, {found.start.processor:.2f} CPU s")
    full, separate = (found.shared.processor / other.processor for other in (found.full, found.separate))
    console.print(f"by CPU seconds the shared sweep is {full:.2f} of full, {separate:.2f} of separate")
    console.print(f"predictions equal in {found.num_same} of {found.num_pairs} (sample, arm) pairs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
