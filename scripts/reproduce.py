"""The command that repeats a run: its names, and every setting in which it differs from what they compose."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from configs.arguments import choices, parse
from configs.compose import compose_config, compose_method, job
from eval.html_report import Command
from eval.stored import ARM, IGNORED, Stored, flat

# Keys of a run's config that `eval.job.prepare` adds, and the rows, which are named by what they are.
DERIVED = ("method_name", "method_source", "data", "data_revision")
PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]+")


def command(run: Stored) -> Command:
    """What to type to make this run again; as it was typed, with a note, where its names are unknown here."""
    given = argv(run)
    try:
        words = [*names(run, given), *changes(run, given), *place(run, given)]
        return Command(shlex.join(["python", "run.py", *words]))
    except ValueError as error:
        return Command(shlex.join(["python", "run.py", *given]), f"as it was typed; not checked: {error}")


def asking(run: Stored, methods: Sequence[str], budget: str, more: Sequence[str] = ()) -> Command:
    """The command that asks other methods at a budget what this run was asked; the words `more` win over its own.

    Raises ValueError for a method that is unknown or has no budget.
    """
    for name in methods:
        if compose_method(name, ())[1].kind == "none":
            raise ValueError(f"method={name} has no budget, so that nothing matches it to an average: leave it out")
    same = command(run)
    kept = [word for word in shlex.split(same.text)[2:] if word.partition("=")[0].partition(".")[0] not in ARM]
    words = [f"method={','.join(methods)}", f"budget={budget}", *kept, *more]
    by_key = {word.partition("=")[0]: word for word in words}
    return Command(shlex.join(["python", "run.py", "-m", *by_key.values()]), same.note)


def argv(run: Stored) -> list[str]:
    """The command line of the last session."""
    return [str(word) for word in run.run.sessions[-1]["provenance"].get("argv", ())]


def names(run: Stored, given: Sequence[str]) -> list[str]:
    """The words that name method, task and model. Raises ValueError for a method that has no YAML here."""
    task = str(run.run.config["task"]["name"])
    model = last(given, "model")
    words = [f"method={run.run.method}", f"task={task}", f"model={model or run.run.model}"]
    if run.run.method not in choices("method"):
        words[0] = f"method._target_={run.run.config['method']['_target_']}"
        words.insert(0, f"method={last(given, 'method') or 'full'}")
    for word in words:
        parse(word)
    return words


def last(given: Sequence[str], key: str) -> str | None:
    """The value that a command line gave a key; None for none, and for several, as in a sweep."""
    values = [value for word in given for name, _, value in [word.partition("=")] if name == key]
    return values[-1] if values and "," not in values[-1] else None


def changes(run: Stored, given: Sequence[str]) -> Iterator[str]:
    """`key=value` for each setting that differs from what the names alone give."""
    usual = composed(tuple(names(run, given)))
    for key, value in flat({k: v for k, v in run.run.config.items() if k not in DERIVED}).items():
        if value != usual.get(key) and not (value is None and key in IGNORED) and not _follows(run, key):
            yield f"{key}={written(value)}"


def _follows(run: Stored, key: str) -> bool:
    """Whether another word gives a key its value: a class its `_target_`, random weights a model's name."""
    return key.endswith("._target_") or (key == "model.name" and run.run.config["model"].get("weights") == "random")


@cache
def composed(words: tuple[str, ...]) -> Mapping[str, Any]:
    """The configuration that these words alone give, flat."""
    # As a run keeps it: JSON knows no tuples.
    return flat(json.loads(json.dumps(dict(job(compose_config(words), words).config))))


def place(run: Stored, given: Sequence[str]) -> Iterator[str]:
    """Where the rows came from, where it is not what the model's YAML says; and how many were asked."""
    data = last(given, "data") or (
        run.run.config["data"] if str(run.run.config["data"]).startswith("miniature") else None
    )
    usual = composed(tuple(names(run, given))).get("model.data")
    if data is not None and data != usual:
        yield f"data={written(data)}"
    if run.limit is not None:
        yield f"limit={run.limit}"


def written(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(written(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{written(key)}:{written(item)}' for key, item in value.items())}}}"
    text = str(value)
    if isinstance(value, int | float) or (PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false")):
        return text
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"
