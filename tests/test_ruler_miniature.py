"""RULER in the closed vocabulary: rows exact to the token; and a run of the real text from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from configs.arguments import FOLDER
from configs.build import typed
from configs.compose import compose_config, job
from data.base import Dataset, Task
from data.ruler import rows
from data.tokens import Vocabulary
from eval.job import load_rows
from eval.task_sets import TASK_SETS
from tests.forks import server

MINIATURE = (
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multiquery", "vt"),
)


def rows_of(name: str, length: int, samples: int = 2) -> tuple[Task, Dataset]:
    """The task as miniature rows ask it, and its rows."""
    task = typed(Task, yaml.safe_load((FOLDER / "task" / f"{name}.yaml").read_text()), "task")
    assert task.ruler is not None
    made = replace(task, ruler=replace(task.ruler, length=length, miniature_samples=samples))
    return task.small(), rows.load(made, "miniature", Vocabulary("data/tiny").load())


@pytest.mark.parametrize("name", MINIATURE)
def test_miniature_rows_have_exactly_that_length(name: str) -> None:
    cut = Vocabulary("data/tiny").load()
    for length in (600, 4096):
        task, found = rows_of(name, length)
        assert found.miniature and len(found) == 2
        for row in found:
            assert len(cut(task.asked(row.context, row.input))) + task.max_new_tokens == row.length == length
            answers = row.answers[0].split("\n")
            assert len(answers) == {"niah_multiquery": 3, "vt": 4}.get(name, 1)
            assert all(answer in row.context for answer in answers)
    assert rows_of(name, 600) == rows_of(name, 600)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("single_1", 1, 1), ("multikey_1", 4, 4), ("multiquery", 4, 4), ("multikey_2", 100, 120)],
)
def test_a_miniature_haystack_hides_as_many_needles(name: str, least: int, most: int) -> None:
    for row in rows_of(f"niah_{name}", 1000)[1]:
        assert least <= row.context.count(" is") <= most


def test_a_row_without_room_for_its_facts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task.ruler.length=45 is too short for a row; give a longer one"):
        rows_of("niah_multikey_1", 45)


@pytest.mark.parametrize("name", sorted({*TASK_SETS["ruler_13"]} - {*MINIATURE}))
def test_what_the_closed_vocabulary_cannot_say_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"there are no miniature rows for task {name}; give data="):
        rows_of(name, 1000)


def test_samples_of_real_rows_do_not_act_on_miniature_ones() -> None:
    words = ["task=vt", "task.ruler.samples=3"]
    with pytest.raises(ValueError, match=r"task.ruler.samples does not act .* give task.ruler.miniature_samples"):
        load_rows(job(compose_config(words), words))


@pytest.mark.parametrize("protocol", [pytest.param("longbench", marks=pytest.mark.slow), "question_after"])
def test_a_model_is_asked_from_end_to_end(protocol: str, tmp_path: Path) -> None:
    """RULER's own text, for the embedded model's bytes: its answers are nothing, their scores are there."""
    done = server().run(
        [
            *("task=fwe", "data=hub", "task.ruler.length=1024", "task.ruler.samples=3", "limit=2"),
            *("method=window", "task.max_new_tokens=4", f"protocol={protocol}", f"results={tmp_path}"),
        ]
    )
    assert done.code == 0, done.err
    folder = Path(done.out.splitlines()[-1])
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["n"], scores["task"], scores["metric"], scores["miniature"]) == (2, "fwe", "match_all", False)
    assert scores["protocol"] == protocol and scores["score"] is not None
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    # BOS comes on top, and answers of four tokens in place of 128 leave room for more haystack.
    assert all(900 < record["num_prompt_tokens"] <= 1024 - 4 + 1 for record in records)
