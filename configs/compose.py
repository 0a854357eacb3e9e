"""Composes the configuration of a run and says in one line what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.arguments import FOLDER, GROUPS, closest, readable
from configs.build import described, instance, typed
from data.base import Task
from engine.spec import ModelSpec
from eval.job import Job
from eval.settings import Settings
from methods.budget import parse_budget


def compose_config(words: Sequence[str]) -> DictConfig:
    """The composed configuration, with `hydra` in it. Raises ValueError, in one line, for what cannot be composed."""
    overrides = [readable(word) for word in words]
    try:
        with initialize_config_dir(config_dir=str(FOLDER), version_base="1.3"):
            return compose("config", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(str(error))) from error


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration without Hydra's own part, as plain values. Raises ValueError for what cannot be resolved."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        values = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def job(config: DictConfig, argv: Sequence[str]) -> Job:
    """What a composed configuration asks for. Raises ValueError, in one line, for values that are not allowed."""
    values = plain(config)
    groups = {group: values.pop(group) for group in ("model", "method", "task")}
    values.pop("experiment", None)
    method = instance(groups["method"], "method")
    if method.kind != "none" and "budget" in values:
        parse_budget(values["budget"])
    settings = typed(Settings, values, "")
    spec, task = typed(ModelSpec, groups["model"], "model"), typed(Task, groups["task"], "task")
    changed = {word.lstrip("+").partition("=")[0] for word in config.hydra.overrides.task}
    if "model.path" in changed and "model.name" not in changed:
        spec = replace(spec, name=spec.path)  # results of another model never stand under the YAML's name
    if spec.weights == "random":
        spec = replace(spec, name=f"{spec.name}-random")  # for timing: its scores are nobody's
    # Of the typed values: `1` and `1.0` are one run, and so are a default that was left out and one that was written.
    whole = {**asdict(settings), "model": asdict(spec), "method": described(method), "task": asdict(task)}
    name = str(config.hydra.runtime.choices.method)
    return Job(settings, spec, method, name, task, whole, tuple(argv))


def explain(message: str) -> str:
    """Hydra's message in one line, with the allowed names."""
    unknown = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([\w.@/-]+)'", message)
    if unknown:
        name, allowed = unknown.group(1), [*GROUPS, *(f.name for f in fields(Settings))]
        return f"{name} is not a field; allowed are {', '.join(allowed)}{closest(re.split('[.@/]', name)[0], allowed)}"
    return " ".join(message.partition("Config search path")[0].split())
