"""The command line: every mistake is one line on stderr that says what to do; a good run ends with its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from glob import glob
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
import yaml

import run
from data.base import Task
from engine.ledger import AuditError
from eval.records import read_records
from tests.forks import ROOT, server, until

Cli = Callable[..., "Outcome"]
FORMS = "give a ratio in (0, 1] such as 0.1, a number of tokens such as 512tok, or K+V bytes such as 64MiB"


class Outcome:
    """What one command printed and returned."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def folder(self) -> Path:
        """The last line on stdout."""
        return Path(self.out.splitlines()[-1])

    def scores(self) -> dict[str, Any]:
        """The run's `scores.json`."""
        found: dict[str, Any] = json.loads((self.folder / "scores.json").read_text())
        return found

    def sweep(self) -> dict[str, Any]:
        """The sweep's `sweep.json`."""
        found: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text())
        return found


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, by default on the first sample, into an empty results folder."""

    def command(*words: str) -> Outcome:
        code = run.main(["method=window", "limit=1", f"results={tmp_path / 'results'}", "progress=false", *words])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return command


def refused(outcome: Outcome, *parts: str) -> None:
    """One line that names all parts, and nothing else."""
    assert outcome.err.startswith("error: ") and outcome.err.endswith("\n") and outcome.err.count("\n") == 1
    assert outcome.code == 1 and outcome.out == ""
    for part in parts:
        assert part in outcome.err


MISTAKES: dict[str, tuple[str, ...]] = {
    "method=pqcach": ("method=pqcach is unknown", "pqcache", "sparq", "did you mean pqcache?"),
    "method=": ("method= is unknown", "full"),
    "method=bct": ("method=bct was examined and is not implemented", "determines no algorithm", "`window`"),
    "-m method=full,instcache": ("method=instcache was examined", "touches no key or value", "hit rate is 0"),
    "method=null": ("method=null is unknown", "full"),
    "method=[full,window]": ("method=['full', 'window'] is unknown",),
    "~method": ("method=null is unknown",),
    "task=narrative": ("task=narrative is unknown", "samsum", "did you mean narrativeqa?"),
    "model=llama": ("model=llama is unknown", "tiny", "qwen3_8b"),
    "experiment=foo": ("experiment=foo is unknown",),
    "task.max_new_tokens=3": ("does not act on miniature rows", "task.miniature.max_new_tokens"),
    "budgett=0.1": ("budgett is not a field", "local_share", "did you mean budget?"),
    "+foo=1": ("foo is not a field", "prefill_chunk"),
    "foo.bar=1": ("foo.bar is not a field", "method"),
    "method=random method.bits=3": ("method.bits is not a field", "allowed are none"),
    "method=pqcache method.bit=3": ("method.bit is not a field", "num_sub, bits", "did you mean bits?"),
    "method=pqcache +method.foo=3": ("method.foo is not a field", "num_sub, bits"),
    "method=pqcache method.bits=lots": ("method.bits='lots'", "valid integer"),
    "method=pqcache method.bits=2.5": ("method.bits=2.5", "valid integer"),
    "method=pqcache method.bits=true": ("method.bits=true", "no boolean"),
    "method=pqcache method.bits=9": ("method.bits=9", "1 to 8"),
    "method=pqcache method.num_sub=3": ("method=pqcache does not run on model=tiny", "method.num_sub=3"),
    "method=sparq method.reduce=max": ("method.reduce='max'", "'softmax' or 'logit'"),
    "method=less method.base=window": ("method.base=window: give its class", "_target_=methods.window.Window"),
    "method=adakv method.scorer=foo": ("method.scorer=foo: give its class", "_target_=package.module.Class"),
    "method=snapkv_think method.think.ratio=2": ("error: method.think.ratio=2.0: give the share",),
    "task.turns.mode=requests": ("task.turns.mode: task=narrativeqa has no turns", "tasks with it are", "scbench_kv"),
    "task.ruler.length=900": ("task.ruler.length: task=narrativeqa has no ruler", "niah_single_1"),
    "model.foo=1": ("model.foo is not a field", "max_prompt", "stop_tokens"),
    "model.max_prompt=x": ("model.max_prompt='x'", "valid integer"),
    "model.max_prompt=1": ("model.max_prompt=1 is out of range", "2 tokens or more"),
    "model.weights=foo": ("model.weights='foo'", "'pretrained' or 'random'"),
    "model.weights=random": ("model.weights=random", "model=tiny", "model.architecture", "model_type"),
    "model.path=/nonexistent": ("model.path=/nonexistent is no folder", "ORG/NAME"),
    "model.stop_tokens=[foo]": ("model.stop_tokens: foo is not a token",),
    "model.name=/": ("'/' cannot name a results folder",),
    "task.foo=1": ("task.foo is not a field", "max_new_tokens"),
    "task.metric=foo": ("no metric 'foo'", "qa_f1", "code_sim"),
    "task.e=true": ("LongBench-E of task narrativeqa", "data=hub or data=PATH"),
    "task=vcsum": ("no miniature rows for task vcsum", "data=hub or data=PATH"),
    "task=lcc task.miniature.max_new_tokens=0": ("task.max_new_tokens=0", "1 or more"),
    "task.miniature.prompt='{context} {foo}'": ("task.prompt", "{context}, {input}", "foo"),
    **{f"budget={b}": (f"budget={b}", FORMS) for b in ("0", "1.5", "-1", "nan", "inf", "abc", "0tok", "")},
    "budget=true": ("budget=True", FORMS),
    "budget=null": ("budget=None", FORMS),
    "~budget": ("budget is missing",),
    "budget=0.1,0.2": ("budget=0.1,0.2 holds several values", "-m"),
    "budget=[": ("cannot read 'budget=['", "key=value"),
    "budget=[0.1,0.2]": ("budget=[0.1, 0.2]", FORMS),
    "foo": ("cannot read 'foo'", "key=value"),
    "=": ("cannot read '='", "key=value"),
    "data=~/rows": ("cannot read 'data=~/rows'", "quotes"),
    "limit=0": ("limit=0 is out of range", "1 or more", "null for all"),
    "limit=-1": ("limit=-1 is out of range",),
    "limit=x": ("limit='x'", "valid integer"),
    "limit=true": ("limit=true", "no boolean"),
    "seed=-1": ("seed=-1 is out of range", "0 to 2**63 - 1"),
    "seed=9223372036854775808": ("is out of range", "0 to 2**63 - 1"),
    "sink=-1": ("sink=-1 is out of range", "0 or more"),
    "local_share=2": ("local_share=2.0 is out of range", "0 to 1"),
    "compensate=-1": ("compensate=-1.0 is out of range", "0 or more"),
    "compensate=nan": ("compensate=nan is out of range", "0 or more"),
    "protocol=x": ("protocol='x'", "'longbench' or 'question_after'"),
    "attention=x": ("attention='x'", "'sdpa', 'flash' or 'eager'"),
    "attention=flash device=cpu": ("attention=flash needs a CUDA device", "flash-attn", "attention=sdpa"),
    "dtype=x": ("dtype='x'", "'float32'"),
    "device=tpu": ("device=tpu", "auto, cpu, cuda"),
    "device=cudax": ("device=cudax", "auto, cpu, cuda"),
    "device=cuda:99": ("device=cuda:99",),
    "prefill_chunk=0": ("prefill_chunk=0 is out of range", "1 or more"),
    "truncate=maybe": ("truncate='maybe'", "boolean"),
    "fuzz=foo": ("fuzz='foo'", "'difflib' or 'levenshtein'"),
    "data=/nonexistent": ("data=/nonexistent is neither a folder nor a data.zip", "data=hub"),
    "data=": ("data= is empty",),
    "results=": ("results= is empty",),
    "results=/dev/null/x": ("results=/dev/null/x cannot be written", "another results=FOLDER"),
    "hydra/launcher=slurmm": ("slurmm", "basic"),
    "-m method=full,foo": ("method=foo is unknown", "pqcache"),
    "-m budget=0.1,0": ("budget=0 is out of range", FORMS),
    "-m budget=interval(0,1)": ("budget=interval(0,1)", "range()"),
    "-x": ("-x is no flag", "--cfg job"),
    "--cfg all": ("--cfg all", "--cfg job"),
    "--cfg job budget=abc": ("budget=abc", FORMS),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_allowed(cli: Cli, words: str, tmp_path: Path) -> None:
    apart = [words] if "'" in words else words.split(" ")
    refused(cli(*apart), *MISTAKES[words])
    assert not list(tmp_path.glob("results/*")), "a refused run leaves nothing behind"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "balanced"])
def test_a_gpu_that_is_not_there(cli: Cli, device: str) -> None:
    refused(cli(f"device={device}"), f"device={device}: no CUDA device is visible", "device=cpu")


ROW = {"input": "Gudin color", "context": "Gudin color is wacash .", "answers": ["wacash"], "length": 5}
GOOD = json.dumps({**ROW, "all_classes": None})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("narrativeqa.jsonl is empty", "one JSON object a line")),
        (f"{GOOD}\n{GOOD[:30]}\n", ("narrativeqa.jsonl:2 is no complete JSON",)),
        (f"{GOOD}\n[]\n", ("narrativeqa.jsonl:2", "must be an object")),
        (json.dumps(ROW) + "\n", ("narrativeqa.jsonl:1 lacks all_classes",)),
        (GOOD.replace("5", '"5"') + "\n", ("narrativeqa.jsonl:1", "wrong type", 'length="5"')),
    ],
)
def test_damaged_data(cli: Cli, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "narrativeqa.jsonl").write_text(text)
    refused(cli(f"data={tmp_path}"), *parts)
    refused(cli(f"data={tmp_path}", "task=qasper"), "holds no qasper.jsonl", "another data=PATH")


def test_what_the_hub_does_not_give(tmp_path: Path) -> None:
    (tmp_path / "narrativeqa.jsonl").write_text(GOOD)
    common = ["method=window", f"results={tmp_path / 'results'}"]
    for words, parts in (
        (["data=hub"], ("data.zip of zai-org/LongBench", "data=PATH")),
        (["model=llama31_8b", f"data={tmp_path}"], ("model=llama31_8b", "meta-llama/Llama-3.1-8B", "hf auth login")),
        (["model.path=org/none"], ("org/none", "model.path=FOLDER")),
    ):
        ended = server().run([*common, *words])
        refused(Outcome(ended.code, ended.out, ended.err), *parts)


def test_a_damaged_checkpoint_is_refused_and_never_filled_with_random_weights(cli: Cli, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy, tiny = tmp_path / "copy", ROOT / "data" / "tiny"
    shutil.copytree(tiny, copy)
    weights = load_file(tiny / "model.safetensors")
    weights.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(cli(f"model.path={copy}"), "lacks 1 weights", "model.layers.0.self_attn.q_proj.weight")
    whole = (tiny / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(cli(f"model.path={copy}"), f"{copy} (revision None) could not be loaded", "model.path=FOLDER")
    (copy / "tokenizer.json").write_text("{")
    shutil.copy(tiny / "model.safetensors", copy)
    refused(cli(f"model.path={copy}"), f"{copy} (revision None) could not be loaded")


def test_another_models_results_never_stand_under_this_ones_name(cli: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "data" / "tiny", copy)
    done = cli(f"model.path={copy}")
    assert done.code == 0 and done.folder.parts[-4].endswith("--copy") and str(copy) in done.out
    assert cli(f"model.path={copy}", "model.name=mine").folder.parts[-4] == "mine"


def test_random_weights_need_no_download(cli: Cli) -> None:
    shape = "num_hidden_layers=1 hidden_size=64 intermediate_size=64 num_attention_heads=4 num_key_value_heads=2"
    words = [f"model.architecture.{part}" for part in shape.split()]
    done = cli("model=llama31_8b", "model.weights=random", "data=miniature", "dtype=float32", *words)
    assert done.code == 0 and done.scores()["n"] == 1
    for wrong in ("model_type=foo", "num_hidden_layers=x", "num_attention_heads=0"):
        words = ["model=llama31_8b", "model.weights=random", "data=miniature", f"model.architecture.{wrong}"]
        refused(cli(*words), "model.architecture of model=llama31_8b", "is refused")


def test_a_chat_model_without_a_template_is_refused_before_it_is_asked(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "narrativeqa.jsonl").write_text(GOOD)
    refused(cli("model.chat=true", f"data={tmp_path}"), "model.chat=true", "no chat template", "give false")


def test_a_failed_sample_is_recorded_and_never_scored_as_zero(cli: Cli) -> None:
    words = ("limit=10", "truncate=false", "model.max_prompt=1500")  # the first 8 prompts have about 1,000 tokens
    failed = cli(*words)
    assert failed.code == 1 and failed.err == ""
    assert "2 samples FAILED" in failed.out and "over model.max_prompt=1500; give truncate=true" in failed.out
    scores = failed.scores()
    assert (scores["n"], scores["failed"], scores["missing"]) == (8, 2, 0) and scores["score"] > 0
    records = list(read_records(failed.folder).values())
    assert [r.error is None for r in records] == [True] * 8 + [False] * 2
    assert all(r.score is None and r.prediction is None for r in records[8:])


def test_no_score_is_null(cli: Cli) -> None:
    failed = cli("truncate=false", "model.max_prompt=100")
    assert failed.code == 1 and failed.scores()["score"] is None and failed.scores()["failed"] == 1
    assert "–" in failed.out and "1 samples FAILED" in failed.out


def test_a_good_run_ends_with_its_folder_and_the_next_command(cli: Cli) -> None:
    done = cli("data=miniature")
    assert done.code == 0 and done.err == ""
    assert {path.name for path in done.folder.iterdir()} >= {"run.json", "records.jsonl", "scores.json"}
    assert "MINIATURE, not LongBench" in done.out
    [following] = [line for line in done.out.splitlines() if line.startswith("next: ")]
    assert following.startswith("next: python run.py method=full ") and following.endswith(" data=miniature")


def test_after_all_comparisons_comes_a_curve_whose_runs_are_shared(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.report.COMPARED", ())
    [following] = [line for line in cli("decode=static", "budget=0.3").out.splitlines() if line.startswith("next: ")]
    assert following.startswith("next: python run.py -m method=oracle,") and "budget=0.02,0.05,0.1,0.2" in following
    assert "decode=" not in following and "budget=0.3" not in following


def test_a_complete_run_is_not_asked_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cli()
    before = (first.folder / "records.jsonl").read_bytes()
    monkeypatch.setattr("engine.load.load", lambda *_, **__: pytest.fail("the model is not needed"))
    again = cli()
    assert (again.code, again.folder, again.scores()) == (0, first.folder, first.scores())
    assert (first.folder / "records.jsonl").read_bytes() == before


def test_limit_goes_on_and_back_in_one_folder(cli: Cli) -> None:
    two = cli("limit=2")
    scores = two.scores()
    lines = (two.folder / "records.jsonl").read_text().splitlines()
    four = cli("limit=4")
    assert four.folder == two.folder and four.scores()["n"] == 4
    assert (four.folder / "records.jsonl").read_text().splitlines()[:2] == lines
    back = cli("limit=2")
    assert back.folder == two.folder and back.scores() == scores
    assert len(read_records(back.folder)) == 4


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("budget=0.2", False),
        ("seed=1", False),
        ("model.max_prompt=4000", False),
        ("task.e=false", True),
        ("local_share=0.50", True),
        ("local_share=1 local_share=0.5", True),
        ("budget=1e-1", True),
        ("truncate=1", True),
        ("limit=2", True),
        ("progress=true", True),
    ],
)
def test_a_changed_knob_makes_a_new_folder(cli: Cli, words: str, same: bool) -> None:
    assert (cli(*words.split()).folder == cli().folder) is same


def test_a_default_is_one_run_whether_it_is_written_or_not(cli: Cli) -> None:
    common = ("method=pqcache", "method.clustering=gpu")
    implicit = cli(*common, "~method.bits").folder
    assert cli(*common, "method.bits=6").folder == implicit != cli(*common, "method.bits=4").folder


def test_a_method_without_a_budget_is_one_run_for_all_budgets(cli: Cli) -> None:
    folders = {cli("method=full", f"budget={budget}").folder for budget in (0.1, 0.2)}
    assert len(folders) == 1


def test_a_failing_job_does_not_stop_the_others(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    some = cli("-m", "task=vcsum,narrativeqa")
    assert some.code == 1 and some.err.count("\n") == 1 and "no miniature rows for task vcsum" in some.err
    assert [entry["status"] for entry in some.sweep()["runs"]] == ["failed", "complete"]

    def broken(self: Task) -> Task:
        if self.name == "qasper":
            raise TypeError("a bug of ours")
        return replace(self)

    monkeypatch.setattr("data.base.Task.small", broken)
    some = cli("-m", "task=qasper,narrativeqa")
    assert some.code == 1 and "Traceback" in some.err and "a bug of ours" in some.err
    assert [entry["status"] for entry in some.sweep()["runs"]] == ["failed", "complete"]


def test_a_typing_mistake_in_a_sweep_shows_before_its_first_run(cli: Cli, tmp_path: Path) -> None:
    refused(cli("-m", "method=window,pqcache", "method.bits=4"), "method.bits is not a field")
    assert not (tmp_path / "results").exists()


def test_flags_stand_anywhere(cli: Cli) -> None:
    assert cli("limit=1", "-m", "budget=0.1").code == 0


def test_cfg_job_prints_the_configuration(cli: Cli) -> None:
    shown = cli("--cfg", "job", "method=pqcache", "sink=7")
    config = yaml.safe_load(shown.out)
    assert shown.code == 0 and shown.err == ""
    assert (config["method"]["bits"], config["sink"], config["model"]["name"]) == (6, 7, "tiny")
    assert "hydra" not in config


def test_results_of_another_config_are_refused(cli: Cli) -> None:
    done = cli()
    path = done.folder / "run.json"
    entry = json.loads(path.read_text())
    entry["config"]["seed"] = 1
    path.write_text(json.dumps(entry))
    refused(cli(), str(done.folder), "another config", "move it away")
    refused(cli("limit=2"), str(done.folder), "another config", "'seed'", "move it away")


def test_records_of_unknown_origin_are_refused(cli: Cli) -> None:
    done = cli()
    (done.folder / "run.json").unlink()
    refused(cli(), str(done.folder), "no run.json")
    refused(cli("limit=2"), str(done.folder), "no run.json", "move it away")


def test_a_damaged_record_is_named(cli: Cli) -> None:
    done = cli("limit=2")
    path = done.folder / "records.jsonl"
    path.write_text("{" + path.read_text())
    refused(cli("limit=2"), f"{path}:1 is no JSON", "restore or delete that line")


def test_a_file_where_results_go(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    refused(cli(), f"results={tmp_path / 'results'} cannot be written", "another results=FOLDER")
    assert (tmp_path / "results").read_text() == "mine"


def test_a_file_system_without_locks(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise NotImplementedError("this file system does not support flock")

    monkeypatch.setattr("eval.standing.hold", no_locks)
    refused(cli(), "does not support flock", "another results=FOLDER")


def test_memory_that_runs_out_stops_the_run_with_a_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr("eval.ask.answer", out_of_memory)
    refused(cli(), "out of memory on a prompt of 10", "model.max_prompt")


def test_a_method_over_its_budget_fails_the_run_by_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def over(*_: object) -> None:
        raise AuditError("audit: method window attended 9 tokens, its budget is 8")

    monkeypatch.setattr("eval.ask.answer", over)
    refused(cli(), "audit: method window attended 9 tokens")


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    words = ["method=window", f"results={tmp_path}", "progress=false", "limit=8"]
    first = server().start(words)
    until(lambda: any(os.path.getsize(path) for path in glob(str(tmp_path / "*/*/*/*/records.jsonl"))))
    first.kill(SIGSTOP)
    second = server().run(words)
    first.kill(SIGCONT)
    refused(Outcome(second.code, second.out, second.err), f"process {first.pid}", "another results=FOLDER")
    assert first.wait().code == 0


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    words = ["method=window", f"results={tmp_path}", "progress=false", "limit=12"]
    full = server().run(words, max_file_bytes=8000)
    refused(Outcome(full.code, full.out, full.err), "records.jsonl", "make room, then run again")
    [records] = tmp_path.glob("*/*/*/*/records.jsonl")
    kept = records.read_bytes()
    assert kept.endswith(b"\n") and 0 < len(kept.splitlines()) < 12
    ended = server().run(words)
    assert ended.code == 0 and records.read_bytes().startswith(kept) and len(read_records(records.parent)) == 12


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real `python run.py`."""
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    began = time.perf_counter()
    shown = python("-X", "importtime", "run.py", "--help")
    assert time.perf_counter() - began < 1.5
    assert shown.returncode == 0 and "usage: python run.py" in shown.stdout
    for name in ("pqcache", "narrativeqa", "llama31_8b", "systems"):
        assert name in shown.stdout
    for module in ("torch", "transformers", "hydra", "numpy"):
        assert f" {module}\n" not in shown.stderr


def test_a_complete_run_imports_no_transformers_and_needs_no_utf8(tmp_path: Path) -> None:
    words = ["method=window", "limit=1", f"results={tmp_path}", "progress=false"]
    assert server().run(words).code == 0
    shown = python("-X", "importtime", "run.py", *words, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0 and " transformers\n" not in shown.stderr and " torch\n" in shown.stderr
    assert "error:" not in shown.stderr and Path(shown.stdout.splitlines()[-1]).is_dir()


def test_an_experiment_may_set_the_settings() -> None:
    """Hydra lets later entries win: an experiment that came before `_self_` could not set a root scalar."""
    entries = yaml.safe_load((Path(run.__file__).parent / "configs" / "config.yaml").read_text())["defaults"]
    assert entries.index("_self_") < entries.index({"experiment": None})
