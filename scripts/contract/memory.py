"""The check of memory: the bytes that are reported are those that a method holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, ModuleType

from torch import Tensor, nn

from engine.arm import Plan
from methods.base import Budget, Layer, Method
from scripts.contract.case import NUM_NEW, Broken, Case, require
from scripts.watch import Watched


def counts_its_bytes(case: Case) -> None:
    watched = Watched(case.method)
    [found] = case.answer([Plan("it", watched.plan_method, case.small())], case.length, NUM_NEW)
    total = 0
    for number, layer in enumerate(watched.layers):
        held = {place(t): (name, t) for name, t in tensors_within((layer.store, layer.inner), f"layer {number}")}
        told = {place(t) for _, t in (*layer.store.tensors(), *layer.inner.tensors()) if t.untyped_storage().nbytes()}
        for key, (name, tensor) in held.items():
            require(key in told, f"{name} holds {tensor.untyped_storage().nbytes()} bytes that no tensors() reports")
        require(told <= held.keys(), f"layer {number}: tensors() reports memory that neither store nor index holds")
        total += sum(tensor.untyped_storage().nbytes() for _, tensor in held.values())
    said_total = sum(found.ledger.resident.values())
    require(said_total == total, f"the ledger says {said_total} bytes, store and index hold {total}")
    for name, _ in tensors_within((case.method,), "the method", skip=()):
        raise Broken(f"{name} is a tensor: parameters hold none, and what belongs to a sample belongs to its index")


def place(tensor: Tensor) -> int:
    """What tells the memory behind a tensor from others."""
    return tensor.untyped_storage().data_ptr()


def tensors_within(
    roots: Iterable[object], name: str, skip: tuple[type, ...] = (Layer, Method, Budget)
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all non-empty memory that objects hold, through attributes, containers and closures."""
    todo = deque((name, root) for root in roots)
    met = dict[int, object]()  # the objects, too: an id of one that is gone may be another's
    while todo:
        name, found = todo.popleft()
        if id(found) in met or isinstance(found, (*skip, type, str, bytes, int, float, nn.Module, ModuleType)):
            continue
        met[id(found)] = found
        if isinstance(found, Tensor):
            if found.untyped_storage().nbytes():
                yield name, found
        else:
            todo.extend((f"{name}{step}", part) for step, part in parts_of(found))


def parts_of(found: object) -> Iterable[tuple[str, object]]:
    """(step of the path, object) of what an object holds."""
    if isinstance(found, Mapping):
        return [(f"[{key!r}]", part) for key, part in found.items()]
    if isinstance(found, (list, tuple, set, frozenset, deque)):
        return [(f"[{number}]", part) for number, part in enumerate(found)]
    if isinstance(found, partial):
        return [("()", part) for part in (found.func, *found.args, *found.keywords.values())]
    if isinstance(found, FunctionType):
        return [("()", cell.cell_contents) for cell in found.__closure__ or ()]
    slots = [name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ())]
    named = {name: getattr(found, name) for name in slots if hasattr(found, name)}
    return [(f".{name}", part) for name, part in {**named, **getattr(found, "__dict__", {})}.items()]
