"""Runs in processes of their own that cost no start-up: a server imports everything once and forks a child for each."""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ended:
    """A finished child: exit status (negative: the signal that killed it), stdout, stderr."""

    code: int
    out: str
    err: str


class Child:
    """A running `python run.py ...`."""

    def __init__(self, pid: int, server: Server, folder: Path) -> None:
        self.pid = pid
        self.server = server
        self.folder = folder

    def kill(self, number: signal.Signals) -> None:
        """Send a signal. A child that is over stays a zombie until `wait`, so this never hits another process."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end."""
        code = int(self.server.ask({"wait": self.pid}))
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return Ended(code, out, err)


class Server:
    """The parent of the children. It has no network and an empty hub cache."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="forks-"))
        self.number = 0
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hub"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.forks"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self.process.kill)

    def ask(self, request: dict[str, object]) -> str:
        """One request, one line back."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def start(self, argv: Sequence[str], max_file_bytes: int | None = None) -> Child:
        """Start a run. max_file_bytes: writing a file beyond that fails, as on a full disk."""
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        pid = self.ask({"argv": list(argv), "folder": str(folder), "max_file_bytes": max_file_bytes})
        return Child(int(pid), self, folder)

    def run(self, argv: Sequence[str], max_file_bytes: int | None = None) -> Ended:
        """Start a run and wait for its end."""
        return self.start(argv, max_file_bytes).wait()


@lru_cache(maxsize=1)
def server() -> Server:
    """The server that all tests share."""
    return Server()


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def serve() -> None:
    """Fork a child for each line of stdin."""
    for module in ("run", "configs.compose", "configs.sweep", "engine.load", "eval.ask", "eval.loop", "eval.report"):
        import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            reply = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            reply = os.fork()
            if reply == 0:
                child(request["argv"], Path(request["folder"]), request["max_file_bytes"])
        print(reply, flush=True)


def child(argv: Sequence[str], folder: Path, max_file_bytes: int | None) -> None:
    """Be `python run.py ...`, with stdout and stderr in files."""
    import run

    for target, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    code = 1
    try:
        code = run.main(argv)
        sys.stdout.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
