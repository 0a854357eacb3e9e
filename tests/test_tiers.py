"""The tiered store gives what the resident one gives, never stale, and its counts add up."""

from __future__ import annotations

from dataclasses import replace

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
from methods.pqcache.blocks import Policy
from methods.pqcache.method import PQCache
from methods.pqcache.store import tiered
from methods.store import ResidentStore
from tests.golden import layer_of
from tests.test_load import FOLDER
from tests.test_miniature import task

G, D, N = 2, 16, 150


@pytest.mark.parametrize("policy", ["lfu", "lru"])
@pytest.mark.parametrize(("cache_blocks", "cache_block", "refresh"), [(3, 8, 2), (4, 16, 8), (32, 128, 32), (0, 8, 4)])
@pytest.mark.parametrize("local", [0, 5, 40])
def test_random_steps_read_what_the_resident_store_reads(
    policy: Policy, cache_blocks: int, cache_block: int, refresh: int, local: int
) -> None:
    generator = torch.Generator().manual_seed(local + cache_blocks)
    k, v = torch.randn(2, G, N + 200, D, generator=generator).unbind(0)
    budget, layer = Budget(4, local, 12), layer_of(4, G, D)
    store = tiered(layer, budget, k[:, :N], v[:, :N], cache_blocks, cache_block, policy, refresh)
    flat = ResidentStore(k[:, :N], v[:, :N])
    for now in range(N, N + 200):
        for each in (store, flat):
            each.append(k[:, now : now + 1], v[:, now : now + 1], now)
        # Read with favourites, old and newest, so that blocks are hit, evicted and grow while cached.
        middle = torch.cat(
            [torch.randint(4, 40, (G, 6), generator=generator), torch.randint(4, now - local, (G, 6))], 1
        )
        newest = torch.arange(max(4, now - local - 2), now - local).expand(G, -1)
        late = torch.arange(now - local, now + 1).expand(G, -1)
        positions = torch.cat([torch.arange(4).expand(G, -1), middle, newest, late], 1)
        for found, expected in zip(store.gather(positions), flat.gather(positions), strict=True):
            assert torch.equal(found, expected)
    traffic = store.traffic
    row_bytes = 2 * D * 4
    assert traffic.misses == (traffic.lookups - traffic.hits) * row_bytes
    assert traffic.spills == 199 * G * row_bytes
    assert traffic.host == traffic.misses + traffic.refills + traffic.spills
    assert traffic.lookups > traffic.hits >= 0
    assert (traffic.hits > 0) == (traffic.refills > 0) == (cache_blocks > 0)


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
    assert ledger.cache_lookups > ledger.cache_hits > 0
    assert ledger.moved["misses"] > 0 and ledger.moved["refills"] > 0
    parts = ("misses", "refills", "codes", "spills")
    assert ledger.moved["host"] == pytest.approx(sum(ledger.moved[part] for part in parts))
    assert (
        ledger.hit_rates is not None and len(ledger.hit_rates) == 3 and all(0 < rate < 1 for rate in ledger.hit_rates)
    )
    assert device.ledger.moved["host"] == 0 and device.ledger.hit_rates is None
    # What the device holds: sink, window, 8 x 32 tokens of cache, codes; the middle is on the host.
    on_device = sum(ledger.resident[tier] for tier in ("k", "v", "index"))
    assert on_device < 0.2 * ledger.resident_full < 0.9 * ledger.resident_full < ledger.resident["host"]
    index = device.ledger.resident["index"]
    num_codes = ledger.resident_full / 2 / (64 * 4) * 2  # one byte a sub-space, two a key of 64 float32 channels
    centroids = 3 * 2 * 2 * 64 * 32 * 4
    assert index - centroids <= 1.02 * num_codes == pytest.approx(1.02 * ledger.resident_full / 2 / 128)
