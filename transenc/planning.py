"""The stages of a distillation: their names and, before a run, their sizes and a rough time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from transenc.config import LIST_LOSSES, Backbone, DistillConfig, TrainingSettings
from transenc.devices import resolve_devices, resolve_precision
from transenc.encoders import detect_kind, load_bi_encoder
from transenc.errors import InputError, StateError
from transenc.labeling import Scores
from transenc.outcome import MAX_AUTO_CYCLES
from transenc.preflight import Inspection, inspect_pairs, inspect_sentences, pair_strangers
from transenc.scoring import score_pairs
from transenc.targets import group_rows
from transenc.training import train_steps
from transenc.whitening import whiten_encoder

logger = logging.getLogger(__name__)

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
    if config.student is not None and config.student >= len(backbones):
        raise InputError(
            f"student {config.student}: expected the number of a backbone, 0 to {len(backbones) - 1}, counted from 0"
        )
    _check_losses(config, pairs, symmetric=symmetric)
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
    """The stages of a run with their sizes and a rough time: the first half of `preview_run`.

    Example:
        >>> describe_plan([Backbone("my/encoder")], pairs, config=DistillConfig())  # doctest: +SKIP
    """
    plan, _ = preview_run(
        backbones, pairs, sentences=sentences, config=config, dev=dev, symmetric=symmetric, device=device
    )
    return plan


def preview_run(
    backbones: Sequence[Backbone],
    pairs: Dataset | None = None,
    *,
    sentences: Sequence[str] | None = None,
    config: DistillConfig,
    dev: Dataset | None = None,
    tests: Mapping[str, Dataset] | None = None,
    symmetric: bool = True,
    device: str | None = None,
) -> tuple[list[dict[str, Any]], Inspection]:
    """The stages of a run with their sizes and a rough time, and what speaks against it, without running it.

    The time comes from scoring some of the pairs with every backbone here and now, on the first device, and from what a
    pass of training took beside a pass of scoring on a CPU (`_TRAINING_PASS`). Take it as the order of magnitude.

    From sentences, training on one counts as a pair, encoding one as half, and as many pairs are expected as mining may
    keep.

    What speaks against it (see `preflight`) is found in all texts and in the scores of some of the pairs; labels of
    sentences are not known before they are mined.

    Returns:
        One dict a stage: `stage`, `pairs` that pass through a model (a pair once in every epoch and order), `steps`
        of training, `minutes`. And the inspection.

    Raises:
        InputError: unusable input.

    Example:
        >>> plan, inspection = preview_run([Backbone("my/encoder")], pairs, config=DistillConfig())  # doctest: +SKIP
    """
    check_inputs(backbones, pairs, sentences, config=config, dev=dev, symmetric=symmetric)
    devices = resolve_devices(device)
    device, places = devices[0], len(set(devices))  # one device named twice is no faster
    if pairs is not None:
        n, rows = len(pairs), _sample(pairs)
        scores, strangers, minutes_a_pair = _score_sample(backbones, pairs, rows, config, device)
        inspection = inspect_pairs(
            pairs, scores, rows=rows, strangers=strangers, dev=dev, tests=tests, symmetric=symmetric,
            plain=detect_kind(backbones[int(next(iter(scores)).removeprefix("bi-"))].bi) != "bi",
        )  # fmt: skip
    else:
        texts = _pair_up(sentences or ())
        n = config.mine.count_pairs(len(sentences or ()))
        sample = texts.select(_sample(texts))
        minutes_a_pair = fmean(_measure(_load(backbone, config, device), sample, config)[1] for backbone in backbones)
        inspection = inspect_sentences(sentences or (), pairs=n, dev=dev, tests=tests)
    orders = 2 if symmetric else 1
    trained_orders = 1 if config.cross.loss in LIST_LOSSES else orders  # lists keep theirs
    on_dev = 0 if dev is None else len(dev)
    bi_steps, cross_steps = train_steps(n, config.bi), train_steps(trained_orders * n, config.cross)
    plan = []

    def add(stage: str, scored: float, trained: float = 0, factor: int = 0, steps: int = 0) -> None:
        k = 1 if stage.endswith("bi-train") and config.student is not None else len(backbones)
        turns = math.ceil(k / places) if trained else k  # only trainings run side by side
        minutes = round(turns * (scored + factor * trained) * minutes_a_pair, 1)
        plan.append({"stage": stage, "pairs": round(k * (scored + trained)), "steps": k * steps, "minutes": minutes})

    def dev_passes(steps: int) -> int:  # the evaluations during a training
        return on_dev * math.ceil(steps / config.eval_steps) if config.eval_steps else 0

    whitened = n if config.whiten else 0  # encoding its two texts is what scoring a pair takes
    add(START, whitened)
    if sentences is not None:
        if plain := sum(needs_bootstrap([backbone], sentences) for backbone in backbones):
            share, steps = plain / len(backbones), train_steps(len(sentences), config.bootstrap)
            trained, factor = share * len(sentences) * config.bootstrap.epochs, _training_pass(config.bootstrap)
            add(BOOTSTRAP, 0, trained, factor, round(share * steps))
        add(MINE, len(sentences) / len(backbones) / 2)
    add(stage_name(0, "50-evaluate"), on_dev)
    for cycle in range(1, (config.cycles if isinstance(config.cycles, int) else MAX_AUTO_CYCLES) + 1):
        add(stage_name(cycle, "10-bi-label"), n * (1 + bool(config.simplified) + bool(config.alignment)))
        trained, factor = trained_orders * n * config.cross.epochs, _training_pass(config.cross)
        add(stage_name(cycle, "20-cross-train"), orders * dev_passes(cross_steps), trained, factor, cross_steps)
        add(stage_name(cycle, "30-cross-label"), orders * n)
        trained, factor = n * config.bi.epochs, _training_pass(config.bi)
        add(stage_name(cycle, "40-bi-train"), whitened + dev_passes(bi_steps), trained, factor, bi_steps)
        add(stage_name(cycle, "50-evaluate"), (1 + orders) * on_dev)
    return plan, inspection


def _check_losses(config: DistillConfig, pairs: Dataset | None, *, symmetric: bool) -> None:
    """Before the first stage, not after the labels: whether the losses will find the lists they need."""
    if config.cross.symmetry and not symmetric:
        raise InputError("cross symmetry: the order of asymmetric pairs matters; leave it out")
    loss = next((form.loss for form in (config.cross, config.bi) if form.loss in LIST_LOSSES), None)
    if loss is None:
        return
    if pairs is not None:
        group_rows(pairs)
    elif not config.mine.list_size:
        raise InputError(f"loss {loss} needs lists; give --mine-list-size 8, or take a loss on pairs (cosent, bce)")


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


def _sample(pairs: Dataset) -> range:
    return range(0, len(pairs), math.ceil(len(pairs) / _SAMPLE))


def _load(backbone: Backbone, config: DistillConfig, device: str) -> SentenceTransformer:
    dtype = resolve_precision(config.precision, device=device)
    return load_bi_encoder(backbone.bi, pooling=backbone.pooling, device=device, dtype=dtype)


def _score_sample(
    backbones: Sequence[Backbone], pairs: Dataset, rows: range, config: DistillConfig, device: str
) -> tuple[dict[str, Scores], Scores | None, float]:
    """What each usable backbone says of some of the pairs; the first of unrelated sentences; minutes for a pair."""
    columns: dict[str, Scores] = {}
    strangers, minutes_a_pair = None, []
    for i, backbone in enumerate(backbones):
        model = _load(backbone, config, device)
        try:
            if config.whiten:
                some = pairs.select(rows)
                whiten_encoder(model, [*some["sentence1"], *some["sentence2"]])
            scores, minutes = _measure(model, pairs.select(rows), config)
        except StateError as error:  # the run labels without it too
            if not columns and i == len(backbones) - 1:
                raise
            logger.warning("teacher bi-%d is left out: %s", i, error)
            continue
        minutes_a_pair.append(minutes)
        if not columns:
            try:
                strangers = score_pairs(model, pair_strangers(pairs), batch_tokens=config.batch_tokens)
            except StateError as error:
                logger.warning("unrelated sentences were not looked at: %s", error)
        columns[f"bi-{i}"] = scores
    return columns, strangers, fmean(minutes_a_pair)


def _measure(model: SentenceTransformer, sample: Dataset, config: DistillConfig) -> tuple[Scores, float]:
    """The bi-encoder's scores, and the minutes that it takes for one pair."""
    warm_up = sample.select(range(min(16, len(sample))))  # the first call is slower
    score_pairs(model, warm_up, batch_tokens=config.batch_tokens)
    started = time.perf_counter()
    scores = score_pairs(model, sample, batch_tokens=config.batch_tokens)
    return scores, (time.perf_counter() - started) / len(sample) / 60
