"""The recipes of the study, and the measured parts of docs/study.md, made from docs/results/study-*.json alone.

The page is written by hand but for what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bootstrap_results import DOCS, fill, read_results
from search_results import format_table

from transenc.benchmarks import PAIR_TASKS, STS_TASKS
from transenc.durable import write_file

POOLS: Mapping[str, str] = {
    "transductive": "sts_sickr",
    "inductive": "sts_sickr-inductive",
    **{name: name for name in ("sts", "sickr", *PAIR_TASKS)},
}
"""Suites of `distill`, by the names that the page has for them."""

ARMS: Mapping[str, tuple[str, ...]] = {
    "reference": ("--preset", "reference", "--cycles", "1"),
    "reference-cosent": ("--preset", "reference", "--cycles", "1", "--bi-loss", "cosent"),
    "half": ("--keep-label", "0.5", "--simplified", "0"),
    "agreement": ("--keep-label", "agreement", "--simplified", "0"),
    "bi-only": ("--keep-label", "1", "--simplified", "3"),
    "simplified": ("--keep-label", "0.67", "--simplified", "3"),
    "default": (),
    "no-dropout": ("--bi-dropout", "0"),
    "two-cycles": ("--cycles", "2"),
    "no-dropout-two-cycles": ("--bi-dropout", "0", "--cycles", "2"),
    "alignment": ("--alignment", "4"),
    "overlap": ("--overlap", "4"),
    "overlap-two-cycles": ("--overlap", "4", "--cycles", "2"),
    "overlap-no-dropout": ("--overlap", "4", "--bi-dropout", "0"),
    "overlap-whiten": ("--overlap", "4", "--bi-dropout", "0", "--whiten"),
    "overlap-whiten-two-cycles": ("--overlap", "4", "--bi-dropout", "0", "--whiten", "--cycles", "2"),
    "lexical": ("--simplified", "0", "--alignment", "1", "--overlap", "1"),
}
"""Flags of `distill`, by the name of the recipe."""

SCREENS: Mapping[str, dict[str, Any]] = {
    "cosine (the start)": {},
    "text without punctuation": {"simplified": 100.0},
    "cosine + 3 x without punctuation": {"simplified": 3.0},
    "cosine + token alignment": {"alignment": 1.0},
    "cosine + words in common": {"overlap": 1.0},
    "cosine + words in common + token alignment": {"overlap": 1.0, "alignment": 1.0},
    "cosine + 3 x without punctuation + 2 x words in common": {"simplified": 3.0, "overlap": 2.0},
    "cosine + 3 x without punctuation + 4 x words in common": {"simplified": 3.0, "overlap": 4.0},
    "cross-encoder alone (the reference's label)": {"keep_label": 0.0},
    "half cosine, half cross-encoder": {"keep_label": 0.5},
    "cosine and cross-encoder by agreement": {"keep_label": "agreement"},
    "cosine + 3 x without punctuation, cross-encoder by agreement": {"keep_label": "agreement", "simplified": 3.0},
    "3 x without punctuation + 2 x words in common, cross-encoder by agreement": {
        "keep_label": "agreement",
        "simplified": 3.0,
        "overlap": 2.0,
    },
}
"""Settings of the label stage, by what they average; a weight of 100 leaves next to nothing to the rest."""


def name_tests(pool: str) -> tuple[str, ...]:
    """The tasks that measure what was learned from a pool: its own for pair classification, else the seven."""
    return (pool,) if pool in PAIR_TASKS else STS_TASKS


def write_page() -> None:
    """Put the measured parts into docs/study.md."""
    page = DOCS / "study.md"
    write_file(page, fill(page.read_text(encoding="utf-8"), render_blocks(), name="docs/study.md"))


def render_blocks() -> dict[str, str]:
    """Name -> Markdown of every measured part."""
    results = read_results("study-*.json")
    screens = [result for result in results if "labels" in result and "arm" not in result]
    runs = [result for result in results if "arm" in result]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[" + ".join(run["starts"]), run["pool"], run["pairs"]].append(run)
    return {
        "screens": "\n\n".join(map(describe_screen, screens)) or "not run",
        "runs": "\n\n".join(describe_runs(*key, groups[key]) for key in sorted(groups)) or "not run",
        "commands": "\n".join(f"    {run['command']}" for run in runs) or "not run",
    }


def describe_screen(result: Mapping[str, Any]) -> str:
    """A table of labels, scored on the development pairs."""
    names = [*result["rows"], "mean"]
    rows = [[title, *(f"{figures[name]:.2f}" for name in names)] for title, figures in result["labels"].items()]
    sizes = ", ".join(f"{name}: {count:,}" for name, count in result["rows"].items())
    cross = ", and a cross-encoder distilled from it" if result["cross"] else ""
    return f"**{' + '.join(result['starts'])}{cross}** ({sizes} pairs)\n\n{format_table(['label', *names], rows)}"


def describe_runs(starts: str, pool: str, pairs: int, results: Sequence[Mapping[str, Any]]) -> str:
    """The runs from one start (or several) on one pool: the start, each recipe's models of the last cycle, all seeds.

    After the seeds of a recipe comes the mean of their figures, then what the average of their weights reaches.
    """
    tests = name_tests(pool)
    columns = tests if len(tests) == 1 else (*tests, "average")
    runs = [result for result in results if "seed" in result]
    rows: dict[str, list[str]] = {}
    alike: dict[tuple[str, str], dict[int, Mapping[str, float]]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: (list(ARMS).index(run["arm"]), run["seed"])):
        for path, scores in run["scores"].items():
            is_start, who = path.startswith("stages/c00"), name_backbone(run, path)
            model = f"cycle {int(path[8:10])} {'cross' if 'cross' in path else 'bi'}{who}"
            start = f"start{', whitened' if run['config'].get('whiten') else ''}{who}"
            name = start if is_start else f"{run['arm']}, seed {run['seed']}, {model}"
            rows[name] = [
                name,
                *(f"{scores[task]:.2f}" for task in columns),
                "" if is_start else show(run["to_start"][path]),
                show((run["to_reference"] or {}).get(path)),
                "" if is_start else f"{run['seconds'] / 60:.0f}",
                "" if is_start else f"{run['flops'] / 1e12:.0f}",
            ]
            if not is_start:
                alike[run["arm"], model][run["seed"]] = {**scores, "gain": run["to_start"][path]["difference"]}
    for (arm, model), seeds in alike.items():
        if len(seeds) > 1:
            mean = {name: fmean(scores[name] for scores in seeds.values()) for name in (*columns, "gain")}
            gains = [scores["gain"] for scores in seeds.values()]
            name = f"**{arm}, mean of {len(seeds)} seeds, {model}**"
            spread = f"{mean['gain']:+.2f} (seeds: {min(gains):+.2f} to {max(gains):+.2f})"
            rows[name] = [name, *(f"{mean[task]:.2f}" for task in columns), spread, "", "", ""]
    for result in results:
        if "seed" not in result:
            for path, scores in result["scores"].items():
                name = f"{name_average(result)}{name_backbone(result, path)}"
                figures = [f"{scores[task]:.2f}" for task in columns]
                rows[name] = [name, *figures, show(result["to_start"][path]), "", "", ""]
    starts_first = sorted(rows.values(), key=lambda row: not row[0].startswith("start"))
    names = ["model", *columns, "to start", "to reference", "min", "TFLOP"]
    unit = "" if tests == STS_TASKS else ", ROC AUC x 100"
    machine = runs[0]["machine"]
    return (
        f"**{starts}, {pool} pool, {pairs:,} pairs**{unit}\n\n{format_table(names, starts_first)}\n\n"
        f"{machine['threads']} thread(s) of {machine['cpu']}, {machine['device']}, {machine['precision']} arithmetic."
    )


def name_average(result: Mapping[str, Any]) -> str:
    """The runs whose students were averaged, by recipe; the pool of those that had another one."""
    seeds: dict[str, list[int]] = {result["arm"]: list(result["seeds"])}
    for other in result["with"]:
        elsewhere = "" if other["pool"] == result["pool"] else f" ({other['pool']})"
        seeds.setdefault(f"{other['arm']}{elsewhere}", []).append(other["seed"])
    named = [f"{arm}, seed{'s' * (len(some) > 1)} {', '.join(map(str, some))}" for arm, some in seeds.items()]
    return f"{'; '.join(named)}: weights averaged"


def name_backbone(result: Mapping[str, Any], path: str) -> str:
    """Whose model lies at `path`, where there are several."""
    return f" of {result['starts'][int(path.rpartition('-')[2])]}" if len(result["starts"]) > 1 else ""


def show(difference: Mapping[str, float] | None) -> str:
    """A difference with its interval."""
    if not difference:
        return ""
    return f"{difference['difference']:+.2f} ({difference['low']:+.2f} to {difference['high']:+.2f})"
