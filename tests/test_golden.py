"""Every golden file is compared by one of `tests/test_golden_*.py`, or it stands here why not.

`pytest tests/test_golden.py --golden DIR` checks further files of the same formats: it runs all of these modules.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests import golden
from tests.conftest import with_all_golden

MODULES = sorted(Path(__file__).parent.glob("test_golden_*.py"))
NOT_COMPARED = {
    "longbench_metrics.jsonl": "scores of texts, no method's: tests/test_metrics.py compares each line",
}


def forgotten(files: set[str]) -> list[str]:
    """The golden files that no test compares and for which no reason is given."""
    return sorted(
        file for file in files if Path(file).stem not in golden.COMPARED and not file.startswith(tuple(NOT_COMPARED))
    )


def test_every_file_is_compared_or_it_is_said_why_not() -> None:
    for module in MODULES:
        import_module(f"tests.{module.stem}")
    files = {path.name for path in golden.FOLDER.iterdir() if path.suffix != ".md"}
    assert forgotten(files) == []
    assert forgotten(files | {"h2o_unheard_of.npz"}) == ["h2o_unheard_of.npz"]
    late = [name for name in golden.COMPARED if name.startswith(tuple(NOT_COMPARED))]
    assert not late, f"{late} are compared: their reasons in NOT_COMPARED are out of date"


@pytest.mark.parametrize("given", ["tests/test_golden.py", "./tests/../tests/test_golden.py"])
def test_one_argument_stands_for_all_golden_tests(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    found = with_all_golden(["tests/test_budget.py", given])
    assert found == ["tests/test_budget.py", given, *map(str, MODULES)]
    alone = ["tests", "tests/test_golden_quest.py", "tests/test_golden.py::test_one"]
    assert with_all_golden(alone) == alone
