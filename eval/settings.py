"""The root scalars of a run: everything that is neither model, method nor task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """How a run is done; the fields are the root scalars of `configs/config.yaml`, where each is explained.

    Raises ValueError, in one line, for values out of range.
    """

    data: str
    budget: str | float | int | None
    sink: int
    local_share: float
    compensate: float
    protocol: Literal["longbench", "question_after"]
    attention: Literal["sdpa", "flash", "eager"]
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    device: str
    prefill_chunk: int
    decode: Literal["eager", "static", "graph"]
    truncate: bool
    fuzz: Literal["difflib", "levenshtein"]
    seed: int
    limit: int | None
    results: str
    share_prefill: bool
    shards: int
    diagnose: bool
    diagnose_steps: int
    export_selections: bool
    wandb: Literal["off", "offline", "online"]
    dry_run: bool
    progress: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.local_share) and 0 <= self.local_share <= 1):
            raise ValueError(f"local_share={self.local_share} is out of range: give 0 to 1 (share of the budget)")
        if not (math.isfinite(self.compensate) and self.compensate >= 0):
            raise ValueError(f"compensate={self.compensate} is out of range: give 0 or more (share of key memory)")
        for name, least in (("sink", 0), ("prefill_chunk", 1), ("shards", 1), ("diagnose_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: give {least} or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} is out of range: give 0 to 2**63 - 1")
        for name in ("data", "results"):
            if not getattr(self, name):
                raise ValueError(f"{name}= is empty: give a path, or leave it out")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} is out of range: give 1 or more samples, or null for all")
