"""SIGTERM ends a run as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eval.interrupts import Interrupted, interruptible
from eval.records import read_lines
from eval.run_folder import run_path
from tests.forks import ROOT
from tests.test_run_folder import CONFIG


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_raises_once_and_the_old_handler_comes_back() -> None:
    seen: list[int] = []
    cleaned = False
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
            try:
                terminate()
            except Exception:
                pytest.fail("an interrupt must not be taken for a failed sample")
            finally:
                terminate()
                cleaned = True
        assert cleaned and seen == []
        terminate()
        assert seen == [signal.SIGTERM]
        with interruptible():
            pass
        terminate()
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_does_nothing_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[object] = []

    def work() -> None:
        with interruptible():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


RUNNER = """
import itertools, sys, time
from pathlib import Path
from eval.interrupts import Interrupted, interruptible
from tests.test_run_folder import answer, open_run
try:
    with interruptible(), open_run(Path(sys.argv[1])) as folder:
        for number in itertools.count():
            folder.append(answer(str(number), prediction="long " * 2000))
            if number == 5:
                print("running", flush=True)
except Interrupted as error:
    print(error)
    sys.exit(143)
"""


def test_a_terminated_run_leaves_whole_lines_and_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-c", RUNNER, str(tmp_path)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "running\n"
    child.terminate()
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 143 and "run again to resume" in output
    path = run_path(tmp_path, "org/name", "qasper", "pqcache", CONFIG) / "records.jsonl"
    lines = read_lines(path)
    assert len(lines.records) >= 6 and lines.num_whole_bytes == path.stat().st_size
