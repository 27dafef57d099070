"""The measured parts of docs/bootstrap.md and its figure, made from docs/results/*.json alone.

The page is written by hand but for what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_results import format_table

from transenc.benchmarks import STS_TASKS
from transenc.durable import write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
DEV = "stsb dev"
OVERLAP = "word overlap"
UNTRAINED = ("untrained, mean", "untrained, cls")
LONGER = "bootstrap longer"
WHITENED = ", whitened"  # at the end of a cell's name
POOLS = {"transductive": "sts_sickr", "inductive": "sts_sickr-inductive"}
FORMS = ("bi", "cross")
METHODS = ("simcse", "decomposed", "gradcache")
FIGURES = (*STS_TASKS, "average", DEV)


def write_page() -> None:
    """Put the measured parts into docs/bootstrap.md and draw docs/bootstrap-ladder.svg."""
    page = DOCS / "bootstrap.md"
    ladders = read_results("ladder-*.json")
    write_file(page, fill(page.read_text(encoding="utf-8"), render_blocks()))
    if ladders:
        draw(ladders)


def render_blocks() -> dict[str, str]:
    """Name -> Markdown of every measured part."""
    synthetic, batches, ladders = (
        read_results(pattern) for pattern in ("contrastive-synthetic.json", "batches-*.json", "ladder-*.json")
    )
    return {
        "synthetic": "\n\n".join(map(describe_synthetic, synthetic)) or "not run",
        "batches": "\n\n".join(map(describe_batches, batches)) or "not run",
        "objectives": describe_objectives(ladders) if ladders else "not run",
        "whitening": "\n\n".join(map(describe_whitening, ladders)) or "not run",
        "ladder": "\n\n".join(map(describe_ladder, ladders)) or "not run",
    }


def read_results(pattern: str) -> list[dict[str, Any]]:
    """The JSON files of one kind, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "results").glob(pattern))]


def fill(page: str, blocks: Mapping[str, str], *, name: str = "docs/bootstrap.md") -> str:
    """The page `name` with the text between each block's two marks replaced."""
    for block, text in blocks.items():
        begin, end = f"<!-- begin {block} -->", f"<!-- end {block} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{name}: expected {begin} and {end} once each; put them around the part")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return page


# ---- the ladder


def name_trial(what: str, rate: float) -> str:
    """The cell of one learning rate."""
    return f"{what}, rate {rate:g}"


def list_trials(settings: Mapping[str, Any]) -> list[str]:
    """The cells of which STS-B dev chooses one: every objective at every learning rate."""
    return [name_trial(objective, rate) for objective in settings["objectives"] for rate in settings["rates"]]


def choose_best(cells: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The best of these cells by STS-B dev; None when none is there, or all stopped."""
    defined = [name for name in names if cells.get(name, {}).get(DEV) is not None]
    return max(defined, key=lambda name: cells[name][DEV], default=None)


def plan_longer(cells: Mapping[str, Any], settings: Mapping[str, Any], best: str) -> dict[str, Any]:
    """How many sentences of a longer bootstrap cost as much as the distillation; CPU seconds where all have them.

    An interrupted training knows the CPU seconds of its last start alone, so then wall seconds are compared.
    """
    both = [cells[f"{next(iter(POOLS))}, training"], cells[best]]
    resumed = any(cell["resumed"] for cell in both)
    measured = all(cell.get("cpu_seconds") for cell in both) and not resumed
    distilled, bootstrapped = (cell["cpu_seconds" if measured else "seconds"] for cell in both)
    wanted = math.ceil(settings["sentence_budget"] * distilled / bootstrapped)
    cost = "CPU seconds" if measured else "wall seconds on a machine shared with other studies"
    return {"wanted": wanted, "capped": wanted > settings["longer_cap"], "cost": cost, "cost_resumed": resumed}


def list_whitened(settings: Mapping[str, Any]) -> list[str]:
    """The cells whose encoders are whitened, too, and measured again."""
    return [UNTRAINED[0], *list_trials(settings), LONGER, f"{next(iter(POOLS))}, cycle {settings['cycles']}, bi"]


def list_rungs(settings: Mapping[str, Any]) -> list[str]:
    """The cells of a ladder in the order of the page."""
    cycles = range(1, settings["cycles"] + 1)
    return [
        OVERLAP,
        *UNTRAINED,
        *list_trials(settings),
        *(f"chosen, seed {seed}" for seed in settings["seed"][1:]),
        LONGER,
        *(f"{pool}, cycle {cycle}, {form}" for pool in POOLS for cycle in cycles for form in FORMS),
    ]


def describe_ladder(result: Mapping[str, Any]) -> str:
    """One language model: command, table, differences with their intervals, machine."""
    cells, settings = result["cells"], result["settings"]
    chosen = choose_best(cells, list_trials(settings))
    floor = cells.get(OVERLAP, {}).get("average")
    rows = [
        [
            name_rung(name, chosen),
            *show_figures(cells.get(name), floor),
            *show_cost(cells.get(re.sub("cycle .*", "training", name)) or cells.get(name, {}), name),
        ]
        for name in list_rungs(settings)
    ]
    names = ["rung", *FIGURES[:-1], "to floor", DEV, "sentences or pairs", "steps", "seconds"]
    differences = [
        f"* {name_rung(first)} minus {name_rung(second)}: {show_interval(cells[f'{first} minus {second}'])}"
        for first, second in list_differences(settings, chosen)
        if f"{first} minus {second}" in cells
    ]
    parts = [f"### {describe_model(result)}", f"    {result['command']}", describe_ladder_settings(settings)]
    parts.append(format_table(names, rows))
    if chosen and (longer := describe_longer(cells, settings, chosen)):
        parts.append(longer)
    if differences:
        parts.append("Differences of the averages:\n\n" + "\n".join(differences))
    return "\n\n".join([*parts, describe_circumstances(result)])


def describe_ladder_settings(settings: Mapping[str, Any]) -> str:
    """What all objectives share, and what was distilled."""
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"])
    told = (
        f"One learning rate, {rates}, for all objectives, not tuned for each"
        if len(settings["rates"]) == 1
        else f"Learning rates {rates}, of which STS-B dev chooses"
    )
    pairs = "all pairs" if settings["pairs"] is None else f"{settings['pairs']:,} pairs, a random sample,"
    return (
        f"{told}; {settings['sentence_budget']:,} sentences each: equal sentences, not equal compute. Distilled on "
        f"{pairs} of each pool, words in common having weight {settings['overlap']:g} in the labels (`--overlap`)."
    )


def describe_longer(cells: Mapping[str, Any], settings: Mapping[str, Any], chosen: str) -> str:
    """What the longer bootstrap was matched by, and whether it was cut."""
    cell = cells.get(LONGER)
    if cell is None or "steps" not in cell:
        return ""
    plan = {**plan_longer(cells, settings, chosen), **{key: cell[key] for key in ("wanted", "capped") if key in cell}}
    cut = f"cut to {settings['longer_cap']:,} by --longer-cap: **less** than that cost" if plan["capped"] else "not cut"
    resumed = "; a training was resumed, so its cost is at least that" if plan["cost_resumed"] else ""
    return (
        f"*{LONGER}*: {plan['wanted']:,} sentences cost as much as the transductive distillation, by "
        f"{plan['cost']}{resumed}; {cut}."
    )


def list_differences(settings: Mapping[str, Any], chosen: str | None) -> list[tuple[str, str]]:
    """The pairs of cells whose difference has an interval."""
    pools, cycles = list(POOLS), range(1, settings["cycles"] + 1)
    students = [f"{pool}, cycle {cycle}, bi" for pool in pools for cycle in cycles]
    last = f"{pools[0]}, cycle {settings['cycles']}, bi"
    return [*((student, str(chosen)) for student in students), (LONGER, str(chosen)), (last, LONGER)]


def name_rung(name: str, chosen: str | None = None) -> str:
    """A cell's name as the reader is told it."""
    pool, *rest = name.split(", ")
    if pool in POOLS:
        return f"distilled, {pool}, {rest[0]}: {rest[1]}-encoder"
    return f"{name} **(chosen)**" if name == chosen else name


def show_figures(cell: Mapping[str, Any] | None, floor: float | None) -> list[str]:
    """The seven tasks, their average, its distance to the floor, and STS-B dev."""
    if cell is None:
        return ["not run", *[""] * (len(FIGURES))]
    if "stopped" in cell:
        return ["stopped", *[""] * (len(FIGURES))]
    *values, dev = (cell[name] for name in FIGURES)
    gain = None if None in (values[-1], floor) else values[-1] - floor
    shown = ["undefined" if value is None else f"{value:.2f}" for value in (*values, dev)]
    return [*shown[:-1], "" if gain is None else f"{gain:+.2f}", shown[-1]]


def show_average(cell: Mapping[str, Any] | None) -> str:
    """The average of the seven tasks, or why there is none."""
    return show_figures(cell, None)[len(STS_TASKS) if cell and "stopped" not in cell else 0]


def show_cost(cell: Mapping[str, Any], name: str) -> list[str]:
    """What went into a cell: sentences or pairs, steps, seconds; for a distillation on the row of its first model."""
    if "pairs" in cell:
        if not name.endswith("cycle 1, bi"):
            return [""] * 3
        steps = " + ".join(f"{cell['steps'][form]:,} {form}" for form in FORMS)
        return [f"{cell['pairs']:,} pairs", steps, show_seconds(cell)]
    if "sentences" in cell:
        return [f"{cell['sentences']:,}", f"{cell['steps']:,}", show_seconds(cell)]
    return [""] * 3


def show_seconds(cell: Mapping[str, Any]) -> str:
    """Seconds; of a training that was interrupted they are known for its last start alone."""
    if "seconds" not in cell:
        return ""
    return f"{'at least ' * cell['resumed']}{cell['seconds']:,.0f}"


def show_rate(cell: Mapping[str, Any]) -> str:
    """The learning rate of a bootstrap."""
    rate = cell.get("settings", {}).get("learning_rate")
    return "" if rate is None else f"{rate:g}"


def show_interval(cell: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    if cell["difference"] is None:
        return "undefined"
    return f"{cell['difference']:+.2f} (95 %: {cell['low']:+.2f} to {cell['high']:+.2f})"


def describe_model(result: Mapping[str, Any]) -> str:
    """The language model in a heading."""
    model = result["model"]
    size = f"{model['layers']} layers, width {model['width']}"
    return f"{result['name']}: {size}, {model['vocabulary']:,} tokens, {model['parameters'] / 1e6:.1f} M parameters"


def describe_circumstances(result: Mapping[str, Any]) -> str:
    """Sentences, seeds, machines."""
    sentences, settings = result["sentences"], result["settings"]
    machines = list(dict.fromkeys(
        f"{m['threads']} thread{'s' * (m['threads'] > 1)} of {m['cpu']}, {m['precision']} arithmetic, "
        f"torch {m['torch']}" for m in (cell["machine"] for cell in result["cells"].values())
    ))  # fmt: skip
    stopped = [f"{name} stopped: {cell['stopped']}" for name, cell in result["cells"].items() if "stopped" in cell]
    return " ".join([
        f"{sentences['different']:,} different sentences in {', '.join(sentences['files'])}, after "
        f"{sentences['left_out']:,} that are in a test or in STS-B dev had been left out; seed {settings['seed'][0]}. "
        f"Machine: {'; '.join(machines)}, shared with other jobs.", *stopped,
    ])  # fmt: skip


def describe_objectives(results: Sequence[Mapping[str, Any]]) -> str:
    """The objectives side by side: average, STS-B dev and seconds for each language model."""
    names = list(dict.fromkeys(name for result in results for name in result["settings"]["objectives"]))
    texts = ("average", DEV, "rate", "seconds")
    rows = []
    for name in ("untrained, mean", *names):
        row = [name]
        for result in results:
            trials = [name_trial(name, rate) for rate in result["settings"]["rates"]]
            tried = [trial for trial in (name, *trials) if trial in result["cells"]]
            best = choose_best(result["cells"], tried)  # none when all stopped
            cell = result["cells"].get(best or next(iter(tried), name))
            found = cell or {}
            row += [show_average(cell), show_figures(cell, None)[-1], show_rate(found), show_seconds(found)]
        rows.append(row)
    return format_table(["objective", *(f"{result['name']}: {text}" for result in results for text in texts)], rows)


def describe_whitening(result: Mapping[str, Any]) -> str:
    """The encoders of one language model before and after whitening; nothing where it was not run."""
    cells, settings = result["cells"], result["settings"]
    chosen = choose_best(cells, list_trials(settings))
    rows = []
    for name in list_whitened(settings):
        if white := cells.get(f"{name}{WHITENED}"):
            dev = [show_figures(cell, None)[-1] for cell in (cells[name], white)]
            rows.append([
                name_rung(name, chosen), show_average(cells[name]), show_average(white),
                show_interval(cells[f"{name}{WHITENED} minus {name}"]), *dev, show_seconds(white),
            ])  # fmt: skip
    names = ["encoder", "average", "whitened", "difference", DEV, f"whitened: {DEV}", "seconds"]
    return f"**{result['name']}**\n\n{format_table(names, rows) if rows else 'not run'}"


# ---- batch sizes, the seed article's experiment


def describe_batches(result: Mapping[str, Any]) -> str:
    """One language model: average and STS-B dev, steps, seconds and memory of every cell."""
    cells, settings = result["cells"], result["settings"]
    rows = []
    for seed in settings["seed"]:
        for batch in sorted(settings["batches"]):
            for method in METHODS:
                if method == "gradcache" and batch <= settings["mini_batch"]:
                    continue
                trials = [name_trial(f"{method}, batch {batch}, seed {seed}", rate) for rate in settings["rates"]]
                best = choose_best(cells, trials)
                cell = cells.get(best or trials[0])
                found = cell or {}
                rows.append([
                    str(batch), method, show_average(cell), show_figures(cell, None)[-1], show_rate(found),
                    f"{found['steps']:,}" if found else "", show_seconds(found),
                    f"{found['peak_mib']:,}" if found.get("peak_mib") else "", str(seed),
                ])  # fmt: skip
    names = ["batch", "method", "average", DEV, "rate", "steps", "seconds", "peak MiB", "seed"]
    seen = f"Each cell sees {settings['sentence_budget']:,} sentences, in passes: {settings['epochs']}."
    estimate = (
        f"`decomposed` estimates the denominator from a queue of {settings['queue']:,} embeddings"
        if settings["epochs"] == 1
        else "`decomposed` keeps an estimate for each sentence"
    )
    passing = f"`gradcache` is `simcse` with {settings['mini_batch']} sentences passing at once."
    parts = [f"### {describe_model(result)}", f"    {result['command']}", f"{seen} {estimate}; {passing}"]
    return "\n\n".join([*parts, format_table(names, rows), describe_circumstances(result)])


def describe_synthetic(result: Mapping[str, Any]) -> str:
    """The seed article's experiment."""
    from contrastive_study import describe

    machine = result["machine"]
    where = f"{machine['threads']} thread of {machine['cpu']}, torch {machine['torch']}"
    rates = result["study"]["rates"]
    edges = []
    for epochs in result["study"]["epochs"]:
        chosen = [row["rate"] for row in result["training"] if row["epochs"] == epochs]
        edges.append(f"at {epochs} epochs {chosen.count(max(rates))} largest, {chosen.count(min(rates))} smallest")
    grid = ", ".join(f"{rate:g}" for rate in rates)
    return (
        f"    {result['command']}\n\n{describe(dict(result))}\n\nLearning rates chosen out of {grid}, for "
        f"{len(chosen)} arms and batch sizes: {'; '.join(edges)}.\n\n{result['seconds']:,} seconds, {where}."
    )


# ---- the figure


def draw(results: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each language model: the average of every rung, with the floor as a line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "transenc"  # the same picture gives the same file
    from matplotlib import pyplot

    rungs = [list_rungs(result["settings"]) for result in results]
    height = 0.8 + 0.3 * max(map(len, rungs))
    figure, panels = pyplot.subplots(1, len(results), figsize=(6.5 * len(results), height), squeeze=False,
                                     sharex=True, layout="constrained")  # fmt: skip
    for axes, result, names in zip(panels[0], results, rungs, strict=True):
        cells = result["cells"]
        chosen = choose_best(cells, list_trials(result["settings"]))
        values = [cells.get(name, {}).get("average") for name in names]
        floor = values[0]
        colours = [colour_rung(name, chosen) for name in names]
        labels = [name_rung(name, chosen).replace("**", "") for name in names]
        bars = axes.barh(labels, [value or 0.0 for value in values], color=colours)
        axes.bar_label(bars, labels=[show_average(cells.get(name)) for name in names], padding=3)
        if floor is not None:
            axes.axvline(floor, color="black", linewidth=0.8, linestyle="--")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(result["name"])
        axes.set_xlabel("average of the seven STS tasks, Spearman x100")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "bootstrap-ladder.svg", metadata={"Date": None})
    pyplot.close(figure)


def colour_rung(name: str, chosen: str | None) -> str:
    """Grey: nothing learned from sentences; blue: a bootstrap; green: distilled."""
    if name.split(",")[0] in POOLS:
        return "#2a7f62"
    if name == OVERLAP or name.startswith("untrained"):
        return "#9aa3ab"
    return "#2f6f9f" if name == chosen else "#8fb3cf"
