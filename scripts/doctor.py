"""Says what is installed, found and missing here, with the remedy, and whether the default run can work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.checks import Check, Line, all_checks

INSTALL = "pip install -e '.[test]'"
STYLES = {"ok": "green", "missing": "yellow", "problem": "bold red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 if `python run.py` can work here, 1 otherwise."""
    parser = argparse.ArgumentParser("python -m scripts.doctor", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where results will go")
    checks = all_checks(parser.parse_args(argv).results)
    lines = [line for what, needed, check in checks for line in safely(what, needed, check)]
    works = all(line.state == "ok" for line in lines if line.needed)
    print_lines(lines)
    print("the default run can work here: python run.py" if works else "the default run cannot work here yet")
    return 0 if works else 1


def safely(what: str, needed: bool, check: Check) -> list[Line]:
    """The lines of a check; one that breaks is a line, too."""
    try:
        return [replace(line, needed=needed) for line in check()]
    except ImportError as error:
        return [Line("missing", what, " ".join(str(error).split()), INSTALL, needed)]
    except Exception as error:  # any package may be broken in any way, which is what this script is for
        reason = " ".join(str(error).split())
        return [Line("problem", what, f"{type(error).__name__}: {reason}", "see the lines above", needed)]


def print_lines(lines: Sequence[Line]) -> None:
    """A table, or plain lines where even that package is missing."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        for line in lines:
            print(line.state, line.what, line.text, line.remedy, sep="  ")
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        text = Text.assemble(line.text, ("\n→ " + line.remedy if line.remedy else "", "italic"))
        table.add_row(Text(line.state, STYLES[line.state]), Text(line.what, "bold"), text)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
