"""Which recipe to use: labels scored on development pairs, then whole runs; what docs/study.md shows.

    python scripts/study.py screen --start minilm=FOLDER --cross minilm=CROSS     # no training: the labels alone
    python scripts/study.py run --start minilm=FOLDER --arm simplified --arm reference --pool inductive
    python scripts/study.py run --start a=FOLDER --start b=FOLDER --arm overlap   # mutual distillation of both
    python scripts/study.py run --start minilm=FOLDER --arm default --seed 1 --seed 2 --average   # and their average
    python scripts/study.py write                                                 # the page, from the JSON so far

The benchmarks come from $TRANSENC_DATA (or --data). Runs are durable and go to --work; the same command resumes. What
they gave is copied to docs/results/study-*.json, from which alone the page's tables are made.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpu_name
from reproduce_results import score_labels, score_once, stage_seconds
from study_results import ARMS, DOCS, POOLS, SCREENS, name_tests, write_page

from transenc.averaging import average_weights
from transenc.benchmarks import STS_TASKS, load_benchmark
from transenc.cli import main as transenc
from transenc.config import DistillConfig, merge_config, to_dict
from transenc.devices import resolve_precision
from transenc.durable import read_json, write_json
from transenc.encoders import load_bi_encoder, load_encoder
from transenc.errors import InputError, TransencError
from transenc.evaluation import compare, evaluate_pairs, evaluate_sts
from transenc.labeling import merge_labels
from transenc.metrics import correlation
from transenc.model_cards import save_model
from transenc.report.labels import read_label_stages
from transenc.report.times import describe_stages
from transenc.scoring import score_pairs
from transenc.views import score_alignments, score_overlap, score_simplified

DEV = (("stsb", "dev"), ("sickr", "trial"), ("sts12", "train"))
START = "stages/c00-00-start"


def main() -> int:
    """Screen, run or write."""
    parser = argparse.ArgumentParser(description="The study of docs/study.md.")
    parser.add_argument("--data", default=os.environ.get("TRANSENC_DATA"), help="benchmarks; default: $TRANSENC_DATA")
    studies = parser.add_subparsers(dest="study", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--start", required=True, action="append", type=_name, metavar="NAME=FOLDER", help="bi-encoder")
    screen = studies.add_parser("screen", parents=[shared], help="score labels on development pairs")
    screen.add_argument("--cross", action="append", default=[], type=_name, metavar="NAME=FOLDER", help="cross-encoder")
    run = studies.add_parser("run", parents=[shared], help="distil, evaluate on the seven tasks")
    run.add_argument("--arm", action="append", required=True, choices=ARMS, help="recipe")
    run.add_argument(
        "--pool", choices=POOLS, default="transductive", help="what to distil; mrpc, qnli, qqp: tested on that task"
    )
    run.add_argument("--pairs", type=int, help="a sample of so many of them; default: all")
    run.add_argument("--seed", action="append", type=int, help="default: 2021")
    run.add_argument("--work", type=Path, default=Path("runs/study"), help="folder of the runs (runs/study)")
    run.add_argument("--average", action="store_true", help="then the average weights of the seeds' bi-encoders")
    run.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="RUN",
        help="with --average: and of this finished run's, in --work",
    )
    run.add_argument(
        "--fork",
        type=Path,
        metavar="RUN0",
        help="take over the finished stages of RUN0: fewer cycles of the recipe, or one that had no student yet",
    )
    run.add_argument("--extra", default="", help="flags of distill for every arm, e.g. '--bi-learning-rate 1e-4'")
    studies.add_parser("write", help="docs/study.md from docs/results/study-*.json")
    arguments = parser.parse_args()
    if arguments.study == "run" and arguments.average and len({*(arguments.seed or [0]), *arguments.others}) < 2:
        parser.error("--average needs two or more different --seed, or --with")
    if arguments.study == "run" and arguments.others and not arguments.average:
        parser.error("--with names runs for --average, which is missing")
    try:
        if arguments.study == "screen":
            screen_labels(dict(arguments.start), dict(arguments.cross), arguments.data)
        elif arguments.study == "run":
            seeds = arguments.seed or [2021]
            for seed in seeds:
                for arm in arguments.arm:
                    run_arm(arm, seed, arguments)
            for arm in arguments.arm if arguments.average else ():
                average_seeds(arm, seeds, arguments)
        else:
            write_page()
    except TransencError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def screen_labels(starts: Mapping[str, str], crosses: Mapping[str, str], data: str | None) -> None:
    """Spearman x 100 of every merge in SCREENS with the gold scores of the development pairs; nothing is trained."""
    dev = {f"{task} {split}": load_benchmark(task, split=split, data=data) for task, split in DEV}
    columns: dict[str, dict[str, np.ndarray]] = {name: {"overlap": score_overlap(rows)} for name, rows in dev.items()}
    dtype = resolve_precision("auto")
    for i, folder in enumerate(starts.values()):
        model = load_bi_encoder(folder, dtype=dtype)
        for name, rows in dev.items():
            columns[name] |= {
                f"bi-{i}": score_pairs(model, rows),
                f"plain-{i}": score_simplified(model, rows),
                f"align-{i}": score_alignments(model, rows),
            }
    for i, folder in enumerate(crosses.values()):
        model = load_encoder(folder, dtype=dtype)
        for name, rows in dev.items():
            columns[name][f"cross-{i}"] = score_pairs(model, rows)
    found = {}
    for title, settings in SCREENS.items():
        if not crosses and settings.get("keep_label", 1.0) != 1.0:
            continue
        figures = {}
        for name, rows in dev.items():
            kept = {column: values for column, values in columns[name].items() if _counts(column, settings)}
            label, _ = merge_labels(
                kept, merge_config(DistillConfig(), {"keep_label": 1.0, "simplified": 0.0, **settings})
            )
            figures[name] = round(100 * correlation(label, np.array(rows["score"]))["spearman"], 2)
        found[title] = {**figures, "mean": round(float(np.mean(list(figures.values()))), 2)}
        print(f"{title}: {found[title]}", file=sys.stderr)
    name = "-".join([*starts, *(["cross"] if crosses else [])])
    described = {
        "starts": list(starts),
        "cross": bool(crosses),
        "rows": {name: len(rows) for name, rows in dev.items()},
    }
    write_json(DOCS / "results" / f"study-screen-{name}.json", {**described, "labels": found})


def _counts(column: str, settings: Mapping[str, Any]) -> bool:
    """Whether a column has a part in the label of these settings."""
    view = column.partition("-")[0]
    setting = {"plain": "simplified", "align": "alignment", "overlap": "overlap"}.get(view)
    if view == "cross":
        return settings.get("keep_label", 1.0) != 1.0
    return setting is None or bool(settings.get(setting))


def run_arm(arm: str, seed: int, arguments: argparse.Namespace) -> None:
    """Distil (or resume) one recipe from the given starts, evaluate what it made, store the result.

    What was learned from the pairs of one task (`sts`, `sickr`) is tested on all seven: domain transfer.
    """
    starts, data, tests = dict(arguments.start), arguments.data, name_tests(arguments.pool)
    run = place_run(arm, f"seed{seed}", arguments)
    flags = [
        "--pairs",
        f"suite:{POOLS[arguments.pool]}",
        *ARMS[arm],
        *shlex.split(arguments.extra),
        "--seed",
        str(seed),
    ]
    flags += [] if arguments.pairs is None else ["--max-pairs", str(arguments.pairs)]
    models = [word for folder in starts.values() for word in ("--model", folder)]
    told = ["distill", *(word for name in starts for word in ("--model", f"${name.upper()}")), *flags]
    print(f"$ transenc {shlex.join(told)}", file=sys.stderr, flush=True)
    given = [] if data is None else ["--data", data]
    given += [] if arguments.fork is None else ["--fork", str(arguments.fork)]
    if code := transenc(["distill", *models, *flags, *given, "--output", str(run)]):  # a finished run is left alone
        raise SystemExit(code)
    best, described = read_json(run / "best.json"), read_json(run / "run.json")
    if arguments.fork is not None:
        check_fork(arguments.fork, described["config"], arm)
    last = best["history"][-1]
    shown = [model["path"] for entry in best["history"] for model in (*entry["bi"], *entry["cross"])]
    shown = [path for path in shown if "/model-" in path]
    pairs = {path: score_once(run, path, data, tests) for path in shown}
    differences = {
        path: compare(scores, pairs[f"{START}/{path.rpartition('/')[2]}"], tasks=tests, data=data)["average"]
        for path, scores in pairs.items()
        if not path.startswith(START)
    }
    result = {
        "arm": arm, "starts": list(starts), "pool": arguments.pool, "seed": seed,
        "command": f"transenc {shlex.join(told)}", "pairs": described["pairs"]["rows"],
        "config": described["config"],
        "machine": {**described["machine"], "cpu": cpu_name(), "torch": torch.__version__},
        "seconds": sum(stage_seconds(run, described).values()), "flops": count_flops(run, described),
        "best": best["best"], "agreement": last["agreement"],
        "scores": {path: measure(found, data) for path, found in pairs.items()},
        "to_start": differences, "to_reference": compare_with_reference(run, arm, best, pairs, data),
        "labels": {} if len(starts) > 1 or tests != STS_TASKS else score_labels(run, len(best["history"]) - 1, data),
    }  # fmt: skip
    write_json(DOCS / "results" / f"study-{run.name}.json", result)


def check_fork(fork: Path, config: Mapping[str, Any], arm: str) -> None:
    """Refuse a run that another recipe began: what RUN0 has not done, more cycles or its student, may differ."""
    former = to_dict(merge_config(DistillConfig(), read_json(fork / "run.json")["config"], where=str(fork)))
    has_student = any(stage.name.endswith("bi-train") for stage in (fork / "stages").iterdir())
    free = {"cycles"} if has_student else {"cycles", "bi"}
    if differing := [key for key, value in config.items() if key not in free and former[key] != value]:
        raise InputError(f"{fork}: not the recipe {arm}: {', '.join(differing)}; leave out --fork")


def measure(scores: Mapping[str, np.ndarray], data: str | None) -> dict[str, Any]:
    """Task -> Spearman x 100, or ROC AUC x 100, and their "average"."""
    tasks = tuple(scores)
    if tasks == STS_TASKS:
        return evaluate_sts(scores, data=data)
    found = evaluate_pairs(scores, tasks=tasks, data=data)
    return {**{task: found[task]["auc"] for task in tasks}, "average": found["average"]}


def average_seeds(arm: str, seeds: Sequence[int], arguments: argparse.Namespace) -> None:
    """Average the weights of the last cycle's bi-encoders over runs, and evaluate the result."""
    tests = name_tests(arguments.pool)
    runs = [place_run(arm, f"seed{seed}", arguments) for seed in seeds]
    runs += [arguments.work / name for name in arguments.others]
    students = [read_json(run / "best.json")["history"][-1]["bi"] for run in runs]
    others = [read_json(DOCS / "results" / f"study-{name}.json") for name in arguments.others]
    out = place_run(arm, "-".join(["average", *map(str, seeds), *([f"and{len(others)}"] if others else [])]), arguments)
    scores, differences = {}, {}
    for i in range(len(arguments.start)):
        # with --student there is one alone; with a dev set the last weights are listed too
        folders = [run / m["path"] for run, found in zip(runs, students, strict=True)
                   for m in found if m["backbone"] == i and "/model-" in m["path"]]  # fmt: skip
        if not folders:
            continue
        save_model(average_weights(folders), out / f"model-{i}")
        found = score_once(out, f"model-{i}", arguments.data, tests)
        start = score_once(runs[0], f"{START}/model-{i}", arguments.data, tests)
        scores[f"model-{i}"] = measure(found, arguments.data)
        differences[f"model-{i}"] = compare(found, start, tasks=tests, data=arguments.data)["average"]
    first = read_json(DOCS / "results" / f"study-{runs[0].name}.json")
    result = {
        **{name: first[name] for name in ("arm", "starts", "pool", "pairs", "machine")}, "seeds": list(seeds),
        "with": [{key: other[key] for key in ("arm", "pool", "seed")} for other in others],
        "command": f"transenc average {' '.join(f'--model $RUN{i}' for i in range(1, 1 + len(runs)))} --output FOLDER",
        "scores": scores, "to_start": differences,
    }  # fmt: skip
    write_json(DOCS / "results" / f"study-{out.name}.json", result)


def place_run(arm: str, name: str, arguments: argparse.Namespace) -> Path:
    """The folder of one run among the others."""
    size = "" if arguments.pairs is None else f"-{arguments.pairs}"
    return arguments.work / f"{'-'.join(dict(arguments.start))}-{arguments.pool}{size}-{arm}-{name}"


def compare_with_reference(
    run: Path, arm: str, best: Mapping[str, Any], pairs: Mapping[str, Mapping[str, np.ndarray]], data: str | None
) -> dict[str, Any] | None:
    """The last cycle's bi-encoders minus the reference preset's, where that arm has been run on the same pairs."""
    other = run.with_name(run.name.replace(f"-{arm}-seed", "-reference-seed"))
    if arm == "reference" or not (other / "best.json").exists():
        return None
    last = {model["backbone"]: model["path"] for model in read_json(other / "best.json")["history"][-1]["bi"]}
    differences = {}
    for model in best["history"][-1]["bi"]:
        if "/model-" in model["path"] and model["backbone"] in last:
            mine = pairs[model["path"]]
            tests = tuple(mine)
            others = score_once(other, last[model["backbone"]], data, tests)
            differences[model["path"]] = compare(mine, others, tasks=tests, data=data)["average"]
    return differences


def count_flops(run: Path, described: Mapping[str, Any]) -> float:
    """Floating-point operations of a run, about: 6 a weight and token of training, 2 of labelling; no embeddings."""
    weights = []
    for i in range(len(described["backbones"])):
        model = load_bi_encoder(str(run / START / f"model-{i}"))
        tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
        weights.append(sum(p.numel() for p in model.parameters()) - tables)
    stages = describe_stages(run, dict(described), read_label_stages(run))
    return float(np.mean(weights)) * sum(
        (6 if stage["stage"].endswith("train") else 2) * (stage["tokens"] or 0) for stage in stages
    )


def _name(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, found {text!r}")
    return name, folder


if __name__ == "__main__":
    sys.exit(main())
