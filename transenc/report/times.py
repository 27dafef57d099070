"""What each stage of a run took: seconds, texts, tokens, steps, and the loss on the way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from transenc import durable
from transenc.errors import StateError
from transenc.planning import BOOTSTRAP, START
from transenc.run import JOURNAL
from transenc.scoring import cut_texts

POINTS = 120  # of a curve
READ_NO_PAIRS = ("-00-start", "-50-evaluate")  # ends of the names of stages that read none but dev pairs
WINDOW = 512  # tokens, where a model's folder does not say its own


def describe_stages(folder: Path, identity: dict[str, Any], tables: dict[str, Dataset]) -> list[dict[str, Any]]:
    """A dict a published stage: `stage`, `seconds`, `tokens`, `steps`, `taken_over`; None where not known.

    Seconds are those of the journal: of the start of the run that finished the stage. Tokens are counted anew: those
    that a pass over the stage's pairs reads by the start's tokenizer, special ones too and padding not, over all
    orders, epochs and models; a labelling bi-encoder reads each text once.

    Args:
        folder: the run.
        identity: what its `run.json` holds.
        tables: the labels by stage.

    Example:
        >>> describe_stages(Path("run"), durable.read_json("run/run.json"), {})[0]["stage"]  # doctest: +SKIP
        'c00-00-start'
    """
    seconds = _read_seconds(folder)
    forked = (identity.get("forked_from") or {}).get("stages", {})
    stages = sorted(path.parent for path in folder.glob(f"stages/c*/{durable.MANIFEST}"))
    lengths = [_Lengths.read(folder, i, tables) for i in range(len(identity["backbones"]))]
    return [
        {
            "stage": path.name,
            "seconds": seconds.get(path.name),
            "tokens": _count_tokens(path.name, identity, lengths),
            "steps": _count_steps(path),
            "taken_over": path.name in forked and durable.directory_digest(path) == forked[path.name],
        }
        for path in stages
    ]


def sum_stages(stages: list[dict[str, Any]], column: str) -> float | int | None:
    """The seconds or tokens of a run's own stages, those taken over from another left out; None if one is not known.

    Example:
        >>> stages = [{"stage": "c01-10-bi-label", "taken_over": False, "seconds": 2.5, "tokens": None}]
        >>> sum_stages(stages, "seconds"), sum_stages(stages, "tokens")
        (2.5, None)
    """
    own = [stage for stage in stages if not stage["taken_over"]]
    if column == "tokens":
        own = [stage for stage in own if not stage["stage"].endswith(READ_NO_PAIRS)]
    values = [stage[column] for stage in own]
    return None if None in values else sum(values)


def describe_losses(folder: Path) -> list[dict[str, Any]]:
    """A dict a training: `stage`, `backbone`, `steps`, `first` and `last` loss (means of a twentieth of the steps),
    `curve`: [[step, loss], ...], `dev`: [[step, Spearman x 100], ...].
    """  # noqa: D205
    found = []
    for path in sorted(folder.glob("stages/c*/log-*.json")):
        rows = durable.read_json(path)
        steps = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
        if not steps:
            continue
        values = np.array([loss for _, loss in steps])
        share = math.ceil(len(values) / 20)
        chunks = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
        dev = [(row["step"], row["eval_dev_spearman"]) for row in rows if row.get("eval_dev_spearman") is not None]
        found.append(
            {
                "stage": path.parent.name,
                "backbone": int(path.stem.removeprefix("log-")),
                "steps": steps[-1][0],
                "first": round(float(values[:share].mean()), 4),
                "last": round(float(values[-share:].mean()), 4),
                "curve": [[steps[chunk[-1]][0], round(float(values[chunk].mean()), 5)] for chunk in chunks],
                "dev": [[step, round(100 * value, 2)] for step, value in dev],
            }
        )
    return found


class _Lengths:
    """Lengths in tokens of the run's texts and pairs, as one backbone's tokenizers see them."""

    def __init__(self, bi: Path, cross: Path, pairs: Dataset) -> None:
        first, second = list(pairs["sentence1"]), list(pairs["sentence2"])
        texts = list(dict.fromkeys([*first, *second]))
        own = _measure(bi, texts)
        other = own if cross == bi else _measure(cross, texts)
        number = {text: k for k, text in enumerate(texts)}
        rows = np.array([[number[text] for text in side] for side in (first, second)])
        self.texts = own + _special(bi, pair=False)
        self.sides = self.texts[rows]
        self.pairs = other[rows].sum(axis=0) + _special(cross, pair=True)
        self.window = _window(bi)
        self.pair_window = _window(cross)

    @classmethod
    def read(cls, folder: Path, i: int, tables: dict[str, Dataset]) -> _Lengths | None:
        stages = folder / "stages"
        bi = next((p for p in (stages / BOOTSTRAP / f"model-{i}", stages / START / f"model-{i}") if p.is_dir()), None)
        cross = stages / START / f"cross-{i}"
        if bi is None or not tables:
            return None
        cross = cross if cross.is_dir() else bi
        if not all((path / "tokenizer.json").is_file() for path in (bi, cross)):
            return None
        return cls(bi, cross, next(iter(tables.values())))


def _read_seconds(folder: Path) -> dict[str, float]:
    try:
        records = durable.read_records(folder / JOURNAL)
    except StateError:  # it is for people, and a run goes on without it
        return {}
    return {record["name"]: record["seconds"] for record in records if record.get("event") == "stage"}


def _count_steps(stage: Path) -> int | None:
    logs = [durable.read_json(path) for path in sorted(stage.glob("log-*.json"))]
    return sum(max((row["step"] for row in log), default=0) for log in logs) if logs else None


def _count_tokens(stage: str, identity: dict[str, Any], lengths: list[_Lengths | None]) -> int | None:
    known = [each for each in lengths if each is not None]
    if len(known) < len(lengths):
        return None
    config, orders = identity["config"], 2 if identity["pairs"]["symmetric"] else 1
    kind = stage[4:]
    total = 0.0
    for i, each in enumerate(known):
        if kind == "40-bi-train" and config.get("student") not in (None, i):
            continue
        if kind == "10-bi-label":
            views = 1 + bool(config.get("simplified")) + bool(config.get("alignment"))
            total += views * np.minimum(each.texts, each.window).sum()
        elif kind == "20-cross-train":
            total += orders * config["cross"]["epochs"] * np.minimum(each.pairs, config["cross"]["max_length"]).sum()
        elif kind == "30-cross-label":
            total += orders * np.minimum(each.pairs, each.pair_window).sum()
        elif kind == "40-bi-train":
            total += config["bi"]["epochs"] * np.minimum(each.sides, config["bi"]["max_length"]).sum()
        else:
            return None
    return round(total)


def _open(folder: Path) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _measure(folder: Path, texts: list[str]) -> np.ndarray:
    """Tokens of each text, special tokens not counted."""
    encoded = _open(folder).encode_batch_fast(cut_texts(texts, _window(folder)), add_special_tokens=False)
    return np.array([len(item) for item in encoded])


def _special(folder: Path, *, pair: bool) -> int:
    return _open(folder).num_special_tokens_to_add(pair)


def _window(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    limit = durable.read_json(path).get("model_max_length", WINDOW) if path.is_file() else WINDOW
    return int(limit) if limit < 10**6 else WINDOW
