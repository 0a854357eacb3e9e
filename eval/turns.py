"""The prompt of one of several questions about a context: what is prefilled is the same for all of them."""

from __future__ import annotations

from dataclasses import replace

from data.base import Sample
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
    return replace(sample, earlier=tuple(Turn(t.input, s or "") for t, s in zip(sample.earlier, said, strict=True)))


def render_turn(work: Work, model: Model, sample: Sample, rule: PromptRule) -> Prompt:
    """The prompt of a question of a row with several.

    A conversation is its first prompt, on which methods act (with protocol question_after on its context), and what
    was said since; later tokens pass through the compressed cache. A request is a prompt of its own. Contexts are cut
    alone, to the same text for all questions, with SCBench's reserve for their inputs and answers.
    Raises ValueError for a conversation that is too long for the model.
    """
    task, turns, tokenizer = work.task, work.task.turns, model.tokenizer
    assert turns is not None
    talk = turns.mode == "conversation"
    said = [*(turn.input for turn in sample.earlier), sample.input] if talk else [sample.input]
    frame = len(token_ids(tokenizer, task.prompt.format(context="", input="")))
    room = rule.max_prompt - frame - turns.most * task.max_new_tokens
    context = fitting(tokenizer, sample.context, room) if rule.truncate else sample.context
    after = work.job.settings.protocol == "question_after"
    first = encode(tokenizer, task.prompt.format(context=context, input=said[0]), rule, context if after else None)
    later = []
    for turn, text in zip(sample.earlier, said[1:], strict=False):
        if rule.chat:
            user = turns.chat_follow.format(input=text)
            later.append(chat_goes_on(tokenizer, turn.answer, user, rule.chat_kwargs))
        else:
            later.append(turns.follow.format(answer=turn.answer, input=text))
    prompt = longer(tokenizer, first, later) if later else first
    if later and len(prompt.ids) > rule.max_prompt:
        raise ValueError(f"a conversation of {len(prompt.ids)} tokens is over model.max_prompt={rule.max_prompt}")
    return replace(prompt, truncated=prompt.truncated or context != sample.context)
