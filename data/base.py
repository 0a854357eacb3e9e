"""What is asked: a task (prompt, length, metric) and its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from data.made import Needle, Ruler
from data.turns import Part, Turn, Turns
from data.variants import Conclusion, Gsm8k, InfiniteBench, LongBenchV2


@dataclass(frozen=True)
class Miniature:
    """What a task uses instead of its own when it is asked on generated miniature rows.

    prompt: the template in the embedded model's closed vocabulary, with `{context}` and `{input}`.
    max_new_tokens: generation length, in tokens of the embedded model.
    extract: regular expression; its matches, joined by `join`, are the scored part of a prediction (the values), so
        that a restated question earns nothing.
    """

    prompt: str
    max_new_tokens: int
    extract: str
    join: str = " "


@dataclass(frozen=True)
class Task:
    """A task, as `configs/task/<name>.yaml` writes it; most are LongBench's (arXiv 2308.14508).

    prompt: verbatim official template with `{context}` and `{input}`.
    answer_prefix: what the answer begins with, with `{input}` if need be; it stands behind the prompt, and behind the
        chat template's wrapper, so that the model goes on with its own turn (RULER).
    metric: a name in `eval.metrics.METRICS`.
    chat: whether the model's chat template wraps the prompt.
    first_line: score only the first line of a prediction.
    newline_stop: a newline ends the generation (samsum).
    stop_text: so does this text, none where it is empty.
    e: ask the LongBench-E rows (`<name>_e.jsonl`) and score them by length bucket.
    blob, blob_e: git blob hashes of the official jsonl files.
    extract, join: see `Miniature`; extract is None for real tasks, whose predictions are scored as they are.
    needle, ruler: how the rows are made, where they are made and not read.
    turns: how the questions of a row are asked, where it has several.
    infinitebench, longbench_v2: how a task of theirs is asked, of which there are several ways.
    gsm8k: where the worked examples are.
    """

    name: str
    category: str
    language: str
    metric: str
    max_new_tokens: int
    num_rows: int
    prompt: str
    answer_prefix: str = ""
    chat: bool = True
    first_line: bool = False
    newline_stop: bool = False
    stop_text: str = ""
    e: bool = False
    blob: str | None = None
    blob_e: str | None = None
    extract: str | None = None
    join: str = " "
    miniature: Miniature | None = None
    needle: Needle | None = None
    ruler: Ruler | None = None
    turns: Turns | None = None
    infinitebench: InfiniteBench | None = None
    longbench_v2: LongBenchV2 | None = None
    gsm8k: Gsm8k | None = None

    @property
    def benchmark(self) -> str:
        """Whose rows are read, LongBench's where no field says another's."""
        others = {"turns": "scbench", **{name: name for name in ("infinitebench", "longbench_v2", "gsm8k")}}
        return next((name for field, name in others.items() if getattr(self, field) is not None), "longbench")

    @property
    def varied(self) -> InfiniteBench | LongBenchV2 | None:
        """The benchmark that is asked in several ways, and which of them is chosen."""
        return self.infinitebench or self.longbench_v2

    def of(self, sample: Sample) -> Task:
        """This task as a sample is asked: where rows mix tasks, with the metric and the length of its own."""
        part = next((part for part in self.parts if part.name in sample.groups), None)
        return self if part is None else replace(self, metric=part.metric, max_new_tokens=part.max_new_tokens)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tasks that a row mixes, if it does."""
        return () if self.turns is None else self.turns.parts

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the samples are scored by: one metric, but where rows mix tasks."""
        return tuple(dict.fromkeys(part.metric for part in self.parts)) or (self.metric,)

    @property
    def conclusion(self) -> Conclusion | None:
        """What is asked behind the answer; None: nothing."""
        spec = self.longbench_v2
        return spec.conclusion if spec is not None and spec.variant == "cot" else None

    @property
    def made(self) -> bool:
        """Whether the rows are made for the run's tokenizer."""
        own = self.infinitebench is not None and self.infinitebench.tokens is not None
        return self.needle is not None or self.ruler is not None or own

    def asked(self, context: str, question: str, fields: Mapping[str, str] | None = None) -> str:
        """The text of a prompt, without the answer prefix. fields: what a template names besides, as in `Sample`."""
        return self.prompt.format(context=context, input=question, **(fields or {}))

    def begun(self, question: str) -> str:
        """The answer prefix of a question."""
        return self.answer_prefix.format(input=question)

    @property
    def file_name(self) -> str:
        """The name LongBench gives this task's files: `qasper`, or `qasper_e` for LongBench-E."""
        return f"{self.name}_e" if self.e else self.name

    def chosen(self) -> Task:
        """This task in the variant that it names."""
        if self.varied is None:
            return self
        changes = {name: value for name, value in asdict(self.varied.chosen).items() if value is not None}
        return replace(self, **changes)

    def small(self) -> Task:
        """This task as it is asked on miniature rows. Raises ValueError where there are none."""
        if self.miniature is None or self.e:
            what = "LongBench-E of " if self.e else ""
            raise ValueError(f"there are no miniature rows for {what}task {self.name}; give data=hub or data=PATH")
        small = self.miniature
        return replace(
            self,
            prompt=small.prompt,
            answer_prefix="",
            max_new_tokens=small.max_new_tokens,
            extract=small.extract,
            join=small.join,
            chat=False,
            miniature=None,
            turns=None if self.turns is None else replace(self.turns, follow=self.turns.miniature_follow or ""),
        )


@dataclass(frozen=True)
class Sample:
    """One question of a task. `id` is unique in its file; `length` is the stored one (it only sorts LongBench-E).

    all_classes: what a metric knows besides one answer: the classes or options, or InfiniteBench's other answers.
    fields: what the task's prompt names besides `{context}` and `{input}`.
    groups: the parts of the task that it counts for besides the whole.
    row: what the questions about one context have in common, where a row has several; earlier: those before this one.
    """

    id: str
    context: str
    input: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None
    length: int
    row: str | None = None
    earlier: tuple[Turn, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    @property
    def turn(self) -> int | None:
        """Number of this question among those of its row, from 1; None where a row has one question only."""
        return None if self.row is None else len(self.earlier) + 1


@dataclass(frozen=True)
class Dataset:
    """The rows of one task and where they come from.

    source: "miniature", or the file or hub address that was read.
    revision: git blob hash of the jsonl text.
    official: whether that hash is the one LongBench published; None where there is nothing to compare with.
    """

    samples: tuple[Sample, ...]
    source: str
    revision: str
    official: bool | None
    miniature: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)
