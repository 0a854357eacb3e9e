"""The 21 task files say what LongBench says, to the letter."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from data.base import Task
from data.longbench import git_blob_sha1
from eval.metrics import METRICS
from scripts.score import TASKS, read_tasks

SHARED = Path(__file__).resolve().parents[2] / "shared" / "longbench"
# The order of LongBench's own config files.
OFFICIAL_ORDER = """narrativeqa qasper multifieldqa_en multifieldqa_zh hotpotqa 2wikimqa musique dureader gov_report
qmsum multi_news vcsum trec triviaqa samsum lsht passage_count passage_retrieval_en passage_retrieval_zh lcc
repobench-p"""
E_TASKS = """qasper multifieldqa_en hotpotqa 2wikimqa gov_report multi_news trec triviaqa samsum passage_count
passage_retrieval_en lcc repobench-p"""


def plain(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_the_21_tasks_each_under_its_name() -> None:
    tasks = read_tasks()
    assert sorted(tasks) == sorted(OFFICIAL_ORDER.split())
    assert all(task.name == name for name, task in tasks.items())
    assert sum(task.num_rows for task in tasks.values()) == 4750


def test_the_prompts_are_the_official_file_byte_for_byte() -> None:
    prompts = {name: read_tasks()[name].prompt for name in OFFICIAL_ORDER.split()}
    official = json.dumps(prompts, ensure_ascii=False, indent=4).encode()
    assert git_blob_sha1(official) == "1c85f6bc0f0df4e42131aa49a867797ee7043ecf"  # config/dataset2prompt.json


@pytest.mark.parametrize("name", OFFICIAL_ORDER.split())
def test_a_task_file_is_plain_and_complete(name: str) -> None:
    text = (TASKS / f"{name}.yaml").read_text(encoding="utf-8")
    first, second = text.split("\n")[:2]
    assert first.startswith("# ") and first.endswith(".") and not second.startswith("#")
    assert all(line == line.rstrip() for line in text.split("\n")), "an editor would strip this blank"
    task = read_tasks()[name]
    allowed = {field.name for field in fields(Task)} - {"e", "extract"}
    assert set(plain(name)) <= allowed
    assert plain(name) == OmegaConf.to_container(OmegaConf.load(TASKS / f"{name}.yaml"), resolve=True)
    assert task.metric in METRICS
    assert task.blob is not None and len(task.blob) == 40
    assert task.prompt.format(context="<c>", input="<i>").count("<c>") == 1


def test_the_exceptions_are_the_official_ones() -> None:
    tasks = read_tasks()
    few_shot = {"trec", "triviaqa", "samsum", "lsht"}
    assert {name for name, task in tasks.items() if task.first_line} == few_shot
    assert {name for name, task in tasks.items() if not task.chat} == few_shot | {"lcc", "repobench-p"}
    assert {name for name, task in tasks.items() if task.newline_stop} == {"samsum"}
    assert {name for name, task in tasks.items() if task.blob_e is not None} == set(E_TASKS.split())
    assert not any(task.e or task.extract for task in tasks.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference table is not beside the repository")
def test_every_field_is_that_of_the_reference_table() -> None:
    table = json.loads((SHARED / "tasks.json").read_text(encoding="utf-8"))
    assert set(table) == set(OFFICIAL_ORDER.split())
    for name, task in read_tasks().items():
        row = table[name]
        expected = Task(
            name=name,
            category=row["category"],
            language=row["language"],
            metric=row["metric"],
            max_new_tokens=row["max_gen"],
            num_rows=row["n"],
            prompt=row["prompt"],
            chat=row["chat_template"],
            first_line=row["first_line_only_at_scoring"],
            newline_stop=row["newline_is_eos"],
            blob=row["git_blob_sha1"],
            blob_e=row["git_blob_sha1_e"],
        )
        assert task == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference table is not beside the repository")
def test_the_hashes_are_those_of_the_34_official_files() -> None:
    published = json.loads((SHARED / "git_blob_sha1.json").read_text(encoding="utf-8"))
    tasks = read_tasks().values()
    found = {f"{task.name}.jsonl": task.blob for task in tasks}
    found |= {f"{task.name}_e.jsonl": task.blob_e for task in tasks if task.blob_e is not None}
    assert found == published
