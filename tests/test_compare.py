"""Comparing runs: which may stand in one table, what a table says, and what it refuses."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from eval.comparison import Comparison, Options
from eval.comparison_tables import caption, difference_frame, score_frame, tidy
from eval.cost import QUANTITIES, SHARED
from eval.pareto import Plot, Point, draw, front, plots, svg
from eval.stored import ARM, find
from scripts.compare import compared, main, wanted
from scripts.publish import figures, tables
from scripts.reproduce import command
from tests.runs import composed, failing, ledger, make, without

FULL = (1.0,) * 8
WORSE = (0.0, 0.1, 0.2, 0.3, 0.05, 0.15, 0.5, 1.0)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """full and h2o on two tasks, window on one."""
    for task in ("narrativeqa", "hotpotqa"):
        make(tmp_path, "method=full", f"task={task}", scores=FULL)
        make(tmp_path, "method=h2o", f"task={task}", "budget=0.1", scores=WORSE)
    make(tmp_path, "method=window", "task=narrativeqa", "budget=0.2", scores=FULL)
    return tmp_path


def compare(results: Path, *words: str, options: Options = Options()) -> Comparison:  # noqa: B008
    [found] = compared(wanted(words, results, None), options)
    return found


def test_scores_and_differences(results: Path) -> None:
    found = compare(results)
    assert [row.label for row in found.run_set.rows] == ["full", "h2o 0.1", "window 0.2"]
    assert [column.name for column in found.columns] == ["narrativeqa", "hotpotqa", "mean of 2 tasks"]
    cell = found.cells["h2o 0.1", "narrativeqa"]
    assert cell.score is not None and cell.score.value == pytest.approx(28.75) and cell.score.n == 8
    assert cell.against is not None and cell.against.difference.value == pytest.approx(-71.25)
    assert cell.against.holds is False and cell.against.flips["narrativeqa"].num_worse == 7
    assert found.cells["full", "narrativeqa"].against is None
    same = found.cells["window 0.2", "narrativeqa"].against
    assert same is not None and same.same and same.verdict.p == 1.0


def test_families_are_corrected_apart_and_named(results: Path) -> None:
    found = compare(results)
    assert found.families == ("3 comparisons of single tasks", "1 comparison of averages")
    single, mean = (found.cells["h2o 0.1", name].against for name in ("narrativeqa", "mean of 2 tasks"))
    assert single is not None and mean is not None
    assert single.verdict.adjusted == pytest.approx(3 * single.verdict.p)
    assert mean.verdict.adjusted == pytest.approx(mean.verdict.p)
    for words in ("3 comparisons of single tasks", "protocol longbench", "MINIATURE", "n = 8", "local share 0.5"):
        assert words in caption(found)
    assert "mean over narrativeqa, hotpotqa" in caption(found)


@pytest.mark.parametrize(("change", "said"), [(without(3), "7 of 8"), (failing(3), "7 of 8, 1 failed")])
def test_incomplete_runs_are_never_averaged(tmp_path: Path, change: object, said: str) -> None:
    make(tmp_path, "method=full", "task=narrativeqa", scores=FULL)
    make(tmp_path, "method=window", "task=narrativeqa", scores=FULL)
    make(tmp_path, "method=h2o", "task=narrativeqa", scores=WORSE, change=change)  # type: ignore[arg-type]
    frame = score_frame(compare(tmp_path))
    assert frame.loc["h2o 0.1", "narrativeqa"] == f"incomplete: {said}"
    assert frame.loc["window 0.1", "narrativeqa"] == "100.00 no spread"


def test_a_lost_record_empties_its_cells_only(results: Path) -> None:
    before = tidy(compare(results)).set_index(["row", "column"])
    path = next((results / "tiny/hotpotqa/h2o").glob("*/records.jsonl"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    after = tidy(compare(results)).set_index(["row", "column"])
    gone = after.index[after.score.isna() & before.score.notna()]
    assert list(gone) == [("h2o 0.1", "hotpotqa"), ("h2o 0.1", "mean of 2 tasks")]
    kept = after.index.difference(gone)
    assert after.loc[kept, "score"].equals(before.loc[kept, "score"])


def test_an_incomplete_baseline_compares_nothing_there(tmp_path: Path) -> None:
    make(tmp_path, "method=full", "task=narrativeqa", scores=FULL, change=without(0))
    make(tmp_path, "method=h2o", "task=narrativeqa", scores=WORSE)
    cell = compare(tmp_path).cells["h2o 0.1", "narrativeqa"]
    assert cell.score is not None and cell.against is None


def test_what_may_not_be_mixed(results: Path) -> None:
    make(results, "method=h2o", "task=narrativeqa", "protocol=question_after")
    with pytest.raises(ValueError, match="protocol=longbench or protocol=question_after never stand in one table"):
        compare(results)
    assert compare(results, "protocol=longbench").run_set.protocol == "longbench"
    make(results, "method=full", "task=narrativeqa", "data=miniature_hard")
    with pytest.raises(ValueError, match="data=miniature or data=miniature_hard"):
        compare(results, "protocol=longbench")


def test_prompts_that_differ_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "method=full", "task=narrativeqa")
    other = make(
        tmp_path, "method=h2o", "task=narrativeqa", change=lambda n, r: replace(r, prompt_sha="x") if n == 2 else r
    )
    with pytest.raises(ValueError, match=f"different prompts in .*full.* and {other}"):
        compare(tmp_path)


def test_other_settings_make_another_table(results: Path) -> None:
    make(results, "method=full", "task=narrativeqa", "seed=1")
    found = compared(wanted([], results, None), Options())
    assert len(found) == 2 and found[0].run_set.differs == ("seed",)


def test_words_choose(results: Path) -> None:
    labels = [row.label for row in compare(results, "budget=0.10").run_set.rows]
    assert labels == ["full", "h2o 0.1"]  # full ignores its budget
    labels = [row.label for row in compare(results, "method=window").run_set.rows]
    assert labels == ["full", "window 0.2"]  # the baseline stays
    assert compare(results, "method=window").run_set.tasks == ("narrativeqa",)
    with pytest.raises(ValueError, match="no run has method=pq; found are full, h2o, window"):
        compare(results, "method=pq")
    with pytest.raises(ValueError, match="chooses no runs"):
        compare(results, "metod=h2o")
    with pytest.raises(ValueError, match="limit=0"):
        compare(results, "limit=0")


def test_a_limit_takes_the_first_samples(results: Path) -> None:
    cell = compare(results, "limit=7").cells["h2o 0.1", "narrativeqa"]
    assert cell.score is not None and cell.score.value == pytest.approx(100 * 1.3 / 7)


def test_folders_choose(results: Path) -> None:
    assert compare(results, str(results / "tiny/hotpotqa")).run_set.tasks == ("hotpotqa",)
    with pytest.raises(ValueError, match="no run is in"):
        compare(results, str(results / "nowhere"))


def test_parameters_that_differ_are_in_the_name(results: Path) -> None:
    make(results, "method=pqcache", "task=narrativeqa", "method.bits=4")
    make(results, "method=pqcache", "task=narrativeqa", "method.bits=5")
    labels = [row.label for row in compare(results, "method=pqcache").run_set.rows]
    assert labels == ["full", "pqcache 0.1 bits=4", "pqcache 0.1 bits=5"]


def test_baselines(results: Path) -> None:
    make(results, "method=h2o", "task=narrativeqa", "budget=0.2")
    with pytest.raises(ValueError, match=r"--baseline 'h2o 0\.1' or --baseline 'h2o 0.2'"):
        compare(results, options=Options(baseline="h2o"))
    found = compare(results, options=Options(baseline="h2o 0.1"))
    against = found.cells["full", "narrativeqa"].against
    assert against is not None and against.difference.value == pytest.approx(71.25)
    nobody = compare(results, options=Options(baseline="oracle"))
    assert nobody.baseline is None and "no run of oracle" in caption(nobody)


def test_files_hold_the_numbers(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--results", str(results), "--out", str(out), "task=narrativeqa"]) == 0
    said = capsys.readouterr().out
    assert "MINIATURE, not LongBench" in said and "28.75" in said and str(out / "report.html") in said
    for frame in (pd.read_csv(out / "comparison.csv"), pd.read_parquet(out / "comparison.parquet")):
        line = frame.set_index("row").loc["h2o 0.1"]
        assert line.score == pytest.approx(28.75) and line.difference == pytest.approx(-71.25)
        assert line.data == "miniature" and line.protocol == "longbench" and line.attended == 100.0
    latex = (out / "comparison.tex").read_text()
    assert r"\toprule" in latex and r"$-$71.25" in latex and "MINIATURE" in latex
    assert "| h2o 0.1 |" in (out / "comparison.md").read_text()
    assert (out / "plots/tiny-attended.png").stat().st_size > 1000


def test_mistakes_are_one_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(results), "task=nothing"]) == 1
    assert main(["--results", str(results), "--margin", "0"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and all(line.startswith("error: ") for line in said.splitlines())


def test_tables_and_figures_for_others(results: Path, tmp_path: Path) -> None:
    found = [compare(results)]
    assert set(tables(found)) > {"comparison"}
    assert all(path.suffix == ".png" and path.exists() for path in figures(found, tmp_path / "plots").values())


def test_times_of_shared_prefills_are_not_measured(tmp_path: Path) -> None:
    make(tmp_path, "method=full", "task=narrativeqa", cost=ledger(800.0))
    make(tmp_path, "method=h2o", "task=narrativeqa", cost=ledger(100.0, seconds=None))
    tpot = next(plot for plot in plots(compare(tmp_path)) if plot.quantity.key == "tpot")
    assert [point.label for point in tpot.points] == ["full"] and tpot.missing == (("h2o 0.1", SHARED),)


def test_costs_follow_the_scores(results: Path) -> None:
    found = compare(results)
    assert found.main.name == "mean of 2 tasks"
    spent = found.costs["h2o 0.1", "narrativeqa"]
    assert (spent["attended"].value, spent["resident"].value, spent["moved"].value) == (100.0, 2010.0, 505.0)
    assert ("window 0.2", "mean of 2 tasks") not in found.costs


def test_the_front_is_what_none_beats() -> None:
    def point(label: str, cost: float, score: float) -> Point:
        return Point(label, label, "", cost, score, None, None)

    cheap, good, beaten, twin = (
        point("cheap", 1, 50),
        point("good", 3, 90),
        point("beaten", 3, 80),
        point("twin", 3, 90),
    )
    dear = point("dear", 5, 90)
    assert front([good, dear, beaten, cheap, twin]) == [cheap, good, twin]
    assert front([]) == []


def test_plots_are_repeatable_and_take_the_pages_colours() -> None:
    points = tuple(Point(f"$m_{n}$ <&>", f"$m_{n}$ <&>", "0.1", 10.0**n, 10.0 * n, None, None) for n in range(1, 4))
    drawn = [svg(Plot(QUANTITIES[0], "narrativeqa", points, ())) for _ in range(2)]
    assert drawn[0] == drawn[1] and "currentColor" in drawn[0] and "#010203" not in drawn[0]
    texts = "".join(ElementTree.fromstring(drawn[0]).itertext())
    assert "$m_1$ <&>" in texts  # neither formula nor markup


def test_a_legend_of_many_methods_is_within_the_figure() -> None:
    for count in (1, 4, 30):
        names = [f"expected_attention_{number}" for number in range(count)]
        points = tuple(Point(name, name, "", 1.0 + n, 10.0, None, None) for n, name in enumerate(names))
        figure = draw(Plot(QUANTITIES[0], "narrativeqa", points, ()))
        figure.draw_without_rendering()
        box, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
        assert len(figure.legends) == 1 and box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
        assert axes.height > 200 and axes.y0 > box.y1


@pytest.mark.parametrize(
    "words",
    [
        ("method=full", "task=narrativeqa"),
        ("method=h2o", "task=hotpotqa", "budget=512tok", "seed=3"),
        ("method=pqcache", "task=narrativeqa", "budget=0.2", "method.bits=4", "local_share=0.25"),
        ("method=window", "task=narrativeqa", "data=miniature_hard", "task.miniature.max_new_tokens=4"),
    ],
)
def test_the_command_repeats_the_run(tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = make(tmp_path, *words)
    [run] = find([folder])
    said = command(run)
    again = shlex.split(said.text)[2:]
    assert said.note == "" and "limit=8" in again
    assert composed(*again).folder.name == folder.name


def test_arms_are_the_engines(results: Path) -> None:
    """What shares a prefill differs in nothing but what makes a row, or in the sink, which makes another table."""
    from eval.job import ARM_KEYS

    assert {*ARM_KEYS} - {"sink"} <= {*ARM}


def test_differences_have_no_line_for_the_baseline(results: Path) -> None:
    frame = difference_frame(compare(results))
    assert list(frame.index) == ["h2o 0.1", "window 0.2"]
    assert frame.loc["window 0.2", "narrativeqa"] == "0 on every sample same"
    assert frame.loc["window 0.2", "hotpotqa"] == "–"
