"""The stages of a distillation: their names and, before a run, their sizes and a rough time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from transenc.config import Backbone, DistillConfig, TrainingSettings
from transenc.encoders import detect_kind, load_bi_encoder, resolve_device, resolve_precision
from transenc.errors import InputError
from transenc.outcome import MAX_AUTO_CYCLES
from transenc.scoring import score_pairs
from transenc.training import train_steps

START, BOOTSTRAP, MINE = "c00-00-start", "c00-10-bootstrap", "c00-20-mine"
_SAMPLE = 256  # pairs
# Time of training on a pair over the time of scoring it. 2 cores with bfloat16, all-MiniLM-L6-v2, the pool
# sts_sickr: 2.7 ms a pair to score, 13.9 ms to train on in batches of similar length, 22 ms in mixed ones.
_TRAINING_PASS, _TRAINING_PASS_MIXED = 5, 8


def stage_name(cycle: int, stage: str) -> str:
    """Name of a stage, in the order in which the stages run.

    Example:
        >>> stage_name(1, "10-bi-label")
        'c01-10-bi-label'
    """
    return f"c{cycle:02d}-{stage}"


def needs_bootstrap(backbones: Sequence[Backbone], sentences: Sequence[str] | None) -> bool:
    """Whether one of the backbones is a plain language model that the sentences are to make an encoder of.

    Example:
        >>> needs_bootstrap([Backbone("my/encoder")], None)
        False
    """
    return sentences is not None and any(detect_kind(backbone.bi) != "bi" for backbone in backbones)


def check_inputs(
    backbones: Sequence[Backbone],
    pairs: Dataset | None,
    sentences: Sequence[str] | None = None,
    *,
    config: DistillConfig,
    dev: Dataset | None = None,
    symmetric: bool = True,
) -> None:
    """Refuse what no run can start from.

    Raises:
        InputError: no backbone, neither or both of pairs and sentences, too few of them, a missing column, sentences
            for asymmetric pairs, or no dev set to choose by.
        TypeError: a text in place of the sentences.
    """
    if not backbones:
        raise InputError("distillation needs at least one backbone, got none")
    if (pairs is None) == (sentences is None):
        raise InputError(f"distillation needs either pairs or sentences, got {'both' if sentences else 'neither'}")
    if pairs is not None:
        _check_columns(pairs, "pairs", ("sentence1", "sentence2"))
    if dev is not None:
        _check_columns(dev, "dev set", ("sentence1", "sentence2", "score"))
    if pairs is not None and len(pairs) < 2:
        raise InputError(f"distillation needs at least 2 pairs, got {len(pairs)}")
    if sentences is not None:
        _check_sentences(sentences, symmetric=symmetric)
    if config.select == "dev" and dev is None:
        raise InputError("select 'dev' needs a dev set; give one (--dev FILE) or use --select last")


def describe_plan(
    backbones: Sequence[Backbone],
    pairs: Dataset | None = None,
    *,
    sentences: Sequence[str] | None = None,
    config: DistillConfig,
    dev: Dataset | None = None,
    symmetric: bool = True,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """The stages of a run with their sizes and a rough time, without running them.

    The time comes from scoring some of the pairs with the first backbone here and now, and from what a pass of
    training took beside a pass of scoring on a CPU (`_TRAINING_PASS`). Take it as the order of magnitude.

    From sentences, training on one counts as a pair, encoding one as half, and as many pairs are expected as mining may
    keep.

    Returns:
        One dict a stage: `stage`, `pairs` that pass through a model (a pair once in every epoch and order), `steps`
        of training, `minutes`.

    Raises:
        InputError: unusable input.

    Example:
        >>> describe_plan([Backbone("my/encoder")], pairs, config=DistillConfig())  # doctest: +SKIP
    """
    check_inputs(backbones, pairs, sentences, config=config, dev=dev, symmetric=symmetric)
    texts = pairs if pairs is not None else _pair_up(sentences or ())
    minutes_a_pair = _measure(backbones[0], texts, config, device)
    n = len(texts) if sentences is None else config.mine.count_pairs(len(sentences))
    orders = 2 if symmetric else 1
    on_dev = 0 if dev is None else len(dev)
    bi_steps, cross_steps = train_steps(n, config.bi), train_steps(orders * n, config.cross)
    plan = []

    def add(stage: str, scored: float, trained: float = 0, factor: int = 0, steps: int = 0) -> None:
        k = len(backbones)
        minutes = round(k * (scored + factor * trained) * minutes_a_pair, 1)
        plan.append({"stage": stage, "pairs": round(k * (scored + trained)), "steps": k * steps, "minutes": minutes})

    def dev_passes(steps: int) -> int:  # the evaluations during a training
        return on_dev * math.ceil(steps / config.eval_steps) if config.eval_steps else 0

    add(START, 0)
    if sentences is not None:
        if plain := sum(needs_bootstrap([backbone], sentences) for backbone in backbones):
            share, steps = plain / len(backbones), train_steps(len(sentences), config.bootstrap)
            trained, factor = share * len(sentences) * config.bootstrap.epochs, _training_pass(config.bootstrap)
            add(BOOTSTRAP, 0, trained, factor, round(share * steps))
        add(MINE, len(sentences) / len(backbones) / 2)
    add(stage_name(0, "50-evaluate"), on_dev)
    for cycle in range(1, (config.cycles if isinstance(config.cycles, int) else MAX_AUTO_CYCLES) + 1):
        add(stage_name(cycle, "10-bi-label"), n)
        trained, factor = orders * n * config.cross.epochs, _training_pass(config.cross)
        add(stage_name(cycle, "20-cross-train"), orders * dev_passes(cross_steps), trained, factor, cross_steps)
        add(stage_name(cycle, "30-cross-label"), orders * n)
        trained, factor = n * config.bi.epochs, _training_pass(config.bi)
        add(stage_name(cycle, "40-bi-train"), dev_passes(bi_steps), trained, factor, bi_steps)
        add(stage_name(cycle, "50-evaluate"), (1 + orders) * on_dev)
    return plan


def _check_sentences(sentences: Sequence[str], *, symmetric: bool) -> None:
    if isinstance(sentences, str | bytes):
        raise TypeError("sentences: expected a sequence of texts, found one text; read a file with read_sentences")
    if (count := len(set(sentences))) < 3:
        raise InputError(f"distillation needs at least 3 different sentences, got {count}")
    if not symmetric:
        raise InputError("pairs mined from sentences are symmetric; asymmetric ones are mined from documents (mine)")


def _check_columns(rows: Dataset, what: str, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in rows.column_names]:
        raise InputError(f"the {what} must have the column {missing[0]!r}, found {', '.join(rows.column_names)}")


def _pair_up(sentences: Sequence[str]) -> Dataset:
    """Neighbours in the list, for measuring: what a pass over a text costs."""
    return Dataset.from_dict({"sentence1": list(sentences[:-1]), "sentence2": list(sentences[1:])})


def _training_pass(settings: TrainingSettings) -> int:
    return _TRAINING_PASS if settings.group_by_length else _TRAINING_PASS_MIXED


def _measure(backbone: Backbone, pairs: Dataset, config: DistillConfig, device: str | None) -> float:
    """Minutes that the bi-encoder takes for one pair."""
    device = resolve_device(device)
    dtype = resolve_precision(config.precision, device=device)
    model = load_bi_encoder(backbone.bi, pooling=backbone.pooling, device=device, dtype=dtype)
    sample = pairs.select(range(0, len(pairs), math.ceil(len(pairs) / _SAMPLE)))
    score_pairs(
        model, sample.select(range(min(16, len(sample)))), batch_tokens=config.batch_tokens
    )  # the first call warms up
    started = time.perf_counter()
    score_pairs(model, sample, batch_tokens=config.batch_tokens)
    return (time.perf_counter() - started) / len(sample) / 60
