"""Rows as they come: a CSV that loses nothing when the run is killed, and a table at the end."""

from __future__ import annotations

import csv
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.machine import cpu
from eval.provenance import collect

PRINTED = ("torch", "transformers", "triton", "flash-attn")
Row = TypeVar("Row")


def provenance(argv: Sequence[str], device: torch.device, model: str, seed: int) -> dict[str, str]:
    """Where the figures of a run come from, a line each."""
    label = cpu().label if device.type == "cpu" else torch.cuda.get_device_name(device)
    found = collect(argv, device=label, seed=seed)
    git = found["git"] or {}
    packages = {name: found["packages"][name] for name in PRINTED if found["packages"][name]}
    return {
        "date": str(found["started"]),
        "command": " ".join(["python -m scripts.bench", *found["argv"]]),
        "model": model,
        "hardware": f"{label}, {platform.machine()}",
        "versions": ", ".join([f"Python {found['python']}", *(f"{k} {v}" for k, v in packages.items())]),
        "commit": f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}",
    }


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of the table: its header and what it says of a row."""

    name: str
    text: Callable[[Row], str]
    left: bool = False


class Sheet(Generic[Row]):
    """Rows of one dataclass. file: a CSV, one column a field, that begins with the provenance as comments."""

    def __init__(self, kind: type[Row], origin: dict[str, str], file: Path | None) -> None:
        self.origin = origin
        self.rows: list[Row] = []
        self.names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        self.file: TextIO | None = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.file = file.open("w", newline="")
            self.file.writelines(f"# {name}: {value}\n" for name, value in origin.items())
            self._write(self.names)

    def add(self, row: Row) -> None:
        """Keep a row, on disk at once."""
        self.rows.append(row)
        self._write([getattr(row, name) for name in self.names])

    def _write(self, cells: Sequence[Any]) -> None:
        if self.file is not None:
            csv.writer(self.file).writerow(["" if cell is None else cell for cell in cells])
            self.file.flush()

    def show(self, title: str, columns: Sequence[Column[Row]], notes: Sequence[str] = ()) -> None:
        """Print the table, and below it the notes and where it comes from."""
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column.name, justify="right" if number and not column.left else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(column.text(row)) for column in columns))
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(table)
        for line in (*notes, *(f"{name}: {value}" for name, value in self.origin.items())):
            console.print(Text(line), soft_wrap=True)


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"
