"""iterations=adaptive: measured once before the first sample, part of the config and its hash, never measured again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import run as command
from configs.compose import compose_config, job
from engine.calibrate import Stopwatch, calibrated
from eval.job import Work, prepare
from eval.run_file import config_hash
from methods.base import Layer, Speed
from methods.full import Full
from methods.pqcache.adaptive import FEWEST, MOST, least_squares, measured, rounds
from methods.pqcache.method import PQCache
from tests.golden import layer_of
from tests.models import model_of, networks
from tests.test_cli import Cli, cli, refused
from tests.test_methods import ask, tenth

__all__ = ["cli"]  # a fixture
QUICK = ("model.max_prompt=1200", "task.miniature.max_new_tokens=4")
FIT = (2e-4, 3e-6, 5e-11, 1e-4, 1e-7)


class Made(Speed):
    """A machine that keeps to a fit: it is told what is clustered and never measures."""

    def __init__(self, fit: tuple[float, ...], longest: int = 8192) -> None:
        self.layer: Layer = layer_of(4, 2, 16)
        self.longest = longest
        self.fit = fit
        self.clustered: list[tuple[int, int]] = []

    def cluster(self, keys: Tensor, number: int) -> None:
        assert keys.shape[::2] == (2, 16) and keys.shape[1] <= self.longest
        self.clustered.append((keys.shape[1], number))

    def prefill(self, num_tokens: int) -> float:
        a, b, c, _, _ = self.fit
        return a + b * num_tokens + c * num_tokens**2

    def seconds(self, work: Callable[[], object]) -> float:
        work()
        num_tokens, number = self.clustered[-1]
        return self.fit[3] + self.fit[4] * num_tokens * number


def test_the_fit_of_a_machine_is_found_and_balances_prefill_and_clustering() -> None:
    made = Made(FIT)
    found = measured(made, made.cluster)
    assert found == pytest.approx(FIT, rel=1e-3)
    for num_tokens in (500, 4000, 30_000, 100_000):
        number = rounds(found, num_tokens)
        spare = made.prefill(num_tokens) - FIT[3]
        assert FEWEST < number < MOST
        # One round more would last longer than the prefill.
        assert number * FIT[4] * num_tokens <= 1.01 * spare <= 1.02 * (number + 1) * FIT[4] * num_tokens


@pytest.mark.parametrize(
    ("fit", "num_tokens", "expected"),
    [
        ((0.0, 1e-6, 0.0, 0.0, 1e-7), 1000, 10),
        ((0.0, 1e-6, 0.0, 0.0, 1e-6), 1000, FEWEST),
        ((0.0, 1e-6, 0.0, 5.0, 1e-6), 1000, FEWEST),
        ((0.0, 1e-6, 1e-9, 0.0, 1e-8), 1000, 200),
        ((0.0, 1e-6, 1e-9, 0.0, 1e-9), 1000, MOST),
        ((1.0, 0.0, 0.0, 0.0, 1e-12), 65, MOST),
    ],
)
def test_rounds_follow_from_the_length_and_are_clipped(fit: tuple[float, ...], num_tokens: int, expected: int) -> None:
    assert rounds(fit, num_tokens) == expected
    assert PQCache(iterations="adaptive", fit=fit).rounds(num_tokens) == expected
    assert PQCache().rounds(num_tokens) == 25


def test_noise_never_makes_a_time_that_shrinks_as_the_work_grows() -> None:
    lengths = [1000, 2000, 4000]
    found = least_squares([(1, s, s * s) for s in lengths], [0.010, 0.021, 0.039])  # bent downwards
    assert min(found) >= 0 and found[2] == 0
    made = Made((0.0, 0.0, 0.0, 0.3, 0.0))  # clustering that rounds cost nothing
    fit = measured(made, made.cluster)
    assert fit[4] > 0 and rounds(fit, 4000) == FEWEST


def test_the_stopwatch_takes_the_shortest_time_and_the_mean_over_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Stopwatch(model_of(networks("gemma2")[0]), 64)
    assert speed.layer.index == 1, "the first layer has a sliding window: methods do not act on it"
    naps = iter([0.3, 0.01, 0.3])
    assert 0.01 <= speed.seconds(lambda: time.sleep(next(naps))) < 0.3
    asked: list[int] = []

    def one(self: Stopwatch, work: Callable[[], object]) -> float:
        asked.append(1)
        work()
        return 6.0

    monkeypatch.setattr(Stopwatch, "_once", one)
    assert speed.prefill(50) == 2.0 and len(asked) == 3


def test_only_what_is_unmeasured_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(networks("llama")[0])
    monkeypatch.setattr("methods.pqcache.method.measured", lambda *_: pytest.fail("measured again"))
    for method in (PQCache(), PQCache(iterations="adaptive", fit=FIT), Full()):
        assert method.unmeasured == () and calibrated(model, method, 99) is method
    assert PQCache(iterations="adaptive").unmeasured == ("fit",)


def test_memory_that_runs_out_while_measuring_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("methods.pqcache.method.measured", out_of_memory)
    with pytest.raises(MemoryError, match="measuring the prefill of 99 tokens"):
        calibrated(model_of(networks("llama")[0]), PQCache(iterations="adaptive", num_workers=1), 99)


def test_answers_are_those_of_the_same_fixed_iterations() -> None:
    model = model_of(networks("llama")[0])
    adaptive = PQCache(iterations="adaptive", fit=(7.5 * 146, 0.0, 0.0, 0.0, 1.0))  # 7 rounds for 150 tokens, 4 sinks
    budget = tenth(adaptive, model)
    found = ask(model, "pqcache", budget, adaptive)
    assert found.ledger.notes["iterations"] == 7
    assert found.tokens == ask(model, "pqcache", budget, PQCache(iterations=7)).tokens


def words(results: Path, *more: str) -> list[str]:
    return ["method=pqcache", "method.iterations=adaptive", f"results={results}", *more]


def prepared(results: Path, *more: str) -> Work:
    asked = words(results, *more)
    return prepare(job(compose_config(asked), asked))


def test_end_to_end_on_the_embedded_model(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("method=pqcache", "method.iterations=adaptive", "method.num_workers=1", *QUICK)
    done = cli(*asked, "limit=1")
    assert (done.code, done.err) == (0, "")
    config = json.loads((done.folder / "run.json").read_text())["config"]
    fit = tuple(config["method"]["fit"])
    assert len(fit) == 5 and config_hash(config) == done.folder.name
    monkeypatch.setattr("engine.calibrate.calibrated", lambda *_: pytest.fail("measured again"))
    again = cli(*asked, "limit=2")
    assert again.code == 0 and again.folder == done.folder and again.scores()["n"] == 2
    given = cli(*asked, "limit=2", f"method.fit=[{','.join(map(str, fit))}]")
    assert given.code == 0 and given.folder == done.folder
    assert len(list(done.folder.parent.iterdir())) == 1, "nothing is left under the name without a fit"
    for line in (done.folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        # The miniature's sink is 4.
        assert record["ledger"]["notes"]["iterations"] == rounds(fit, record["num_prompt_tokens"] - 4)
        assert record["ledger"]["wait_s"] >= 0
    assert again.scores()["ledger"]["wait_s"]["n"] == 2


def fake(monkeypatch: pytest.MonkeyPatch, fit: tuple[float, ...]) -> list[int]:
    """Measuring gives this fit; the list grows with each time."""
    times: list[int] = []

    def measure(*_: Any) -> tuple[float, ...]:
        times.append(1)
        return fit

    monkeypatch.setattr("methods.pqcache.method.measured", measure)
    return times


def test_another_config_measures_anew_and_two_fits_of_one_are_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("method=pqcache", "method.iterations=adaptive", "method.num_workers=1", "limit=1", *QUICK)
    times = fake(monkeypatch, FIT)
    first = cli(*asked)
    assert len(times) == 1
    other = cli(*asked, "method.bits=5")
    assert len(times) == 2 and other.folder != first.folder
    assert cli(*asked, "method.bits=5").folder == other.folder and len(times) == 2
    second = cli(*asked, "method.fit=[1,0,0,0,1]")
    assert len(times) == 2 and second.folder != first.folder
    refused(cli(*asked), "2 runs in", "method.fit=[0.0002, 3e-06, 5e-11, 0.0001, 1e-07]", "method.fit=[1.0, 0.0")


def test_a_plan_says_that_the_folder_has_no_name_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*words(tmp_path), "limit=1", "dry_run=true"]) == 0
    assert "folder: has no name before method.fit is measured" in capsys.readouterr().out
    work = prepared(tmp_path)
    assert work.job.method.unmeasured == ("fit",) and not work.folder.exists()


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("method.iterations=often", "input should be 'adaptive'"),
        ("method.iterations=0", "method.iterations=0: give 1 or more"),
        ("method.clustering=gpu", "method.iterations=adaptive needs method.clustering=cpu"),
        ("method.iterations=9 method.fit=[1,1,1,1,1]", "only method.iterations=adaptive has one"),
        ("method.fit=[1,1,1,1]", "give 5 finite numbers"),
        ("method.fit=[1,1,1,1,0]", "the last more than 0"),
        ("method.fit=[1,-1,1,1,1]", "0 or more"),
        ("method.fit=[1,nan,1,1,1]", "5 finite numbers"),
        ("method.fit=[1,inf,1,1,1]", "5 finite numbers"),
    ],
)
def test_what_cannot_be_adapted_is_refused(tmp_path: Path, wrong: str, part: str) -> None:
    with pytest.raises(ValueError, match=part.replace("(", r"\(")):
        prepared(tmp_path, *wrong.split())
