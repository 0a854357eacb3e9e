"""One dense prefill: K and V of a prompt and what observers saw of it, immutable and shared by all arms."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention import Dense, dense
from engine.seam import Call
from methods.base import Layer, Observer


@dataclass(frozen=True)
class Prefix:
    """The result of a prefill of n tokens. Nothing in it is ever written to.

    keys, values: per layer [G,n,D]; seen: per layer what each observer found, by key; logits: float32 [V] of the last.
    """

    num_tokens: int
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    seen: Sequence[Mapping[Hashable, object]]
    logits: Tensor


class LayerPrefill:
    """K, V and observers of one layer while its prompt comes in chunks."""

    def __init__(self, layer: Layer, how: Dense, num_tokens: int, observers: Iterable[Observer]) -> None:
        shape = layer.num_kv_heads, num_tokens, layer.head_dim
        self.layer = layer
        self.how = how
        self.keys = torch.empty(shape, dtype=layer.dtype, device=layer.device)
        self.values = torch.empty_like(self.keys)
        # Equal keys give equal results: one observer serves all arms that ask for it.
        self.observers = list({o.key: o for o in observers}.values())
        self.seen: dict[Hashable, object] = {}

    def attend(self, call: Call, start: int) -> Tensor:
        """Store a chunk and attend it; [H,c,D]."""
        stop = start + call.keys.shape[2]
        self.keys[:, start:stop], self.values[:, start:stop] = call.keys[0], call.values[0]
        keys, values, queries = self.keys[:, :stop], self.values[:, :stop], call.queries[0]
        want_lse = any(o.needs_lse for o in self.observers)
        y, lse = dense(self.layer, self.how, queries, keys, values, start, want_lse)
        for observer in self.observers:
            observer.see(queries, keys, lse, start)
        if stop == self.keys.shape[1]:
            # At once, not after the last layer: what an observer leaves to workers runs beside the later layers.
            self.seen = {o.key: o.finish(self.keys, self.values) for o in self.observers}
        return y


class Prefill:
    """The state of a dense prefill, as the seam sees it."""

    def __init__(self, layers: Sequence[LayerPrefill]) -> None:
        self.layers = layers
        self.start = 0

    def attend(self, call: Call) -> Tensor:
        return self.layers[call.layer].attend(call, self.start)[None]

    def finish(self, logits: Tensor) -> Prefix:
        """The prefix; the layers' buffers belong to it from now on."""
        return Prefix(
            num_tokens=self.layers[0].keys.shape[1],
            keys=[layer.keys for layer in self.layers],
            values=[layer.values for layer in self.layers],
            seen=[layer.seen for layer in self.layers],
            logits=logits,
        )
