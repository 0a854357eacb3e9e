"""LongBench rows arrive exactly as written, and anything else is refused in one line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.base import Sample, Task
from data.longbench import git_blob_sha1, load, parse
from scripts.score import read_tasks

REAL = Path(__file__).resolve().parents[2] / "shared" / "longbench" / "data"
ROW: dict[str, Any] = {
    "input": "Who?",
    "context": "A story.",
    "answers": ["Ann", "Bob"],
    "length": 7,
    "dataset": "demo",
    "language": "en",
    "all_classes": None,
    "_id": "a",
}


def text(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def task(**fields: Any) -> Task:
    demo = Task("demo", "QA", "en", "qa_f1", max_new_tokens=8, num_rows=1, prompt="{context}{input}")
    return replace(demo, **fields)


def zipped(path: Path, member: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


def hub(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> dict[str, Any]:
    """Stands in for the hub; returns what it will be asked."""
    asked: dict[str, Any] = {}

    def download(repo_id: str, filename: str, *, repo_type: str, revision: str | None) -> str:
        asked.update(repo_id=repo_id, filename=filename, repo_type=repo_type, revision=revision)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_git_blob_sha1_is_gits() -> None:
    assert git_blob_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_row_becomes_a_sample() -> None:
    (sample,) = parse(text(ROW), "demo")
    assert sample == Sample("a", "A story.", "Who?", ("Ann", "Bob"), None, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"answers": ["2001-02-03"], "input": "2001-02-03T10:00:00Z"},
        {"answers": ["3", "3.0", "true", "null"]},
        {"context": "one\u2028two\u0085three\r\x0bfour\ttab  "},
        {"context": "word " * 200_000},
        {"answers": []},
        {"all_classes": ["b", "a", "b"]},
        {"length": 0},
    ],
)
def test_values_stay_as_they_are(change: dict[str, Any]) -> None:
    (sample,) = parse(text(ROW | change), "demo")
    for name, value in change.items():
        assert getattr(sample, name) == (tuple(value) if isinstance(value, list) else value)


def test_rows_keep_their_order_and_limit_takes_the_first() -> None:
    rows = [ROW | {"_id": name} for name in "cab"]
    assert [sample.id for sample in parse(text(*rows), "demo")] == ["c", "a", "b"]
    assert [sample.id for sample in parse(text(*rows), "demo", limit=2)] == ["c", "a"]


def test_missing_and_repeated_ids_become_unique_and_do_not_depend_on_the_limit() -> None:
    bare = {name: value for name, value in ROW.items() if name != "_id"}
    wanted = ["a", "a", "a-2", "a", None, "row-4", ""]
    rows = [bare if name is None else ROW | {"_id": name} for name in wanted]
    ids = [sample.id for sample in parse(text(*rows), "demo")]
    assert ids == ["a", "a-2", "a-2-2", "a-3", "row-4", "row-4-2", "row-6"]
    assert [sample.id for sample in parse(text(*rows), "demo", limit=4)] == ids[:4]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_the_last_line_may_end_in_any_way(ending: bytes) -> None:
    assert len(parse(text(ROW).rstrip(b"\n") + ending, "demo")) == 1


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    assert len(parse(b"\xef\xbb\xbf" + text(ROW, ROW), "demo")) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "demo is empty"),
        (b"\n", "demo is empty"),
        (text(ROW) + b"\n" + text(ROW), "demo:2 .*line is empty"),
        (text(ROW) + text(ROW)[:40], "demo:2 is no complete JSON"),
        (text(ROW).replace(b"Who", b"\xff\xfe"), "demo:1 is no complete JSON"),
        (b"[" * 100_000, "demo:1 is no complete JSON"),
        (b"[1]\n", "demo:1 is a JSON list"),
        (text({"input": "", "context": ""}), "demo:1 lacks answers, all_classes, length"),
        (text(ROW, ROW | {"answers": "Ann"}), 'demo:2 .*answers="Ann"'),
        (text(ROW | {"answers": ["Ann", 1]}), r'answers=\["Ann", 1\]'),
        (text(ROW | {"context": None}), "context=null"),
        (text(ROW | {"input": 5}), "input=5"),
        (text(ROW | {"length": "7"}), 'length="7"'),
        (text(ROW | {"length": True}), "length=true"),
        (text(ROW | {"all_classes": "a"}), 'all_classes="a"'),
    ],
)
def test_other_texts_are_refused_with_their_line(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        parse(data, "demo")
    assert "\n" not in str(error.value)


def test_a_folder_holds_the_file_or_data_or_the_zip(tmp_path: Path) -> None:
    zipped(tmp_path / "data.zip", "data/demo.jsonl", text(ROW | {"_id": "zip"}))
    assert [sample.id for sample in load(task(), str(tmp_path))] == ["zip"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo.jsonl").write_bytes(text(ROW | {"_id": "below"}))
    assert [sample.id for sample in load(task(), str(tmp_path))] == ["below"]
    (tmp_path / "demo.jsonl").write_bytes(text(ROW | {"_id": "beside"}))
    dataset = load(task(), str(tmp_path))
    assert [sample.id for sample in dataset] == ["beside"]
    assert (dataset.source, dataset.miniature) == (str(tmp_path / "demo.jsonl"), False)


@pytest.mark.parametrize("member", ["data/demo.jsonl", "demo.jsonl"])
def test_a_zip_is_read_without_unpacking(tmp_path: Path, member: str) -> None:
    dataset = load(task(), str(zipped(tmp_path / "any.zip", member, text(ROW, ROW))), limit=1)
    assert (len(dataset), dataset.source) == (1, f"{tmp_path / 'any.zip'}:{member}")
    assert [path.name for path in tmp_path.iterdir()] == ["any.zip"]


def test_longbench_e_has_its_own_file_and_hash(tmp_path: Path) -> None:
    (tmp_path / "demo.jsonl").write_bytes(text(ROW))
    (tmp_path / "demo_e.jsonl").write_bytes(text(ROW, ROW))
    blob, blob_e = git_blob_sha1(text(ROW)), git_blob_sha1(text(ROW, ROW))
    plain = load(task(blob=blob, blob_e=blob_e), str(tmp_path))
    e = load(task(blob=blob, blob_e=blob_e, e=True), str(tmp_path))
    assert (len(plain), plain.revision, plain.official) == (1, blob, True)
    assert (len(e), e.revision, e.official) == (2, blob_e, True)


@pytest.mark.parametrize(("blob", "official"), [("0" * 40, False), (None, None)])
def test_other_local_rows_are_read_but_not_called_official(
    tmp_path: Path, blob: str | None, official: bool | None
) -> None:
    (tmp_path / "demo.jsonl").write_bytes(text(ROW))
    assert load(task(blob=blob), str(tmp_path)).official is official


def test_the_hash_is_of_the_whole_file_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "demo.jsonl").write_bytes(text(ROW, ROW))
    assert load(task(blob=git_blob_sha1(text(ROW, ROW))), str(tmp_path), limit=1).official is True


def test_what_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    assert "holds no demo.jsonl, data/demo.jsonl or data.zip; give data=hub" in refusal(
        lambda: load(task(), str(tmp_path))
    )
    assert "neither a folder nor a data.zip" in refusal(lambda: load(task(), str(tmp_path / "gone")))
    assert "limit is 0" in refusal(lambda: load(task(), str(tmp_path), limit=0))


def test_zips_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", "data/demo.jsonl", text(*[ROW | {"_id": str(i)} for i in range(500)]))
    (tmp_path / "torn.zip").write_bytes(whole.read_bytes()[:-30])
    damaged = bytearray(whole.read_bytes())
    damaged[200:400] = bytes(200)
    (tmp_path / "damaged.zip").write_bytes(damaged)
    (tmp_path / "empty.zip").write_bytes(b"")
    for name in ("torn.zip", "damaged.zip", "empty.zip"):
        assert "is no readable zip" in refusal(lambda name=name: load(task(), str(tmp_path / name)))  # type: ignore[misc]
    assert "holds no data/other.jsonl" in refusal(lambda: load(task(name="other"), str(whole)))


def test_the_hub_is_asked_for_the_pinned_zip_and_its_rows_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "abc123").mkdir()
    asked = hub(monkeypatch, zipped(tmp_path / "abc123" / "data.zip", "data/demo.jsonl", text(ROW)))
    dataset = load(task(blob=git_blob_sha1(text(ROW))), "hub", revision="abc123")
    assert asked == {
        "repo_id": "zai-org/LongBench",
        "filename": "data.zip",
        "repo_type": "dataset",
        "revision": "abc123",
    }
    assert (dataset.official, dataset.source) == (True, "hub:zai-org/LongBench@abc123:data/demo.jsonl")
    assert "LongBench published 0000" in refusal(lambda: load(task(blob="0" * 40), "hub"))


@pytest.mark.parametrize("error", [OSError("no\nroute"), ValueError("bad revision"), RuntimeError("401 gated")])
def test_a_hub_out_of_reach_is_one_line_with_the_way_round(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hub(monkeypatch, error)
    message = refusal(lambda: load(task(), "hub"))
    assert " ".join(str(error).split()) in message and "data=PATH" in message


@pytest.mark.skipif(not REAL.is_dir(), reason="the real rows are not beside the repository")
@pytest.mark.parametrize("name", read_tasks())
def test_real_rows_load_unchanged(name: str) -> None:
    dataset = load(read_tasks()[name], str(REAL))
    rows = [json.loads(line) for line in (REAL / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert len(dataset) == len(rows) > 5
    for sample, row in zip(dataset, rows, strict=True):
        classes = None if sample.all_classes is None else list(sample.all_classes)
        found = (sample.id, sample.context, sample.input, list(sample.answers), classes, sample.length)
        assert found == tuple(row[key] for key in ("_id", "context", "input", "answers", "all_classes", "length"))
    assert dataset.official is False, "these are the first rows only"


def test_why_the_json_loader_of_datasets_is_not_used(tmp_path: Path) -> None:
    """It turns texts that look like dates and numbers into something else. When this fails, it may be used again."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "x.jsonl"
    path.write_text('{"answers": ["2001-02-03"]}\n')
    rows = datasets.load_dataset("json", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    assert rows[0]["answers"] != ["2001-02-03"]
