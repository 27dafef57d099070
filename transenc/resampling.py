"""The paired bootstrap: figures of resampled rows, all resamples at once (Efron and Tibshirani, 1993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_AT_ONCE = 100  # bounds memory: 100 resamples of 5,000 rows are 4 MB an array


def resample_spearman(
    scores: Sequence[float] | np.ndarray, gold: Sequence[float] | np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Spearman's correlation x 100 on all rows, then on each bootstrap resample of them (as in `evaluation.compare`).

    The same seed and number of rows draw the same resamples, so two systems' results are paired.

    Args:
        scores: Similarities, shape [n].
        gold: Gold scores, shape [n].
        resamples: Resamples drawn, 0 or more.
        seed: Decides the resamples.

    Returns:
        Shape [1 + resamples], NaN where undefined.

    Example:
        >>> resample_spearman([0.1, 0.2, 0.4], [1.0, 3.0, 2.0], resamples=0).tolist()
        [50.0]
    """
    return resample(spearman, np.asarray(scores), gold, resamples, (seed, 0))


def resample(
    figure: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    scores: np.ndarray,
    gold: Any,
    resamples: int,
    seed: tuple[int, int],
) -> np.ndarray:
    """A figure x 100 on all rows, then on each bootstrap resample of them.

    Args:
        figure: `spearman`, `auc`, or another function of scores, gold and counts.
        scores: Shape [n].
        gold: Shape [n].
        resamples: Resamples drawn, 0 or more.
        seed: Decides them; the same seed and n draw the same, so the results of two systems are paired.

    Returns:
        Shape [1 + resamples], NaN where undefined.

    Example:
        >>> resample(auc, np.array([0.1, 0.9]), [0, 1], 0, (0, 0)).tolist()
        [100.0]
    """
    rng = np.random.default_rng(seed)
    n, truth = len(scores), np.asarray(gold, dtype=np.float64)
    values = [figure(scores, truth, np.ones((1, n), dtype=np.int64))]
    for start in range(0, resamples, _AT_ONCE):
        # How often each row is drawn says all about a resample.
        size = min(_AT_ONCE, resamples - start)
        values.append(figure(scores, truth, rng.multinomial(n, np.full(n, 1 / n), size=size)))
    return 100.0 * np.concatenate(values)


def spearman(scores: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's correlation of rows repeated `counts` times, [resamples, n] -> [resamples].

    Example:
        >>> spearman(np.array([0.1, 0.2, 0.4]), np.array([1.0, 3.0, 2.0]), np.array([[1, 1, 1], [2, 0, 1]])).tolist()
        [0.5, 1.0]
    """
    x, y = _rank(scores, counts), _rank(gold, counts)
    n = counts.sum(axis=1)
    x -= (n + 1)[:, None] / 2  # the mean rank, ties or not
    y -= (n + 1)[:, None] / 2
    cross, xx, yy = (np.einsum("ij,ij,ij->i", counts, a, b) for a, b in ((x, y), (x, x), (y, y)))
    with np.errstate(invalid="ignore"):
        return cross / np.sqrt(xx * yy)


def auc(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """ROC AUC of rows repeated `counts` times by the rank sum (Mann and Whitney), [resamples, n] -> [resamples].

    Example:
        >>> auc(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 0]), np.array([[1, 1, 1], [2, 1, 0]])).tolist()
        [0.5, 1.0]
    """
    positive = counts * (labels == 1)
    p = positive.sum(axis=1)
    rank_sum = np.einsum("ij,ij->i", positive, _rank(scores, counts))
    with np.errstate(invalid="ignore"):
        return (rank_sum - p * (p + 1) / 2) / (p * (counts.sum(axis=1) - p))


def _rank(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ranks, ties sharing their mean, of rows repeated `counts` times: [n], [resamples, n] -> [resamples, n]."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    size = np.add.reduceat(counts[:, order], starts, axis=1)
    # The rows of a group hold the ranks from 1 + (all below) to (all below) + size.
    return (np.cumsum(size, axis=1) - (size - 1) / 2)[:, group]


def confidence_interval(difference: float, resampled: np.ndarray) -> dict[str, float | None]:
    """A difference of two systems with the central 95 % of its resampled values; None throughout where undefined.

    Example:
        >>> confidence_interval(0.5, np.array([0.0, 1.0]))
        {'difference': 0.5, 'low': 0.025, 'high': 0.975}
    """
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(difference) or not len(defined):
        return {"difference": None, "low": None, "high": None}
    low, high = np.percentile(defined, [2.5, 97.5])
    return {"difference": float(difference), "low": float(low), "high": float(high)}
