"""What a run refuses before a model is loaded, because it would fail for every sample."""

from __future__ import annotations

from collections.abc import Sequence

from eval.ask import rule_of
from eval.job import Work
from eval.metrics import metric


def rehearse(work: Work) -> None:
    """Refuse, before a model is loaded, what would fail for every sample. Raises ValueError."""
    task = work.task
    for name in task.metrics:
        metric(name, work.job.settings.fuzz)
    rule_of(work)
    if "{context}" not in task.prompt and work.job.settings.protocol == "question_after":
        raise ValueError(
            "protocol=question_after: task.prompt has no {context} that could end; give protocol=longbench"
        )
    if task.max_new_tokens < 1:
        raise ValueError(f"task.max_new_tokens={task.max_new_tokens} is out of range: give 1 or more")
    fields = work.samples[0].fields if work.samples else {}
    refuse_braces("prompt", task.prompt, ["context", "input", *fields])
    if task.turns is not None and task.turns.request is not None:
        refuse_braces("turns.request", task.turns.request, ["context", "input", *fields])
    refuse_braces("answer_prefix", task.answer_prefix, ["input"])
    if task.conclusion is not None:
        refuse_braces("longbench_v2.conclusion.prompt", task.conclusion.prompt, ["input", "reasoning", *fields])


def refuse_braces(name: str, template: str, allowed: Sequence[str]) -> None:
    """Raise ValueError for a template of the task that names more than what is there."""
    try:
        template.format(**dict.fromkeys(allowed, ""))
    except (ValueError, LookupError) as error:
        raise ValueError(f"task.{name} has more in braces than {{{'}, {'.join(allowed)}}}: {error!r}") from error
