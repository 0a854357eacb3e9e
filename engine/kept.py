"""The last prefill, kept for further questions about the same context: only their arms are made anew."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from engine.prefill import Prefix


class Kept:
    """A prefix and what it is of. A prefix is immutable, so an arm made of it is as one after a prefill of its own."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, int] | None = None
        self._prefix: Prefix | None = None

    def find(self, ids: Tensor, seed: int, wanted: Sequence[frozenset[Hashable]]) -> Prefix | None:
        """The prefix of ids [n] with that seed, in which the observers `wanted` of each layer have seen; or None.

        What is kept and does not fit is let go, so that two prefixes are never held at once.
        """
        if self._prefix is None or self._of is None:
            return None
        same = self._of[1] == seed and torch.equal(self._of[0], ids)
        if same and all(keys <= seen.keys() for keys, seen in zip(wanted, self._prefix.seen, strict=True)):
            return self._prefix
        self.clear()
        return None

    def keep(self, ids: Tensor, seed: int, prefix: Prefix) -> None:
        """Remember the prefix of ids [n]."""
        self._of, self._prefix = (ids, seed), prefix

    def clear(self) -> None:
        """Let go of the memory."""
        self._of = self._prefix = None
