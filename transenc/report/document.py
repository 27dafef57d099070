"""The report of one run as a document, made of facts."""

from __future__ import annotations

from typing import Any

from transenc.config import CRITERIA
from transenc.report.blocks import (
    Cell,
    Document,
    Figure,
    Figures,
    Section,
    Table,
    drop_empty,
    duration,
    number,
    show_value,
    span,
)
from transenc.report.facts import Facts
from transenc.report.figures import draw_bins, draw_histogram, draw_loss, draw_scores


def name_model(model: dict[str, Any], backbones: int = 1) -> str:
    """A model's name for people.

    Example:
        >>> name_model({"cycle": 1, "form": "bi", "backbone": 0, "last": False})
        'cycle 1 bi'
    """
    name = f"cycle {model['cycle']} {model['form']}" if model["cycle"] else "start"
    return name + (f" {model['backbone']}" if backbones > 1 else "") + (", last" if model.get("last") else "")


def build_document(facts: Facts) -> Document:
    """The report of one run.

    Raises:
        InputError: matplotlib is not installed.

    Example:
        >>> build_document(read_facts("runs/mine")).title  # doctest: +SKIP
        'mine'
    """
    sections = [_scores(facts), _labels(facts), _calibration(facts), _moved(facts), _losses(facts), _stages(facts),
                _overlap(facts), _settings(facts), _origin(facts)]  # fmt: skip
    return Document(
        facts["run"], facts["verdict"]["sentence"], facts["verdict"]["outcome"], [s for s in sections if s.blocks]
    )


def _scores(facts: Facts) -> Section:
    models, k = facts["models"], len(facts["data"]["backbones"])
    named = [{**model, "name": name_model(model, k)} for model in models]
    blocks: list[str | Table | Figures] = []
    if any(model["score"] is not None for model in models):
        svg = draw_scores(named, "Dev Spearman of every model with its interval")
        note = "Dev Spearman with its 95 % bootstrap interval. Filled: chosen. Blue: bi-encoder, rust: cross-encoder."
        blocks.append(Figures(note, [Figure("", svg)]))
    agreed = {entry["cycle"]: entry["agreement"] for entry in facts["cycles"]}
    rows = [
        [
            Cell(model["name"], strong=model["chosen"]),
            number(model["score"], strong=model["chosen"]),
            span(model["low"], model["high"]),
            number(model["change"]["difference"], sign=True),
            span(model["change"]["low"], model["change"]["high"], sign=True),
            number(agreed[model["cycle"]]),
            Cell("chosen" if model["chosen"] else model["reason"] or ""),
        ]
        for model in named
    ]
    columns = ("model", "dev", "95 %", "to the start", "95 %", "agreement", "")
    caption = (
        "Both forms per cycle beside the start: dev Spearman x 100 and its difference to the backbone's own start, by "
        "paired bootstrap of the dev pairs. Agreement: Spearman x 100 of both forms' labels on the training pairs; it "
        "rises by construction. `last`: the last checkpoint beside one that the dev set chose."
    )
    blocks.append(drop_empty(Table(caption, columns, rows)))
    if judged := [model for model in named if model["criteria"]]:
        blocks.append(_criteria(judged))
    return Section("Did it help", blocks)


def _criteria(models: list[dict[str, Any]]) -> Table:
    rows = [
        [
            Cell(model["name"], strong=model["chosen"]),
            *(
                cell
                for found in (model["criteria"][name] or {} for name in CRITERIA)
                for cell in (number(found.get("trained"), digits=3), number(found.get("start"), digits=3))
            ),
        ]
        for model in models
    ]
    caption = (
        "What a choice without labels can go by, on a sample of the pairs (see docs/choice.md): each trained "
        "bi-encoder and, beside it, its own start. Higher is better, but a figure may rise for other reasons."
    )
    columns = ("model", *(text for name in CRITERIA for text in (name, "start")))
    return drop_empty(Table(caption, columns, rows))


def _labels(facts: Facts) -> Section:
    merged = [entry for entry in facts["labels"] if entry["column"] == "score"]
    if not merged:
        return Section("Labels", [])
    highest = max(max(entry["histogram"]) for entry in merged)
    figures = [
        Figure(entry["stage"], draw_histogram(entry["histogram"], f"Labels of {entry['stage']}",
                                              form=_form(entry["stage"]), highest=highest))
        for entry in merged
    ]  # fmt: skip
    points = ("mean", "deviation", "min", "p5", "median", "p95", "max")
    rows = [
        [Cell(entry["stage"]), Cell(entry["column"]), *(number(entry[name], digits=3) for name in points)]
        for entry in facts["labels"]
    ]
    table = Table("Labels by stage and column; `score` is the merged label that the student learns.",
                  ("stage", "column", "mean", "deviation", "min", "5 %", "median", "95 %", "max"), rows)  # fmt: skip
    agreement = [
        [Cell(entry["stage"]), Cell(f"{entry['first']} and {entry['second']}"), number(entry["spearman"])]
        for entry in facts["agreement"]
    ]
    blocks: list[str | Table | Figures] = [f"Warning: {finding['text']}" for finding in facts["warnings"]]
    blocks += [Figures("How many pairs have which label, on one scale for all stages.", figures), table]
    if agreement:
        columns = ("stage", "teachers", "Spearman")
        blocks.append(Table("Agreement of every two teachers of a stage, Spearman x 100.", columns, agreement))
    if facts["stability"] is not None:
        blocks.append(f"The last labels follow the first ones to a Spearman of {facts['stability']:.2f}.")
    return Section("Labels", blocks)


def _calibration(facts: Facts) -> Section:
    k = len(facts["data"]["backbones"])
    dev = [
        {**curve, "name": f"{name_model(curve, k)}", "faint": not curve["cycle"]}
        for curve in facts["calibration"]["dev"]
    ]
    figures, rows = [], []
    if dev:
        svg = draw_bins(
            dev, "Gold score over the models' score on the dev pairs", x="score of the model", y="gold score"
        )
        figures.append(Figure("Score against gold on the dev pairs", svg))
        for curve in dev:
            rows += [_bin_row(curve["name"], "gold", item) for item in curve["bins"]]
    for curve in facts["calibration"]["forms"]:
        shown = [{**curve, "form": "cross", "name": ""}]
        title = f"{curve['stage']}: cross-encoder against bi-encoder"
        svg = draw_bins(shown, title, x="label of the bi-encoders", y="of the cross-encoders", diagonal=True)
        figures.append(Figure(title, svg))
        rows += [_bin_row(curve["stage"], "cross-encoders", item) for item in curve["bins"]]
    if not figures:
        return Section("Calibration", [])
    caption = "Means in ten groups of equal size. The dotted line is equality."
    table = Table("The same in numbers", ("curve", "against", "pairs", "mean score", "mean there"), rows, folded=True)
    return Section("Calibration", [Figures(caption, figures), table])


def _bin_row(name: str, against: str, item: dict[str, Any]) -> list[Cell]:
    return [Cell(name), Cell(against), number(item["pairs"]), number(item["x"], digits=3), number(item["y"], digits=3)]


def _moved(facts: Facts) -> Section:
    rows = [
        [Cell(item["sentence1"], "foreign"), Cell(item["sentence2"], "foreign"), number(item["first"], digits=3),
         number(item["last"], digits=3), number(item["moved"], digits=1, sign=True)]
        for item in facts["moved"]
    ]  # fmt: skip
    caption = (
        "From the first label to the last. Moved: the change of the pair's percentile among all; + is more similar."
    )
    columns = ("sentence 1", "sentence 2", "first", "last", "moved")
    return Section("Pairs that moved most", [Table(caption, columns, rows)] if rows else [])


def _losses(facts: Facts) -> Section:
    logs = facts["losses"]
    if not logs:
        return Section("Training", [])
    named = [(f"{log['stage']}, model {log['backbone']}", log) for log in logs]
    figures = [Figure(name, draw_loss(log, f"Loss of {name}", form=_form(log["stage"]))) for name, log in named]
    rows = [
        [Cell(name), number(log["steps"]), number(log["first"], digits=4), number(log["last"], digits=4)]
        for name, log in named
    ]
    table = Table(
        "Mean loss of the first and the last twentieth of the steps.", ("training", "steps", "first", "last"), rows
    )
    return Section(
        "Training", [Figures("Loss over the steps. The losses of different forms do not compare.", figures), table]
    )


def _stages(facts: Facts) -> Section:
    rows = [
        [Cell(item["stage"]), duration(item["seconds"]), number(item["tokens"]), number(item["steps"]),
         Cell("taken over from another run" if item["taken_over"] else "")]
        for item in facts["stages"]
    ]  # fmt: skip
    name = "all but those taken over" if any(item["taken_over"] for item in facts["stages"]) else "all"
    rows.append([Cell(name, strong=True), duration(facts["seconds"]), number(facts["tokens"]), Cell(""), Cell("")])
    caption = (
        "Time (h:mm:ss): from the start of the process that finished the stage. Tokens: read from the pairs by the "
        "start's tokenizer, special ones too, padding and dev pairs not, over all orders, epochs and models. "
        "The sum is unknown (-) where one of its stages is; start and evaluate read no pairs."
    )
    return Section("Time and tokens", [drop_empty(Table(caption, ("stage", "time", "tokens", "steps", ""), rows))])


def _overlap(facts: Facts) -> Section:
    rows = [
        [Cell(item["set"]), number(item["rows"]), number(item["sentences"]), number(item["pairs"])]
        for item in facts["overlap"]
    ]
    caption = (
        "Different sentences and pairs (in either order) that the training pairs, without labels, share with a scored "
        "set. Sentences are compared stripped and case-folded."
    )
    return Section(
        "Overlap", [Table(caption, ("set", "its pairs", "shared sentences", "shared pairs"), rows)] if rows else []
    )


def _settings(facts: Facts) -> Section:
    config = facts["settings"]
    general = [(name, value) for name, value in config.items() if not isinstance(value, dict)]
    groups = {name: value for name, value in config.items() if isinstance(value, dict)}
    names = dict.fromkeys(name for group in groups.values() for name in group)
    rows = [[Cell(name), *(show_value(group[name]) if name in group else Cell("") for group in groups.values())]
            for name in names]  # fmt: skip
    return Section(
        "Settings",
        [
            Table("Of the run.", ("setting", "value"), [[Cell(name), show_value(value)] for name, value in general]),
            Table("Of its stages.", ("setting", *groups), rows),
        ],
    )


def _origin(facts: Facts) -> Section:
    data = facts["data"]
    rows = [[Cell(name), show_value(value)] for name, value in facts["inputs"].items()]
    rows += [
        [Cell(f"{name} {key}"), show_value(value)]
        for name in ("pairs", "dev")
        for key, value in (data[name] or {}).items()
    ]
    rows += [
        [Cell(f"{name} {key}"), show_value(value)]
        for name, item in data["backbones"].items()
        for key, value in item.items()
    ]
    made = [[Cell(name), show_value(value)] for name, value in [*facts["machine"].items(), *facts["versions"].items()]]
    return Section(
        "Where it comes from",
        [
            Table("Inputs and sha256 digests.", ("what", "value"), rows),
            Table("Machine and versions", ("what", "value"), made, folded=True),
        ],
    )


def _form(stage: str) -> str:
    return "cross" if "-cross-" in stage else "bi"
