"""Every Triton kernel compiles for the GPUs it is meant for (sm_80, sm_90), where no GPU is: a subprocess compiles.

Each file of methods/kernels lists what to compile in `signatures()`: (kernel, types of its arguments, constants, with
num_warps and num_stages among them). A kernel's first row is compiled for both GPUs, its other rows for the one and
the other in turn, and in the slow test for both. `python -m tests.test_kernels_compile` prints the table of the first,
with the word `all` that of the second.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that one program may have (CUDA guide, table 30)
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Case:
    """One row of a file's `signatures()`, for one GPU."""

    file: str
    row: int
    capability: int


@pytest.mark.parametrize("which", ["first", pytest.param("all", marks=pytest.mark.slow)])
def test_kernels_compile_without_spills(tmp_path: Path, which: str) -> None:
    pytest.importorskip("triton")
    # The interpreter replaces the kernels when they are imported: this process may have it, the other may not.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.test_kernels_compile", which]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{path.stem}." in done.stdout for path in kernel_files()), done.stdout


def kernel_files() -> list[Path]:
    return [path for path in sorted((ROOT / "methods" / "kernels").glob("*.py")) if path.stem != "__init__"]


def kernels_of(module: Any) -> set[str]:
    """Names of the functions that are launched: those that return nothing."""
    from triton.runtime.jit import JITFunction

    found = (f for f in vars(module).values() if isinstance(f, JITFunction) and f.fn.__module__ == module.__name__)
    return {f.__name__ for f in found if f.fn.__annotations__["return"] == "None"}


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> Any:
    """The kernel for one GPU, with pointers, strides and sizes at multiples of 16 as a launch finds them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants[name] for name in OPTIONS if name in constants}
    values = {name: value for name, value in constants.items() if name not in OPTIONS}
    signature = {p.name: "constexpr" if p.name in values else types[p.name] for p in kernel.params}
    even = [p for p in kernel.params if signature[p.name][0] in "*i" and not p.do_not_specialize]
    source = ASTSource(kernel, signature, values, {(p.num,): [["tt.divisibility", 16]] for p in even})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def registers(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack (spills) of each thread, as the tool in triton's wheel reads them."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    number = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert number, usage
    return int(number[1]), int(number[2])


def cases(which: str) -> Iterator[Case]:
    """What to compile. Raises AssertionError where a file lists not all of its kernels."""
    for path in kernel_files():
        module = importlib.import_module(f"methods.kernels.{path.stem}")
        names = [kernel.__name__ for kernel, _, _ in module.signatures()]
        assert set(names) == kernels_of(module), f"{path.name}: signatures() lacks some"
        seen: Counter[str] = Counter()
        for row, name in enumerate(names):
            both = which == "all" or not seen[name]
            for capability in SHARED if both else [sorted(SHARED)[seen[name] % 2]]:
                yield Case(path.stem, row, capability)
            seen[name] += 1


def checked(case: Case) -> str:
    """A line about the compiled kernel. Raises AssertionError where it spills or does not fit."""
    kernel, types, constants = importlib.import_module(f"methods.kernels.{case.file}").signatures()[case.row]
    out = compiled(kernel, types, constants, case.capability)
    used, stack = registers(out.asm["cubin"])
    line = (
        f"{case.file}.{kernel.__name__} sm_{case.capability}: {used} registers, {stack} bytes of stack, "
        f"{out.metadata.shared} bytes shared, {out.metadata.num_warps} warps"
    )
    assert stack == 0, f"{line}: a kernel that spills is slow: smaller blocks or more warps"
    most = SHARED[case.capability]
    assert out.metadata.shared <= most, f"{line}: more than the {most} bytes of a program"
    return line


if __name__ == "__main__":
    listed = list(cases(sys.argv[1] if len(sys.argv) > 1 else "first"))
    # Forked, not spawned: nothing has compiled yet, and the imports last longer than most kernels.
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), get_context("fork")) as pool:
        for line in pool.map(checked, listed):
            print(line, flush=True)
