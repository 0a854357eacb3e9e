"""H2O's step over its slots in one launch: probabilities, accumulated scores, and the slot that is given up.

A program is one KV head, and goes over its slots twice: for the softmax's sum, and for all the rest. There is one
program a KV head because the lightest slot is one of all.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # slots at once: of 1,024 some would lie in local memory (Triton 3.6)


def weigh(
    logits: Tensor,
    scores: Tensor,
    positions: Tensor,
    vacant: Tensor,
    now: Tensor,
    sink: int,
    recent: int,
    by_age: bool,
    sinks: Tensor | None,
    dtype: torch.dtype,
    block: int = BLOCK,
) -> Tensor:
    """Probabilities [H,r], in `dtype`, of logits float32 [H,r] on slots whose tokens stand at positions int64 [G,r].

    They are added, over the group, to scores float64 [G,r], in which slot `vacant` int64 [G,1] begins at 0. `vacant`
    becomes the lightest slot among positions from `sink` to `now` (int64, 0-d, on the device) - recent; of equal ones
    that of the higher position. by_age: scores weigh by the queries that saw them. sinks [H]: learned logits.
    """
    (num_heads, num_slots), num_kv_heads = logits.shape, positions.shape[0]
    assert logits.stride(1) == scores.stride(1) == positions.stride(1) == 1
    weights = torch.empty(num_heads, num_slots, dtype=dtype, device=logits.device)
    group = num_heads // num_kv_heads
    weigh_kernel[(num_kv_heads,)](
        logits, scores, positions, vacant, now, sinks, weights, num_slots, logits.stride(0), scores.stride(0),
        positions.stride(0), vacant.stride(0), sink, recent, GROUP=group, PADDED=triton.next_power_of_2(group),
        BLOCK=min(block, triton.next_power_of_2(num_slots)), BY_AGE=by_age, num_warps=8,
    )  # fmt: skip
    return weights


@triton.jit
def weigh_kernel(
    logits: tl.tensor,
    scores: tl.tensor,
    positions: tl.tensor,
    vacant: tl.tensor,
    now: tl.tensor,
    sinks: tl.tensor | None,
    weights: tl.tensor,
    num_slots: tl.tensor,
    logits_stride: tl.tensor,
    scores_stride: tl.tensor,
    positions_stride: tl.tensor,
    vacant_stride: tl.tensor,
    sink: tl.tensor,
    recent: tl.tensor,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_AGE: tl.constexpr,
) -> None:
    """A program: one KV head."""
    kv_head, member = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    own = member < GROUP
    head = kv_head * GROUP + member
    peak = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    if sinks is not None:
        peak = tl.load(sinks + head, mask=own, other=0.0).to(tl.float32)
        total += 1.0
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        real = own[:, None] & (slot < num_slots)[None, :]
        logit = tl.load(logits + head[:, None] * logits_stride + slot[None, :], mask=real, other=float("-inf"))
        top = tl.maximum(peak, tl.max(logit, 1))
        base = tl.where(top == float("-inf"), 0.0, top)
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(logit - base[:, None]), 1)
        peak = top
    peak = tl.where(own, peak, 0.0)
    factor = tl.where(own, 1.0 / tl.where(own, total, 1.0), 0.0)
    moment, fresh = tl.load(now), tl.load(vacant + kv_head * vacant_stride)
    lightest = tl.full([], float("inf"), tl.float64)
    latest = tl.full([], -1, tl.int64)
    given_up = tl.full([], 0, tl.int64)
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        inside = slot < num_slots
        real = own[:, None] & inside[None, :]
        logit = tl.load(logits + head[:, None] * logits_stride + slot[None, :], mask=real, other=float("-inf"))
        weight = tl.exp(logit - peak[:, None]) * factor[:, None]
        out = weights + head[:, None] * num_slots + slot[None, :]
        tl.store(out, weight.to(weights.dtype.element_ty), mask=real)
        here = scores + kv_head * scores_stride + slot
        score = tl.where(slot == fresh, 0.0, tl.load(here, mask=inside, other=0.0)) + tl.sum(weight, 0).to(tl.float64)
        tl.store(here, score, mask=inside)
        position = tl.load(positions + kv_head * positions_stride + slot, mask=inside, other=-1)
        if BY_AGE:
            score = score / tl.maximum(moment - position + 1, 1).to(tl.float64)
        allowed = inside & (position >= sink) & (position <= moment - recent)
        rank = tl.where(allowed, score, float("inf"))
        least = tl.min(rank, 0)
        place = tl.max(tl.where(inside & (rank == least), position, -1), 0)
        at = tl.max(tl.where(inside & (rank == least) & (position == place), slot, -1), 0)
        better = (least < lightest) | ((least == lightest) & (place > latest))
        lightest = tl.where(better, least, lightest)
        latest = tl.where(better, place, latest)
        given_up = tl.where(better, at, given_up)
    tl.store(vacant + kv_head * vacant_stride, given_up)


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    tensors = {"logits": "*fp32", "scores": "*fp64", "positions": "*i64", "vacant": "*i64", "now": "*i64",
               "sinks": "*bf16", "weights": "*bf16"}  # fmt: skip
    numbers = ("num_slots", "logits_stride", "scores_stride", "positions_stride", "vacant_stride", "sink", "recent")
    types = {**tensors, **dict.fromkeys(numbers, "i32")}
    shape = {"GROUP": 4, "PADDED": 4, "BLOCK": BLOCK, "BY_AGE": False, "num_warps": 8}
    return [(weigh_kernel, types, {**shape, "sinks": None}), (weigh_kernel, types, {**shape, "BY_AGE": True})]
