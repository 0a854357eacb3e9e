"""Methods over the stores of others: equal to a part where the other part does nothing, with the bytes of both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from configs.compose import compose_method
from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from methods.adakv import AdaKV
from methods.base import Budget, Method
from methods.kivi import Kivi
from methods.kivi_think import KiviThink, NarrowQuantisedStore
from methods.narrow import Narrowing
from methods.narrow_eviction import NarrowEvictingStore, NarrowEviction
from methods.pqcache.coding import Coded
from methods.pqcache.method import PQCache
from methods.pqcache.quantised import QuantisedPQCache
from methods.pqcache.store import TieredStore
from methods.pyramidkv import PyramidKV
from methods.quantised import Quantisation, Quantised, QuantisedStore, restored
from methods.snapkv import SnapKV
from methods.think import Think
from scripts.conformance import Case
from tests.golden import Driven, layer_of
from tests.models import model_of, networks, prompt_ids
from tests.test_tiers import Walk

NO_BUDGET = Budget(0, 0, 0)
OFF, NONE = Quantisation(16), Narrowing(0)
CODES = Quantisation(4, 16, 32)
LIMITS: list[tuple[Method, Method]] = [
    (KiviThink(OFF, Narrowing(0.5)), Think(0.5)),
    (KiviThink(CODES, NONE), Kivi(4, 16, 32)),
    (NarrowEviction(NONE, SnapKV()), SnapKV()),
    (NarrowEviction(NONE, PyramidKV()), PyramidKV()),
    (QuantisedPQCache(bits=4, kivi=OFF), PQCache(bits=4)),
    (QuantisedPQCache(bits=4, kivi=OFF, tier="device"), PQCache(bits=4, tier="device")),
]


@pytest.mark.parametrize(("both", "part"), LIMITS, ids=lambda method: type(method).__name__)
def test_it_is_one_part_where_the_other_does_nothing(both: Method, part: Method) -> None:
    case = Case(part, "group2")
    budget = case.small()
    found, right = (case.follow(budget, 150, 24, method=method).logits for method in (both, part))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-5)
    assert part.kind == "none" or (found - case.tiny.dense(150, 24)).abs().max() > 1e-3


def ask(method: Method, num_tokens: int, budget: Budget | None, **network: int) -> Answer:
    model = model_of(networks("llama", head_dim=64, **network)[0])
    return answer(model, Question(prompt_ids(num_tokens), 0, Stop(20, frozenset())), [Plan("it", method, budget)])[0]


def test_narrow_codes_hold_and_read_what_they_say() -> None:
    method = KiviThink(Quantisation(2, 32, 32), Narrowing(0.4))
    ledger = ask(method, 700, None).ledger
    assert ledger.store == "real" and ledger.budget_tokens is None and ledger.attended_max == 718
    assert ledger.notes == {"bits_per_number": 3.0}
    # 719 tokens: 704 keys in codes of 39 of 64 channels, 687 values in codes of 64; the rest is float32.
    assert ledger.resident["k"] == 2 * 3 * (704 * 39 * 3 / 8 + 15 * 64 * 4)
    assert ledger.resident["v"] == 2 * 3 * (687 * 64 * 3 / 8 + 32 * 64 * 4)
    assert ledger.resident["index"] == 2 * 3 * 39 * 2
    assert ledger.moved["kv"] < ledger.resident["k"] + ledger.resident["v"] + 2 * 3 * 128 * 32 * 4


@pytest.mark.parametrize("num_prompt", [20, 75])
def test_keys_of_new_tokens_lose_channels_when_they_become_codes(num_prompt: int) -> None:
    """Attention step by step in plain loops, from the exact K and V; with a prompt shorter than the residual, too."""
    torch.manual_seed(2)
    dim, last = 16, 110
    q, k, v = torch.randn(4, last, dim), torch.randn(2, last, dim), torch.randn(2, last, dim)
    layer, think = layer_of(4, 2, dim), Narrowing(0.5, window=8)
    method = KiviThink(Quantisation(8, 16, 32, "float32"), think)
    n = num_prompt
    driven = Driven.start(method, NO_BUDGET, layer, q[:, :n], k[:, :n], v[:, :n])
    zeroed = k.clone()
    for head in range(2):
        energy = q[2 * head : 2 * head + 2, max(0, n - 8) : n].square().mean((0, 1)) * k[head, :n].square().mean(0)
        zeroed[head, :, energy.argsort()[:8]] = 0
    for t in range(n, last):
        y = driven.step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], t)
        num_narrow = t // 32 * 32
        for h in range(4):
            keys = torch.cat([zeroed[h // 2, :num_narrow], k[h // 2, num_narrow : t + 1]])
            weights = (keys @ q[h, t] * dim**-0.5).softmax(0)
            # Eight bits lose little; a channel more or less moves outputs by a tenth.
            torch.testing.assert_close(y[h, 0], weights @ v[h // 2, : t + 1], rtol=0, atol=0.02)
    store = driven.state.store
    assert isinstance(store, NarrowQuantisedStore) and store.num_k == 96
    assert store.k.words.shape[2] == 8 and store.v.words.shape[2] * 4 == 16
    assert torch.equal(store.gather(torch.tensor([[3, 100], [95, 96]]))[0][:, 1], store.held()[0].k[[0, 1], [100, 96]])


def test_what_is_evicted_and_narrow_is_gone_and_the_budget_is_kept() -> None:
    budget = Budget(4, 32, 64)
    method = NarrowEviction(Narrowing(0.4), SnapKV())
    ledger, whole = ask(method, 600, budget).ledger, ask(SnapKV(), 600, budget).ledger
    assert ledger.store == "real" and ledger.attended_max == whole.attended_max == budget.total
    # Of 100 kept tokens 68 have 39 of 64 channels.
    saved = 2 * 3 * 4 * 68 * 25
    assert ledger.resident["k"] == whole.resident["k"] - saved and ledger.resident["v"] == whole.resident["v"]
    assert ledger.moved["kv"] == whole.moved["kv"] - saved


@pytest.mark.parametrize("recent", [0, 5, 40])
def test_evicted_and_narrow_steps_equal_attention_on_keys_with_zeros(recent: int) -> None:
    """Sets are SnapKV's; which of its keys have zeros follows from them in plain loops."""
    torch.manual_seed(3)
    n, last, dim, budget = 100, 130, 16, Budget(4, 10, 20)
    q, k, v = torch.randn(4, last, dim), torch.randn(2, last, dim), torch.randn(2, last, dim)
    layer = layer_of(4, 2, dim)
    start = q[:, :n], k[:, :n], v[:, :n]
    scorer = SnapKV(window=10, kernel=3)
    driven = Driven.start(NarrowEviction(Narrowing(0.5, recent, 8), scorer), budget, layer, *start)
    plain = Driven.start(scorer, budget, layer, *start)
    zeroed = k.clone()
    for head, kept in enumerate(plain.state.store.positions().sort(1).values):
        energy = q[2 * head : 2 * head + 2, n - 8 : n].square().mean((0, 1)) * k[head, kept].square().mean(0)
        gone = energy.argsort()[:8]
        for token in kept[: max(0, len(kept) - recent)]:
            zeroed[head, token, gone] = 0
    store = driven.state.store
    assert isinstance(store, NarrowEvictingStore) and store.old.k.shape == (2, max(0, 34 - recent), 8)
    for t in range(n, last):
        new = q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1]
        y = driven.step(*new, t)
        plain.step(*new, t)
        for h in range(4):
            held = [int(p) for p in plain.state.store.positions()[h // 2] if p >= 0]
            weights = (zeroed[h // 2, held] @ q[h, t] * dim**-0.5).softmax(0)
            torch.testing.assert_close(y[h, 0], weights @ v[h // 2, held], rtol=1e-4, atol=1e-5)
    wanted = torch.tensor([[0, 129], [3, 125]])
    for found, right in zip(store.gather(wanted), (zeroed, v), strict=True):
        assert torch.equal(found, torch.stack([right[head, row] for head, row in enumerate(wanted)]))


class Codes(Walk):
    """Random steps on a tiered store of codes; what it should read is the exact K and V through the same grids."""

    def __init__(self, sizes: tuple[int, int, int], local: int, bits: int, room: int = 100) -> None:
        super().__init__(sizes, local, room=room)
        layer, n = layer_of(4, 2, 16), self.flat.prefix_k.shape[1]
        keys, values = Quantisation(bits, 16, 16).grids(layer)  # type: ignore[arg-type]
        coding = Coded(keys, values, 16, torch.float32)
        self.tiered = TieredStore(
            layer, Budget(4, local, 12), self.k[:, :n], self.v[:, :n], self.tiered.cache, sizes[1], sizes[2], coding
        )
        whole = (self.k.shape[1] - 4) // 16 * 16
        rows = coding.encode(self.k[:, 4 : 4 + whole], self.v[:, 4 : 4 + whole])
        self.coded = self.k.clone(), self.v.clone()
        self.coded[0][:, 4 : 4 + whole] = restored(Quantised(*rows[:3]), keys, torch.float32)
        self.coded[1][:, 4 : 4 + whole] = restored(Quantised(*rows[3:]), values, torch.float32)

    def read(self, positions: Tensor) -> None:
        """Whatever differs from codes in the middle and from the exact K and V elsewhere is wrong."""
        first = self.tiered.window_start
        assert (first - 4) % 16 == 0 and first <= self.tiered.length - self.local
        middle = ((positions >= 4) & (positions < first))[..., None]
        for found, exact, coded in zip(self.tiered.gather(positions), (self.k, self.v), self.coded, strict=True):
            index = positions[..., None].expand(-1, -1, 16)
            self.wrong |= (found != torch.where(middle, coded.gather(1, index), exact.gather(1, index))).any()


@pytest.mark.parametrize("sizes", [(3, 16, 2), (2, 32, 8), (0, 16, 4)])
@pytest.mark.parametrize("bits", [2, 8])
def test_random_steps_read_the_codes_of_what_left_the_window(sizes: tuple[int, int, int], bits: int) -> None:
    walk = Codes(sizes, 5, bits)
    generator = torch.Generator().manual_seed(1)
    for now in range(150, 250):
        walk.tiered.append(walk.k[:, now : now + 1], walk.v[:, now : now + 1], now)
        favourites = torch.randint(4, 40, (2, 6), generator=generator)
        positions = torch.cat([favourites, torch.randint(0, now + 1, (2, 9), generator=generator)], 1)
        walk.read(positions)
        walk.read(positions + (positions < now).long())
    assert not walk.wrong
    traffic = walk.tiered.traffic
    assert traffic.lookups > traffic.hits >= 0 and traffic.misses > 0
    assert (traffic.hits > 0) == (traffic.refills > 0) == (sizes[0] > 0)


def test_rows_that_share_words_and_scales_come_once() -> None:
    walk = Codes((0, 16, 0), 5, 2)
    traffic = walk.tiered.traffic
    walk.tiered.gather(torch.tensor([[4, 5, 19], [20, 4, 40]]))
    # Words of 16 keys, scales and minima of as many; a value has its own, 16 channels in one word and one group.
    keys, values = (1 + 3) * 16 * (4 + 2 + 2), 6 * (4 + 2 + 2)
    assert traffic.misses == traffic.kv == keys + values


def test_a_quantised_store_reads_the_rows_that_positions_need() -> None:
    k, v = torch.randn(2, 2, 200, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    layer = layer_of(4, 2, 32)
    store = QuantisedStore(k, v, 32, *Quantisation(2, 32, 32).grids(layer))
    [part] = store.held()
    store.traffic.kv = 0
    positions = torch.tensor([[0, 15, 16, 170, 199], [31, 32, 191, 192, -1]])
    found = store.gather(positions)
    for rows, whole in zip(found, (part.k, part.v), strict=True):
        for head, row in enumerate(positions):
            assert torch.equal(rows[head, row >= 0], whole[head, row[row >= 0]])
    # 192 keys and 168 values are codes. A word of keys has 16 tokens, a scale 32; a word of values 16 channels. The
    # pad is read as token 0.
    words, scales, late_k = 3 + 4, 2 + 3, 1 + 1
    keys = 32 * (words * 4 + scales * (2 + 2) + late_k * 4)
    values = (3 + 3) * (2 * 4 + 2 + 2) + (2 + 2) * 32 * 4
    assert store.traffic.kv == keys + values


def test_pqcache_over_codes_moves_and_holds_packed_bytes() -> None:
    budget, codes = Budget(4, 32, 64), Quantisation(4, 32, 32)
    sizes = {"bits": 4, "clustering": "gpu", "cache_blocks": 0, "cache_block": 32, "iterations": 3}
    exact, coded = PQCache(**sizes), QuantisedPQCache(**sizes, kivi=codes)  # type: ignore[arg-type]
    ours, theirs = ask(coded, 604 + 32, budget).ledger, ask(exact, 604 + 32, budget).ledger
    assert ours.store == "real" and ours.attended_max == theirs.attended_max == budget.total
    # 600 middle tokens: 576 in codes of 5 bits at first, 608 at last, with room for a block; a layer and head is 64.
    assert theirs.resident["host"] >= 600 * 128 * 4 * 6
    assert 608 * 128 * 5 / 8 * 6 <= ours.resident["host"] <= (608 + 32) * 128 * 5 / 8 * 6
    assert ours.moved["misses"] < theirs.moved["misses"]
    assert ours.cache_lookups < theirs.cache_lookups, "tokens of no whole unit are still on the device"


def test_more_bits_come_nearer_to_pqcache() -> None:
    case = Case(PQCache(bits=4), "group2")
    budget, right = case.small(), case.trace.logits
    for tier in ("host", "device"):
        gaps = []
        for bits in (8, 4, 2):
            method = QuantisedPQCache(bits=4, tier=tier, kivi=Quantisation(bits, 16, 16), cache_block=16)
            gaps.append(float((case.follow(budget, 150, 24, method=method).logits - right).square().mean().sqrt()))
        assert gaps[0] < gaps[1] / 4 < gaps[2] / 8, gaps


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("kivi_think", "method.kivi.group=24", "group=24: give a multiple of 16"),
        ("kivi_think", "method.think.ratio=1.0", "ratio=1.0: give the share"),
        ("pqcache_kivi", "method.cache_block=48", "cache_block=48: give a multiple of method.kivi.group=32"),
    ],
)
def test_senseless_parameters_are_refused(name: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_method(name, [override])


def test_a_scorer_whose_heads_keep_different_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="scorer=AdaKV: give a method that scores a prompt once"):
        NarrowEviction(scorer=AdaKV())


@pytest.mark.parametrize("method", [KiviThink(), QuantisedPQCache()], ids=lambda method: type(method).__name__)
def test_a_model_whose_heads_are_no_whole_groups_is_refused(method: Method) -> None:
    facts = model_of(networks("llama", head_dim=48)[0]).facts
    assert "48 channels are no whole groups" in str(method.supports(facts))
