"""What this machine offers: its devices, their memory, and how fast they multiply."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch


@dataclass(frozen=True)
class Device:
    """name: as `device=` takes it. label: what it is, in words. Bytes of its memory; free is what could be had now."""

    name: str
    label: str
    total_bytes: int
    free_bytes: int


def devices() -> list[Device]:
    """The CPU, then the CUDA devices."""
    return [cpu(), *(gpu(number) for number in range(torch.cuda.device_count()))]


def cpu() -> Device:
    """The processor with the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    label = f"{cores} cores, {torch.get_num_threads()} used by torch"
    return Device("cpu", label, int(memory.total), int(memory.available))


def gpu(number: int) -> Device:
    """One CUDA device."""
    free, total = torch.cuda.mem_get_info(number)
    return Device(f"cuda:{number}", torch.cuda.get_device_name(number), total, free)


def free_bytes(name: str, all_gpus: bool) -> int:
    """Memory that could be had now for a model on the device of that name, or on all GPUs."""
    device = torch.device(name)
    if device.type != "cuda":
        return cpu().free_bytes
    numbers = range(torch.cuda.device_count()) if all_gpus else [device.index or 0]
    return sum(gpu(number).free_bytes for number in numbers)


def flops_per_second(name: str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations a second of square matrix products, measured for that long: about the best there is."""
    size = 512 if name == "cpu" else 4096
    matrix = torch.rand(size, size, device=name).to(dtype)
    _multiply(matrix)  # the first product also sets the library up
    began, elapsed, num_products = time.perf_counter(), 0.0, 0
    while elapsed < seconds:
        _multiply(matrix)
        num_products += 1
        elapsed = time.perf_counter() - began
    return 2.0 * size**3 * num_products / elapsed


def _multiply(matrix: torch.Tensor) -> None:
    torch.mm(matrix, matrix)
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
