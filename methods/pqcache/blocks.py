"""Which blocks a small fast memory holds: least frequently used, or least recently used, goes first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Policy = Literal["lfu", "lru"]


@dataclass
class Entry:
    """A resident block. uses: times it was offered since it came in; touched: when last; slot: where it lies."""

    uses: int
    touched: int
    slot: int


class BlockCache:
    """A directory of at most `capacity` blocks; it holds no data.

    lfu: the block with the fewest uses leaves, among equals the one not touched for longest; no ageing, no admission
    filter, so a newcomer may be evicted by the next one of its own batch (PQCache, section 3.4). lru: the block not
    touched for longest leaves. Free slots are handed out in order; a newcomer takes the slot of the one that leaves.
    """

    def __init__(self, capacity: int, policy: Policy = "lfu") -> None:
        self.capacity = capacity
        self.policy = policy
        self.entries: dict[int, Entry] = {}
        self.clock = 0

    def offer(self, blocks: Iterable[int]) -> dict[int, int]:
        """Touch blocks in order and let the absent ones in: {block: slot} of those that came in and stayed."""
        came: dict[int, int] = {}
        for block in blocks:
            self.clock += 1
            entry = self.entries.get(block)
            if entry is not None:
                entry.uses += 1
                entry.touched = self.clock
            elif self.capacity:
                gone, slot = self._free_slot()
                came.pop(gone, None)
                self.entries[block] = Entry(1, self.clock, slot)
                came[block] = slot
        return came

    def slots(self) -> Mapping[int, int]:
        """{block: slot} of all that is resident."""
        return {block: entry.slot for block, entry in self.entries.items()}

    def _free_slot(self) -> tuple[int, int]:
        """(block that left or -1, the slot it leaves)."""
        if len(self.entries) < self.capacity:
            return -1, len(self.entries)
        gone = min(self.entries, key=self._rank)
        return gone, self.entries.pop(gone).slot

    def _rank(self, block: int) -> tuple[int, int]:
        entry = self.entries[block]
        return (entry.uses if self.policy == "lfu" else 0, entry.touched)
