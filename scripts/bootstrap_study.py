"""From a plain language model up, rung by rung, and batch sizes: what docs/bootstrap.md shows.

    python scripts/bootstrap_study.py ladder --name wordpiece --model LM --sentences a.txt.gz b.txt.gz \
        --work runs/study --json docs/results/ladder-wordpiece.json
    python scripts/bootstrap_study.py batches --name wordpiece --model LM --sentences a.txt.gz b.txt.gz \
        --work runs/study --json docs/results/batches-wordpiece.json
    python scripts/bootstrap_study.py write     # the page and its figure, from the JSON files so far

The benchmarks come from $TRANSENC_DATA (or --data). Every cell is computed once and kept under --work, the most
important ones first: the same command goes on after a kill. The JSON is written anew after every cell.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import hashlib
import json
import os
import random
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_search import read_status
from bootstrap_results import (
    DEV,
    FORMS,
    LONGER,
    METHODS,
    OVERLAP,
    POOLS,
    UNTRAINED,
    WHITENED,
    choose_best,
    list_trials,
    list_whitened,
    name_trial,
    plan_longer,
    write_page,
)
from machine import cpu_name
from reproduce_results import stage_seconds

from transenc.benchmarks import STS_TASKS, load_benchmark, load_pool
from transenc.config import OBJECTIVES, Backbone, BootstrapSettings, DistillConfig
from transenc.corpus import read_sentences
from transenc.devices import resolve_precision
from transenc.durable import read_json, write_json
from transenc.encoders import load_bi_encoder, load_encoder, model_digest
from transenc.errors import InputError, Interrupted, StateError, TransencError
from transenc.evaluation import compare, evaluate_sts, score_tasks
from transenc.locks import lock
from transenc.metrics import correlation
from transenc.model_cards import save_model
from transenc.pairs import fold_sentence, read_pairs
from transenc.scoring import score_pairs
from transenc.training import train_steps
from transenc.whitening import whiten_encoder


def main() -> int:
    """Run one study, or write the page."""
    parser = argparse.ArgumentParser(description="The studies of docs/bootstrap.md, for one language model a call.")
    studies = parser.add_subparsers(dest="study", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--name", required=True, help="what the page calls the language model")
    shared.add_argument("--model", required=True, type=Path, help="its folder")
    shared.add_argument("--sentences", required=True, nargs="+", type=Path, help="files, one sentence a line")
    shared.add_argument("--work", required=True, type=Path, help="folder of the runs; the same one resumes")
    shared.add_argument("--json", required=True, type=Path, help="where the figures go")
    shared.add_argument("--data", default=os.environ.get("TRANSENC_DATA"), help="benchmarks; default: $TRANSENC_DATA")
    shared.add_argument(
        "--rates", type=float, nargs="+", default=[2e-4], help="learning rates; STS-B dev chooses (2e-4)"
    )
    shared.add_argument("--temperature", type=float, help="of the contrastive objectives; default: their own")
    shared.add_argument("--queue", type=int, default=1024, help="decomposed, one epoch: past embeddings kept (1024)")
    shared.add_argument("--precision", default="auto", help="arithmetic (auto)")
    ladder = studies.add_parser("ladder", parents=[shared], help="floor, objectives, distillation, longer bootstrap")
    ladder.add_argument("--sentence-budget", type=int, default=16_000, help="sentences of each objective (16000)")
    ladder.add_argument("--seed", type=int, nargs="+", default=[2021, 2022], help="the rest repeat the best objective")
    ladder.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    ladder.add_argument("--cycles", type=int, default=1, help="of the distillation (1)")
    ladder.add_argument("--pairs", type=int, help="pairs of each pool, a random sample; default: all")
    ladder.add_argument("--distill-learning-rate", type=float, default=1e-4, help="of both forms (1e-4)")
    ladder.add_argument("--overlap", type=float, default=4.0, help="words in common, their weight in the labels (4)")
    ladder.add_argument("--cross-start", choices=("encoder", "lm"), default="encoder", help="weights it starts from")
    ladder.add_argument("--longer-cap", type=int, default=200_000, help="sentences of the longer bootstrap at most")
    batches = studies.add_parser("batches", parents=[shared], help="batch sizes with and without large-batch losses")
    batches.add_argument("--sentence-budget", type=int, default=8000, help="sentences seen by each cell (8000)")
    batches.add_argument("--epochs", type=int, default=1, help="in as many passes; from 2 on without the queue (1)")
    batches.add_argument("--batches", type=int, nargs="+", default=[16, 128, 32, 64], help="in order of importance")
    batches.add_argument("--mini-batch", type=int, default=16, help="sentences that GradCache passes at once (16)")
    batches.add_argument("--seed", type=int, nargs="+", default=[2021])
    studies.add_parser("write", help="docs/bootstrap.md and its figure from docs/results/*.json")
    arguments = parser.parse_args()
    if arguments.study == "write":
        write_page()
        return 0
    try:
        folder = arguments.work / f"{arguments.study}-{arguments.name}"
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / "lock"):
            study = Study(describe_study(arguments), folder, arguments.json)
            (climb if arguments.study == "ladder" else compare_batches)(study, arguments)
    except (TransencError, Interrupted) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


@dataclass
class Study:
    """The cells of one study, each computed once; what the JSON says besides them is `head`."""

    head: dict[str, Any]
    folder: Path
    json: Path
    cells: dict[str, Any] = field(default_factory=dict)

    def cell(self, name: str, settings: Mapping[str, Any], compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The cell `name`, computed by `compute` in a folder of its own if these settings have none yet."""
        described = json.dumps([self.head["model"]["digest"], name, settings], sort_keys=True)
        run = f"{re.sub('[^a-z0-9]+', '-', name)}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
        path = self.folder / f"{run}.json"
        if not path.exists():
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            (self.folder / run).mkdir(exist_ok=True)
            found = compute(self.folder / run)
            write_json(path, {"settings": settings, "run": run, "machine": describe_machine(self.head), **found})
        self.cells[name] = read_json(path)
        write_json(self.json, {**self.head, "cells": self.cells})
        return self.cells[name]

    def place(self, name: str) -> Path:
        """The folder of the cell `name`, which is there already."""
        return self.folder / self.cells[name]["run"]


# ---- the ladder


def climb(study: Study, arguments: argparse.Namespace) -> None:
    """All rungs for one language model."""
    data, model, (seed, *more) = arguments.data, arguments.model, arguments.seed
    study.cell(OVERLAP, {}, lambda folder: evaluate(overlap_scores(data), folder, data))
    for pooling in ("mean", "cls"):
        study.cell(
            f"untrained, {pooling}",
            {"pooling": pooling},
            lambda folder, pooling=pooling: evaluate(load(model, arguments, pooling=pooling), folder, data),
        )
    sentences, _ = shuffled_sentences(arguments, seed)
    first = sentences[: arguments.sentence_budget]
    for rate in arguments.rates:
        for objective in arguments.objectives:
            settings = settings_of(arguments, objective, rate)
            train(study, name_trial(objective, rate), model, first, settings, seed, arguments)
    best = choose_best(study.cells, list_trials(study.head["settings"]))
    if best is None:
        raise StateError("every objective stopped, so there is no encoder to distil; lower --rates")
    objective, rate = (study.cells[best]["settings"][name] for name in ("objective", "learning_rate"))
    start = study.place(best) / "encoder"
    for pool, source in POOLS.items():
        distil(study, pool, source, start, arguments)
        for cycle in range(1, arguments.cycles + 1):
            compare_scores(study, f"{pool}, cycle {cycle}, bi", best, data)
        if pool == next(iter(POOLS)):
            plan = plan_longer(study.cells, study.head["settings"], best)
            count = min(plan["wanted"], arguments.longer_cap)
            rest = sentences[len(first) :][:count] or first
            settings = settings_of(arguments, objective, rate, epochs=max(1.0, count / len(rest)))
            train(study, LONGER, start, rest, settings, seed, arguments, about=plan)
            compare_scores(study, LONGER, best, data)
            compare_scores(study, f"{pool}, cycle {arguments.cycles}, bi", LONGER, data)
    for name in list_whitened(study.head["settings"]):
        if name in study.cells and "stopped" not in study.cells[name]:
            whiten(study, name, first, arguments)
            compare_scores(study, f"{name}{WHITENED}", name, data)
    for other in more:
        sample = shuffled_sentences(arguments, other)[0][: arguments.sentence_budget]
        settings = settings_of(arguments, objective, rate)
        train(study, f"chosen, seed {other}", model, sample, settings, other, arguments)


def train(
    study: Study,
    name: str,
    model: Path,
    sentences: Sequence[str],
    settings: BootstrapSettings,
    seed: int,
    arguments: argparse.Namespace,
    *,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Bootstrap `model`, a language model or an encoder, and evaluate what comes out; the cell also says `about`."""
    from transenc.bootstrapping import bootstrap

    facts = {
        **dataclasses.asdict(settings),
        "start": model_digest(model),
        "seed": seed,
        "sentences": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
        "precision": arguments.precision,
    }

    def compute(folder: Path) -> dict[str, Any]:
        pooling = "mean" if model == arguments.model else None  # an encoder says itself how it pools

        def run() -> None:
            bootstrap(
                model, sentences, output_dir=folder / "encoder", pooling=pooling, settings=settings, seed=seed,
                precision=arguments.precision,
            )  # fmt: skip

        steps = train_steps(len(sentences), settings)
        cost = {"objective": settings.objective, "seed": seed, "sentences": len(sentences), "steps": steps}
        cost |= about or {}
        try:
            cost |= measure(run, folder / "cost.json")
        except StateError as error:
            if "alike" not in str(error) and "collaps" not in str(error):
                raise
            return {**cost, "stopped": str(error).replace(str(folder), name)}
        return {**cost, **evaluate(load(folder / "encoder", arguments), folder, arguments.data)}

    return study.cell(name, facts, compute)


def distil(study: Study, pool: str, source: str, start: Path, arguments: argparse.Namespace) -> None:
    """Self-distillation of one encoder on one pool, then every model it kept, evaluated."""
    from transenc.distillation import distill

    rate, seed = arguments.distill_learning_rate, arguments.seed[0]
    default = DistillConfig(overlap=arguments.overlap, select="last")  # every rung is shown, whatever would be chosen
    config = dataclasses.replace(
        default,
        cycles=arguments.cycles,
        seed=seed,
        precision=arguments.precision,
        bi=dataclasses.replace(default.bi, learning_rate=rate),
        cross=dataclasses.replace(default.cross, learning_rate=rate),
    )
    cross = str(arguments.model) if arguments.cross_start == "lm" else None
    facts = {"config": dataclasses.asdict(config), "start": model_digest(start), "pool": source,
             "pairs": arguments.pairs, "cross_start": arguments.cross_start}  # fmt: skip

    def compute(folder: Path) -> dict[str, Any]:
        pairs = read_pairs(load_pool(source, data=arguments.data), max_pairs=arguments.pairs, seed=seed)

        def run() -> Any:
            return distill([Backbone(str(start), cross=cross)], pairs, output_dir=folder / "run", config=config)

        cost = measure(run, folder / "cost.json")
        result = run()  # finished: only opened
        seconds = stage_seconds(folder / "run", read_json(folder / "run" / "run.json"))
        steps = {"bi": train_steps(len(pairs), config.bi), "cross": train_steps(2 * len(pairs), config.cross)}
        return {
            "seed": seed, "pairs": len(pairs), "steps": {form: n * arguments.cycles for form, n in steps.items()},
            "seconds": sum(s for stage, s in seconds.items() if not stage.endswith(("start", "evaluate"))),
            "stages": seconds, "resumed": cost["resumed"], "cpu_seconds": cost["cpu_seconds"],
            "agreement": {str(entry["cycle"]): entry["agreement"] for entry in result.history[1:]},
            "models": [
                {"cycle": entry["cycle"], "form": form, "path": entry[form][0]["path"]}
                for entry in result.history[1:]
                for form in FORMS
            ],
        }  # fmt: skip

    training = study.cell(f"{pool}, training", facts, compute)
    run = study.place(f"{pool}, training") / "run"
    for kept in training["models"]:
        model = run / kept["path"]
        study.cell(
            f"{pool}, cycle {kept['cycle']}, {kept['form']}",
            {"model": model_digest(model)},
            lambda folder, model=model: evaluate(load(model, arguments), folder, arguments.data),
        )


def whiten(study: Study, name: str, sentences: Sequence[str], arguments: argparse.Namespace) -> None:
    """Whiten the encoder of the cell `name` over the sentences of the trials, keep it, evaluate it."""
    model, pooling = study.place(name) / "encoder", None
    if name in UNTRAINED:
        model, pooling = arguments.model, study.cells[name]["settings"]["pooling"]
    elif name.startswith(tuple(POOLS)):
        pool, cycle, form = name.split(", ")
        run = study.place(f"{pool}, training") / "run"
        kept = study.cells[f"{pool}, training"]["models"]
        model = run / next(m["path"] for m in kept if f"cycle {m['cycle']}" == cycle and m["form"] == form)
    facts = {
        "model": model_digest(model),
        "sentences": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
    }

    def compute(folder: Path) -> dict[str, Any]:
        def run() -> None:
            encoder = load_bi_encoder(model, pooling=pooling)
            whiten_encoder(encoder, sentences)
            save_model(encoder, folder / "encoder")

        cost = measure(run, folder / "cost.json")
        found = evaluate(load(folder / "encoder", arguments), folder, arguments.data)
        return {"sentences": len(sentences), "steps": 0, **cost, **found}

    study.cell(f"{name}{WHITENED}", facts, compute)


# ---- batch sizes


def compare_batches(study: Study, arguments: argparse.Namespace) -> None:
    """Every batch size by every method, at equal numbers of sentences."""
    for seed in arguments.seed:
        count = arguments.sentence_budget // arguments.epochs
        sentences = shuffled_sentences(arguments, seed)[0][:count]
        for batch in arguments.batches:
            for method in METHODS:
                if method == "gradcache" and batch <= arguments.mini_batch:
                    continue
                for rate in arguments.rates:
                    settings = settings_of(
                        arguments,
                        "simcse" if method == "gradcache" else method,
                        rate,
                        batch_size=batch,
                        epochs=float(arguments.epochs),
                        mini_batch=arguments.mini_batch if method == "gradcache" else None,
                    )
                    name = name_trial(f"{method}, batch {batch}, seed {seed}", rate)
                    train(study, name, arguments.model, sentences, settings, seed, arguments)


# ---- what all cells share


def settings_of(arguments: argparse.Namespace, objective: str, rate: float, **changes: Any) -> BootstrapSettings:
    """Settings of a bootstrap; a sentence that is seen once has no estimate of its own, so a queue makes it."""
    if objective == "decomposed" and changes.get("epochs", 1.0) == 1.0:
        changes["queue"] = arguments.queue
    if arguments.temperature is not None:
        changes["temperature"] = arguments.temperature
    return dataclasses.replace(BootstrapSettings(), objective=objective, learning_rate=rate, **changes)


def measure(run: Callable[[], Any], target: Path) -> dict[str, Any]:
    """Wall and CPU seconds and peak memory of `run`, kept in `target`; "resumed": those of its last start alone."""
    if target.exists():
        return read_json(target)
    mark = target.with_suffix(".started")
    resumed = mark.exists()
    mark.touch()
    gc.collect()
    before = None
    with suppress(OSError, AttributeError):  # Linux with glibc
        ctypes.CDLL(None).malloc_trim(0)  # what earlier cells freed
        before = read_status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    started, worked = time.perf_counter(), time.process_time()
    run()
    cost = {"seconds": round(time.perf_counter() - started, 1), "resumed": resumed}
    cost["cpu_seconds"] = round(time.process_time() - worked, 2)
    cost["peak_mib"] = None if before is None else (read_status("VmHWM") - before) // 1024
    write_json(target, cost)
    return cost


def evaluate(encoder: Any, folder: Path, data: str | None) -> dict[str, Any]:
    """Spearman x 100 on the seven tasks and STS-B dev of an encoder, or of scores; the scores stay in `folder`."""
    started = time.perf_counter()
    dev = load_dev(data)
    scores = encoder if isinstance(encoder, Mapping) else score_tasks(encoder, data=data)
    dev_scores = encoder[DEV] if isinstance(encoder, Mapping) else score_pairs(encoder, dev)
    tests = {task: scores[task] for task in STS_TASKS}
    np.savez(folder / "scores.npz", **tests)
    found = evaluate_sts(tests, data=data)
    on_dev = correlation(dev_scores, list(dev["score"]))["spearman"]
    figures = {name: found[name] for name in (*STS_TASKS, "average")}
    figures[DEV] = None if on_dev is None else 100 * float(on_dev)
    rounded = {name: None if value is None else round(value, 3) for name, value in figures.items()}
    return {**rounded, "evaluation_seconds": round(time.perf_counter() - started, 1)}


def compare_scores(study: Study, name: str, other: str, data: str | None) -> None:
    """The difference of two cells' averages with its interval."""
    if any("average" not in study.cells[cell] for cell in (name, other)):
        return  # one of them stopped

    def compute(_: Path) -> dict[str, Any]:
        both = [dict(np.load(study.place(cell) / "scores.npz")) for cell in (name, other)]
        return {key: round(value, 3) for key, value in compare(*both, data=data)["average"].items()}

    settings = {"runs": [study.cells[cell]["run"] for cell in (name, other)]}
    study.cell(f"{name} minus {other}", settings, compute)


def overlap_scores(data: str | None) -> dict[str, np.ndarray]:
    """Jaccard overlap of the two sentences' lower-cased words."""

    def overlap(first: str, second: str) -> float:
        a, b = (set(re.findall(r"\w+", text.lower())) for text in (first, second))
        return len(a & b) / len(a | b) if a | b else 0.0

    sets = {**{task: load_benchmark(task, data=data) for task in STS_TASKS}, DEV: load_dev(data)}
    return {
        name: np.array([overlap(*pair) for pair in zip(rows["sentence1"], rows["sentence2"], strict=True)], np.float32)
        for name, rows in sets.items()
    }


@cache
def load_dev(data: str | None) -> Any:
    return load_benchmark("stsb", split="dev", data=data)


def load(model: Path, arguments: argparse.Namespace, *, pooling: str | None = None) -> Any:
    """The encoder in what is fast here."""
    return load_encoder(model, pooling=pooling, dtype=resolve_precision(arguments.precision))


@cache
def read_clean(files: tuple[Path, ...], data: str | None) -> tuple[list[str], int]:
    """The files' different sentences without those of the seven tests and STS-B dev, and how many these were."""
    sets = [*(load_benchmark(task, data=data) for task in STS_TASKS), load_dev(data)]
    seen = {fold_sentence(text) for rows in sets for text in chain(rows["sentence1"], rows["sentence2"])}
    sentences = read_sentences(list(chain.from_iterable(read_sentences(file) for file in files)))
    clean = [sentence for sentence in sentences if fold_sentence(sentence) not in seen]
    return clean, len(sentences) - len(clean)


def shuffled_sentences(arguments: argparse.Namespace, seed: int) -> tuple[list[str], int]:
    """The sentences in the seed's order, enough for the budget, and how many were left out."""
    clean, left_out = read_clean(tuple(arguments.sentences), arguments.data)
    if len(clean) < arguments.sentence_budget:
        raise InputError(f"expected {arguments.sentence_budget} sentences, found {len(clean)}; --sentence-budget")
    return random.Random(seed).sample(clean, len(clean)), left_out


def describe_study(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the JSON says besides the cells: the command without this machine's paths, the model, the settings."""
    encoder = load_bi_encoder(arguments.model, pooling="mean")
    config = encoder.transformers_model.config
    _, left_out = shuffled_sentences(arguments, arguments.seed[0])
    settings = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("study", "name", "model", "sentences", "work", "json", "data")
    }
    files = [path.name for path in arguments.sentences]
    flags = [f"--{name.replace('_', '-')} {shlex.join(map(str, value if isinstance(value, list) else [value]))}"
             for name, value in settings.items() if value is not None]  # fmt: skip
    script = f"python scripts/bootstrap_study.py {arguments.study} --name {arguments.name} --model LM"
    model = {
        "digest": model_digest(arguments.model),
        "kind": config.model_type,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
    }
    return {
        "study": arguments.study,
        "name": arguments.name,
        "command": f"{script} --sentences {shlex.join(files)} {' '.join(flags)} --work DIR --json FILE",
        "model": model,
        "settings": settings,
        "sentences": {"files": files, "different": len(read_clean(tuple(arguments.sentences), arguments.data)[0]),
                      "left_out": left_out},
    }  # fmt: skip


def describe_machine(head: Mapping[str, Any]) -> dict[str, Any]:
    precision = resolve_precision(head["settings"]["precision"])
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "precision": precision, "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
