"""`task=` takes names of sets of tasks: they are sweeps, with and without -m."""

from __future__ import annotations

import pytest

from configs.arguments import choices, has_suite, jobs, parse, readable
from configs.compose import compose_config
from configs.experiments import expand
from eval.task_sets import SUITES, TASK_SETS, covered, task_set
from run import usage
from scripts.list import main as list_names


def test_the_sets_are_those_that_their_names_say() -> None:
    for name, tasks in SUITES.items():
        assert set(tasks) <= set(choices("task")) and len(set(tasks)) == len(tasks)
        number = name.rpartition("_")[2]
        assert not number.isdigit() or len(tasks) == int(number), name
        assert task_set(name) == tasks
    assert not set(SUITES) & set(choices("task")), "a name is a task or a suite"
    assert SUITES["longbench_14"] == TASK_SETS["pqcache14"] and SUITES["longbench_16"] == TASK_SETS["kv16"]


def test_a_table_says_a_set_once() -> None:
    assert "longbench_16" not in covered(SUITES["longbench_21"], miniature=False)
    assert {"kv16", "longbench_21"} <= set(covered(SUITES["longbench_21"], miniature=False))
    assert list(covered(SUITES["ruler_13"], miniature=False)) == ["ruler_13"]


def test_a_suite_is_its_tasks() -> None:
    found = [job.words for job in expand(["task=ruler_13", "budget=0.1,0.2"])]
    assert found == [(f"task={task}", f"budget={share}") for task in SUITES["ruler_13"] for share in ("0.1", "0.2")]
    assert jobs(["task='ruler_13'"]) == jobs(["task=ruler_13"])


def test_a_task_of_two_suites_is_asked_once() -> None:
    found = [word.partition("=")[2] for [word] in jobs(["task=lcc,longbench_14,longbench_16"])]
    assert found == ["lcc", *SUITES["longbench_14"], "repobench-p"]


def test_an_experiment_is_asked_on_a_suite() -> None:
    found = expand(["experiment=kivi_longbench", "task=multi_doc_qa"])
    assert {word for job in found for word in job.words if word.startswith("task=")} == {
        f"task={task}" for task in SUITES["multi_doc_qa"]
    }


@pytest.mark.parametrize(
    ("words", "is_sweep"),
    [
        (["task=ruler_13"], True),
        (["task=qasper,kv16"], True),
        (["task=qasper", "limit=1"], False),
        (["results=kv16"], False),
    ],
)
def test_a_suite_is_a_sweep_without_a_flag(words: list[str], is_sweep: bool) -> None:
    assert has_suite(words) is is_sweep


def test_hydras_launchers_get_its_tasks() -> None:
    assert readable("task=multi_doc_qa", sweep=True) == "task=hotpotqa,2wikimqa,musique"


def test_one_task_is_wanted_where_one_run_is() -> None:
    with pytest.raises(ValueError) as caught:
        compose_config(["task=code"])
    assert (
        str(caught.value) == "task=code is several tasks, which only run.py takes at once; give one of lcc,repobench-p"
    )


def test_a_mistyped_suite_is_guessed() -> None:
    with pytest.raises(ValueError, match=r"task=ruler13 is unknown \(did you mean ruler_13\?\); allowed are .*vt"):
        parse("task=ruler13")


def test_help_and_list_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_names(["suites"]) == 0
    said = capsys.readouterr().out
    shown = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    for name, tasks in SUITES.items():
        assert name in usage() and ", ".join(tasks) in shown[name]
