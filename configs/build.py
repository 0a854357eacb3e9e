"""From resolved YAML to the frozen dataclasses below it: a dataclass is the schema of its YAML."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from configs.arguments import closest

T = TypeVar("T")


def typed(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """An object of dataclass `kind` from plain values; `where` is what messages call it (`method`, `task`).

    A nested mapping is built first: with the class that its `_target_` names, or the one that the field's type names.
    Raises ValueError, in one line, for unknown, missing, ill-typed and refused values.
    """
    settable = {f.name: f for f in fields(kind) if f.init}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key in values:
        if key not in settable:
            allowed = f"allowed are {', '.join(settable) or 'none'}{closest(key, list(settable))}"
            raise ValueError(f"{_dotted(where, key)} is not a field; {allowed}")
    for name, field in settable.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{_dotted(where, name)} is missing")
    return kind(**{key: _value(hints[key], value, _dotted(where, key)) for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value of the hinted type."""
    # Pydantic takes true for 1.
    if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
        raise ValueError(f"{where}={str(value).lower()}: input should be no boolean")
    built = _nested(hint, value, where)
    if is_dataclass(built):
        return built
    try:
        return TypeAdapter(hint).validate_python(built)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{where}={value!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def target(node: Mapping[str, Any], where: str) -> type[Any]:
    """The class that a node's `_target_` names, as `package.module.Class`."""
    path = node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"{where}: its YAML needs _target_: package.module.Class")
    module, name = path.rsplit(".", 1)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: _target_={path} does not exist: {error}") from error
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ValueError(f"{where}: _target_={path} is not a dataclass")
    return found


def instance(node: Mapping[str, Any], where: str) -> Any:
    """The object that a node with a `_target_` describes."""
    return typed(target(node, where), {k: v for k, v in node.items() if k != "_target_"}, where)


def described(value: Any) -> Any:
    """The inverse of `instance`: an object and those within it as plain values, defaults included."""
    if not is_dataclass(value):
        return value
    path = f"{type(value).__module__}.{type(value).__qualname__}"
    return {"_target_": path, **{f.name: described(getattr(value, f.name)) for f in fields(value) if f.init}}


def _nested(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "_target_" in value:
        return instance(value, where)
    for kind in (hint, *(a for a in get_args(hint) if a is not NoneType)):
        if isinstance(kind, type) and is_dataclass(kind):
            return typed(kind, value, where)
    return value


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
