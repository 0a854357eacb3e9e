"""Write the miniature's rows: `python -m scripts.make_miniature`, or `--check` that the committed ones are these."""

from __future__ import annotations

import argparse
import sys

from data import miniature, miniature_kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file differs")
    check = parser.parse_args().check
    stale = [name for name in miniature_kinds.KINDS if not _same(name)]
    if check and stale:
        sys.exit(f"not as generated: {', '.join(stale)}; run `python -m scripts.make_miniature`")
    for name in stale:
        miniature.committed(name).write_bytes(miniature.text(name).encode())
    print(f"{len(miniature_kinds.KINDS)} files, {len(stale)} written")


def _same(name: str) -> bool:
    path = miniature.committed(name)
    return path.exists() and path.read_bytes() == miniature.text(name).encode()


if __name__ == "__main__":
    main()
