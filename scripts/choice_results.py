"""The measured parts of docs/choice.md, made from docs/results/choice.json alone.

The page is written by hand but for what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bootstrap_results import fill
from scipy.stats import spearmanr
from search_results import format_table

from transenc.config import CRITERIA
from transenc.criteria import MARGIN, be_cautious
from transenc.durable import write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = DOCS / "results" / "choice.json"
TOLERATED = 0.2  # points that a choice may lose
SEEN = 16  # runs, the first of the results, that had been seen when the rule was made

Run = Mapping[str, Any]

START, LAST, DEV, BEST = "always the start", "always the last", "gold dev (STS-B dev)", "the best, known only from gold"
OTHERS = (
    "without cosine", "alignment and overlap", "each teacher", "agreement plus views", "crowd", "only cosine",
    "only overlap", "only simplified", "punctuation", "words", "dropout",
)  # fmt: skip
"""What was tried besides the criteria of the product."""


def write_page() -> None:
    """Put the measured parts into docs/choice.md."""
    page = DOCS / "choice.md"
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_file(page, fill(page.read_text(encoding="utf-8"), render_blocks(result), name="docs/choice.md"))


def render_blocks(result: Mapping[str, Any]) -> dict[str, str]:
    """Name -> Markdown of every measured part."""
    return {
        "candidates": describe_candidates(result["runs"]),
        "answer": describe_answer(result["runs"]),
        "rules": describe_rules(result["runs"]),
        "later": describe_later(result["runs"]),
        "correlations": describe_correlations(result["runs"]),
        "choices": describe_choices(result["runs"]),
        "unseen": describe_unseen(result["runs"]),
        "circumstances": describe_circumstances(result),
    }


# ---- rules


def list_rules(runs: Mapping[str, Run]) -> dict[str, Callable[[Run], int | None]]:
    """Name -> the cycle that the rule takes in a run, 0 for the start; None where it cannot say."""
    rules: dict[str, Callable[[Run], int | None]] = {
        START: lambda run: 0,
        LAST: lambda run: len(run["candidates"]),
        DEV: lambda run: int(np.argmax([found["dev"] for found in list_truths(run)])),
    }
    for name in (*CRITERIA, *OTHERS):
        rules[name] = lambda run, name=name: choose(run, name)
    for name in ("alignment", "agreement"):
        rules[f"{name}, margin 0"] = lambda run, name=name: choose(run, name, margin=0.0)
    rules[BEST] = lambda run: int(np.argmax([found["average"] for found in list_truths(run)]))
    return rules


def choose(run: Run, name: str, *, margin: float = MARGIN) -> int | None:
    """The candidate with the highest figure of those that exceed the start by more than `margin`, or the start."""
    found = [find_figures(candidate, name) for candidate in run["candidates"]]
    if any(figures is None for figures in found):
        return None
    cautious = name == "cautious"  # with its margin inside, and told by the gain
    gained = [(after - before if cautious else after, -cycle) for cycle, (before, after) in enumerate(found, start=1)
              if after - before > (0 if cautious else margin)]  # fmt: skip
    return -max(gained)[1] if gained else 0


def find_figures(candidate: Mapping[str, Any], name: str) -> Sequence[float] | None:
    """A criterion of the start and of the candidate."""
    criteria = candidate["criteria"]
    if name != "cautious":
        return criteria.get(name)
    parts = {part: criteria.get(part) for part in ("views", "alignment", "only cosine")}
    if None in parts.values():
        return None
    figures = {part: {"start": start, "trained": trained} for part, (start, trained) in parts.items()}
    found = be_cautious(figures, figures["only cosine"]["trained"])
    return None if found is None else (found["start"], found["trained"])


def list_truths(run: Run) -> list[Mapping[str, float]]:
    """The true figures of the start and of each cycle's bi-encoder."""
    return [run["truth"], *(candidate["truth"] for candidate in run["candidates"])]


def find_outcomes(runs: Mapping[str, Run], rule: Callable[[Run], int | None]) -> dict[str, tuple[float, float]]:
    """Run -> points that the rule's choice gains on the start, and points that the best candidate is ahead of it."""
    found = {}
    for name, run in runs.items():
        averages = [truth["average"] for truth in list_truths(run)]
        chosen = rule(run)
        if chosen is not None:
            found[name] = averages[chosen] - averages[0], max(averages) - averages[chosen]
    return found


def describe_rules(runs: Mapping[str, Run]) -> str:
    """What each rule makes of all runs; what could not judge every run has its number of runs beside it."""
    rows = []
    for name, rule in list_rules(runs).items():
        outcomes = list(find_outcomes(runs, rule).values())
        if not outcomes:
            rows.append([name, "0", *[""] * 6])
            continue
        gains, regrets = (np.array(column) for column in zip(*outcomes, strict=True))
        rows.append([
            f"**{name}**" if name == CRITERIA[0] else name, str(len(gains)),
            f"{gains.mean():+.2f}", f"{gains.min():+.2f}",
            f"{regrets.mean():.2f}", f"{regrets.max():.2f}", str(int((gains < -TOLERATED).sum())),
            str(int((gains > 0).sum())),
        ])  # fmt: skip
    names = ["rule", "runs", "mean gain", "worst gain", "mean regret", "worst regret", f"lost more than {TOLERATED}",
             "gained"]  # fmt: skip
    return format_table(names, rows)


def describe_later(runs: Mapping[str, Run]) -> str:
    """What the rule, as it was made, and the others did in the runs that came after it."""
    later = dict(list(runs.items())[SEEN:])
    return f"{describe_answer(later)}\n\n{describe_rules(later)}" if later else "no run has been made since"


def describe_answer(runs: Mapping[str, Run]) -> str:
    """Whether the default without labels beats the two rules that anyone can follow."""
    rules = list_rules(runs)
    found = {name: list(find_outcomes(runs, rules[name]).values()) for name in (CRITERIA[0], START, LAST)}
    mean, least, regret = (
        {name: function(column) for name, rows in found.items() for column in [[row[place] for row in rows]]}
        for function, place in ((np.mean, 0), (min, 0), (max, 1))
    )
    own = CRITERIA[0]
    lines = [
        f"* `{own}` against *{other}*: mean gain {mean[own]:+.2f} against {mean[other]:+.2f}, worst gain "
        f"{least[own]:+.2f} against {least[other]:+.2f}, worst regret {regret[own]:.2f} against {regret[other]:.2f}: "
        + ("better" if mean[own] > mean[other] and regret[own] < regret[other] else "**not better** in both")
        for other in (START, LAST)
    ]
    lost = sum(row[0] < -TOLERATED for row in found[own])
    lines.append(f"* It lost more than {TOLERATED} points to the start in {lost} of {len(runs)} runs.")
    return "\n".join(lines)


def describe_choices(runs: Mapping[str, Run]) -> str:
    """Run by run, what the main rules take."""
    rules = list_rules(runs)
    shown = (DEV, *CRITERIA, BEST)
    rows = []
    for name, run in runs.items():
        averages = [truth["average"] for truth in list_truths(run)]
        taken = [rules[rule](run) for rule in shown]
        rows.append([
            name, " ".join(f"{average - averages[0]:+.2f}" for average in averages[1:]),
            *("-" if cycle is None else "start" if cycle == 0 else f"cycle {cycle}" for cycle in taken),
        ])  # fmt: skip
    return format_table(["run", "true gain of its cycles", *shown], rows)


# ---- candidates and correlations


def describe_candidates(runs: Mapping[str, Run]) -> str:
    """Every candidate with its true figures and its agreement beside the start's."""
    rows = []
    for name, run in runs.items():
        for candidate in run["candidates"]:
            start, trained = candidate["criteria"]["alignment"]
            stable = candidate["criteria"]["views"]
            truth = candidate["truth"]
            symmetry = candidate["symmetry"]
            rows.append([
                f"{name}, cycle {candidate['cycle']}", f"{run['pairs']:,}", f"{run['truth']['average']:.2f}",
                f"{truth['average']:.2f}", f"{truth['average'] - run['truth']['average']:+.2f}",
                f"{truth['dev'] - run['truth']['dev']:+.2f}", f"{start:.3f}", f"{trained:.3f}",
                f"{trained - start:+.3f}", f"{stable[1] - stable[0]:+.4f}",
                f"{candidate['criteria']['only cosine'][1]:.3f}",
                "" if symmetry is None else f"{symmetry:.3f}",
            ])  # fmt: skip
    names = ["candidate", "pairs", "start", "average", "gain", "gain on STS-B dev", "alignment of the start", "its own",
             "difference", "views: difference", "nearness to the start", "order symmetry"]  # fmt: skip
    return format_table(names, rows)


def list_gains(runs: Mapping[str, Run], name: str) -> list[tuple[str, float, float]]:
    """Of every candidate that the criterion can judge: family, its gain by the criterion, its true gain."""
    return [
        (run["start"], figures[1] - figures[0], candidate["truth"]["average"] - run["truth"]["average"])
        for run in runs.values()
        for candidate in run["candidates"]
        if (figures := find_figures(candidate, name)) is not None
    ]


def describe_correlations(runs: Mapping[str, Run]) -> str:
    """Spearman of each criterion's gain on the start with the true one, over all and within each family."""
    families = sorted({run["start"] for run in runs.values()})
    counted = {family: sum(len(run["candidates"]) for run in runs.values() if run["start"] == family)
               for family in families}  # fmt: skip
    shown = [family for family in families if counted[family] >= 3]
    rows = []
    for name in (*CRITERIA, *OTHERS):
        gains = list_gains(runs, name)
        within = [correlate([row for row in gains if row[0] == family]) for family in shown]
        signs = sum((row[1] > 0) == (row[2] > 0) for row in gains)
        rows.append([name, str(len(gains)), correlate(gains), *within, f"{signs} of {len(gains)}"])
    dev = [(run["start"], candidate["truth"]["dev"] - run["truth"]["dev"],
            candidate["truth"]["average"] - run["truth"]["average"])
           for run in runs.values() for candidate in run["candidates"]]  # fmt: skip
    signs = sum((row[1] > 0) == (row[2] > 0) for row in dev)
    rows.append(
        [
            DEV,
            str(len(dev)),
            correlate(dev),
            *(correlate([row for row in dev if row[0] == family]) for family in shown),
            f"{signs} of {len(dev)}",
        ]
    )
    names = ["criterion", "candidates", "all", *(f"{family} ({counted[family]})" for family in shown), "right sign"]
    return format_table(names, rows)


def correlate(rows: Sequence[tuple[str, float, float]]) -> str:
    """Spearman of the gains, or nothing for fewer than 3."""
    if len(rows) < 3:
        return ""
    value = spearmanr([row[1] for row in rows], [row[2] for row in rows])[0]
    return f"{value:.2f}" if np.isfinite(value) else "undefined"


def describe_unseen(runs: Mapping[str, Run]) -> str:
    """The alignment on pairs that were in the training beside that on pairs that were not."""
    rows = []
    for name, run in runs.items():
        for candidate in run["candidates"]:
            if found := candidate["unseen"].get("alignment"):
                own = candidate["criteria"]["alignment"]
                gain = candidate["truth"]["average"] - run["truth"]["average"]
                rows.append([f"{name}, cycle {candidate['cycle']}", f"{gain:+.2f}", f"{own[1] - own[0]:+.3f}",
                             f"{found[1] - found[0]:+.3f}"])  # fmt: skip
    return format_table(["candidate", "true gain", "on pairs of the run", "on pairs that it never saw"], rows)


def describe_circumstances(result: Mapping[str, Any]) -> str:
    """Command, settings, machine."""
    runs, machine = result["runs"], result["machine"]
    made = [
        f"* {name}: {run['pairs']:,} pairs of {run['pool']}, learning rate {run['rate']:g}, seed {run['seed']}"
        for name, run in runs.items()
        if "recipe" in run
    ]
    recipes = [f"* {name}: {text}" for name, text in result["recipes"].items()]
    left = [name for name in result["planned"] if name not in runs]
    missing = f" Planned, but not measured: {'; '.join(left)}." if left else ""
    return "\n\n".join([
        f"    {result['command']}", "\n".join(recipes), "\n".join(made),
        f"{len(runs)} runs, {sum(len(run['candidates']) for run in runs.values())} candidates besides the starts; the "
        f"criteria look at {result['sample']:,} pairs of each run, drawn with seed {result['seed']}. Machine: "
        f"{machine['threads']} thread of {machine['cpu']}, {machine['precision']} arithmetic, torch "
        f"{machine['torch']}, shared with other jobs.{missing}",
    ])  # fmt: skip
