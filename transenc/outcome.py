"""What a run made: its history, the best of both forms, and the links and file that say so."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transenc import durable
from transenc.config import DistillConfig
from transenc.errors import StateError
from transenc.run import Run, verify_run

logger = logging.getLogger(__name__)

MAX_AUTO_CYCLES = 10
RISE = 0.1  # `cycles: auto` goes on while the criterion (x100) rises by more than this
LINKS = {"bi": "best/bi-encoder", "cross": "best/cross-encoder"}


@dataclass(frozen=True)
class DistillResult:
    """What a finished run made; every path is an ordinary sentence-transformers folder.

    Args:
        run: the run directory.
        bi_encoders: the bi-encoders of the chosen cycle, the chosen one first.
        cross_encoders: the cross-encoders of the chosen cycle (of the best one when the start won), likewise.
        best: `{"bi": {"path", "backbone", "cycle", "score"}, "cross": {...}, "criterion", "start_won"}`; scores
            x100 or None.
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


def wants_cycle(history: list[dict[str, Any]], config: DistillConfig, *, has_dev: bool) -> bool:
    """Whether another cycle is to follow those in `history`.

    With `cycles: auto` one follows while the criterion rises: the best dev score of a cycle's bi-encoders, without a
    dev set the Spearman between the labels of both forms.

    Example:
        >>> wants_cycle([{"cycle": 0}], DistillConfig(cycles=1), has_dev=False)
        True
    """
    done = len(history) - 1
    if isinstance(config.cycles, int):
        return done < config.cycles
    if done == 0 or done >= MAX_AUTO_CYCLES:
        return done == 0
    *values, last = [_criterion(entry, has_dev) for entry in history]
    before = max((value for value in values if value is not None), default=None)
    return last is not None and (before is None or last - before > RISE)


def choose_best(history: list[dict[str, Any]], config: DistillConfig, *, has_dev: bool) -> dict[str, Any]:
    """The best model of each form: by dev Spearman, of which the start's counts too, or the last cycle's.

    Raises:
        StateError: the dev Spearman decides and is undefined for every model of a form.

    Example:
        >>> start = {"backbone": 0, "path": "stages/c00-00-start/model-0", "score": 80.0}
        >>> history = [{"cycle": 0, "bi": [start], "cross": []}, {"cycle": 1, "bi": [], "cross": [start]}]
        >>> choose_best(history, DistillConfig(), has_dev=True)["start_won"]
        True
    """
    by_dev = config.select == "dev" or (config.select == "auto" and has_dev)
    best: dict[str, Any] = {"criterion": "dev" if by_dev else "last"}
    for form in LINKS:
        candidates = [{**model, "cycle": entry["cycle"]} for entry in history for model in _models(entry, form)]
        if by_dev:
            defined = [model for model in candidates if model["score"] is not None]
            if not defined:
                raise StateError(
                    f"the dev Spearman of every {form}-encoder is undefined ({candidates[0].get('reason')}); nothing "
                    "can be chosen: start anew with another dev set or with --select last"
                )
            best[form] = max(defined, key=lambda model: model["score"])  # the earliest of equals: the start first
        else:
            best[form] = next(model for model in candidates if model["cycle"] == history[-1]["cycle"])
    best["start_won"] = best["bi"]["cycle"] == 0
    return best


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


def _criterion(entry: dict[str, Any], has_dev: bool) -> float | None:
    if not has_dev:
        return entry["agreement"]
    return max((model["score"] for model in _models(entry, "bi") if model["score"] is not None), default=None)
