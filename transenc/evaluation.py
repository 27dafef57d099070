"""Evaluate encoders on the STS tasks, on pair classification and on a user's own file; compare two systems.

Figures are percentages (Spearman's correlation x 100). A figure that is undefined is None, with its reason beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from transenc.benchmarks import PAIR_TASKS, STS_TASKS, is_symmetric, load_benchmark
from transenc.encoders import Encoder, load_encoder
from transenc.errors import InputError
from transenc.metrics import correlation, ranking_quality
from transenc.pairs import read_gold
from transenc.resampling import auc, confidence_interval, resample, spearman
from transenc.scoring import score_pairs

Scores = Mapping[str, np.ndarray]
Encoders = Encoder | str | Path | Sequence[Encoder | str | Path] | Scores


def score_tasks(
    encoders: Encoders,
    *,
    tasks: Sequence[str] = STS_TASKS,
    data: str | os.PathLike[str] | None = None,
    pooling: str | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Score the test pairs of tasks; `evaluate_sts`, `evaluate_pairs` and `compare` take the result for an encoder.

    Args:
        encoders: An encoder, or the folder or Hub id of one; several are an ensemble (the mean of their scores).
        tasks: Some of `STS_TASKS` and `PAIR_TASKS`.
        data: Where the benchmarks are, as for `load_benchmark`.
        pooling: For bare Hugging Face folders.
        batch_tokens: As for `score_pairs`.
        progress: Show a progress bar on stderr.

    Returns:
        Task -> float32 scores of its test pairs, in their order.

    Raises:
        InputError: An unknown task, missing benchmark or unusable model.

    Example:
        >>> from transenc.evaluation import compare, evaluate_sts, score_tasks  # doctest: +SKIP
        >>> scores = score_tasks("my/encoder")  # doctest: +SKIP
        >>> evaluate_sts(scores)["average"], compare(scores, "another/encoder")["average"]  # doctest: +SKIP
    """
    _check_tasks(tasks, STS_TASKS + PAIR_TASKS)
    sets = {task: load_benchmark(task, data=data) for task in tasks}
    return _score_sets(
        encoders, sets, symmetric=is_symmetric, pooling=pooling, batch_tokens=batch_tokens, progress=progress
    )


def evaluate_sts(
    encoders: Encoders,
    *,
    tasks: Sequence[str] = STS_TASKS,
    data: str | os.PathLike[str] | None = None,
    subsets: bool = False,
    pooling: str | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate on the STS test sets: Spearman's correlation of the scores with the gold scores.

    All rows of a year stand in one ranking (the setting "all" of SimCSE, appendix B), and a bi-encoder's score is
    the cosine. Sentences that several tasks share are encoded once.

    Args:
        encoders: An encoder, or the folder or Hub id of one; several are an ensemble (the mean of their scores);
            or what `score_tasks` gave.
        tasks: Some of `STS_TASKS`.
        data: Where the benchmarks are, as for `load_benchmark`.
        subsets: Also give the figure of every subset, under "subsets".
        pooling: For bare Hugging Face folders.
        batch_tokens: As for `score_pairs`.
        progress: Show a progress bar on stderr.

    Returns:
        Task -> Spearman x 100, "average" (None when a task is undefined), "pearson": the same by Pearson's
        correlation, and for undefined figures "reasons": task -> text.

    Raises:
        InputError: An unknown task, missing benchmark or unusable model.

    Example:
        >>> from transenc import evaluate_sts  # doctest: +SKIP
        >>> evaluate_sts("sentence-transformers/all-MiniLM-L6-v2", tasks=["stsb"])["stsb"]  # doctest: +SKIP
        82.03...
    """
    _check_tasks(tasks, STS_TASKS)
    sets = {task: load_benchmark(task, data=data) for task in tasks}
    scores = _score_sets(
        encoders, sets, symmetric=is_symmetric, pooling=pooling, batch_tokens=batch_tokens, progress=progress
    )
    figures = {task: correlation(scores[task], np.array(rows["score"])) for task, rows in sets.items()}
    result: dict[str, Any] = _percent(figures, "spearman")
    result["pearson"] = _percent(figures, "pearson")
    if subsets:
        result["subsets"] = {
            task: _evaluate_subsets(rows, scores[task]) for task, rows in sets.items() if "subset" in rows.column_names
        }
    return result | _reasons(figures)


def evaluate_pairs(
    encoders: Encoders,
    *,
    tasks: Sequence[str] = PAIR_TASKS,
    data: str | os.PathLike[str] | None = None,
    pooling: str | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate on pair classification (MRPC, QNLI, QQP) by ROC AUC and average precision of the scores.

    A question and its answer differ in kind, so a cross-encoder reads QNLI in the given order only.

    Args:
        encoders: An encoder, or the folder or Hub id of one; several are an ensemble (the mean of their scores);
            or what `score_tasks` gave.
        tasks: Some of `PAIR_TASKS`.
        data: Where the benchmarks are, as for `load_benchmark`.
        pooling: For bare Hugging Face folders.
        batch_tokens: As for `score_pairs`.
        progress: Show a progress bar on stderr.

    Returns:
        Task -> {"auc", "ap"} x 100, "average" of the AUCs (None when a task is undefined), and for undefined
        figures "reasons": task -> text.

    Raises:
        InputError: An unknown task, missing benchmark or unusable model.

    Example:
        >>> from transenc import evaluate_pairs  # doctest: +SKIP
        >>> evaluate_pairs("my/encoder", tasks=["mrpc"])["mrpc"]["auc"]  # doctest: +SKIP
        80.1...
    """
    _check_tasks(tasks, PAIR_TASKS)
    sets = {task: load_benchmark(task, data=data) for task in tasks}
    scores = _score_sets(
        encoders, sets, symmetric=is_symmetric, pooling=pooling, batch_tokens=batch_tokens, progress=progress
    )
    figures = {task: ranking_quality(scores[task], np.array(rows["label"])) for task, rows in sets.items()}
    result: dict[str, Any] = {
        task: {name: _times_100(found[name]) for name in ("auc", "ap")} for task, found in figures.items()
    }
    result["average"] = _percent(figures, "auc")["average"]
    return result | _reasons(figures)


def evaluate_file(
    encoders: Encoders,
    path: str | os.PathLike[str],
    *,
    symmetric: bool = True,
    pooling: str | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate on a file of pairs with a gold `score` (any scale) or `label` (0 or 1).

    Args:
        encoders: An encoder, or the folder or Hub id of one; several are an ensemble (the mean of their scores).
        path: A file, as for `read_gold`.
        symmetric: The order of a pair means nothing, see `score_pairs`.
        pooling: For bare Hugging Face folders.
        batch_tokens: As for `score_pairs`.
        progress: Show a progress bar on stderr.

    Returns:
        {"spearman", "pearson"} or {"auc", "ap"}, x 100, and with None the text "reason".

    Raises:
        InputError: The file or the model is unusable.

    Example:
        >>> from transenc import evaluate_file  # doctest: +SKIP
        >>> evaluate_file("my/encoder", "dev.tsv")["spearman"]  # doctest: +SKIP
        71.3...
    """
    rows = read_gold(path)
    scores = score_pairs(
        _load_all(encoders, pooling), rows, symmetric=symmetric, batch_tokens=batch_tokens, progress=progress
    )
    if "score" in rows.column_names:
        found = correlation(scores, np.array(rows["score"]))
    else:
        found = ranking_quality(scores, np.array(rows["label"]))
    return {name: value if name == "reason" else _times_100(value) for name, value in found.items()}


def compare(
    encoders_a: Encoders,
    encoders_b: Encoders,
    *,
    tasks: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    symmetric: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    pooling: str | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, dict[str, float | None]]:
    """Give the difference between two systems with a paired bootstrap interval (Efron and Tibshirani, 1993).

    Both systems are read on the same resampled rows, so what makes a set hard or easy cancels out. The interval
    tells what other test pairs of the same kind would change, not what another training seed would.

    Args:
        encoders_a: The system in question: an encoder, a name, an ensemble, or what `score_tasks` gave.
        encoders_b: What it is compared with.
        tasks: Some of `STS_TASKS` (by Spearman) and `PAIR_TASKS` (by AUC); None: all of `STS_TASKS`, or `path`.
        path: A file with gold values in place of the tasks, as for `evaluate_file`.
        data: Where the benchmarks are, as for `load_benchmark`.
        symmetric: For `path`: the order of a pair means nothing.
        resamples: Resamples drawn, 100 or more.
        seed: Decides the resamples.
        pooling: For bare Hugging Face folders.
        batch_tokens: As for `score_pairs`.
        progress: Show a progress bar on stderr.

    Returns:
        Task (with `path`: "spearman" or "auc") and, for tasks, "average" -> {"difference": a - b, x 100,
        "low", "high": the central 95 % of the resampled differences}; None where undefined.

    Raises:
        InputError: Tasks and path at once, an unknown task, or an unusable model or file.

    Example:
        >>> from transenc.evaluation import compare  # doctest: +SKIP
        >>> compare("runs/mine/best/bi-encoder", "my/encoder", tasks=["stsb"])["stsb"]  # doctest: +SKIP
        {'difference': 0.41..., 'low': 0.12..., 'high': 0.70...}
    """
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 100:
        raise InputError(f"resamples must be a whole number of 100 or more, found {resamples!r}")
    if path is not None and tasks is not None:
        raise InputError("compare on tasks or on a file, not on both at once")
    if path is not None:
        rows = read_gold(path)
        sets = {"spearman" if "score" in rows.column_names else "auc": rows}
    else:
        tasks = STS_TASKS if tasks is None else tasks
        _check_tasks(tasks, STS_TASKS + PAIR_TASKS)
        sets = {task: load_benchmark(task, data=data) for task in tasks}
    systems = [
        _score_sets(
            encoders,
            sets,
            symmetric=is_symmetric if path is None else lambda _: symmetric,
            pooling=pooling,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        for encoders in (encoders_a, encoders_b)
    ]
    result: dict[str, dict[str, float | None]] = {}
    observed, resampled = [], []
    for number, (task, rows) in enumerate(sets.items()):
        figure, gold = (auc, "label") if "label" in rows.column_names else (spearman, "score")
        # A generator of its own for each task: its interval does not depend on the other tasks.
        first, second = (resample(figure, s[task], rows[gold], resamples, (seed, number)) for s in systems)
        observed.append(first[0] - second[0])
        resampled.append(first[1:] - second[1:])
        result[task] = confidence_interval(observed[-1], resampled[-1])
    if path is None:
        result["average"] = confidence_interval(float(np.mean(observed)), np.mean(resampled, axis=0))
    return result


def _check_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= set(known):
        raise InputError(f"tasks must be a list of different names out of {', '.join(known)}, found {tasks!r}")


def _load_all(encoders: Any, pooling: str | None) -> list[Encoder]:
    group: list[Any] = list(encoders) if isinstance(encoders, list | tuple) else [encoders]
    return [load_encoder(item, pooling=pooling) if isinstance(item, str | Path) else item for item in group]


def _score_sets(
    encoders: Encoders,
    sets: Mapping[str, Dataset],
    *,
    symmetric: Callable[[str], bool],
    pooling: str | None,
    batch_tokens: int | None,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Score all sets of one kind in one call, so that a sentence in several of them is encoded once."""
    if isinstance(encoders, Mapping):
        for name, rows in sets.items():
            if name not in encoders or np.shape(encoders[name]) != (len(rows),):
                shape = np.shape(encoders[name]) if name in encoders else "none"
                raise InputError(f"expected {len(rows)} scores for {name}, found {shape}; see score_tasks")
        return {name: np.asarray(encoders[name]) for name in sets}
    group = _load_all(encoders, pooling)
    scores: dict[str, np.ndarray] = {}
    for kind in (True, False):
        names = [name for name in sets if symmetric(name) is kind]
        pairs = [pair for name in names for pair in zip(sets[name]["sentence1"], sets[name]["sentence2"], strict=True)]
        if pairs:
            found = score_pairs(group, pairs, symmetric=kind, batch_tokens=batch_tokens, progress=progress)
            ends = np.cumsum([len(sets[name]) for name in names])
            scores.update(zip(names, np.split(found, ends[:-1]), strict=True))
    return scores


def _evaluate_subsets(rows: Dataset, scores: np.ndarray) -> dict[str, float | None]:
    subset, gold = np.array(rows["subset"]), np.array(rows["score"])
    return {
        str(name): _times_100(correlation(scores[subset == name], gold[subset == name])["spearman"])
        for name in dict.fromkeys(rows["subset"])
    }


def _percent(figures: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, float | None]:
    values = {task: _times_100(found[name]) for task, found in figures.items()}
    defined = [value for value in values.values() if value is not None]
    # The mean of the other tasks would pass for the mean of all.
    return {**values, "average": sum(defined) / len(defined) if len(defined) == len(values) else None}


def _times_100(value: Any) -> float | None:
    return None if value is None else 100.0 * float(value)


def _reasons(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    reasons = {task: str(found["reason"]) for task, found in figures.items() if "reason" in found}
    return {"reasons": reasons} if reasons else {}
