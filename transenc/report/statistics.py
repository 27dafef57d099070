"""The few statistics that a report needs, rounded as they are shown."""

from __future__ import annotations

import numpy as np

from transenc.resampling import resample_spearman

BINS = 10


def interval(resampled: np.ndarray | None) -> dict[str, float | None]:
    """What was observed, and the central 95 % of its bootstrap resamples; None where undefined.

    Args:
        resampled: shape [1 + resamples], the observed value first; None: not known.

    Example:
        >>> interval(np.array([2.0, 1.0, 3.0]))
        {'difference': 2.0, 'low': 1.05, 'high': 2.95}
    """
    if resampled is None or not np.isfinite(resampled[0]):
        return {"difference": None, "low": None, "high": None}
    low, high = np.percentile(resampled[1:][np.isfinite(resampled[1:])], [2.5, 97.5])
    return {"difference": round(float(resampled[0]), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's correlation x 100; None where undefined.

    Example:
        >>> spearman(np.array([0.1, 0.2, 0.4]), np.array([1.0, 3.0, 2.0]))
        50.0
    """
    value = float(resample_spearman(first, second, resamples=0)[0])
    return round(value, 2) if np.isfinite(value) else None


def bin_means(x: np.ndarray, y: np.ndarray) -> list[dict[str, float | int]]:
    """The means of x and y in ten groups of equal size, by x (fewer when there are fewer rows).

    Example:
        >>> bin_means(np.array([0.9, 0.1]), np.array([5.0, 1.0]))
        [{'pairs': 1, 'x': 0.1, 'y': 1.0}, {'pairs': 1, 'x': 0.9, 'y': 5.0}]
    """
    groups = np.array_split(np.argsort(x, kind="stable"), min(BINS, len(x)))
    return [
        {"pairs": len(rows), "x": round(float(x[rows].mean()), 3), "y": round(float(y[rows].mean()), 3)}
        for rows in groups
    ]
