"""The bench: who races, what a row says, verdicts, and files that lose nothing."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.ledger import LayerAudit
from engine.model import Model
from methods.pqcache.method import PQCache
from scripts.bench import main
from scripts.speed.bandwidth import Bandwidth
from scripts.speed.breakeven import BreakEven
from scripts.speed.curves import against_full, break_even, plot
from scripts.speed.decode import decode
from scripts.speed.memory import weight_bytes, weights_read
from scripts.speed.racer import Unaudited
from scripts.speed.report import Sheet
from scripts.speed.rows import DecodeRow, How
from scripts.speed.verdicts import decode_goals, judged, kcache_goals
from scripts.speed.words import Asked, asked, loaded

WORDS = ("model=tiny", "device=cpu", "method=full,h2o,sparq", "budget=0.1")
ROW = DecodeRow("m", "full", "", "graph", 4096, 1, tpot_ms=2.0, of_floor=1.2, of_full=1.0, floor_ms=1.0)


@pytest.fixture(scope="module")
def wanted() -> Asked:
    return asked(WORDS)


@pytest.fixture(scope="module")
def tiny(wanted: Asked) -> Model:
    return loaded(wanted)


def test_words_name_methods_budgets_and_parameters_of_one_method() -> None:
    found = asked(["model=tiny", "method=full,sparq,quest", "budget=0.1,0.2", "quest.page_tokens=8"]).contenders
    assert [str(c) for c in found] == ["full", "sparq 0.1", "sparq 0.2", "quest 0.1", "quest 0.2"]
    assert {getattr(c.method, "page_tokens", None) for c in found} == {None, 8}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["decode", "model=tiny", "method=quest", "h2o.mode=mask"], "h2o.mode=mask sets a parameter of a method that"),
        (["decode", "model=tiny", "method=qest"], "method=qest is unknown (did you mean quest?); allowed are"),
        (["decode", "model=tiny", "method=full", "--lengths", "4q"], "4q: give lengths in tokens"),
        (
            ["decode", "model=tiny", "method=full", "--decode", "magic"],
            "--decode magic: allowed are eager, static, graph",
        ),
        (["decode", "model=tiny", "method=full", "--steps", "2"], "--steps 2 is too few"),
        (["decode", "model=tiny", "method=infllm", "--lengths", "256"], "give infllm.prefill=dense"),
        (["prefill", "model=tiny", "method=full", "--repeats", "0"], "--repeats 0: give 1 or more"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_rows_add_up_and_lie_on_disk(tiny: Model, wanted: Asked, tmp_path: Path) -> None:
    sheet, speed = Sheet(DecodeRow, {"date": "today"}, tmp_path / "deep" / "d.csv"), Bandwidth(1e9, 1e8)
    how = How(("eager", "static"), steps=4, batch="memory", sample=256)
    assert decode(tiny, wanted, [640], how, speed, sheet) == []
    lines = (tmp_path / "deep" / "d.csv").read_text().splitlines()
    assert lines[0] == "# date: today" and len(list(csv.DictReader(lines[1:]))) == len(sheet.rows)
    single = {(r.method, r.decode, r.tokens): r for r in sheet.rows if r.note == ""}
    assert {(m, d) for m, d, _ in single} == {(m, d) for m in ("full", "h2o", "sparq") for d in ("eager", "static")}
    full, h2o = single["full", "eager", 640], single["h2o", "eager", 640]
    row_bytes = 2 * 3 * 4 * 64 * 4  # K and V, layers, KV heads, head_dim, float32
    assert full.resident_bytes is not None and full.kv_bytes is not None and full.attended is not None
    assert 640 * row_bytes <= full.kv_bytes <= full.resident_bytes <= 690 * row_bytes
    assert h2o.attended is not None and 60 <= h2o.attended <= 4 + 0.1 * 636 + 1
    assert h2o.kv_bytes is not None and h2o.kv_bytes < 0.2 * full.kv_bytes
    read = weights_read(tiny.network) + h2o.kv_bytes + (h2o.index_bytes or 0)
    assert h2o.tpot_ms is not None and h2o.floor_ms is not None
    assert h2o.floor_ms == pytest.approx(1e3 * read / 1e9)
    assert h2o.of_floor == pytest.approx(h2o.tpot_ms / h2o.floor_ms)
    best = min(single["full", way, 640].tpot_ms or 0.0 for way in ("eager", "static"))
    assert h2o.of_full == pytest.approx(h2o.tpot_ms / best)
    many = [r for r in sheet.rows if "equal memory" in r.note and r.tokens == 640 and r.batch > 1]
    assert [r.method for r in many] == ["h2o"] and many[0].batch * (h2o.resident_bytes or 0) <= 640 * row_bytes
    plot(sheet.rows, tmp_path / "p.png", "steps")
    assert (tmp_path / "p.png").stat().st_size > 10_000
    assert "h2o 0.1 eager" in against_full(sheet.rows)[0]


def test_what_time_does_not_allow_is_named(tiny: Model, wanted: Asked) -> None:
    sheet = Sheet(DecodeRow, {}, None)
    asked_one = replace(wanted, contenders=wanted.contenders[:1])
    left = decode(
        tiny, asked_one, [256, 320, 640], How(steps=4, sample=256), Bandwidth(1e9, None), sheet, lambda s: s == 0
    )
    assert left == [320, 640] and [row.tokens for row in sheet.rows] == [256]


def test_no_step_is_audited_while_it_is_timed() -> None:
    audit: LayerAudit = Unaudited()
    audit.selected(None, torch.zeros(1, 2))  # type: ignore[arg-type]
    audit.step(None, torch.zeros(1, 2), None)  # type: ignore[arg-type]
    assert audit.counts == [] and audit.wrong is None


def test_a_step_reads_all_weights_but_the_table_of_embeddings(tiny: Model) -> None:
    table = tiny.network.get_input_embeddings().weight  # type: ignore[operator]
    tied = bool(tiny.network.config.tie_word_embeddings)  # type: ignore[union-attr]
    total = sum(p.nbytes for p in tiny.network.parameters())
    assert weights_read(tiny.network) == total - (0 if tied else table.nbytes) and weight_bytes(tiny.network) >= total


def test_break_even_is_where_the_last_crossing_is() -> None:
    flat = [(n, 3.0) for n in (1, 2, 3, 4)]
    assert break_even(flat, [(1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0)]) == 2.5
    assert break_even(flat, [(n, 4.0) for n in (1, 2, 3, 4)]) == 0.0
    assert break_even(flat, [(n, 2.0) for n in (1, 2, 3, 4)]) is None


def test_several_values_of_a_parameter_race_each_other() -> None:
    words = ["model=tiny", "method=full,pqcache", "budget=0.1,0.2", "pqcache.clustering=gpu", "pqcache.bits=3,4"]
    contenders = asked(words).contenders
    assert [str(c) for c in contenders] == [
        "full", *(f"pqcache bits={bits} {budget}" for budget in (0.1, 0.2) for bits in (3, 4))
    ]  # fmt: skip
    assert [c.method.bits for c in contenders if isinstance(c.method, PQCache)] == [3, 4, 3, 4]
    assert len({c.title for c in contenders}) == 3


def test_goals_pass_fail_and_stay_untried() -> None:
    rows = [replace(ROW, tokens=n) for n in (4096, 16384, 32768, 65536, 131072)]
    assert next(decode_goals(rows, True, [])).verdict == "PASS"
    assert next(decode_goals(rows[:2], True, [32768])).verdict == "UNTRIED"
    assert next(decode_goals([*rows[:2], replace(ROW, of_floor=1.4, tokens=512)], True, [])).verdict == "FAIL"
    assert next(decode_goals([replace(r, decode="eager") for r in rows], True, [])).verdict == "UNTRIED"
    slow = replace(ROW, method="quest", of_full=1.5, tokens=32768, host_resident_bytes=0)
    goals = {goal.goal: goal for goal in decode_goals([*rows, slow], True, [])}
    assert goals["methods on the device faster than full"].verdict == "FAIL"
    far = replace(ROW, method="pqcache", tokens=131072, tpot_ms=29.0, of_full=0.9, host_resident_bytes=1)
    verdicts = [
        {g.goal: g.verdict for g in decode_goals([*rows, row], True, [])}["PQCache from host memory at 128k"]
        for row in (far, replace(far, tpot_ms=31.0), replace(far, of_full=1.1), replace(far, tokens=65536))
    ]
    assert verdicts == ["PASS", "FAIL", "FAIL", "UNTRIED"]
    small, large = (replace(far, method=f"pqcache cache_blocks={n}", tpot_ms=ms) for n, ms in ((32, 40.0), (256, 20.0)))
    both = {g.goal: g for g in decode_goals([*rows, small, large], True, [])}["PQCache from host memory at 128k"]
    assert both.verdict == "PASS" and both.found.startswith("at 128k: 20.0 ms, 0.90 of full's step (pqcache cache_blo")
    assert "; 40.0 ms" in both.found
    assert judged("g", "t", False, "x", gpu=False).verdict == "UNTRIED"


def test_the_break_even_is_judged_within_a_quarter() -> None:
    base = BreakEven(128, 1e9, 1e8, 1000.0, 1200.0, None, 512, 4096)
    assert [g.verdict for g in kcache_goals(base, True)] == ["PASS", "FAIL"]
    assert [g.verdict for g in kcache_goals(replace(base, formula=9999.0, values=0.0), True)] == ["FAIL", "UNTRIED"]
    assert [g.verdict for g in kcache_goals(base, False)] == ["UNTRIED", "UNTRIED"]
