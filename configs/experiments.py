"""What a command line asks for as single jobs: Hydra's sweep syntax, and experiment files, which are sweeps themselves.

An experiment, `configs/experiment/NAME.yaml`, may hold

    sweep:
      arms: {LABEL: [override, ...], ...}       # each arm's words; or the name of an experiment, whose arms they are
      grid: {task: "a,b", budget: "0.1,0.2"}    # in Hydra's syntax, crossed with every arm

An arm's words win over the grid's, the command line's over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from configs.arguments import FOLDER, choices, jobs, parse


@dataclass(frozen=True)
class JobWords:
    """The override words of one job, and the label of its arm; empty where no experiment gives it one."""

    label: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """The `sweep` node of an experiment. arms: words by label; grid: `key=values` words."""

    arms: Mapping[str, tuple[str, ...]]
    grid: tuple[str, ...]


def expand(words: Sequence[str]) -> list[JobWords]:
    """All jobs of a command line, each once, in order. Raises ValueError, in one line, for what cannot be read."""
    found = [job for given in jobs(words) for job in _expanded(given)]
    return list({job.words: job for job in reversed(found)}.values())[::-1]


def is_experiment(words: Sequence[str]) -> bool:
    """Whether the command line names an experiment that is a sweep."""
    return any(sweep_of(name) for given in jobs(words) if (name := _experiment(given)))


def sweep_of(name: str) -> Sweep | None:
    """The sweep of an experiment, None where it has none. Raises ValueError, naming the file, for a malformed one."""
    node = _node(name)
    return None if node is None else _checked(node, f"experiment {name}: sweep")


def _node(name: str) -> Any:
    content = yaml.safe_load((FOLDER / "experiment" / f"{name}.yaml").read_text())
    return content.get("sweep") if isinstance(content, Mapping) else None


def _checked(node: Any, where: str) -> Sweep:
    if not isinstance(node, Mapping) or set(node) - {"arms", "grid"}:
        raise ValueError(f"{where} is {node!r}; it takes arms and grid")
    arms, grid = _arms(node.get("arms") or {"": []}, where), node.get("grid") or {}
    for label, given in arms.items():
        if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
            raise ValueError(f"{where}.arms.{label} is {given!r}; give a list of key=value words")
        for word in given:
            if parse(word).is_sweep_override():
                raise ValueError(f"{where}.arms.{label}: {word} holds several values; these belong into grid")
    for key, values in grid.items():
        if isinstance(values, list | Mapping) or values is None:
            raise ValueError(f'{where}.grid.{key} is {values!r}; give values in one text, such as "0.1,0.2"')
    return Sweep({str(k): tuple(v) for k, v in arms.items()}, tuple(f"{k}={v}" for k, v in grid.items()))


def _arms(arms: Any, where: str) -> Mapping[str, Any]:
    """The arms themselves, where they are given by the name of the experiment that lists them."""
    lists = _node(arms) if isinstance(arms, str) and arms in choices("experiment") else {"arms": arms}
    found = lists.get("arms") if isinstance(lists, Mapping) else None
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}.arms is {arms!r}; give LABEL: [words], or the name of an experiment that does")
    return found


def _expanded(given: Sequence[str]) -> list[JobWords]:
    name = _experiment(given)
    found = sweep_of(name) if name else None
    if found is None:
        return [JobWords("", tuple(given))]
    return [
        JobWords(label, _joined([*cell, *arm, *given]))
        for label, arm in found.arms.items()
        for cell in jobs(found.grid)
    ]


def _experiment(words: Sequence[str]) -> str | None:
    """The experiment that a job names."""
    values = [parse(word).value() for word in words if _key(word) == "experiment"]
    return str(values[-1]) if values and values[-1] is not None else None


def _joined(words: Sequence[str]) -> tuple[str, ...]:
    """Words without those that a later one of the same key replaces."""
    return tuple({_key(word): word for word in words}.values())


def _key(word: str) -> str:
    return parse(word).key_or_group
