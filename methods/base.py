"""The contract: what a KV-cache selection method is, and the words it is said in.

H query heads, G KV heads, D head dimension, m new tokens, n tokens of a prompt. There is no batch axis: a lockstep row
is one arm. Positions are absolute, 0-based, int64; -1 pads ragged rows. Ties: the lower position wins. Keys are
post-RoPE and stored per KV head, never repeated per query head. Under grouped-query attention scores are softmax
probabilities per query head in float32, summed over the group: one list of positions per KV head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from methods.store import KVStore, ResidentStore

if TYPE_CHECKING:
    from methods.fixed import FixedStep


@dataclass(frozen=True)
class Budget:
    """Tokens that a step may attend per KV head, fixed when the prompt is known. The m new tokens come on top.

    sink: first tokens of the prompt; local: latest tokens before the new ones; middle: what the method chooses.
    extra: the part of `middle` that compensates for the index bytes of other methods, reported apart.
    """

    sink: int
    local: int
    middle: int
    extra: int = 0

    @property
    def total(self) -> int:
        """All tokens of a step but the new ones."""
        return self.sink + self.local + self.middle


@dataclass(frozen=True)
class ModelFacts:
    """What a method may need to know of a model before it runs.

    windows: for each layer its sliding window in tokens, None for full attention.
    rope_scaled: whether the rotary tables carry an attention factor other than 1 (YaRN), which un-rotating would lose.
    fingerprint: 16 hex digits of its weights, for methods that were trained for one model; "" where those are not here.
    """

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    rope_scaled: bool = False
    has_rope: bool = True
    fingerprint: str = field(default="", compare=False)


@dataclass(frozen=True)
class Layer:
    """Geometry of one selectable layer; sliding-window layers are never shown to a method.

    scale: factor on q·k. softcap: the logits' soft cap, if the model has one.
    rotate: (x [.., r, D], positions [.., r], inverse) -> x turned by the model's own RoPE, computed in float32.
    seed: from the run's seed, the sample and the layer; never from row or order.
    sinks: learned sink logits [H], which take their share of every softmax (GPT-OSS), or None.
    """

    index: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    dtype: torch.dtype
    device: torch.device
    rotate: Callable[[Tensor, Tensor, bool], Tensor]
    seed: int = 0
    sinks: Tensor | None = None

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads


class Observer(ABC):
    """Sees one layer's dense prefill; its result belongs to the prefix and is shared by arms with an equal key.

    key names what is computed, with its parameters; it includes the budget only if the result depends on it.
    needs_lse: whether `see` must be given the log-sum-exp of every query.
    """

    needs_lse: ClassVar[bool] = False

    @property
    @abstractmethod
    def key(self) -> Hashable: ...

    def see(self, queries: Tensor, keys: Tensor, lse: Tensor | None, start: int) -> None:  # noqa: B027
        """A chunk: queries [H,c,D], all keys so far [G,start+c,D], log-sum-exp [H,c] (natural), its first position."""

    @abstractmethod
    def finish(self, keys: Tensor, values: Tensor) -> object:
        """The immutable result, from the layer's whole keys and values [G,n,D]."""


@dataclass(frozen=True)
class Step:
    """One selection: the new tokens are already stored, candidates are positions sink <= p < end.

    queries [H,m,D] post-RoPE; positions [m]; start: the first of them, on the host; end: start of the local window;
    k: how many candidates the budget allows.
    """

    queries: Tensor
    positions: Tensor
    start: int
    sink: int
    end: int
    k: int


@dataclass(frozen=True)
class Rest:
    """Stands in for what was not read; exactly one of lse and mass is given.

    value [H,m,D], None is zero; lse [H,m]: its log-mass, merged with the read part's; mass [H,m]: share of the read
    part y, so that the output is mass*y + (1-mass)*value (SparQ).
    """

    value: Tensor | None = None
    lse: Tensor | None = None
    mass: Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.lse is None) != (self.mass is None), "Rest takes exactly one of lse and mass"


@dataclass(frozen=True)
class Selection:
    """Middle tokens to attend; the engine adds sink, local and the new tokens.

    positions [G,k], -1 pads; or [H,k], a list for each query head (the group's union is what is read, each head
    attends its own list only); None: everything that the store holds.
    values_only: the logits came from a counted scan of all keys, so that of what is read only V counts (KCache).
    """

    positions: Tensor | None = None
    rest: Rest | None = None
    values_only: bool = False


class Index:
    """What a method remembers of one layer of one arm. Only `select` must be written."""

    def __init__(self, layer: Layer, store: KVStore, budget: Budget) -> None:
        self.layer = layer
        self.store = store
        self.budget = budget

    def build(self, seen: Mapping[Hashable, object]) -> None:
        """After the dense prefill; the prompt is in the store, `seen` holds the observers' results by key."""

    def ready(self) -> object:
        """Wait for what `build` left running; the engine calls it before the first decode step, and times it."""

    def extend(self, k: Tensor, v: Tensor, start: int) -> None:
        """m tokens [G,m,D], the first at position `start`, were stored."""

    def select(self, step: Step) -> Selection:
        """What this step reads of the middle."""
        raise NotImplementedError(f"{type(self).__name__} does not say what to select")

    def observe(self, step: Step, positions: Tensor, weights: Tensor) -> None:
        """After attention: float32 weights [H,m,r] on the positions [G,r] that were read; may drop tokens.

        Columns of a selection come in this order: sink, selected, local window, new tokens.
        """

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """(tier, tensor) of all that is kept between steps; tier is "index" (on the device) or "host"."""
        return ()

    def notes(self) -> Mapping[str, float]:
        """Numbers worth a line in the record: what was adapted, how a cache did."""
        return {}

    def fixed(self, room: int) -> FixedStep | None:
        """All later steps, at most `room`, in fixed shapes (for CUDA graphs), or None where there is no such form.

        Index and store are given up to it. Called when the prompt is stored and `ready`.
        """
        return None


class Speed(ABC):
    """What the engine measures for `Method.calibrate`: methods contain no timers.

    layer: one that methods act on. longest: tokens of the longest prompt that is worth its measuring.
    """

    layer: Layer
    longest: int

    @abstractmethod
    def prefill(self, num_tokens: int) -> float:
        """Seconds that one layer takes of the dense prefill of so many tokens (the mean over all layers)."""

    @abstractmethod
    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that a call takes, with what it leaves to the device."""


@dataclass(frozen=True)
class Method(ABC):
    """A selection method: a frozen dataclass of its parameters.

    The first properties state what engine and audit must know; a ClassVar or, where it depends on a parameter, a
    property overrides them. observes: whether `Index.observe` wants the attention weights. exact: whether K and V are
    read as the model made them; False where they are merged or less of them is kept, so that nothing can be compared
    with exact attention. lossless: whether a budget that holds everything gives full attention; False where K and V
    lose something all the same.
    """

    observes: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """Of kind "tokens" (held to its budget), "none" (ignores it: full) or "open" (reports what it used)."""
        return "tokens"

    @property
    def spread(self) -> str:
        """What the budget holds for: "head", every KV head; "q_head", every query head; "layer", "model", their sum.

        With "q_head" the distinct tokens of a group, which are read, may be up to H/G times the budget; the record
        reports those.
        """
        return "head"

    @property
    def distance(self) -> str:
        """How far keys lie from queries: "true", as in the text; "clipped", or "cache".

        clipped: all outside the local window lie one distance away, the window's (InfLLM). cache: keys and queries are
        turned to their index among the tokens that are read (StreamingLLM).
        """
        return "true"

    @property
    def own_prefill(self) -> bool:
        """Whether the prompt, too, runs through `select` in blocks; such an arm shares no prefix."""
        return False

    @property
    def block(self) -> int:
        """New tokens that share one selection when several come at once; otherwise they go one by one."""
        return 1

    @property
    def min_tokens(self) -> int:
        """With fewer candidates than this a prompt is answered densely and flagged `dense_short`."""
        return 0

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Parameters, now None, that `calibrate` sets to tuples of numbers before the first sample."""
        return ()

    def calibrate(self, speed: Speed) -> Method:
        """A copy with nothing `unmeasured`."""
        return self

    def supports(self, model: ModelFacts) -> str | None:
        """The reason for which a model is refused, or None."""
        return None

    def untrained(self) -> Method:
        """A copy for any model, with random numbers in place of learned ones: what the conformance kit looks at."""
        return self

    def split(self, total: int, local_share: float) -> tuple[int, int]:
        """(local, middle) tokens, of the same sum."""
        local = int(total * local_share)
        return local, total - local

    def budgets(self, budget: Budget, num_layers: int, num_tokens: int) -> tuple[Budget, ...]:
        """The budget of each selectable layer, of the same sum, for a prompt of `num_tokens`."""
        return (budget,) * num_layers

    def observers(self, layer: Layer, budget: Budget) -> tuple[Observer, ...]:
        """What must be seen of the dense prefill."""
        return ()

    def store(self, layer: Layer, budget: Budget, k: Tensor, v: Tensor) -> KVStore:
        """Where K and V live from the end of the prefill on; k, v [G,n,D] are shared with other arms: never write."""
        return ResidentStore(k, v)

    @abstractmethod
    def index(self, layer: Layer, store: KVStore, budget: Budget) -> Index:
        """The memory of one layer."""

    def running(self) -> AbstractContextManager[None]:
        """Holds what lives as long as a run (worker pools)."""
        return nullcontext()


def packed(positions: Tensor) -> Tensor:
    """Positions [G,k] in ascending order, -1 pads last, without columns that hold pads only: these are not read.

    Waits for the device, once.
    """
    held = positions >= 0
    ordered = positions.masked_fill(~held, torch.iinfo(torch.long).max).sort(1).values
    ordered = ordered[:, : int(held.sum(1).max())]
    return ordered.masked_fill(ordered == torch.iinfo(torch.long).max, -1)


def middle_range(end: int, sink: int, device: torch.device) -> Tensor:
    """Candidate positions sink .. end-1, int64 [c]."""
    return torch.arange(sink, max(end, sink), device=device)
