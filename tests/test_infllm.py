"""InfLLM's tiers: host blocks behind a pool give what a resident store gives, and the counts add up."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.ledger import held_bytes
from engine.model import Model
from methods.base import Budget, Index, Layer, Step
from methods.infllm.method import InfLLM, InfLLMIndex
from methods.infllm.pool import Policy, Pool
from methods.infllm.store import BlockStore
from methods.store import KVStore, ResidentStore
from tests.golden import Driven, layer_of
from tests.models import greedy, model_of, networks, prompt_ids

G, D, BLOCK, SINK, LOCAL = 2, 16, 8, 4, 20
ROW = 2 * D * 4  # bytes of a token's K and V in one KV head
LENGTH, NUM_NEW = 150, 40


def traces(
    policy: Policy, decay: float, steps: Sequence[tuple[list[int], list[float]]], capacity: int
) -> list[set[int]]:
    """What a pool holds after each (blocks of a look-up, the attention each received)."""
    pool, out = Pool(capacity, policy, decay), []
    for blocks, masses in steps:
        pool.load(blocks)
        received = dict(zip(blocks, masses, strict=True))
        pool.credit([received.get(block, 0.0) for block in range(8)])
        out.append(set(pool.slots))
    return out


def test_least_recently_used_leaves() -> None:
    steps = [([0, 1], [1.0, 1.0]), ([2], [1.0]), ([0], [1.0]), ([3], [1.0]), ([4, 5], [1.0, 1.0])]
    assert traces("lru", 0.1, steps, 3) == [{0, 1}, {0, 1, 2}, {0, 1, 2}, {0, 2, 3}, {3, 4, 5}]


def test_lowest_score_leaves() -> None:
    """Block 1 was asked for last and drew little; block 0 drew much, long ago: the decay says which of them stays."""
    steps = [([0], [8.0]), ([2], [9.0]), ([1], [0.5]), ([3], [1.0])]
    assert traces("lru-s", 0.9, steps, 3)[-1] == {0, 2, 3}  # 5.8, 7.3, 0.5
    assert traces("lru-s", 0.1, steps, 3)[-1] == {1, 2, 3}  # 0.08, 0.09 x 10, 0.5
    assert traces("lru", 0.1, steps, 3)[-1] == {1, 2, 3}


def test_what_a_look_up_asks_for_never_leaves_during_it() -> None:
    pool = Pool(2)
    assert pool.load([0, 1]) == {0: 0, 1: 1}
    assert pool.load([1, 2]) == {2: 0}
    assert pool.load([0, 1, 2, 5]) == {0: 2, 5: 3}
    assert pool.load([7]) == {7: pool.slots[7]} and sorted(pool.slots.values()) == [0, 1, 2, 3]


@dataclass
class Twins:
    """The same tokens in a resident store and in two tiers."""

    k: Tensor
    v: Tensor
    tiered: BlockStore
    flat: ResidentStore

    @classmethod
    def start(
        cls, num_prompt: int, num_tokens: int, units: int, cache_blocks: int, policy: Policy, device: str
    ) -> Twins:
        generator = torch.Generator().manual_seed(cache_blocks + units)
        k, v = torch.randn(2, G, num_tokens, D, generator=generator).to(device).unbind(0)
        layer = replace(layer_of(4, G, D), device=torch.device(device))
        prompt = k[:, :num_prompt], v[:, :num_prompt]
        budget = Budget(SINK, LOCAL, 3 * BLOCK)
        tiered = BlockStore(layer, budget, *prompt, BLOCK, units, cache_blocks, policy, 0.5)
        return cls(k, v, tiered, ResidentStore(*prompt))

    def append(self, start: int, stop: int) -> None:
        for store in (self.tiered, self.flat):
            store.append(self.k[:, start:stop], self.v[:, start:stop], start)

    def offload(self, now: int) -> None:
        """All whole blocks that have left the window before token `now`."""
        whole = max(0, now - LOCAL - SINK) // BLOCK * BLOCK
        if whole > self.tiered.formed - SINK:
            self.tiered.offload(SINK + whole)

    def check(self, positions: Tensor) -> None:
        found, expected = self.tiered.gather(positions), self.flat.gather(positions)
        real = (positions >= 0)[..., None]
        assert torch.equal(found[0] * real, expected[0] * real)
        assert torch.equal(found[1] * real, expected[1] * real)


def look_up(store: BlockStore, units: int, generator: torch.Generator) -> Tensor:
    """Ids [G,b] of random blocks, favourites among them; the same for all heads of a unit."""
    num_blocks = len(store.host_k)
    few = min(3, num_blocks)
    weight = 1.0 / (1.0 + torch.arange(num_blocks).float())
    rows = [torch.multinomial(weight, few, generator=generator) for _ in range(units)]
    return torch.stack(rows).repeat_interleave(G // units, 0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("policy", ["lru", "lru-s"])
@pytest.mark.parametrize("cache_blocks", [0, 2, 5, 32])
@pytest.mark.parametrize("units", [1, G])
@pytest.mark.parametrize("num_prompt", [0, 90])
def test_random_steps_read_what_the_resident_store_reads(
    num_prompt: int, units: int, cache_blocks: int, policy: Policy, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(7)
    num_steps = 150 if device == "cpu" else 2500
    twins = Twins.start(num_prompt, num_prompt + 3 * num_steps, units, cache_blocks, policy, device)
    store, now = twins.tiered, num_prompt
    for _ in range(num_steps):
        num_new = int(torch.randint(1, 4, (), generator=generator))
        twins.append(now, now + num_new)
        twins.offload(now)
        now += num_new
        near = [*range(min(SINK, now)), *range(store.formed, now)]
        late = torch.tensor(near).expand(G, -1)
        if not store.host_k:
            twins.check(late.to(device))
            continue
        blocks = look_up(store, units, generator)
        tokens = (SINK + blocks[..., None] * BLOCK + torch.arange(BLOCK)).flatten(1)
        twins.check(torch.cat([late[:, :SINK], tokens, torch.full((G, 2), -1), late[:, SINK:]], 1).to(device))
        store.credit(torch.rand(G, len(store.host_k), generator=generator))
    traffic, num_blocks = store.traffic, len(store.host_k)
    assert traffic.lookups > traffic.hits > 0
    assert traffic.misses == (traffic.lookups - traffic.hits) * ROW
    assert traffic.spills == num_blocks * BLOCK * G * ROW
    assert traffic.host == traffic.misses + traffic.spills
    held = held_bytes(store.tensors())
    assert held["host"] == num_blocks * BLOCK * G * ROW
    num_slots = store.pool_k.shape[0]
    assert num_slots <= max(cache_blocks, 3) and all(len(pool.slots) <= num_slots for pool in store.pools)
    num_near = store.near_k.shape[1]
    assert num_near <= SINK + LOCAL + BLOCK + 16 + 6
    assert held["k"] == held["v"] == (num_slots * BLOCK + num_near) * G * ROW // 2
    if cache_blocks == 32:
        assert traffic.hits > 0.7 * traffic.lookups


def test_any_positions_in_any_order_are_read() -> None:
    generator = torch.Generator().manual_seed(1)
    twins = Twins.start(90, 90, G, 2, "lru", "cpu")
    twins.offload(90)
    for _ in range(50):
        twins.check(torch.randint(-1, 90, (G, 13), generator=generator))
    [part] = twins.tiered.held()
    assert torch.equal(part.k, twins.k) and torch.equal(part.v, twins.v)


def test_the_shared_prefix_is_never_written() -> None:
    twins = Twins.start(90, 120, 1, 2, "lru", "cpu")
    before = twins.k.clone()
    twins.append(90, 91)
    twins.offload(91)
    twins.append(91, 120)
    assert torch.equal(twins.k, before)


def ask(model: Model, method: InfLLM, budget: Budget, context_end: int | None = None) -> Answer:
    question = Question(prompt_ids(LENGTH), 0, Stop(NUM_NEW, frozenset()), context_end)
    return answer(model, question, [Plan("infllm", method, budget)])[0]


SMALL = InfLLM(block_tokens=8, representatives=2, exec_block=16, cache_blocks=4)
VARIANTS = {
    "sparse": SMALL,
    "sparse per head": replace(SMALL, scope="kv_head"),
    "sparse per query head lru-s": replace(SMALL, scope="q_head", policy="lru-s"),
    "sparse lru-s": replace(SMALL, policy="lru-s"),
    "sparse released": replace(SMALL, mask="released"),
    "dense": replace(SMALL, prefill="dense"),
    "dense per head lru-s": replace(SMALL, prefill="dense", scope="kv_head", policy="lru-s"),
    "no room": replace(SMALL, cache_blocks=0),
    "room for all": replace(SMALL, cache_blocks=64),
}
SHORT = Budget(SINK, LOCAL, 4 * 8)


@pytest.mark.parametrize("context_end", [None, LENGTH - 21])
@pytest.mark.parametrize("name", VARIANTS)
def test_both_tiers_answer_the_same(name: str, context_end: int | None) -> None:
    """Also where the question comes after the context and passes through the memory in blocks."""
    model, method = model_of(networks("llama")[0]), VARIANTS[name]
    host = ask(model, method, SHORT, context_end)
    device = ask(model, replace(method, tier="device"), SHORT, context_end)
    assert host.tokens == device.tokens
    assert (host.ledger.attended_mean, host.ledger.attended_max) == (
        device.ledger.attended_mean,
        device.ledger.attended_max,
    )
    assert host.ledger.cache_lookups > host.ledger.cache_hits > 0
    assert device.ledger.moved["host"] == 0 == device.ledger.resident["host"]


@pytest.mark.parametrize("name", ["sparse per query head lru-s", "dense per head lru-s", "no room"])
def test_the_same_is_answered_twice(name: str) -> None:
    model, method = model_of(networks("llama")[0]), VARIANTS[name]
    first, again = (ask(model, method, SHORT, LENGTH - 21) for _ in range(2))
    assert again.tokens == first.tokens
    one, other = first.ledger, again.ledger
    assert (one.resident, one.moved) == (other.resident, other.moved)
    assert (one.cache_lookups, one.cache_hits) == (other.cache_lookups, other.cache_hits)


def test_the_ledger_says_where_the_bytes_are() -> None:
    model = model_of(networks("llama")[0])
    host, device = (ask(model, replace(SMALL, tier=tier), SHORT).ledger for tier in ("host", "device"))
    num_blocks, num_layers = int(host.notes["blocks"]), 3
    assert host.resident["host"] == num_blocks * 8 * G * ROW * num_layers
    on_device = host.resident["k"] + host.resident["v"]
    assert on_device < device.resident["k"] + device.resident["v"]
    least = (host.resident_full - host.resident["host"]) + 4 * 8 * G * ROW * num_layers
    assert least <= on_device <= least + 32 * G * ROW * num_layers  # room to grow
    blocks_of_prompt = (144 - LOCAL - 1 - SINK) // 8  # as the last exec block, from token 144 on, found them
    assert host.moved["spills"] == pytest.approx((num_blocks - blocks_of_prompt) * 8 * G * ROW * num_layers / 39)
    assert host.moved["host"] == pytest.approx(host.moved["misses"] + host.moved["spills"])
    assert host.moved["misses"] * 39 == (host.cache_lookups - host.cache_hits) * ROW
    assert host.hit_rates is not None and len(host.hit_rates) == num_layers


def test_a_larger_pool_has_more_hits() -> None:
    model = model_of(networks("llama")[0])
    few, many = (ask(model, replace(SMALL, cache_blocks=blocks), SHORT).ledger for blocks in (3, 64))
    assert few.cache_lookups == many.cache_lookups and few.cache_hits < many.cache_hits


@dataclass(frozen=True)
class TrueDistance(InfLLM):
    """InfLLM that reads distant keys where they are."""

    distance: ClassVar[str] = "true"


@pytest.mark.parametrize("prefill", ["sparse", "dense"])
@pytest.mark.parametrize("scope", ["layer", "kv_head"])
def test_all_blocks_at_true_distances_are_dense_attention(
    prefill: Literal["sparse", "dense"], scope: Literal["layer", "kv_head"]
) -> None:
    """Every token that a query may see is read once, through both tiers."""
    ours, theirs = networks("llama")
    method = TrueDistance(block_tokens=8, exec_block=16, cache_blocks=2, prefill=prefill, scope=scope)
    found = ask(model_of(ours, prefill_chunk=37), method, Budget(SINK, LOCAL, LENGTH + NUM_NEW))
    assert list(found.tokens) == greedy(theirs, prompt_ids(LENGTH), NUM_NEW)
    assert found.ledger.cache_lookups > 0


class Witness(InfLLMIndex):
    """Keeps (step, positions, first position in no block, attention of each block [G,b]) of all that was read."""

    def build(self, seen: Mapping[Hashable, object]) -> None:
        super().build(seen)
        self.read: list[tuple[Step, Tensor, int, Tensor]] = []

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        super().observe(step, positions, weights)
        masses = torch.zeros(G, self.blocks.shape[1])
        for head, row in enumerate(positions.tolist()):
            for column, position in enumerate(row):
                if step.sink <= position < self.formed:
                    heads = slice(head * 2, head * 2 + 2)
                    masses[head, (position - step.sink) // self.block] += weights[heads, :, column].sum()
        self.read.append((step, positions, self.formed, masses))


@dataclass(frozen=True)
class Witnessed(InfLLM):
    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        return Witness(layer, store, budget, self)


@pytest.mark.parametrize("scope", ["kv_head", "q_head"])
@pytest.mark.parametrize("seed", range(4))
def test_each_token_is_read_once_and_what_is_in_no_block_always(seed: int, scope: Literal["kv_head", "q_head"]) -> None:
    """Over random lengths, calls and exec blocks."""
    generator = torch.Generator().manual_seed(seed)
    exec_block, local, sink = (int(torch.randint(a, b, (), generator=generator)) for a, b in ((3, 20), (0, 30), (0, 9)))
    n = int(torch.randint(80, 160, (), generator=generator))
    q, k, v = (torch.randn(heads, n, D, generator=generator) for heads in (4, G, G))
    # With decay 0 a block's score is what the last step gave it.
    method = Witnessed(block_tokens=8, exec_block=exec_block, scope=scope, policy="lru-s", score_decay=0.0)
    driven = Driven.start(method, Budget(sink, local, 4 * 8), layer_of(4, G, D), q, k[:, :0], v[:, :0])
    index = driven.state.index
    assert isinstance(index, Witness) and index.tiers
    start = 0
    while start < n:
        stop = min(n, start + int(torch.randint(1, 40, (), generator=generator)))
        driven.step(q[:, start:stop], k[:, start:stop], v[:, start:stop], start)
        start = stop
    for step, positions, formed, _ in index.read:
        last = step.start + step.positions.shape[0]
        for row in positions.tolist():
            read = {p for p in row if p >= 0}
            assert len(read) == len([p for p in row if p >= 0]) and max(read) < last
            assert read >= {*range(min(sink, last)), *range(formed, last)}
            old = {p for p in read if sink <= p < formed}
            whole = {p - (p - sink) % 8 for p in old}
            assert old == {p + i for p in whole for i in range(8)}
            least = min(3, (formed - sink) // 8)
            assert len(whole) == least if scope == "kv_head" else least <= len(whole) <= 2 * least
    masses = index.read[-1][-1]
    assert masses.sum() > 0
    for pool, received in zip(index.tiers.pools, masses, strict=True):
        for block, rank in pool.ranks.items():
            assert rank == pytest.approx(float(received[block]), rel=1e-4, abs=1e-6)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="cache_blocks=-1"):
        InfLLM(cache_blocks=-1)
    with pytest.raises(ValueError, match=r"score_decay=1\.5"):
        InfLLM(score_decay=1.5)
