"""The runs of the Trans-Encoder paper as one command, and their figures beside the expected ones.

    python scripts/reproduce_paper.py --output runs/paper --dry-run     # what would run, and how much of it
    python scripts/reproduce_paper.py --output runs/paper               # again: resumes, skips what is finished
    python scripts/reproduce_paper.py --output runs/paper --write-only  # the table from the results so far

For a machine with a GPU and a network. SimCSE encoders are the bi-encoders' starts, plain language models the
cross-encoders'; the pairs are the pool `sts_sickr`, and STS-B dev chooses, as in the paper. Every run also says what
the same models score when no gold label chooses. docs/paper.md has the details.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import search_results

from transenc.benchmarks import PAIR_TASKS, STS_TASKS, is_symmetric, load_benchmark, load_pool
from transenc.cli.options import format_number, format_table, quiet_libraries
from transenc.config import PRESETS, Backbone, DistillConfig, merge_config
from transenc.durable import read_json, read_records, write_file, write_json
from transenc.errors import InputError, Interrupted, TransencError
from transenc.model_folders import check_model_folder, find_model_folder

logger = logging.getLogger("transenc.paper")

KINDS = {"self-bert": ("bert",), "self-roberta": ("roberta",), "mutual": ("bert", "roberta")}
FORMS = ("bi", "cross")
CHOICES = {"gold dev": True, "without gold": False}
PAIR_MEAN = f"mean of {', '.join(PAIR_TASKS)}"

PUBLISHED, RECALLED = "published", "recalled"
_SOURCES = (PUBLISHED, RECALLED, RECALLED, PUBLISHED, PUBLISHED)
_RUNS = (("start", "bi"), ("self", "bi"), ("self", "cross"), ("mutual", "bi"), ("mutual", "cross"))
_STS = {
    "bert-base": (76.21, 78.65, 78.32, 80.41, 79.90),
    "roberta-base": (76.10, 78.36, 78.86, 80.47, 81.15),
    "bert-large": (78.42, 79.68, 79.85, 82.65, 82.52),
    "roberta-large": (78.92, 81.40, 80.90, 82.93, 82.93),
}
EXPECTED: dict[tuple[str, str, str, str], tuple[float, str]] = {
    **{
        ("sts", run, model, form): (value, source)
        for model, values in _STS.items()
        for (run, form), value, source in zip(_RUNS, values, _SOURCES, strict=True)
    },
    **{
        (PAIR_MEAN, run, "bert-base", "bi"): (value, RECALLED)
        for run, value in (("start", 75.59), ("self", 77.70), ("mutual", 79.18))
    },
}
"""Task, run, model and form -> figure x100 and its source: `published` in the README of the reference code
(github.com/amzn/trans-encoder), or `recalled` from the paper and not read again."""


@dataclass(frozen=True)
class Start:
    """The Hub's ids of the encoder and of the plain language model below it; weights in millions."""

    bi: str
    cross: str
    millions: int


STARTS = {
    "bert-base": Start("princeton-nlp/unsup-simcse-bert-base-uncased", "google-bert/bert-base-uncased", 110),
    "roberta-base": Start("princeton-nlp/unsup-simcse-roberta-base", "FacebookAI/roberta-base", 125),
    "bert-large": Start("princeton-nlp/unsup-simcse-bert-large-uncased", "google-bert/bert-large-uncased", 335),
    "roberta-large": Start("princeton-nlp/unsup-simcse-roberta-large", "FacebookAI/roberta-large", 355),
}


@dataclass(frozen=True)
class PaperRun:
    """One run; its name says all of it."""

    task: str
    kind: str
    size: str
    preset: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.kind}-{self.size}-{self.preset}-seed{self.seed}"

    @property
    def models(self) -> list[str]:
        return [f"{family}-{self.size}" for family in KINDS[self.kind]]

    @property
    def pool(self) -> str:
        return "sts_sickr" if self.task == "sts" else self.task

    @property
    def dev(self) -> str:
        return "stsb" if self.task == "sts" else self.task

    @property
    def tests(self) -> tuple[str, ...]:
        return STS_TASKS if self.task == "sts" else (self.task,)

    @property
    def config(self) -> DistillConfig:
        """The preset; the paper runs five cycles on the binary tasks."""
        longer = self.preset == "reference" and self.task != "sts"
        return merge_config(PRESETS[self.preset], {"seed": self.seed, **({"cycles": 5} if longer else {})})


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked for and return the exit code."""
    arguments = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("transenc").setLevel(logging.INFO)
    try:
        _main(arguments)
    except (TransencError, Interrupted) as error:
        print(f"reproduce_paper: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # a run turns it into Interrupted, an evaluation does not
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Reproduce the runs of the Trans-Encoder paper.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, the results and the table")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="some of the runs")
    parser.add_argument("--tasks", nargs="+", choices=("sts", *PAIR_TASKS), default=["sts"], help="default: sts")
    parser.add_argument("--size", choices=("base", "large"), default="base", help="size of the models")
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["reference"], help="arms to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[2021], help="default: 2021, as in the paper")
    parser.add_argument("--model-root", type=Path, help="folder with local copies, looked at before the Hub")
    parser.add_argument("--data", help="folder of the benchmarks; default: $TRANSENC_DATA, then the Hub")
    parser.add_argument("--allow-cpu", action="store_true", help="run without a GPU: days instead of hours")
    parser.add_argument("--dry-run", action="store_true", help="list runs, models, pairs and sizes, and stop")
    parser.add_argument("--write-only", action="store_true", help="only write the table from the results so far")
    return parser.parse_args(argv)


def _main(arguments: argparse.Namespace) -> None:
    runs = [
        PaperRun(task, kind, arguments.size, preset, seed)
        for preset in arguments.preset
        for task in arguments.tasks
        for kind in arguments.only
        for seed in arguments.seeds
    ]
    left = [run for run in runs if not _result_file(arguments.output, run).exists()]
    if arguments.dry_run:
        print(describe_runs(runs, arguments.output, data=arguments.data, root=arguments.model_root))
        return
    if left and not arguments.write_only:
        quiet_libraries()
        models = check_machine(left, data=arguments.data, root=arguments.model_root, allow_cpu=arguments.allow_cpu)
        for run in left:
            reproduce(run, models, output=arguments.output, data=arguments.data)
    print(write_page(arguments.output))


def describe_runs(runs: Sequence[PaperRun], output: Path, *, data: str | None, root: Path | None) -> str:
    """The runs with models, pairs, training steps and the disk that they take; asks no Hub for models."""
    from transenc.training import train_steps

    rows = []
    for run in runs:
        n, config = len(_load_pairs(run.pool, data)), run.config
        assert isinstance(config.cycles, int)  # the presets have a number
        orders = 2 if is_symmetric(run.pool) else 1
        steps = config.cycles * (train_steps(orders * n, config.cross) + train_steps(n, config.bi))
        copies = 2 if config.eval_steps else 1  # the checkpoint that dev chose, and the last one
        weights = sum(STARTS[model].millions for model in run.models)
        started = (output / "runs" / run.name / "run.json").exists()
        rows.append(
            {
                "run": run.name,
                "models": ", ".join(str(_local_copy(name, root) or name) for name in _list_starts([run])),
                "pairs": n,
                "cycles": config.cycles,
                "steps": len(run.models) * steps,
                "disk": f"{0.004 * weights * (2 + 2 * copies * config.cycles):.0f} GB",
                "state": "finished" if _result_file(output, run).exists() else "begun" if started else "to do",
            }
        )
    return format_table(rows)


def check_machine(runs: Sequence[PaperRun], *, data: str | None, root: Path | None, allow_cpu: bool) -> dict[str, str]:
    """Find everything that the runs need before the first begins; Hub id -> folder or Hub id.

    Raises:
        InputError: no GPU, missing data, or a model that cannot be had.
    """
    import torch

    if not allow_cpu and not torch.cuda.is_available():
        raise InputError("no GPU here, and these runs take days without one; give --allow-cpu to run them all the same")
    for run in runs:
        _load_pairs(run.pool, data)
        _load_dev(run, data)
        for task in run.tests:
            load_benchmark(task, data=data)
    if root is not None and not root.is_dir():
        raise InputError(f"--model-root: no such folder: {root}")
    return {name: _find_model(name, root) for name in _list_starts(runs)}


def reproduce(run: PaperRun, models: dict[str, str], *, output: Path, data: str | None) -> None:
    """Distil, or resume, evaluate what either choice takes, and store the result."""
    from transenc.distillation import distill

    starts = [STARTS[model] for model in run.models]
    found = [(models[start.bi], models[start.cross]) for start in starts]
    result = distill(
        [Backbone(bi, cross=cross, pooling="cls") for bi, cross in found],
        _load_pairs(run.pool, data),
        output_dir=output / "runs" / run.name,
        config=run.config,
        dev=_load_dev(run, data),
        symmetric=is_symmetric(run.pool),
        inputs={"model": [bi for bi, _ in found], "cross_start": [cross for _, cross in found], "pooling": "cls",
                "pairs": f"suite:{run.pool}", "dev": f"suite:{run.dev}.dev"},
    )  # fmt: skip

    @lru_cache
    def evaluate(path: str) -> dict[str, Any]:
        logger.info("%s: evaluate %s", run.name, path)
        return evaluate_tests(result.run / path, run.tests, data=data)

    figures = {}
    for i, model in enumerate(run.models):
        chosen = {name: choose(result.history, i, config=run.config, gold=gold) for name, gold in CHOICES.items()}
        figures[model] = {
            "start": evaluate(result.history[0]["bi"][i]["path"]),
            **{
                form: {name: {**c[form], "figures": evaluate(c[form]["path"])} for name, c in chosen.items()}
                for form in FORMS
            },
        }
    described = read_json(result.run / "run.json")
    content = {
        **asdict(run), "pool": run.pool, "pairs": described["pairs"]["rows"], "backbones": described["backbones"],
        "config": described["config"], "machine": described["machine"], "versions": described["versions"],
        "minutes": sum(r["seconds"] for r in read_records(result.run / "journal.jsonl") if r["event"] == "stage") / 60,
        "history": list(result.history), "figures": figures,
    }  # fmt: skip
    target = _result_file(output, run)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, content)


def choose(history: Sequence[dict[str, Any]], backbone: int, *, config: DistillConfig, gold: bool) -> dict[str, Any]:
    """The cycle and path of a backbone's best model in each form: by the dev set, or the last cycle's.

    Without gold the last checkpoint of a training is taken, where the dev set chose another one.
    """
    from transenc.outcome import choose_best

    own = [{**e, **{form: [m for m in e[form] if m["backbone"] == backbone] for form in FORMS}} for e in history]
    best = choose_best(own, config if gold else replace(config, select="last"), has_dev=gold)
    chosen = {}
    for form in FORMS:
        path = best[form]["path"]
        last = path.replace("/model-", "/last-")
        kept = any(model["path"] == last for entry in own for model in entry[form])
        chosen[form] = {"cycle": best[form]["cycle"], "path": last if kept and not gold else path}
    return chosen


def evaluate_tests(folder: Path, tests: Sequence[str], *, data: str | None) -> dict[str, float | None]:
    """Task -> Spearman x100, or AUC x100 for a binary task; and their average."""
    from transenc.evaluation import evaluate_pairs, evaluate_sts

    if set(tests) <= set(PAIR_TASKS):
        found = evaluate_pairs(folder, tasks=tests, data=data, progress=True)
        return {**{task: found[task]["auc"] for task in tests}, "average": found["average"]}
    found = evaluate_sts(folder, tasks=tests, data=data, progress=True)
    return {task: found[task] for task in (*tests, "average")}


def write_page(output: Path) -> Path:
    """Write `results.md` from `results/*.json`, if that changes it."""
    results = [read_json(path) for path in sorted((output / "results").glob("*.json"))]
    if not results:
        raise InputError(f"{output}/results has no results yet; run without --write-only first")
    parts = [
        "# The paper's runs",
        "Spearman x100, mean of the seven STS tests (binary tasks: AUC x100 of the test set). *Expected*: `published` "
        "in the README of the reference code, or `recalled` from the paper and not read again. *gold dev*: the scored "
        "dev set chose cycle and checkpoint, as in the paper; *without gold*: the last cycle. Behind "
        "a figure, its difference to the expected one; several seeds: their mean, and the range in brackets.",
        _to_markdown(summarize(results)),
        *(_describe(result) for result in results),
    ]
    page, text = output / "results.md", "\n\n".join(parts) + "\n"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        write_file(page, text)
    return page


def summarize(results: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for every model and form, over the seeds."""
    rows: dict[tuple[str, ...], dict[str, list[float | None]]] = {}
    for key, values in [*_list_averages(results), *_average_tasks(results)]:
        for choice, value in values.items():
            rows.setdefault(key, {}).setdefault(choice, []).append(value)
    return [_summary_row(key, values) for key, values in rows.items()]


def _list_averages(results: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], dict[str, float | None]]]:
    """Task, preset, kind, model and form -> choice -> average over the tests, for each result."""
    for result in results:
        key = (result["task"], result["preset"], result["kind"])
        for model, found in result["figures"].items():
            yield (*key, model, "start"), dict.fromkeys(CHOICES, found["start"]["average"])
            for form in FORMS:
                yield (*key, model, form), {name: found[form][name]["figures"]["average"] for name in CHOICES}


def _average_tasks(results: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], dict[str, float | None]]]:
    """The mean over the binary tasks, for each seed that has all of them."""
    for seed in dict.fromkeys(result["seed"] for result in results):
        found = dict(_list_averages([result for result in results if result["seed"] == seed]))
        for key in found:
            tasks = [found.get((task, *key[1:])) for task in PAIR_TASKS]
            if key[0] == PAIR_TASKS[0] and None not in tasks:
                yield (PAIR_MEAN, *key[1:]), {name: _mean([t[name] for t in tasks if t]) for name in CHOICES}


def _summary_row(key: tuple[str, ...], values: dict[str, list[float | None]]) -> dict[str, str]:
    task, preset, kind, model, form = key
    run, kept = ("start", "bi") if form == "start" else (kind.partition("-")[0], form)
    expected, source = EXPECTED.get((task, run, model, kept), (None, "-"))
    row = {"task": task, "preset": preset, "run": kind, "model": model, "form": form}
    row |= {"expected": format_number(expected), "source": source}
    for choice, found in values.items():
        mean = _mean(found)
        row[choice] = format_number(mean)
        if mean is not None and expected is not None:
            row[choice] += f" ({mean - expected:+.2f})"
        if mean is not None and len(found) > 1:
            defined = [value for value in found if value is not None]
            row[choice] += f" [{min(defined):.2f} to {max(defined):.2f}]"
    return row


def _describe(result: dict[str, Any]) -> str:
    """One run: how it was made, and every test of every model that was evaluated."""
    run = PaperRun(**{name: result[name] for name in ("task", "kind", "size", "preset", "seed")})
    rows = []
    for model, found in result["figures"].items():
        rows.append({"model": model, "form": "start", "chosen by": "-", "cycle": "0", **_format(found["start"])})
        for form in FORMS:
            for name in CHOICES:
                chosen = found[form][name]
                cells = {"model": model, "form": form, "chosen by": name, "cycle": str(chosen["cycle"])}
                rows.append({**cells, **_format(chosen["figures"])})
    machine, versions = result["machine"], result["versions"]
    return (
        f"## {run.name}\n\n{_to_markdown(rows)}\n\n{result['pairs']:,} pairs, {result['config']['cycles']} cycles, "
        f"{result['minutes']:.0f} minutes on {machine['device']} in {machine['precision']}, torch {versions['torch']}, "
        f"transenc {versions['transenc']}."
    )


def _format(figures: dict[str, float | None]) -> dict[str, str]:
    return {task: format_number(value) for task, value in figures.items()}


def _to_markdown(rows: Sequence[dict[str, str]]) -> str:
    names = list(rows[0])
    return search_results.format_table(names, [[row[name] for name in names] for row in rows])


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else fmean(value for value in values if value is not None)


def _result_file(output: Path, run: PaperRun) -> Path:
    return output / "results" / f"{run.name}.json"


@lru_cache
def _load_pairs(pool: str, data: str | None) -> Any:
    return load_pool(pool, data=data)


def _load_dev(run: PaperRun, data: str | None) -> Any:
    """The gold dev set; of a binary task the label is the score, whose Spearman orders models as the AUC does."""
    dev = load_benchmark(run.dev, split="dev", data=data)
    return dev if "score" in dev.column_names else dev.rename_column("label", "score")


def _list_starts(runs: Sequence[PaperRun]) -> list[str]:
    starts = [STARTS[model] for run in runs for model in run.models]
    return list(dict.fromkeys(name for start in starts for name in (start.bi, start.cross)))


def _local_copy(name: str, root: Path | None) -> Path | None:
    places = [] if root is None else [root / name, root / name.partition("/")[2]]
    return next((place for place in places if place.is_dir()), None)


def _find_model(name: str, root: Path | None) -> str:
    """The local copy, or the id of a Hub model that is now in the cache; whole, and not in a pickle format."""
    local = _local_copy(name, root)
    folder = find_model_folder(local or name)  # asks the Hub once, with a short limit
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{name}: {folder} has no weights in the safetensors format; convert them as docs/paper.md says, and name "
            "the folder of the converted models with --model-root"
        )
    check_model_folder(folder)
    return str(local or name)


if __name__ == "__main__":
    sys.exit(main())
