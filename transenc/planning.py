"""The stages of a distillation: their names and, before a run, their sizes and a rough time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from transenc.config import Backbone, DistillConfig, TrainingSettings
from transenc.encoders import load_bi_encoder, resolve_device, resolve_precision
from transenc.errors import InputError
from transenc.outcome import MAX_AUTO_CYCLES
from transenc.scoring import score_pairs
from transenc.training import train_steps

START = "c00-00-start"
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


def check_inputs(
    backbones: Sequence[Backbone], pairs: Dataset, *, config: DistillConfig, dev: Dataset | None = None
) -> None:
    """Refuse what no run can start from.

    Raises:
        InputError: no backbone, too few pairs, a missing column, or no dev set to choose by.
    """
    if not backbones:
        raise InputError("distillation needs at least one backbone, got none")
    _check_columns(pairs, "pairs", ("sentence1", "sentence2"))
    if dev is not None:
        _check_columns(dev, "dev set", ("sentence1", "sentence2", "score"))
    if len(pairs) < 2:
        raise InputError(f"distillation needs at least 2 pairs, got {len(pairs)}")
    if config.select == "dev" and dev is None:
        raise InputError("select 'dev' needs a dev set; give one (--dev FILE) or use --select last")


def describe_plan(
    backbones: Sequence[Backbone],
    pairs: Dataset,
    *,
    config: DistillConfig,
    dev: Dataset | None = None,
    symmetric: bool = True,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """The stages of a run with their sizes and a rough time, without running them.

    The time comes from scoring some of the pairs with the first backbone here and now, and from what a pass of
    training took beside a pass of scoring on a CPU (`_TRAINING_PASS`). Take it as the order of magnitude.

    Returns:
        One dict a stage: `stage`, `pairs` that pass through a model (a pair once in every epoch and order), `steps`
        of training, `minutes`.

    Raises:
        InputError: unusable input.

    Example:
        >>> describe_plan([Backbone("my/encoder")], pairs, config=DistillConfig())  # doctest: +SKIP
    """
    check_inputs(backbones, pairs, config=config, dev=dev)
    minutes_a_pair = _measure(backbones[0], pairs, config, device)
    n, orders = len(pairs), 2 if symmetric else 1
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


def _check_columns(rows: Dataset, what: str, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in rows.column_names]:
        raise InputError(f"the {what} must have the column {missing[0]!r}, found {', '.join(rows.column_names)}")


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
