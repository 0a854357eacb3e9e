"""A run that is killed, terminated or interrupted and started again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any

import pytest

from data import miniature
from eval.records import read_lines
from tests.forks import ROOT, Ended, server, until

NUM_ROWS = 20
NUM_KILLS = 12
PROMPT = "task.prompt='{context} Question : list {input} ? Answer'"


@dataclass(frozen=True)
class Command:
    """A run of many short samples. results: its results folder."""

    data: Path
    results: Path
    method: str = "window"

    @property
    def words(self) -> list[str]:
        return [
            f"method={self.method}",
            f"data={self.data}",
            f"results={self.results}",
            "progress=false",
            "task.max_new_tokens=10",
            PROMPT,
        ]

    @property
    def records(self) -> Path | None:
        """The records file, once there is one."""
        # Not Path.glob, which fails when the run's `.probe-...` folder is gone before it is read.
        return next((Path(path) for path in glob(str(self.results / "*/*/*/*/records.jsonl"))), None)

    def num_answered(self) -> int:
        """Whole lines so far."""
        return self.records.read_bytes().count(b"\n") if self.records else 0


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with short rows in LongBench's format, in the embedded model's words."""
    folder = tmp_path_factory.mktemp("rows")
    with (folder / "narrativeqa.jsonl").open("w") as file:
        for number, row in enumerate(miniature.generate("narrativeqa")[:NUM_ROWS]):
            context = " ".join(row["context"].split()[: 60 + 4 * number])
            file.write(json.dumps({**row, "context": context}) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, float]:
    """What a run that nobody stopped gives, and how long it takes."""
    command = Command(rows, tmp_path_factory.mktemp("whole"))
    server().run([*command.words, "limit=1"])  # the server's first child is slower
    began = time.monotonic()
    finished(server().run(command.words))
    return outcome(command), time.monotonic() - began


def finished(ended: Ended) -> None:
    assert (ended.code, ended.err) == (0, ""), ended


def outcome(command: Command) -> Any:
    """Records in file order and scores, without what a clock says."""
    assert command.records is not None
    records = [record.to_json() for record in read_lines(command.records).records]
    scores = json.loads((command.records.parent / "scores.json").read_text())
    for record in records:
        record["ledger"] = without_times(record["ledger"])
        del record["seconds"]
    return records, {**scores, "ledger": without_times(scores["ledger"])}


def without_times(ledger: dict[str, Any]) -> dict[str, Any]:
    """Everything but seconds."""
    return {name: value for name, value in ledger.items() if not name.endswith("_s")}


def test_the_uninterrupted_run_is_worth_comparing_with(whole: tuple[Any, float]) -> None:
    (records, scores), _ = whole
    assert len(records) == NUM_ROWS == scores["n"] and len({record["id"] for record in records}) == NUM_ROWS
    assert len({record["prediction"] for record in records}) > NUM_ROWS // 2
    assert not any(record["dense_short"] or record["error"] for record in records)


def test_many_kills_leave_no_trace(rows: Path, whole: tuple[Any, float], tmp_path: Path) -> None:
    expected, seconds = whole
    moments = random.Random(0)
    num_kills, num_runs, progress = 0, 0, set()
    while num_kills < NUM_KILLS:
        command = Command(rows, tmp_path / str(num_runs))
        num_runs += 1
        while True:
            child = server().start(command.words)
            time.sleep(moments.uniform(0.1, 0.9) * seconds)  # each start goes on further
            child.kill(SIGKILL)
            ended = child.wait()
            if ended.code == 0:
                break
            assert ended.code == -SIGKILL, ended
            num_kills += 1
            progress.add(command.num_answered())
            if num_kills >= NUM_KILLS:
                finished(server().run(command.words))
                break
        assert outcome(command) == expected
    assert len(progress) > 4, f"the kills did not hit different moments: {progress}"


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_signal_ends_a_run_cleanly(rows: Path, whole: tuple[Any, float], tmp_path: Path, number: Signals) -> None:
    command = Command(rows, tmp_path)
    child = server().start(command.words)
    until(lambda: command.num_answered() >= 3)
    child.kill(number)
    ended = child.wait()
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.count("\n") == 1 and "records so far are kept, run again to resume" in ended.err
    assert ended.err.startswith(f"stopped by {number.name}; ")
    assert 2 <= command.num_answered() < NUM_ROWS  # a line that was not yet safe on the disk is taken back
    finished(server().run(command.words))
    assert outcome(command) == whole[0]


def test_every_session_is_noted(rows: Path, tmp_path: Path) -> None:
    command = Command(rows, tmp_path)
    child = server().start(command.words)
    until(lambda: command.num_answered() >= 1)
    child.kill(SIGKILL)
    child.wait()
    finished(server().run(command.words))
    assert command.records is not None
    run = json.loads((command.records.parent / "run.json").read_text())
    assert [session["pid"] == child.pid for session in run["sessions"]] == [True, False]
    assert not list(tmp_path.glob(".probe-*"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_a_killed_run_leaves_no_workers_behind(rows: Path, tmp_path: Path) -> None:
    command, whole = (Command(rows, tmp_path / name, "pqcache") for name in ("killed", "whole"))
    words = ["limit=4", "method.bits=2", "method.num_workers=1"]
    child = server().start([*command.words, *words])
    until(lambda: command.num_answered() >= 1)
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.kill(SIGKILL)
    child.wait()
    assert workers
    until(lambda: not any(is_alive(worker) for worker in workers))
    for again in (command, whole):
        finished(server().run([*again.words, *words]))
    assert outcome(command) == outcome(whole)


def is_alive(pid: str) -> bool:
    """Whether a process runs (a zombie, whose parent has not yet looked, does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [SIGTERM, SIGKILL])
def test_a_real_process_that_is_stopped_while_it_starts(
    rows: Path, whole: tuple[Any, float], tmp_path: Path, number: Signals
) -> None:
    command = Command(rows, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "run.py", *command.words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.0)  # amid the imports
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number is SIGKILL:
        assert (process.returncode, out, err) == (-SIGKILL, "", "")
    else:
        assert (process.returncode, out) == (130, "") and err.count("\n") == 1 and "run again to resume" in err
    finished(server().run(command.words))
    assert outcome(command) == whole[0]
