"""Run folders: names, hashes, locks, resume after kills."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from eval.locks import FolderInUse, exclusive
from eval.records import Record, read_lines
from eval.run_file import NOT_HASHED, config_hash, read_run
from eval.run_folder import RunFolder, run_path, safe_name
from tests.test_records import answer

FORK = get_context("fork")  # a process that writes files needs no start-up of its own
CONFIG: dict[str, Any] = {
    "model": {"path": "org/name", "sink": 4},
    "method": {"name": "pqcache", "num_bits": 6, "layers": [0, 1]},
    "budget": 0.1,
    "seed": 0,
    "compensate": None,
    **dict.fromkeys(NOT_HASHED, "x"),
}


def open_run(results: Path, shard: int | None = None, **changes: Any) -> RunFolder:
    config = {**CONFIG, **changes}
    return RunFolder.open(results, "org/name", "qasper", "pqcache", config, {"argv": ["run.py"]}, shard)


def test_the_hash_moves_with_every_key_but_the_denied_ones() -> None:
    denied = (
        "results limit wandb shards share_prefill diagnose launcher dry_run progress diagnose_steps export_selections"
    )
    assert set(denied.split()) == NOT_HASHED
    base = config_hash(CONFIG)
    assert len(base) == 10 and set(base) <= set("0123456789abcdef")
    for key in CONFIG:
        same = config_hash({**CONFIG, key: "other"}) == base
        assert same == (key in NOT_HASHED), key
        assert (config_hash({name: CONFIG[name] for name in CONFIG if name != key}) == base) == (key in NOT_HASHED), key
    assert config_hash({**CONFIG, "a_new_knob": None}) != base


def test_the_hash_sees_nested_values_order_of_lists_and_denied_names_below_the_root() -> None:
    method = CONFIG["method"]
    variants = [
        CONFIG,
        {**CONFIG, "method": {**method, "num_bits": 7}},
        {**CONFIG, "method": {**method, "layers": [1, 0]}},
        {**CONFIG, "method": {**method, "limit": 3}},
        {**CONFIG, "budget": 0.1 + 1e-16},
        {**CONFIG, "budget": "0.1"},
        {**CONFIG, "seed": 0.0},
        {**CONFIG, "seed": False},
    ]
    assert len({config_hash(config) for config in variants}) == len(variants)
    assert config_hash(dict(reversed(CONFIG.items()))) == config_hash(CONFIG)
    assert config_hash({**CONFIG, "method": {**method, "layers": (0, 1)}}) == config_hash(CONFIG)


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert config_hash({"b": 0.1, "a": "é", "limit": 3}) == "417300d78a"


def test_the_hash_refuses_what_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match=r"config\.method\.x is nan"):
        config_hash({"method": {"x": float("nan")}})
    with pytest.raises(ValueError, match=r"config\.path is PosixPath"):
        config_hash({"path": Path("x")})


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("tiny", "tiny"),
        ("meta-llama/Llama-3.1-8B", "meta-llama--Llama-3.1-8B"),
        ("/data/models/llama 3/", "data--models--llama_3"),
        ("../../etc/passwd", "etc--passwd"),
        ("C:\\models\\x", "C_--models--x"),
        ("..hidden", "hidden"),
        ("a\nb\0c", "a_b_c"),
    ],
)
def test_names_become_one_safe_component(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_stay_apart_and_empty_ones_are_refused() -> None:
    long = [safe_name("m" * 300 + end) for end in "ab"]
    assert long[0] != long[1] and max(map(len, long)) <= 100
    for name in ("", "..", "///", " ", "./."):
        with pytest.raises(ValueError, match="cannot name a results folder"):
            safe_name(name)


def test_run_json_comes_first_and_each_session_is_kept(tmp_path: Path) -> None:
    with open_run(tmp_path, limit=5) as first:
        assert first.path == run_path(tmp_path, "org/name", "qasper", "pqcache", CONFIG)
        assert first.path.parent == tmp_path / "org--name" / "qasper" / "pqcache"
        assert first.records() == {}
    with open_run(tmp_path, limit=9) as second:
        run = read_run(second.path)
        assert run == second.run
    assert run.hash == second.path.name == config_hash(run.config)
    assert (run.model, run.task, run.method) == ("org/name", "qasper", "pqcache")
    assert [session["options"]["limit"] for session in run.sessions] == [5, 9]
    assert not NOT_HASHED & set(run.config)
    assert [session["provenance"] for session in run.sessions] == [{"argv": ["run.py"]}] * 2
    assert run.sessions[0]["pid"] == os.getpid()
    assert not list(second.path.glob(".*.tmp"))


def test_a_folder_of_another_config_is_refused_in_one_line(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        path = folder.path / "run.json"
    row = json.loads(path.read_text())
    row["config"]["budget"] = 0.2
    path.write_text(json.dumps(row))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another config \(differs in \['budget'\]\)") as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value) and path.read_bytes() == before
    path.write_text("{")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        open_run(tmp_path)


def test_records_without_run_json_are_refused(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        folder.append(answer("a"))
    (folder.path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"records but no run\.json"):
        open_run(tmp_path)
    with pytest.raises(ValueError, match="is no run folder"):
        read_run(folder.path)


def test_resume_skips_answers_and_asks_failures_again(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        folder.append(answer("a"))
        folder.append(Record.failed("b", "out of memory", 1))
    with open_run(tmp_path) as folder:
        assert folder.done() == {"a"}
        assert folder.records()["b"].error == "out of memory"
        folder.append(answer("b"))
        assert folder.done() == {"a", "b"}
    assert len(read_lines(folder.path / "records.jsonl").records) == 3


def test_a_failed_opening_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"cannot write .*run\.json: No space left") as caught:
            open_run(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.rglob(".*.tmp"))
    with open_run(tmp_path) as folder:
        assert len(folder.run.sessions) == 1


def keep_open(results: Path, shard: int | None, is_open: Event) -> None:
    with open_run(results, shard):
        is_open.set()
        time.sleep(60)


def hold(results: Path, shard: int | None) -> ForkProcess:
    is_open = FORK.Event()
    child = FORK.Process(target=keep_open, args=(results, shard, is_open))
    child.start()
    assert child.pid and is_open.wait(20)
    return child


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[dict[int | None, ForkProcess]]:
    children: dict[int | None, ForkProcess] = {}
    yield children
    for child in children.values():
        child.kill()
        child.join()


@pytest.mark.parametrize(("theirs", "ours"), [(None, None), (3, 3), (None, 0), (3, None)])
def test_a_second_writer_is_refused_until_the_first_is_killed(
    tmp_path: Path,
    holders: dict[int | None, ForkProcess],
    theirs: int | None,
    ours: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eval.locks._PROBE_S", 0.1)
    child = holders[theirs] = hold(tmp_path, theirs)
    path = run_path(tmp_path, "org/name", "qasper", "pqcache", CONFIG)
    with pytest.raises(FolderInUse) as caught:
        open_run(tmp_path, ours)
    text = str(caught.value)
    assert str(path) in text and f"process {child.pid} on " in text and "\n" not in text
    assert len(read_run(path).sessions) == 1
    child.kill()
    child.join()
    with open_run(tmp_path, ours) as folder:
        folder.append(answer("a"))


def test_shards_write_side_by_side_and_the_same_process_is_no_exception(
    tmp_path: Path, holders: dict[int | None, ForkProcess]
) -> None:
    holders[0] = hold(tmp_path, 0)
    with open_run(tmp_path, 1) as one, open_run(tmp_path, 2) as two:
        one.append(answer("a"))
        two.append(answer("b"))
        assert one.done() == two.done() == {"a", "b"}
        assert [session["shard"] for session in read_run(one.path).sessions] == [0, 1, 2]
        with pytest.raises(FolderInUse, match=f"process {holders[0].pid} "):
            open_run(tmp_path, 0)
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} "):
            open_run(tmp_path, 2)
    with pytest.raises(ValueError, match="shard=-1"):
        open_run(tmp_path, -1)


def test_shared_files_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.locks._WAIT_S", 0.1)
    with exclusive(tmp_path), pytest.raises(FolderInUse, match="held by another process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def write(results: Path, pause: float) -> None:
    """All records, to a slow disk that takes 40 bytes at a time, so that kills land within lines."""
    real = os.write

    def slowly(handle: int, data: bytes) -> int:
        time.sleep(pause)
        return real(handle, data[:40])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", slowly)
        with open_run(results) as folder:
            done = folder.done()
            for record in asked():
                if record.id not in done:
                    folder.append(record)


def asked() -> list[Record]:
    return [answer(f"s{number}", number / 200, f"{number} " * 300) for number in range(200)]


def kill_after(child: ForkProcess, path: Path, num_bytes: int) -> None:
    """SIGKILL once the file has grown by so many bytes: by progress, so that a slow machine sees the same kills."""
    start = path.stat().st_size if path.exists() else 0
    while child.exitcode is None and (path.stat().st_size if path.exists() else 0) - start < num_bytes:
        time.sleep(0.0005)
    child.kill()
    child.join()


def test_twenty_kills_at_random_moments_resume_to_the_complete_set(tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = run_path(tmp_path, "org/name", "qasper", "pqcache", CONFIG)
    path = folder / "records.jsonl"
    num_torn = 0
    for _ in range(20):
        child = FORK.Process(target=write, args=(tmp_path, 0.0003))
        child.start()
        kill_after(child, path, rng.randrange(1, 8_000))
        assert child.exitcode == -signal.SIGKILL
        num_torn += not path.read_bytes().endswith(b"\n")
    assert num_torn >= 5, "the kills missed what they are for"
    write(tmp_path, 0.0)
    assert list(read_lines(path).records) == asked()
    assert len(read_run(folder).sessions) == 21
