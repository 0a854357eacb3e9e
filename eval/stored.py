"""Runs as they lie on disk: found below folders, chosen by words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import escape, glob
from pathlib import Path
from typing import Any

from eval.records import Record, read_records
from eval.run_file import RUN_FILE, Run, read_run
from eval.scores import SCORES_FILE
from eval.sweep_folder import SWEEP_FILE

# What makes a row: the keys of a run's config that belong to the method and its budget.
ARM = ("method", "method_name", "method_source", "budget", "local_share", "compensate")
# Null where the method ignores them.
IGNORED = ("budget", "local_share", "compensate")
# What makes a column.
COLUMN = ("task", "data_revision")
# Where a run was made is no part of the question; times are compared within one device only.
PLACE = ("device",)
NAMES = ("model", "method", "task")


@dataclass(frozen=True)
class Stored:
    """A run as it lies on disk."""

    folder: Path
    run: Run

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """The record that counts for each id. Raises ValueError, naming file and line, where a file is damaged."""
        return read_records(self.folder)

    @property
    def limit(self) -> int | None:
        """The `limit` of its last session, which is what its `scores.json` is over."""
        limit = self.run.sessions[-1]["options"].get("limit") if self.run.sessions else None
        return None if limit is None else int(limit)

    @property
    def num_expected(self) -> int | None:
        """How many samples its own `scores.json` counts on; None before the run has ended once."""
        try:
            found = json.loads((self.folder / SCORES_FILE).read_bytes())
        except (OSError, ValueError):
            return None
        number = found.get("n_expected") if isinstance(found, dict) else None
        return number if isinstance(number, int) else None

    @cached_property
    def flat(self) -> Mapping[str, Any]:
        """The config with dotted keys (`method.num_subspaces`), and `model`, `method`, `task` as the run calls them."""
        names = {"model": self.run.model, "method": self.run.method, "task": self.run.task}
        return {**flat(self.run.config), **names}

    @cached_property
    def arm(self) -> Mapping[str, Any]:
        """What makes its row, flat."""
        return flat({key: value for key, value in self.run.config.items() if key in ARM})

    @cached_property
    def setting(self) -> Mapping[str, Any]:
        """What a whole table has in common, flat."""
        apart = (*ARM, *COLUMN, *PLACE)
        return flat({key: value for key, value in self.run.config.items() if key not in apart})


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted keys; lists stay values."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        inside = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
        out.update(inside)
    return out


def find(roots: Sequence[Path]) -> list[Stored]:
    """All runs at or below these folders, each once. Raises ValueError where a root holds none, or a run is damaged."""
    folders: dict[Path, Path] = {}
    for root in roots:
        below = _below(root)
        if not below:
            raise ValueError(f"no run is in {root}: give a results folder, a sweep's, or run folders")
        folders.update((folder.resolve(), folder) for folder in below)
    return [Stored(folder, read_run(folder)) for folder in folders.values()]


def _below(root: Path) -> list[Path]:
    """The run folders below a folder, or those that a sweep's folder names."""
    if (root / SWEEP_FILE).is_file():
        named = json.loads((root / SWEEP_FILE).read_bytes())["runs"]
        kept = [Path(entry["folder"]) for entry in named if entry["folder"] is not None]
        return [folder for folder in kept if (folder / RUN_FILE).is_file()]
    # Unlike pathlib's, this walk leaves hidden folders out and does not mind those that vanish meanwhile: a run that
    # starts tries the disk in one.
    return sorted(Path(name).parent for name in glob(str(Path(escape(str(root)), "**", RUN_FILE)), recursive=True))


def choose(runs: Sequence[Stored], words: Sequence[str], baseline: str) -> list[Stored]:
    """The runs that all `key=value,value` words name, and those of method `baseline` on the same models and tasks.

    A run that ignores its budget fits any. Raises ValueError, with what there is, for a word that fits no run.
    """
    wanted: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not any(key in run.flat for run in runs):
            keys = ", ".join((*NAMES, "budget", "protocol", "data", "limit", "method.PARAMETER"))
            raise ValueError(f"{word!r} chooses no runs: give folders, or key=value[,value] with such a key: {keys}")
        wanted[key] = values.split(",")
        _require_known(word, key, wanted[key], runs)
    named = [run for run in runs if all(_fits(run, *item) for item in wanted.items())]
    if not named:
        raise ValueError(f"no run fits {' '.join(words)} together: `python -m scripts.list runs` shows all")
    others = {key: values for key, values in wanted.items() if key != "method"}
    beside = {(run.run.model, run.run.task) for run in named}
    return [
        run
        for run in runs
        if run in named
        or (
            (run.run.method == baseline and (run.run.model, run.run.task) in beside)
            and all(_fits(run, *item) for item in others.items())
        )
    ]


def _require_known(word: str, key: str, wanted: Sequence[str], runs: Sequence[Stored]) -> None:
    for value in wanted:
        if not any(_same(run.flat.get(key), value) for run in runs if key in run.flat):
            found = sorted({str(run.flat[key]) for run in runs if run.flat.get(key) is not None})
            raise ValueError(f"{word}: no run has {key}={value}; found are {', '.join(found)}")


def _fits(run: Stored, key: str, wanted: Iterable[str]) -> bool:
    value = run.flat.get(key)
    return (value is None and key in IGNORED) or any(_same(value, text) for text in wanted)


def _same(value: Any, text: str) -> bool:
    """Whether a config's value is the one that a word gives: 0.10 is 0.1, null is none."""
    if value is None or isinstance(value, bool):
        return text.lower() == json.dumps(value)
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return str(value) == text
