"""A sweep: one run for each combination of values, through Hydra and its launchers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from configs.arguments import FOLDER, readable


def sweep(words: Sequence[str], run: Callable[[DictConfig], int]) -> int:
    """Call `run`, which raises nothing but interrupts, with the configuration of each job; the worst exit status."""
    statuses: list[int] = []

    @hydra.main(config_path=str(FOLDER), config_name="config", version_base="1.3")
    def each(config: DictConfig) -> None:
        whole = OmegaConf.masked_copy(config, list(config))
        with open_dict(whole):
            whole.hydra = HydraConfig.get()
        statuses.append(run(whole))

    # Hydra then raises its errors in place of printing them in its own way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before = sys.argv
    sys.argv = [before[0], "-m", *(readable(word, sweep=True) for word in words)]
    try:
        each()
    finally:
        sys.argv = before
    return max(statuses, default=0)
