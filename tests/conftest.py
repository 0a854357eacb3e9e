"""`pytest tests/test_golden.py --golden DIR`: check other files of the same formats instead of the committed ones."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from eval.provenance import git_state

# Triton reads it when it is imported (the methods below may bring it); without a GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Collecting garbage at every 700 new objects, as Python does, takes a tenth of test_conformance's time.
gc.set_threshold(10_000)

MANY = 500  # tests: a run of one file or two is over before a head start pays
ALL_GOLDEN = Path(__file__).parent / "test_golden.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", help="golden files to check instead of tests/fixtures")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--golden")
    if given is None:
        return
    if not any(Path(given).glob("*.npz")):
        raise pytest.UsageError(f"--golden {given}: no .npz file there; give a folder of golden files")
    from tests import golden

    golden.FOLDER = Path(given)
    config.args[:] = with_all_golden(config.args)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the process that tests of whole runs share: it imports for seconds, beside the tests that come first.

    What exists before the first test stays to the end: collections need not look at it.
    """
    gc.freeze()
    if not session.config.option.collectonly and "tests.forks" in sys.modules and len(session.items) > MANY:
        sys.modules["tests.forks"].server()


@pytest.fixture(scope="session", autouse=True)
def one_look_at_git() -> Iterator[None]:
    """Runs in this process ask git for the state of a repository once; `test_provenance` asks it itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.provenance.git_state", cache(git_state))
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_workers() -> Iterator[None]:
    """PQCache's clustering processes come from one that has imported torch already; `test_workers` takes real ones."""
    from methods.pqcache.workers import Workers, prepare

    def start(workers: Workers) -> ProcessPoolExecutor:
        context = get_context("forkserver")
        context.set_forkserver_preload([Workers.__module__])
        return ProcessPoolExecutor(workers._num_workers, context, initializer=prepare)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "_start", start)
        yield


def with_all_golden(arguments: Sequence[str]) -> list[str]:
    """Files to test: `tests/test_golden.py` stands for itself and every `tests/test_golden_*.py`."""
    more = [str(path) for path in sorted(ALL_GOLDEN.parent.glob("test_golden_*.py"))]
    return [file for given in arguments for file in (given, *(more if Path(given).resolve() == ALL_GOLDEN else ()))]
