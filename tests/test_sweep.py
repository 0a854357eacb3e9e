"""Sweeps: what a command line expands to, what is grouped, what the sweep's folder says, and what a kill leaves."""

from __future__ import annotations

import json
from collections import Counter
from glob import glob
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

import run as command_line
from configs.arguments import choices
from configs.compose import job
from configs.experiments import JobWords, expand, is_experiment, sweep_of
from configs.sweep import by_hydra, groups, run_group
from eval.records import read_lines, read_records
from eval.run_file import read_run
from eval.sweep_folder import Entry, SweepFolder
from tests.forks import Ended, server, until

FAST = ("task.miniature.max_new_tokens=6",)


def command(results: Path, *words: str) -> list[str]:
    return [f"results={results}", "progress=false", "device=cpu", *FAST, *words]


def sweep_file(ended: Ended) -> dict[str, Any]:
    """The `sweep.json` of the folder on the last line."""
    found: dict[str, Any] = json.loads((Path(ended.out.splitlines()[-1]) / "sweep.json").read_text())
    return found


def loads(results: Path) -> int:
    """How many sessions there were in all runs."""
    return sum(len(read_run(Path(path).parent).sessions) for path in glob(str(results / "*/*/*/*/run.json")))


def test_jobs_that_differ_in_method_and_budget_only_are_a_group() -> None:
    found = groups(["method=full,window", "budget=0.1,0.2", "task=qasper,trec"])
    assert [len(group) for group in found] == [3, 3], "a method without a budget stands once"
    assert {word for job in found[0] for word in job if word.startswith("task")} == {"task=qasper"}


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["sink=0,4", "local_share=0.1,0.5", "compensate=0,1/128"], [8]),
        (["budget=0.1,1e-1,0.10"], [1]),
        (["protocol=longbench,question_after"], [1, 1]),
        (["seed=0,1", "method=window,random"], [2, 2]),
        (["prefill_chunk=512,1024"], [1, 1]),
        (["truncate=true,false"], [1, 1]),
        (["fuzz=difflib,levenshtein"], [1, 1]),
        (["limit=1,2"], [1, 1]),
        (["model.max_prompt=1000,2000"], [1, 1]),
        (["method=window,random", "share_prefill=false"], [1, 1]),
        (["method=random", "method=pqcache", "method.bits=4,5"], [2]),
    ],
)
def test_what_keeps_jobs_apart(words: list[str], sizes: list[int]) -> None:
    assert [len(group) for group in groups(["method=window", *words])] == sizes


def test_groups_are_plain_strings_that_another_process_runs(tmp_path: Path) -> None:
    words = command(tmp_path, "limit=2", "method=window,random")
    [group] = json.loads(json.dumps(groups(words)))
    assert run_group(group, ["-m", *words], (0, 2)) == 0 and run_group(group, ["-m", *words], (1, 2)) == 0
    paths = sorted(glob(str(tmp_path / "*/*/*/*/records-*.jsonl")))
    assert len(paths) == 4 and run_group(group, ["-m", *words]) == 0
    scores = [json.loads(Path(path).read_text()) for path in glob(str(tmp_path / "*/*/*/*/scores.json"))]
    assert [(s["n"], s["missing"]) for s in scores] == [(2, 0), (2, 0)]


def test_other_launchers_go_through_hydra(tmp_path: Path) -> None:
    seen: list[float] = []

    def run(config: DictConfig) -> int:
        seen.append(job(config, []).settings.budget)  # type: ignore[arg-type]
        return len(seen) % 2

    assert by_hydra([f"results={tmp_path}", "method=window", "budget=0.1,0.2"], run) == 1
    assert seen == [0.1, 0.2]


def test_a_group_with_a_mistake_says_so_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_group([[f"results={tmp_path}", "progress=false", "method=window", "task=vcsum"]], []) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: window 0.1 on vcsum: there are no miniature rows") and err.count("\n") == 1


def test_who_cannot_run_is_told_once_and_before_the_others_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("eval.sweep.go", lambda *_: seen.append(capsys.readouterr().err))
    words = ["-m", f"results={tmp_path}", "progress=false", "limit=1", "method=full,window", "task=trec,vcsum"]
    assert command_line.main(words) == 1
    assert (
        seen[0].startswith("error: full on vcsum, window 0.1 on vcsum: there are no mini") and seen[0].count("\n") == 1
    )
    assert not any(seen[1:]) and not capsys.readouterr().err


def test_a_sweep_shares_its_prefill_and_ends_with_its_folder(tmp_path: Path) -> None:
    words = ["-m", "method=full,window,random", "budget=0.1,0.2", "limit=1"]
    done = server().run(command(tmp_path, *words))
    assert (done.code, done.err) == (0, "") and "MINIATURE" in done.out
    written = sweep_file(done)
    assert written["argv"] == command(tmp_path, *words)
    assert [(run["group"], run["status"]) for run in written["runs"]] == [(0, "complete")] * 5
    found = [read_records(Path(run["folder"])) for run in written["runs"]]
    assert [[r.ledger["num_arms"] for r in records.values()] for records in found] == [[5]] * 5
    before, num_sessions = (
        [Path(run["folder"], "records.jsonl").read_bytes() for run in written["runs"]],
        loads(tmp_path),
    )
    more = server().run(command(tmp_path, *words, "limit=1", "task=narrativeqa", "seed=0"))
    assert more.code == 0 and more.out.splitlines()[-1] != done.out.splitlines()[-1]
    assert [run["folder"] for run in sweep_file(more)["runs"]] == [run["folder"] for run in written["runs"]]
    assert [Path(run["folder"], "records.jsonl").read_bytes() for run in written["runs"]] == before
    assert loads(tmp_path) == num_sessions, "nobody wrote again"


def test_isolated_runs_measure_their_speed(tmp_path: Path) -> None:
    done = server().run(command(tmp_path, "-m", "method=window,random", "share_prefill=false", "limit=1"))
    runs = sweep_file(done)["runs"]
    assert [run["group"] for run in runs] == [0, 1]
    ledgers = [record.ledger for run in runs for record in read_records(Path(run["folder"])).values()]
    assert all(ledger["num_arms"] == 1 and ledger["tpot_s"] for ledger in ledgers)


def outcome(results: Path) -> dict[str, Any]:
    """Predictions of all runs, and how often each sample was answered."""
    files = [Path(path) for path in glob(str(results / "*/*/*/*/records.jsonl"))]
    lines = {f"{path.parts[-3]}/{path.parts[-2]}": read_lines(path).records for path in files}
    assert all(set(Counter(r.id for r in records).values()) == {1} for records in lines.values()), "answered twice"
    return {name: {r.id: (r.prediction, r.score) for r in records} for name, records in lines.items()}


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["-m", "method=full,window,random", "budget=0.1,0.2", "limit=4"]
    whole = server().run(command(tmp_path / "whole", *words))
    killed = command(tmp_path / "killed", *words)
    for number, num_lines in ((SIGKILL, 3), (SIGINT, 11)):
        child = server().start(killed)
        until(lambda least=num_lines: num_answers(tmp_path / "killed") >= least)  # type: ignore[misc]
        child.kill(number)
        ended = child.wait()
        assert ended.code == (-SIGKILL if number is SIGKILL else 130)
    assert "run again to resume" in ended.err and ended.err.count("\n") == 1
    statuses = {run["status"] for run in json.loads(Path(last_sweep(tmp_path / "killed")).read_text())["runs"]}
    assert statuses == {"waiting"}
    done = server().run(killed)
    assert (done.code, done.err) == (0, "")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert table(done) == table(whole)


def num_answers(results: Path) -> int:
    return sum(Path(path).read_bytes().count(b"\n") for path in glob(str(results / "*/*/*/*/records.jsonl")))


def last_sweep(results: Path) -> str:
    return sorted(glob(str(results / "sweeps/*/sweep.json")))[-1]


def table(ended: Ended) -> list[str]:
    return ended.out.splitlines()[:-1]


EXPERIMENT = {
    "budget": 0.3,
    "sweep": {
        "arms": {"Full": ["method=full"], "Window": ["method=window"], "A (fixed)": ["method=random", "budget=0.4"]},
        "grid": {"task": "qasper,trec", "budget": "0.1,0.2"},
    },
    "table": {"title": "a table"},
}


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an experiment called `trial`."""
    folder = tmp_path / "configs"
    for group in ("experiment", "method", "task"):
        (folder / group).mkdir(parents=True)
        for name in choices(group):
            (folder / group / f"{name}.yaml").touch()
    monkeypatch.setattr("configs.experiments.FOLDER", folder)
    monkeypatch.setattr("configs.arguments.FOLDER", folder)
    path = folder / "experiment" / "trial.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    return path


def test_an_experiment_is_arms_times_grid(experiment: Path) -> None:
    found = expand(["experiment=trial", "limit=1"])
    assert len(found) == 2 * 2 * 2 + 2 and is_experiment(["experiment=trial"])
    assert found[0] == JobWords("Full", ("task=qasper", "budget=0.1", "method=full", "experiment=trial", "limit=1"))
    fixed = [job for job in found if job.label == "A (fixed)"]
    assert [dict(word.split("=") for word in job.words)["budget"] for job in fixed] == ["0.4", "0.4"]


def test_the_command_line_wins_over_an_experiment(experiment: Path) -> None:
    found = expand(["experiment=trial", "task=lcc", "budget=0.5,0.6"])
    assert {(d["task"], d["budget"]) for job in found if (d := dict(word.split("=") for word in job.words))} == {
        ("lcc", "0.5"),
        ("lcc", "0.6"),
    }
    assert [job.label for job in found] == ["Full", "Window", "A (fixed)"] * 2


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"arms": {"A": "method=full"}}, ("sweep.arms.A is 'method=full'", "list")),
        ({"arms": {"A": ["method=full,window"]}}, ("sweep.arms.A", "several values", "grid")),
        ({"arms": {"A": ["method=foo"]}}, ("method=foo is unknown",)),
        ({"grid": {"budget": [0.1, 0.2]}}, ("sweep.grid.budget", '"0.1,0.2"')),
        ({"armss": {}}, ("takes arms and grid",)),
    ],
)
def test_a_malformed_experiment_is_one_line(experiment: Path, change: dict[str, Any], parts: tuple[str, ...]) -> None:
    experiment.write_text(yaml.safe_dump({"sweep": change}))
    with pytest.raises(ValueError) as caught:
        expand(["experiment=trial"])
    assert all(part in str(caught.value) for part in parts), caught.value


def test_an_experiment_without_a_sweep_is_settings(experiment: Path) -> None:
    experiment.write_text("budget: 0.3\n")
    assert not is_experiment(["experiment=trial"]) and expand(["experiment=trial"])[0].label == ""


def test_the_experiments_that_are_there_are_sweeps() -> None:
    for name in choices("experiment"):
        found = sweep_of(name)
        assert found is None or found.arms


@pytest.mark.slow
def test_an_experiment_runs_without_a_flag(tmp_path: Path) -> None:
    words = ["experiment=miniature", "task=narrativeqa", "budget=0.1", "limit=1"]
    done = server().run(command(tmp_path, *words))
    assert done.code == 0, done.err
    runs = sweep_file(done)["runs"]
    assert len(runs) == len(sweep_of("miniature").arms) and {run["group"] for run in runs} == {0}  # type: ignore[union-attr]
    assert [run["label"] for run in runs] == list(sweep_of("miniature").arms)  # type: ignore[union-attr]


def test_two_sweeps_at_one_moment_have_two_folders(tmp_path: Path) -> None:
    made = [SweepFolder.make(tmp_path, ["api_key=secret"], [Entry(0, "", ("a=b",))]) for _ in range(3)]
    assert len({sweep.path for sweep in made}) == 3
    assert "secret" not in (made[0].path / "sweep.json").read_text()
