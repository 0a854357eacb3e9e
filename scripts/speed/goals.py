"""Every speed goal with a verdict and its number, the most important first, within a limit of time."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import torch

from configs.arguments import choices
from engine.filled import sampled
from engine.memory import release
from engine.model import Model
from scripts.speed import breakeven
from scripts.speed.bandwidth import Bandwidth, measured
from scripts.speed.curves import against_full, plot
from scripts.speed.decode import decode
from scripts.speed.observing import watched
from scripts.speed.overhead import overhead
from scripts.speed.prefills import PrefillRow, prefills
from scripts.speed.report import Column, Sheet, provenance
from scripts.speed.rows import DecodeRow, How
from scripts.speed.syncs import waits
from scripts.speed.tables import decode_columns, machine
from scripts.speed.verdicts import (
    Goal,
    decode_goals,
    index_goal,
    kcache_goals,
    memory_goal,
    overhead_goal,
    scoring_goal,
    untried,
    waits_goal,
)
from scripts.speed.words import Asked, asked, loaded, owner, prompt

GPU_METHODS = "method=full,pqcache,quest,sparq,h2o,snapkv,window,oracle"
GPU_LENGTHS = (131072, 32768, 4096, 65536, 16384)
CACHE_BLOCKS = "32,256"  # the authors' cache of 4k tokens, and one of 32k: a quarter of the longest context
CPU_LENGTHS = (1024, 4096, 16384)
WORKERS_S = 90.0  # seconds that clustering on processors may take beside a GPU's prefill of 32k tokens
DECODE_SHARE = 0.6  # of the time, at most, for decoding: the other goals get the rest
COLUMNS: list[Column[Goal]] = [
    Column("goal", lambda g: g.goal),
    Column("target", lambda g: g.target, left=True),
    Column("verdict", lambda g: g.verdict, left=True),
    Column("found", lambda g: g.found, left=True),
]


class Limit:
    """Seconds since its making, against a number of minutes."""

    def __init__(self, minutes: float) -> None:
        self.began = time.monotonic()
        self.seconds = 60 * minutes

    def fits(self, seconds: float, share: float = 1.0) -> bool:
        """Whether so much more fits in a share of the time."""
        return time.monotonic() - self.began + seconds < share * self.seconds


@dataclass(frozen=True)
class Bench:
    """What all sections have. gpu: whether the goals' hardware is at hand."""

    model: Model
    words: Sequence[str]
    argv: Sequence[str]
    limit: Limit
    folder: Path
    lengths: Sequence[int]
    speed: Bandwidth
    gpu: bool

    def asked(self, *words: str) -> Asked:
        """Contenders of the run's model: the methods of `words`, with what the user said of these."""
        methods = ",".join(word.partition("=")[2] for word in words if word.startswith("method=")).split(",")
        others = {*choices("method"), "method"} - (set() if "all" in methods else {*methods})
        return asked([*(word for word in self.words if owner(word) not in others), *words])

    def origin(self, wanted: Asked) -> dict[str, str]:
        """Provenance."""
        return provenance(["all", *self.argv], self.model.device, wanted.label, wanted.settings.seed)


def run(words: Sequence[str], argv: Sequence[str], minutes: float, to: Path, lengths: Sequence[int] | None) -> int:
    """All sections; exit status 1 where a goal was missed. Tables and the plot go to a folder as they come."""
    limit = Limit(minutes)
    gpu = torch.cuda.is_available() and "device=cpu" not in words
    named = any(word.startswith("model=") for word in words)
    words = [*([] if named else ["model=llama31_8b", "model.weights=random"] if gpu else ["model=tiny"]), *words]
    wanted = asked([*(word for word in words if owner(word) not in {*choices("method"), "method"}), "method=full"])
    model = loaded(wanted)
    print(f"{wanted.label} loaded, {time.monotonic() - limit.began:.0f} s", flush=True)
    bench = Bench(
        model, words, argv, limit, to, lengths or (GPU_LENGTHS if gpu else CPU_LENGTHS), measured(model.device), gpu
    )
    sheet = Sheet(Goal, bench.origin(wanted), to / "goals.csv")
    for name, section in SECTIONS.items():
        for goal in guarded_section(name, section, bench):
            sheet.add(goal)
            print(f"{goal.verdict}: {goal.goal}: {goal.found} ({time.monotonic() - limit.began:.0f} s)", flush=True)
    sheet.show("goals, the most important first", COLUMNS, [machine(bench.speed)])
    return 1 if any(goal.verdict == "FAIL" for goal in sheet.rows) else 0


def guarded_section(name: str, section: Callable[[Bench], Iterator[Goal]], bench: Bench) -> Iterator[Goal]:
    """The goals of a section; where no time is left or it breaks, one that says so: the others go on."""
    if not bench.limit.fits(0.0):
        yield untried(name, "no time was left")
        return
    try:
        yield from section(bench)
    except Exception as error:  # whatever broke here must not cost the other goals
        traceback.print_exception(error, file=sys.stderr)
        yield untried(name, f"it broke: {type(error).__name__}: {shorten(str(error), 200, placeholder=' …')}")
    with suppress(Exception):  # a broken device says so again at every call
        release()


def decoding(bench: Bench) -> Iterator[Goal]:
    """Steps at all lengths, by turns."""
    chosen = next((word for word in bench.words if word.startswith("method=")), None)
    methods = chosen or (GPU_METHODS if bench.gpu else "method=all")
    own = []
    if "pqcache" in methods.partition("=")[2].split(","):
        own.append("pqcache.clustering=gpu")  # that is not timed here
        if bench.gpu and not any(word.startswith("pqcache.cache_blocks=") for word in bench.words):
            own.append(f"pqcache.cache_blocks={CACHE_BLOCKS}")
    wanted = bench.asked(methods, *own)
    sheet = Sheet(DecodeRow, bench.origin(wanted), bench.folder / "decode.csv")
    how = How(("graph",) if bench.gpu else ("eager",))

    def fits(seconds: float) -> bool:
        return bench.limit.fits(seconds, DECODE_SHARE)

    skipped = decode(bench.model, wanted, bench.lengths, how, bench.speed, sheet, fits)
    title = f"{wanted.label}, decode steps from filled caches"
    sheet.show(title, decode_columns(sheet.rows), [machine(bench.speed), *against_full(sheet.rows)])
    plot(sheet.rows, bench.folder / "decode.png", title)
    yield from decode_goals(sheet.rows, bench.gpu, skipped)


def waiting(bench: Bench) -> Iterator[Goal]:
    """Whether PQCache's step waits for the device."""
    if not bench.gpu:
        yield untried("no host synchronisation in PQCache's step", "needs a GPU")
        return
    wanted = bench.asked("method=pqcache", "pqcache.clustering=gpu")
    sample = sampled(bench.model, prompt(bench.model, wanted.spec, How().sample))
    file = bench.folder / "pqcache_step.json"
    yield waits_goal(waits(bench.model, wanted.contenders[0], sample, bench.lengths[0], "graph", file), file)


def indexing(bench: Bench) -> Iterator[Goal]:
    """What PQCache's index adds to the time to the first token, clustered on processors and on the device."""
    length = 32768 if bench.gpu else 2048
    rows: list[PrefillRow] = []
    for place in ("gpu", "cpu"):
        if rows and bench.gpu and not bench.limit.fits(WORKERS_S):
            break
        wanted = bench.asked("method=full,pqcache", f"pqcache.clustering={place}")
        sheet = Sheet(PrefillRow, bench.origin(wanted), bench.folder / f"prefill_{place}.csv")
        prefills(bench.model, wanted, [length], 1 if rows and bench.gpu else 2, sheet)
        rows += [row for row in sheet.rows if row.method != "full"][:1]
    yield index_goal(dict(zip(("on the device", "by worker processes"), rows, strict=False)), bench.gpu)


def scoring(bench: Bench) -> Iterator[Goal]:
    """What H2O's scores cost beside the prefill's attention."""
    length = 131072 if bench.gpu else 4096
    seen = watched(bench.model, bench.asked("method=h2o").contenders[0], length, 1 if bench.gpu else 3)
    assert seen is not None
    yield scoring_goal(seen, length, bench.gpu)


def fetching(bench: Bench) -> Iterator[Goal]:
    """Where KCache breaks even."""
    lengths = [1 << power for power in (range(9, 20) if bench.gpu else range(9, 15))]
    yield from kcache_goals(breakeven.measured(bench.model, lengths, 128 if bench.gpu else 512), bench.gpu)


def holding(bench: Bench) -> Iterator[Goal]:
    """Peak memory beside the ledger; and, on the way, batches of equal memory."""
    name = "peak memory within 2 % of the ledger's sum"
    if not bench.gpu:
        yield untried(name, "needs a GPU, whose allocator keeps the peak")
        return
    wanted = bench.asked("method=full,h2o,quest,pqcache", "pqcache.clustering=gpu")
    sheet = Sheet(DecodeRow, bench.origin(wanted), bench.folder / "memory.csv")
    decode(bench.model, wanted, [32768], How(("eager",), steps=8, batch="memory", memory=True), bench.speed, sheet)
    sheet.show("memory, and batches of equal memory", decode_columns(sheet.rows))
    yield memory_goal(name, sheet.rows)


def loop(bench: Bench) -> Iterator[Goal]:
    """The harness's own time, always on the embedded model and a CPU."""
    wanted = asked(["model=tiny", "method=full", "device=cpu"])
    model = bench.model if not bench.gpu and "model=tiny" in bench.words else loaded(wanted)
    yield overhead_goal({way: overhead(model, wanted, 1024, How(), way) for way in ("eager", "static")})


SECTIONS: dict[str, Callable[[Bench], Iterator[Goal]]] = {
    "decode steps": decoding,
    "no host synchronisation in PQCache's step": waiting,
    "PQCache's index build": indexing,
    "H2O's scores": scoring,
    "KCache's break-even": fetching,
    "peak memory": holding,
    "the harness's own time": loop,
}
