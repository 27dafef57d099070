"""Pseudo-labels: score the pairs with each teacher, bring the teachers to one scale, average."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import Dataset, Features, Value
from numpy.typing import NDArray
from scipy.stats import rankdata

from transenc.config import DistillConfig
from transenc.encoders import Encoder, load_encoder
from transenc.errors import InputError, StateError
from transenc.metrics import correlation
from transenc.scoring import score_pairs

logger = logging.getLogger(__name__)

Scores = NDArray[np.float32]
_EARLIER = re.compile(r"^c\d+-")  # the cycle of a column that an earlier cycle hands on


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


def weigh_columns(names: Sequence[str], config: DistillConfig, backbones: Sequence[float] = ()) -> list[float]:
    """What each column of a form's teachers counts among them.

    Args:
        names: columns such as `bi-0`, `align-0`, `plain-0`, `overlap`, `cross-1`, or, of an earlier cycle, `c01-bi-0`.
        config: the weights of the views.
        backbones: the weights of the backbones, by their number; none: one that counts 1.

    Returns:
        A weight a name.

    Example:
        >>> weigh_columns(["bi-0", "align-0", "bi-1"], DistillConfig(alignment=0.5), [1.0, 2.0])
        [1.0, 0.5, 2.0]
    """
    views = {"align": config.alignment, "plain": config.simplified, "overlap": config.overlap}

    def weigh(name: str) -> float:
        view, _, number = _EARLIER.sub("", name).partition("-")
        if view == "overlap":  # beside all backbones, whatever they are worth to each other
            return views[view] * (sum(backbones) or 1.0)
        own = backbones[int(number)] if number and int(number) < len(backbones) else 1.0
        return views.get(view, 1.0) * own

    return [weigh(name) for name in names]


def merge_labels(
    columns: Mapping[str, Scores], config: DistillConfig, *, backbones: Sequence[float] = ()
) -> tuple[Scores, float | None]:
    """The label of every pair from all teachers: `keep * bi + (1 - keep) * cross` on one scale.

    Args:
        columns: teachers' scores by name (`weigh_columns`), n finite numbers each. `cross-*` is the cross-encoders'
            share, the rest the bi-encoders'.
        config: the weights, `keep_label` and `scale`. With `keep_label: agreement` the share of the cross-encoders is
            r^4 / (2 + r^4), r their Spearman with the rest (0 if it is undefined or negative): a third if they agree,
            next to nothing for a cross-encoder that has not caught up with its teachers (3 % at 0.5).
        backbones: the backbones' weights.

    Returns:
        float32 of shape (n,), and the share kept; None without a cross-encoder.

    Raises:
        InputError: no column. StateError: a score is not finite.

    Example:
        >>> import numpy as np
        >>> columns = {"bi-0": np.array([0.0, 1.0]), "cross-0": np.array([0.6, 0.4])}
        >>> merge_labels(columns, DistillConfig(keep_label="agreement", scale="raw"))
        (array([0., 1.], dtype=float32), 1.0)
    """
    weight = dict(zip(columns, weigh_columns(list(columns), config, backbones), strict=True))
    forms = [[name for name in columns if is_cross(name) == cross] for cross in (False, True)]
    if not all(forms):
        return merge_scores(list(columns.values()), weights=list(weight.values()), scale=config.scale), None
    if isinstance(config.keep_label, str):
        bi, cross = (
            merge_scores([columns[n] for n in names], weights=[weight[n] for n in names], scale=config.scale)
            for names in forms
        )
        keep = 2 / (2 + max(0.0, float(correlation(bi, cross)["spearman"] or 0.0)) ** 4)
    else:
        keep = config.keep_label
    for names, share in zip(forms, (keep, 1 - keep), strict=True):
        total = sum(weight[name] for name in names)
        weight.update({name: share * weight[name] / total for name in names})
    return merge_scores([columns[n] for n in weight], weights=list(weight.values()), scale=config.scale), keep


def is_cross(name: str) -> bool:
    """Whether a column of teachers' scores is a cross-encoder's.

    Example:
        >>> is_cross("c01-cross-0"), is_cross("align-0")
        (True, False)
    """
    return _EARLIER.sub("", name).startswith("cross-")


def usable_columns(columns: Mapping[str, Scores]) -> dict[str, Scores]:
    """The teachers' columns without those that order nothing: NaN, infinite or constant ones, each with a warning.

    Raises:
        StateError: none is left.

    Example:
        >>> import numpy as np
        >>> list(usable_columns({"bi-0": np.array([0.1, 0.2]), "bi-1": np.array([0.5, np.nan])}))
        ['bi-0']
    """
    faults = {name: _find_fault(np.asarray(values)) for name, values in columns.items()}
    # words in common and earlier cycles are company for a teacher, and none of their own
    if all(fault for name, fault in faults.items() if name != "overlap" and not _EARLIER.match(name)):
        raise StateError(f"no teacher is left to label the pairs: {'; '.join(f'{n}: {f}' for n, f in faults.items())}")
    for name, fault in faults.items():
        if fault:
            logger.warning("teacher %s is left out of the labels: %s", name, fault)
    return {name: values for name, values in columns.items() if not faults[name]}


def _find_fault(scores: np.ndarray) -> str | None:
    if not np.isfinite(scores).all():
        return f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores are not finite"
    if len(scores) > 1 and np.ptp(scores) == 0:
        return f"it scores every pair {scores[0]:.4g}"
    return None


def thin_out(labels: Dataset, share: float, *, seed: int, lists: bool = False) -> Dataset:
    """Leave out pairs at random, the more likely the more their teachers disagree.

    The disagreement of a pair is the standard deviation of its places in the teachers' rankings. The pair with the
    r-th smallest of n stays with probability 1 - share * (r - 1) / (n - 1). Lists stay or go as a whole, by their mean.

    Args:
        labels: what `make_labels` gave, n rows.
        share: 0 (all stay) to 1.
        seed: decides what stays.
        lists: without a column `list`, pairs with the same sentence1 are one.

    Returns:
        The rows that stay, in their order.

    Example:
        >>> thin_out(read_labels(stage), 0.5, seed=0).num_rows  # doctest: +SKIP
        750
    """
    columns = read_teachers(labels)
    if share == 0 or len(columns) < 2 or len(labels) < 2:
        return labels
    disputed = np.stack([rankdata(scores) for scores in columns.values()]).std(axis=0)
    together = "list" if "list" in labels.column_names else "sentence1" if lists else None
    numbers = np.arange(len(labels)) if together is None else np.asarray(labels[together])
    _, member, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    doubt = (rankdata(np.bincount(member, disputed) / sizes) - 1) / max(1, len(sizes) - 1)
    stays = (np.random.default_rng(seed).random(len(sizes)) >= share * doubt)[member]
    return labels.select(np.flatnonzero(stays))


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
    kept = {"sentence1": "string", "sentence2": "string", "list": "int64"}
    content: dict[str, Any] = {name: list(pairs[name]) for name in kept if name in pairs.column_names}
    content.update(columns, score=clipped)
    kinds = {name: Value(kept.get(name, "float32")) for name in content}
    return Dataset.from_dict(content, Features(kinds))


def read_labels(stage: Path) -> Dataset:
    """The labels that a stage of a run published, in memory.

    Example:
        >>> read_labels(Path("run/stages/c01-10-bi-label"))["score"][:3]  # doctest: +SKIP
    """
    return read_rows(stage / "labels.parquet")


def read_teachers(labels: Dataset, *, earlier: str | None = None) -> dict[str, Scores]:
    """The columns of the teachers among labels, by name.

    Args:
        labels: what `make_labels` gave.
        earlier: for labels of an earlier cycle, its name (`c01`), which its columns then carry in front; `overlap`,
            which is the same in every cycle, is left out.

    Example:
        >>> pairs = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "bi-0": [0.5], "score": [0.5]})
        >>> list(read_teachers(pairs)), list(read_teachers(pairs, earlier="c01"))
        (['bi-0'], ['c01-bi-0'])
    """
    rows = labels.with_format("numpy")
    names = [name for name in labels.column_names if name not in ("sentence1", "sentence2", "list", "score")]
    columns = {name: np.asarray(rows[name][:]) for name in names}
    if earlier is None:
        return columns
    return {
        name if _EARLIER.match(name) else f"{earlier}-{name}": scores
        for name, scores in columns.items()
        if name != "overlap"
    }


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
        [0.5, 0.5]
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
