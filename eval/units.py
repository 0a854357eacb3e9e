"""Bytes, seconds and large counts as people read them."""

from __future__ import annotations


def in_bytes(number: float) -> str:
    """`512 B`, `3.1 MiB`, `14.96 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"


def in_time(seconds: float) -> str:
    """`5.0 ms`, `12.3 s`, `34 min`, `5.2 h`, `3.1 days`."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    for size, unit, limit in ((1, "s", 120), (60, "min", 7200), (3600, "h", 259200)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit == "min" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def in_words(number: float) -> str:
    """`950`, `1.22 million`, `8.03 billion`."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.2f} {word}"
    return f"{number:,.0f}"
