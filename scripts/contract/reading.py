"""Checks of reading: candidates only, nothing from the future, and what is read is what is answered from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from methods.base import Method
from methods.scores import logits as scaled_logits
from scripts.contract.case import NUM_NEW, NUM_QUESTION, Case, Exempt, require
from scripts.contract.models import distinct_ids
from scripts.contract.same import NEAR
from scripts.watch import Seen, WatchedIndex, follow


def chooses_candidates_only(case: Case) -> None:
    ids = distinct_ids(case.length + NUM_QUESTION + NUM_NEW)
    question, later = ids[case.length : case.length + NUM_QUESTION], ids[case.length + NUM_QUESTION :]
    fed = follow(case.model, case.method, case.small(), ids[: case.length], [question, *later.split(1)])
    for number, layer in enumerate(fed.watched.layers):
        heads = layer.layer.num_kv_heads, layer.layer.num_heads
        for seen in layer.steps:
            where = f"layer {number}, at position {seen.step.start}"
            if seen.selection.positions is not None:
                check_choice(seen, heads, where)
            last = seen.step.start + seen.step.positions.shape[0] - 1
            require(seen.positions.max() <= last, f"{where}: position {int(seen.positions.max())} is read, its future")
            held = seen.positions.sort(1).values
            require(not ((held[:, 1:] == held[:, :-1]) & (held[:, 1:] >= 0)).any(), f"{where}: a token is read twice")
            late = seen.positions[:, None] > seen.step.positions[:, None]
            mass = seen.weights.masked_fill(~late.repeat_interleave(layer.layer.group, 0), 0.0).sum()
            require(mass == 0, f"{where}: {float(mass):.1e} of the attention is on later tokens")


def check_choice(seen: Seen, heads: tuple[int, int], where: str) -> None:
    """A selection is of int64 [G,k] or [H,k], with candidates only, each once. Raises Broken."""
    chosen, step = seen.selection.positions, seen.step
    assert chosen is not None
    require(chosen.dtype == torch.int64, f"{where}: positions are {chosen.dtype}, not int64")
    right = chosen.ndim == 2 and chosen.shape[0] in heads
    require(right, f"{where}: positions have shape {[*chosen.shape]}, not [{heads[0]},k] or [{heads[1]},k]")
    real = chosen[chosen >= 0]
    outside = real[(real < step.sink) | (real >= step.end)]
    say = f"{where}: position {int(outside[0]) if outside.numel() else 0} is chosen"
    require(outside.numel() == 0, f"{say}; the candidates are {step.sink} to {step.end - 1}")


def later_tokens_change_nothing(case: Case) -> None:
    if case.method.block > 1:
        raise Exempt(f"{case.method.block} new tokens share one selection")
    ids = distinct_ids(case.length + NUM_QUESTION)
    same = NUM_QUESTION // 2
    other = ids.clone()
    other[case.length + same :] = distinct_ids(NUM_QUESTION - same, seed=9)
    budget, prompt = case.small(), ids[: case.length]
    fed = [follow(case.model, case.method, budget, prompt, [x[case.length :]]) for x in (ids, other)]
    for number, (a, b) in enumerate(zip(fed[0].outputs, fed[1].outputs, strict=True)):
        gap = float((a[:, :same] - b[:, :same]).abs().max())
        require(gap < NEAR, f"layer {number}: answers move by {gap:.1e} when only later tokens are other ones")


def reads_what_it_says(case: Case) -> None:
    """Outputs are exact attention on the full K and V, masked to the positions that a step says it reads."""
    if case.method.kind == "none":
        raise Exempt('it is of kind "none": what it keeps need not be exact')
    if not case.method.exact:
        raise Exempt("it merges keys and values, or keeps less of them, so that what it reads is not exact")
    for number, layer in enumerate(case.trace.watched.layers):
        keys, values = case.trace.watched.everything(number)
        answered, at = case.trace.outputs[number], 0
        for seen in layer.steps:
            num_new = seen.step.positions.shape[0]
            gap = float((expected(case.method, layer, seen, keys, values) - answered[:, at : at + num_new]).abs().max())
            where = f"layer {number}, at position {seen.step.start}"
            require(
                gap < NEAR, f"{where}: the answer is {gap:.1e} away from attention on the positions it says it reads"
            )
            at += num_new


def expected(method: Method, layer: WatchedIndex, seen: Seen, keys: Tensor, values: Tensor) -> Tensor:
    """Attention [H,m,D] from all keys and values [G,n,D] under a mask, and what stands in for the rest."""
    step, geometry = seen.step, layer.layer
    mask = attended(layer, seen)
    last = mask.shape[1]
    keys, values = (t[:, :last].float().repeat_interleave(geometry.group, 0) for t in (keys, values))
    position = torch.arange(last)
    single = replace(geometry, num_kv_heads=geometry.num_heads)
    logit = scaled_logits(step.queries, keys, single)
    if method.distance != "true":
        plain_q, plain_k = geometry.rotate(step.queries, step.positions, True), geometry.rotate(keys, position, True)
        if method.distance == "clipped":
            local = layer.budget.local
            turned = geometry.rotate(plain_q, torch.full_like(step.positions, local), False)
            far = step.positions[:, None] - position > local
            logit = torch.where(far, scaled_logits(turned, plain_k, single), logit)
        else:
            rank = mask.long().cumsum(1) - 1
            here = geometry.rotate(plain_k, rank.clamp(min=0), False)
            logit = scaled_logits(geometry.rotate(plain_q, rank[:, step.positions], False), here, single)
    logit = logit.masked_fill(~mask[:, None] | (position > step.positions[:, None]), -torch.inf)
    out = logit.softmax(-1) @ values
    rest = seen.selection.rest
    if rest is None:
        return out
    share = rest.mass if rest.lse is None else torch.sigmoid(logit.logsumexp(-1) - rest.lse)
    assert share is not None
    stand_in = torch.zeros_like(out) if rest.value is None else rest.value.float()
    return share[..., None] * out + (1 - share[..., None]) * stand_in


def attended(layer: WatchedIndex, seen: Seen) -> Tensor:
    """The tokens up to the last new one that each query head attends, bool [H,n], before causality."""
    step, geometry = seen.step, layer.layer
    last = step.start + step.positions.shape[0]
    listed = seen.selection.positions
    rows = seen.positions if listed is None else listed
    # -1 pads fall on a column of their own, which is cut off again.
    mask = torch.zeros(rows.shape[0], last + 1, dtype=torch.bool).scatter_(1, rows + 1, True)[:, 1:]
    if listed is not None:
        mask[:, : min(step.sink, step.end)] = True
        mask[:, step.end :] = True
    return mask.repeat_interleave(geometry.num_heads // rows.shape[0], 0)


def num_attended(case: Case, layer: WatchedIndex, seen: Seen) -> Tensor:
    """Past tokens that each KV head, or with spread "q_head" each query head, attends in a step."""
    past = attended(layer, seen)[:, : seen.step.start]
    if case.method.spread != "q_head":
        past = past.unflatten(0, (layer.layer.num_kv_heads, -1)).any(1)
    return past.sum(1)
