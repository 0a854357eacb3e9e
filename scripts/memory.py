"""Peak memory of the embedded model's prefill with and without H2O's scores, and their distance from dense sums.

python -m scripts.memory                        # 4096 8192 16384 32768 tokens
python -m scripts.memory --tokens 4096 8192     # shorter
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.arm import Plan
from engine.generate import prefill
from engine.load import load
from engine.model import Model
from engine.prefill import Prefix
from engine.spec import ModelSpec
from methods.base import Budget, Index, Layer, Method, Observer
from methods.full import Full
from methods.h2o.method import H2O
from methods.scores import ColumnSums, group_sum, logits
from methods.store import KVStore

MIB = 2**20
ROWS = 128
LEAST = 1e-6  # of one query's attention: what a token has received is compared as if it were no less


class DenseSums(Observer):
    """Column sums of softmaxed whole rows, added in float64: what ColumnSums must equal, by another way."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.sums = torch.zeros(layer.num_heads, 0, dtype=torch.float64)

    @property
    def key(self) -> Hashable:
        return "dense_sums"

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:
        n = keys.shape[1]
        self.sums = torch.nn.functional.pad(self.sums, (0, n - self.sums.shape[1]))
        for a in range(0, queries.shape[1], ROWS):
            rows = queries[:, a : a + ROWS]
            last = start + a + rows.shape[1]
            position = torch.arange(start + a, last)[:, None]
            score = logits(rows, keys[:, :last], self.layer).masked_fill_(torch.arange(last) > position, -torch.inf)
            self.sums[:, :last] += score.softmax(-1).sum(1)

    def finish(self, keys: Tensor, values: Tensor) -> Tensor:
        return group_sum(self.sums, self.layer.num_kv_heads)


@dataclass(frozen=True)
class Dense(Method):
    """Only there to have a prefill's dense column sums."""

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        return (DenseSums(layer),)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        raise NotImplementedError("it answers nothing")


def embedded(num_tokens: int) -> Model:
    """The embedded model, float32 on the host, prompts in one chunk."""
    return load(ModelSpec("tiny", "data/tiny"), "cpu", "float32", "sdpa", num_tokens, seed=0)


def ids_of(num_tokens: int) -> Tensor:
    """Random tokens [n]."""
    return torch.randint(3, 500, (num_tokens,), generator=torch.Generator().manual_seed(0))


class PeakBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and were alive at once: `most`. What one operation uses and frees
    within itself is not seen. before: storages that were there; an operation may return a view of one."""

    def __init__(self, before: frozenset[StorageWeakRef] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before = before
        self.alive: set[int] = set()
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.watch(leaf.untyped_storage())
        return out

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed; views share one."""
        if storage.data_ptr() not in self.alive and StorageWeakRef(storage) not in self.before:
            self.alive.add(storage.data_ptr())
            self.add(storage.nbytes())
            weakref.finalize(storage, self.free, storage.data_ptr(), storage.nbytes())

    def free(self, address: int, num_bytes: int) -> None:
        self.alive.discard(address)
        self.add(-num_bytes)

    def add(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.most = max(self.most, self.now)


@torch.inference_mode()
def peak(model: Model, method: Method, ids: Tensor) -> tuple[int, Prefix]:
    """Most bytes at once, and the result, of the prefill of ids [n]."""
    with PeakBytes() as bytes_at_once:
        prefix = prefill(model, model.layers(0), ids, [Plan("memory", method, Budget(4, 64, 64))])
    return bytes_at_once.most, prefix


def deviation(model: Model, scored: Prefix, summed: Prefix) -> float:
    """Largest difference of H2O's scores from dense column sums, over all layers, as a share of the dense value.

    A trained model may leave a token without any weight that float32 could hold, in both sums.
    """
    found = []
    for layer, seen, other in zip(model.layers(0), scored.seen, summed.seen, strict=True):
        ours, dense = seen[ColumnSums(layer).key], other["dense_sums"]
        assert isinstance(ours, Tensor) and isinstance(dense, Tensor)
        found.append(float(((ours - dense).abs() / dense.clamp(min=LEAST)).max()))
    return max(found)


def main(argv: Sequence[str]) -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m scripts.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    lengths: list[int] = parser.parse_args(argv).tokens
    torch.set_num_threads(1)
    table = Table(title="peak MiB of the embedded model's prefill, float32, one chunk, one thread")
    for name in ("tokens", "without scores", "with H2O's scores", "one L x L matrix", "largest deviation"):
        table.add_column(name, justify="right")
    for n in lengths:
        model, ids = embedded(n), ids_of(n)
        plain, _ = peak(model, Full(), ids)
        most, scored = peak(model, H2O(), ids)
        apart = deviation(model, scored, peak(model, Dense(), ids)[1])
        matrix = model.geometry[0].num_heads * n * n * 4
        table.add_row(f"{n:,}", *(f"{size / MIB:,.0f}" for size in (plain, most, matrix)), f"{apart:.1e}")
        print(f"{n} tokens: done", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
