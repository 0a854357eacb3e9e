"""RULER's 13 tasks (arXiv 2404.06654, NVIDIA/RULER c3f5e3b), made for any tokenizer and length.

A row is the largest that fits: prompt without special tokens, answer prefix and answer are at most `length` tokens;
what a chat template adds comes on top. The generator's random numbers are also drawn while that size is searched for,
so equal seeds give equal rows for equal tokenizers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from data import longbench
from data.base import Dataset, Task
from data.longbench import git_blob_sha1
from data.needle import essays
from data.ruler import cwe, fwe, miniature, niah, qa, vt
from data.ruler.layout import Layout, Made
from data.tokens import Cut


def load(task: Task, source: str, cut: Cut) -> Dataset:
    """The rows of a RULER task for one tokenizer, the same at every call. source: as in `data.rows.read`.

    Raises ValueError for a source without the texts that are needed, and for a length that nothing fits.
    """
    small = source.startswith("miniature")
    layout = Layout(task.small() if small else task, cut)
    layout.check()
    where, made = (source, miniature.rows(layout, source)) if small else real(layout, source)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written(layout, made)).encode()
    samples = longbench.parse(data, f"{task.name} of {where}")
    return Dataset(samples, where, git_blob_sha1(data), official=None, miniature=small)


def real(layout: Layout, source: str) -> tuple[str, Iterable[Made]]:
    """Where the texts come from, and the rows."""
    ruler, name = layout.ruler, layout.task.name
    if ruler.kind == "qa":
        path, corpus = qa.read(ruler.documents, source, name)
        return str(path), qa.rows(layout, corpus)
    if ruler.kind == "niah":
        where, text = essays(source, f"task {name}") if ruler.haystack == "essay" else ("generated", "")
        return where, niah.rows(layout, text)
    return "generated", {"vt": vt.rows, "cwe": cwe.rows, "fwe": fwe.rows}[ruler.kind](layout)


def written(layout: Layout, rows: Iterable[Made]) -> Iterator[dict[str, Any]]:
    """The rows in LongBench's layout; `length` is what RULER stores: tokens of the prompt and of the answer.

    Where one of several answers will do, each is an answer; where all must be named, they are the lines of one.
    """
    for number, made in enumerate(rows):
        all_of_them = layout.task.metric == "match_all"
        yield {
            "input": made.query,
            "context": made.context,
            "answers": ["\n".join(made.answers)] if all_of_them else list(made.answers),
            "length": layout.size(made),
            "dataset": layout.task.name,
            "language": "en",
            "all_classes": None,
            "_id": f"{layout.ruler.length}-{number}",
        }
