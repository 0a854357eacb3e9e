"""Stores give back what was stored, count what is read, and never touch the shared prefix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.ledger import held_bytes, storages
from methods.store import EvictingStore, ResidentStore

G, N, D = 2, 30, 8


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(G, count, D, generator=generator), torch.randn(G, count, D, generator=generator)


@pytest.mark.parametrize("kind", [ResidentStore, EvictingStore])
@pytest.mark.parametrize("num_prefix", [0, N])
def test_gather_gives_what_was_stored(kind: type[ResidentStore | EvictingStore], num_prefix: int) -> None:
    k, v = rows(N + 50)
    store = kind(k[:, :num_prefix], v[:, :num_prefix])
    start = num_prefix
    for num_new in (1, 7, 1, 1, 40 - (num_prefix == 0)):
        store.append(k[:, start : start + num_new], v[:, start : start + num_new], start)
        start += num_new
    positions = torch.randint(0, start, (G, 25), generator=torch.Generator().manual_seed(3))
    found_k, found_v = store.gather(positions)
    index = positions[..., None].expand(-1, -1, D)
    assert torch.equal(found_k, k.gather(1, index))
    assert torch.equal(found_v, v.gather(1, index))
    assert store.traffic.kv == 2 * G * 25 * D * 4


def test_evicting_store_drops_per_head_and_reuses_slots() -> None:
    k, v = rows(N + 20)
    store = EvictingStore(k[:, :N], v[:, :N])
    store.keep(torch.tensor([[0, 3, 9, 20], [1, 2, 28, 29]]))
    held = [{0, 3, 9, 20}, {1, 2, 28, 29}]
    for new in range(N, N + 20):
        store.append(k[:, new : new + 1], v[:, new : new + 1], new)
        gone = [min(h) for h in held]
        held = [(h - {g}) | {new} for h, g in zip(held, gone, strict=True)]
        store.drop(torch.tensor(gone)[:, None])
        assert [{int(p) for p in row if p >= 0} for row in store.positions()] == held
    assert store.positions().shape[1] <= 4 + 8, "slots are not used again"
    [part] = store.held()
    for head in range(G):
        for slot, position in enumerate(part.positions[head].tolist()):
            if position >= 0:
                assert torch.equal(part.k[head, slot], k[head, position])
                assert torch.equal(part.v[head, slot], v[head, position])


@pytest.mark.parametrize("kind", [ResidentStore, EvictingStore])
def test_the_shared_prefix_is_never_written(kind: type[ResidentStore | EvictingStore]) -> None:
    k, v = rows(N)
    before = k.clone(), v.clone()
    stores = [kind(k, v), kind(k, v)]
    for number, store in enumerate(stores):
        store.append(*rows(1, seed=number + 5), start=N)
    if kind is EvictingStore:
        stores[0].drop(torch.zeros(G, 1, dtype=torch.long))
    assert torch.equal(k, before[0]) and torch.equal(v, before[1])
    latest = torch.full((G, 1), N)
    assert not torch.equal(stores[0].gather(latest)[0], stores[1].gather(latest)[0])


def test_resident_stores_share_the_prefix_memory_and_evicting_ones_let_it_go() -> None:
    k, v = rows(N)
    shared = [ResidentStore(k, v), ResidentStore(k, v)]
    both = held_bytes(pair for store in shared for pair in store.tensors())
    assert both["k"] == both["v"] == k.numel() * 4
    small = EvictingStore(k, v)
    small.keep(torch.tensor([[1, 2], [3, 4]]))
    assert held_bytes(small.tensors())["k"] == G * 2 * D * 4


def test_memory_in_the_place_of_a_freed_prefix_counts_as_ones_own() -> None:
    memory = bytearray(400)
    prefix = torch.frombuffer(memory, dtype=torch.float32)
    shared, place = storages([prefix]), prefix.data_ptr()
    assert held_bytes([("k", prefix[10:])], shared)["k"] == 0, "a view of it"
    del prefix
    own = torch.frombuffer(memory, dtype=torch.float32)
    assert own.data_ptr() == place and held_bytes([("k", own)], shared)["k"] == 400


def test_a_store_that_cannot_drop_says_what_to_bring() -> None:
    with pytest.raises(TypeError, match="EvictingStore"):
        ResidentStore(*rows(N)).drop(torch.zeros(G, 1, dtype=torch.long))
