"""The rows of any task, read from where they lie or made for the run's tokenizer."""

from __future__ import annotations

from data import gsm8k, infinitebench, longbench, longbench_v2, miniature, needle, scbench
from data.base import Dataset, Task
from data.ruler import rows as ruler
from data.tokens import Vocabulary


def read(task: Task, source: str, vocabulary: Vocabulary) -> Dataset:
    """The rows of a task. source: "miniature", "miniature_hard", "hub", or a path.

    Raises ValueError, in one line, for rows that are missing or malformed, or that cannot be made.
    """
    if task.needle is not None:
        return needle.load(task, source, vocabulary.load())
    if task.ruler is not None:
        return ruler.load(task, source, vocabulary.load())
    if task.turns is not None:
        return scbench.load(task, source)
    if task.infinitebench is not None:
        return infinitebench.load(task.chosen(), source, vocabulary)
    if task.longbench_v2 is not None:
        return longbench_v2.load(task, source)
    if task.gsm8k is not None:
        return gsm8k.load(task, source)
    if source in miniature.DENSITY:
        return miniature.load(task, source=source)
    return longbench.load(task, source)
