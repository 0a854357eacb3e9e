"""InfLLM (arXiv 2402.04617): blocks of distant tokens, found by representative tokens, read at one distance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from methods.base import Budget, Index, Layer, Method, ModelFacts, Observer, Selection, Step
from methods.scores import ColumnSums, group_sum, top_k
from methods.store import KVStore


def block_size(wish: int, middle: int) -> int:
    """Tokens a block: the wish, or less where the budget holds not even one whole block beside an unfinished one."""
    return wish if middle >= 2 * wish else max(1, middle // 8)


class InfLLMIndex(Index):
    """The block memory of one layer: one representative per block and query head.

    blocks: [H,b,D] mean un-rotated key of the tokens that drew most attention from the queries after them.
    formed: first position that is in no block yet. scores: [H,·] attention drawn by the tokens from there on.
    """

    def __init__(self, layer: Layer, store: KVStore, budget: Budget, method: InfLLM) -> None:
        super().__init__(layer, store, budget)
        self.method = method
        self.block = block_size(method.block_tokens, budget.middle)
        self.num_selected = max(0, (budget.middle - self.block) // self.block)
        self.blocks = torch.zeros(layer.num_heads, 0, layer.head_dim, dtype=layer.dtype, device=layer.device)
        self.formed = budget.sink
        self.scores = torch.zeros(layer.num_heads, 0, device=layer.device)

    def build(self, seen: Mapping[Hashable, object]) -> None:
        if self.method.own_prefill:
            return
        observer = self.method.observers(self.layer, self.budget)[0]
        sums = cast(Tensor, seen[observer.key])
        self.scores = sums[:, self.formed :].clone()
        self.form_blocks(sums.shape[1] - self.budget.local)

    def extend(self, k: Tensor, v: Tensor, start: int) -> None:
        missing = start + k.shape[1] - self.formed - self.scores.shape[1]
        self.scores = torch.nn.functional.pad(self.scores, (0, max(0, missing)))

    def form_blocks(self, end: int) -> None:
        """Make blocks of all whole stretches that have left the local window, which starts at `end`.

        As in the authors' code a stretch waits for one token more, so up to `block` tokens are in no block.
        """
        num_new = max(0, (end - 1 - self.formed) // self.block)
        if num_new == 0:
            return
        stop = self.formed + num_new * self.block
        positions = torch.arange(self.formed, stop, device=self.layer.device)
        keys, _ = self.store.gather(positions.expand(self.layer.num_kv_heads, -1))
        plain = self.layer.rotate(keys, positions, True).unflatten(1, (num_new, self.block))
        count = stop - self.formed
        drawn = self.scores[:, :count].unflatten(1, (num_new, self.block))
        best = top_k(drawn, min(self.method.representatives, self.block))
        per_head = plain.repeat_interleave(self.layer.group, 0)
        chosen = per_head.gather(2, best[..., None].expand(-1, -1, -1, per_head.shape[-1]))
        self.blocks = torch.cat([self.blocks, chosen.mean(2).to(self.blocks.dtype)], 1)
        self.scores = self.scores[:, count:]
        self.formed = stop

    def select(self, step: Step) -> Selection:
        self.form_blocks(step.end)
        if step.k == 0:
            return Selection(torch.empty(self.layer.num_kv_heads, 0, dtype=torch.long, device=self.layer.device))
        chosen = self.lookup(step)
        inside = torch.arange(self.block, device=chosen.device)
        tokens = (chosen[..., None] * self.block + inside).flatten(1) + self.budget.sink
        # Out of the window and not yet a whole block: always read.
        remainder = torch.arange(self.formed, max(step.end, self.formed), device=chosen.device)
        return Selection(torch.cat([tokens, remainder.expand(tokens.shape[0], -1)], 1))

    def lookup(self, step: Step) -> Tensor:
        """Ids [G,b] of the blocks to read: those with the largest sum over heads of mean query x representative.

        The queries are turned to the one angle at which they will read.
        """
        num_blocks, num_kv_heads = self.blocks.shape[1], self.layer.num_kv_heads
        if num_blocks <= self.num_selected:
            return torch.arange(num_blocks, device=self.layer.device).expand(num_kv_heads, -1)
        plain = self.layer.rotate(step.queries, step.positions, True)
        clipped = self.layer.rotate(plain, torch.full_like(step.positions, self.budget.local), False)
        self.store.traffic.scan(self.blocks)
        scores = (clipped.mean(1)[:, None] @ self.blocks.float().mT)[:, 0]
        per_kv_head = group_sum(scores, num_kv_heads)
        if self.method.scope == "layer":
            per_kv_head = per_kv_head.sum(0, keepdim=True).expand(num_kv_heads, -1)
        return top_k(per_kv_head, self.num_selected)

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        last = step.start + step.positions.shape[0]
        first = max(step.end, self.formed)
        if first >= last:
            return
        key = torch.arange(first, last, device=weights.device)
        near = step.positions[:, None] - key <= self.budget.local
        drawn = (weights[..., -(last - first) :] * near).sum(1)
        self.scores[:, first - self.formed : last - self.formed] += drawn

    def tensors(self) -> list[tuple[str, Tensor]]:
        return [("index", self.blocks), ("index", self.scores)]

    def notes(self) -> Mapping[str, float]:
        return {"block_tokens": self.block, "blocks_read": self.num_selected, "blocks": self.blocks.shape[1]}


@dataclass(frozen=True)
class InfLLM(Method):
    """Block memory with a resident store.

    block_tokens: tokens a block, smaller where the budget does not hold one (noted in the record).
    representatives: tokens that stand for a block. exec_block: prompt queries that share one look-up.
    prefill: "sparse" sends the prompt through the same selection (the paper's), "dense" only selects in decode.
    scope: one set of blocks for a "layer" (the paper's) or for each "kv_head".
    """

    distance: ClassVar[str] = "clipped"
    observes: ClassVar[bool] = True

    block_tokens: int = 128
    representatives: int = 4
    exec_block: int = 512
    prefill: Literal["sparse", "dense"] = "sparse"
    scope: Literal["layer", "kv_head"] = "layer"

    def __post_init__(self) -> None:
        for name in ("block_tokens", "representatives", "exec_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.{name}={getattr(self, name)}: give 1 or more")

    @property
    def own_prefill(self) -> bool:
        return self.prefill == "sparse"

    @property
    def block(self) -> int:
        return self.exec_block

    def supports(self, model: ModelFacts) -> str | None:
        if model.rope_scaled:
            return "its rotary embedding carries an attention factor (YaRN), which un-rotating keys would lose"
        return None if model.has_rope else "it has no rotary position embedding to clip"

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        if self.own_prefill:
            return ()
        return (ColumnSums(layer, window=budget.local + 1, grouped=False),)

    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return InfLLMIndex(layer, store, budget, self)
