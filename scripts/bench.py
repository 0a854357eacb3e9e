"""Speed, as ratios measured side by side in one run.

python -m scripts.bench overlap     # PQCache's clustering beside the prefill against one after the other
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from rich.console import Console
from rich.table import Table

from engine.arm import Plan
from engine.generate import Question, Stop, answer
from engine.load import load
from engine.model import Model
from engine.spec import ModelSpec
from methods.base import Method
from methods.budget import parse_budget, resolve
from methods.full import Full
from methods.pqcache.method import PQCache

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
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description="Speed, as ratios within one run.")
    parser.add_argument("what", choices=["overlap"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args(argv)
    overlap(arguments.layers, arguments.tokens, arguments.workers)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
