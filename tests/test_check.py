"""`python -m scripts.check`, and methods in files outside the project: checked, run, named and told apart."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import run
from scripts import check
from tests.forks import ROOT

Command = Callable[..., tuple[int, str, str]]
README = (ROOT / "README.md").read_text()


def readme_block(name: str) -> str:
    """The code block of the README whose first line is a comment with the file's name."""
    [found] = re.findall(rf"^```\w+\n(# {re.escape(name)}\n.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder outside of the project; what is imported from it is forgotten again."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*words: str) -> tuple[int, str, str]:
        return (check.main(words), *capsys.readouterr())

    return command


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    def command(*words: str) -> tuple[int, str, str]:
        common = ["method=full", "limit=2", f"results={tmp_path / 'results'}", "progress=false"]
        return (run.main([*common, *words]), *capsys.readouterr())

    return command


def folder_of(out: str) -> Path:
    return Path(out.splitlines()[-1])


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "run.json").read_text())["config"]
    return config


def test_the_method_of_the_readme_conforms_and_runs_from_anywhere(
    outside: Path, checked: Command, asked: Command
) -> None:
    code = readme_block("methods/even.py")
    yaml = readme_block("configs/method/even.yaml")
    assert len((code + yaml).splitlines()) <= 40
    assert "_target_: methods.even.Even" in yaml
    (outside / "even.py").write_text(code)
    status, out, err = checked("even.Even")
    assert status == 0 and err == "", out
    assert "even.Even conforms" in out and "fails" not in out
    status, out, err = asked("method._target_=even.Even")
    assert status == 0 and err == ""
    folder = folder_of(out)
    assert folder.parts[-2] == "even.Even" and not (folder.parents[1] / "full").exists()
    assert json.loads((folder / "scores.json").read_text())["n"] == 2


SCALED = readme_block("methods/even.py").replace(
    "class Even(Method):\n", "class Even(Method):\n    offset: int = 0\n\n"
)


def test_parameters_and_edits_of_an_outside_file_make_other_runs(outside: Path, asked: Command) -> None:
    (outside / "scaled.py").write_text(SCALED)
    first = folder_of(asked("method._target_=scaled.Even", "limit=1")[1])
    config = config_of(first)
    assert config["method"] == {"_target_": "scaled.Even", "offset": 0} and config["method_name"] == "scaled.Even"
    assert re.fullmatch(r"[0-9a-f]{10}", config["method_source"]["scaled"])
    assert folder_of(asked("method._target_=scaled.Even", "limit=1")[1]) == first
    assert folder_of(asked("method._target_=scaled.Even", "limit=1", "method.offset=1")[1]) != first
    del sys.modules["scaled"]
    (outside / "scaled.py").write_text(SCALED + "\n# edited\n")
    assert folder_of(asked("method._target_=scaled.Even", "limit=1")[1]) != first


def test_a_package_is_hashed_whole(outside: Path) -> None:
    from configs.build import sources
    from configs.compose import compose_method

    (outside / "pack").mkdir()
    (outside / "pack" / "__init__.py").write_text("")
    (outside / "pack" / "helper.py").write_text("x = 1\n")
    (outside / "pack" / "method.py").write_text(SCALED)
    _, method = compose_method("pack.method.Even", ())
    before = sources(method)
    (outside / "pack" / "helper.py").write_text("x = 2\n")
    assert before.keys() == {"pack"} and sources(method) != before
    assert sources(compose_method("h2o", ())[1]) == {}


def test_other_weights_in_the_same_file_are_another_run(tmp_path: Path) -> None:
    from configs.build import sources
    from configs.compose import compose_method

    path = tmp_path / "kernels.safetensors"
    method = compose_method("less", (f"method.weights={path}",))[1]
    assert sources(method) == {}  # refused when a model is at hand
    path.write_bytes(b"one")
    before = sources(method)
    path.write_bytes(b"two")
    assert before.keys() == {"kernels.safetensors"} and sources(method) != before


FILES = {
    "good.py": SCALED,
    "broken.py": "import no_such_thing\n",
    "syntax.py": "def\n",
    "other.py": "from dataclasses import dataclass\n\n@dataclass\nclass Thing:\n    x: int = 0\n\nclass Plain: ...\n",
    "vague.py": "from methods.base import Method\n\nclass Vague(Method): ...\n",
}
MISTAKES = {
    "h20": ("method h20 is unknown", "sparq", "module.Class", "did you mean h2o?"),
    "god.Even": ("_target_=god.Even", "no module god", "god.py", "PYTHONPATH"),
    "good.Evn": ("_target_=good.Evn", "Evn does not exist in good", "Even", "did you mean Even?"),
    "broken.Even": ("_target_=broken.Even", "broken cannot be imported", "no_such_thing"),
    "syntax.Even": ("_target_=syntax.Even", "syntax cannot be imported", "SyntaxError"),
    "other.Plain": ("_target_=other.Plain", "Plain is no dataclass", "Thing"),
    "other.Thing": ("_target_=other.Thing is no method", "methods.base.Method"),
    "vague.Vague": ("_target_=vague.Vague", "Vague lacks index"),
    "good.Even method.ofset=1": ("method.ofset is not a field", "allowed are offset", "did you mean offset?"),
    "good.Even method.offset=x": ("method.offset='x'", "valid integer"),
    "h2o budget=0.1": ("budget=0.1", "method.param=value"),
    "h2o method.mode=foo": ("method.mode='foo'", "'drop' or 'mask'"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(outside: Path, checked: Command, words: str) -> None:
    for name, text in FILES.items():
        (outside / name).write_text(text)
    status, out, err = checked(*words.split())
    assert status == 1 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    for part in MISTAKES[words]:
        assert part in err


def test_run_py_says_the_same(outside: Path, asked: Command) -> None:
    status, _, err = asked("method._target_=god.Even")
    assert status == 1 and err.count("\n") == 1 and "no module god" in err and "PYTHONPATH" in err
    status, _, err = asked("method._target_=Even")
    assert status == 1 and err.count("\n") == 1 and "give module.Class" in err


def test_a_faulty_method_is_told_what_it_breaks(outside: Path, checked: Command) -> None:
    (outside / "greedy.py").write_text(SCALED.replace("k = min(step.k,", "k = min(step.k + 1,"))
    status, out, err = checked("greedy.Even")
    assert status == 1 and err == ""
    assert re.search(r"^ ?budget +fails +\[group1\] .*past tokens are attended; its budget is", out, re.MULTILINE)
    assert re.search(r"^ ?seed +ok ", out, re.MULTILINE)
    assert "greedy.Even breaks the contract: " in out


def test_a_method_that_no_model_suits(checked: Command) -> None:
    status, out, _ = checked("sparq", "method.rank=999")
    assert status == 1 and re.search(r"supports +fails .*method.rank=999", out)
