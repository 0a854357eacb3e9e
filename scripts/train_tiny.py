"""Train an embedded model from nothing: weights, tokenizer and log in one folder.

`python -m scripts.train_tiny` takes under 90 minutes on two CPU cores (minutes on a GPU) and goes on from its last
checkpoint when it is started again. The committed `data/tiny` is an older model with another vocabulary; the
rows of the miniature are not yet written in the words of this one.
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.tiny.train import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to write (default: results/tiny, or results/tiny-smoke)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another model (default: 0)")
    parser.add_argument("--smoke", action="store_true", help="a toy in a minute: the same steps, but it learns nothing")
    args = parser.parse_args()
    out = args.out or Path("results") / ("tiny-smoke" if args.smoke else "tiny")
    try:
        _train(out, args.smoke, args.seed)
        _finish(out)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on from the last checkpoint in {out}")


def _train(out: Path, smoke: bool, seed: int) -> None:
    import torch
    from torch.multiprocessing.spawn import spawn

    from scripts.tiny import train

    recipe = train.recipe(smoke, seed)
    out.mkdir(parents=True, exist_ok=True)
    train.claim(recipe, out)
    if torch.cuda.is_available():
        train.run(recipe, out, 0, 1, 0)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_process, (recipe, out, port), nprocs=train.NUM_SHARES)


def _process(rank: int, recipe: Recipe, out: Path, port: int) -> None:
    from scripts.tiny import train

    train.run(recipe, out, rank, train.NUM_SHARES, port)


def _finish(out: Path) -> None:
    """Export the weights."""
    from scripts.tiny import export

    export.export(out)
    print(f"done: {out}")


if __name__ == "__main__":
    main()
