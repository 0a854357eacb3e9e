"""What `dry_run=true` prints: what would be asked, and an estimate of what it needs, without loading weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

from rich.box import SQUARE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.base import Sample
from engine.load import check_attention, pick_device
from engine.machine import flops_per_second, free_bytes
from engine.outline import Outline, outline
from eval.ask import render
from eval.job import Work
from eval.pace import pace
from eval.rehearse import rehearse
from eval.sizes import Length, Size, guessed, num_tokens, sizes
from eval.standing import check, missing
from eval.units import in_bytes, in_time, in_words
from methods.budget import parse_budget, resolve

# Benchmarks that published hashes of their rows, by `Task.benchmark`.
PUBLISHED = {"longbench": "LongBench", "gsm8k": "GSM8K"}


def print_plan(console: Console, work: Work) -> None:
    """Print the plan of a run. Raises ValueError for what the run itself would refuse before its first sample."""
    device = pick_device(work.job.settings.device)
    check_attention(work.job.settings.attention, device)
    rehearse(work)
    shape, reason = shape_of(work)
    if shape is not None:
        check(work, shape.model)
    found = sizes(work, lambda sample: length_of(work, shape, sample))
    parts = (
        ("plan: nothing is asked and nothing downloaded", pairs(asked(work))),
        ("prompts, and the tokens that a step may read of them per KV head", prompt_table(work, shape, found)),
        ("estimates, made without the weights", pairs(needs(work, shape, reason, found, str(device)))),
    )
    for title, table in parts:
        console.print(title, style="italic", highlight=False)
        console.print(table)
    console.print(f"folder: {folder_of(work)}", markup=False, highlight=False, soft_wrap=True)


def folder_of(work: Work) -> str:
    """Where the run will be kept, or why nobody knows."""
    unmeasured = ", ".join(f"method.{name}" for name in work.job.method.unmeasured)
    return f"has no name before {unmeasured} is measured on the loaded model" if unmeasured else str(work.folder)


def shape_of(work: Work) -> tuple[Outline | None, str]:
    """The model without its weights, or None and the reason."""
    job, settings, spec = work.job, work.job.settings, work.job.spec
    if spec.weights == "pretrained" and any(a.lstrip("+").startswith("model.path=") for a in job.argv):
        spec = replace(spec, architecture={})  # the YAML's describes the YAML's own path
    try:
        return outline(spec, settings.dtype, settings.attention, settings.prefill_chunk), ""
    except LookupError as error:
        return None, str(error.args[0])


def length_of(work: Work, shape: Outline | None, sample: Sample) -> Length:
    """The length of a prompt as the run would make it, or nearly so where the tokenizer is not on this disk."""
    if shape is None or not shape.has_tokenizer:
        return guessed(work, sample)
    prompt = render(work, shape.model, sample)
    return Length(len(prompt.ids), prompt.truncated, prompt.context_end)


def asked(work: Work) -> Iterator[tuple[str, str]]:
    """(name, text) of what the run is."""
    job, settings, todo = work.job, work.job.settings, len(missing(work))
    yield "model", f"{job.spec.name} · {job.spec.path} · {settings.dtype} · {job.spec.weights} weights"
    parameters = (f"{f.name}={getattr(job.method, f.name)}" for f in fields(job.method) if f.init)
    yield "method", " ".join([job.method_name, *parameters])
    yield "task", f"{work.task.file_name} · {work.header.metric} · up to {work.task.max_new_tokens} new tokens"
    yield "data", data_of(work)
    yield "budget", budget_of(work)
    yield "protocol", f"{settings.protocol} · attention {settings.attention} · device {settings.device}"
    yield "samples", f"{len(work.samples)} of {len(work.dataset)} · {len(work.samples) - todo} answered, {todo} to ask"


def data_of(work: Work) -> str:
    """Where the rows come from, and what must be known before they are believed."""
    if work.dataset.miniature:
        return "generated rows · MINIATURE, not LongBench"
    if work.dataset.official is not False:  # they are the published ones, or nothing is published to compare with
        return work.dataset.source
    return f"{work.dataset.source} · NOT known to be the rows that {PUBLISHED[work.task.benchmark]} published"


def budget_of(work: Work) -> str:
    """The budget as it was given, and its shares."""
    settings = work.job.settings
    if work.job.method.kind == "none":
        return "none: this method reads everything"
    extra = f", compensate {settings.compensate:g}" if settings.compensate else ""
    return f"{settings.budget} · sink {settings.sink} on top, local share {settings.local_share:g}{extra}"


def prompt_table(work: Work, shape: Outline | None, found: Sequence[Size]) -> Table:
    """What the budget means for the shortest, the median and the longest prompt."""
    table = Table(box=SQUARE)
    table.add_column("prompt", style="bold")
    for name in ("tokens", "K+V", "sink + local + middle", "their K+V"):
        table.add_column(name, justify="right")
    sign = "" if shape is not None and shape.has_tokenizer else "~"
    for size in found:
        num, cut = size.length.num_tokens, " (cut)" if size.length.truncated else ""
        num_read, parts = reading(work, shape, size.length)
        table.add_row(size.label, f"{sign}{num:,}{cut}", kv_text(shape, num), parts, kv_text(shape, num_read))
    return table


def reading(work: Work, shape: Outline | None, length: Length) -> tuple[int | None, str]:
    """The past tokens that a step may read per KV head, as a number (None: not known) and in words."""
    settings, method = work.job.settings, work.job.method
    if method.kind == "none":
        return length.num_tokens, "all"
    rule, acts_on = parse_budget(settings.budget), length.context_end or length.num_tokens
    if shape is None and rule.unit not in ("ratio", "tok"):
        return None, "unknown"
    token = shape.model.bytes_per_token if shape else 1
    budget = resolve(rule, method, acts_on, settings.sink, settings.local_share, settings.compensate, token)
    if budget is None:
        return length.num_tokens, "all (within the budget)"
    return budget.total, f"{budget.sink} + {budget.local} + {budget.middle} = {budget.total:,}"


def kv_text(shape: Outline | None, num: int | None) -> str:
    """K+V of so many tokens over the selectable layers."""
    return "unknown" if shape is None or num is None else in_bytes(num * shape.model.bytes_per_token)


def needs(
    work: Work, shape: Outline | None, reason: str, found: Sequence[Size], where: str
) -> Iterator[tuple[str, str]]:
    """(name, text) of memory and time."""
    if shape is None:
        yield "model", f"unknown: {reason}"
    else:
        yield "parameters", f"{in_words(shape.num_parameters)} ({shape.source})"
        yield "memory", memory_of(work, shape, found[-1].length.num_tokens + work.task.max_new_tokens, where)
    tokens = num_tokens(work, missing(work), found)
    exact = shape is not None and shape.has_tokenizer
    how = "by its tokenizer on these three" if exact else "UTF-8 bytes / 4: its tokenizer is not on this disk"
    yield "prompt tokens", f"about {in_words(tokens)} to read ({how})"
    yield "time", time_of(work, shape, tokens, where)


def memory_of(work: Work, shape: Outline, num: int, where: str) -> str:
    """Weights and the K+V of the longest prompt with its answer, against what is free."""
    kv, free = shape.kv_bytes(num), free_bytes(where, work.job.settings.device == "balanced")
    weights, dtype = shape.weight_bytes, str(shape.dtype).removeprefix("torch.")
    verdict = "MORE than" if weights + kv > free else "of"
    return (
        f"{in_bytes(weights)} weights + {in_bytes(kv)} K+V of the longest prompt and answer = {in_bytes(weights + kv)} "
        f"in {dtype}, {verdict} the {in_bytes(free)} free on {where}; activations come on top"
    )


def time_of(work: Work, shape: Outline | None, tokens: float, where: str) -> str:
    """How long the samples would take: by earlier runs, or else what the arithmetic alone needs."""
    job, num_samples = work.job, len(missing(work))
    if num_samples == 0:
        return "none: all samples are answered"
    names = (job.spec.name, work.task.file_name, job.method_name)
    kind = where.split(":")[0]
    seen = pace(Path(job.settings.results), *names, work.config, kind)
    if seen is not None:
        seconds = seen.seconds_per_token * tokens
        each = in_time(seconds / num_samples)
        return f"about {in_time(seconds)}, {each} a sample (measured on {seen.source}, on {kind})"
    if shape is None or shape.num_layer_parameters is None:
        why = "" if shape is None else ", and of a mixture of experts only some parameters work on a token"
        return f"unknown: no earlier run of this model is here{why}"
    return floor(shape, tokens + num_samples * work.task.max_new_tokens, where)


def floor(shape: Outline, tokens: float, where: str) -> str:
    """The time that the layers' matrix products alone would take, at the speed of this device."""
    assert shape.num_layer_parameters is not None
    speed = flops_per_second(where, shape.dtype)
    seconds = 2.0 * shape.num_layer_parameters * tokens / speed
    rest = "attention, the index and loading come on top"
    return f"at least {in_time(seconds)}: the layers at {speed / 1e12:.2g} TFLOP/s, measured now on {where}; {rest}"


def pairs(rows: Iterator[tuple[str, str]]) -> Table:
    """A table of names and texts; long texts are folded, never cut."""
    table = Table(show_header=False, box=SQUARE)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    return table
