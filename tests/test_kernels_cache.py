"""The tiers' kernels do what `BlockCache` and `TieredStore` do; run on a CPU they are interpreted."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from methods.base import Budget
from methods.kernels import cache as kernels
from methods.pqcache import directory as plain
from methods.pqcache.blocks import BlockCache, Policy
from methods.pqcache.directory import Directory, Tiers, most_read, taken_over
from methods.pqcache.store import tiered
from tests.golden import layer_of

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
Offer = Callable[[Directory, Tensor, Policy], Tensor]


def offer(held: Directory, blocks: Tensor, policy: Policy) -> Tensor:
    return kernels.offer(held.table, held.owner, held.uses, held.touched, held.clock, blocks, policy)


def number(value: int) -> Tensor:
    return torch.tensor(value, device=DEVICE)


def empty(capacity: int) -> Directory:
    return taken_over(BlockCache(capacity), 60, DEVICE)


def held_by(held: Directory) -> tuple[dict[int, int], dict[int, int]]:
    """{block: slot} as the table has it, and as the slots' owners have it."""
    table = {block: slot for block, slot in enumerate(held.table.tolist()) if slot >= 0}
    return table, {block: slot for slot, block in enumerate(held.owner.tolist()) if block >= 0}


def batches(rng: random.Random, num_blocks: int, size: int, count: int) -> list[list[int]]:
    """Distinct blocks with favourites; later batches know more blocks. Every other one has a pad among them."""
    out = []
    for i in range(count):
        known = max(size, num_blocks * (i + 1) // count)
        drawn = list(dict.fromkeys(min(known - 1, int(rng.expovariate(8 / known))) for _ in range(size)))
        if i % 2:
            drawn.insert(rng.randrange(len(drawn)), -1)
        out.append((drawn + [-1] * size)[:size])
    return out


def follow(given: Offer, policy: Policy, capacity: int, size: int, count: int) -> None:
    """Same newcomers, slots, uses and touches as `BlockCache` has, after each of `count` batches."""
    rng = random.Random(capacity * 100 + size)
    known, held = BlockCache(capacity, policy), empty(capacity)
    for batch in batches(rng, 60, size, count):
        came = known.offer(block for block in batch if block >= 0)
        slots = given(held, torch.tensor(batch, device=DEVICE), policy)
        assert slots.tolist() == [came.get(block, -1) for block in batch]
        assert held_by(held) == (known.slots(), known.slots())
        for entry in known.entries.values():
            assert held.uses[entry.slot] == entry.uses and held.touched[entry.slot] == entry.touched
        assert held.clock == known.clock


@pytest.mark.parametrize("policy", ["lfu", "lru"])
@pytest.mark.parametrize(("capacity", "size", "count"), [(1, 4, 3), (0, 2, 1), (3, 5, 9), (9, 7, 3)])
def test_the_directory_is_the_block_cache(policy: Policy, capacity: int, size: int, count: int) -> None:
    follow(offer, policy, capacity, size, count)
    follow(plain.offer, policy, capacity, size, 5 * count)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["lfu", "lru"])
@pytest.mark.parametrize(("capacity", "size"), [(1, 5), (5, 8), (32, 12), (40, 32)])
def test_the_directory_is_the_block_cache_for_long(policy: Policy, capacity: int, size: int) -> None:
    follow(offer, policy, capacity, size, 60)


def test_a_newcomer_may_leave_for_the_next_of_its_batch() -> None:
    """One slot, three newcomers: only the last stays; a fourth call evicts it although it was the most used."""
    for given in (offer, plain.offer):
        held = empty(1)
        assert given(held, torch.tensor([4, 8, 2], device=DEVICE), "lfu").tolist() == [-1, -1, 0]
        assert given(held, torch.tensor([2, -1, -1], device=DEVICE), "lfu").tolist() == [-1, -1, -1]
        assert held.uses.tolist() == [2]
        assert given(held, torch.tensor([3], device=DEVICE), "lfu").tolist() == [0]
        assert held_by(held) == ({3: 0}, {3: 0})


def test_most_read_counts_look_ups_and_takes_the_lower_of_equals() -> None:
    """Against counts that wait for the host; pads count for nothing."""
    generator = torch.Generator().manual_seed(3)
    for size in (1, 9, 40):
        rows = ((torch.rand(3, 40, generator=generator) ** 2 * 90).long() - 1).to(DEVICE)
        counts = torch.bincount(rows[rows >= 0] // 3, minlength=30)
        order = counts.argsort(descending=True, stable=True)
        expected = order.masked_fill(counts[order] == 0, -1).tolist()
        assert most_read(rows, 30, 3, size).tolist() == (expected + [-1] * 10)[:size]
    assert most_read(torch.full((2, 3), -1, device=DEVICE), 4, 4, 2).tolist() == [-1, -1]


class Walk:
    """Rows of two KV heads in host memory behind a cache, moved by the kernels alone or by plain torch alone."""

    def __init__(self, room: int, dim: int, slots: int, block: int, in_torch: bool) -> None:
        def unknown(size: int, host: bool) -> Tensor:
            out = torch.full((size, 2, dim), torch.nan)
            return (out.pin_memory() if CUDA else out) if host else out.to(DEVICE)

        host, cache = (
            (unknown(size, near), unknown(size, near)) for size, near in ((room, True), (slots * block, False))
        )
        self.tiers = Tiers(host, cache, block)
        self.held = empty(slots)
        self.in_torch = in_torch
        self.refilled = 0

    def spill(self, k: Tensor, v: Tensor, row: int) -> None:
        tiers, table = self.tiers, self.held.table
        if self.in_torch:
            plain.spill(number(row), (k, v), table, tiers)
        else:
            kernels.spill(k, v, number(row), table, tiers.block, *tiers.host, *tiers.cache)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and results are columns of larger buffers; what lies beside the results stays as it is."""
        tiers, table = self.tiers, self.held.table
        rows = torch.nn.functional.pad(rows, (0, 1))[:, :-1]
        wide = torch.full((2, 2, rows.shape[1] + 3, tiers.host[0].shape[2]), torch.nan, device=DEVICE)
        k, v = wide[:, :, 2:-1]
        if self.in_torch:
            hits = plain.gather_rows(rows, table, tiers, (k, v))
        else:
            hits = kernels.gather_rows(rows, table, tiers.block, *tiers.cache, *tiers.host, k, v, tile=8)
        assert wide[:, :, :2].isnan().all() and wide[:, :, -1].isnan().all()
        return k, v, hits

    def take_in(self, rows: Tensor, policy: Policy, refresh: int, num_rows: int) -> None:
        blocks = most_read(rows, self.held.table.shape[0], self.tiers.block, refresh)
        slots = (plain.offer if self.in_torch else offer)(self.held, blocks, policy)
        self.refill(blocks, slots, num_rows)
        came = blocks[slots >= 0] * self.tiers.block
        self.refilled += int((num_rows - came).clamp(max=self.tiers.block).sum())

    def refill(self, blocks: Tensor, slots: Tensor, num_rows: int) -> None:
        tiers, end = self.tiers, number(num_rows)
        if self.in_torch:
            plain.refill(blocks, slots, end, tiers)
        else:
            kernels.refill(blocks, slots, end, tiers.block, *tiers.host, *tiers.cache, parts=2, chunk=64)


@pytest.mark.parametrize("policy", ["lfu", "lru"])
@pytest.mark.parametrize(
    ("sizes", "dim", "in_torch", "steps"),
    [((3, 8, 4), 12, False, 8), ((4, 5, 2), 16, False, 6), ((0, 8, 4), 16, False, 2), ((3, 8, 4), 12, True, 24)],
)
def test_random_steps_read_the_truth_and_hit_as_the_tiered_store_does(
    sizes: tuple[int, int, int], dim: int, in_torch: bool, steps: int, policy: Policy
) -> None:
    """Every step a row leaves the window, rows are read, and blocks come and go; the last block grows while cached."""
    slots, block, refresh = sizes
    num_rows, local = 37, 4
    generator = torch.Generator().manual_seed(dim + slots)
    k, v = torch.randn(2, 2, num_rows + steps + local + 1, dim, generator=generator).to(DEVICE).unbind(0)
    layer = replace(layer_of(4, 2, dim), device=DEVICE)
    prompt = num_rows + local
    store = tiered(layer, Budget(0, local, 9), k[:, :prompt], v[:, :prompt], slots, block, policy, refresh)
    walk = Walk(num_rows + steps, dim, slots, block, in_torch)
    for tier, whole in zip(walk.tiers.host, (k, v), strict=True):
        tier[:num_rows] = whole[:, :num_rows].transpose(0, 1).cpu()
    head = torch.arange(2, device=DEVICE)[:, None]
    store.append(k[:, prompt, None], v[:, prompt, None], prompt)
    for row in range(num_rows, num_rows + steps):
        now = row + local + 1  # the new token, which moves `row` out of the window
        store.append(k[:, now, None], v[:, now, None], now)
        walk.spill(k[:, row], v[:, row], row)
        often, seldom = torch.randint(9, (2, 4), generator=generator), torch.randint(row, (2, 4), generator=generator)
        rows = torch.cat([often, seldom, torch.tensor([[row, row - 1]]).expand(2, -1)], 1).to(DEVICE)
        before = store.traffic.hits
        store.gather(rows)
        # Pads among the rows are read as zeros, and change no count.
        padded = torch.cat([rows[:, :3], torch.full((2, 2), -1, device=DEVICE), rows[:, 3:]], 1)
        found_k, found_v, hits = walk.read(padded)
        for found, whole in ((found_k, k), (found_v, v)):
            assert torch.equal(found, whole[head, padded.clamp(min=0)].masked_fill((padded < 0)[..., None], 0.0))
        assert int(hits) == store.traffic.hits - before
        walk.take_in(padded, policy, refresh, row + 1)
        assert held_by(walk.held)[0] == store.cache.slots()
    assert walk.refilled * 2 * 2 * dim * 4 == store.traffic.refills
    assert (store.traffic.hits > 0) == (slots > 0)


@pytest.mark.parametrize("in_torch", [False, True])
def test_no_row_spills_nothing_and_no_slot_copies_nothing(in_torch: bool) -> None:
    walk = Walk(8, 4, 2, 4, in_torch)
    walk.spill(torch.ones(2, 4, device=DEVICE), torch.ones(2, 4, device=DEVICE), -1)
    none = torch.full((2,), -1, dtype=torch.int32, device=DEVICE)
    walk.refill(torch.tensor([0, -1], device=DEVICE), none, 8)
    assert all(t.isnan().all() for t in (*walk.tiers.host, *walk.tiers.cache))


@pytest.mark.parametrize("in_torch", [False, True])
def test_a_refill_ends_where_the_rows_end(in_torch: bool) -> None:
    """Of the growing block, rows that are not written yet are not copied: the host may get them at that very time."""
    walk = Walk(8, 4, 2, 4, in_torch)
    for far in walk.tiers.host:
        far.copy_(torch.arange(64.0).view(8, 2, 4))
    blocks, slots = torch.tensor([1, 0], device=DEVICE), torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    walk.refill(blocks, slots, 6)
    for far, cached in zip(walk.tiers.host, walk.tiers.cache, strict=True):
        assert torch.equal(cached[:2].cpu(), far[4:6]) and torch.equal(cached[4:].cpu(), far[:4])
        assert cached[2:4].isnan().all()
