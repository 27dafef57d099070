"""Several runs side by side: the facts of each, what differs between them, and the document of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transenc.report.blocks import (
    UNKNOWN,
    Cell,
    Document,
    Figure,
    Figures,
    Section,
    Table,
    drop_empty,
    duration,
    number,
    show_value,
    span,
)
from transenc.report.document import name_model
from transenc.report.facts import Facts
from transenc.report.figures import draw_scores
from transenc.report.verdict import PAIRED


def find_highest(runs: Sequence[Facts]) -> int | None:
    """The position of the run whose chosen bi-encoder has the highest dev score; None where that cannot be told.

    Example:
        >>> find_highest([{"data": {"dev": None}, "models": []}]) is None
        True
    """
    scores = {i: score for i, facts in enumerate(runs) if (score := _score(_chosen(facts, "bi"))) is not None}
    return max(scores, key=lambda i: scores[i]) if scores and _share_dev(runs) else None


def build_comparison(
    runs: Sequence[Facts],
    differences: Sequence[dict[str, float | None]],
    to_highest: Sequence[dict[str, float | None]] | None,
) -> Document:
    """The document of several runs.

    Args:
        runs: what `read_facts` said of each.
        differences: each run's chosen bi-encoder against the first's, as by `compare_runs`.
        to_highest: the same against the run that `find_highest` gives; None: it gives none.

    Raises:
        InputError: matplotlib is not installed.

    Example:
        >>> differences = compare_runs(runs, [facts, other])  # doctest: +SKIP
        >>> build_comparison([facts, other], differences, differences).lead  # doctest: +SKIP
        'The highest dev score of a bi-encoder is that of mine (73.02).'
    """
    names = _name_runs(runs)
    return Document(
        " · ".join(names),
        _summarize(names, runs, to_highest),
        "comparison",
        [
            Section("Did it help", _scores(names, runs, differences)),
            Section("What differs", [_differing(names, runs)]),
            Section("What each run says", [Table("", ("run", "says"), _verdicts(names, runs))]),
        ],
    )


def _name_runs(runs: Sequence[Facts]) -> list[str]:
    found = [facts["run"] for facts in runs]
    return [name if found.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(found, 1)]


def _chosen(facts: Facts, form: str) -> dict[str, Any] | None:
    return next((model for model in facts["models"] if model["chosen"] and model["form"] == form), None)


def _score(model: dict[str, Any] | None) -> float | None:
    return None if model is None else model["score"]


def _share_dev(runs: Sequence[Facts]) -> bool:
    return len({(facts["data"]["dev"] or {}).get("sha256") for facts in runs}) == 1


def _summarize(names: list[str], runs: Sequence[Facts], to_highest: Sequence[dict[str, float | None]] | None) -> str:
    if not _share_dev(runs):
        return "These runs do not share one dev set, so their dev figures do not compare."
    best = find_highest(runs)
    if best is None or to_highest is None:
        return "Which of these runs is the best is unknown: no gold score was there to tell."
    unclear, unknown = [], []
    for i, (name, facts, found) in enumerate(zip(names, runs, to_highest, strict=True)):
        difference, low, high = found["difference"], found["low"], found["high"]
        if i == best or _score(_chosen(facts, "bi")) is None:
            continue
        if difference is None or low is None or high is None:
            unknown.append(name)
        elif high >= 0:  # of the lower to the highest
            unclear.append(f"{name} ({0 - difference:+.2f}, {PAIRED} {0 - high:+.2f} to {0 - low:+.2f})")
    text = f"The highest dev score of a bi-encoder is that of {names[best]} ({_score(_chosen(runs[best], 'bi')):.2f})"
    if unclear:
        text += f", not clearly above {', '.join(unclear)}"
    if unknown:
        text += f"; how sure that is against {', '.join(unknown)} is unknown, for want of dev predictions"
    return f"{text}."


def _scores(
    names: list[str], runs: Sequence[Facts], differences: Sequence[dict[str, float | None]]
) -> list[str | Table | Figures]:
    rows, dots = [], []
    for name, facts, against in zip(names, runs, differences, strict=True):
        bi, cross, verdict = _chosen(facts, "bi"), _chosen(facts, "cross"), facts["verdict"]
        if bi is not None:
            dots.append({**bi, "name": name})
        rows.append(
            [
                Cell(name),
                number(facts["pairs"]),
                Cell(name_model(bi) if bi else UNKNOWN),
                number(_score(bi)),
                number(verdict["difference"], sign=True),
                span(verdict["low"], verdict["high"], sign=True),
                number(_score(cross)),
                number(against["difference"], sign=True),
                span(against["low"], against["high"], sign=True),
                duration(facts["seconds"]),
            ]
        )
    columns = (
        "run",
        "pairs",
        "chosen",
        "dev bi",
        "trained to start",
        "95 %",
        "dev cross",
        "to the first run",
        "95 %",
        "time",
    )
    caption = (
        "The chosen models' dev Spearman x 100; the best trained bi-encoder against the best start; the chosen "
        "bi-encoder against the first run's. Intervals: paired bootstrap of the dev pairs."
    )
    blocks: list[str | Table | Figures] = [drop_empty(Table(caption, columns, rows))]
    if _share_dev(runs) and any(row["score"] is not None for row in dots):
        svg = draw_scores(dots, "Dev Spearman of each run's chosen bi-encoder with its interval")
        blocks.insert(0, Figures("Each run's chosen bi-encoder with its 95 % bootstrap interval.", [Figure("", svg)]))
    return blocks


def _verdicts(names: list[str], runs: Sequence[Facts]) -> list[list[Cell]]:
    return [[Cell(name), Cell(facts["verdict"]["sentence"], "prose")] for name, facts in zip(names, runs, strict=True)]


def _differing(names: list[str], runs: Sequence[Facts]) -> Table:
    flat = [
        _flatten({key: facts[key] for key in ("settings", "inputs", "data", "machine", "versions")}) for facts in runs
    ]
    keys = [
        key for key in dict.fromkeys(key for found in flat for key in found) if not key.startswith("data.forked_from")
    ]
    rows = [
        [Cell(key), *(show_value(found.get(key)) for found in flat)]
        for key in keys
        if any(found.get(key) != flat[0].get(key) for found in flat)
    ]
    return Table("Settings, inputs and versions that are not the same in all runs.", ("what", *names), rows)


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item})
    return flat
