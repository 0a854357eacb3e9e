"""Rows with several questions about one context, as SCBench lays them out (arXiv 2412.10319), read or generated.

A row holds context (text), multi_turns (a list of {input, answer}) and usually id. Each question becomes a sample of
its own, named `<row>-turn<number>`, which knows the questions before it. Choices have their options in `options`, and
questions of rows that mix tasks say in `task` which is theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from string import Formatter
from textwrap import shorten
from typing import Any

from data import filler, longbench
from data.base import Dataset, Sample, Task
from data.infinitebench import LETTERS, graded
from data.kinds import KINDS
from data.longbench import check_row, git_blob_sha1, is_text, is_texts, json_lines
from data.miniature import DENSITY, LENGTHS, plain
from data.turns import FIELDS as PARTS
from data.turns import Turn, Turns
from data.words import Draw

HUB_REPOSITORY = "microsoft/SCBench"
HUB_REMEDY = "give data=PATH of a folder with its jsonl or parquet files"
FIELDS = "context (text), multi_turns (list of objects with input (text) and answer (text, number or list of these))"
# What the miniature of a task asks for, and how many questions of a row.
MINIATURE = {"scbench_kv": "pairs", "scbench_qa_eng": "qa"}
NUM_TURNS = 5
TARGET = re.compile("The .+ is")
# RepoQA's rule looks for the function among all that are asked about in the row's `repo`, which is in `lang`.
FUNCTIONS = "repeated_function"
LANGUAGES = ("python", "java", "typescript", "rust", "cpp", "go")


def load(task: Task, source: str) -> Dataset:
    """The questions of a task, row by row. source: as in `data.rows.read`.

    A folder holds `<task>.jsonl`, or the hub's layout, `<task>/test*.parquet`. Nothing is published that the rows
    could be checked against. Raises ValueError, in one line, for what cannot be read or is no such row.
    """
    assert task.turns is not None
    small = source in DENSITY
    if small:
        task.small()
        where, rows = source, list(miniature_rows(task.name, source))
    elif source == "hub":
        where, rows = _read_hub(task.name)
    else:
        where, rows = read_folder(task.name, Path(source).expanduser())
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    asked = [tuple(questions(row, number, where, task)) for number, row in enumerate(rows)]
    if FUNCTIONS in task.metrics:
        asked = among_functions(asked, rows, where, task)
    samples = tuple(chain.from_iterable(asked))
    if not samples or len({sample.id for sample in samples}) < len(samples):
        raise ValueError(f"{where} has {'equal ids' if samples else 'no questions'}; it must hold rows with {FIELDS}")
    return Dataset(samples, where, git_blob_sha1(data), official=None, miniature=small)


def questions(row: Mapping[str, Any], number: int, where: str, task: Task) -> Iterator[Sample]:
    """The questions of row `number` (from 0), the first `task.turns.most`. Raises ValueError for what is no row."""
    assert task.turns is not None
    at = f"{where}: row {number}"
    # The hub's rows of scbench_vt have their context in `input`.
    full = {**row, "context": row.get("context") or row.get("input")}
    check_row(full, {"context": is_text, "multi_turns": _is_turns}, at, FIELDS)
    name = f"row-{number}" if row.get("id") is None else str(row["id"])
    earlier: list[Turn] = []
    asked = full["multi_turns"][: task.turns.most]
    wanted = named(task.prompt, task.turns)
    for turn in asked:
        try:
            said, options = _answer(turn, wanted)
            fields = {name: _field(name, turn, asked[0]) for name in wanted}
            groups = _groups(turn, task.turns)
        except ValueError as error:
            raise ValueError(f"{at}, turn {len(earlier) + 1}: {error}") from None
        yield Sample(
            id=f"{name}-turn{len(earlier) + 1}",
            context=full["context"],
            input=turn["input"],
            answers=(said,),
            all_classes=options,
            length=len(full["context"].split()),
            row=name,
            earlier=tuple(earlier),
            fields=fields,
            groups=groups,
        )
        # Miniature answers are spoken in more words than are scored.
        earlier.append(Turn(turn["input"], turn.get("spoken") or said, fields))


def among_functions(
    asked: Sequence[tuple[Sample, ...]], rows: Sequence[Mapping[str, Any]], where: str, task: Task
) -> list[tuple[Sample, ...]]:
    """The questions of each row with the row's language and all functions asked about in its repository.

    Raises ValueError for a row that does not say these.
    """
    known: dict[str, dict[str, None]] = {}
    for number, (row, samples) in enumerate(zip(rows, asked, strict=True)):
        rules = {"lang": lambda value: value in LANGUAGES, "repo": is_text}
        check_row(row, rules, f"{where}: row {number}", f"repo (text), lang ({', '.join(LANGUAGES)})")
        about = (sample.answers[0] for sample in samples if task.of(sample).metric == FUNCTIONS)
        known.setdefault(row["repo"], {}).update(dict.fromkeys(about))
    return [
        tuple(replace(sample, all_classes=(row["lang"], *known[row["repo"]])) for sample in samples)
        for row, samples in zip(rows, asked, strict=True)
    ]


def named(prompt: str, turns: Turns) -> tuple[str, ...]:
    """What the templates of a task name of a row besides context, input and answer."""
    texts = (prompt, turns.follow, turns.chat_follow, turns.request or "")
    found = {name for text in texts for _, name, _, _ in Formatter().parse(text)}
    return tuple(name for name in PARTS if name in found)


def _answer(turn: Mapping[str, Any], wanted: Sequence[str]) -> tuple[str, tuple[str, ...] | None]:
    """The answer, and the options where a template names them. Raises ValueError where it is none of these."""
    if "OPTION_A" not in wanted:
        return answer_text(turn["answer"]), None
    options = turn.get("options")
    if not isinstance(options, list) or not is_texts(options) or len(options) < len(LETTERS):
        raise ValueError(f"options={json.dumps(options)[:40]}; a choice has {len(LETTERS)} texts")
    answers, texts = graded(turn["answer"], options)
    return answers[0], texts


def _field(name: str, turn: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """What a template names. SCBench's chats ask with the last question's prefix throughout; here each has its own."""
    if name == "first":
        return str(first["input"])
    if name != "prefix":
        return str(turn["options"][LETTERS.index(name[-1])])
    found = TARGET.search(turn["input"])
    if found is None:
        raise ValueError(f"input={turn['input'][:80]!r} names nothing to find, as in 'The largest number is'")
    return f"What is {found[0].lower()[:-3]}?"


def _groups(turn: Mapping[str, Any], turns: Turns) -> tuple[str, ...]:
    """The part of the task that a question is of. Raises ValueError for what is none of `turns.parts`."""
    names = [part.name for part in turns.parts]
    if names and turn.get("task") not in names:
        raise ValueError(f"task={turn.get('task')!r}; allowed are {', '.join(names)}")
    return (str(turn["task"]),) if names else ()


def answer_text(answer: object) -> str:
    """An answer as it is scored and said: the names of a list in a line each."""
    return "\n".join(map(str, answer)) if isinstance(answer, list) else str(answer)


def _is_turns(value: object) -> bool:
    return (
        isinstance(value, list)
        and value != []
        and all(isinstance(turn, dict) and is_text(turn.get("input")) for turn in value)
        and all(isinstance(turn.get("answer"), str | int | float | list) and turn["answer"] != [] for turn in value)
    )


def read_folder(name: str, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Where the rows of a task lie in a folder, and the rows. Raises ValueError where there are none."""
    for file in (folder / f"{name}.jsonl", folder / "data" / f"{name}.jsonl"):
        if file.is_file():
            return str(file), [row for _, row in json_lines(longbench.read_file(file), str(file))]
    files = sorted(folder.glob(f"{name}/test*.parquet")) or sorted(folder.glob(f"*/{name}/test*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no {name}.jsonl and no {name}/test*.parquet; give data=hub or data=PATH")
    # Imported here, because it takes half a second.
    import pyarrow.parquet as pq

    try:
        return str(files[0].parent), [row for file in files for row in pq.read_table(file).to_pylist()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{files[0].parent} cannot be read ({shorten(str(error), 160, placeholder=' …')})") from None


def _read_hub(name: str) -> tuple[str, list[dict[str, Any]]]:
    # Imported here, because it takes a second.
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(HUB_REPOSITORY, repo_type="dataset", allow_patterns=[f"*{name}/test*.parquet"]))
    # Any exception: the client raises its own, the HTTP library's and the system's.
    except Exception as error:
        reason = shorten(str(error), 160, placeholder=" …")
        raise ValueError(f"{name} of {HUB_REPOSITORY} did not come from the hub ({reason}); {HUB_REMEDY}") from None
    # The hub's cache keeps files under snapshots/<commit>/.
    return f"hub:{HUB_REPOSITORY}@{path.name}:{name}", read_folder(name, path)[1]


def miniature_rows(name: str, source: str) -> Iterator[dict[str, Any]]:
    """Rows in the closed vocabulary, the same on every machine: several look-ups in one context.

    Raises ValueError for a task that has none.
    """
    if name not in MINIATURE:
        raise ValueError(f"there is no miniature of task {name}; allowed: {', '.join(MINIATURE)}")
    for index, length in enumerate(LENGTHS):
        draw = Draw(f"{source}/{name}/0/{index}")
        episode = KINDS[MINIATURE[name]](draw, int(DENSITY[source]["single"] * length), set())
        asks = draw.some(episode.asks, NUM_TURNS)
        turns = [
            {"input": plain(ask.question), "answer": plain(ask.values), "spoken": "".join(ask.spoken)} for ask in asks
        ]
        yield {"id": index, "context": "".join(filler.context(draw, episode.facts, length))[1:], "multi_turns": turns}
