"""Which criterion without labels chooses a good model: candidates, their true figures, and every rule's outcome.

    python scripts/choice_study.py run --start wordpiece=ENCODER --start minilm=MINILM --run minilm:full=runs/full \
        --work runs/choice
    python scripts/choice_study.py write     # docs/choice.md from docs/results/choice.json

A *run* is what `distill` faces at its end: a start and the bi-encoders of its cycles, of which it has to take one. The
runs of `PLANS` whose start is given are made here; `--run START:NAME=FOLDER` adds finished runs of `distill`. The
benchmarks come from $TRANSENC_DATA (or --data). Every candidate is one cell, computed once and kept under --work: the
same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choice_results import RESULTS, write_page
from datasets import Dataset
from machine import cpu_name

from transenc.benchmarks import STS_TASKS, load_benchmark, load_pool
from transenc.config import Backbone, BiTrainingSettings, CrossTrainingSettings, DistillConfig, to_dict
from transenc.criteria import (
    Judges,
    Views,
    compare_ranks,
    judge_encoder,
    look_at,
    order_symmetry,
    sample_rows,
    score_teachers,
)
from transenc.devices import resolve_precision
from transenc.durable import publish_directory, read_json, write_file, write_json
from transenc.encoders import load_bi_encoder, load_encoder, model_digest
from transenc.errors import InputError, Interrupted, TransencError
from transenc.evaluation import evaluate_sts, score_tasks
from transenc.labeling import make_labels, read_rows
from transenc.locks import lock
from transenc.metrics import correlation
from transenc.model_cards import save_model
from transenc.pairs import read_pairs
from transenc.scoring import score_pairs
from transenc.training import TrainingContext, train_bi_encoder
from transenc.views import mean_rank, score_overlap, score_simplified

SAMPLE = 500  # pairs that the criteria look at, half as many as in a run of `distill`
SYMMETRY = 200  # pairs that a cross-encoder reads in both orders
SEED = 2021
DEV = "dev"
TEACHERS = ("cosine", "alignment", "overlap")
CHANGES = ("punctuation", "words", "dropout")
UNSEEN = ("wordpiece", "bpe")  # starts that are judged on other pairs, too


@dataclass(frozen=True)
class Plan:
    """One run to make: from which start, how, on how many pairs of which pool, at which learning rate."""

    start: str
    recipe: str
    pairs: int
    rate: float
    seed: int = SEED
    cycles: int = 1
    pool: str = "sts_sickr"

    @property
    def name(self) -> str:
        """Start and recipe, and the seed where it is another one."""
        return f"{self.start}: {self.recipe}" + (f", seed {self.seed}" if self.seed != SEED else "")


PLANS = (
    Plan("wordpiece", "mixed", 6000, 1e-4),
    Plan("wordpiece", "default", 1500, 1e-4, cycles=2),
    Plan("bpe", "mixed", 3000, 1e-4),
    Plan("wordpiece", "random", 1000, 1e-4),
    Plan("wordpiece", "overlap", 2000, 1e-4),
    Plan("wordpiece-simcse", "mixed", 3000, 1e-4),
    Plan("wordpiece", "hot", 1000, 1e-3),
    Plan("wordpiece", "few", 300, 1e-4, cycles=2),
    Plan("wordpiece-mirror", "default", 1000, 1e-4),
    Plan("wordpiece", "mixed", 3000, 1e-4, seed=2022, pool="sts_sickr-inductive"),
    Plan("bpe", "default", 1000, 1e-4),
    Plan("minilm", "mixed", 1500, 3e-5),
    Plan("wordpiece", "reference", 1000, 5e-5),
    Plan("minilm", "overlap", 1000, 3e-5),
)
"""In order of importance."""

RECIPES = {
    "default": "the preset `default` of 0.1: labels the mean of bi- and cross-encoder by quantiles, CoSENT",
    "reference": "the preset `reference` without a dev set: cross-encoder's labels, MSE, 10 epochs",
    "hot": "`default` with ten times the learning rate",
    "few": "`default` on a handful of pairs",
    "mixed": "no cross-encoder: labels the mean rank of the cosine and the overlap of words by IDF, CoSENT",
    "overlap": "labels the overlap of words by IDF alone, CoSENT",
    "random": "labels drawn at random, CoSENT",
}


# ---- making the runs


def make_run(plan: Plan, start: Path, folder: Path, data: str | None) -> dict[str, Any]:
    """Train the bi-encoders of a plan; paths of the cycles' models, and of their cross-encoders where it has them."""
    pairs = read_pairs(load_pool(plan.pool, data=data), max_pairs=plan.pairs, seed=plan.seed)
    if plan.recipe in ("default", "reference", "hot", "few"):
        from transenc.distillation import distill

        config = configure(plan)
        distill([Backbone(str(start))], pairs, output_dir=folder / "run", config=config)
        return {**dataclasses.asdict(plan), "config": to_dict(config), **list_models(folder / "run")}
    settings = BiTrainingSettings(epochs=2, learning_rate=plan.rate, max_length=32)
    models, teacher = [], start
    for cycle in range(1, plan.cycles + 1):
        target = folder / f"cycle-{cycle}"
        if not target.exists():
            labels = label(plan, load(teacher), pairs)
            model = load_bi_encoder(start, device="cpu")
            context = TrainingContext(work=folder / f"work-{cycle}", seed=plan.seed + cycle, precision=precision())
            train_bi_encoder(model, labels, settings=settings, context=context)
            with publish_directory(target) as temporary:
                save_model(model, temporary / "model-0")
        teacher = target / "model-0"
        models.append(str(teacher))
    pairs.to_parquet(str(folder / "pairs.parquet"))
    about = {**dataclasses.asdict(plan), "config": dataclasses.asdict(settings)}
    return {**about, "bi": models, "cross": [], "pairs": str(folder / "pairs.parquet")}


def configure(plan: Plan) -> DistillConfig:
    """The settings of a plan that runs as `distill` does; what the label is made of is said here, not by a default."""
    if plan.recipe == "reference":
        bi = BiTrainingSettings(epochs=10, batch_size=128, learning_rate=plan.rate, max_length=32, loss="mse")
        cross = CrossTrainingSettings(learning_rate=2e-5, warmup=0.1)
        return DistillConfig(
            cycles=plan.cycles,
            seed=plan.seed,
            keep_label=0.0,
            simplified=0.0,
            scale="raw",
            select="last",
            bi=bi,
            cross=cross,
        )
    return DistillConfig(
        cycles=plan.cycles, seed=plan.seed, keep_label=0.5, simplified=0.0, scale="quantile", select="last",
        bi=BiTrainingSettings(epochs=2, learning_rate=plan.rate, max_length=32),
        cross=CrossTrainingSettings(learning_rate=plan.rate, max_length=128, warmup=0.1, group_by_length=True),
    )  # fmt: skip


def label(plan: Plan, teacher: Any, pairs: Dataset) -> Dataset:
    """The labels of a recipe without a cross-encoder."""
    if plan.recipe == "random":
        scores = np.random.default_rng(plan.seed).random(len(pairs))
    elif plan.recipe == "overlap":
        scores = score_overlap(pairs)
    else:
        scores = mean_rank([score_pairs(teacher, pairs), score_overlap(pairs)])
    return make_labels(pairs, {}, np.asarray(scores, dtype=np.float32))


def list_models(run: Path) -> dict[str, Any]:
    """The models of a finished run of `distill`, cycle by cycle, and its pairs."""
    cycles = sorted((run / "stages").glob("c*-40-bi-train"))
    crosses = sorted((run / "stages").glob("c*-20-cross-train"))
    return {
        "bi": [str(cycle / "model-0") for cycle in cycles],
        "cross": [str(cross / "model-0") for cross in crosses[: len(cycles)]],
        "pairs": str(run / "stages" / "c01-30-cross-label" / "labels.parquet"),
    }


# ---- looking at the candidates


def measure_truth(model: Path, data: str | None) -> dict[str, Any]:
    """Spearman x 100 on the seven tasks and on STS-B dev: what no criterion may see."""
    encoder = load(model)
    found = evaluate_sts(score_tasks(encoder, data=data), data=data)
    dev = load_dev(data)
    on_dev = correlation(score_pairs(encoder, dev), list(dev["score"]))["spearman"]
    figures = {**{name: found[name] for name in (*STS_TASKS, "average")}, DEV: None if on_dev is None else 100 * on_dev}
    return {name: None if value is None else round(value, 3) for name, value in figures.items()}


def look(run: Mapping[str, Any], start: Path, folder: Path, data: str | None) -> None:
    """Keep what the start and each cycle's bi-encoder make of a sample of the run's pairs, and of unseen ones."""
    rows = read_rows(Path(run["pairs"]))
    places = sample_rows(rows, seed=SEED, size=SAMPLE)
    sample = rows.select(places)
    keep(folder / "teachers.npz", lambda: judge_by_teachers(start, sample))
    for cycle, path in enumerate([str(start), *run["bi"]]):
        keep(folder / f"views-{cycle}.npz", lambda path=path: flatten(look_at(load(path), sample, seed=SEED)))
    for cycle, path in enumerate(run["cross"], start=1):
        table = Path(run["pairs"]).parents[1] / f"c{cycle:02d}-30-cross-label" / "labels.parquet"
        labels = read_rows(table).select(places).with_format("numpy")
        forms = {
            form: {f"{form}{i}": np.asarray(labels[name][:]) for i, name in enumerate(labels.column_names)
                   if name.startswith(form)} for form in ("bi-", "cross-")
        }  # fmt: skip
        merged = {form.rstrip("-"): mean_rank(list(columns.values())) for form, columns in forms.items()}
        few = sample.select(range(min(SYMMETRY, len(sample))))
        keep(folder / f"labels-{cycle}.npz", lambda path=path, merged=merged, few=few: {
            **merged, **measure_symmetry(path, few)})  # fmt: skip
    if run.get("pool") == "sts_sickr" and run["start"] in UNSEEN:
        unseen = draw_unseen(rows, data)
        keep(folder / "unseen-teachers.npz", lambda: judge_by_teachers(start, unseen))
        for cycle, path in enumerate([str(start), *run["bi"]]):
            keep(folder / f"unseen-{cycle}.npz", lambda path=path: {"scores": score_pairs(load(path), unseen)})


def measure_symmetry(path: str, pairs: Dataset) -> dict[str, np.ndarray]:
    """The order symmetry of a cross-encoder; nothing where it is undefined, which is not 0."""
    value = order_symmetry(load(path), pairs)
    return {} if value is None else {"symmetry": np.array(value)}


def judge_by_teachers(start: Path, pairs: Dataset) -> dict[str, np.ndarray]:
    """The teachers of cycle 0, and the start's cosine without punctuation."""
    model = load(start)
    return {**score_teachers([model], pairs), "simplified": score_simplified(model, pairs)}


def flatten(views: Views) -> dict[str, np.ndarray]:
    spread = {name: np.array(value) for name, value in views.spread.items()}
    return {"scores": views.scores, **views.changed, **spread, "width": np.array(views.width)}


def restore(found: Mapping[str, np.ndarray]) -> Views:
    spread = {name: float(found[name]) for name in ("uniformity", "effective_rank")}
    return Views(found["scores"], {name: found[name] for name in CHANGES}, spread, int(found["width"]))


def draw_unseen(rows: Dataset, data: str | None) -> Dataset:
    """As many pairs of the pool that are not among the run's."""
    pool = load_pool("sts_sickr", data=data)
    seen = set(zip(rows["sentence1"], rows["sentence2"], strict=True))
    pairs = zip(pool["sentence1"], pool["sentence2"], strict=True)
    rest = pool.select([row for row, pair in enumerate(pairs) if pair not in seen])
    return rest.select(sample_rows(rest, seed=SEED, size=SAMPLE))


def keep(path: Path, compute: Callable[[], Mapping[str, np.ndarray]]) -> None:
    """The cell `path`, computed if it is not there."""
    if not path.exists():
        began = time.perf_counter()
        content = io.BytesIO()
        np.savez(content, **compute())
        write_file(path, content.getvalue())
        say(f"  {path.parent.name}/{path.stem}: {time.perf_counter() - began:.0f} s")


@cache
def load_dev(data: str | None) -> Dataset:
    return load_benchmark("stsb", split="dev", data=data)


def load(model: str | Path) -> Any:
    """The encoder in what is fast here."""
    return load_encoder(str(model), dtype=precision())


def precision() -> str:
    return resolve_precision("auto", device="cpu")


# ---- criteria and rules


def judge(run: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Of each cycle's bi-encoder every criterion, beside that of the start under the same judges."""
    pairs = read_rows(Path(run["pairs"]))
    teachers = dict(np.load(folder / "teachers.npz"))
    views = [restore(np.load(folder / f"views-{cycle}.npz")) for cycle in range(len(run["bi"]) + 1)]
    fixed = {name: teachers[name] for name in TEACHERS}
    found = []
    for cycle in range(1, len(views)):
        labels = folder / f"labels-{cycle}.npz"
        kept = dict(np.load(labels)) if labels.exists() else {}
        judges = Judges(pairs, fixed, kept.get("bi"), kept.get("cross"))
        both = []
        for number in (0, cycle):
            scores = views[number].scores
            others = [other.scores for place, other in enumerate(views) if place != number]
            both.append({
                **judge_encoder(views[number], judges),
                **{f"only {name}": compare_ranks(scores, column) for name, column in teachers.items()},
                "without cosine": compare_ranks(scores, mean_rank([teachers[n] for n in teachers if n != "cosine"])),
                "alignment and overlap": compare_ranks(scores, mean_rank([teachers["alignment"], teachers["overlap"]])),
                "crowd": compare_ranks(scores, mean_rank([*others, teachers["alignment"], teachers["overlap"]])),
                **{name: compare_ranks(scores, other) for name, other in views[number].changed.items()},
            })  # fmt: skip
        start, trained = both
        criteria = {name: pair(start[name], trained[name]) for name in start}
        gains = [trained[name] - start[name] for name in ("only alignment", "only overlap")]
        criteria["each teacher"] = pair(0.0, min(gains))
        sums = [found["agreement"] + found["views"] if None not in (found["agreement"], found["views"]) else None
                for found in both]  # fmt: skip
        criteria["agreement plus views"] = pair(*sums)
        unseen = {}
        if (folder / f"unseen-{cycle}.npz").exists():
            column = dict(np.load(folder / "unseen-teachers.npz"))
            ranks = mean_rank([column[name] for name in TEACHERS])
            scores = [np.load(folder / f"unseen-{number}.npz")["scores"] for number in (0, cycle)]
            unseen = {
                "alignment": pair(*(compare_ranks(found, column["alignment"]) for found in scores)),
                "agreement": pair(*(compare_ranks(found, ranks) for found in scores)),
            }
        symmetry = float(kept["symmetry"]) if "symmetry" in kept else None
        found.append({"cycle": cycle, "criteria": criteria, "unseen": unseen, "symmetry": symmetry})
    return found


def pair(start: float | None, trained: float | None) -> list[float] | None:
    return None if start is None or trained is None else [round(start, 5), round(trained, 5)]


def main() -> int:
    """Make and measure, or write the page."""
    parser = argparse.ArgumentParser(description="The study of docs/choice.md.")
    steps = parser.add_subparsers(dest="step", required=True)
    run = steps.add_parser("run", help="make the candidates, measure them, write the JSON")
    run.add_argument("--start", action="append", default=[], metavar="NAME=FOLDER", help="an encoder to start from")
    run.add_argument("--run", action="append", default=[], metavar="START:NAME=FOLDER", help="a finished run")
    run.add_argument("--work", required=True, type=Path, help="folder of the cells; the same one resumes")
    run.add_argument("--json", type=Path, default=RESULTS, help="where the figures go (docs/results/choice.json)")
    run.add_argument("--data", default=os.environ.get("TRANSENC_DATA"), help="benchmarks; default: $TRANSENC_DATA")
    steps.add_parser("write", help="docs/choice.md from docs/results/choice.json")
    arguments = parser.parse_args()
    if arguments.step == "write":
        write_page()
        return 0
    try:
        arguments.work.mkdir(parents=True, exist_ok=True)
        with lock(arguments.work / "lock"):
            study(arguments)
    except (TransencError, Interrupted) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def study(arguments: argparse.Namespace) -> None:
    """All runs, one after the other; the JSON is written anew after each."""
    starts = {name: Path(folder) for name, folder in (item.split("=", 1) for item in arguments.start)}
    jobs = []
    for plan in PLANS:
        if plan.start in starts:
            jobs.append(
                (
                    plan.name,
                    plan.start,
                    lambda work, plan=plan: make_run(plan, starts[plan.start], work, arguments.data),
                )
            )
    for item in arguments.run:
        name, folder = item.split("=", 1)
        jobs.append(
            (name.replace(":", ": "), name.split(":")[0], lambda work, folder=folder: list_models(Path(folder)))
        )
    if unknown := [start for _, start, _ in jobs if start not in starts]:
        raise InputError(f"{unknown[0]}: expected its encoder too, found none; give --start {unknown[0]}=FOLDER")
    runs: dict[str, Any] = {}
    for name, start, make in jobs:
        say(name)
        folder = arguments.work / re.sub("[^a-z0-9]+", "-", name)
        folder.mkdir(exist_ok=True)
        if not (folder / "made.json").exists():
            write_json(folder / "made.json", {"start": start, **make(folder)})
        run = read_json(folder / "made.json")
        look(run, starts[start], folder, arguments.data)
        truths = [find_truth(Path(path), arguments) for path in (starts[start], *run["bi"])]
        told = {key: run[key] for key in ("recipe", "rate", "seed", "pool", "config") if key in run}
        candidates = [{**judged, "truth": truth} for judged, truth in zip(judge(run, folder), truths[1:], strict=True)]
        runs[name] = {"start": start, **told, "pairs": len(read_rows(Path(run["pairs"]))), "truth": truths[0],
                      "candidates": candidates}  # fmt: skip
        result = {"command": describe(arguments), "machine": describe_machine(), "sample": SAMPLE, "seed": SEED,
                  "starts": {name: model_digest(path) for name, path in starts.items()}, "recipes": RECIPES,
                  "planned": [plan.name for plan in PLANS], "runs": runs}  # fmt: skip
        write_json(arguments.json, result)


def find_truth(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The true figures of a model, measured once."""
    path = arguments.work / f"truth-{model_digest(model)[:16]}.json"
    if not path.exists():
        write_json(path, measure_truth(model, arguments.data))
        say(f"  {path.stem}: {read_json(path)['average']}")
    return read_json(path)


def describe(arguments: argparse.Namespace) -> str:
    """The command, without this machine's folders."""
    given = [
        f"--{flag} {shlex.quote(item.split('=')[0])}=FOLDER"
        for flag in ("start", "run")
        for item in getattr(arguments, flag)
    ]
    return f"python scripts/choice_study.py run {' '.join(given)} --work DIR"


def describe_machine() -> dict[str, Any]:
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "precision": precision(), "torch": torch.__version__}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
