"""W&B: what is written offline, that `wandb sync` uploads it, and that nothing of it can hurt a run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eval import tracking
from eval.scores import derive, write
from scripts import wandb_log, wandb_sync
from tests.forks import ROOT
from tests.test_records import answer
from tests.test_run_folder import open_run
from tests.test_scores import FULL_LEDGER, HEADER

KEY = "0123456789" * 4
NEEDED = pytest.mark.skipif(
    find_spec("wandb") is None, reason="the package wandb is missing: nothing is tested that writes or syncs"
)


def settled(results: Path) -> Path:
    """A run folder with two samples: an ordinary one, and half an emoji."""
    records = [replace(r, ledger=FULL_LEDGER) for r in (answer("a", 1.0), answer("b", 0.0, "cut \ud83d"))]
    with open_run(results) as run:
        for record in records:
            run.append(record)
    write(run.path, derive(HEADER, {record.id: record for record in records}, ["a", "b"]))
    return run.path


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def package(where: Path, text: str) -> Iterator[None]:
    """A stand-in for the package wandb, which a process of its own finds too."""
    (where / "wandb.py").write_text(text)
    kept = sys.modules.pop("wandb", None)
    sys.path.insert(0, str(where))
    try:
        yield
    finally:
        sys.path.remove(str(where))
        sys.modules.pop("wandb", None)
        if kept is not None:
            sys.modules["wandb"] = kept


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise ImportError('no such package')", "the package wandb is not installed"),
        ("import os; os._exit(3)", "terminated abruptly"),
        ("print('noise'); import sys; sys.exit(3)", "SystemExit"),
    ],
    ids=["missing", "dying", "exiting"],
)
def test_a_broken_package_is_one_line_and_the_results_stand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    folder = settled(tmp_path / "results")
    before = everything(folder)
    with package(tmp_path, text):
        tracking.log([folder, folder.with_name("other")], "offline", None)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert says in err and f"{folder} and 1 more were" in err and "unharmed" in err
    assert everything(folder) == before


def test_off_does_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracking.log([tmp_path / "nowhere"], "off", None)
    tracking.log_comparison({}, {}, "off")
    assert capfd.readouterr() == ("", "")


def test_a_run_that_is_not_settled_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        pass
    with pytest.raises(ValueError, match=r"has no scores\.json.*run its command again"):
        tracking.record_run(run.path, "offline", None)
    with (
        pytest.raises(ValueError, match="wandb=onlin is unknown; allowed are off, offline, online"),
        tracking.session(tmp_path, "onlin", {}),
    ):
        pass


@NEEDED
def test_without_a_login_nothing_is_asked_and_one_line_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home(monkeypatch, tmp_path)
    folder = settled(tmp_path / "results")
    tracking.log([folder], "online", None)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "wandb login" in err and "wandb=offline" in err


def home(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No settings, logins or leftovers of whoever runs the tests."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "WANDB_ENTITY",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "WANDB_DIR",
        "NETRC",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(folder / "results" / "wandb" / "x"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("HOME", str(folder))


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A results folder with one run, logged offline as a run does it, from a working directory of its own."""
    where = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        home(patch, where)
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        folder = settled(where / "results")
        (folder / "diagnostics").mkdir()
        png(folder / "diagnostics" / "heat_map.png")
        tracking.log([folder], "offline", "sweep-1")
        assert list(Path().iterdir()) == [], "W&B wrote into the working directory"
        yield where / "results"


def png(path: Path) -> None:
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(path)


def logged(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB) behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)  # type: ignore[attr-defined]
            whole = b""


def values(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@NEEDED
def test_an_offline_run_holds_all_of_the_folder(offline: Path) -> None:
    [file] = (offline / "wandb").glob("offline-run-*/*.wandb")
    records = list(logged(file))
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    [folder] = offline.glob("*/qasper/pqcache/*")
    assert (run.run_id, run.run_group, run.project) == (folder.name, "sweep-1", "kvarena")
    assert set(run.tags) == {"longbench", "miniature"}
    config = values(run.config.update)
    assert config["method"]["num_bits"] == 6 and config["provenance"] == {"argv": ["run.py"]}
    assert "results" not in config
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary.update(values(record.summary.update))
    scores = json.loads((folder / "scores.json").read_text())
    assert {name: summary[name] for name in scores} == scores
    assert {"samples._type", "cost._type", "tasks._type", "heat_map._type", "score_by_length._type"} <= set(summary)


@NEEDED
def test_its_tables_hold_samples_ledger_and_task(offline: Path) -> None:
    tables = {}
    for path in (offline / "wandb").glob("offline-run-*/files/media/table/*.json"):
        row = json.loads(path.read_text())
        tables[path.name.partition("_")[0]] = pd.DataFrame(row["data"], columns=row["columns"])
    samples = tables["samples"].set_index("id")
    assert list(samples.score) == [1.0, 0.0] and samples.prediction["b"] == "cut \\ud83d"
    assert samples["ledger.resident.k"]["a"] == 10 and samples["error"]["a"] is None
    cost = tables["cost"].set_index("quantity")
    assert cost["mean"]["resident.device"] == 35 and cost["p90"]["tpot_s"] == pytest.approx(0.3)
    assert cost["value"]["attended_max"] == 120 and cost["n"]["tt2t_s"] == 0
    [task] = tables["tasks"].to_dict("records")
    assert (task["task"], task["score"], task["n"], task["n_expected"]) == ("qasper", 50.0, 2, 2)


class StandIn(BaseHTTPRequestHandler):
    """As much of W&B's server as `wandb sync` asks for; `seen` holds what came."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("/graphql"):
            return self.graphql(json.loads(body))
        kind = self.path.rpartition("/")[2] if self.path.startswith("/files/") else self.path
        self.seen.append((kind, json.loads(body) if kind == "file_stream" else body))
        return self.reply({})

    do_PUT = do_POST

    def graphql(self, asked: dict[str, Any]) -> None:
        query, given = asked["query"], asked.get("variables") or {}
        if "upsertBucket(" in query:
            self.seen.append(("run", given))
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "1", "name": given["name"], "displayName": "x", "config": "{}", "historyLineCount": 0}
            return self.reply({"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}})
        if "createArtifact(" in query:
            # As if the server had its content: the tables themselves come as files of the run, below.
            latest = {"id": "1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "1"}}}
            return self.reply({"createArtifact": {"artifact": latest}})
        if "createRunFiles(" in query:
            host = self.headers["Host"]
            files = [{"name": n, "uploadUrl": f"http://{host}/put/{n}"} for n in given["files"]]
            return self.reply({"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}})
        return self.reply({})

    def reply(self, data: dict[str, Any]) -> None:
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def stand_in() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(address, what it has been sent) of a running stand-in."""
    seen: list[tuple[str, Any]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (StandIn,), {"seen": seen})) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


@NEEDED
def test_wandb_sync_uploads_it(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in() as (address, seen):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        command = [sys.executable, "-m", "scripts.wandb_sync", "--results", str(offline)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list((offline / "wandb").glob("debug-cli*")), "the log of `wandb sync` went elsewhere"
    [folder] = offline.glob("*/qasper/pqcache/*")
    run = next(given for kind, given in seen if kind == "run")
    assert (run["name"], run["groupName"], run["project"]) == (folder.name, "sweep-1", "kvarena")
    streams = [body for kind, body in seen if kind == "file_stream"]
    summaries = [b["files"]["wandb-summary.json"] for b in streams if "wandb-summary.json" in b.get("files", {})]
    assert json.loads(summaries[-1]["content"][0])["score"] == 50.0
    assert streams[-1]["complete"] is True and streams[-1]["exitcode"] == 0
    uploads = {kind.removeprefix("/put/media/").split("_")[0] for kind, _ in seen if kind.startswith("/put/media/")}
    assert uploads == {"table/samples", "table/cost", "table/tasks", "images/heat", "images/score"}
    for path in offline.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"


def test_only_the_last_of_an_id_is_synced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["offline-run-20260102_000000-aa", "offline-run-20260101_000000-aa", "offline-run-20260101_000001-bb"]
    for name in names:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert [path.name for path in wandb_sync.newest(tmp_path)] == [names[2], names[0]]
    assert wandb_sync.main(["--results", str(tmp_path / "none")]) == 1
    assert "error: " in capsys.readouterr().err


@NEEDED
def test_a_comparison_is_a_run_with_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home(monkeypatch, tmp_path)
    png(tmp_path / "pareto.png")
    table = pd.DataFrame({"method": ["full", "h2o"], "qasper": [50.0, "incomplete"], "low": [40.0, float("nan")]})
    tracking.log_comparison({"scores": table}, {"pareto": tmp_path / "pareto.png"}, "offline", tmp_path / "results")
    [path] = (tmp_path / "results/wandb").glob("offline-run-*/files/media/table/scores*.json")
    assert json.loads(path.read_text())["data"] == [["full", 50.0, 40.0], ["h2o", "incomplete", None]]
    assert list((tmp_path / "results/wandb").glob("offline-run-*/files/media/images/pareto*.png"))


@NEEDED
def test_folders_are_logged_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, str, str | None]] = []
    monkeypatch.setattr(wandb_log, "record_run", lambda folder, mode, group: seen.append((folder.name, mode, group)))
    folder = settled(tmp_path / "results")
    assert wandb_log.main([str(tmp_path), "--group", "g"]) == 0
    assert seen == [(folder.name, "offline", "g")] and capsys.readouterr().out.strip() == str(folder)
    assert wandb_log.main([str(tmp_path / "none")]) == 1
    assert "no run is in" in capsys.readouterr().err


def test_where_wandb_does_not_take_the_first_the_others_are_not_tried(tmp_path: Path) -> None:
    tried: list[str] = []

    def record(folder: Path) -> None:
        tried.append(folder.name)
        if folder.name in refused:
            raise refused[folder.name]

    folders = [tmp_path / name for name in "abc"]
    refused: dict[str, Exception] = {"a": tracking.NotTracked("no network")}
    assert list(tracking.failures(folders, record)) == folders and tried == ["a"]
    refused = {"a": ValueError("not settled"), "b": tracking.NotTracked("too large")}
    assert list(tracking.failures(folders, record)) == folders[:2] and tried == ["a", *"abc"]


def test_a_sweep_is_logged_as_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []
    monkeypatch.setattr(wandb_log, "record_run", lambda folder, mode, group: seen.append((folder.name, group)))
    sweep = tmp_path / "results/sweeps/today"
    sweep.mkdir(parents=True)
    runs = [{"folder": str(tmp_path / "x")}, {"folder": None}]
    (sweep / "sweep.json").write_text(json.dumps({"runs": runs}))
    assert wandb_log.main([str(sweep)]) == 0 and seen == [("x", "today")]
