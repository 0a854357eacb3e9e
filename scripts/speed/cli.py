"""The commands `decode`, `prefill` and `all` of scripts.bench."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from scripts.speed import goals
from scripts.speed.bandwidth import measured
from scripts.speed.curves import against_full, plot
from scripts.speed.decode import decode
from scripts.speed.prefills import PrefillRow, prefills
from scripts.speed.report import Sheet, provenance
from scripts.speed.rows import BATCHES, DecodeRow, How
from scripts.speed.tables import PREFILL, decode_columns, machine
from scripts.speed.words import asked, loaded

WORDS = (
    "overrides as run.py takes them: model=, method=a,b or all, budget=0.1,0.2, device=, dtype=, ...; besides, "
    "NAME.param=value sets a parameter of method NAME alone, and several values of it race each other; without "
    "method= all are run"
)
DECODE = """seconds of a decode step at fixed cache lengths, each beside its floor

The cache is filled with the keys and values of a short real prefill, resampled and turned to their new positions, so
that no long prefill is paid for. All methods are stepped by turns.

python -m scripts.bench decode model=tiny method=full,quest,h2o budget=0.1 --lengths 1k,4k
python -m scripts.bench decode model=llama31_8b model.weights=random method=full,pqcache budget=0.1 --decode eager,graph
"""
PREFILL_HELP = """seconds to the first and second token with a real prefill, and what they wait for

python -m scripts.bench prefill model=tiny method=full,h2o,pqcache --lengths 1k,2k
"""
ALL = """every speed goal, with a verdict and its number, within a limit of time; what was found is kept if it is killed

python -m scripts.bench all                # on a GPU: Llama-3.1-8B's shape with random weights; on a CPU: model=tiny
python -m scripts.bench all --minutes 3 --to results/bench
"""


def main(argv: Sequence[str]) -> int:
    """Exit status 0, and for `all` 1 where a goal is missed. Raises ValueError, in one line."""
    return COMMANDS[argv[0]](argv[1:])


def parser(name: str, text: str) -> argparse.ArgumentParser:
    """What all three have in common."""
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(f"python -m scripts.bench {name}", description=text, formatter_class=form)
    made.add_argument("words", nargs="*", help=WORDS)
    return made


def decoding(argv: Sequence[str]) -> int:
    """`decode`."""
    p = parser("decode", DECODE)
    p.add_argument("--lengths", default="4k,16k,32k,64k,128k", help="tokens in the cache (default %(default)s)")
    p.add_argument("--decode", help="eager, static, graph, or several with commas: how steps are done (decode=)")
    p.add_argument("--steps", type=int, default=20, help="timed steps of each (default %(default)s)")
    p.add_argument("--batch", choices=BATCHES, default="1", help="memory: also as many rows as one full cache has room")
    p.add_argument("--sample", default="2k", help="tokens of the real prefill that fills the caches (%(default)s)")
    p.add_argument("--no-memory", action="store_true", help="on a GPU: do not compare peak memory and ledger")
    p.add_argument("--csv", type=Path, help="a file, written row by row")
    p.add_argument("--plot", type=Path, help="a PNG: step time over length, with floors")
    given = p.parse_intermixed_args(argv)
    sizes, wanted = lengths(given.lengths), asked(given.words)
    ways = tuple((given.decode or wanted.settings.decode).split(","))
    how = How(ways, given.steps, given.batch, lengths(given.sample)[0])
    model = loaded(wanted)
    if model.device.type == "cuda" and not given.no_memory:
        how = How(how.ways, how.steps, how.batch, how.sample, memory=True)
    origin = provenance(["decode", *argv], model.device, wanted.label, wanted.settings.seed)
    speed, sheet = measured(model.device), Sheet(DecodeRow, origin, given.csv)
    decode(model, wanted, sizes, how, speed, sheet)
    title = f"{wanted.label}, decode steps from filled caches"
    sheet.show(title, decode_columns(sheet.rows), [machine(speed), *against_full(sheet.rows)])
    if given.plot is not None:
        plot(sheet.rows, given.plot, title)
    return 0


def prefilling(argv: Sequence[str]) -> int:
    """`prefill`."""
    p = parser("prefill", PREFILL_HELP)
    p.add_argument("--lengths", default="4k,16k,32k", help="tokens of the prompt (default %(default)s)")
    p.add_argument("--repeats", type=int, default=3, help="prefills of each, by turns (default %(default)s)")
    p.add_argument("--csv", type=Path, help="a file, written row by row")
    given = p.parse_intermixed_args(argv)
    if given.repeats < 1:
        raise ValueError(f"--repeats {given.repeats}: give 1 or more")
    sizes, wanted = lengths(given.lengths), asked(given.words)
    model = loaded(wanted)
    origin = provenance(["prefill", *argv], model.device, wanted.label, wanted.settings.seed)
    sheet = Sheet(PrefillRow, origin, given.csv)
    prefills(model, wanted, sizes, given.repeats, sheet)
    sheet.show(f"{wanted.label}, real prefills of one arm alone", PREFILL)
    return 0


def all_goals(argv: Sequence[str]) -> int:
    """`all`."""
    p = parser("all", ALL)
    p.add_argument("--minutes", type=float, default=8.0, help="limit; what does not fit is skipped (%(default)s)")
    p.add_argument("--lengths", help="tokens in the cache, the most important first")
    p.add_argument(
        "--to", type=Path, default=Path("results/bench"), help="folder of the CSVs and the plot (%(default)s)"
    )
    given = p.parse_intermixed_args(argv)
    if given.minutes <= 0:
        raise ValueError(f"--minutes {given.minutes}: give more than 0")
    return goals.run(given.words, argv, given.minutes, given.to, lengths(given.lengths) if given.lengths else None)


def lengths(text: str) -> list[int]:
    """`4k,512` as numbers of tokens; k is 1024. Raises ValueError."""
    found = [re.fullmatch(r"([1-9]\d*)(k?)", part.strip()) for part in text.split(",")]
    if not all(found):
        raise ValueError(f"{text}: give lengths in tokens with commas, such as 512,4k,128k")
    return [int(match[1]) * (1024 if match[2] else 1) for match in found if match]


HELP = {"all": ALL, "decode": DECODE, "prefill": PREFILL_HELP}
COMMANDS = {"decode": decoding, "prefill": prefilling, "all": all_goals}
