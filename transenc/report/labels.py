"""What the labels of a run tell: their distributions, who agrees with whom, and which pairs moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata

from transenc.labeling import merge_scores, read_labels
from transenc.pairs import LIST, SENTENCES
from transenc.report.blocks import show_text
from transenc.report.statistics import bin_means, spearman

MOVED = 12  # pairs shown
BINS = 20


def read_label_stages(folder: Path) -> dict[str, Dataset]:
    """The labels of every labelling stage of a run, by the stage's name, in order."""
    return {
        path.parent.name: read_labels(path.parent) for path in sorted(folder.glob("stages/c*-label/labels.parquet"))
    }


def describe_labels(tables: dict[str, Dataset]) -> dict[str, Any]:
    """Distributions, agreement, calibration of one form against the other, and the pairs that moved most.

    Args:
        tables: what `read_label_stages` gave; the rows of all stages are the same pairs.

    Returns:
        `labels`: a dict a stage and column; `agreement`: a Spearman x 100 a stage and two columns; `calibration`:
        `{"forms": [...]}`; `moved`: the pairs; `stability`: Spearman x 100 of the first and the last label, or None.

    Example:
        >>> describe_labels({})["moved"]
        []
    """
    columns = {stage: _numbers(table) for stage, table in tables.items()}
    merged = [values["score"] for values in columns.values()]
    return {
        "labels": [
            {"stage": stage, "column": name, **_describe(values)}
            for stage, found in columns.items()
            for name, values in found.items()
        ],
        "agreement": [entry for stage, found in columns.items() for entry in _compare(stage, found)],
        "calibration": {"forms": [_bin_forms(stage, found) for stage, found in columns.items() if _has_both(found)]},
        "moved": _find_moved(list(tables.values()), merged) if len(merged) > 1 else [],
        "stability": spearman(merged[0], merged[-1]) if len(merged) > 1 else None,
    }


def _numbers(table: Dataset) -> dict[str, np.ndarray]:
    rows = table.with_format("numpy")
    names = [name for name in table.column_names if name not in (*SENTENCES, LIST)]
    return {name: np.asarray(rows[name][:], dtype=np.float64) for name in names}


def _describe(values: np.ndarray) -> dict[str, Any]:
    points = np.percentile(values, [0, 5, 50, 95, 100])
    counts, _ = np.histogram(np.clip(values, 0, 1), bins=BINS, range=(0, 1))
    return {
        "mean": round(float(values.mean()), 3),
        "deviation": round(float(values.std()), 3),
        **{name: round(float(p), 3) for name, p in zip(("min", "p5", "median", "p95", "max"), points, strict=True)},
        "histogram": counts.tolist(),
    }


def _compare(stage: str, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    names = [name for name in columns if name != "score"]
    return [
        {"stage": stage, "first": first, "second": second, "spearman": spearman(columns[first], columns[second])}
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    ]


def _has_both(columns: dict[str, np.ndarray]) -> bool:
    return all(any(name.startswith(form) for name in columns) for form in ("bi-", "cross-"))


def _bin_forms(stage: str, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    bi, cross = (
        merge_scores([values for name, values in columns.items() if name.startswith(form)]).astype(np.float64)
        for form in ("bi-", "cross-")
    )
    return {"stage": stage, "bins": bin_means(bi, cross)}


def _find_moved(tables: list[Dataset], merged: list[np.ndarray]) -> list[dict[str, Any]]:
    """By rank, since the labels of two stages need not be on one scale."""
    first, last = merged[0], merged[-1]
    before, after = (100 * (rankdata(values) - 0.5) / len(values) for values in (first, last))
    change = after - before
    order = np.argsort(-np.abs(change), kind="stable")[:MOVED]
    return [
        {
            "sentence1": show_text(tables[-1][int(row)]["sentence1"]),
            "sentence2": show_text(tables[-1][int(row)]["sentence2"]),
            "first": round(float(first[row]), 3),
            "last": round(float(last[row]), 3),
            "moved": round(float(change[row]), 1),
        }
        for row in order
        if change[row]
    ]
