"""The lists: complete, quick, whole in a pipe, and not stopped by what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine import cached
from eval.records import Record
from eval.run_folder import RunFolder
from scripts import list as lists
from tests.test_records import answer

ROOT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = {"budget": 0.1, "protocol": "longbench", "data": "longbench"}
SCORES: dict[str, Any] = {"score": 61.25, "ci95": [50.0, 70.5], "n": 19, "n_expected": 20, "failed": 1}


def make_run(
    results: Path, method: str = "h2o", day: int = 1, scores: dict[str, Any] | None = SCORES, **changes: Any
) -> Path:
    facts = {"started": f"2026-01-{day:02}T10:30:00+00:00"}
    config = {**CONFIG, "method": changes.pop("method_fields", {}), **changes}
    with RunFolder.open(results, "tiny", "qasper", method, config, facts) as folder:
        folder.append(answer("a"))
        folder.append(Record.failed("b", "boom", 1))
    if scores is not None:
        (folder.path / "scores.json").write_text(json.dumps(scores))
    return folder.path


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert lists.main(argv) == 0
    return capsys.readouterr().out.splitlines()


def at_width(width: int, results: Path) -> list[str]:
    console = Console(width=width, file=StringIO())
    lists.print_runs(console, results, None)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_all_names_are_listed_quickly_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers', 'hydra', 'omegaconf', 'datasets', 'pandas'}"
    code = f"import sys, time; from scripts.list import main; main(['--results', {str(tmp_path)!r}]); "
    code += f"print('loaded', sorted({heavy} & set(sys.modules)), time.process_time() < 2)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded [] True"
    words = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {path.stem for path in ROOT.glob("configs/*/*.yaml")} <= words


def test_a_line_says_what_the_yaml_says_and_is_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = [line for line in listed(capsys, "tasks") if line.startswith("qasper ")]
    first = (ROOT / "configs/task/qasper.yaml").read_text().split("\n")[0].removeprefix("# ")
    assert line.split()[:5] == ["qasper", "qa_f1", "200", "24", "128"] and line.rstrip().endswith(first)
    [line] = [line for line in listed(capsys, "tasks") if line.startswith("vcsum ")]
    assert line.split()[:5] == ["vcsum", "rouge_zh", "200", "–", "512"]
    [line] = [line for line in listed(capsys, "tasks") if line.startswith("vt ")]
    assert line.split()[:5] == ["vt", "match_all", "500", "made", "30"]
    [line] = [line for line in listed(capsys, "models") if line.startswith("tiny ")]
    assert line.split()[:4] == ["tiny", "data/tiny", "4608", "yes"] and len(line) > 100


def test_runs_come_newest_first_with_all_their_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = make_run(tmp_path, "h2o", day=1)
    new = make_run(tmp_path, "full", day=2, budget=None, data="miniature", scores={**SCORES, "failed": 0, "ci95": None})
    lines = listed(capsys, "runs", "--results", str(tmp_path))[3:]
    assert [line.split("  ")[0].split()[0] for line in lines if line] == ["full", "h2o"]
    assert all(part in lines[0] for part in ("–", "MINIATURE", "2026-01-02 10:30", str(new)))
    facts = ("0.1", "qasper", "tiny", "61.25", "[50.0, 70.5]", "19 of 20", "1 failed", "longbench", str(old))
    assert all(part in lines[1] for part in facts) and "MINIATURE" not in lines[1]


def test_an_unfinished_run_has_counts_and_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, scores=None)
    line = listed(capsys, "runs", "--results", str(tmp_path))[3]
    assert all(f" {part} " in line for part in ("unfinished", "1 of ?", "1 failed"))


def test_what_is_unreadable_is_named_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "full")
    (make_run(tmp_path, "h2o") / "run.json").write_text("{")
    (make_run(tmp_path, "sparq") / "scores.json").write_text('{"score": 1')
    (make_run(tmp_path, "infllm", scores=None) / "records.jsonl").write_text("{}\n{}\n")
    (make_run(tmp_path, "oracle") / "scores.json").write_text("{}")
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    (tmp_path / "stray.txt").write_text("")
    lines = listed(capsys, "runs", "--results", str(tmp_path))
    bad = [line for line in lines if line.startswith("unreadable: ")]
    assert len(bad) == 5 and lines[3].startswith("full ")
    for part in (
        "h2o",
        "run.json cannot be read",
        "scores.json is damaged",
        "records.jsonl:1",
        "oracle",
        "c/d is no run",
    ):
        assert any(part in line for line in bad), part


def test_a_narrow_window_stacks_cells_and_breaks_none(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    narrow = at_width(80, tmp_path)
    assert len(narrow) == 6 and all(len(line) <= 80 for line in narrow[1:])  # title, two of names, a rule, two of cells
    text = "\n".join(narrow)
    whole = ("h2o", "qasper", "61.25", "[50.0, 70.5]", "19 of 20", "1 failed", "2026-01-01 10:30", folder.name)
    assert all(part in text for part in whole) and str(folder) not in text
    assert str(folder) in "\n".join(at_width(300, tmp_path))


def test_parameters_that_differ_from_the_yaml_stand_beside_the_method(tmp_path: Path) -> None:
    usual = {"num_sub": 2, "bits": 6, "iterations": 25}
    make_run(tmp_path, "pqcache", method_fields=usual)
    make_run(tmp_path, "pqcache", method_fields={**usual, "bits": 4})
    names = sorted(line.split("   ")[0].strip() for line in at_width(300, tmp_path)[3:])
    assert names == ["pqcache", "pqcache bits=4"]


def test_without_a_kind_only_the_latest_runs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "  none yet" in listed(capsys, "runs", "--results", str(tmp_path / "none"))
    for day in range(1, lists.NUM_LATEST + 3):
        make_run(tmp_path, day=day, seed=day)
    assert "2 more: python -m scripts.list runs" in listed(capsys, "--results", str(tmp_path))
    assert sum(line.startswith("h2o") for line in listed(capsys, "runs", "--results", str(tmp_path))) == day


def test_a_broken_yaml_is_listed_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lists, "CONFIGS", tmp_path)
    (tmp_path / "method").mkdir()
    (tmp_path / "method/bad.yaml").write_text("# Bad.\na: [1\n")
    (tmp_path / "method/good.yaml").write_text("# Good.\na: 1\n")
    (tmp_path / "method/plain.yaml").write_text("a: 1\n")
    rows = {line.split()[0]: line for line in listed(capsys, "methods")[3:] if line}
    assert "CANNOT BE READ" in rows["bad"] and "line 2" in rows["bad"]
    assert rows["good"].split() == ["good", "Good."] and rows["plain"].split() == ["plain", "–"]


@pytest.mark.parametrize(
    ("files", "lacking"),
    [
        ((), ("config", "tokenizer", "weights")),
        (("config.json", "tokenizer.json"), ("weights",)),
        (("config.json", "tokenizer.json", "model.safetensors"), ()),
        (("config.json", "tokenizer.json", "model.safetensors.index.json", "a.safetensors"), ("weights",)),
        (("config.json", "tokenizer.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"), ()),
    ],
)
def test_a_model_is_local_if_all_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], lacking: tuple[str, ...]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    index = json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    for name in files:
        (snapshot / name).write_text(index if name.endswith("index.json") else "")
    assert cached.missing_parts("org/name", "abc") == lacking
    assert cached.missing_parts(str(snapshot), None) == lacking
    assert cached.missing_parts("org/name", "other") == ("config", "tokenizer", "weights")
    assert lists.locally({"path": "not a hub id!"}) == "no"
