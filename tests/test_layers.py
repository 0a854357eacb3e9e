"""Imports run in one straight line (docs/decisions.md), and nothing heavy is imported where it must not be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("configs", "data", "engine", "eval", "methods", "scripts", "tests")
ALLOWED = {
    "data": {"data"},
    "methods": {"methods"},
    "engine": {
        *("engine", "methods.base", "methods.store", "methods.full", "methods.scores", "methods.fixed"),
        "methods.kernels.network",
    },
    "eval": {"eval", "data", "engine.spec", "methods.base"},
    "configs": {"configs", "data", "engine.spec", "eval", "methods.base", "methods.budget"},
    "scripts": {*PACKAGES} - {"tests"},
}
# The files of eval/ that know the engine: asking is where all layers meet.
ASKING = (
    *("eval/loop.py", "eval/ask.py", "eval/turns.py", "eval/plan.py", "eval/standing.py", "eval/crowd.py"),
    *("eval/failures.py", "eval/conclude.py"),
)
HEAVY = {
    "data": {"torch", "transformers", "hydra", "omegaconf"},
    "methods": {"transformers", "hydra", "omegaconf", "rich", "datasets", "pandas"},
    "engine": {"hydra", "omegaconf", "datasets", "pandas", "rich"},
    "eval": {"torch", "transformers", "hydra", "omegaconf"},
}
# transformers changes within months: only these files may know it.
SEAM = {"engine/seam.py", "engine/model.py", "engine/load.py", "engine/prompt.py", "engine/outline.py"}


def files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("path", [p for p in files() if "tests" not in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    package = name.split("/")[0]
    allowed = ALLOWED[package] | ({"engine", "methods.budget"} if name in ASKING else set())
    for module in imported(path):
        top = module.split(".")[0]
        if top in PACKAGES and module not in PACKAGES:
            parents = {module.rsplit(".", 1)[0], module}
            assert any(within(m, allowed) for m in parents), f"{name} imports {module}"
        assert top not in HEAVY.get(package, set()), f"{name} imports {module}"
        assert top != "transformers" or name in SEAM or package in ("tests", "scripts"), f"{name} imports {module}"


def test_methods_do_not_import_each_other() -> None:
    shared = {"base", "store", "scores", "budget", "eviction", "quantised", "narrow", "fixed", "fused", "kernels"}
    for path in sorted((ROOT / "methods").rglob("*.py")):
        own = path.relative_to(ROOT / "methods").parts[0].removesuffix(".py")
        for module in imported(path):
            parts = module.split(".")
            if parts[0] == "methods" and len(parts) > 1 and parts[1] not in shared:
                assert parts[1] == own, f"{path.relative_to(ROOT)} imports {module}"


def test_package_files_are_empty() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").read_text() == ""
    assert not (ROOT / "utils").exists()
