"""The embedded model can be trained again from nothing: seeded, resumable, and its tokenizer loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.words import Draw, vocabulary
from scripts.tiny import network, sequences, tokenizer, train

ROOT = Path(__file__).resolve().parents[1]
TOY = train.Recipe((train.Stage(192, 128, 1, 6), train.Stage(256, 128, 1, 6)), warm_up=2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "text",
    [
        "Text: Gudi car is kova mepu.\nQuestion: Gudi car?\nAnswer: Paragraph 7",
        "  two blanks, tab\tand\r\nlines\n\n",
        "Größe 日本語 😀 \u2581 \u00a0 \x00 <bos> don't 3.14e-7",
        " leading and trailing ",
        "",
    ],
)
def test_any_text_survives(text: str) -> None:
    tok = tokenizer.build()
    ids = tok.encode(text, add_special_tokens=False)
    if "<bos>" not in text:
        assert tok.decode(ids) == text
    assert tok.encode(text)[:1] == [tok.bos_token_id]
    assert tok.unk_token_id not in ids or tok.unk_token_id is None


def test_every_word_is_one_token_and_what_metrics_parse_is_few() -> None:
    tok = tokenizer.build()
    assert all(len(tok.encode(word, add_special_tokens=False)) == 1 for word in [*vocabulary(), "\n"])
    assert tok.tokenize(" Paragraph 7") == ["ĠParagraph", "Ġ7"]
    assert len(tok.tokenize(" Paragraph 4712")) == 5


def test_the_committed_tokenizer_is_the_built_one() -> None:
    built = json.loads(tokenizer.build().backend_tokenizer.to_str())
    assert json.loads((ROOT / "data/tiny/tokenizer.json").read_text()) == built


def test_sequences_are_answered_from_their_context() -> None:
    tok = tokenizer.build()
    for i in range(20):
        made = sequences.make(Draw(str(i)), 512, 256, tokenizer.ids(tok))
        text = tok.decode(made.ids[made.ids != tok.pad_token_id])
        assert made.ids.shape == made.weight.shape == made.kind.shape == (768,)
        assert tok.encode(text, add_special_tokens=False) == made.ids[made.ids != tok.pad_token_id].tolist()
        assert not made.weight[:512].any(), "nothing is learnt from the context itself"
        assert (made.weight[made.kind >= 0] >= 1).all()
        assert (made.kind >= 0).any()


def test_the_training_form_is_the_hugging_face_model() -> None:
    tok = tokenizer.build()
    model = network.initialised(network.config(len(tok)), 3)
    ids = sequences.make(Draw("x"), 512, 128, tokenizer.ids(tok)).ids[None]
    with torch.no_grad():
        whole = model(ids).logits[:, -128:]
        torch.testing.assert_close(network.tail_logits(model, ids, 128, banded=False), whole, rtol=0, atol=1e-4)
        # Look-backs lie within the band, so reading layer 0 in a band changes next to nothing.
        torch.testing.assert_close(network.tail_logits(model, ids, 128, banded=True), whole, rtol=0, atol=1e-2)


def test_the_start_looks_back_and_finds() -> None:
    """Untrained, it copies most values already: an initialisation that fails to is a training that takes hours."""
    tok = tokenizer.build()
    model = network.initialised(network.config(len(tok)), 0)
    right, num = 0, 0
    for i in range(8):
        made = sequences.make(Draw(str(i)), 256, 128, tokenizer.ids(tok))
        with torch.no_grad():
            said = network.tail_logits(model, made.ids[None], 129, banded=True)[0, :-1].argmax(-1)
        asked = made.kind[-128:] >= 0
        right, num = right + int((said == made.ids[-128:])[asked].sum()), num + int(asked.sum())
    assert right / num > 0.4


def test_resumed_training_gives_the_same_weights(tmp_path: Path, one_thread: None) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        train.claim(TOY, folder)
    train.run(TOY, whole, 0, 1, 0)
    stopped = train.Trainer(TOY, range(train.NUM_SHARES), torch.device("cpu"))
    for _ in range(7):
        stopped.run_step()
    train.save(stopped, parts, 1.0)
    train.run(TOY, parts, 0, 1, 0)
    first, second = (load_file(folder / train.CHECKPOINT) for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [line["step"] for line in train.log_lines(parts) if "step" in line]
    assert steps == [8, 10, 12]


def test_another_recipe_never_overwrites(tmp_path: Path) -> None:
    train.claim(TOY, tmp_path)
    with pytest.raises(ValueError, match="another recipe or seed; give another --out"):
        train.claim(train.recipe(smoke=True, seed=0), tmp_path)
    (tmp_path / train.RECIPE).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        train.claim(TOY, tmp_path)


@pytest.mark.slow
def test_the_command_makes_a_model_twice_the_same(tmp_path: Path) -> None:
    """The smoke run in two processes: weights, tokenizer, curve; and the same file once more."""
    files = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "scripts.train_tiny", "--smoke", "--no-tables", "--out", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    held = {path.name for path in (tmp_path / "first").iterdir()}
    assert held >= {"config.json", "tokenizer.json", "curve.png", "train.jsonl", "recipe.json"}
