"""A sweep on a real Slurm, a throw-away one of two nodes on this machine: `make slurm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
UP = ROOT / "scripts" / "slurm_up.sh"
# Two groups of two arms, each in two shards: four tasks, of which two run at a time.
SWEEP = ("-m", "method=full,h2o", "task=narrativeqa,qasper", "budget=0.2", "limit=8")
ASKED = ("cpus_per_task=1", "mem_gb=2", "timeout_min=10", "poll_s=1")
ON_SLURM = ("hydra/launcher=slurm", "shards=2", *(f"hydra.launcher.{word}" for word in ASKED))
NUM_SAMPLES, PATIENCE_S = 8, 300.0

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a command needs to reach the cluster, which is gone afterwards."""
    folder = tmp_path_factory.mktemp("slurm") / "up"
    known = {**os.environ, "SLURM_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([UP, "2", "1"], env=known, capture_output=True, text=True, check=False)
    try:
        assert done.returncode == 0, done.stderr
        export = done.stdout.splitlines()[-1]
        assert export == f"export SLURM_CONF={folder / 'slurm.conf'}"
        yield {**known, "SLURM_CONF": export.partition("=")[2]}
    finally:
        subprocess.run([UP, "down"], env=known, check=True)
    assert not folder.exists()


@pytest.fixture
def sweep(environment: dict[str, str]) -> Iterator[Callable[..., Sweep]]:
    """Starts the command; what still runs at the end of the test is killed."""
    started: list[Sweep] = []

    def start(results: Path, *words: str) -> Sweep:
        started.append(Sweep(environment, results, *words))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
    started[0].slurm("scancel", "--user", str(os.getuid()))


class Sweep:
    """The command, as a user has it in a terminal."""

    def __init__(self, environment: Mapping[str, str], results: Path, *words: str) -> None:
        self.results, self.environment = results, environment
        command = [sys.executable, "run.py", *SWEEP, f"results={results}", "progress=false", *words]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)

    def end(self) -> tuple[int, str, str]:
        """Its exit status, stdout and stderr."""
        out, err = self.process.communicate(timeout=2 * PATIENCE_S)
        return self.process.returncode, out, err

    def slurm(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        """The state of each task in the queue."""
        lines = self.slurm("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {task: state for task, state in (line.split() for line in lines)}

    def submitted(self) -> list[dict[str, Any]]:
        return rows(self.results / "slurm" / "submitted.jsonl")

    def halfway(self) -> dict[str, Any]:
        """A running task that has written records and has more to write."""
        states = self.states()
        for task in self.submitted():
            files = [self.results.glob(f"tiny/*/*/{run}/records-{task['index']}.jsonl") for run in task["runs"]]
            counts = [len(rows(file)) for found in files for file in found]
            if states.get(task["id"]) == "RUNNING" and counts and 0 < min(counts) < NUM_SAMPLES // 2 - 1:
                return task
        return {}

    def interrupt(self, how: Callable[[dict[str, Any]], object], *spare: str) -> str:
        """Do something to a task that is halfway; its id."""
        task = until(lambda: {} if (found := self.halfway()).get("id") in spare else found)
        how(task)
        return str(task["id"])

    def kill(self, task: dict[str, Any]) -> None:
        """`kill -9` of the process that answers."""
        for run in task["runs"]:
            [file] = self.results.glob(f"tiny/*/*/{run}/run.json")
            sessions = json.loads(file.read_text())["sessions"]
            pid = next(one["pid"] for one in reversed(sessions) if one["shard"] == task["index"])
        os.kill(pid, signal.SIGKILL)

    def go_on(self, task: str) -> None:
        """Slurm holds what was requeued for two minutes; this asks for it now."""
        until(lambda: self.states().get(task) == "PENDING")
        until(lambda: not self.slurm("scontrol", "update", f"JobId={task}", "StartTime=now"))


def until(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < end, "nothing of that kind happened"
        time.sleep(0.05)
    return value


def rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may be written right now."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def answers(results: Path) -> dict[tuple[str, str], Any]:
    """What each run answered to each sample, without what depends on the clock. No sample may stand there twice."""
    found = [
        (str(file.parent.relative_to(results)), row)
        for file in sorted(results.glob("tiny/*/*/*/records*.jsonl"))
        for row in rows(file)
    ]
    counts = Counter((run, row["id"]) for run, row in found)
    assert set(counts.values()) == {1}, counts.most_common(3)
    kept = ("prediction", "score", "num_prompt_tokens", "num_new_tokens", "prompt_sha", "error")
    return {(run, row["id"]): [row[key] for key in kept] for run, row in found}


def scores(results: Path) -> dict[str, Any]:
    """The scores of each run, without what depends on the clock."""
    found = {file.parent.name: json.loads(file.read_text()) for file in results.glob("tiny/*/*/*/scores.json")}
    return {run: {k: v for k, v in one.items() if k != "ledger"} for run, one in found.items()}


def test_a_sweep_is_the_same_whatever_happens_to_its_tasks(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert sweep(here).end()[0] == 0

    # Whoever stops waiting loses nothing.
    first = sweep(there, *ON_SLURM)
    until(lambda: len(first.submitted()) == 4)
    time.sleep(1)
    first.process.send_signal(signal.SIGINT)
    status, _, told = first.end()
    assert status == 130 and "the tasks go on" in told and "scancel" in told, told
    assert len(first.states()) == 4

    # The same command looks at the same tasks. One is killed, one cancelled, two are requeued, one of them warned.
    second = sweep(there, *ON_SLURM)
    killed = second.interrupt(second.kill)
    cancelled = second.interrupt(lambda task: second.slurm("scancel", task["id"]), killed)
    warned = second.interrupt(lambda task: second.slurm("scancel", "--signal=USR2", task["id"]), killed, cancelled)
    requeued = second.interrupt(lambda task: second.slurm("scontrol", "requeue", task["id"]), killed, cancelled, warned)
    second.go_on(warned)
    second.go_on(requeued)
    status, _, told = second.end()
    errors = [line for line in told.splitlines() if line.startswith("error:")]
    assert status == 1 and len(errors) == 2, told
    assert "0 tasks submitted, 4 were in the queue" in told
    assert any(f"task {killed} FAILED" in line and "Killed" in line for line in errors), told
    assert any(f"task {cancelled} CANCELLED" in line and f"{cancelled}_0_log.err" in line for line in errors), told

    # Again: only these two.
    third = sweep(there, *ON_SLURM)
    status, _, told = third.end()
    assert status == 0 and "2 tasks submitted, 0 were in the queue" in told, told
    assert answers(there) == answers(here)
    assert len(answers(here)) == 4 * NUM_SAMPLES
    assert scores(there) == scores(here)

    status, out, told = sweep(there, *ON_SLURM).end()
    assert status == 0 and "0 tasks submitted" in told, told
    assert Path(out.splitlines()[-1]).parent.name == "sweeps"


def test_slurm_itself_refuses_in_one_line(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    status, _, told = sweep(tmp_path, *ON_SLURM, "hydra.launcher.partition=moon").end()
    assert status == 1
    [line] = [line for line in told.splitlines() if line.startswith("error:")]
    assert "moon" in line or "artition" in line
