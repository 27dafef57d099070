"""The sentence on top of a report: did it help, by how much, how sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from transenc.outcome import explain_choice
from transenc.report.statistics import interval

PAIRED = "95 % interval"


def judge(
    models: list[dict[str, Any]],
    best: dict[str, Any] | None,
    resampled: Mapping[str, np.ndarray],
    labels: dict[str, Any],
    *,
    dev: dict[str, Any] | None,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """Say what a run did to its bi-encoder, the best start against the chosen model (or the best trained one).

    Args:
        models: as in the facts.
        best: the outcome's choice; None: the run is not finished.
        resampled: dev Spearman x 100 of the models by path, observed and in each resample.
        labels: the facts of the labels.
        dev: rows and digest of the dev set; None: there is none.
        history: the cycles' metrics.

    Returns:
        `outcome` (`helped`, `unsure`, `hurt`, `start`, `unlabelled`, `undefined`, `unfinished`), `sentence`, and where
        known `before`, `after`, `difference`, `low`, `high` (x 100).
    """
    nothing = dict.fromkeys(("before", "after", "difference", "low", "high"))
    if best is None:
        return {
            "outcome": "unfinished",
            **nothing,
            "sentence": "This run is not finished; nothing has been chosen yet.",
        }
    if dev is None:
        return {"outcome": "unlabelled", **nothing, "sentence": _admit(best, labels, history)}
    bis = [model for model in models if model["form"] == "bi" and not model["last"] and model["score"] is not None]
    trained = [model for model in bis if model["cycle"]]
    students = {model["backbone"] for model in trained}  # the others only taught
    starts = [model for model in bis if not model["cycle"] and model["backbone"] in students]
    chosen = [model for model in trained if model["path"] == best["bi"]["path"]]
    after = chosen[0] if chosen else max(trained, key=lambda model: model["score"], default=None)
    before = max(starts, key=lambda model: model["score"], default=None)
    if before is None or after is None:
        reasons = [model["reason"] for model in models if model["form"] == "bi" and model["reason"]]
        why = f" ({reasons[0]})" if reasons else ""
        sentence = f"Whether it helped is unknown: the dev Spearman that would tell is undefined{why}."
        return {"outcome": "undefined", **nothing, "sentence": sentence}
    figures = {"before": before["score"], "after": after["score"], **_difference(before, after, resampled)}
    outcome = _classify(figures, start_won=not best["bi"]["cycle"])
    sentence = _word(outcome, figures, dev["rows"], best["criterion"])
    if best["criterion"] not in ("dev", "last"):
        sentence += f" Not the dev set chose: {explain_choice(best)}."
    return {"outcome": outcome, **figures, "sentence": sentence}


def _difference(
    before: dict[str, Any], after: dict[str, Any], resampled: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    first, second = resampled.get(before["path"]), resampled.get(after["path"])
    spread = interval(None if first is None or second is None else second - first)
    return {**spread, "difference": round(after["score"] - before["score"], 2)}


def _classify(figures: dict[str, Any], *, start_won: bool) -> str:
    if start_won:
        return "start"
    low = figures["difference"] if figures["low"] is None else figures["low"]
    high = figures["difference"] if figures["high"] is None else figures["high"]
    return "helped" if low > 0 else "hurt" if high < 0 else "unsure"


def _word(outcome: str, figures: dict[str, Any], rows: int, criterion: str) -> str:
    known = figures["low"] is not None
    spread = f", {PAIRED} {figures['low']:+.2f} to {figures['high']:+.2f}" if known else ""
    change = f"({figures['difference']:+.2f}{spread} over {rows:,} dev pairs)"
    before, after = f"{figures['before']:.2f}", f"{figures['after']:.2f}"
    if outcome == "start" and criterion != "dev":
        return f"The start was kept, at dev Spearman {before}; the best trained bi-encoder is at {after} {change}."
    if outcome == "start":
        text = f"It did not help: the start, at dev Spearman {before}, stays the best bi-encoder; the best trained one "
        text += f"is at {after} {change}."
        within = known and figures["high"] >= 0
        return text + (" That difference is within chance." if within else "" if known else _unsure())
    text = {
        "helped": f"It helped: dev Spearman {before} to {after} {change}.",
        "hurt": f"It hurt: dev Spearman {before} to {after} {change}.",
        "unsure": f"It is not clear that it helped: dev Spearman {before} to {after} {change}; that includes 0.",
    }[outcome]
    if not known:
        return (
            text.replace("It helped", "It seems to have helped").replace("It hurt", "It seems to have hurt") + _unsure()
        )
    if outcome == "helped" and criterion == "dev":
        text += " The same dev set chose the model, so expect a little less on other pairs."
    return text


def _unsure() -> str:
    return " How sure that is, this run cannot tell: it kept no dev predictions."


def _admit(best: dict[str, Any], labels: dict[str, Any], history: list[dict[str, Any]]) -> str:
    how = explain_choice(best)
    known = []
    agreement = history[best["cross"]["cycle"]]["agreement"]
    if agreement is not None:
        known.append(f"both forms order the pairs alike to a Spearman of {agreement:.2f}")
    if labels["stability"] is not None:
        known.append(f"the last labels follow the first to {labels['stability']:.2f}")
    text = f"Whether it helped is unknown: no gold score was there to tell; {how}."
    return text + (f" What is known: {', and '.join(known)}." if known else "")
