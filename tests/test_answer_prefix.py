"""The answer prefix: behind the chat template's wrapper, never cut, and no part of other tasks' runs."""

from __future__ import annotations

import pytest
import yaml

from configs.arguments import FOLDER
from configs.build import typed
from configs.compose import compose_config, job
from data.base import Task
from engine.prompt import PromptRule, encode
from eval.job import load_rows
from eval.task_sets import TASK_SETS
from tests.tokens import llama_like

RULER = TASK_SETS["ruler_13"]


def rule(max_prompt: int = 1000, chat: bool = True, truncate: bool = True) -> PromptRule:
    return PromptRule(max_prompt, truncate, chat, {})


def test_the_model_goes_on_with_its_own_turn() -> None:
    tokenizer = llama_like()
    prompt = encode(tokenizer, "ask", rule(), prefix=" It is")
    assert tokenizer.decode(prompt.ids) == "<bos><user>ask<eot><assistant> It is"
    plain = encode(tokenizer, "ask", rule(chat=False), prefix=" It is")
    assert tokenizer.decode(plain.ids) == "<bos>ask It is"
    assert encode(tokenizer, "ask", rule()).ids.tolist() == encode(tokenizer, "ask", rule(), prefix="").ids.tolist()


@pytest.mark.parametrize(("max_prompt", "middle"), [(14, "abcdefghij"), (13, "abcdfghij"), (9, "abhij")])
def test_a_cut_leaves_it_whole(max_prompt: int, middle: str) -> None:
    # BOS is one of the first half; the prefix has three tokens.
    tokenizer = llama_like()
    prompt = encode(tokenizer, "abcdefghij", rule(max_prompt, chat=False), prefix="xyz")
    assert tokenizer.decode(prompt.ids, skip_special_tokens=True) == f"{middle}xyz"
    assert len(prompt.ids) <= max_prompt and prompt.truncated is (len(middle) < 10)


def test_it_counts_for_a_prompt_that_may_not_be_cut() -> None:
    with pytest.raises(ValueError, match=r"a prompt of 14 tokens is over model.max_prompt=13"):
        encode(llama_like(), "abcdefghij", rule(13, truncate=False), prefix="xyz")


@pytest.mark.parametrize("chat", [True, False])
def test_methods_act_at_the_end_of_the_context(chat: bool) -> None:
    tokenizer = llama_like()
    # The question and the prefix say the context's words again.
    prompt = encode(tokenizer, "Read: abc def\nWhat is abc def?", rule(chat=chat), context="abc def", prefix=" abc def")
    start = "<bos><user>" if chat else "<bos>"
    assert tokenizer.decode(prompt.ids[: prompt.context_end]) == f"{start}Read: abc def"


@pytest.mark.parametrize("name", RULER)
def test_every_task_of_ruler_has_one(name: str) -> None:
    task = typed(Task, yaml.safe_load((FOLDER / "task" / f"{name}.yaml").read_text()), "task")
    assert task.chat and task.answer_prefix.startswith(" ")
    assert "{context}" not in task.answer_prefix and task.prompt.count("{context}") == 1
    behind = task.prompt.partition("{context}")[2]
    assert behind and behind.rstrip() == behind, "the question stands behind the context, for question_after"


def test_other_tasks_have_none_and_say_nothing_of_it() -> None:
    for path in (FOLDER / "task").glob("*.yaml"):
        assert ("answer_prefix" in yaml.safe_load(path.read_text())) is (path.stem in RULER), path
    assert "answer_prefix" not in job(compose_config(["task=qasper"]), ()).config["task"]


def test_braces_that_nothing_fills_are_refused() -> None:
    words = ["task=fwe", "task.answer_prefix='{context} {query}'", "data=hub", "task.ruler.samples=1"]
    with pytest.raises(ValueError, match=r"task.answer_prefix \{input\} and no others in braces: KeyError"):
        load_rows(job(compose_config(words), words))
