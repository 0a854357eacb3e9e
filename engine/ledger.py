"""What an answer cost: tokens attended, bytes held and moved, seconds; and the audit that nobody overspent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from methods.base import Budget, Method, Step

HEADS = {"head": "KV head", "q_head": "query head"}  # spreads under which every head is held to the budget alone


class AuditError(RuntimeError):
    """A method broke its budget, or left nothing out where it had to: the run is worth nothing."""


class Clock:
    """Marks in time: CUDA events on a GPU, read once the work is done, a monotonic clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[torch.cuda.Event | float] = []

    def mark(self) -> int:
        """Set a mark; its number."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())
        return len(self.marks) - 1

    def seconds(self, start: int, end: int) -> float:
        """Seconds between two marks; waits for the device."""
        a, b = self.marks[start], self.marks[end]
        if isinstance(a, float) or isinstance(b, float):
            assert isinstance(a, float) and isinstance(b, float)
            return b - a
        b.synchronize()
        return float(a.elapsed_time(b)) / 1000.0


@dataclass
class LayerAudit:
    """What the steps of one layer attended, as tensors on its device, so that no step waits for the host.

    counts: past tokens read by each step, [G]; where each query head has its own list, the distinct ones of the group.
    lists: past tokens attended, [G], or [H] where query heads have their own. wrong: whether a selection was ever
    outside the candidates or named one twice.
    """

    counts: list[Tensor] = field(default_factory=list)
    lists: list[Tensor] = field(default_factory=list)
    wrong: Tensor | None = None

    def step(self, step: Step, positions: Tensor, own: Tensor | None) -> None:
        """Count a step that read positions [G,r], of which each query head attended those in `own` [H,r]."""
        past = (positions >= 0) & (positions < step.start)
        self.counts.append(past.sum(1))
        if own is None:
            self.lists.append(self.counts[-1])
        else:
            group = own.shape[0] // positions.shape[0]
            self.lists.append((past.repeat_interleave(group, 0) & own).sum(1))

    def selected(self, step: Step, positions: Tensor) -> None:
        """Check a selection [G,k] or [H,k]: sink <= p < end, each once, or -1."""
        ordered = positions.sort(1).values
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()
        outside = ((positions >= 0) & ((positions < step.sink) | (positions >= step.end))).any()
        wrong = twice | outside
        self.wrong = wrong if self.wrong is None else self.wrong | wrong


def audit(
    name: str, method: Method, budget: Budget | None, layers: Sequence[LayerAudit], num_steps: int
) -> tuple[float, int]:
    """Tokens attended per step and KV head (mean, maximum), over all audited layers and `num_steps` steps.

    budget: None for an arm that was answered densely. Raises AuditError, naming method and place, where a method of
    kind "tokens" attended more than its budget over its spread, chose outside the candidates, or was not asked at some
    step of some layer, in which case it is silently off there. (A method that leaves nothing out of a prompt longer
    than its budget is over its budget.)
    """
    counts = [torch.stack(layer.counts).cpu() for layer in layers if layer.counts]
    if budget is not None and method.kind == "tokens":
        if num_steps and (len(counts) < len(layers) or any(c.shape[0] < num_steps for c in counts)):
            asked = min((len(layer.counts) for layer in layers), default=0)
            raise AuditError(f"audit: method {name} is silently off: a layer asked it at {asked} of {num_steps} steps")
        _check_choice(name, layers)
        spent = counts if method.spread != "q_head" else [_per_query_head(layer) for layer in layers if layer.lists]
        _check_total(name, method, budget, spent)
    if not counts:
        return 0.0, 0
    stacked = torch.cat([c.flatten() for c in counts]).double()
    return float(stacked.mean()), int(stacked.max())


def _per_query_head(layer: LayerAudit) -> Tensor:
    """Past tokens attended, [steps,H]: a list that query heads shared counts for each of them."""
    widest = max(row.shape[0] for row in layer.lists)
    return torch.stack([row.repeat_interleave(widest // row.shape[0]) for row in layer.lists]).cpu()


def _check_choice(name: str, layers: Sequence[LayerAudit]) -> None:
    for number, layer in enumerate(layers):
        if layer.wrong is not None and bool(layer.wrong):
            raise AuditError(
                f"audit: method {name} chose a token twice or outside the middle, selectable layer {number}"
            )


def _check_total(name: str, method: Method, budget: Budget, counts: Sequence[Tensor]) -> None:
    parts = f"{budget.total} (sink {budget.sink}, local {budget.local}, middle {budget.middle})"
    if method.spread == "model" and counts:
        spent = torch.stack([c.sum(1) for c in counts]).sum(0)
        allowed = budget.total * sum(c.shape[1] for c in counts)
        if bool((spent > allowed).any()):
            raise AuditError(
                f"audit: method {name} attended {int(spent.max())} tokens over the model, budget {allowed}"
            )
        return
    each = HEADS.get(method.spread, "KV head")
    for number, count in enumerate(counts):
        spent = count if method.spread in HEADS else count.float().mean(1, keepdim=True)
        if bool((spent > budget.total).any()):
            step = int((spent > budget.total).any(1).nonzero()[0])
            raise AuditError(
                f"audit: method {name} attended {float(spent.max()):g} tokens per {each} in layer {number}, "
                f"first at step {step}; its budget is {parts}"
            )


def mean_notes(notes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The layers' notes as one: the mean over the layers that have a note of that name, equal ones as they are."""
    found: dict[str, list[float]] = {}
    for layer in notes:
        for name, value in layer.items():
            found.setdefault(name, []).append(value)
    return {name: v[0] if len(set(v)) == 1 else sum(v) / len(v) for name, v in found.items()}


def storages(tensors: Iterable[Tensor]) -> frozenset[StorageWeakRef]:
    """The storages behind tensors, not kept alive by it.

    An address would not do: when the memory of one is free again, another's may begin at the same place.
    """
    return frozenset(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors)


def held_bytes(
    tensors: Iterable[tuple[str, Tensor]], without: frozenset[StorageWeakRef] = frozenset()
) -> dict[str, int]:
    """Bytes of the storages behind (tier, tensor), each storage once, by tier, leaving out those of others."""
    seen = set[int]()
    out = {"k": 0, "v": 0, "index": 0, "host": 0}
    for tier, tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen and StorageWeakRef(storage) not in without:
            seen.add(storage.data_ptr())
            out[tier] += storage.nbytes()
    return out


@dataclass(frozen=True)
class Ledger:
    """The cost of one answer. Times are seconds, None where arms shared a run (speed is never measured there).

    attended_mean, attended_max: past tokens read per step and KV head (a group's distinct ones, where its query heads
    choose for themselves: the budget holds for each of them). budget_tokens: what it might, None if dense.
    resident: bytes by tier at the end, over the selectable layers; resident_full: K+V bytes of the full cache there.
    resident_sliding: K+V bytes of sliding-window layers, which no method touches.
    moved: bytes per decode step; "host" is the sum of "misses", "refills", "codes" and "spills". hit_rates: by layer.
    ttft_s: prefill to the first token; build_s: index building after it; wait_s: for index work in the background;
    tt2t_s: until the second token; tpot_s: each decode step. peak_bytes: most device memory at once, None on a CPU.
    num_arms: how many arms were answered in one run, this one included.
    decode: how its steps were done: eager, static or graph; after a colon, why not as asked.
    """

    attended_mean: float
    attended_max: int
    num_steps: int
    budget_tokens: int | None
    extra_tokens: int
    resident: Mapping[str, int]
    resident_full: int
    resident_sliding: int
    moved: Mapping[str, float]
    cache_lookups: int
    cache_hits: int
    hit_rates: Sequence[float] | None
    store: str
    notes: Mapping[str, float]
    prefill_s: float | None
    build_s: float | None
    wait_s: float | None
    ttft_s: float | None
    tt2t_s: float | None
    tpot_s: Sequence[float] | None
    peak_bytes: int | None
    num_arms: int
    decode: str
