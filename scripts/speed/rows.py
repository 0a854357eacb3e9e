"""What is asked of decode steps, and a row of what was found."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.speed.steppers import check_ways

ROUNDS = 4
BATCHES = ("1", "memory")


@dataclass(frozen=True)
class How:
    """ways: of decoding, all in one race. steps: that are timed. batch: "1", or "memory": afterwards as many rows as
    fit the bytes of one full cache. sample: tokens of the prefill that fills the caches. memory: compare peak and
    ledger, on a GPU."""

    ways: tuple[str, ...] = ("eager",)
    steps: int = 20
    batch: str = "1"
    sample: int = 2048
    memory: bool = False

    def __post_init__(self) -> None:
        check_ways(self.ways)
        if self.batch not in BATCHES:
            raise ValueError(f"--batch {self.batch}: allowed are {', '.join(BATCHES)}")
        if self.steps < ROUNDS:
            raise ValueError(f"--steps {self.steps} is too few: give {ROUNDS} or more")

    @property
    def burst(self) -> int:
        """Timed steps of a round."""
        return -(-self.steps // ROUNDS)

    @property
    def room(self) -> int:
        """Steps of a racer: in each round one that is not timed comes first."""
        return ROUNDS * (self.burst + 1)


@dataclass(frozen=True)
class DecodeRow:
    """One method at one length; where it could not be run, `note` says why and there are no figures.

    tpot_ms: median of a step of all rows of the batch. attended: tokens per step and KV head. Bytes are those of a
    step, but for resident ones. of_full: time per token as a part of full's at its best, in the same run. cpu_ms,
    of_full_cpu: by processor time, which other work on the machine disturbs less (CPU only). peak_bytes: what the
    device saw (CUDA); ledger_bytes: weights, what is held, and what a step holds for a while.
    """

    model: str
    method: str
    budget: str
    decode: str
    tokens: int
    batch: int
    tpot_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    tokens_per_s: float | None = None
    attended: float | None = None
    kv_bytes: float | None = None
    index_bytes: float | None = None
    host_bytes: float | None = None
    weight_bytes: int | None = None
    resident_bytes: int | None = None
    host_resident_bytes: int | None = None
    floor_ms: float | None = None
    of_floor: float | None = None
    of_full: float | None = None
    cpu_ms: float | None = None
    of_full_cpu: float | None = None
    peak_bytes: int | None = None
    ledger_bytes: int | None = None
    note: str = ""
