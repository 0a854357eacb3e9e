"""`pytest tests/test_golden.py --golden DIR`: check other files of the same formats instead of the committed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", help="golden files to check instead of tests/fixtures")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--golden")
    if given is None:
        return
    if not any(Path(given).glob("*.npz")):
        raise pytest.UsageError(f"--golden {given}: no .npz file there; give a folder of golden files")
    golden.FOLDER = Path(given)
