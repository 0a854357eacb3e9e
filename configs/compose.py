"""Composes the configuration of a run and says in one line what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.build import instance, typed
from data.base import Task
from engine.spec import ModelSpec
from eval.job import Job
from eval.settings import Settings
from methods.budget import parse_budget

FOLDER = Path(__file__).resolve().parent
GROUPS = ("model", "method", "task", "experiment")


def choices(group: str) -> list[str]:
    """The names a group knows: its YAML files."""
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The composed configuration, with `hydra` in it. Raises ValueError, in one line, for what cannot be composed."""
    try:
        with initialize_config_dir(config_dir=str(FOLDER), version_base="1.3"):
            return compose("config", overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(str(error), overrides)) from error


def job(config: DictConfig, argv: Sequence[str]) -> Job:
    """What a composed configuration asks for. Raises ValueError, in one line, for values that are not allowed."""
    names = {group: str(config.hydra.runtime.choices.get(group)) for group in GROUPS}
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        container = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error
    assert isinstance(container, dict)
    values: dict[str, Any] = {str(key): value for key, value in container.items()}
    groups = {group: values.pop(group) for group in ("model", "method", "task")}
    values.pop("experiment", None)
    settings = typed(Settings, values, "")
    method = instance(groups["method"], "method")
    if method.kind != "none":
        parse_budget(settings.budget)
    return Job(
        settings=settings,
        spec=typed(ModelSpec, groups["model"], "model"),
        method=method,
        method_name=names["method"],
        task=typed(Task, groups["task"], "task"),
        config={**values, **groups},
        argv=tuple(argv),
    )


def explain(message: str, overrides: Sequence[str]) -> str:
    """Hydra's message in one line, with the allowed names."""
    missing = re.search(r"Could not find '([\w/]+?)/([^'/]+)'", message)
    if missing and missing.group(1) in GROUPS:
        group, name = missing.groups()
        return f"{group}={name} is unknown; allowed are {', '.join(choices(group))}{_closest(name, choices(group))}"
    unknown = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([\w.@/-]+)'", message)
    if unknown:
        name = unknown.group(1)
        allowed = _siblings(name)
        return f"{name} is not a field; allowed are {', '.join(allowed)}{_closest(name.rsplit('.', 1)[-1], allowed)}"
    return f"cannot read the arguments {' '.join(overrides)}: {' '.join(message.split())}"


def _closest(name: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(name, allowed, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _siblings(name: str) -> list[str]:
    """The fields beside `name`, whose parent may be a group."""
    parent = name.split(".")[0] if "." in name else ""
    kinds: Mapping[str, type[Any]] = {"model": ModelSpec, "task": Task}
    if parent in kinds:
        return [f"{parent}.{f.name}" for f in fields(kinds[parent])]
    if parent == "method":
        return ["the parameters in configs/method/<name>.yaml"]
    return [*GROUPS, *(f.name for f in fields(Settings))]
