"""LESS: exact kernels give full attention, each dropped token is absorbed once, kernels that do not fit are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from configs.compose import compose_method
from engine.model import fingerprint
from methods.base import Budget, Layer, Method
from methods.full import Full
from methods.h2o.method import H2O
from methods.less.kernels import NAMES, Kernels, drawn, save
from methods.less.method import LESS, LESSIndex
from methods.oracle import Oracle
from methods.snapkv import SnapKV
from methods.tova import TOVA
from methods.window import Window
from scripts import train_less
from scripts.less.fit import Recipe, fit, mean_error
from scripts.less.record import example, streams
from scripts.less.texts import Text
from scripts.tiny.measure import embedded
from scripts.watch import follow
from tests.forks import ROOT
from tests.models import model_of, networks, prompt_ids

NUM_PROMPT, NUM_NEW = 40, 16
BUDGET = Budget(4, 5, 5)
ROOM = NUM_PROMPT + NUM_NEW


class ExactKernels:
    """A test double: one feature for each key that was ever absorbed, so that phi(q) . psi(k) is e^(scale q . k)."""

    rank = ROOM
    num_bytes = 0

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.keys = [torch.zeros(0, layer.head_dim) for _ in range(layer.num_kv_heads)]

    def psi(self, keys: Tensor) -> Tensor:
        out = torch.zeros(*keys.shape[:2], ROOM)
        for head, rows in enumerate(keys):
            for number, row in enumerate(rows):
                same = (self.keys[head] == row).all(1)
                place = int(same.int().argmax()) if same.any() else same.shape[0]
                if place == same.shape[0] < ROOM:
                    self.keys[head] = torch.cat([self.keys[head], row[None]])
                out[head, number, min(place, ROOM - 1)] = 1.0
        return out

    def phi(self, queries: Tensor) -> Tensor:
        out = torch.zeros(*queries.shape[:2], ROOM)
        for head, rows in enumerate(queries):
            held = self.keys[head // self.layer.group]
            out[head, :, : held.shape[0]] = (self.layer.scale * rows @ held.T).exp()
        return out


@dataclass(frozen=True)
class Exact(LESS):
    def kernels(self, layer: Layer) -> Kernels:
        return cast(Kernels, ExactKernels(layer))


@pytest.mark.parametrize("base", [H2O(), Window(), TOVA(), SnapKV(window=5)], ids=lambda base: type(base).__name__)
def test_exact_kernels_give_full_attention(base: Method) -> None:
    """In the prompt, at each decode step and in a question of several tokens."""
    model = model_of(networks("llama")[0])
    ids = prompt_ids(ROOM)
    assert ids.unique().shape[0] > 40
    feeds = ids[NUM_PROMPT:].split([5] + [1] * (NUM_NEW - 5))
    budget = Budget(4, *base.split(10, 0.5))
    found, alone, full = (follow(model, m, budget, ids[:NUM_PROMPT], feeds) for m in (Exact(base), base, Full()))
    assert (alone.logits - full.logits).abs().max() > 0.1
    torch.testing.assert_close(found.logits, full.logits, rtol=0, atol=2e-4)


def less(base: Method | None = None, weights: str = "random") -> LESS:
    return LESS(base or H2O(), weights)


@pytest.mark.parametrize("base", [H2O(), Window(), SnapKV(window=5)], ids=lambda base: type(base).__name__)
def test_the_state_holds_each_token_that_left_once(base: Method) -> None:
    model = model_of(networks("llama")[0])
    ids = prompt_ids(ROOM)
    budget = Budget(4, *base.split(10, 0.5))
    watched = follow(model, less(base), budget, ids[:NUM_PROMPT], ids[NUM_PROMPT:].split(1)).watched
    for number, layer in enumerate(watched.layers):
        index = layer.inner
        assert isinstance(index, LESSIndex)
        k, v = watched.everything(number)
        held = index.store.positions()
        gone = ~torch.zeros(k.shape[0], ROOM + 1, dtype=torch.bool).scatter_(1, held + 1, True)[:, 1:]
        assert gone.sum() == k.shape[0] * (ROOM - budget.total - isinstance(base, SnapKV))
        features = index.kernels.psi(k) * gone[..., None]
        torch.testing.assert_close(index.mass, features.sum(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(index.values, features.mT @ v, rtol=1e-4, atol=1e-4)


def test_the_state_is_counted_as_index_in_float32() -> None:
    model = model_of(networks("llama")[0])
    ids = prompt_ids(ROOM)
    sizes = []
    for method in (less(), H2O()):
        [layer, *_] = follow(model, method, BUDGET, ids, ()).watched.layers
        sizes.append(sum(t.untyped_storage().nbytes() for tier, t in layer.tensors() if tier == "index"))
    geometry = model.geometry[0]
    assert sizes[0] - sizes[1] == geometry.num_kv_heads * 8 * (geometry.head_dim + 1) * 4


def kernels_for(model_layers: Sequence[Layer], head_dim: int | None = None) -> dict[int, Kernels]:
    generator = torch.Generator().manual_seed(0)
    return {
        layer.index: drawn((layer.num_heads, layer.num_kv_heads), head_dim or layer.head_dim, 8, 4, 1.0, generator)
        for layer in model_layers
    }


def test_kernels_are_read_as_they_were_written_and_refused_where_they_do_not_fit(tmp_path: Path) -> None:
    model = model_of(networks("llama")[0])
    facts, layers = model.facts, model.layers(0)
    path = tmp_path / "less.safetensors"
    method = less(weights=str(path))
    assert "there is no such file; train kernels" in str(method.supports(facts))
    path.write_bytes(b"no kernels")
    assert "train kernels" in str(method.supports(facts))
    with pytest.raises(ValueError, match="train kernels"):
        method.kernels(layers[0])
    card = {"model": "it", "fingerprint": facts.fingerprint, "base": repr(H2O())}
    made = kernels_for(layers)
    save(path, made, card)
    assert method.supports(facts) is None
    read = method.kernels(layers[1])
    assert all(torch.equal(read.weights[name], made[1].weights[name]) for name in NAMES)
    assert "fingerprint" in str(method.supports(replace(facts, fingerprint="0123")))
    assert method.supports(replace(facts, fingerprint="")) is None
    assert "was trained over H2O" in str(replace(method, base=Window()).supports(facts))
    assert "was trained over H2O" in str(replace(method, base=H2O(normalize=True)).supports(facts))
    assert "4 heads" in str(method.supports(replace(facts, num_heads=8)))
    assert "nothing for layer 3" in str(method.supports(replace(facts, num_layers=4, windows=(None,) * 4)))
    assert method.supports(replace(facts, num_layers=4, windows=(None, None, None, 64))) is None
    save(path, made, {"model": "it"})
    assert "does not say its base, fingerprint" in str(method.supports(facts))


def test_bases_that_drop_nothing_or_share_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.base=AdaKV"):
        compose_method("less", ["method.base._target_=methods.adakv.AdaKV"])
    with pytest.raises(ValueError, match=r"method\.base=Window"):
        less(Window("cache"))
    model = model_of(networks("llama")[0])
    with pytest.raises(ValueError, match="frees nothing"):
        follow(model, less(Oracle()), BUDGET, prompt_ids(ROOM), ())
    with pytest.raises(ValueError, match="frees nothing"):
        follow(model, less(H2O("mask")), BUDGET, prompt_ids(ROOM), ())


def test_a_fingerprint_tells_models_apart_and_not_their_precision() -> None:
    one, again = (networks("llama")[0] for _ in range(2))
    assert fingerprint(one) == fingerprint(again) and len(fingerprint(one)) == 16
    other = networks("llama", head_dim=32)[0]
    assert fingerprint(other) != fingerprint(one)
    half = networks("llama")[0].bfloat16()
    assert fingerprint(half) == fingerprint(one)
    next(iter(again.parameters())).flatten()[0] += 1
    assert fingerprint(again) != fingerprint(one)


def test_training_brings_a_toy_nearer_to_full_attention() -> None:
    model = model_of(networks("llama")[0])
    texts = [Text(prompt_ids(64, seed), 48, torch.ones(16, dtype=torch.bool)) for seed in range(4)]
    with torch.no_grad():
        streamed = [streams(model, text.ids)[1] for text in texts]
        examples = [example(H2O(), BUDGET, stream, 48) for stream in streamed]
    fitted = fit(streamed[0].layer, examples[:3], examples[3:], Recipe(rank=4, hidden=8, epochs=15))
    assert min(fitted.curve) < 0.95 * fitted.alone
    assert mean_error(fitted.kernels, examples[3:]) == pytest.approx(min(fitted.curve))


def test_what_is_gone_is_what_the_base_no_longer_reads() -> None:
    """Sink and window stay; with everything kept, what is read is full attention."""
    model = model_of(networks("llama")[0])
    stream = streams(model, prompt_ids(30))[0]
    found = example(Window(), Budget(2, 5, 0), stream, 20)
    for number, at in enumerate(range(20, 30)):
        assert found.gone[0, number].nonzero()[:, 0].tolist() == list(range(2, at - 5))
    whole = example(Window(), Budget(2, 28, 0), stream, 20)
    assert not whole.gone.any()
    torch.testing.assert_close(whole.read, whole.target)
    assert (found.read - found.target).abs().max() > 1e-3


def test_the_command_trains_a_file_that_the_method_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "less.safetensors"
    short = ["--texts=2", "--validation=1", "--lengths=200", "--later=40", "--epochs=1", "--hidden=8", "--budgets=0.1"]
    assert train_less.main([*short, "--held-out=2", f"--out={out}"]) == 0
    rows = json.loads(out.with_suffix(".json").read_text())
    assert [row["loss"] for row in rows] == ["kl", "asked"]
    assert rows[0]["bytes"]["base"] >= rows[0]["bytes"]["less"] and rows[0]["extra_tokens"] == 5
    assert less(weights=str(out)).supports(embedded(ROOT / "data/tiny").facts) is None
    assert train_less.main(["model.path=nowhere/at/all", f"--out={out}"]) == 1
    assert train_less.main([f"--text={ROOT / 'README.md'}", "--texts=9999", f"--out={out}"]) == 1
    assert "tokens, " in capsys.readouterr().err.splitlines()[-1]
    for word, said in (
        ("--text=nowhere.txt", "--text nowhere.txt cannot be read"),
        ("--validation=0", "--validation 0"),
    ):
        assert train_less.main([word, f"--out={out}"]) == 1
        assert capsys.readouterr().err.startswith(f"error: {said}")
    assert train_less.main([*short, "method.base._target_=methods.full.Full", f"--out={out}"]) == 1
    assert "drops nothing" in capsys.readouterr().err


def test_the_shipped_kernels_fit_the_embedded_model() -> None:
    _, method = compose_method("less", ())
    assert method.supports(embedded(ROOT / "data/tiny").facts) is None
    assert (ROOT / "data/tiny/less.safetensors").stat().st_size < 500_000
