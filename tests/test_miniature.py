"""The miniature's rows are the generated ones, and only what is asked for is scored."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tokenizers import Tokenizer

from data import miniature, miniature_kinds
from data.base import Miniature, Task
from data.longbench import git_blob_sha1
from eval.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
NAMES = tuple(miniature_kinds.KINDS)
FIELDS = ["input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"]
# sha256 of the committed files. Scores are comparable only between equal ones.
COMMITTED = {
    "hotpotqa": "1b21b34a9d55190d08d27f11532bfc9afcbfebfefedfddcac408ddc02011becc",
    "lcc": "46362eada10208b4161d66d846daad4ec101b07a008482cd58dd09b4b3a28a81",
    "musique": "f1727f007841a7b151843cc4347dc657712c1bba82d05bdaa7ae96a536fe5912",
    "narrativeqa": "75fad3c19146e0719bdfab552705149291a80b701fd81db6f482d3a4d665033a",
    "passage_retrieval_en": "5830941db66ea5cde8ff2ae0d87a9ad90822a41914f5a8a289d22ade4e05a482",
    "qasper": "5d8443728a87bc5c6984a59138e770cb25db822500e7a7bb2e35266e822c5663",
    "qmsum": "2d427aff93962b3df2a93352910834b25295b945a578602daf094da20e6369d0",
    "trec": "c2ee997df5b552668e3efabc13f89bb3401fee22cfbaf0faba334836ed03bab7",
}


@cache
def task(name: str) -> Task:
    fields = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "task" / f"{name}.yaml"))
    assert isinstance(fields, dict)
    block = Miniature(**{str(key): value for key, value in fields.pop("miniature").items()})
    return Task(**{str(key): value for key, value in fields.items()}, miniature=block)


@cache
def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in miniature.committed(name).read_text(encoding="utf-8").splitlines()]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(miniature_kinds.TOKENIZER))


def asked(name: str) -> list[miniature_kinds.Question]:
    return [miniature.question(name, 0, index) for index in range(24)]


def values(name: str, prediction: str) -> str:
    extract = task(name).small().extract
    assert extract is not None
    return " ".join(re.findall(extract, prediction))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_rows_are_the_generated_ones(name: str) -> None:
    data = miniature.committed(name).read_bytes()
    assert data == miniature.text(name).encode()
    assert hashlib.sha256(data).hexdigest() == COMMITTED[name]


def test_every_committed_file_is_small_and_has_a_generator() -> None:
    paths = sorted(miniature.FOLDER.glob("*.jsonl"))
    assert [path.stem for path in paths] == sorted(NAMES) == sorted(COMMITTED)
    assert sum(path.stat().st_size for path in paths) < 3_000_000


def test_the_script_checks_the_committed_files() -> None:
    command = [sys.executable, "-m", "scripts.make_miniature", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(NAMES)} files, 0 written\n"), done.stderr


def test_another_seed_gives_other_rows() -> None:
    assert miniature.text("musique", seed=1) != miniature.text("musique")


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_the_fields_of_longbench(name: str) -> None:
    assert len(rows(name)) == len({row["_id"] for row in rows(name)}) == 24
    for row in rows(name):
        assert list(row) == FIELDS
        assert (row["dataset"], len(row["_id"]), len(row["answers"])) == (name, 48, 1)
        assert (row["all_classes"] is not None) == (name == "trec")


@pytest.mark.parametrize("name", NAMES)
def test_prompts_fit_the_embedded_model(name: str) -> None:
    small = task(name).small()
    for row in rows(name):
        assert 1000 <= len(tokenizer().encode(row["context"]).ids) <= 4000
        prompt = tokenizer().encode(small.prompt.format(**row)).ids
        assert tokenizer().token_to_id("<unk>") not in prompt
        assert len(prompt) + small.max_new_tokens < 4096


@pytest.mark.parametrize("name", NAMES)
def test_what_the_model_should_say_scores_full_and_just_fits(name: str) -> None:
    small = task(name).small()
    for question, row in zip(asked(name), rows(name), strict=True):
        scored = values(name, question.spoken)
        assert METRICS[small.metric](scored, row["answers"][0], row["all_classes"]) == pytest.approx(1.0)
        assert name == "passage_retrieval_en" or [scored] == row["answers"]
        assert len(scored.split()) >= 4
        assert len(question.spoken.split()) == small.max_new_tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_question_gives_no_points(name: str) -> None:
    small = task(name).small()
    for question, row in zip(asked(name), rows(name), strict=True):
        scored = values(name, question.spoken).split()
        told = small.prompt.format(context="", input=row["input"])
        assert not set(scored) & set(told.split())
        # Prefill is dense, so the first generated token is free.
        assert question.spoken.split()[0] not in scored
        silent = METRICS[small.metric](values(name, told), row["answers"][0], row["all_classes"])
        assert silent == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_stands_once_in_the_context(name: str) -> None:
    for question, row in zip(asked(name), rows(name), strict=True):
        for fact in set(question.facts):
            key = " ".join(fact[: next(i for i, word in enumerate(fact) if word in ("is", "->", "=")) + 1])
            assert f" {row['context']} ".count(f" {key} ") == 1, key


def test_words_are_told_apart_by_role() -> None:
    words = miniature_kinds.words()
    roles = [words.names, words.values, words.filler, words.attributes, words.relations, words.symbols]
    assert [len(role) for role in roles] == [128, 160, 128, 23, 8, 96]
    assert len(set().union(*roles)) == sum(map(len, roles))


def test_loading_names_the_source_and_keeps_the_order() -> None:
    dataset = miniature.load(task("trec"), limit=3)
    assert (len(dataset), dataset.source, dataset.official, dataset.miniature) == (3, "miniature", None, True)
    assert dataset.revision == git_blob_sha1(miniature.committed("trec").read_bytes())
    assert [sample.id for sample in dataset] == [row["_id"] for row in rows("trec")[:3]]
    assert len(miniature.load(task("trec"))) == 24


def test_wrong_requests_are_refused() -> None:
    bare = Task("gov_report", "summarization", "en", "rouge", 512, 200, "{context}")
    with pytest.raises(ValueError, match="no miniature rows for task gov_report"):
        miniature.load(bare)
    with pytest.raises(ValueError, match="no miniature of task 'gov_report'; allowed: narrativeqa"):
        miniature.generate("gov_report")
    with pytest.raises(ValueError, match="limit is 0"):
        miniature.load(task("trec"), limit=0)
