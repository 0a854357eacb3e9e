"""The tiered store gives what the resident one gives, never stale, and its counts add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from configs.build import typed
from data import miniature
from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.load import load
from engine.prompt import token_ids
from engine.spec import ModelSpec
from methods.base import Budget
from methods.budget import parse_budget, resolve
from methods.pqcache.beside import AtOnce, Beside, SecondStream, beside
from methods.pqcache.blocks import Policy
from methods.pqcache.codebook import fit
from methods.pqcache.fixed import FixedPQTiers
from methods.pqcache.method import PQCache
from methods.pqcache.store import TieredStore, tiered
from methods.store import GROW, ResidentStore
from tests.golden import layer_of
from tests.test_load import FOLDER
from tests.test_miniature import task

G, D, N = 2, 16, 150


class Walk:
    """Random steps on a tiered and a resident store that hold the same tokens."""

    def __init__(
        self, sizes: tuple[int, int, int], local: int, policy: Policy = "lfu", device: str = "cpu", room: int = 200
    ) -> None:
        self.generator = torch.Generator().manual_seed(local + sizes[0])
        self.local = local
        self.k, self.v = torch.randn(2, G, N + room, D, generator=self.generator).to(device).unbind(0)
        layer = replace(layer_of(4, G, D), device=torch.device(device))
        k, v = self.k[:, :N], self.v[:, :N]
        cache_blocks, cache_block, refresh = sizes
        self.tiered = tiered(layer, Budget(4, local, 12), k, v, cache_blocks, cache_block, policy, refresh)
        self.flat = ResidentStore(k, v)
        self.wrong = torch.zeros((), dtype=torch.bool, device=device)

    def step(self, now: int) -> None:
        """Store token `now` and read twice. Whatever differs is noted on the device; the host does not wait for it."""
        for each in (self.tiered, self.flat):
            each.append(self.k[:, now : now + 1], self.v[:, now : now + 1], now)
        self._read(now)
        self._read(now)

    def _read(self, now: int) -> None:
        """Favourites, old and newest: blocks are hit, evicted, and grow while cached."""
        first = now - self.local
        middle = [
            torch.randint(4, 40, (G, 6), generator=self.generator),
            torch.randint(4, first, (G, 6), generator=self.generator),
            torch.arange(max(4, first - 2), first).expand(G, -1),
        ]
        late = torch.arange(first, now + 1).expand(G, -1)
        positions = torch.cat([torch.arange(4).expand(G, -1), *middle, late], 1).to(self.k.device)
        for found, expected in zip(self.tiered.gather(positions), self.flat.gather(positions), strict=True):
            self.wrong = self.wrong | (found != expected).any()


@pytest.mark.parametrize("policy", ["lfu", "lru"])
@pytest.mark.parametrize("sizes", [(3, 8, 2), (4, 16, 8), (32, 128, 32), (0, 8, 4)])
@pytest.mark.parametrize("local", [0, 5, 40])
def test_random_steps_read_what_the_resident_store_reads(
    policy: Policy, sizes: tuple[int, int, int], local: int
) -> None:
    walk = Walk(sizes, local, policy)
    for now in range(N, N + 200):
        walk.step(now)
        assert not walk.wrong
    traffic = walk.tiered.traffic
    row_bytes = 2 * D * 4
    assert traffic.misses == (traffic.lookups - traffic.hits) * row_bytes
    assert traffic.spills == 199 * G * row_bytes
    assert traffic.host == traffic.misses + traffic.refills + traffic.spills
    assert traffic.lookups > traffic.hits >= 0
    assert (traffic.hits > 0) == (traffic.refills > 0) == (sizes[0] > 0)


class Late(Beside):
    """A second stream at its slowest: a copy happens only when somebody waits for it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.pending: list[Callable[[], None]] = []

    def start(self, copy: Callable[[], None]) -> None:
        self.log.append("start")
        self.pending.append(copy)

    def wait(self) -> None:
        self.log.append("wait")
        for copy in self.pending:
            copy()
        self.pending = []

    def finish(self) -> None:
        self.log.append("finish")


@pytest.mark.parametrize("sizes", [(3, 8, 2), (4, 16, 8), (6, 1, 6)])
@pytest.mark.parametrize("local", [0, 5])
def test_a_refill_that_ends_late_is_never_read_before(sizes: tuple[int, int, int], local: int) -> None:
    late, soon = Walk(sizes, local), Walk(sizes, local)
    log: list[str] = []
    late.tiered.beside = Late(log)
    assert isinstance(soon.tiered.beside, AtOnce)
    for now in range(N, N + 200):
        late.step(now)
        soon.step(now)
    assert not late.wrong and not soon.wrong
    assert late.tiered.traffic == soon.tiered.traffic
    # The host waits where it moves the host tier to a larger place: once in so many of the 199 tokens that left.
    assert log.count("start") > 20 and log.count("finish") == -(-199 // (sizes[1] + 1))


def test_steps_of_fixed_shapes_take_over_a_cache_whose_refills_have_ended() -> None:
    walk, log = Walk((3, 8, 2), 5), list[str]()
    walk.tiered.beside = late = Late(log)
    for now in range(N, N + 20):
        walk.step(now)
    assert late.pending
    codes: Any = SimpleNamespace(layer=layer_of(4, G, D), budget=Budget(4, 5, 12))
    FixedPQTiers(codes, walk.tiered, 16, {})
    assert not late.pending and log[-2:] == ["wait", "finish"]


def test_a_store_that_does_not_wait_would_be_noticed() -> None:
    """The test above can fail."""
    walk = Walk((3, 8, 2), 5)
    walk.tiered.beside = late = Late([])
    late.wait = lambda: None  # type: ignore[method-assign]
    for now in range(N, N + 50):
        walk.step(now)
    assert walk.wrong


class Fakes:
    """What SecondStream uses of torch.cuda, writing down who does what in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.current = self.stream("main")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream("side"))
        monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(name="copied", record=self.record))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.within)

    def stream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.log.append(f"{name} waits for {event.name}"),
            synchronize=lambda: self.log.append(f"host waits for {name}"),
        )

    def record(self, stream: Any) -> None:
        self.log.append(f"copied is set on {stream.name}")

    def within(self, stream: Any) -> Fakes:
        self.current, self.outer = stream, self.current
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.current = self.outer


def test_the_second_stream_copies_between_what_was_and_what_will_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch)
    kept: list[str] = []
    cache: Any = SimpleNamespace(device="cuda:1", is_cuda=True, record_stream=lambda s: kept.append(s.name))
    second = beside(cache, cache)
    assert isinstance(second, SecondStream)
    second.start(lambda: fakes.log.append(f"copy on {fakes.current.name}"))
    second.wait()
    second.finish()
    assert fakes.log == [
        "side waits for main",
        "copy on side",
        "copied is set on side",
        "main waits for copied",
        "host waits for main",
    ]
    assert kept == ["side", "side"], "the cache's memory is not given away while a copy writes it"


def test_without_a_device_copies_are_at_once() -> None:
    assert isinstance(beside(torch.zeros(1)), AtOnce)
    assert isinstance(Walk((3, 8, 2), 5).tiered, TieredStore)


def ask(method: PQCache) -> Answer:
    spec = typed(ModelSpec, yaml.safe_load((FOLDER / "tiny.yaml").read_text()), "model")
    model = load(spec, "cpu", "float32", "sdpa", 8192, 0)
    small = task("narrativeqa").small()
    sample = miniature.load(task("narrativeqa")).samples[-1]
    ids = torch.tensor(token_ids(model.tokenizer, small.prompt.format(context=sample.context, input=sample.input)))
    budget = resolve(parse_budget(0.1), method, len(ids), 4, 0.5, 0.0, model.bytes_per_token)
    assert len(ids) > 3900 and budget is not None
    stop = Stop(small.max_new_tokens, model.stop_tokens)
    return answer(model, Question(ids, 0, stop), [Plan("pqcache", method, budget)])[0]


def test_four_thousand_tokens_on_the_embedded_model() -> None:
    method = PQCache(cache_blocks=8, cache_block=32)
    host, device = ask(method), ask(replace(method, tier="device"))
    assert host.tokens == device.tokens
    ledger = host.ledger
    num_layers, num_heads, row_bytes = 3, 4, 2 * 64 * 4
    assert ledger.cache_lookups > ledger.cache_hits > 0
    # Every chosen token of every KV head is looked up once, and what is no hit is a miss that crosses the link.
    assert ledger.budget_tokens is not None
    num_middle = ledger.budget_tokens - 4 - (ledger.budget_tokens - 4) // 2
    assert ledger.cache_lookups == ledger.num_steps * num_layers * num_heads * num_middle
    num_misses = ledger.cache_lookups - ledger.cache_hits
    assert ledger.moved["misses"] == pytest.approx(num_misses * row_bytes / ledger.num_steps)
    assert ledger.moved["misses"] > 0 and ledger.moved["refills"] > 0
    parts = ("misses", "refills", "codes", "spills")
    assert ledger.moved["host"] == pytest.approx(sum(ledger.moved[part] for part in parts))
    assert ledger.hit_rates is not None and len(ledger.hit_rates) == num_layers
    assert all(0 < rate < 1 for rate in ledger.hit_rates)
    assert sum(ledger.hit_rates) / num_layers == pytest.approx(ledger.cache_hits / ledger.cache_lookups)
    assert device.ledger.moved["host"] == 0 and device.ledger.hit_rates is None
    # What clustering adds to the second token's time.
    assert ledger.wait_s is not None and ledger.tt2t_s is not None and 0 <= ledger.wait_s < ledger.tt2t_s
    # What the device holds: sink, window, 8 x 32 tokens of cache, codes; the middle is on the host.
    on_device = sum(ledger.resident[tier] for tier in ("k", "v", "index"))
    assert on_device < 0.2 * ledger.resident_full < 0.9 * ledger.resident_full < ledger.resident["host"]
    centroids, spare = num_layers * num_heads * 2 * 64 * 32 * 4, num_layers * num_heads * 2 * GROW
    assert device.ledger.resident["index"] - centroids - spare <= ledger.resident_full / 2 / 128


def test_codes_are_a_128th_of_the_keys() -> None:
    keys = torch.randn(2, 4000, 64, generator=torch.Generator().manual_seed(0))
    assert 128 * fit(keys, 2, 64, 1, 0).codes.nbytes == keys.nbytes
