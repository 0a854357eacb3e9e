"""For each sample: ask all runs of a group in one go, record; then derive the scores of each.

A group is runs that differ in nothing but what makes an arm (`Job.prefill_key`). A single run is a group of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.interrupts import interruptible
from eval.job import Job, Work, measured
from eval.locks import exclusive
from eval.progress import Bar, progress_bar
from eval.provenance import collect
from eval.records import Record, read_records
from eval.run_folder import RunFolder
from eval.standing import Shard, answered, check, missing, require_free, require_own, settle
from methods.base import Method

if TYPE_CHECKING:
    from engine.model import Model


@dataclass
class Seat:
    """One run of a group while it goes on.

    todo: ids of the samples that it lacks. answered: those that have an answer already, and are asked for their
    diagnostics only: the record, with its times, stays as it is. error: what ended it; the others go on. scores: as
    settled at the end.
    """

    work: Work
    shard: Shard | None = None
    todo: set[str] = field(default_factory=set)
    answered: frozenset[str] = frozenset()
    folder: RunFolder | None = None
    error: Exception | None = None
    scores: dict[str, Any] | None = None

    @property
    def number(self) -> int | None:
        """The shard's number."""
        return None if self.shard is None else self.shard[0]

    @contextmanager
    def own(self) -> Iterator[None]:
        """An error inside ends this run alone, and gives its folder back."""
        try:
            yield
        except Exception as error:
            self.error = error
            if self.folder is not None:
                self.folder.close()

    def take(self, found: Record | Exception) -> None:
        """Write an answer down, or end with what came in its place."""
        if isinstance(found, Exception):
            raise found
        assert self.folder is not None
        if found.id not in self.answered:
            self.folder.append(found)


def run(work: Work) -> tuple[Work, dict[str, Any]]:
    """Ask what is not yet answered, write the scores, and return them with the work as it was done: a method that
    measures first what it needs has a folder of its own only then.

    Raises AuditError where the method broke its budget, ValueError for what cannot be run, MemoryError when memory ran
    out, OSError when the disk is full; records so far are kept in each case, and the same call resumes.
    """
    label = f"{work.job.method_name} on {work.task.file_name}{' (miniature)' if work.dataset.miniature else ''}"
    done = len(work.samples) - len(missing(work))
    with progress_bar(len(work.samples), done, work.job.settings.progress) as bar:
        bar.label(label)
        [seat] = run_group([work], bar=bar)
    if seat.error is not None:
        raise seat.error
    assert seat.scores is not None
    return seat.work, seat.scores


@dataclass
class Loaded:
    """The model that was loaded last, for the next group that wants the same."""

    wanted: tuple[Any, ...] | None = None
    model: Model | None = None

    def get(self, job: Job) -> Model:
        """The model of a job. Raises as `engine.load.load`."""
        from engine.load import load

        how = job.settings
        wanted = (job.spec, how.device, how.dtype, how.attention, how.prefill_chunk, how.seed)
        if self.model is None or wanted != self.wanted:
            self.wanted = self.model = None  # two do not fit
            self.model = load(*wanted[:-1], seed=how.seed)
            self.wanted = wanted
        return self.model


def run_group(
    works: Sequence[Work],
    shard: Shard | None = None,
    bar: Bar | None = None,
    loaded: Loaded | None = None,
) -> list[Seat]:
    """Ask what is not yet answered, of all works in one process, and settle each; the works share their prefills.

    shard (i, n): only samples[i::n]. bar: advances with each sample that is asked. What ends a run stands in its seat,
    and the other runs go on; only interrupts are raised.
    """
    seats = [Seat(work, shard) for work in one_method_each(works)]
    for seat in seats:
        with seat.own():
            seat.todo = {sample.id for sample in missing(seat.work, shard)}
            if seat.todo:
                require_free(Path(seat.work.job.settings.results), seat.work.folder, seat.number)
            else:
                require_own(seat.work.folder)
                seat.scores = settled(seat)
    open_seats = [seat for seat in going(seats) if seat.scores is None]
    if open_seats:
        go_through(open_seats, bar, loaded or Loaded())
    return seats


def one_method_each(works: Sequence[Work]) -> list[Work]:
    """The works, with one object for all equal methods: they then share their worker processes, too."""
    methods: list[Method] = []
    for work in works:
        if work.job.method not in methods:
            methods.append(work.job.method)
    same = [methods[methods.index(work.job.method)] for work in works]
    return [replace(work, job=replace(work.job, method=m)) for work, m in zip(works, same, strict=True)]


def settled(seat: Seat) -> dict[str, Any]:
    """The scores of a run as of now; shards of a run take turns."""
    if seat.shard is None:
        return settle(seat.work, read_records(seat.work.folder))
    with exclusive(seat.work.folder):
        return settle(seat.work, read_records(seat.work.folder))


def go_through(seats: Sequence[Seat], bar: Bar | None, loaded: Loaded) -> None:
    """Load the model, ask all samples, settle."""
    # Imported here: a run that is complete needs no model, nor the seconds that this takes.
    from eval.rehearse import rehearse

    for seat in seats:
        with seat.own():
            rehearse(seat.work)
    if not going(seats):
        return
    try:
        model = loaded.get(seats[0].work.job)
    except Exception as error:
        for seat in going(seats):
            seat.error = error
        return
    for seat in going(seats):
        with seat.own():
            check(seat.work, model)
    calibrate(going(seats), model)
    with interruptible(), ExitStack() as stack:
        enter(going(seats), model, stack)
        ask_all(going(seats), model, bar)
        for seat in going(seats):
            with seat.own():
                seat.scores = settled(seat)


def going(seats: Sequence[Seat]) -> list[Seat]:
    """Those that nothing has ended."""
    return [seat for seat in seats if seat.error is None]


def calibrate(seats: Sequence[Seat], model: Model) -> None:
    """Measure what methods need to know of this machine; equal methods are measured once."""
    from engine.calibrate import calibrated

    found: list[tuple[Method, Method]] = []
    for seat in seats:
        method = seat.work.job.method
        with seat.own():
            if method.unmeasured:
                known = [after for before, after in found if before == method]
                if not known:
                    known = [calibrated(model, method, seat.work.job.spec.max_prompt)]
                    found.append((method, known[0]))
                seat.work = measured(seat.work, known[0])


def enter(seats: Sequence[Seat], model: Model, stack: ExitStack) -> None:
    """Become the writer of all run folders and start the methods' workers, until the stack is left."""
    running: list[Method] = []
    facts: dict[str, Any] = {}
    for seat in seats:
        work, job = seat.work, seat.work.job
        facts = facts or {  # of the process, the model and the rows: the same for all, and slow to find out
            **collect(job.argv, device=str(model.device), seed=job.settings.seed),
            "model_revision": model.revision,
            "data": work.source,
            "data_source": work.dataset.source,
            "data_official": work.dataset.official,
        }
        names = (job.spec.name, work.task.file_name, job.method_name)
        with seat.own():
            folder = RunFolder.open(Path(job.settings.results), *names, work.config, facts, seat.number)
            seat.folder = stack.enter_context(folder)
            seat.todo = {sample.id for sample in missing(work, seat.shard)}
            seat.answered = answered(work)
            if not any(job.method is method for method in running):
                running.append(job.method)
                stack.enter_context(job.method.running())


def ask_all(seats: Sequence[Seat], model: Model, bar: Bar | None) -> None:
    """Ask every sample once, for all runs that lack it; each answer is on disk before the next sample is asked."""
    from engine.kept import Kept
    from eval.ask import ask
    from eval.crowd import Crowd

    crowd = Crowd()
    if bar:
        bar.begin()
    for _, row in groupby(seats[0].work.samples if seats else (), key=lambda sample: sample.row or sample.id):
        questions = list(row)
        kept = Kept() if len(questions) > 1 else None
        for sample in questions:
            asking = [seat for seat in going(seats) if sample.id in seat.todo]
            if not asking:
                continue
            answers = ask([seat.work for seat in asking], model, sample, crowd, kept)
            for seat, found in zip(asking, answers, strict=True):
                with seat.own():
                    seat.take(found)
            if bar:
                bar.advance()
