"""Composes the configuration of a run and says in one line what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import safe_load

from configs.arguments import FOLDER, GROUPS, check_examined, choices, closest, readable
from configs.build import described, instance, sources, typed
from data.base import Task
from engine.spec import ModelSpec
from eval.job import Job
from eval.settings import Settings
from methods.base import Method
from methods.budget import parse_budget

# What only some tasks have, each of one benchmark.
PARTS = ("needle", "ruler", "turns", "infinitebench", "longbench_v2", "gsm8k")


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
    check_parts(config)
    if config.hydra.runtime.choices.experiment is not None:
        for own in ("experiment", "sweep", "table"):  # what an experiment says besides settings
            values.pop(own, None)
    method = method_of(groups["method"])
    if method.kind != "none" and "budget" in values:
        parse_budget(values["budget"])
    if "compensate" in values:
        values["compensate"] = share(values["compensate"])
    settings = typed(Settings, values, "")
    spec, task = typed(ModelSpec, groups["model"], "model"), typed(Task, groups["task"], "task")
    changed = changed_keys(config)
    if "model.path" in changed and "model.name" not in changed:
        spec = replace(spec, name=spec.path)  # results of another model never stand under the YAML's name
    if spec.weights == "random":
        spec = replace(spec, name=f"{spec.name}-random")  # for timing: its scores are nobody's
    # Of the typed values: `1` and `1.0` are one run, and so are a default that was left out and one that was written.
    whole = {**asdict(settings), "model": asdict(spec), "method": described(method), "task": task_values(task)}
    outside = sources(method)
    if outside:
        whole["method_source"] = outside  # an edited file is another run
    return Job(settings, spec, method, method_name(config), task, whole, tuple(argv))


def task_values(task: Task) -> dict[str, Any]:
    """A task as plain values. Rows that are read say nothing of how rows are made: their runs keep their hash."""
    unset: dict[str, Any] = dict.fromkeys(PARTS)
    unset |= {"answer_prefix": "", "stop_text": ""}
    return {key: value for key, value in asdict(task).items() if key not in unset or value != unset[key]}


def check_parts(config: DictConfig) -> None:
    """Raises ValueError where the command line sets what only other tasks have, such as `task.turns.mode`."""

    def has(task: str, part: str) -> bool:
        return part in safe_load((FOLDER / "task" / f"{task}.yaml").read_text(encoding="utf-8"))

    name = str(config.hydra.runtime.choices.task)
    for key in sorted(changed_keys(config)):
        part = key.removeprefix("task.").partition(".")[0]
        if key.startswith("task.") and part in PARTS and not has(name, part):
            others = ", ".join(task for task in choices("task") if has(task, part))
            raise ValueError(f"{key}: task={name} has no {part}; tasks with it are {others}")


def compose_method(name: str, words: Sequence[str]) -> tuple[str, Method]:
    """A method by its name or as `module.Class`, with `method.param=value` words, and what a run calls it.

    Raises ValueError, in one line, for what cannot be composed.
    """
    for word in words:
        if not re.match(r"[~+]*method\.", word):
            raise ValueError(f"{word}: only parameters of the method can be set here: give method.param=value")
    check_examined(name)
    if "." in name:
        known = ["method=full", f"method._target_={name}"]
    elif name in choices("method"):
        known = [f"method={name}"]
    else:
        allowed = f"allowed are {', '.join(choices('method'))}, or module.Class of a file of yours"
        raise ValueError(f"method {name} is unknown; {allowed}{closest(name, choices('method'))}")
    config = compose_config([*known, *words])
    return method_name(config), method_of(plain(config)["method"])


def method_of(node: Mapping[str, Any]) -> Method:
    """The method that a composed node describes. Raises ValueError for what is none."""
    method = instance(node, "method")
    if not isinstance(method, Method):
        raise ValueError(f"method._target_={node['_target_']} is no method: derive it from methods.base.Method")
    return method


def method_name(config: DictConfig) -> str:
    """What a run calls its method: the YAML's name, or `module.Class` where the command line names a class."""
    given = "method._target_" in changed_keys(config)
    return str(config.method._target_ if given else config.hydra.runtime.choices.method)


def changed_keys(config: DictConfig) -> set[str]:
    """The keys that the command line sets."""
    return {word.lstrip("+").partition("=")[0] for word in config.hydra.overrides.task}


def share(value: object) -> object:
    """A share written as `1/128` as the number it is; anything else as it was."""
    match = re.fullmatch(r"(\d+)/(0*[1-9]\d*)", str(value).strip())
    return int(match[1]) / int(match[2]) if match else value


def explain(message: str) -> str:
    """Hydra's message in one line, with the allowed names."""
    unknown = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([\w.@/-]+)'", message)
    if unknown:
        name, allowed = unknown.group(1), [*GROUPS, *(f.name for f in fields(Settings))]
        return f"{name} is not a field; allowed are {', '.join(allowed)}{closest(re.split('[.@/]', name)[0], allowed)}"
    return " ".join(message.partition("Config search path")[0].split())
