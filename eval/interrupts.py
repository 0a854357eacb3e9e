"""SIGTERM (Slurm's time limit, `kill`) takes the same clean path as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """The process was asked to end. No `Exception`, so that no sample is recorded as failed because of it."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM raises Interrupted, once; the handler that stood before is back afterwards.

    Further SIGTERMs are ignored until the end of the block, so that they do not cut the clean path short. Outside the
    main thread, where Python allows no handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        # None stands for a handler that was not installed from Python; it cannot be put back, the default can.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted(f"stopped by {signal.Signals(number).name}; the records so far are kept, run again to resume")
