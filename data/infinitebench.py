"""The rows of InfiniteBench (arXiv 2402.13718), from a folder or the hub, and what its prompts make of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from data import infinitebench_made as made
from data import longbench
from data.base import Dataset, Sample, Task
from data.longbench import check_row, git_blob_sha1, is_text, is_texts_or_null, json_lines
from data.miniature import DENSITY
from data.tokens import Vocabulary

HUB_REPOSITORY = "xinrongzhang2022/InfiniteBench"
HUB_REMEDY = "give data=PATH of a folder with its jsonl files"
FIELDS = "context (text), input (text), answer (text, number, or a list of them), options (list of text, if any)"
LETTERS = "ABCD"
CALL = re.compile(r"func_[0-9]+\(-?[0-9]+\)")
TARGET = re.compile("The .+ of")


def load(task: Task, source: str, vocabulary: Vocabulary) -> Dataset:
    """The rows of a task, in the variant that it was asked for (`Task.chosen`). source: as in `data.rows.read`.

    With `task.infinitebench.tokens`, rows that are made for the tokenizer. No hash of the files is published, so that
    rows that are read are neither official nor not. Raises ValueError, in one line, for what cannot be read or made.
    """
    spec = task.infinitebench
    assert spec is not None
    small = source in DENSITY
    if small:
        task.small()
        where, data = source, made.text(made.miniature_rows(task.name, source, spec))
    elif spec.tokens is not None:
        where, data = "generated", made.text(made.rows(task, spec, spec.tokens, vocabulary.load(), sample_of))
    elif source == "hub":
        path = longbench.hub_file(HUB_REPOSITORY, f"{task.name}.jsonl", None, HUB_REMEDY)
        # The hub's cache keeps files under snapshots/<commit>/.
        where, data = f"hub:{HUB_REPOSITORY}@{path.parent.name}:{path.name}", longbench.read_file(path)
    else:
        data, where = longbench.read_local(task, Path(source).expanduser())
    return Dataset(parse(task.small() if small else task, data, where), where, git_blob_sha1(data), None, small)


def parse(task: Task, data: bytes, where: str) -> tuple[Sample, ...]:
    """The samples in the text of an InfiniteBench jsonl file. where: the name of the text in errors.

    Raises ValueError with the line for anything that is no such row.
    """
    samples: list[Sample] = []
    taken: set[str] = set()
    for line, row in json_lines(data, where):
        # Old files call the context so.
        full = {"id": line - 1, "context": row.get("content"), "options": None, **row}
        check_row(full, RULES, f"{where}:{line}", FIELDS)
        try:
            samples.append(sample_of(task, full, longbench.unique(str(full["id"]), taken)))
        except ValueError as error:
            raise ValueError(f"{where}:{line}: {error}") from None
        taken.add(samples[-1].id)
    if not samples:
        raise ValueError(f"{where} is empty; it must hold one JSON object a line with {FIELDS}")
    return tuple(samples)


def sample_of(task: Task, row: Mapping[str, Any], sample_id: str) -> Sample:
    """The sample of a row. Raises ValueError where the row lacks what the prompt names."""
    answers, classes = graded(row["answer"], row.get("options") or ())
    return Sample(
        id=sample_id,
        context=row["context"],
        input=row["input"],
        answers=answers,
        all_classes=classes,
        length=len(row["context"].split()),
        fields={name: _field(name, row, task) for name in named(task.prompt)},
    )


def graded(answer: Any, options: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The answers, and what the rules know besides one of them: the options in their order, or all answers.

    Numbers keep their kind as text, `48` or `48.0`, and a list of numbers (Math.Calc) is one answer. The answer of a
    choice is its text; where a row gives its letter too, that letter stands, whatever the options say.
    """
    items = answer if isinstance(answer, list) else [answer]
    if not options:
        if len(items) > 1 and all(map(is_number, items)):
            items = [items]
        answers = tuple(", ".join(map(str, item)) if isinstance(item, list) else str(item) for item in items)
        return answers, answers
    text, letters = str(items[0]), tuple(LETTERS[: len(options)])
    if len(items) == 2 and items[1] in letters:
        place = letters.index(items[1])
    elif text in options[: len(letters)]:
        place = options.index(text)
    else:
        raise ValueError(f"the answer {text[:80]!r} is none of the first {len(LETTERS)} options")
    return (text,), tuple(text if i == place else option for i, option in enumerate(options))


def named(prompt: str) -> list[str]:
    """What a prompt names besides context and input. Raises ValueError for what no row can give."""
    names = [name for _, name, _, _ in Formatter().parse(prompt) if name and name not in ("context", "input")]
    if unknown := [name for name in names if name not in PARTS]:
        raise ValueError(f"task.prompt names {{{unknown[0]}}}; allowed are context, input, {', '.join(PARTS)}")
    return names


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_answer(value: object) -> bool:
    if not isinstance(value, list):
        return is_text(value) or is_number(value)
    nested = (isinstance(item, list) and item != [] and all(map(is_number, item)) for item in value)
    return value != [] and all(
        is_text(item) or is_number(item) or deep for item, deep in zip(value, nested, strict=True)
    )


def _field(name: str, row: Mapping[str, Any], task: Task) -> str:
    try:
        return PARTS[name](row)
    except (LookupError, TypeError):
        raise ValueError(
            f"the prompt of {task.name} names {{{name}}}, which this row's input and options lack"
        ) from None


def _called(row: Mapping[str, Any]) -> str:
    return str(CALL.findall(row["input"])[0])


def _target(row: Mapping[str, Any]) -> str:
    """`The second largest number of` as the question that stands before the list."""
    return f"What is {TARGET.findall(row['input'])[0].lower()[:-3]} in the following list?"


def _option(index: int) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row["options"][index])


RULES = {
    "context": is_text,
    "input": is_text,
    "answer": is_answer,
    "options": is_texts_or_null,
}
# What templates name, of a row. `key` (InfLLM) is the asked key with its quotes.
PARTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "question": lambda row: str(row["input"]),
    "func": lambda row: _called(row).partition("(")[0],
    "func_call": _called,
    "prefix": _target,
    "key": lambda row: str(row["input"])[6:44],
    **{f"OPTION_{letter}": _option(i) for i, letter in enumerate(LETTERS)},
}
