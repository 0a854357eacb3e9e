"""What stands on the command line: flags and `key=value` words, each checked before Hydra composes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException

from eval.task_sets import SUITES

FOLDER = Path(__file__).resolve().parent
GROUPS = ("model", "method", "task", "experiment")
FLAGS = "-m (a sweep), --cfg job (print the configuration), --help"
# Methods that were looked at and cannot be had; docs/methods.md ("Examined, not implemented") says the same.
EXAMINED = {
    "bct": 'a fixed number of KV slots that are "dynamically updated"; update rule, training and results could not be '
    "obtained and a review that had the text calls them underspecified: what we know of it determines no algorithm. "
    "Fixed capacity by eviction is `window`",
    "instcache": "stores responses to predicted instructions in a hash table and touches no key or value; prompts of "
    "LongBench are long and unique, so that its hit rate is 0 and its answers are those of full attention, "
    "by construction",
}
FORM = "give key=value, and quotes in quotes around values with any of ,()[]{}~ such as \"data='~/rows'\""


@dataclass(frozen=True)
class Arguments:
    """words: the `key=value` ones. sweep: `-m` was given. show: `--cfg job` was given."""

    words: tuple[str, ...]
    sweep: bool
    show: bool


def read(argv: Sequence[str]) -> Arguments:
    """The command line, flags and words in any order. Raises ValueError for an unknown flag."""
    words, sweep, show = [], False, False
    rest = iter(argv)
    for argument in rest:
        if argument in ("-m", "--multirun"):
            sweep = True
        elif argument in ("-c", "--cfg"):
            show = True
            if (part := next(rest, "")) != "job":
                raise ValueError(f"{argument} {part}: the only part is job, as in {argument} job")
        elif argument.startswith("-"):
            raise ValueError(f"{argument} is no flag; allowed are {FLAGS}; everything else is key=value")
        else:
            words.append(argument)
    return Arguments(tuple(words), sweep, show)


def jobs(words: Sequence[str]) -> list[list[str]]:
    """The words of each job of a sweep, in Hydra's order, a suite as its tasks. Raises ValueError as `parse` does."""
    return [list(job) for job in product(*(_values(parse(word)) for word in words))]


def has_suite(words: Sequence[str]) -> bool:
    """Whether `task=` names a suite, so that the words are a sweep also without -m."""
    return any(_suite(parse(word)) for word in words)


def readable(word: str, sweep: bool = False) -> str:
    """A word as Hydra shall read it. Raises ValueError as `parse` does, and without `sweep` for several values."""
    override = parse(word)
    if _suite(override):
        if not sweep:
            raise ValueError(
                f"{word} is several tasks, which only run.py takes at once; give one of {_tasks(override)}"
            )
        word = f"{override.get_key_element()}={_tasks(override)}"
    if override.is_sweep_override() and not sweep:
        raise ValueError(f"{word} holds several values: put quotes in quotes around one value, -m before a sweep")
    # A field that a YAML leaves at its default may be set too; `configs.build.typed` refuses what is no field.
    own = ("model.", "method.", "task.", "hydra.launcher.")
    inside = override.type is OverrideType.CHANGE and override.key_or_group.startswith(own)
    return f"++{word}" if inside else word


def parse(word: str) -> Override:
    """A word as Hydra parses it. Raises ValueError, naming it, if it is no `key=value` or names what no group has."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ValueError(f"cannot read {word!r}: {FORM}") from error
    if not override.key_or_group:
        raise ValueError(f"cannot read {word!r}: {FORM}")
    if override.key_or_group in GROUPS:
        _check_name(override)
    return override


def choices(group: str) -> list[str]:
    """The names a group knows: its YAML files."""
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def check_examined(name: str) -> None:
    """Raises ValueError, with the reason, for a method that was examined and not implemented."""
    if name in EXAMINED:
        raise ValueError(f"method={name} was examined and is not implemented: {EXAMINED[name]}")


def closest(name: str, allowed: Sequence[str]) -> str:
    """A question that guesses what was meant, empty where nothing is close."""
    close = get_close_matches(name, allowed, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _values(override: Override) -> list[str]:
    word, key = str(override.input_line), override.get_key_element()
    if _suite(override):
        return [f"{key}={task}" for task in _tasks(override).split(",")]
    if not override.is_sweep_override():
        return [word]
    return [f"{key}={value}" for value in _swept(override)]


def _swept(override: Override) -> list[str]:
    if not override.is_discrete_sweep() or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise ValueError(f"{override.input_line}: only lists such as 0.1,0.2 and range() make a sweep")
    return list(override.sweep_string_iterator())


def _names(override: Override) -> list[str]:
    """The names that a group's word gives."""
    if override.is_sweep_override():
        return _swept(override)
    return ["null" if override.value() is None else str(override.value())]


def _suite(override: Override) -> bool:
    return override.key_or_group == "task" and any(name in SUITES for name in _names(override))


def _tasks(override: Override) -> str:
    """The tasks that are named, suites as theirs, each once."""
    return ",".join(dict.fromkeys(task for name in _names(override) for task in SUITES.get(name, (name,))))


def _check_name(override: Override) -> None:
    group = override.key_or_group
    known = [*choices(group), *(SUITES if group == "task" else ())]
    for name in _names(override):
        if group == "method":
            check_examined(name)
        if name not in known and (group, name) != ("experiment", "null"):
            # The guess comes first: the names of tasks fill a screen.
            raise ValueError(
                f"{group}={name} is unknown{closest(name, known)}; allowed are {', '.join(known) or 'none'}"
            )
