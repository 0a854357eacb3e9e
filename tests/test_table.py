"""A table end to end: ours and published side by side, and a refusal for exactly the cells that are not complete."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import run
from configs.arguments import FOLDER, choices, parse
from configs.compose import compose_config, job
from configs.experiments import expand, sweep_of
from configs.many import composed
from data.miniature import FORMS
from eval.job import Job, Rows, prepare
from eval.lookup import rows_of
from eval.paired import Estimate
from eval.published import FOLDER as PUBLISHED
from eval.published import Published, read_published
from eval.records import Record
from eval.run_file import enter
from eval.table import verdict
from eval.table_text import Section, latex, markdown, sections
from scripts import table

SMALL: dict[str, Any] = {
    "sweep": {
        "arms": {"Full": ["method=full"], "Window": ["method=window"]},
        "grid": {"task": "narrativeqa,qasper", "budget": "0.1,0.2"},
    },
    "table": {"title": "Small", "averages": ["both"], "task_sets": {"both": ["narrativeqa", "qasper"]}},
}
COLUMNS = "paper,arxiv,table,model,method,budget,task,score,protocol,source,grade"
LINE = "P,,Table 1,tiny,{},{},multifieldqa_en,{},longbench_no_chat,https://example.org/p,paper\n"
UNPUBLISHED = {"pqcache_needle"}  # no score of these figures is known
parsed = cache(parse)  # the words of hundreds of jobs are a few dozen
CELLS = {("Full", ""), ("Window", "0.1"), ("Window", "0.2")}


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the configuration that experiments of tests are added to."""
    folder = tmp_path_factory.mktemp("configs") / "configs"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    add(folder, "small", SMALL)
    return folder


@pytest.fixture(autouse=True)
def own_configs(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(configs, monkeypatch)


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("arguments", "compose", "experiments"):
        monkeypatch.setattr(f"configs.{module}.FOLDER", folder)
    for module in ("experiments", "many"):
        monkeypatch.setattr(f"configs.{module}.parse", parsed)
    monkeypatch.setattr(table, "CONFIGS", folder)


def add(folder: Path, name: str, content: dict[str, Any]) -> str:
    path = folder / "experiment" / f"{name}.yaml"
    path.write_text("# @package _global_\n# For tests.\n" + yaml.safe_dump(content, sort_keys=False))
    return name


@pytest.fixture(scope="session")
def asked(configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results of the small experiment, two samples a task, from an empty folder."""
    results = tmp_path_factory.mktemp("asked") / "results"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(configs, monkeypatch)
        assert run.main(["experiment=small", "limit=2", f"results={results}", "progress=false"]) == 0
    yield results


@pytest.fixture
def results(asked: Path, tmp_path: Path) -> Path:
    """The same results, to be damaged."""
    shutil.copytree(asked, tmp_path / "results")
    return tmp_path / "results"


class Printed:
    """What one `python -m scripts.table` printed, returned and wrote."""

    def __init__(self, code: int, out: str, err: str, rows: list[dict[str, str]]) -> None:
        self.code, self.out, self.err, self.rows = code, out, err, rows

    @property
    def refused(self) -> dict[tuple[str, str, str], str]:
        return {(row["method"], row["budget"], row["task"]): row["refusal"] for row in self.rows if row["refusal"]}

    def row(self, method: str, task: str) -> dict[str, str]:
        return next(row for row in self.rows if (row["method"], row["task"]) == (method, task))


def show(capsys: pytest.CaptureFixture[str], tmp_path: Path, *argv: str) -> Printed:
    capsys.readouterr()
    path = tmp_path / "table.csv"
    code = table.main([*argv, "--csv", str(path)])
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return Printed(code, *capsys.readouterr(), rows)


def records_of(results: Path, method: str, task: str, budget: float | None) -> Path:
    """The records file of one run."""
    for path in results.glob(f"tiny/{task}/{method}/*/run.json"):
        if json.loads(path.read_text())["config"]["budget"] == budget:
            return path.parent / "records.jsonl"
    raise AssertionError("no such run")


def test_a_complete_table(asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = show(capsys, tmp_path, "small", "limit=2", f"results={asked}")
    assert shown.code == 0 and not shown.refused and "Refused" not in shown.out
    assert {(row["method"], row["budget"]) for row in shown.rows} == CELLS
    assert {row["task"] for row in shown.rows} == {"narrativeqa", "qasper", "both"} and len(shown.rows) == 9
    for path in asked.glob("tiny/*/window/*/scores.json"):
        scores = json.loads(path.read_text())
        ours = [
            r
            for r in shown.rows
            if (r["method"], r["task"], r["budget"]) == ("Window", scores["task"], str(scores["budget"]))
        ]
        assert [row["ours"] for row in ours] == [f"{scores['score']:.2f}"] and ours[0]["n"] == "2"
    for label, budget in CELLS:
        a, b, mean = (float(r["ours"]) for r in shown.rows if (r["method"], r["budget"]) == (label, budget))
        assert mean == pytest.approx((a + b) / 2, abs=0.011)


def test_costs_are_columns_of_means_over_the_tasks(
    asked: Path, configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = ["attended", "resident", "moved"]
    name = add(configs, "costly", SMALL | {"table": SMALL["table"] | {"costs": costs}})
    page = tmp_path / "t.md"
    shown = show(capsys, tmp_path, name, "limit=2", f"results={asked}", "--markdown", str(page))
    assert shown.code == 0 and "means over the tasks" in shown.out and "bytes read a step" in shown.out
    small = json.loads(next(asked.glob("tiny/qasper/full/*/scores.json")).read_text())["ledger"]
    assert shown.row("Full", "qasper")["attended"] == f"{small['attended_tokens']['mean']:.2f}"
    assert shown.row("Full", "qasper")["resident"] == f"{small['resident']['device']['mean']:.2f}"
    for key in costs:
        one, other, both = (float(shown.row("Full", task)[key]) for task in ("narrativeqa", "qasper", "both"))
        assert both == pytest.approx((one + other) / 2, abs=0.011)
    [line] = [line for line in page.read_text().splitlines() if line.startswith("| Full")]
    assert f"| {float(shown.row('Full', 'both')['attended']):,.0f} |" in line and line.count(" KiB ") == 0
    assert line.count(" MiB |") == 2  # resident, read a step


def test_costs_of_a_refused_row_are_refused(results: Path, configs: Path, tmp_path: Path) -> None:
    name = add(configs, "costly", SMALL | {"table": SMALL["table"] | {"costs": ["moved"]}})
    records_of(results, "window", "qasper", 0.2).write_text("")
    spec, lines = table.table(name, ["limit=2", f"results={results}"])
    rows = {row[:2]: row[-1] for row in sections(spec, lines)[0].rows}
    assert rows["Window", "0.2"] == "refused" and rows["Window", "0.1"].endswith("KiB")


def test_generated_rows_are_labelled_and_compared_with_nothing(
    asked: Path, configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the named file claims to hold scores of this very model, label, budget and task."""
    line = (
        LINE.replace("multifieldqa_en", "qasper").replace("longbench_no_chat", "{}").format("Full", "", 5, "longbench")
    )
    (tmp_path / "small.csv").write_text(f"{COLUMNS}\n{line}{line.replace('longbench', 'longbench_no_chat')}")
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    name = add(configs, "claims", SMALL | {"table": SMALL["table"] | {"published": "small.csv", "differences": ["no"]}})
    shown = show(capsys, tmp_path, name, "limit=2", f"results={asked}")
    assert shown.code == 0 and "MINIATURE" in shown.out and "ublished" not in shown.out
    assert not {"published", "difference", "verdict"} & set(shown.rows[0])
    assert {row["data"] for row in shown.rows} == {"miniature"}
    lines = table.table(name, ["limit=2", f"results={asked}"])[1]
    assert {line.published for line in lines} == {None}


def test_a_deleted_record_refuses_its_cells_and_no_other(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = show(capsys, tmp_path, "small", "limit=2", f"results={results}").rows
    path = records_of(results, "window", "qasper", 0.2)
    path.write_text(path.read_text().split("\n", 1)[1])
    shown = show(capsys, tmp_path, "small", "limit=2", f"results={results}")
    assert shown.code == 2 and shown.refused == {
        ("Window", "0.2", "qasper"): "1 of 2 samples missing",
        ("Window", "0.2", "both"): "an average of 2 tasks, lacking qasper",
    }
    assert "2 of 9 cells are refused" in shown.out and "run.py experiment=small limit=2" in shown.out
    kept = [row for row in shown.rows if not row["refusal"]]
    assert len(kept) == 7 and all(row in before for row in kept)


def test_a_failed_sample_refuses_its_cell(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = records_of(results, "full", "narrativeqa", None)
    first, *others = (json.loads(line) for line in path.read_text().splitlines())
    failed = Record.failed(first["id"], "out of luck", first["length"]).to_json()
    path.write_text("".join(json.dumps(row) + "\n" for row in (failed, *others)))
    shown = show(capsys, tmp_path, "small", "limit=2", f"results={results}")
    assert shown.refused["Full", "", "narrativeqa"] == "1 of 2 samples failed" and len(shown.refused) == 2


def test_damage_and_another_config_refuse_a_cell(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, foreign = records_of(results, "window", "qasper", 0.1), records_of(results, "window", "qasper", 0.2)
    broken.write_text("{" + broken.read_text())
    entry = json.loads((foreign.parent / "run.json").read_text())
    entry["config"]["seed"] = 1
    (foreign.parent / "run.json").write_text(json.dumps(entry))
    shown = show(capsys, tmp_path, "small", "limit=2", f"results={results}")
    assert "records.jsonl:1 is no JSON" in shown.refused["Window", "0.1", "qasper"]
    assert "run of another config" in shown.refused["Window", "0.2", "qasper"] and len(shown.refused) == 4


def test_an_empty_folder_and_runs_of_other_settings(
    asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = show(capsys, tmp_path, "small", "limit=2", f"results={tmp_path / 'none'}")
    assert nothing.code == 2 and len(nothing.refused) == 9
    assert set(nothing.refused.values()) == {"no run", "an average of 2 tasks, lacking all"}
    other = show(capsys, tmp_path, "small", "limit=2", "seed=1", f"results={asked}")
    assert other.refused["Window", "0.2", "qasper"] == "no run; the nearest of 2 others differs in seed"
    more = show(capsys, tmp_path, "small", "limit=3", f"results={asked}")
    assert more.refused["Full", "", "qasper"] == "1 of 3 samples missing"
    fewer = show(capsys, tmp_path, "small", "limit=1", f"results={asked}")
    assert fewer.code == 0 and {row["n"] for row in fewer.rows} == {"1", "2"}  # the average counts both tasks'


def test_rows_that_cannot_be_had_are_asked_for_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def nowhere(job: Job) -> Rows:
        asked.append(job.task.name)
        raise ValueError("no network")

    monkeypatch.setattr("eval.table.rows_of", nowhere)
    shown = show(capsys, tmp_path, "small", f"results={tmp_path}")
    assert sorted(asked) == ["narrativeqa", "qasper"] and shown.refused["Window", "0.2", "qasper"] == "no network"


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"A": ["method=window"], "B": ["method=window"]}, "A and B are the same run"),
        ({"A": ["method=window"], "B": ["method=window", "seed=0"]}, "A 0.1 qasper and B 0.1 qasper are the same run"),
        ({"A": ["method=window", "budget=0.3"]}, ""),
        ({"A": ["method=window"], "B": ["method=full", "protocol=question_after"]}, "mixes protocols"),
        ({"A": ["method=window"], "B": ["method=full", "data=hub"]}, "mixes data (LongBench, miniature)"),
    ],
)
def test_label_collisions_and_mixtures(
    configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arms: dict[str, list[str]], said: str
) -> None:
    name = add(configs, "mixed", SMALL | {"sweep": {"arms": arms, "grid": {"task": "qasper", "budget": "0.1,0.2"}}})
    shown = show(capsys, tmp_path, name, f"results={tmp_path / 'none'}")
    if said:
        assert shown.code == 1 and shown.out == "" and shown.err.count("\n") == 1 and said in shown.err
    else:
        assert [row["budget"] for row in shown.rows] == ["0.3", "0.3"]  # the arm's own budget, once, and its average


def test_mistakes_are_one_line(configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(configs, "bare", {"seed": 1})
    add(configs, "sweeping", {"sweep": SMALL["sweep"]})
    add(configs, "wrong", SMALL | {"table": {"title": "x", "average": ["kv16"]}})
    add(configs, "set", SMALL | {"table": {"title": "x", "averages": ["kv17"]}})
    add(configs, "cost", SMALL | {"table": {"title": "x", "costs": ["bytes"]}})
    add(configs, "others", SMALL | {"sweep": {"arms": "smal"}})
    add(configs, "own", SMALL | {"sweep": {"arms": "own"}})
    for argv, *said in (
        (["miniatur"], "experiment=miniatur is unknown", "pqcache_llama31", "did you mean miniature?"),
        (["bare"], "experiment=bare has no sweep.arms"),
        (["sweeping"], "experiment=sweeping has no node table"),
        (["wrong"], "table.average is not a field", "did you mean averages?"),
        (["set"], "task set kv17 is unknown; allowed are pqcache14, kv16"),
        (["cost"], "table.costs: bytes is unknown; allowed are attended, resident"),
        (["others"], "experiment others: sweep.arms is 'smal'; give LABEL: [words], or the name of an experiment"),
        (["own"], "experiment own: sweep.arms is 'own'"),
        (["small", "table.tolerance=9"], "only configs/experiment/small.yaml says"),
        (["small", "budgett=1"], "budgett is not a field"),
        (["small", "seed=0,1"], "two runs would stand in the cell Full narrativeqa"),
    ):
        shown = show(capsys, tmp_path, *argv)
        assert shown.code == 1 and shown.out == "" and shown.err.count("\n") == 1
        for part in said:
            assert part in shown.err


REAL: dict[str, Any] = {
    "data": "hub",
    "sweep": {
        "arms": {"Full": ["method=full"], "Window": ["method=window"]},
        "grid": {"task": "multifieldqa_en", "budget": "0.1"},
    },
    "table": {"title": "Real", "published": "small.csv", "tolerance": 1.0, "differences": ["They say please_"]},
}


@pytest.fixture
def real(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results as if the real multifieldqa_en had been asked: 150 records, half of them right, and no rows here."""
    add(configs, "real", REAL)
    (tmp_path / "small.csv").write_text(
        f"{COLUMNS}\n{LINE.format('Full', '', 47.0)}{LINE.format('Window', '0.1', 90.0)}"
    )
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    words = expand(["experiment=real", f"results={tmp_path}"])
    for made in composed([one.words for one in words], ()):
        work = prepare(made, rows_of(made))
        work.folder.mkdir(parents=True)
        short = made.method_name == "window"
        enter(work.folder, "tiny", "multifieldqa_en", made.method_name, work.config, {}, None)
        records = [
            Record(f"s{i}", "x", float(i % 2), 9, 1, "p", False, short, 9, {}, None, 0.1, f"c{i // 3}")
            for i in range(150)
        ]
        lines = "".join(json.dumps(record.to_json()) + "\n" for record in records)
        (work.folder / "records.jsonl").write_text(lines)
    return tmp_path


def test_real_rows_need_not_be_here_and_are_compared(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("real", f"results={real}", "--markdown", str(tmp_path / "t.md"), "--latex", str(tmp_path / "t.tex"))
    shown = show(capsys, tmp_path, *argv)
    full, window = shown.row("Full", "multifieldqa_en"), shown.row("Window", "multifieldqa_en")
    assert shown.code == 0 and (full["ours"], full["n"], full["data"]) == ("50.00", "150", "longbench")
    assert float(full["low"]) < 47 < float(full["high"])
    assert (full["published"], full["difference"], full["grade"]) == ("47.00", "3.00", "paper")
    assert full["verdict"] == "reproduced: within our interval"
    assert (full["dense"], window["dense"]) == ("0", "150") and "] 150 dense" in shown.out
    assert (window["difference"], window["verdict"]) == ("-40.00", "off by -40.00")
    for text in (shown.out, (tmp_path / "t.md").read_text(), (tmp_path / "t.tex").read_text()):
        assert "2 of 2 cells have a published value" in text and "off by -40.00" in text
        assert "https://example.org/p" in text and "They say please" in text
        assert "MINIATURE" not in text
    assert r"multifieldqa\_en" in (tmp_path / "t.tex").read_text()


def test_a_part_of_the_rows_is_not_compared(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = show(capsys, tmp_path, "real", f"results={real}", "limit=2")
    assert "150 records, 2 samples asked" in shown.refused["Full", "", "multifieldqa_en"]
    for path in real.glob("tiny/multifieldqa_en/*/*/records.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    shown = show(capsys, tmp_path, "real", f"results={real}", "limit=2")
    assert {row["verdict"] for row in shown.rows} == {"not compared: 2 samples are not the whole task"}
    shown = show(capsys, tmp_path, "real", f"results={real}")
    assert set(shown.refused.values()) == {"148 of 150 samples missing"}
    assert {row["verdict"] for row in shown.rows} == {"refused"}


@pytest.mark.parametrize(
    ("ours", "tolerance", "said"),
    [
        (Estimate(50, 40, 60, 9, 9, 9), 0.0, "reproduced: within our interval"),
        (Estimate(50, 49, 51, 9, 9, 9), 0.0, "off by +5.00"),
        (Estimate(50, 49, 51, 9, 9, 9), 5.0, "reproduced: within 5 points"),
        (Estimate(44, None, None, 1, 1, 0), 0.5, "off by -1.00"),
        (Estimate(45, None, None, 1, 1, 0), 0.0, "reproduced: within 0 points"),
    ],
)
def test_verdicts(ours: Estimate, tolerance: float, said: str) -> None:
    published = Published("P", "", "T", "m", "x", "", "qasper", 45.0, "longbench", "https://a", "paper")
    assert verdict(ours, published, tolerance) == said


def test_texts_are_escaped() -> None:
    parts = [Section("a_b & 5 %", ("x|y",), (("<script>",), ("a\\b{}",)))]
    assert markdown(parts).splitlines() == [
        r"## a\_b & 5 %",
        "",
        r"| x\|y |",
        "|---|",
        "| &lt;script> |",
        r"| a\b{} |",
    ]
    assert r"\caption{a\_b \& 5 \%}" in latex(parts) and r"a\textbackslash{}b\{\} \\" in latex(parts)


def test_arms_are_those_of_another_experiment(configs: Path) -> None:
    add(configs, "again", {"sweep": {"arms": "small", "grid": {"task": "trec"}}})
    found = expand(["experiment=again", "seed=1"])
    assert [(one.label, *one.words) for one in found] == [
        (label, "task=trec", f"method={label.lower()}", "experiment=again", "seed=1") for label in ("Full", "Window")
    ]


def test_many_jobs_are_composed_as_each_alone() -> None:
    given = ["experiment=small", "limit=2", "results=a"]
    words = [one.words for one in expand(given)]
    words += [
        ("method=window", "task=qasper"),
        ("method=window", "task=qasper", "budget=64tok", "task.first_line=true"),
    ]
    words += [("method=window", "task=qasper", "sink=null"), ("method=window", "task=trec", "local_share=0.25")]
    words = [one for one in words if "sink=null" not in one]
    assert list(composed(words, given)) == [job(compose_config(one), given) for one in words]


@pytest.mark.parametrize("name", choices("experiment"))
def test_shipped_experiments(name: str) -> None:
    sweep = sweep_of(name)
    jobs = expand([f"experiment={name}"])
    first = compose_config(jobs[0].words)
    spec = table.spec_of(name)
    assert sweep is not None and len({one.label for one in jobs}) == len(sweep.arms)
    tasks = {word for one in jobs for word in one.words if word.startswith("task=")}
    for members in spec.sets.values():
        assert {f"task={task}" for task in members} <= tasks
    model = job(first, ()).spec.name
    if name in ("miniature", "systems"):
        assert spec.published is None and {word.removeprefix("task=") for word in tasks} <= set(FORMS)
        assert set(sweep.arms) == set(choices("method")), "a row for every method"
        return
    assert spec.differences and spec.arxiv
    assert (spec.published is None) == (name in UNPUBLISHED)
    if spec.published is None:
        return
    lines = [line for line in read_published(PUBLISHED / spec.published) if line.model == model]
    budgets = {word.removeprefix("budget=") for one in jobs for word in one.words if word.startswith("budget=")}
    known = [line for line in lines if line.method in sweep.arms and line.budget in ("", *budgets)]
    assert bool(known) == (name not in ("pqcache_mistral", "pqcache_gsm8k")), "an arm's label is the published row's"
