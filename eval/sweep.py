"""A sweep in this process: its groups one after the other, its folder kept up to date, one table at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from eval import tracking
from eval.failures import fail
from eval.job import Job, Rows, Work, load_rows, prepare
from eval.loop import Loaded, run_group
from eval.progress import Bar, progress_bar
from eval.standing import Shard, missing, read_scores
from eval.summary import print_summary
from eval.sweep_folder import Entry, Status, SweepFolder


@dataclass(frozen=True)
class Wanted:
    """A job of a sweep, the words that compose it anywhere, and its label in an experiment (or empty)."""

    words: tuple[str, ...]
    label: str
    job: Job


@dataclass
class Member:
    """A job of a group as it stands.

    work: None where its rows are missing. todo: ids of the samples that it lacked at first. error: what ended it.
    """

    wanted: Wanted
    entry: Entry
    work: Work | None = None
    todo: frozenset[str] = frozenset()
    error: Exception | None = None
    scores: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        job = self.wanted.job
        budget = job.own_config["budget"]
        named = self.wanted.label or job.method_name
        return f"{named}{'' if budget is None else f' {budget}'} on {job.task.file_name}"

    def note(self, status: Status) -> None:
        """Write down how it stands, in the entry of the sweep's file."""
        self.entry.folder = None if self.work is None else str(self.work.folder)
        self.entry.status = status
        if self.error is not None:
            self.entry.status, self.entry.error = "failed", f"{type(self.error).__name__}: {self.error}"
        elif self.scores is not None:
            self.entry.status = "complete" if self.scores["n"] == self.scores["n_expected"] else "incomplete"


Group = list[Member]


def run_sweep(groups: Sequence[Sequence[Wanted]], argv: Sequence[str]) -> int:
    """Answer what is missing of all groups; the sweep's folder is the last line on stdout. The worst exit status."""
    members = [ready(group, number) for number, group in enumerate(groups)]
    folder = open_folder(members, argv)
    # Before hours of work, not amid them: whoever lacks rows is known by now.
    loaded, status = Loaded(), tell([member for group in members for member in group if member.error is not None])
    with progress_bar(*extent(members), members[0][0].wanted.job.settings.progress) as bar:
        for group in members:
            here = [member for member in group if member.error is None]
            with noted(folder, group):
                go(group, None, loaded, bar)
            status = max(status, tell(here))
    finish(members, folder)
    return status


def run_jobs(jobs: Sequence[Job], shard: Shard | None) -> int:
    """Answer what is missing of one group, or of a shard of it; what goes wrong is told on stderr. The exit status."""
    group = ready([Wanted((), "", job) for job in jobs], 0, shard)
    with progress_bar(*extent([group]), jobs[0].settings.progress) as bar:
        go(group, shard, Loaded(), bar)
    return tell(group)


def run_elsewhere(groups: Sequence[Sequence[Wanted]], argv: Sequence[str], launch: Callable[[], int]) -> int:
    """As `run_sweep`, where `launch` has the groups answered by other processes and returns the exit status."""
    members = [ready(group, number) for number, group in enumerate(groups)]
    folder = open_folder(members, argv)
    status = launch()
    members = [ready(group, number) for number, group in enumerate(groups)]
    folder.runs = [member.entry for group in members for member in group]
    for member in (member for group in members for member in group):
        if member.work is not None:
            member.scores = read_scores(member.work.folder)
        member.note("waiting")
    folder.write()
    finish(members, folder)
    return status


def ready(wanted: Sequence[Wanted], number: int, shard: Shard | None = None) -> Group:
    """The jobs of a group with their rows, which are read once, and their folders."""
    group = [Member(each, Entry(number, each.label, each.words)) for each in wanted]
    rows: Rows | None = None
    for member in group:
        try:
            rows = rows or load_rows(member.wanted.job)
            member.work = prepare(member.wanted.job, rows)
            member.todo = frozenset(sample.id for sample in missing(member.work, shard))
        except Exception as error:
            member.error = error
    return group


def go(group: Group, shard: Shard | None, loaded: Loaded, bar: Bar) -> None:
    """Answer what is missing of a group."""
    here = [member for member in group if member.error is None]
    works = [member.work for member in here if member.work is not None]
    if not works:
        return
    rows = " (miniature)" if works[0].dataset.miniature else ""
    bar.label(f"{works[0].task.file_name}{rows} · {len(works)} {'arms' if len(works) > 1 else 'arm'}")
    for member, seat in zip(here, run_group(works, shard, bar, loaded), strict=True):
        member.work, member.error, member.scores = seat.work, seat.error, seat.scores


def tell(group: Sequence[Member]) -> int:
    """Say on stderr what ended members, each reason once with the names of all whom it ended; the exit status."""
    reasons: dict[str, list[Member]] = {}
    for member in group:
        if member.error is not None:
            reasons.setdefault(repr(member.error), []).append(member)
    for ended in reasons.values():
        assert ended[0].error is not None
        fail(ended[0].error, ", ".join(member.name for member in ended))
    failed = any(member.scores is None or member.scores["failed"] for member in group)
    return 1 if reasons or failed else 0


def finish(members: Sequence[Group], folder: SweepFolder) -> None:
    """The table of all runs, and as the last line on stdout the sweep's folder."""
    everyone = [member for group in members for member in group]
    rows = [(m.wanted.label, m.work, m.scores) for m in everyone if m.work is not None]
    print_summary(Console(width=None if sys.stdout.isatty() else 100), rows)
    settled = [m.work.folder for m in everyone if m.work is not None and m.scores is not None]
    tracking.log(settled, everyone[0].wanted.job.settings.wandb, folder.path.name)
    print(folder.path, flush=True)


def extent(members: Sequence[Group]) -> tuple[int, int]:
    """(samples of all groups, each of which is prefilled once for its group; those that nobody lacks)."""
    total = [max((len(m.work.samples) for m in group if m.work is not None), default=0) for group in members]
    todo = [len(frozenset[str]().union(*(m.todo for m in group))) for group in members]
    return sum(total), sum(total) - sum(todo)


def open_folder(members: Sequence[Group], argv: Sequence[str]) -> SweepFolder:
    """The new folder of this sweep."""
    everyone = [member for group in members for member in group]
    for member in everyone:
        member.note("waiting")
    return SweepFolder.make(Path(everyone[0].wanted.job.settings.results), argv, [m.entry for m in everyone])


@contextmanager
def noted(folder: SweepFolder, group: Group) -> Iterator[None]:
    """Keep the sweep's file up to date while a group is answered, also when that is interrupted."""
    for member in group:
        member.note("running")
    folder.write()
    try:
        yield
    finally:
        for member in group:
            member.note("waiting")
        folder.write()
