"""The published scores in data/published: well-formed, each once, each with its source and grade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from configs.arguments import FOLDER as CONFIGS
from configs.arguments import choices
from eval.published import FOLDER, GRADES, Published, only, read_published
from eval.task_sets import TASK_SETS

FILES = sorted(FOLDER.glob("*.csv"))
COLUMNS = "paper,arxiv,table,model,method,budget,task,score,protocol,source,grade"
# Sets that only one paper averages over; its experiment defines them, or says that they are not known.
OWN_SETS = {"kivi15", "infinitebench_pqcache"}


def write(path: Path, *lines: str, columns: str = COLUMNS) -> Path:
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_lines(path: Path) -> None:
    lines = read_published(path)
    assert lines, "a file without scores"
    for line in lines:
        assert line.task in {*choices("task"), *TASK_SETS, *OWN_SETS}, line
        assert line.source.startswith("https://") and line.grade in GRADES
        assert not line.arxiv or len(line.arxiv.split(".")) == 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_no_number_stands_twice(path: Path) -> None:
    lines = read_published(path)
    keys = [(line.paper, line.table, line.source, *line.key) for line in lines]
    assert len(keys) == len(set(keys))


def experiments() -> list[str]:
    return [name for name in choices("experiment") if node(name).get("table", {}).get("published")]


def node(name: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())
    return found


@pytest.mark.parametrize("name", experiments())
def test_a_cell_of_an_experiment_has_one_published_number_at_most(name: str) -> None:
    lines = read_published(FOLDER / node(name)["table"]["published"])
    for line in lines:
        assert only(lines, line.key) == line


def averages() -> list[tuple[Published, Sequence[Published]]]:
    """Each published average over a named set, with the published scores of its tasks where all are known."""
    found: list[tuple[Published, Sequence[Published]]] = []
    for path in FILES:
        lines = read_published(path)
        for line in lines:
            parts = [
                other
                for task in TASK_SETS.get(line.task, ())
                for other in lines
                if (other.paper, other.model, other.method, other.budget, other.task)
                == (line.paper, line.model, line.method, line.budget, task)
            ]
            if parts and len(parts) == len(TASK_SETS[line.task]):
                found.append((line, parts))
    return found


def test_published_averages_are_those_of_the_published_tasks() -> None:
    """A slip in copying a table would show here."""
    wrong = {}
    for line, parts in averages():
        mean = sum(part.score for part in parts) / len(parts)
        if abs(mean - line.score) > 0.006:
            wrong[line.paper, line.model, line.method, line.budget] = (line.score, round(mean, 2))
    # The picture itself says so; the experiment pyramidkv_mistral tells its reader.
    assert wrong == {("PyramidKV", "mistral_7b", "FullKV", ""): (39.75, 41.13)}


def test_an_unknown_score_is_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.csv", "P,,T,m,x,,qasper,,longbench,https://a,paper", "P,,T,m,x,,trec,1,longbench,https://a,paper"
    )
    assert [line.task for line in read_published(path)] == ["trec"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("P,,T,m,x,,qasper,101,longbench,https://a,paper", "score=101.0 is out of range"),
        ("P,,T,m,x,,qasper,nan,longbench,https://a,paper", "out of range"),
        ("P,,T,m,x,,qasper,high,longbench,https://a,paper", "'high'"),
        ("P,,T,m,x,,qasper,1,other,https://a,paper", "protocol=other is unknown"),
        ("P,,T,m,x,,qasper,1,longbench,https://a,blog", "grade=blog is unknown; allowed are paper"),
        ("P,,T,m,x,,qasper,1,longbench,,paper", "source must not be empty"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"x\.csv:2: ") as error:
        read_published(write(tmp_path / "x.csv", line))
    assert said in str(error.value)


def test_other_columns_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.csv: its columns must be paper,arxiv"):
        read_published(write(tmp_path / "x.csv", columns="paper,score"))
    with pytest.raises(ValueError, match=r"no y.csv among the published scores; allowed are x.csv"):
        read_published(tmp_path / "y.csv")


def test_two_numbers_for_one_cell_are_refused(tmp_path: Path) -> None:
    lines = [f"P,,T,m,x,,qasper,{score},longbench,https://{score},paper" for score in (1, 2)]
    found = read_published(write(tmp_path / "x.csv", *lines))
    with pytest.raises(ValueError, match=r"2 published scores for m x qasper longbench .*https://1, https://2"):
        only(found, found[0].key)
