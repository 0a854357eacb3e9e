"""What a run is, before any model is loaded: a job, its rows, and the folder that keeps its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data import miniature
from data.base import Dataset, Sample, Task
from data.rows import read
from data.tokens import Vocabulary
from engine.spec import ModelSpec
from eval.json_files import strict_json
from eval.run_file import RUN_FILE, config_hash, read_run
from eval.run_folder import run_path
from eval.scores import Header
from eval.settings import Settings
from methods.base import Method

# What makes an arm: jobs that differ in nothing else ask the same prompts of the same model. Any other key, also one
# that is added tomorrow, keeps jobs apart.
ARM_KEYS = frozenset(("method", "method_source", "budget", "sink", "local_share", "compensate"))
# What does not act on miniature rows, and what does instead.
IDLE = {
    "prompt": "miniature.prompt",
    "max_new_tokens": "miniature.max_new_tokens",
    "needle.lengths": "needle.miniature_lengths",
    "infinitebench.tokens": "infinitebench.miniature_lengths",
    "infinitebench.variant": "miniature.prompt",
    "ruler.samples": "ruler.miniature_samples",
}
BUDGET_KEYS = ("budget", "local_share", "compensate")


@dataclass(frozen=True)
class Job:
    """One run: a model, a method, a task and how it is done. config: all of it as plain values, for the hash."""

    settings: Settings
    spec: ModelSpec
    method: Method
    method_name: str
    task: Task
    config: Mapping[str, Any]
    argv: tuple[str, ...]

    @property
    def own_config(self) -> dict[str, Any]:
        """What makes this run another one, but for its rows: the config without what its method ignores."""
        ignored = dict.fromkeys(BUDGET_KEYS) if self.method.kind == "none" else {}
        return {**self.config, **ignored, "method_name": self.method_name}

    @property
    def prefill_key(self) -> str:
        """Equal for jobs that may share a prefill: all but what makes an arm.

        Jobs whose prompts hold their own answers share none.
        """
        if self.task.turns is not None and self.task.turns.from_records:
            return strict_json(self.config, "config", sort_keys=True)
        shared = {key: value for key, value in self.config.items() if key not in ARM_KEYS}
        return strict_json(shared, "config", sort_keys=True)


@dataclass(frozen=True)
class Work:
    """A job with its rows: what is asked, from where, in which folder it is kept.

    source: "miniature", "miniature_hard", "hub", or the absolute path that `data` named.
    """

    job: Job
    task: Task
    dataset: Dataset
    source: str
    config: Mapping[str, Any]
    folder: Path

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The rows that `limit` leaves."""
        return self.dataset.samples[: self.job.settings.limit]

    @property
    def header(self) -> Header:
        """What `scores.json` says besides numbers."""
        job, code = self.job, self.task.metric == "code_sim"
        return Header(
            model=job.spec.name,
            task=self.task.file_name,
            method=job.method_name,
            budget=self.config["budget"],
            protocol=job.settings.protocol,
            metric="+".join(self.task.metrics),
            miniature=self.dataset.miniature,
            e=self.task.e,
            metric_backend=job.settings.fuzz if code else None,
        )


def refuse_idle_overrides(argv: Sequence[str]) -> None:
    """Raise ValueError for overrides of what miniature rows do not use; ignored, they would look as if they acted."""
    for name, instead in IDLE.items():
        if any(word.lstrip("+").startswith(f"task.{name}=") for word in argv):
            raise ValueError(f"task.{name} does not act on miniature rows; give task.{instead}, or data=PATH")


def prepare(job: Job, rows: Rows | None = None) -> Work:
    """Name the folder of a run; no model yet. rows: those of the job's task, where they are loaded already.

    Raises ValueError for rows that are missing or malformed.
    """
    if job.settings.shards > 1 and job.task.turns is not None and job.task.turns.from_records:
        raise ValueError(
            f"shards={job.settings.shards}: with task.turns.answers=own questions wait for answers; give 1"
        )
    rows = rows or load_rows(job)
    # The rows are named by what they are, not by where they lie: a copy elsewhere is the same run.
    kind = rows.source if rows.dataset.miniature else "made" if rows.task.made else rows.task.benchmark
    config = {**job.own_config, "data": kind, "data_revision": rows.dataset.revision}
    names = (job.spec.name, rows.task.file_name, job.method_name)
    folder = run_path(Path(job.settings.results), *names, config)
    return resumed(Work(job, rows.task, rows.dataset, rows.source, config, folder))


@dataclass(frozen=True)
class Rows:
    """The rows of a task, the task as they ask it, and their source as in `Work`."""

    task: Task
    dataset: Dataset
    source: str


def load_rows(job: Job) -> Rows:
    """The rows that a job asks. Raises ValueError for rows that are missing or malformed."""
    source = job.spec.data if job.settings.data == "auto" else job.settings.data
    small = source in miniature.DENSITY
    if small:
        refuse_idle_overrides(job.argv)
    elif source != "hub":
        source = str(Path(source).expanduser().resolve())
    task = job.task.small() if small else job.task.chosen()
    refuse_replaced(job.task, job.argv)
    refuse_cut_needles(task, job.spec, small)
    return Rows(task, read(job.task, source, vocabulary(job.spec)), source)


def refuse_replaced(task: Task, argv: Sequence[str]) -> None:
    """Raise ValueError for overrides that a task's variant or parts replace; they would look as if they acted."""
    for name in ("metric", "max_new_tokens") if task.parts else ():
        if any(word.lstrip("+").startswith(f"task.{name}=") for word in argv):
            raise ValueError(
                f"task.{name} does not act, as the parts of this task have their own; give task.turns.parts"
            )
    if task.varied is None:
        return
    for name, value in asdict(task.varied.chosen).items():
        if value is not None and any(word.lstrip("+").startswith(f"task.{name}=") for word in argv):
            own = f"{task.benchmark}.{task.varied.variant}.{name}"
            raise ValueError(f"task.{name} does not act, as the variant has its own; give task.{own}")


def vocabulary(spec: ModelSpec) -> Vocabulary:
    """What rows that are made for a tokenizer need of a model."""
    return Vocabulary(spec.path, spec.revision, random=spec.weights == "random")


def refuse_cut_needles(task: Task, spec: ModelSpec, small: bool) -> None:
    """Raise ValueError for lengths that the model's limit would cut: the cut could take the needle with it."""
    if task.ruler is not None and task.ruler.length - task.max_new_tokens > spec.max_prompt:
        raise ValueError(
            f"task.ruler.length={task.ruler.length} is over model.max_prompt={spec.max_prompt}, where prompts are cut; "
            "give a shorter one, or a larger model.max_prompt"
        )
    made = None if small or task.infinitebench is None else task.infinitebench.tokens
    if made is not None and made > spec.max_prompt:
        raise ValueError(
            f"task.infinitebench.tokens={made} is over model.max_prompt={spec.max_prompt}, where prompts are cut; give "
            "fewer, or a larger model.max_prompt"
        )
    if task.needle is None:
        return
    name = "miniature_lengths" if small else "lengths"
    longest = max(getattr(task.needle, name))
    if longest > spec.max_prompt:
        raise ValueError(
            f"task.needle.{name} goes up to {longest}, over model.max_prompt={spec.max_prompt}, where prompts are cut; "
            "give shorter ones, or a larger model.max_prompt"
        )


def resumed(work: Work) -> Work:
    """The work with what an earlier run of it measured for its method, if there is one: it is not measured again.

    Raises ValueError where several runs differ in nothing else: none of them is more this run than the other.
    """
    names = work.job.method.unmeasured
    paths = work.folder.parent.glob(f"*/{RUN_FILE}") if names else ()
    found = [run.config["method"] for path in paths if is_run_of(work, (run := read_run(path.parent)).config)]
    if len(found) > 1:
        known = " or ".join(sorted(f"method.{name}={method[name]}" for method in found for name in names))
        raise ValueError(f"{len(found)} runs in {work.folder.parent} differ only in what was measured: give {known}")
    if not found:
        return work
    return measured(work, replace(work.job.method, **{name: tuple(found[0][name]) for name in names}))


def is_run_of(work: Work, config: Mapping[str, Any]) -> bool:
    """Whether a run's config is this work's but for what was measured."""
    method = {**config.get("method", {}), **dict.fromkeys(work.job.method.unmeasured)}
    return config_hash({**config, "method": method}) == work.folder.name


def measured(work: Work, method: Method) -> Work:
    """The work with a method in which nothing is unmeasured any more; what was measured is part of config and hash."""
    found = {name: getattr(method, name) for name in work.job.method.unmeasured}
    config = {**work.config, "method": {**work.config["method"], **found}}
    folder = work.folder.with_name(config_hash(config))
    return replace(work, job=replace(work.job, method=method), config=config, folder=folder)
