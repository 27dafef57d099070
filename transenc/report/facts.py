"""What a run directory says about itself: one plain dict of facts, with every number rounded as it is shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transenc import durable
from transenc.benchmarks import STS_TASKS, find_folders, load_benchmark
from transenc.errors import InputError
from transenc.pairs import count_overlap
from transenc.planning import stage_name
from transenc.report.blocks import show_text
from transenc.report.labels import describe_labels, read_label_stages
from transenc.report.statistics import bin_means, interval
from transenc.report.times import describe_losses, describe_stages, sum_stages
from transenc.report.verdict import judge
from transenc.resampling import resample_spearman
from transenc.run import RUN_FILE

Facts = dict[str, Any]
FORMS = ("bi", "cross")


def read_facts(run: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None) -> Facts:
    """Read all that the report shows; the same run gives the same facts.

    Intervals are the central 95 % of 1,000 paired bootstrap resamples of the dev pairs (see `evaluation.compare`);
    they need the dev predictions that the evaluate stages keep, and are None for runs without them.

    Args:
        run: a run directory, finished or not.
        data: where the STS test files are whose overlap with the pairs is counted; None: `$TRANSENC_DATA`, if set.

    Returns:
        Plain JSON: `run`, `complete`, `pairs`, `verdict`, `best`, `models`, `cycles`, `warnings`, `agreement`,
        `labels`, `calibration`, `moved`, `stability`, `stages`, `seconds`, `tokens`, `losses`, `overlap`, `settings`,
        `inputs`, `data`, `machine`, `versions`. Correlations are x 100, undefined ones None. `seconds` and `tokens`
        are those of the run's own stages; None where one of them is not known.

    Raises:
        InputError: not a run. StateError: a file of the run is damaged.

    Example:
        >>> read_facts("runs/mine")["verdict"]["sentence"]  # doctest: +SKIP
        'It helped: dev Spearman 72.10 to 73.02 (+0.92, 95 % interval +0.41 to +1.45 over 1,500 dev pairs).'
    """
    folder = Path(run)
    if not (folder / RUN_FILE).is_file() or not (folder / "stages").is_dir():
        raise InputError(f"{folder}: not a run: expected {RUN_FILE} and stages/ in it; name a folder of `distill`")
    identity = durable.read_json(folder / RUN_FILE)
    outcome = durable.read_json(folder / "best.json") if (folder / "best.json").is_file() else None
    best = None if outcome is None else outcome["best"]
    history = [durable.read_json(path) for path in sorted(folder.glob("stages/c*-50-evaluate/metrics.json"))]
    predictions = _read_predictions(folder)
    resampled = {path: resample_spearman(values, predictions["gold"]) for path, values in predictions["scores"].items()}
    tables = read_label_stages(folder)
    labels = describe_labels(tables)
    models = _describe_models(history, best, resampled)
    stages = describe_stages(folder, identity, tables)
    seconds = sum_stages(stages, "seconds")
    return {
        "run": show_text(folder.resolve().name),
        "complete": best is not None,
        "pairs": len(next(iter(tables.values()))) if tables else identity["pairs"].get("rows"),
        "verdict": judge(models, best, resampled, labels, dev=identity.get("dev"), history=history),
        "best": best,
        "models": models,
        "cycles": [{"cycle": entry["cycle"], "agreement": entry["agreement"]} for entry in history],
        "warnings": _read_findings(folder),
        **labels,
        "calibration": labels["calibration"] | {"dev": _calibrate(models, predictions)},
        "stages": stages,
        "seconds": None if seconds is None else round(seconds, 1),
        "tokens": sum_stages(stages, "tokens"),
        "losses": describe_losses(folder),
        "overlap": _count_overlaps(tables, predictions, data),
        "settings": identity["config"],
        "inputs": identity.get("inputs") or {},
        "data": {name: identity.get(name) for name in ("pairs", "dev", "backbones", "forked_from")},
        "machine": identity["machine"],
        "versions": identity["versions"],
    }


def _read_findings(folder: Path) -> list[dict[str, Any]]:
    """What the first labels said against the run (`preflight`): `text` and `serious`."""
    path = folder / "stages" / stage_name(1, "10-bi-label") / "inspection.json"
    findings = durable.read_json(path)["findings"] if path.is_file() else []
    return [{"text": show_text(finding["text"], length=500), "serious": finding["serious"]} for finding in findings]


def compare_runs(runs: list[str | os.PathLike[str]], facts: list[Facts], *, against: int = 0) -> list[dict[str, Any]]:
    """Each run's chosen bi-encoder against that of one of them, on the same dev pairs.

    Args:
        runs: run directories.
        facts: what `read_facts` said of them.
        against: position of the run that the others are compared with.

    Returns:
        One dict a run: `difference`, `low`, `high`, x 100; None where the dev sets differ, or a run has no dev
        predictions.

    Example:
        >>> compare_runs(["a", "b"], [read_facts("a"), read_facts("b")])[1]["difference"]  # doctest: +SKIP
        0.31
    """
    chosen = []
    for run, about in zip(runs, facts, strict=True):
        found = _read_predictions(Path(run))
        values = found["scores"].get(about["best"]["bi"]["path"]) if about["best"] else None
        chosen.append(None if values is None else resample_spearman(values, found["gold"]))
    base, digest = chosen[against], facts[against]["data"]["dev"]
    return [
        interval(None if values is None or base is None or about["data"]["dev"] != digest else values - base)
        for values, about in zip(chosen, facts, strict=True)
    ]


def _read_predictions(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"gold": None, "scores": {}, "overlap": None}
    for path in sorted(folder.glob("stages/c*-50-evaluate/dev.json")):
        content = durable.read_json(path)
        found["gold"] = content["gold"]
        found["overlap"] = content.get("overlap") or found["overlap"]
        found["scores"].update(content["scores"])
    return found


def _describe_models(
    history: list[dict[str, Any]], best: dict[str, Any] | None, resampled: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    starts = {model["backbone"]: model for entry in history[:1] for model in entry["bi"]}
    chosen = {best[form]["path"] for form in FORMS} if best else set()
    models = []
    for entry in history:
        for form in FORMS:
            for model in entry[form]:
                path, start = model["path"], starts[model["backbone"]]
                own, before = resampled.get(path), resampled.get(start["path"])
                spread = interval(own)
                change = interval(own - before if own is not None and before is not None and entry["cycle"] else None)
                if entry["cycle"] and None not in (model["score"], start["score"]):
                    change["difference"] = round(model["score"] - start["score"], 2)  # of what is shown
                models.append(
                    {
                        "cycle": entry["cycle"],
                        "form": form,
                        "backbone": model["backbone"],
                        "last": "/last-" in path,
                        "path": path,
                        "score": model["score"],
                        "low": spread["low"],
                        "high": spread["high"],
                        "change": change,
                        "criteria": model.get("criteria"),
                        "chosen": path in chosen,
                        "reason": model.get("reason"),
                    }
                )
    return models


def _calibrate(models: list[dict[str, Any]], predictions: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean gold score in each tenth of the dev pairs by score: the start and the chosen models."""
    if predictions["gold"] is None:
        return []
    gold = np.asarray(predictions["gold"])
    shown = [model for model in models if model["path"] in predictions["scores"]]
    return [
        {"path": model["path"], "form": model["form"], "cycle": model["cycle"], "backbone": model["backbone"],
         "bins": bin_means(np.asarray(predictions["scores"][model["path"]]), gold)}
        for model in shown if model["chosen"] or not model["cycle"]
    ]  # fmt: skip


def _count_overlaps(
    tables: dict[str, Any], predictions: dict[str, Any], data: str | os.PathLike[str] | None
) -> list[dict[str, Any]]:
    """Shared sentences and pairs of the training pairs with the dev set, and with the STS test files that are here."""
    found = (
        []
        if predictions["overlap"] is None
        else [{"set": "dev", "rows": len(predictions["gold"]), **predictions["overlap"]}]
    )
    here = [
        task
        for task in STS_TASKS
        if any((folder / "sts" / f"{task}.test.tsv").is_file() for folder in find_folders(data))
    ]
    if here and tables:
        pairs = next(iter(tables.values()))
        for task in here:
            test = load_benchmark(task, data=data)
            found.append({"set": f"{task} test", "rows": len(test), **count_overlap(pairs, test)})
    return found
