"""Runs that Hydra itself starts: `-m` sweeps and its inspection flags."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

FOLDER = Path(__file__).resolve().parent


def sweep(argv: Sequence[str], run: Callable[[DictConfig], int]) -> int:
    """Let Hydra read `argv` and call `run` for each job; the worst exit status. A failed one stops no other."""
    statuses: list[int] = []

    @hydra.main(config_path=str(FOLDER), config_name="config", version_base="1.3")
    def each(config: DictConfig) -> None:
        whole = OmegaConf.masked_copy(config, list(config))
        with open_dict(whole):
            whole.hydra = HydraConfig.get()
        try:
            statuses.append(run(whole))
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            statuses.append(1)

    sys.argv = [sys.argv[0], *argv]
    each()
    return max(statuses, default=0)
