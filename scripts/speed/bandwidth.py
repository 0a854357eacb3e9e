"""How fast this machine moves bytes, measured in the same call as everything that is compared with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from engine.ledger import Clock

REPEATS = 9
SIZES = {"cuda": 2**30, "cpu": 2**28}  # bytes of an array: far more than any cache holds
LINK_BYTES = 2**28


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second. copy: within the device's memory, read and written counted; link: pinned host memory to the
    device, None where the device is the host."""

    copy: float
    link: float | None

    def floor(self, device_bytes: float, host_bytes: float) -> float:
        """Seconds that moving so many bytes takes at least; without a link the host's memory is the device's."""
        return device_bytes / self.copy + host_bytes / (self.link or self.copy)


def measured(device: torch.device) -> Bandwidth:
    """Of a device, with the threads in use."""
    size = SIZES[device.type]
    a = torch.empty(size // 4, device=device).normal_()  # zeros may be faster than anything real
    b = torch.empty_like(a)
    copy = 2 * size / typical(device, lambda: b.copy_(a))
    if device.type != "cuda":
        return Bandwidth(copy, None)
    return Bandwidth(copy, LINK_BYTES / typical(device, linked(b[: LINK_BYTES // 4])))


def linked(near: Tensor) -> Callable[[], object]:
    """A copy from pinned memory to `near`."""
    far = torch.empty(near.shape, pin_memory=True).normal_()
    return lambda: near.copy_(far, non_blocking=True)


def typical(device: torch.device, work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of a call, after two that do not count."""
    for _ in range(2):
        work()
    return median(seconds(device, work) for _ in range(repeats))


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one call with all that it leaves to the device. On one thread of a CPU those of the processor, which
    are the same where nothing else runs, and which other work cannot lengthen by taking turns."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        before = time.process_time()
        work()
        return time.process_time() - before
    settle(device)
    clock = Clock(device)
    start = clock.mark()
    work()
    return clock.seconds(start, clock.mark())


def settle(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
