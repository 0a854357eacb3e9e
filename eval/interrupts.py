"""SIGTERM (Slurm's time limit, `kill`) and Ctrl-C end a run cleanly, with one line."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn

STATUS = 130


class Interrupted(KeyboardInterrupt):
    """The process was asked to end. No `Exception`, so that no sample is recorded as failed because of it."""


def interruptible() -> AbstractContextManager[None]:
    """Inside, SIGTERM and Ctrl-C raise Interrupted; the handlers that stood before are back afterwards.

    Further SIGTERMs are ignored until the end of the block, so that they do not cut the clean path short. Outside the
    main thread, where Python allows no handlers, it does nothing.
    """
    return _handling(_raise)


def leaving() -> AbstractContextManager[None]:
    """Inside, where nothing is open that must be closed, the same signals end the process at once, with `STATUS`.

    Most of such a time goes into imports, which abort the interpreter if an exception is raised amid them.
    """
    return _handling(_leave)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], NoReturn]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            # None stands for a handler that was not installed from Python; it cannot be put back, the default can.
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted(_message(number))


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, f"{_message(number)}\n".encode())
    os._exit(STATUS)


def _message(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}; the records so far are kept, run again to resume"
