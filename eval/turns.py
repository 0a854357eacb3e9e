"""The prompt of one of several questions about a context: what is prefilled is the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from data.base import Sample, Task
from data.turns import Turn
from engine.model import Model
from engine.prompt import Prompt, PromptRule, chat_goes_on, encode, fitting, longer, token_ids
from eval.job import Work
from eval.records import read_records


def told(work: Work, sample: Sample) -> Sample:
    """The sample with the answers that came before it in this run, where the task wants these and not the gold ones.

    They are the predictions as decoded, as a chat would hold them. Raises ValueError where one is missing.
    """
    turns = work.task.turns
    if turns is None or not turns.from_records or not sample.earlier:
        return sample
    records = read_records(work.folder)
    asked = [one.id for one in work.dataset if one.row == sample.row][: len(sample.earlier)]
    said = [records[name].prediction if name in records else None for name in asked]
    if None in said:
        raise ValueError(f"task.turns.answers=own: sample {asked[said.index(None)]} before this one has no answer")
    return replace(sample, earlier=tuple(replace(t, answer=s or "") for t, s in zip(sample.earlier, said, strict=True)))


def render_turn(work: Work, model: Model, sample: Sample, rule: PromptRule) -> Prompt:
    """The prompt of a question of a row with several.

    A conversation is its first prompt, on which methods act (with protocol question_after on its context), and what
    was said since; later tokens pass through the compressed cache. A request is a prompt of its own. Contexts are cut
    alone, to the same text for all questions. Raises ValueError for a conversation that is too long for the model.
    """
    task, turns, tokenizer = work.task, work.task.turns, model.tokenizer
    assert turns is not None
    asked = talk(task, sample)
    context = fitting(tokenizer, sample.context, room(work, model, sample, rule)) if rule.truncate else sample.context
    after = work.job.settings.protocol == "question_after"
    first = encode(tokenizer, opening(task, asked[0], context), rule, context if after else None)
    later = since(task, model, asked, rule)
    prompt = longer(tokenizer, first, later) if later else first
    if later and len(prompt.ids) > rule.max_prompt:
        raise ValueError(f"a conversation of {len(prompt.ids)} tokens is over model.max_prompt={rule.max_prompt}")
    return replace(prompt, truncated=prompt.truncated or context != sample.context)


def talk(task: Task, sample: Sample) -> list[Turn]:
    """What a prompt asks: in a conversation, all that was asked up to the sample."""
    assert task.turns is not None
    now = Turn(sample.input, "", sample.fields)
    return [*sample.earlier, now] if task.turns.mode == "conversation" else [now]


def opening(task: Task, turn: Turn, context: str) -> str:
    """The text of a first question or of a request."""
    assert task.turns is not None
    own = task.turns.request if task.turns.mode == "requests" else None
    return (own or task.prompt).format(context=context, input=turn.input, **turn.fields)


def since(task: Task, model: Model, asked: Sequence[Turn], rule: PromptRule) -> list[str]:
    """What a conversation goes on with behind its first question."""
    turns = task.turns
    assert turns is not None
    if not rule.chat:
        return [turns.follow.format(answer=a.answer, input=b.input, **b.fields) for a, b in pairwise(asked)]
    users = [turns.chat_follow.format(input=turn.input, **turn.fields) for turn in asked[1:]]
    return [
        chat_goes_on(model.tokenizer, before.answer, user, rule.chat_kwargs) + turns.chat_begun
        for before, user in zip(asked, users, strict=False)
    ]


def room(work: Work, model: Model, sample: Sample, rule: PromptRule) -> int:
    """Tokens that the context of a row may have, the same for all its questions.

    Left out are the frame and SCBench's reserve, all answers at their longest, or what the row itself asks and answers
    where that is more.
    """
    task, turns, tokenizer = work.task, work.task.turns, model.tokenizer
    assert turns is not None
    longest = [part.max_new_tokens for part in turns.parts] or [task.max_new_tokens]
    blank = Turn("", "", dict.fromkeys(sample.fields, ""))
    reserve = len(token_ids(tokenizer, opening(task, blank, ""))) + turns.most * sum(longest) // len(longest)
    [*_, last] = (one for one in work.dataset if one.row == sample.row)
    asked = talk(task, last)
    first = len(encode(tokenizer, opening(task, asked[0], ""), rule).ids)
    later = sum(len(token_ids(tokenizer, text, special=False)) for text in since(task, model, asked, rule))
    return rule.max_prompt - max(reserve, first + later + max(longest))
