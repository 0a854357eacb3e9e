"""Confidence intervals and quantiles of scores and timings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROWS = 1_000


def bootstrap_mean(
    scores: Sequence[float], level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean, in the unit of the scores; the same seed gives the same interval.

    It covers which samples were drawn, not the noise of generation. For a paired comparison, give the differences.
    None for fewer than two scores, which say nothing of their spread. Equal scores give the interval [s, s]: resampling
    sees no spread, which is no proof that there is none. Raises ValueError for scores that are not finite.
    """
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"{level=}, {num_resamples=}; level is within 0-1 and num_resamples at least 1")
    values = _finite(scores)
    if values.size < 2:
        return None
    if values.min() == values.max():
        # Means of equal numbers differ in the last bit, which would look like a spread.
        return float(values[0]), float(values[0])
    low, high = np.quantile(_resampled_means(values, num_resamples, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    # In blocks, so that ten thousand resamples of a long task need megabytes, not gigabytes.
    rng = np.random.default_rng(seed)
    rows = [min(_ROWS, num_resamples - start) for start in range(0, num_resamples, _ROWS)]
    return np.concatenate([values[rng.integers(values.size, size=(n, values.size))].mean(axis=1) for n in rows])


def quantile(values: Sequence[float], q: float) -> float | None:
    """The q-quantile (0-1, linear between neighbours), in the unit of the values; None where there are none.

    Raises ValueError for values that are not finite.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"{q=}; a quantile is within 0-1")
    finite = _finite(values)
    return float(np.quantile(finite, q)) if finite.size else None


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"value {bad} is {array[bad]}; leave missing values out, they are counted apart")
    return array
