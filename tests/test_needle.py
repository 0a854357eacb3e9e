"""Needles stand where their rows say, to the token, and are scored by the rules that the row of metrics names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from configs.compose import compose_config, job
from data.base import Sample, Task
from data.made import Needle
from data.needle import NOISE, Cell, before, cell_of, hide, load
from data.tokens import Cut, Vocabulary, in_bytes, tokens_of
from eval.asked import read_rows
from eval.job import Rows, load_rows, prepare
from eval.metrics import METRICS
from eval.recall import match_all, match_part, word_recall
from eval.records import Record
from eval.run_file import read_run
from scripts.compare import wanted
from scripts.needle import main, read_grids, scored
from tests.runs import make, record

FULL = "eat a sandwich and sit in Dolores Park on a sunny day."
ESSAY = (
    "What I worked on. Before college the two main things I worked on, outside of school, were writing and programming."
    '\nI did not write essays. "I wrote short stories." They were awful, weren\'t they? Some 1401 cards, café ones.\n'
)


def task_of(*words: str) -> Task:
    return job(compose_config(["task=needle", *words]), ()).task


@cache
def bpe(prefix: bool = False) -> Tokenizer:
    """A byte-level BPE in which ends of sentences merge with new lines, as in real ones."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not prefix)
    made.train_from_iterator(
        [ESSAY, NOISE, FULL], trainers.BpeTrainer(vocab_size=330, max_token_length=8, show_progress=False)
    )
    return made


@cache
def metaspace() -> Tokenizer:
    """A tokenizer that writes blanks into its tokens, as SentencePiece does."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator([ESSAY, NOISE, FULL], special)
    return made


def cut_of(tokenizer: Tokenizer, folder: Path) -> Cut:
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokens_of(folder / "tokenizer.json")


@pytest.fixture(params=["bpe", "bpe_merging", "metaspace", "bytes"])
def cut(request: pytest.FixtureRequest, tmp_path: Path) -> Cut:
    if request.param == "bytes":
        return in_bytes
    return cut_of(metaspace() if request.param == "metaspace" else bpe(request.param == "bpe_merging"), tmp_path)


@pytest.fixture
def essays(tmp_path: Path) -> str:
    folder = tmp_path / "essays"
    folder.mkdir()
    (folder / "b.txt").write_text("Last essay. It ends.\n")
    (folder / "a.txt").write_text(ESSAY)
    (folder / "c.md").write_text("No essay.")
    return str(folder)


def nominal(needle: Needle, cell: Cell, cut: Cut) -> int:
    return int((cell.length - needle.buffer - len(cut(needle.needle))) * cell.depth / 100)


@pytest.mark.parametrize("place", ["sentence", "token"])
def test_lengths_and_places_are_exact(cut: Cut, essays: str, place: str) -> None:
    task = task_of("task.needle.lengths=[400,731]", "task.needle.depths=[0,33,50,99,100]", f"task.needle.place={place}")
    needle = task.needle
    assert needle is not None
    rows = load(task, essays, cut).samples
    assert len(rows) == 10
    for row in rows:
        cell = cell_of(row.id)
        spans = cut(row.context)
        assert len(spans) == cell.length - needle.buffer == row.length - 200
        begin = row.context.index(needle.needle)
        assert next(i for i, (_, end) in enumerate(spans) if end > begin) == cell.place
        if cell.depth == 100:
            assert row.context.endswith(needle.needle)
        elif place == "token":
            assert cell.place == nominal(needle, cell, cut)
        else:
            assert cell.place <= nominal(needle, cell, cut)
            assert begin == 0 or row.context[:begin].endswith(".")
    assert [cell_of(row.id).depth for row in rows] == [0, 33, 50, 99, 100] * 2


def test_the_needle_goes_behind_the_latest_full_stop_token() -> None:
    text = 'One. Two." Three. Four'
    spans = [(0, 3), (3, 4), (4, 8), (8, 10), (10, 16), (16, 17), (17, 22)]  # `."` is one token
    places = [before(text, spans, target) for target in range(8)]
    assert places == [0, 0, 4, 4, 4, 4, 17, 17]


def test_the_haystack_is_the_text_files_by_name_repeated(essays: str) -> None:
    [row] = load(task_of("task.needle.lengths=[900]", "task.needle.depths=[0]"), essays, in_bytes).samples
    needle = task_of().needle
    assert needle is not None
    whole = ESSAY + "Last essay. It ends.\n"
    assert row.context.startswith(needle.needle)
    behind = row.context.removeprefix(needle.needle)
    assert (whole * 9).startswith(behind) and len(behind) > len(whole)


def test_rows_are_the_same_at_every_call_and_others_for_another_seed(essays: str) -> None:
    words = ("task.needle.lengths=[600]", "task.needle.depths=[50]", "task.needle.repeats=3")
    once, again = (load(task_of(*words), essays, in_bytes) for _ in range(2))
    other = load(task_of(*words, "task.needle.seed=1"), essays, in_bytes)
    assert once == again and once.revision != other.revision
    assert len({row.context for row in once}) == 3
    # The first is the original's, whatever the seed.
    assert once.samples[0] == other.samples[0]


def test_the_noise_needs_no_files() -> None:
    task = task_of("task.needle.haystack=noise", "task.needle.lengths=[500]", "task.needle.depths=[50]")
    data = load(task, "hub", in_bytes)
    assert data.source == "noise" and not data.miniature
    assert data.samples[0].context.startswith(NOISE[:50])


def test_ids_are_read_as_they_are_written() -> None:
    for cell in (Cell(1000, 0, 0, 0), Cell(32000, 33.5, 2, 10_000)):
        assert cell_of(str(cell)) == cell
    with pytest.raises(ValueError, match="no row of task needle"):
        cell_of("row-3")


def rows_of(*words: str) -> Rows:
    return load_rows(job(compose_config(["task=needle", *words]), words))


def test_a_run_says_what_it_asks_before_a_model_is_loaded() -> None:
    words = ["task=needle", "task.needle.miniature_lengths=[300,400]", "task.needle.depths=[0,50]"]
    work = prepare(job(compose_config(words), words))
    said = work.config["task"]["needle"]
    assert (said["miniature_lengths"], said["depths"]) == ((300, 400), (0.0, 50.0))
    assert len(work.samples) == 4 and work.dataset.miniature and work.config["data"] == "miniature"
    deeper = prepare(job(compose_config([*words, "task.needle.depths=[0,60]"]), words))
    assert deeper.folder != work.folder
    real = prepare(
        job(compose_config([*words, "data=hub", "task.needle.haystack=noise", "task.needle.lengths=[300]"]), words)
    )
    assert real.config["data"] == "made" and not real.dataset.miniature


def test_runs_of_read_rows_keep_their_hash() -> None:
    assert "needle" not in job(compose_config(["task=qasper"]), ()).config["task"]


def test_miniature_needles_are_the_only_facts_with_their_key() -> None:
    rows = rows_of("task.needle.miniature_lengths=[300]", "task.needle.depths=[0,50,100]")
    cut = Vocabulary("data/tiny").load()
    assert len({row.input for row in rows.dataset}) == 3
    for row in rows.dataset:
        assert len(cut(row.context)) == 100
        assert row.context.count(row.input) == 1
        assert f"{row.input} is {row.answers[0]}." in row.context
        assert METRICS[rows.task.metric](row.answers[0], row.answers[0], None) == 1.0


def refused(words: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(*words)


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    refused(["data=hub", "task.needle.lengths=[300]"], r"data=hub holds no haystack .* give data=FOLDER")
    refused([f"data={tmp_path}", "task.needle.lengths=[300]"], r"holds no \*.txt")
    refused(["task.needle.lengths=[300]"], "give task.needle.miniature_lengths")
    refused(["task.needle.miniature_lengths=[9000]"], "up to 9000, over model.max_prompt=4608")
    refused(["task.needle.miniature_lengths=[201]"], "the needle has . tokens, too many for a context of 1")
    refused(["task.needle.depths=[101]"], "percents from 0 to 100")
    refused(["task.needle.depths=[5,5]"], "a value stands twice")
    refused(["task.needle.miniature_lengths=[200]"], "lengths over buffer=200")
    refused(["task.needle.repeats=0"], "give 1 or more")


def test_a_length_that_tokens_step_over_is_refused() -> None:
    pairs: Cut = lambda text: [(i, i + 2) for i in range(0, len(text), 2) for _ in range(2)]  # noqa: E731
    text = "ab. " * 50
    with pytest.raises(ValueError, match="no cut of the haystack gives 51 tokens"):
        hide(text, pairs(text), "needle", 51, 0, "sentence", pairs)


def test_word_recall_is_that_of_the_figures() -> None:
    assert word_recall(FULL, FULL) == 1.0
    assert word_recall(f"The best thing to do in San Francisco is {FULL}", FULL) == 1.0
    assert word_recall("go to the beach", FULL) == 0.0
    # Eleven different words, lower case, `day.` with its full stop.
    assert word_recall("EAT Park on a sunny day", FULL) == pytest.approx(5 / 11)
    assert word_recall("", FULL) == 0.0
    with pytest.raises(ValueError, match="it is empty"):
        word_recall("a", " ")


def test_matching_is_by_parts_whatever_the_case() -> None:
    assert match_part("You EAT a sandwich and sit in dolores park!", "eat a sandwich and sit in Dolores Park") == 1.0
    assert match_part("eat a sandwich in Dolores Park", "eat a sandwich and sit in Dolores Park") == 0.0
    assert match_all("12, 34\x0056", "12\n34\n56\n78") == 0.75
    assert match_all("1\x002", "12") == 0.0  # a control character is a new line, not nothing


def test_the_phrase_is_asked_for_by_its_metric() -> None:
    task = replace(task_of("task.needle.haystack=noise"), metric="match_part")
    first: Sample = load(task, "hub", in_bytes).samples[0]
    assert first.answers == ("eat a sandwich and sit in Dolores Park",)


def dense(number: int, record: Record) -> Record:
    """The first prompt is within the budget."""
    return replace(record, dense_short=number == 0)


def test_heat_maps_are_of_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("task=needle", "task.needle.miniature_lengths=[300,400]", "task.needle.depths=[0,50]", "method=window")
    folder = make(tmp_path, *words, scores=(1.0, 0.5, 0.25))
    [grid] = read_grids(wanted([str(folder)], tmp_path, None))
    # Rows go by length, then depth; the last cell was never answered.
    assert grid.recall.tolist()[0] == [1.0, 0.25] and grid.recall[1, 0] == 0.5 and np.isnan(grid.recall[1, 1])
    assert grid.word_recall is not None and grid.phrase is not None
    assert grid.word_recall.value == pytest.approx(175 / 3) and grid.phrase.value == pytest.approx(100 / 3)
    make(tmp_path, *words[:-1], "method=full", scores=(1.0,) * 4)
    make(tmp_path, *words[:-1], "method=h2o", "compensate=1/128", scores=(1.0,) * 4, change=dense)
    argv = ["--results", str(tmp_path), "--out", str(tmp_path / "sub" / "map.png")]
    assert main(argv) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[:3]] == [
        "tiny · full · miniature",
        "tiny · h2o 0.1 · miniature",
        "tiny · window 0.1 · miniature",
    ]
    assert main([*argv, "method=h2o"]) == 0
    assert "(4 of 4 samples, 1 dense)" in capsys.readouterr().out
    assert main([*argv, "method=window"]) == 0
    assert (
        "tiny · window 0.1 · miniature: word recall 58.3 [25.0, 100.0], phrase 33.3 [0.0, 100.0] (3 of 4 samples)"
        in (capsys.readouterr().out)
    )
    assert (tmp_path / "sub" / "map.png").read_bytes().startswith(b"\x89PNG")
    other = make(tmp_path, "task=qasper", "method=window")
    assert main([str(other), "--out", str(tmp_path / "x.png")]) == 1
    assert "found are runs of qasper; give some of needle" in capsys.readouterr().err
    make(tmp_path, "task=needle", "task.needle.miniature_lengths=[300]", "method=full")
    assert main(argv) == 1  # two grids are no figure
    said = capsys.readouterr().err
    assert "are different questions of task needle" in said and "or the folder of one sweep" in said


def test_heat_maps_score_real_predictions_by_both_rules() -> None:
    task = task_of("task.needle.lengths=[300]", "task.needle.depths=[0,100]", "task.needle.haystack=noise")
    sample = Sample("", "", "", ("x",), None, 300)
    records = {
        "L300-D0-R0-P0": record(0, sample, 0.0, f"is to {FULL.upper()}", {}),
        "L300-D100-R0-P70": record(1, sample, 0.0, "sit in a park", {}),
    }
    found = scored(asdict(task), records, small=False)
    assert list(found.values()) == [(1.0, 1.0), (pytest.approx(4 / 11), 0.0)]


def test_rows_of_a_run_are_made_again(tmp_path: Path) -> None:
    words = ("task=needle", "task.needle.miniature_lengths=[300]", "task.needle.depths=[0,50]", "method=window")
    run = read_run(make(tmp_path, *words, scores=(1.0, 0.5)))
    assert [cell_of(row.id).depth for row in read_rows(run)] == [0, 50]
