"""What a run made: its history, the best of both forms, and the links and file that say so."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transenc import durable
from transenc.config import CRITERIA, DistillConfig
from transenc.criteria import MARGIN
from transenc.errors import StateError
from transenc.run import Run, verify_run

logger = logging.getLogger(__name__)

MAX_AUTO_CYCLES = 10
RISE = 0.1  # `cycles: auto` goes on while the criterion (x100) rises by more than this
DEFAULT = "cautious"  # the criterion without labels that docs/choice.md found best
WORDS = {
    "cautious": "stability near the start, token alignment away from it",
    "alignment": "agreement with the start's token alignment",
    "agreement": "agreement with the teachers fixed before the first cycle",
    "views": "stability under changed texts",
    "uniformity": "alignment and uniformity",
    "rank": "effective rank of the embeddings",
    "previous": "agreement with the labels before",
    "cross": "agreement with the cycle's cross-encoder",
}
LINKS = {"bi": "best/bi-encoder", "cross": "best/cross-encoder"}


@dataclass(frozen=True)
class DistillResult:
    """What a finished run made; every path is an ordinary sentence-transformers folder.

    Args:
        run: the run directory.
        bi_encoders: the bi-encoders of the chosen cycle, the chosen one first.
        cross_encoders: the cross-encoders of the chosen cycle (of the best one when the start won), likewise.
        best: `{"bi": {"path", "backbone", "cycle", "score"}, "cross": {...}, "criterion", "start_won"}`; scores
            x100 or None. By a criterion without labels also `compared`, see `choose_best`.
        history: a dict a cycle, the start first: `{"cycle", "bi": [...], "cross": [...], "agreement"}`.

    Example:
        >>> result = distill([Backbone("my/encoder")], read_pairs("pairs.tsv"), output_dir="run")  # doctest: +SKIP
        >>> result.bi_encoders[0]  # doctest: +SKIP
        PosixPath('run/stages/c01-40-bi-train/model-0')
    """

    run: Path
    bi_encoders: tuple[Path, ...]
    cross_encoders: tuple[Path, ...]
    best: dict[str, Any]
    history: tuple[dict[str, Any], ...]


def choosing_by(config: DistillConfig, *, has_dev: bool) -> str:
    """What chooses: `dev`, `last`, `start` or one of the criteria without labels.

    Example:
        >>> choosing_by(DistillConfig(), has_dev=True), choosing_by(DistillConfig(), has_dev=False)
        ('dev', 'cautious')
    """
    return config.select if config.select != "auto" else "dev" if has_dev else DEFAULT


def wants_cycle(history: list[dict[str, Any]], config: DistillConfig, *, has_dev: bool) -> bool:
    """Whether another cycle is to follow those in `history`.

    With `cycles: auto` one follows while what chooses rises: the best dev score of a cycle's bi-encoders, or what they
    gain on their starts by a criterion without labels; for `last` and `start` the Spearman between the labels of both
    forms.

    Example:
        >>> wants_cycle([{"cycle": 0}], DistillConfig(cycles=1), has_dev=False)
        True
    """
    done = len(history) - 1
    if isinstance(config.cycles, int):
        return done < config.cycles
    if done == 0 or done >= MAX_AUTO_CYCLES:
        return done == 0
    by = choosing_by(config, has_dev=has_dev)
    *values, last = [_criterion(entry, by, config.student) for entry in history]
    before = max((value for value in values if value is not None), default=None)
    return last is not None and (before is None or last - before > RISE)


def choose_best(history: list[dict[str, Any]], config: DistillConfig, *, has_dev: bool) -> dict[str, Any]:
    """The best model of each form.

    By dev Spearman the best of all, the start included. Without labels two backbones cannot be compared, so what is
    handed on is the first one's (or the one `student`'s): by a criterion its trained bi-encoder with the highest figure
    among those that exceed the start, or else the start, and the cross-encoder of the best trained one's cycle,
    whether that one is taken or not.

    Returns:
        `criterion`, `bi` and `cross` (the models with their `cycle`), `start_won`, and for a criterion without labels
        `compared`: `{"start", "trained", "cycle"}`, its figures for the best trained bi-encoder and that one's start;
        None where they are undefined.

    Raises:
        StateError: what is to decide is undefined for every model of a form, or was not recorded.

    Example:
        >>> start = {"backbone": 0, "path": "stages/c00-00-start/model-0", "score": 80.0}
        >>> history = [{"cycle": 0, "bi": [start], "cross": []}, {"cycle": 1, "bi": [], "cross": [start]}]
        >>> choose_best(history, DistillConfig(), has_dev=True)["start_won"]
        True
    """
    by = choosing_by(config, has_dev=has_dev)
    candidates = {form: [{**m, "cycle": e["cycle"]} for e in history for m in _models(e, form)] for form in LINKS}
    own = config.student  # the other backbones only teach
    if own is None and by != "dev":
        own = candidates["bi"][0]["backbone"]
    if own is not None:
        candidates = {form: [m for m in models if m["backbone"] == own] for form, models in candidates.items()}
    best: dict[str, Any] = {"criterion": by}
    if by == "dev":
        best.update({form: _best_on_dev(models, form) for form, models in candidates.items()})
    elif by in CRITERIA:
        best.update(_best_by_criterion(candidates, by))
    else:
        last = {form: [m for m in models if m["cycle"] == history[-1]["cycle"]] for form, models in candidates.items()}
        best.update({form: models[0] for form, models in last.items()})
        if by == "start":
            best["bi"] = candidates["bi"][0]
    best["start_won"] = best["bi"]["cycle"] == 0
    return best


def explain_choice(best: Mapping[str, Any]) -> str:
    """What chose, and why, in words; `best` is what `choose_best` gave.

    Example:
        >>> compared = {"start": 0.83, "trained": 0.71, "cycle": 1}
        >>> explain_choice({"criterion": "views", "bi": {"cycle": 0}, "compared": compared})
        'start kept: the stability under changed texts (views) fell from 0.830 to 0.710 in cycle 1'
    """
    by = best["criterion"]
    if by not in WORDS:
        taken = f"cycle {best['bi']['cycle']}" if best["bi"]["cycle"] else "the start"
        told = {"last": "the last cycle was taken", "start": "the start was kept, as asked"}
        return told.get(by, f"{taken} was taken, the best on the dev set")
    compared, what = best["compared"], f"the {WORDS[by]} ({by})"
    before, after = compared["start"], compared["trained"]
    if before is None:
        return f"start kept: {what} is undefined"
    change = f"from {before:.3f} to {after:.3f} in cycle {compared['cycle']}"
    if best["bi"]["cycle"]:
        return f"cycle {compared['cycle']} taken: {what} rose {change}"
    verb = "fell" if after < before else "rose too little," if after > before else "stayed,"
    return f"start kept: {what} {verb} {change}"


def publish_outcome(run: Run, history: list[dict[str, Any]], config: DistillConfig, *, has_dev: bool) -> DistillResult:
    """Choose the best, link it under `best/` and write `best.json`, which says that the run is complete.

    Raises:
        StateError: nothing can be chosen.
    """
    best = choose_best(history, config, has_dev=has_dev)
    (run.folder / "best").mkdir(exist_ok=True)
    for form, link in LINKS.items():
        durable.replace_symlink(run.folder / link, _link_target(best[form]))
    durable.write_json(run.folder / "best.json", {"complete": True, "best": best, "history": history})
    run.record("complete", best=best)
    return _describe(run.folder, best, history)


def find_outcome(folder: Path, config: DistillConfig, *, has_dev: bool) -> DistillResult | None:
    """The outcome of a complete run, verified without writing a byte; None when there is work to do.

    `best.json` and the links can be made again from the stages, so damage to them is told and counts as work to do.

    Raises:
        StateError: a stage is damaged.
    """
    if not (folder / "best.json").is_file():
        return None
    try:
        content = durable.read_json(folder / "best.json")
        history = [_read_entry(folder, cycle) for cycle in range(len(content["history"]))]
        if wants_cycle(history, config, has_dev=has_dev):
            raise StateError(f"{folder}/best.json: lacks a cycle")
        best = choose_best(history, config, has_dev=has_dev)
        if content != {"complete": True, "best": best, "history": history}:
            raise StateError(f"{folder}/best.json: says something else than the stages")
        for form, link in LINKS.items():
            if not (folder / link).is_symlink() or Path(os.readlink(folder / link)) != _link_target(best[form]):
                raise StateError(f"{folder}/{link}: does not lead to {best[form]['path']}")
    except (StateError, KeyError, TypeError, IndexError) as error:
        reason = error if isinstance(error, StateError) else f"{folder}/best.json: not the outcome of a run"
        logger.warning("%s; it is made again from the stages", reason)
        return None
    verify_run(folder)
    return _describe(folder, best, history)


def _read_entry(folder: Path, cycle: int) -> dict[str, Any]:
    return durable.read_json(folder / "stages" / f"c{cycle:02d}-50-evaluate" / "metrics.json")


def _describe(folder: Path, best: dict[str, Any], history: list[dict[str, Any]]) -> DistillResult:
    paths = {}
    for form in LINKS:
        chosen = best[form]["path"]
        others = [model["path"] for model in _models(history[best[form]["cycle"]], form) if model["path"] != chosen]
        paths[form] = tuple(folder / path for path in (chosen, *others))
    return DistillResult(folder, paths["bi"], paths["cross"], best, tuple(history))


def _link_target(model: dict[str, Any]) -> Path:
    return Path("..") / model["path"]


def _models(entry: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """A cycle's models of one form, without the `last-*` copies kept beside checkpoints chosen on the dev set."""
    return [model for model in entry[form] if "/model-" in model["path"]]


def _best_on_dev(models: list[dict[str, Any]], form: str) -> dict[str, Any]:
    defined = [model for model in models if model["score"] is not None]
    if not defined:
        raise StateError(
            f"the dev Spearman of every {form}-encoder is undefined ({models[0].get('reason')}); nothing "
            "can be chosen: start anew with another dev set or with --select last"
        )
    return max(defined, key=lambda model: model["score"])  # the earliest of equals: the start first


def _best_by_criterion(candidates: dict[str, list[dict[str, Any]]], by: str) -> dict[str, Any]:
    """Of one backbone's models."""
    trained = [model for model in candidates["bi"] if model["cycle"]]
    if any("criteria" not in model for model in trained):
        raise StateError(f"the run recorded no criterion without labels; start anew, or with --select last (not {by})")
    figures = {model["path"]: model["criteria"][by] for model in trained if model["criteria"][by] is not None}
    judged = [model for model in trained if model["path"] in figures]
    cautious = by == "cautious"  # it has its margin already, and two measures, of which only the gains compare
    gained = [model for model in judged if _gain(figures[model["path"]]) > (0 if cautious else MARGIN)]

    def rate(model: dict[str, Any]) -> float:
        figure = figures[model["path"]]
        return _gain(figure) if cautious else figure["trained"]

    first = max(gained or judged, key=rate, default=trained[-1])  # the earliest of equals
    return {
        "bi": first if gained else candidates["bi"][0],
        "cross": next(model for model in candidates["cross"] if model["cycle"] == first["cycle"]),
        "compared": {"start": None, "trained": None, **figures.get(first["path"], {}), "cycle": first["cycle"]},
    }


def _gain(figure: dict[str, float]) -> float:
    return figure["trained"] - figure["start"]


def _criterion(entry: dict[str, Any], by: str, student: int | None) -> float | None:
    models = [model for model in _models(entry, "bi") if student in (None, model["backbone"])]
    if by == "dev":
        values = [model["score"] for model in models]
    elif by not in CRITERIA:
        return entry["agreement"]
    elif not entry["cycle"]:
        return 0.0
    else:
        figures = [model.get("criteria", {}).get(by) for model in models]
        values = [None if figure is None else 100 * _gain(figure) for figure in figures]
    return max((value for value in values if value is not None), default=None)
