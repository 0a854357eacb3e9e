"""Records: strict lines, torn ends, full disks."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.records import Record, RecordWriter, merge, read_lines, read_records, record_files

ROOT = Path(__file__).parents[1]


def answer(name: str, score: float = 0.5, prediction: str = "Paris") -> Record:
    return Record(
        id=name,
        prediction=prediction,
        score=score,
        num_prompt_tokens=1000,
        num_new_tokens=3,
        prompt_sha="0f" * 8,
        truncated=False,
        dense_short=False,
        length=3500,
        ledger={"attended_mean": 12.5, "tpot_s": [0.01, 0.02], "tt2t_s": None},
        error=None,
        seconds=1.25,
    )


def fill(path: Path, *records: Record) -> None:
    writer = RecordWriter(path)
    for record in records:
        writer.append(record)
    writer.close()


@pytest.mark.parametrize(
    "record",
    [
        answer("a"),
        answer("b", 1.0, "第一行\nzwei\u2028 \x85 \r \x00 \U0001f600"),
        answer("c", 0, "half an emoji \ud83d."),
        Record.failed("d", "out of memory\nat layer 3", length=10),
        Record.failed("e", "no", length=10, num_prompt_tokens=5, prompt_sha="ab", seconds=0.5),
    ],
)
def test_a_record_reads_back_as_it_was_written(tmp_path: Path, record: Record) -> None:
    fill(tmp_path / "records.jsonl", record, answer("after"))
    assert read_lines(tmp_path / "records.jsonl").records == (record, answer("after"))


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_outside_0_1_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="within 0-1"):
        answer("a", score)


def test_a_failure_has_no_score_and_an_answer_has_one() -> None:
    failed = Record.failed("a", "boom", length=1)
    assert failed.score is None and failed.prediction is None
    with pytest.raises(ValueError, match="must be None"):
        replace(failed, score=0.0)
    with pytest.raises(ValueError, match="needs a prediction and a score"):
        replace(answer("a"), score=None)


def test_ill_typed_fields_are_named() -> None:
    row = answer("a").to_json()
    cases = {"score": True, "num_prompt_tokens": "7", "truncated": 1, "ledger": [], "id": 7, "length": None}
    for name, value in cases.items():
        with pytest.raises(ValueError, match=f"field '{name}'"):
            Record.from_json({**row, name: value})


def test_unknown_and_missing_fields_are_refused_in_one_line() -> None:
    row = answer("a").to_json()
    with pytest.raises(ValueError, match=r"unknown fields \['new'\].*") as unknown:
        Record.from_json({**row, "new": 1})
    assert "\n" not in str(unknown.value)
    del row["prompt_sha"]
    with pytest.raises(ValueError, match=r"missing fields \['prompt_sha'\]"):
        Record.from_json(row)


@pytest.mark.parametrize(
    ("ledger", "place"),
    [
        ({"tpot_s": [0.1, float("nan")]}, r"ledger\.tpot_s\[1\] is nan"),
        ({"moved": {"kv": np.float32(1)}}, r"ledger\.moved\.kv is .*float32"),
        ({"moved": {3: 1}}, r"ledger\.moved has the key 3"),
    ],
)
def test_what_json_cannot_carry_is_refused_by_its_place(tmp_path: Path, ledger: dict[str, object], place: str) -> None:
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)
    with pytest.raises(ValueError, match=place):
        writer.append(replace(answer("a"), ledger=ledger))
    writer.append(answer("b"))
    assert [record.id for record in read_lines(path).records] == ["b"]


def test_a_torn_last_line_of_every_length_is_dropped_cut_off_and_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    fill(path, answer("a"), answer("b", prediction="é第"))
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    for end in range(start, len(content)):
        path.write_bytes(content[:end])
        assert [record.id for record in read_lines(path).records] == ["a"]
        assert path.read_bytes() == content[:end], "reading must not change the file of a run in progress"
        fill(path, answer("b", prediction="é第"))
        assert path.read_bytes() == content


@pytest.mark.parametrize("tail", [b"\0" * 512, b"\0" * 512 + b"\n", b'{"id": "b", \n', b"\xff\xfe\n", b"\n"])
def test_a_last_line_that_is_no_json_is_dropped_too(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "records.jsonl"
    fill(path, answer("a"))
    path.write_bytes(path.read_bytes() + tail)
    fill(path, answer("b"))
    assert read_lines(path).records == (answer("a"), answer("b"))


@pytest.mark.parametrize("damage", [b"", b"\xff", b'{"id": "b"', b"\0\0\0"])
def test_damage_in_the_middle_is_an_error_that_names_file_and_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "records.jsonl"
    fill(path, answer("a"), answer("b"), answer("c"))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    before = path.read_bytes()
    for read in (read_lines, RecordWriter):
        with pytest.raises(ValueError, match=r"records\.jsonl:2 is no JSON"):
            read(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"[]", b'{"id": "b"}', json.dumps(answer("b").to_json()).replace("1.25", "NaN").encode()]
)
def test_json_that_is_no_record_is_an_error_even_in_the_last_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "records.jsonl"
    fill(path, answer("a"))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:2 is no record"):
        read_lines(path)


def test_the_newest_record_counts_and_the_history_stays(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    fill(path, Record.failed("a", "first", 1), Record.failed("a", "second", 1), answer("a"))
    assert read_records(tmp_path) == {"a": answer("a")}
    assert len(read_lines(path).records) == 3


def test_shards_are_merged_and_an_answer_beats_a_failure_in_any_order(tmp_path: Path) -> None:
    failed = Record.failed("a", "no", 1)
    assert merge([[failed], [answer("a")]]) == merge([[answer("a")], [failed]]) == {"a": answer("a")}
    fill(tmp_path / "records-10.jsonl", answer("k"), answer("a"))
    fill(tmp_path / "records-2.jsonl", failed, answer("c"))
    (tmp_path / "records-old.jsonl").write_text("a copy that somebody made")
    assert set(read_records(tmp_path)) == {"a", "c", "k"}
    assert read_records(tmp_path)["a"] == answer("a")
    assert [path.name for path in record_files(tmp_path)] == ["records-2.jsonl", "records-10.jsonl"]


def short_writes(fail: BaseException) -> Callable[[int, bytes], int]:
    """Stands for `os.write` on a disk that takes ten bytes more and then no other."""
    real = os.write
    left = 10

    def write(handle: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise fail
        done = real(handle, data[: min(left, 4)])
        left -= done
        return done

    return write


def test_a_full_disk_is_one_line_and_keeps_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)
    writer.append(answer("a"))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_writes(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match=r"records\.jsonl.*No space left.*make room") as caught:
            writer.append(answer("b"))
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    writer.append(answer("c"))
    assert [record.id for record in read_lines(path).records] == ["a", "c"]


def test_a_record_is_on_disk_before_the_next_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    writer.append(answer("a"))
    writer.append(answer("b"))
    assert synced == [path.stat().st_size // 2, path.stat().st_size]


def test_an_interrupt_within_a_write_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_writes(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            writer.append(answer("a"))
    assert path.read_bytes() == b""


def test_a_half_line_that_cannot_be_taken_back_ends_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)

    def refuse(_handle: int, _size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_writes(OSError(errno.EIO, "Input/output error")))
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError, match="cannot write"):
            writer.append(answer("a"))
    with pytest.raises(OSError, match="is closed"):
        writer.append(answer("b"))
    fill(path, answer("c"))
    assert read_lines(path).records == (answer("c"),)


LIMITED = """
import sys
from pathlib import Path
from dataclasses import replace
from eval.records import RecordWriter
from tests.test_records import answer
writer = RecordWriter(Path(sys.argv[1]))
try:
    for number in range(100):
        writer.append(answer(str(number)))
except OSError as error:
    print(error)
"""


def test_the_kernel_refusing_more_bytes_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    child = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED, str(path)],
        cwd=ROOT,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write" in child.stdout and child.stdout.count("\n") == 1
    lines = read_lines(path)
    assert len(lines.records) > 2 and lines.num_whole_bytes == path.stat().st_size < 2000
