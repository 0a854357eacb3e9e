"""`pytest tests/test_golden.py --golden DIR`: check other files of the same formats instead of the committed ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

# Triton reads it when it is imported (the methods below may bring it); without a GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

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


def with_all_golden(arguments: Sequence[str]) -> list[str]:
    """Files to test: `tests/test_golden.py` stands for itself and every `tests/test_golden_*.py`."""
    more = [str(path) for path in sorted(ALL_GOLDEN.parent.glob("test_golden_*.py"))]
    return [file for given in arguments for file in (given, *(more if Path(given).resolve() == ALL_GOLDEN else ()))]
