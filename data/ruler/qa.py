"""RULER's question answering: the documents of a question among those of others, from SQuAD or HotpotQA."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from data.longbench import read_file
from data.ruler.layout import Layout, Made

UNIT = 10
FILES = {
    "squad": ("dev-v2.0.json", "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"),
    "hotpotqa": (
        "hotpot_dev_distractor_v1.json",
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
    ),
}


@dataclass(frozen=True)
class Question:
    """own: the documents that answer it; related: others of the same article. Both are places in the corpus."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """documents: each once, sorted. questions: in the order of the file."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def rows(layout: Layout, corpus: Corpus) -> Iterator[Made]:
    """One row a question, with as many documents as fit. Raises ValueError for more rows than questions."""
    ruler, draw = layout.ruler, Random(layout.ruler.seed)
    if ruler.samples > len(corpus.questions):
        raise ValueError(
            f"task.ruler.samples={ruler.samples} is over the {len(corpus.questions)} questions of "
            f"{FILES[ruler.documents][0]}; give fewer"
        )

    def among(question: Question, num_documents: int) -> Made:
        chosen = documents(draw, corpus, question, num_documents)
        Random(ruler.seed).shuffle(chosen)
        return Made(joined(chosen), question.text, question.answers)

    most = layout.largest(partial(among, corpus.questions[0]), UNIT)
    for question in corpus.questions[: ruler.samples]:
        yield layout.fitting(partial(among, question), most, UNIT)


def documents(draw: Random, corpus: Corpus, question: Question, num: int) -> list[str]:
    """The question's documents, related ones, then any others; all of them, over and over, where `num` is more."""
    own, related, total = list(question.own), list(question.related), len(corpus.documents)
    if num >= total:
        return (list(corpus.documents) * -(-num // total))[:num]
    if num - len(own) <= len(related):
        chosen = own + draw.sample(related, max(0, num - len(own)))
    else:
        known = {*own, *related}
        others = [place for place in range(total) if place not in known]
        chosen = own + related + draw.sample(others, num - len(own) - len(related))
    return [corpus.documents[place] for place in chosen]


def joined(texts: Sequence[str]) -> str:
    return "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(texts, 1))


def read(name: str, source: str, task_name: str) -> tuple[Path, Corpus]:
    """The questions and documents of "squad" or "hotpotqa" in a folder.

    Raises ValueError, in one line, for a folder without the file, or a file of another form.
    """
    file, address = FILES[name]
    path = Path(source).expanduser() / file
    if source == "hub" or not path.is_file():
        raise ValueError(
            f"data={source} holds no {file} for task {task_name}; give data=FOLDER with it, from {address}"
        )
    try:
        content = json.loads(read_file(path))
        return path, squad(content) if name == "squad" else hotpotqa(content)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {file} ({type(error).__name__}: {error}); fetch it from {address}") from None


def squad(content: Any) -> Corpus:
    """SQuAD 2.0's layout; questions without an answer are left out."""
    articles = [article["paragraphs"] for article in content["data"]]
    texts = sorted({paragraph["context"] for article in articles for paragraph in article})
    places = {text: place for place, text in enumerate(texts)}
    questions = [
        Question(
            asked["question"],
            tuple(answer["text"] for answer in asked["answers"]),
            (places[paragraph["context"]],),
            tuple(places[other["context"]] for other in article if other["context"] != paragraph["context"]),
        )
        for article in articles
        for paragraph in article
        for asked in paragraph["qas"]
        if not asked["is_impossible"]
    ]
    return Corpus(tuple(texts), tuple(questions))


def hotpotqa(content: Any) -> Corpus:
    """HotpotQA's layout, distractor setting: ten paragraphs a question, of which some answer it."""
    own = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in content]
    texts = sorted({text for each in own for text in each})
    places = {text: place for place, text in enumerate(texts)}
    questions = [
        Question(row["question"], (row["answer"],), tuple(places[text] for text in dict.fromkeys(each)))
        for row, each in zip(content, own, strict=True)
    ]
    return Corpus(tuple(texts), tuple(questions))
