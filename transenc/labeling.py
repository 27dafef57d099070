"""Pseudo-labels: score the pairs with each teacher, bring the teachers to one scale, average."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import Dataset, Features, Value
from numpy.typing import NDArray
from scipy.stats import rankdata

from transenc.encoders import Encoder, load_encoder
from transenc.errors import InputError, StateError
from transenc.scoring import score_pairs

logger = logging.getLogger(__name__)

Scores = NDArray[np.float32]


def label_pairs(
    teachers: Encoder | str | Path | Sequence[Encoder | str | Path],
    pairs: Dataset,
    *,
    symmetric: bool = True,
    scale: str = "raw",
    pooling: str | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Dataset:
    """Label unlabelled pairs with one teacher or the mean of several (Trans-Encoder sections 3.1 and 3.3).

    Args:
        teachers: bi- or cross-encoders, or their folders or Hub ids.
        pairs: columns sentence1, sentence2; n rows.
        symmetric: a cross-encoder's score is the mean of both orders.
        scale: `raw` averages the scores as they are, `quantile` first maps every teacher to their common
            quantile function.
        pooling: for teachers given as bare Hugging Face folders.
        batch_tokens: token budget of one batch; None: by the device.
        progress: show a bar on stderr.

    Returns:
        n rows: sentence1, sentence2, one column a teacher (`teacher-0`, ...), and `score` in [0, 1].

    Raises:
        InputError: no teacher. StateError: a teacher's score is not finite.

    Example:
        >>> label_pairs("all-MiniLM-L6-v2", read_pairs("pairs.tsv"))["score"][:3]  # doctest: +SKIP
    """
    given = [teachers] if isinstance(teachers, str | Path) or not isinstance(teachers, Sequence) else list(teachers)
    if not given:
        raise InputError("labels need at least one teacher, got none")
    columns = []
    for teacher in given:
        encoder = load_encoder(teacher, pooling=pooling) if isinstance(teacher, str | Path) else teacher
        columns.append(score_pairs(encoder, pairs, symmetric=symmetric, batch_tokens=batch_tokens, progress=progress))
    by_teacher = {f"teacher-{i}": column for i, column in enumerate(columns)}
    return make_labels(pairs, by_teacher, merge_scores(columns, scale=scale))


def make_labels(pairs: Dataset, columns: Mapping[str, Scores], scores: Scores) -> Dataset:
    """The pairs with one column a teacher and the merged `score`, clipped to [0, 1] (clipped rows are counted).

    Example:
        >>> import numpy as np
        >>> pairs = Dataset.from_dict({"sentence1": ["a cat"], "sentence2": ["no cat"]})
        >>> make_labels(pairs, {"bi-0": np.array([-0.5], np.float32)}, np.array([-0.5], np.float32))[0]
        {'sentence1': 'a cat', 'sentence2': 'no cat', 'bi-0': -0.5, 'score': 0.0}
    """
    clipped, count = clip_scores(scores)
    if count:
        logger.info("%d of %d labels lay outside [0, 1] and were clipped", count, len(clipped))
    content: dict[str, Any] = {name: list(pairs[name]) for name in ("sentence1", "sentence2")}
    content.update(columns, score=clipped)
    kinds = {name: Value("string" if name.startswith("sentence") else "float32") for name in content}
    return Dataset.from_dict(content, Features(kinds))


def read_labels(stage: Path) -> Dataset:
    """The labels that a stage of a run published, in memory.

    Example:
        >>> read_labels(Path("run/stages/c01-10-bi-label"))["score"][:3]  # doctest: +SKIP
    """
    return read_rows(stage / "labels.parquet")


def read_rows(path: Path) -> Dataset:
    """The rows of a parquet file that a stage of a run published, in memory.

    Example:
        >>> read_rows(Path("run/stages/c00-20-mine/pairs.parquet")).num_rows  # doctest: +SKIP
    """
    # Dataset.from_parquet would leave a copy in the user's cache for ever
    return Dataset(pyarrow.parquet.read_table(path))


def merge_scores(columns: Sequence[Scores], *, weights: Sequence[float] | None = None, scale: str = "raw") -> Scores:
    """Weighted mean of the teachers' scores, on one scale if asked.

    Cosines and sigmoids are spread differently, so a plain mean lets the wider one decide. `quantile` is quantile
    normalisation (Bolstad et al., 2003): the k-th smallest score of every teacher becomes the weighted mean of all
    teachers' k-th smallest; ties share the mean of their places. One teacher alone is left as it is.

    Args:
        columns: k arrays of n finite scores.
        weights: k weights, at least one positive; None: equal.
        scale: `raw` or `quantile`.

    Returns:
        float32 of shape (n,).

    Raises:
        InputError: no column, wrong weights. StateError: a score is not finite.

    Example:
        >>> import numpy as np
        >>> merge_scores([np.array([0.0, 1.0]), np.array([0.6, 0.4])], scale="quantile").tolist()
        [0.44999998807907104, 0.44999998807907104]
    """
    if not columns:
        raise InputError("nothing to merge: no teacher's scores given")
    table = np.stack([np.asarray(column, dtype=np.float64) for column in columns])
    if not np.isfinite(table).all():
        teacher, row = np.argwhere(~np.isfinite(table))[0]
        raise StateError(f"teacher {teacher} scored pair {row} as {table[teacher, row]}; expected a finite number")
    share = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(table),) or (share < 0).any() or not share.sum() > 0:
        raise InputError(f"expected {len(table)} weights of 0 or more, not all 0; got {weights!r}")
    share = share / share.sum()
    if scale == "quantile" and len(table) > 1 and table.shape[1] > 1:
        common = share @ np.sort(table, axis=1)
        places = np.arange(table.shape[1])
        table = np.stack([np.interp(rankdata(column) - 1, places, common) for column in table])
    return (share @ table).astype(np.float32)


def clip_scores(scores: Scores) -> tuple[Scores, int]:
    """Clip to [0, 1]: with a negative target the binary cross-entropy has no lower bound. Returns the count too.

    Example:
        >>> import numpy as np
        >>> clip_scores(np.array([-0.2, 0.5], dtype=np.float32))
        (array([0. , 0.5], dtype=float32), 1)
    """
    outside = int(np.count_nonzero((scores < 0) | (scores > 1)))
    return np.clip(scores, 0.0, 1.0).astype(np.float32), outside
