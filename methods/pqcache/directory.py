"""Which blocks the device caches, as tensors: `methods.pqcache.blocks.BlockCache` without the host.

Plain torch; `methods.pqcache.fused` picks kernels for a GPU, which never wait for the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.pqcache.blocks import BlockCache, Policy


@dataclass(frozen=True)
class Directory:
    """Which block of rows lies in which slot of the cache; its tensors change in place.

    table int32 [num_blocks]: the slot of a block, or -1. For each slot, int32 [capacity]: owner, its block or -1;
    uses, how often that was offered since it came in; touched, when last. clock int32 0-d: blocks offered so far.
    """

    table: Tensor
    owner: Tensor
    uses: Tensor
    touched: Tensor
    clock: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of it, for who counts bytes."""
        return self.table, self.owner, self.uses, self.touched, self.clock


@dataclass(frozen=True)
class Tiers:
    """Where middle rows lie. host: K and V [R,G,D] of all of them, pinned where the device is a GPU.

    cache: K and V [slots*block,G,D] of blocks of `block` consecutive rows, on the device.
    """

    host: tuple[Tensor, Tensor]
    cache: tuple[Tensor, Tensor]
    block: int


def taken_over(cache: BlockCache, num_blocks: int, device: torch.device) -> Directory:
    """What a cache holds, with room for `num_blocks` blocks in its table."""
    table = torch.full((num_blocks,), -1, dtype=torch.int32)
    owner = torch.full((cache.capacity,), -1, dtype=torch.int32)
    uses, touched = torch.zeros_like(owner), torch.zeros_like(owner)
    for block, entry in cache.entries.items():
        table[block], owner[entry.slot] = entry.slot, block
        uses[entry.slot], touched[entry.slot] = entry.uses, entry.touched
    clock = torch.tensor(cache.clock, dtype=torch.int32)
    return Directory(*(t.to(device) for t in (table, owner, uses, touched, clock)))


def offer(held: Directory, blocks: Tensor, policy: Policy) -> Tensor:
    """Touch distinct blocks int64 [b] (-1: none) in order and let absent ones in: the slots int32 [b] they came to.

    -1 where a block was there already, or was let in and had to leave again within this call. lfu: the block with the
    fewest uses leaves, among equals the one not touched for longest; lru: that one. Free slots go first, in order.
    """
    slots = torch.full(blocks.shape, -1, dtype=torch.int32, device=blocks.device)
    for i, block in enumerate(blocks.tolist()):
        if block < 0:
            continue
        held.clock.add_(1)
        if held.owner.shape[0] == 0:
            continue
        slot = int(held.table[block])
        if slot < 0:
            # Free slots have neither uses nor touches, so that they come first.
            uses = held.uses if policy == "lfu" else torch.zeros_like(held.uses)
            slot = int(((uses.long() << 32) + held.touched).argsort(stable=True)[0])
            gone = int(held.owner[slot])
            if gone >= 0:
                held.table[gone] = -1
                slots[blocks == gone] = -1
            held.table[block], held.owner[slot], held.uses[slot], slots[i] = slot, block, 0, slot
        held.uses[slot] += 1
        held.touched[slot] = held.clock
    return slots


def most_read(rows: Tensor, num_blocks: int, block: int, number: int) -> Tensor:
    """The `number` blocks with most look-ups among rows int64 [G,k] (-1: none), most first: int64 [number].

    Equal counts: the lower block first. -1 where no further block was read. Never waits for the device.
    """
    flat = rows.flatten()
    read = (flat >= 0).long()
    counts = torch.zeros(num_blocks, dtype=torch.long, device=rows.device)
    counts.scatter_add_(0, flat.clamp(min=0) // block, read)
    # One key for count and place: no two are equal, so a top-k has one answer.
    order = counts * num_blocks - torch.arange(num_blocks, device=rows.device)
    most = order.topk(min(number, num_blocks))
    found = most.indices.masked_fill(most.values <= 0, -1)
    return torch.nn.functional.pad(found, (0, number - found.shape[0]), value=-1)


def gather_rows(rows: Tensor, table: Tensor, tiers: Tiers, out: tuple[Tensor, Tensor]) -> Tensor:
    """Copy rows int64 [G,k] to out, K and V [G,k,D]; zeros where a row is -1.

    A row whose block is in `table` comes from the cache, any other over the host link. Returns how many came from the
    cache, int64 0-d.
    """
    slot = table[rows.clamp(min=0) // tiers.block].masked_fill(rows < 0, -1).long()
    head = torch.arange(rows.shape[0], device=rows.device)[:, None].expand_as(rows)
    hit, miss = slot >= 0, (rows >= 0) & (slot < 0)
    place = slot * tiers.block + rows % tiers.block
    for to, cached, far in zip(out, tiers.cache, tiers.host, strict=True):
        to.zero_()
        to[hit] = cached[place[hit], head[hit]]
        to[miss] = far[rows[miss].to(far.device), head[miss].to(far.device)].to(to.device)
    return hit.sum()


def refill(blocks: Tensor, slots: Tensor, num_rows: Tensor, tiers: Tiers) -> None:
    """Copy the rows below num_rows (int64, 0-d) of each block int64 [b] to its slot int32 [b], if it has one."""
    for index, slot in zip(blocks.tolist(), slots.tolist(), strict=True):
        if slot >= 0:
            rows = slice(index * tiers.block, min((index + 1) * tiers.block, int(num_rows)))
            to = slice(slot * tiers.block, slot * tiers.block + rows.stop - rows.start)
            for cached, far in zip(tiers.cache, tiers.host, strict=True):
                cached[to] = far[rows].to(cached.device)


def spill(row: Tensor, new: tuple[Tensor, Tensor], table: Tensor, tiers: Tiers) -> None:
    """Write new, K and V [G,D], to a row (int64, 0-d; -1: none) of the host, and of the cache if its block is there."""
    at = int(row)
    if at < 0:
        return
    slot = int(table[at // tiers.block])
    for one, cached, far in zip(new, tiers.cache, tiers.host, strict=True):
        far[at] = one.to(far.device)
        if slot >= 0:
            cached[slot * tiers.block + at % tiers.block] = one
