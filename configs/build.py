"""From resolved YAML to the frozen dataclasses below it: a dataclass is the schema of its YAML."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from configs.arguments import FOLDER, choices, closest

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
    built = {key: _value(hints[key], value, _dotted(where, key)) for key, value in values.items()}
    try:
        return kind(**built)
    except ValueError as error:
        if where.startswith("method.") and str(error).startswith("method."):  # a method does not know that it is a part
            raise ValueError(f"{where}{str(error).removeprefix('method')}") from error
        raise


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value of the hinted type."""
    # Pydantic takes true for 1.
    if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
        raise ValueError(f"{where}={str(value).lower()}: input should be no boolean")
    built = _nested(hint, value, where)
    if is_dataclass(built):
        return built
    if isinstance(hint, type) and is_dataclass(hint):
        raise ValueError(f"{where}={value}: give its class, {where}._target_={_class_of(value)}")
    try:
        return TypeAdapter(hint).validate_python(built)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{where}={value!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def target(node: Mapping[str, Any], where: str) -> type[Any]:
    """The class that a node's `_target_` names, as `package.module.Class`.

    It may lie outside this project: in the current folder or on PYTHONPATH. Raises ValueError, in one line.
    """
    path = node.get("_target_")
    if path is None:
        raise ValueError(f"{where}: its YAML needs _target_: package.module.Class")
    said = f"{where}._target_={path}"
    module_name, _, name = str(path).rpartition(".")
    if not module_name:
        raise ValueError(f"{said}: give module.Class, such as my_module.MyMethod for a class in my_module.py")
    module = _imported(module_name, said)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and is_dataclass(found)):
        own = [k for k, v in vars(module).items() if is_dataclass(v) and getattr(v, "__module__", "") == module_name]
        what = "is no dataclass" if hasattr(module, name) else "does not exist"
        raise ValueError(
            f"{said}: {name} {what} in {module_name}; it has {', '.join(own) or 'none'}{closest(name, own)}"
        )
    if inspect.isabstract(found):
        raise ValueError(f"{said}: {name} lacks {', '.join(sorted(found.__abstractmethods__))}; write it")
    return found


def _imported(name: str, said: str) -> ModuleType:
    """A module; the current folder is searched last, so that nothing of this project is hidden."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            remedy = f"{error.name}.py or a package {error.name} must lie in {os.getcwd()} or on PYTHONPATH"
            raise ValueError(f"{said}: there is no module {error.name}; {remedy}") from error
        raise ValueError(f"{said}: {name} cannot be imported: {error}") from error
    except Exception as error:  # whatever a file of the user's may raise
        raise ValueError(f"{said}: {name} cannot be imported: {type(error).__name__}: {error}") from error


def sources(value: Any) -> dict[str, str]:
    """What defines an object and those within it outside of `methods/`, by hashes of 10 hex digits.

    Of a top-level module over its file, or over all Python files of its package; of files with weights that a field
    names (*.safetensors) over their bytes.
    """
    modules = {top: _source_hash(sys.modules[top]) for top in sorted(_modules(value)) if top != "methods"}
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:10] for path in _weights(value)}
    return {**modules, **weights}


def _weights(value: Any) -> Iterator[Path]:
    """Files with weights that fields of an object, and of those within it, name; a missing one is refused elsewhere."""
    if is_dataclass(value):
        for field in fields(value):
            if field.init:
                yield from _weights(getattr(value, field.name))
    elif isinstance(value, str) and value.endswith(".safetensors"):
        path = Path(__file__).parents[1] / Path(value).expanduser()
        if path.is_file():
            yield path


def _modules(value: Any) -> Iterator[str]:
    """The top-level modules of the dataclasses that an object and those within it derive from."""
    if is_dataclass(value):
        yield from {kind.__module__.partition(".")[0] for kind in inspect.getmro(type(value)) if is_dataclass(kind)}
        for field in fields(value):
            if field.init:
                yield from _modules(getattr(value, field.name))


def _source_hash(module: ModuleType) -> str:
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = [(str(path.relative_to(folder)), path) for folder in folders for path in sorted(folder.rglob("*.py"))]
    if not folders and module.__file__:
        files = [(module.__name__, Path(module.__file__))]
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:10]


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


def _class_of(value: Any) -> str:
    """The class of the method that a value names, or what a class looks like."""
    path = FOLDER / "method" / f"{value}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if value in choices("method") else []
    return next((line.split()[1] for line in lines if line.startswith("_target_:")), "package.module.Class")


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
