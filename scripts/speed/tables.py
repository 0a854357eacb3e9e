"""The columns of the tables in a terminal; a CSV has more."""

from __future__ import annotations

from collections.abc import Sequence

from eval.units import in_bytes
from scripts.speed.bandwidth import Bandwidth
from scripts.speed.prefills import PrefillRow
from scripts.speed.report import Column, number
from scripts.speed.rows import DecodeRow


def size(value: float | None) -> str:
    """Bytes as people read them, or a dash."""
    return "–" if value is None else in_bytes(value)


def memory(row: DecodeRow) -> str:
    """Peak against the ledger's sum, and whether they agree within 2 %."""
    if row.peak_bytes is None or row.ledger_bytes is None:
        return "–"
    off = row.peak_bytes / row.ledger_bytes - 1
    return f"{in_bytes(row.peak_bytes)} ({100 * off:+.1f} %{'' if abs(off) <= 0.02 else ', off'})"


def spread(row: DecodeRow) -> str:
    """p10 to p90."""
    return "–" if row.p10_ms is None else f"{row.p10_ms:.2f}–{row.p90_ms:.2f}"


def total(row: DecodeRow) -> float | None:
    """Bytes that a step reads on the device besides the weights."""
    return None if row.kv_bytes is None or row.index_bytes is None else row.kv_bytes + row.index_bytes


DECODE: list[Column[DecodeRow]] = [
    Column("method", lambda r: f"{r.method} {r.budget}".rstrip()),
    Column("length", lambda r: f"{r.tokens:,}"),
    Column("batch", lambda r: str(r.batch)),
    Column("step ms", lambda r: number(r.tpot_ms)),
    Column("p10–p90", spread),
    Column("tokens/s", lambda r: number(r.tokens_per_s, 1)),
    Column("of full", lambda r: number(r.of_full)),
    Column("by CPU s", lambda r: number(r.of_full_cpu)),
    Column("floor ms", lambda r: number(r.floor_ms, 3)),
    Column("x floor", lambda r: number(r.of_floor, 1)),
    Column("attended", lambda r: number(r.attended, 0)),
    Column("read", lambda r: size(total(r))),
    Column("link", lambda r: size(r.host_bytes)),
    Column("held", lambda r: size(r.resident_bytes)),
    Column("", lambda r: ", ".join(filter(None, [r.decode, r.note]))),
]
PEAK: Column[DecodeRow] = Column("peak (ledger)", memory)


def decode_columns(rows: Sequence[DecodeRow]) -> list[Column[DecodeRow]]:
    """Those of a decode table: the peak where one was measured, batches where there are any."""
    batches = any(row.batch > 1 for row in rows)
    shown = [column for column in DECODE if batches or column.name not in ("batch", "tokens/s")]
    return [*shown[:-1], *([PEAK] if any(row.peak_bytes for row in rows) else []), shown[-1]]


PREFILL: list[Column[PrefillRow]] = [
    Column("method", lambda r: f"{r.method} {r.budget}".rstrip()),
    Column("length", lambda r: f"{r.tokens:,}"),
    Column("prefill s", lambda r: number(r.prefill_s, 3)),
    Column("offload s", lambda r: number(r.offload_s, 3)),
    Column("index s", lambda r: number(r.index_s, 3)),
    Column("wait s", lambda r: number(r.wait_s, 3)),
    Column("TTFT s", lambda r: number(r.ttft_s, 3)),
    Column("TT2T s", lambda r: number(r.tt2t_s, 3)),
    Column("adds to full's TTFT", lambda r: percent(r.adds)),
    Column("observers, of attention", lambda r: percent(r.scoring)),
    Column("peak", lambda r: size(r.peak_bytes)),
    Column("", lambda r: r.note),
]


def percent(share: float | None) -> str:
    """A share in percent, or a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def machine(speed: Bandwidth) -> str:
    """The bandwidths, in words."""
    link = "no host link" if speed.link is None else f"host link {speed.link / 1e9:.1f} GB/s"
    floor = "floor = (weights + K, V and index read) / copy + link bytes / link"
    return f"device copy {speed.copy / 1e9:.1f} GB/s (read + written), {link}; {floor}"
