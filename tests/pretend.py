"""A GPU that is not there: tensors that say they are on it, lie on the host, and obey its rules.

Code that asks `is_cuda` takes its CUDA branches, and kernels run in Triton's interpreter. What a GPU would refuse, an
operation or a kernel on tensors of both sides, raises `Mixed`. What would make the host wait is noted in
`Device.waits`, and refused while a graph is captured. A graph is the list of what was asked for, and a replay does it
again on the same memory: a number that the host put into it stays what it was. Streams do nothing, everything is over
when it was asked for. Nothing of this says how fast a GPU is, or what it does in bfloat16.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from engine.model import Model

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).parent.parent
FACTS = {"device": CUDA, "is_cuda": True, "is_cpu": False}
# The host asks for a number, or for a size that depends on numbers.
ASKING = {
    *("item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__contains__", "equal"),
    *("allclose", "is_nonzero", "nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"),
}
SIZED = {"arange": 0, "full": 0, "narrow": 1, "repeat_interleave": 1}  # by tensors after so many


class There(Tensor):
    """A tensor on the GPU."""


class Pinned(Tensor):
    """A tensor in page-locked host memory: kernels may use it, and its copies do not make the host wait."""


class Mixed(RuntimeError):
    """An operation on tensors of the host and of the GPU."""


class Waited(RuntimeError):
    """The host waits for the GPU while a graph is captured."""


class Graph:
    """What was asked for while it was captured, and what that gave."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # memory that was there, and what it held, by address
        self.own: set[int] = set()  # addresses of memory that was made meanwhile

    def note(self, work: Callable[[], Any], given: Any) -> Any:
        """The result of work on what is given, which is noted."""
        with DisableTorchFunction():
            for memory in map(bytes_behind, tensors_in(given)):
                if memory.numel() and memory.data_ptr() not in self.own | self.before.keys():
                    self.before[memory.data_ptr()] = memory, memory.clone()
        out = work()
        with DisableTorchFunction():
            self.own |= {bytes_behind(tensor).data_ptr() for tensor in tensors_in(out)} - self.before.keys()
        self.calls.append((work, tensors_in(out)))
        return out

    def end(self) -> None:
        """Put back what there was: capturing runs nothing."""
        with DisableTorchFunction():
            for memory, held in self.before.values():
                memory.copy_(held)

    def replay(self) -> None:
        """All of it once more, with results where they were the first time."""
        for work, outs in self.calls:
            again = tensors_in(work())
            with DisableTorchFunction():
                for tensor, new in zip(outs, again, strict=True):
                    if tensor.data_ptr() != new.data_ptr():
                        tensor.copy_(new)


class Device(TorchFunctionMode):
    """The rules, while it is entered. waits: (operation, where) of each wait of the host. graph: what is captured.

    launches: names of the Triton kernels so far. Their interpreter's own operations are hidden from dispatch modes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, str]] = []
        self.graph: Graph | None = None
        self.launches: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", str(func)), dict(kwargs or {})
        if name == "__get__":
            return self._attribute(func, args)
        return self.noted(lambda: self._result(func, name, args, dict(given)), (args, given))

    def noted(self, work: Callable[[], Any], given: Any) -> Any:
        """The result of work, of which a graph that is captured takes note."""
        return work() if self.graph is None else self.graph.note(work, given)

    def wait(self, name: str) -> None:
        """The host waits."""
        self.waits.append((name, place()))
        if self.graph is not None:
            raise Waited(f"{name} at {place()}")

    def _attribute(self, func: Any, args: Sequence[Any]) -> Any:
        name = func.__self__.__name__
        if isinstance(args[0], There) and name in FACTS:
            return FACTS[name]
        with DisableTorchFunction():
            return as_kind(func(*args), type(args[0]))

    def _result(self, func: Callable[..., Any], name: str, args: Sequence[Any], given: dict[str, Any]) -> Any:
        if name in ("to", "cpu", "cuda", "type_as", "pin_memory"):
            return self._moved(name, args, given)
        tensors = tensors_in((args, given))
        there, pinned = any(isinstance(tensor, There) for tensor in tensors), bool(given.pop("pin_memory", False))
        if name == "copy_":
            self._copied(args[0], args[1], bool(given.get("non_blocking")))
        elif name in ("__getitem__", "__setitem__"):
            self._indexed(name, args)
        elif there:
            self._checked(name, tensors, args, given)
        if given.get("device") is not None:
            there = torch.device(given["device"]).type == "cuda"
            given["device"] = "cpu"
            if there and name in ("tensor", "as_tensor"):  # from the host's numbers
                self.wait(name)
        if name == "_scaled_dot_product_flash_attention":
            func = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        with DisableTorchFunction():
            out = func(*args, **given)
        if not there and not pinned:
            pinned = bool(tensors) and isinstance(tensors[0], Pinned)
        kind = There if there else Pinned if pinned else None
        return out if kind is None else tree_map(lambda value: as_kind(value, kind), out)

    def _moved(self, name: str, args: Sequence[Any], given: dict[str, Any]) -> Any:
        """A copy where the side changes."""
        tensor, others = args[0], []
        target = {"cuda": True, "cpu": False, "pin_memory": False}.get(name, isinstance(tensor, There))
        for value in (*args[1:], given.pop("device", None)):
            if isinstance(value, (torch.device, str)):
                target = torch.device(value).type == "cuda"
            elif isinstance(value, Tensor):
                target = isinstance(value, There)
                others.append(value.dtype)
            elif value is not None:
                others.append(value)
        changes = target != isinstance(tensor, There)
        if changes and not (given.get("non_blocking") and isinstance(tensor, Pinned)):
            self.wait(name)
        with DisableTorchFunction():
            out = tensor.to(*others, **given)
            out = out.clone() if (changes or name == "pin_memory") and out.data_ptr() == tensor.data_ptr() else out
        stays = isinstance(tensor, Pinned) and out is tensor
        return as_kind(out, There if target else Pinned if stays or name == "pin_memory" else Tensor)

    def _copied(self, into: Tensor, source: Any, non_blocking: bool) -> None:
        if isinstance(source, Tensor) and isinstance(into, There) != isinstance(source, There):
            host = source if isinstance(into, There) else into
            if not (non_blocking and isinstance(host, Pinned)):
                self.wait("copy_")

    def _indexed(self, name: str, args: Sequence[Any]) -> None:
        """An index on the host is copied; bools choose a number of rows, and one number is read."""
        there = isinstance(args[0], There)
        for part in args[1] if isinstance(args[1], tuple) else (args[1],):
            if not isinstance(part, Tensor):
                continue
            if isinstance(part, There) and not there:
                raise Mixed(f"{name}: an index on the GPU, a tensor on the host, at {place()}")
            fills = name == "__setitem__" and not (isinstance(args[2], Tensor) and args[2].dim())
            reads = not fills if part.dtype == torch.bool else part.dim() == 0
            if there and (reads or not isinstance(part, There)):
                self.wait(name)
        if name == "__setitem__":
            self._copied(args[0], args[2], False)

    def _checked(self, name: str, tensors: Sequence[Tensor], args: Sequence[Any], given: Mapping[str, Any]) -> None:
        host = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, There) and tensor.dim()]
        if host:
            raise Mixed(f"{name}: {host} on the host, others on the GPU, at {place()}")
        sized = name in SIZED and len(tensors) > SIZED[name] and "output_size" not in given
        if name in ASKING or sized or (name == "where" and len(args) == 1):
            self.wait(name)


def tensors_in(value: Any) -> list[Tensor]:
    """All of them, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def bytes_behind(tensor: Tensor) -> Tensor:
    """All memory behind a tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def as_kind(value: Any, kind: type[Tensor]) -> Any:
    """A tensor as one of that side; what is one already, or no tensor, as it is."""
    if not isinstance(value, Tensor) or type(value) is kind:
        return value
    with DisableTorchFunction():
        return value.as_subclass(kind)


def place() -> str:
    """The innermost line of the project that is not in this file."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and frame.filename != __file__ and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"


class Nothing:
    """A stream, an event, a guard: whatever is asked of it is done already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., float]:
        return lambda *_, **__: 1.0  # the milliseconds between two events among them

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def pretended() -> Iterator[Device]:
    """The GPU, for as long as it is entered."""
    from triton.runtime.interpreter import GridExecutor

    device, launch, generator, move = Device(), GridExecutor.__call__, torch.Generator, nn.Module.to

    def launched(grid: Any, *args: Any, **kwargs: Any) -> None:
        host = [tuple(t.shape) for t in tensors_in((args, kwargs)) if type(t) is Tensor and t.numel()]
        if host:
            raise Mixed(f"kernel {grid.fn.__name__}: {host} on the host, at {place()}")

        def work() -> None:
            device.launches.append(grid.fn.__name__)
            with DisableTorchFunction(), _disable_current_modes():
                launch(grid, *(as_kind(value, Tensor) for value in args),
                       **{name: as_kind(value, Tensor) for name, value in kwargs.items()})  # fmt: skip

        device.noted(work, (args, kwargs))

    @contextmanager
    def captured(graph: Graph) -> Iterator[None]:
        device.graph = graph
        try:
            yield
        finally:
            device.graph = None
            graph.end()

    facts = {"is_available": True, "device_count": 1, "current_device": 0, "get_device_capability": (9, 0),
             "get_device_name": "none", "mem_get_info": (2**30, 2**30), "memory_reserved": 0, "memory_allocated": 0,
             "max_memory_allocated": 1, "synchronize": None, "empty_cache": None, "set_device": None,
             "reset_peak_memory_stats": None, "current_stream": Nothing()}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, fact in facts.items():
            patch.setattr(torch.cuda, name, lambda *_, fact=fact: fact)
        for name in ("Stream", "Event", "stream", "device_of"):
            patch.setattr(torch.cuda, name, Nothing)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", captured)
        patch.setattr(torch, "Generator", lambda device=None: generator())
        patch.setattr(
            nn.Module, "to", lambda network, where: placed(network) if where == CUDA else move(network, where)
        )
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        patch.setattr(GridExecutor, "__call__", launched)
        with device:
            yield device


def placed(network: nn.Module) -> nn.Module:
    """The network with its weights there; it is changed."""
    for module in network.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            held |= {name: as_kind(value.detach(), There) for name, value in held.items() if isinstance(value, Tensor)}
    return network


def on_gpu(model: Model) -> Model:
    """The model there; its own network is changed."""
    placed(model.network)
    geometry = [replace(g, device=CUDA, sinks=as_kind(g.sinks, There)) for g in model.geometry]
    return replace(model, device=CUDA, geometry=geometry)
