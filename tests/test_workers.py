"""Clustering processes give what the parent would, report their death, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from configs.compose import compose_config, job
from eval.job import prepare
from eval.loop import run
from eval.records import read_records
from methods.pqcache.codebook import fit
from methods.pqcache.method import PQCache
from methods.pqcache.workers import Job, WorkerError, Workers
from tests.models import model_of, networks
from tests.test_methods import ask, tenth

KEYS = torch.randn(2, 600, 16, generator=torch.Generator().manual_seed(0))
LONG = torch.randn(2, 20_000, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", autouse=True)
def quick_workers() -> None:
    """Here processes start as they do outside of tests."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    found = Workers()
    with found.open(1):
        yield found


def children() -> list[psutil.Process]:
    """The clustering processes of this one."""
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_worker_fits_what_the_parent_fits(workers: Workers) -> None:
    found = workers.submit(3, KEYS, 2, 64, 25, seed=7).result()
    expected = fit(KEYS, 2, 64, 25, seed=7)
    torch.testing.assert_close(found.centroids, expected.centroids)
    assert torch.equal(found.codes, expected.codes)


def test_a_failure_names_the_layer(workers: Workers) -> None:
    with pytest.raises(WorkerError, match="keys of layer 5 failed"):
        workers.submit(5, KEYS, 7, 64, 25, seed=7).result()


def test_a_killed_worker_is_reported_and_replaced(workers: Workers) -> None:
    workers.submit(0, KEYS, 2, 16, 1, seed=0).result()
    long = workers.submit(9, LONG, 2, 256, 300, seed=0)
    time.sleep(0.2)
    for process in children():
        process.kill()
    with pytest.raises(WorkerError, match="layer 9 died"):
        long.result()
    assert workers.submit(1, KEYS, 2, 16, 5, seed=0).result().codes.shape == (2, 2, 600)


def test_a_killed_worker_costs_one_sample_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record names the layer, and the next sample is answered."""
    words = (
        "task=qasper",
        "method=pqcache",
        "method.num_workers=1",
        "limit=2",
        "progress=false",
        f"results={tmp_path}",
    )
    submit, jobs = Workers.submit, list[Job]()
    others = {p.pid for p in children()}

    def submit_and_kill(pool: Workers, layer: int, *rest: Any) -> Job:
        if len(jobs) != 1:
            jobs.append(submit(pool, layer, *rest))
        else:
            jobs[0].result()
            [worker] = [p for p in children() if p.pid not in others]
            worker.suspend()  # so that it cannot be done with this job before it dies
            jobs.append(submit(pool, layer, *rest))
            worker.kill()
        return jobs[-1]

    monkeypatch.setattr(Workers, "submit", submit_and_kill)
    work, scores = run(prepare(job(compose_config(words), words)))
    lost, answered = read_records(work.folder).values()
    assert lost.error == "WorkerError: the process that clustered the keys of layer 1 died"
    assert (lost.prediction, lost.score) == (None, None) and scores["failed"] == 1
    assert answered.error is None and answered.prediction
    assert {p.pid for p in children()} == others


def test_nothing_is_left_after_a_run() -> None:
    before = {p.pid for p in children()}
    pool = Workers()
    with pytest.raises(KeyboardInterrupt), pool.open(1):
        pool.submit(0, KEYS, 2, 16, 1, seed=0).result()
        pool.submit(1, KEYS, 2, 16, 1, seed=0)
        raise KeyboardInterrupt
    assert {p.pid for p in children()} == before
    assert not pool.submit(0, KEYS, 2, 16, 1, seed=0).apart, "outside of a run the parent fits"


def test_workers_do_not_outlive_a_killed_parent() -> None:
    script = (
        "import time, psutil, torch\n"
        "from methods.pqcache.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    pool = Workers()\n"
        "    with pool.open(1):\n"
        "        pool.submit(0, torch.randn(1, 99, 8), 2, 4, 2, 0).result()\n"
        "        found = [p for p in psutil.Process().children() if 'spawn_main' in ' '.join(p.cmdline())]\n"
        "        print(*[p.pid for p in found], flush=True)\n"
        "        time.sleep(60)\n"
    )
    root = Path(__file__).parent.parent
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_answers_do_not_depend_on_who_clusters() -> None:
    model = model_of(networks("llama")[0])
    here, apart = PQCache(clustering="gpu"), PQCache(num_workers=1)
    expected = ask(model, "pqcache", tenth(here, model), here)
    with apart.running():
        found = ask(model, "pqcache", tenth(apart, model), apart)
    assert found.tokens == expected.tokens
    assert found.ledger.moved["codes"] > 0 and expected.ledger.moved["codes"] == 0
    assert found.ledger.wait_s is not None and found.ledger.wait_s > 0
