"""Provenance: what is recorded, and what must never be."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eval.provenance import REDACTED, collect, git_state, redact


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    (root / "a.py").write_text("one\n")
    (root / ".gitignore").write_text("/results/\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def test_collect_is_plain_json_and_says_where_and_when(repository: Path) -> None:
    found = collect(["run.py", "seed=3"], device="NVIDIA H100", seed=3, root=repository)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["argv"], found["device"], found["seed"]) == (["run.py", "seed=3"], "NVIDIA H100", 3)
    assert len(found["git"]["commit"]) == 40 and found["git"]["dirty"] is False
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["started"])).total_seconds()) < 60
    assert found["packages"]["numpy"] and found["hostname"] and found["python"].startswith("3.")


def test_the_environment_is_not_dumped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRETSECRETSECRET")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JWT", "SECRETSECRET")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    found = collect([], device="cpu", seed=0, root=tmp_path)
    assert found["slurm"]["SLURM_JOB_ID"] == "4711"
    assert "SLURM_ARRAY_TASK_ID" not in found["slurm"]
    assert "SECRET" not in json.dumps(found)


def test_absent_packages_and_git_are_null(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setattr("eval.provenance.PACKAGES", ("numpy", "no-such-package-here"))
    monkeypatch.setenv("PATH", "")
    found = collect([], device="cpu", seed=0, root=repository)
    assert found["packages"]["no-such-package-here"] is None and found["packages"]["numpy"]
    assert found["git"] is None


def test_every_change_of_the_code_changes_the_diff_hash(repository: Path) -> None:
    clean = git_state(repository)
    assert clean is not None and clean["diff_hash"] is None
    (repository / "results").mkdir()
    (repository / "results" / "x.json").write_text("1")
    assert git_state(repository) == clean, "results are ignored"
    hashes = []
    for name, content in [("a.py", "two\n"), ("a.py", "three\n"), ("new.py", "x\n"), ("new.py", "y\n")]:
        (repository / name).write_text(content)
        state = git_state(repository)
        assert state is not None and state["dirty"] is True and state["commit"] == clean["commit"]
        hashes.append(state["diff_hash"])
    (repository / "new.py").rename(repository / "renamed.py")
    renamed = git_state(repository)
    assert renamed is not None
    assert len({*hashes, renamed["diff_hash"], None}) == 6
    (repository / "renamed.py").unlink()
    (repository / "a.py").write_text("two\n")
    again = git_state(repository)
    assert again is not None and again["diff_hash"] == hashes[0]


def test_a_repository_around_the_code_is_not_taken_for_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = repository / "vendored"
    inner.mkdir()
    assert git_state(inner) is None
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    assert git_state(tmp_path) is None


def test_a_repository_without_a_commit_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x")
    state = git_state(tmp_path)
    assert state is not None and state["commit"] is None and state["dirty"] is True and state["diff_hash"]


HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "argument",
    [
        "hub_token=abcdef",
        "+wandb.key=abcdef",
        "WANDB_API_KEY=abcdef",
        "--password=abcdef",
        f"wandb={HEX}",
        HEX,
        "model=hf_abcdefabcdefabcdefabcdef",
        "note='uses sk-proj-abcdefabcdefabcdef here'",
        "data=https://user:abcdef@example.org/x",
        "data=https://example.org/x?token=abcdef",
        "wandb={project:p,api_key:abcdef}",
        "x=ghp_abcdefABCDEF0123456789abcdef",
        "x=AbCdEf0123456789AbCdEf0123456789",
    ],
)
def test_keys_are_redacted(argument: str) -> None:
    text = redact(["run.py", argument])[1]
    assert REDACTED in text and "abcdef" not in text.lower()


@pytest.mark.parametrize(
    "argument",
    [
        "method=pqcache,h2o",
        "task.max_new_tokens=64",
        "budget=512tok",
        "tokenizer=gpt2",
        f"model.revision={HEX}",
        "model=gradientai/Meta-Llama-3-8B-Instruct-Gradient-1048k",
        "model=/data/models/DeepSeek-R1-Distill-Qwen-14B",
        "token=",
        "-m",
        "experiment=pqcache_table2",
        "method.keys=3",
        "data=https://example.org/x",
    ],
)
def test_ordinary_arguments_stay_readable(argument: str) -> None:
    assert redact([argument]) == [argument]


def test_a_key_after_its_flag_is_redacted_and_the_next_flag_is_not() -> None:
    assert redact(["--hf-token", "abc", "--limit", "3"]) == ["--hf-token", REDACTED, "--limit", "3"]
    assert redact(["--token", "--limit", "3"]) == ["--token", "--limit", "3"]
