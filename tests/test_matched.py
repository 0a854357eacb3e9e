"""Equal averages: the budget that gives others what one row attended, the command that asks for it, the table after."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest

import run
from eval.matched import Unit, nearest, spent
from eval.stored import find
from scripts.compare import main
from scripts.reproduce import asking
from tests.runs import Change, composed, ledger, make, without

LENGTHS = (40, 60, 80, 100, 100, 120, 140, 160)
CORM = ("method=corm", "budget=0.1")


def lengths() -> Change:
    """Prompts of different lengths."""
    return lambda number, record: replace(record, num_prompt_tokens=LENGTHS[number])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """corm attends 60 tokens of narrativeqa's prompts on average, 50.4 of hotpotqa's; h2o was run at 0.1 only."""
    for task, attended in (("narrativeqa", 60.0), ("hotpotqa", 50.4)):
        make(tmp_path, *CORM, f"task={task}", scores=(0.5,) * 8, cost=ledger(attended), change=lengths())
        make(tmp_path, "method=h2o", f"task={task}", change=lengths())
        make(tmp_path, "method=full", f"task={task}", cost=ledger(100.0), change=lengths())
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], results: Path, *argv: str) -> tuple[str, list[list[str]]]:
    """What was printed, and the words of the commands in it."""
    assert main(["--results", str(results), "--match", "corm", *argv]) == 0
    out = capsys.readouterr().out
    return out, [shlex.split(line)[2:] for line in out.splitlines() if line.startswith("python run.py")]


@pytest.mark.parametrize("unit", ["tok", "ratio"])
@pytest.mark.parametrize("wanted", [5.0, 37.3, 60.0, 99.0])
def test_no_other_budget_is_nearer(unit: Unit, wanted: float) -> None:
    def average(number: int) -> float:
        return fmean(spent(number, unit, n, 4) for n in LENGTHS)

    last = 160 if unit == "tok" else 10_000
    found = nearest(average, wanted, last)
    assert abs(average(found) - wanted) == min(abs(average(number) - wanted) for number in range(1, last + 1))


def test_what_a_budget_spends() -> None:
    assert (spent(50, "tok", 100, 4), spent(50, "tok", 54, 4), spent(50, "tok", 40, 4)) == (54, 54, 40)
    assert (spent(1000, "ratio", 104, 4), spent(10_000, "ratio", 104, 4), spent(1000, "ratio", 3, 4)) == (14, 104, 3)


def test_commands_ask_what_corm_was_asked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, [first, second] = said(capsys, results, "--unit", "tok")
    assert first[:4] == ["-m", "method=h2o", "budget=59tok", "task=narrativeqa"]  # (40 + 60 + 6 * 63) / 8 = 59.75
    assert second[:4] == ["-m", "method=h2o", "budget=48tok", "task=hotpotqa"]  # (40 + 7 * 52) / 8 = 50.5
    assert "limit=8" in first and f"results={results}" in first
    assert not any(word.startswith("method.") for word in first)
    assert "narrativeqa: 2 of 8 prompts are within 59tok" in out and "corm 0.1" in out and "h2o 0.1" not in out
    _, [one, _] = said(capsys, results, "method=snapkv,tova", "limit=6")
    assert one[1].startswith("method=snapkv,tova") and one[2].startswith("budget=0.") and one[-2] == "limit=6"


def test_the_command_is_that_of_runs_that_are_found_then(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, commands = said(capsys, results)
    for words in commands:
        given = tuple(word for word in words if word != "-m" and not word.startswith(("results=", "limit=")))
        make(results, *given, scores=(1.0,) * 8, cost=ledger(59.0), change=lengths())
    out, commands = said(capsys, results, "--csv", str(results / "matched.csv"))
    assert not commands and "h2o as corm" in out and "59.0 (−1.7 %)" in out and "59.0 (+17.1 %)" in out
    assert "row minus corm 0.1" in out and "+50.00" in out
    lines = (results / "matched.csv").read_text().splitlines()
    assert sum("h2o as corm" in line for line in lines) == 3 and sum("full" in line for line in lines) == 3


def test_an_incomplete_match_is_asked_again(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(results, "method=h2o", "budget=59tok", "task=narrativeqa", cost=ledger(59.0), change=without(3))
    out, commands = said(capsys, results, "--unit", "tok")
    assert len(commands) == 2 and "incomplete: 7 of 8" in out


def test_runs_that_the_row_was_not_asked_do_not_matter(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(results, "method=h2o", "task=narrativeqa", "protocol=question_after", change=lengths())
    _, commands = said(capsys, results, "method=h2o")
    assert len(commands) == 2 and not any("protocol" in word for words in commands for word in words)


def test_words_of_the_runs_stay(tmp_path: Path) -> None:
    words = (*CORM, "task=narrativeqa", "method.window=64", "seed=3", "sink=8", "protocol=question_after")
    [run] = find([make(tmp_path, *words)])
    again = shlex.split(asking(run, ["window"], "58tok").text)[3:]
    kept = ("task=narrativeqa", "method=window", "budget=58tok", "seed=3", "sink=8", "protocol=question_after")
    assert composed(*again[:1], *again[1:]).config == {**composed(*kept).config, "limit": 8}


def test_what_cannot_be_matched_is_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*argv: str) -> str:
        assert main(["--results", str(results), *argv]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "method=kivi has no budget" in refused("--match", "corm", "method=kivi")
    assert "method snapvk is unknown" in refused("--match", "corm", "method=snapvk")
    assert "--match cormm: no run is of that row or method" in refused("--match", "cormm")
    assert "full on narrativeqa left nothing out" in refused("--match", "full")
    alone = tmp_path / ".alone"
    make(alone, *CORM, "task=narrativeqa", change=lengths(), cost=ledger(60.0))
    assert "no other method was run; add method=NAME" in refused("--match", "corm", "method=corm", str(alone))
    make(results, "method=corm", "budget=0.2", "task=narrativeqa", change=lengths())
    assert "match corm names 2 rows: give --match 'corm 0.1'" in refused("--match", "corm")
    path = next(path for path in results.glob("tiny/narrativeqa/corm/*/records.jsonl") if "60.0" in path.read_text())
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert "corm 0.1 on narrativeqa is incomplete: 7 of 8" in refused("--match", "corm 0.1")


@pytest.mark.slow
def test_real_runs_attend_as_many_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [f"results={tmp_path}", "progress=false"]
    assert run.main([*CORM, "task=narrativeqa", "limit=4", *own]) == 0
    capsys.readouterr()
    _, [words] = said(capsys, tmp_path, "method=snapkv,window")
    assert run.main([*words, "progress=false"]) == 0
    capsys.readouterr()
    out, commands = said(capsys, tmp_path, "--csv", str(tmp_path / "matched.csv"))
    assert not commands and "snapkv as corm" in out
    frame = pd.read_csv(tmp_path / "matched.csv").set_index("row")
    for row in ("snapkv as corm", "window as corm"):
        assert frame.loc[row, "attended"] == pytest.approx(frame.loc["corm 0.1", "attended"], abs=0.51)
        assert frame.loc[row, "n"] == 4
