"""Train one bi-encoder on pairs or raw sentences, or one cross-encoder: thin over the sentence-transformers trainers.

What is added: sealed checkpoints that survive a kill, an exact resume, a stop on the first non-finite number,
the best checkpoint on a dev set, a progress bar on stderr.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Value
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import DefaultBatchSampler
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from transenc import durable
from transenc.checkpoints import (
    DistinctEmbeddings,
    DistinctScores,
    FiniteNumbers,
    SealedCheckpoints,
    best_checkpoint,
    load_loss_state,
    newest_checkpoint,
    saved_step,
)
from transenc.config import BiTrainingSettings, BootstrapSettings, CrossTrainingSettings, TrainingSettings
from transenc.dropout import use_dropout
from transenc.encoders import Encoder
from transenc.errors import InputError, StateError
from transenc.locks import lock
from transenc.metrics import correlation
from transenc.model_cards import save_model
from transenc.objectives import build_objective
from transenc.scoring import cut_texts, score_pairs
from transenc.signals import StopRequest
from transenc.targets import Target, build_bi_target, build_cross_target

_PATIENCE = 30.0  # seconds
_PROBE = 64  # texts that are looked at for collapse, and tokens of each


@dataclass(frozen=True)
class TrainingContext:
    """What one training shares with the run around it.

    Args:
        work: scratch folder for checkpoints; the same folder resumes.
        seed: of the shuffling and dropout.
        precision: `float32`, `bfloat16` or `float16` arithmetic (autocast; weights stay float32).
        save_steps: steps between checkpoints.
        dev: scored pairs; with `eval_steps` > 0 the checkpoint with the best dev Spearman is kept.
        symmetric: whether (a, b) and (b, a) mean the same.
        stop: asked after every step; a pending signal saves a checkpoint and ends the training.
        report_to: experiment trackers of HF Trainer, e.g. `("tensorboard",)`.
    """

    work: Path
    seed: int
    precision: str = "float32"
    save_steps: int = 200
    dev: Dataset | None = None
    eval_steps: int = 0
    symmetric: bool = True
    stop: StopRequest = field(default_factory=StopRequest)
    report_to: Sequence[str] = ()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Make the scratch folder, and keep other trainings out of it for the block.

        A process that trained there for a run which was killed gets half a minute to die.

        Raises:
            BusyError: it goes on.

        Example:
            >>> with TrainingContext(work, seed=1).hold():  # doctest: +SKIP
            ...     train_bi_encoder(model, pairs, settings=settings, context=context)
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with lock(self.work / "lock", patience=_PATIENCE):
            yield


def train_bi_encoder(
    model: SentenceTransformer,
    pairs: Dataset,
    *,
    settings: BiTrainingSettings,
    context: TrainingContext,
    peer: SentenceTransformer | None = None,
) -> list[dict[str, Any]]:
    """Fit the cosine of `model` to the `score` of the pairs, in place (Trans-Encoder section 3, step 4).

    Args:
        model: float32 weights; left with the best dev checkpoint when the context asks for it.
        pairs: columns sentence1, sentence2, score in [0, 1], for losses on lists perhaps list (`targets.group_rows`).
        settings: how to train, see `targets.build_bi_target`; the model's maximum length becomes theirs.
        context: scratch folder, seed, precision, dev set.
        peer: whose geometry is kept where the settings ask for it; None: that of `model` as it is now.

    Returns:
        The trainer's log: one dict a step with `loss`, `grad_norm`, `learning_rate`, or dev metrics.

    Raises:
        InputError: a loss on lists, but hardly any lists.
        StateError: a loss or gradient is not finite. Interrupted: a signal came; a checkpoint is saved.

    Example:
        >>> from transenc.config import BiTrainingSettings
        >>> train_bi_encoder.__name__, BiTrainingSettings(epochs=2).loss
        ('train_bi_encoder', 'cosent')
    """
    target = build_bi_target(model, _check_labels(pairs), settings=settings, peer=peer)
    return _train_on(
        target, model, SentenceTransformerTrainer, SentenceTransformerTrainingArguments, settings, context, pairs
    )


def train_cross_encoder(
    model: CrossEncoder, pairs: Dataset, *, settings: CrossTrainingSettings, context: TrainingContext
) -> list[dict[str, Any]]:
    """Fit the sigmoid of `model`'s logit to the `score`, in place (Trans-Encoder section 3, step 2).

    Symmetric pairs are seen in both orders, lists in theirs; see `targets.build_cross_target`. Arguments, result and
    errors as for `train_bi_encoder`.

    Example:
        >>> train_cross_encoder.__name__
        'train_cross_encoder'
    """
    target = build_cross_target(model, _check_labels(pairs), settings=settings, symmetric=context.symmetric)
    return _train_on(target, model, CrossEncoderTrainer, CrossEncoderTrainingArguments, settings, context, pairs)


def train_contrastive(
    model: SentenceTransformer, sentences: Sequence[str], *, settings: BootstrapSettings, context: TrainingContext
) -> list[dict[str, Any]]:
    """Train a bi-encoder on raw sentences, in place: see `objectives.build_objective` for what each objective does.

    Args:
        model: float32 weights; left with the best dev checkpoint when the context asks for it.
        sentences: 2 or more different texts; very long ones are cut before they are tokenized.
        settings: objective and how to train; a batch that is larger than the corpus holds all of it.
        context: scratch folder, seed, precision, dev set. What the loss learns is in its checkpoints too.

    Returns:
        The trainer's log, as of `train_bi_encoder`.

    Raises:
        TypeError: `sentences` is one string.
        InputError: fewer than 2 different sentences, or the same tokens in all of them; the model cannot do what the
            objective asks. StateError: a loss or gradient is not finite, or
            all embeddings became alike. Interrupted: a signal came; a checkpoint is saved.

    Example:
        >>> train_contrastive.__name__
        'train_contrastive'
    """
    set_seed(context.seed)  # a loss may draw weights
    limit = min(settings.max_length, model.max_seq_length or settings.max_length)
    texts = cut_texts(check_sentences(sentences), limit)
    _check_tokens(model, texts, limit)
    views, loss = build_objective(model, texts, settings=settings, seed=context.seed)
    return _train(
        model, views, loss.train(), SentenceTransformerTrainer, SentenceTransformerTrainingArguments, settings,
        context,
    )  # fmt: skip


def check_sentences(sentences: Sequence[str]) -> list[str]:
    """The sentences as a list, 2 or more different ones.

    Raises:
        TypeError: one string. InputError: fewer than 2 different ones.

    Example:
        >>> check_sentences(("a cat", "a dog"))
        ['a cat', 'a dog']
    """
    if isinstance(sentences, str | bytes):
        raise TypeError("sentences: expected a sequence of texts, found one string; corpus.read_sentences reads a file")
    texts = list(sentences)
    if len(set(texts)) < 2:
        raise InputError(f"expected 2 or more different sentences, found {len(set(texts))}; give more text")
    return texts


def train_steps(rows: int, settings: TrainingSettings) -> int:
    """Number of optimizer steps over `rows` examples."""
    return math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)


def group_by_length(
    dataset: Dataset,
    batch_size: int,
    drop_last: bool,
    valid_label_columns: list[str] | None = None,
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> DefaultBatchSampler:
    """A batch sampler (the `batch_sampler` hook of the trainers) of random batches with similar text lengths.

    The length of a row is that of its longest pair; its texts are columns sentence1, sentence2, ..., or sentences.
    """
    first, *others = (dataset[name] for name in dataset.column_names if name.startswith("sentence"))
    lengths = [
        len(text) + max(map(len, rest[0] if isinstance(rest[0], list) else rest))
        for text, rest in zip(first, zip(*others, strict=True), strict=True)
    ]
    return DefaultBatchSampler(
        _LengthGroupedSampler(batch_size, lengths=lengths, generator=torch.Generator(), seed=seed),
        batch_size=batch_size,
        drop_last=drop_last,
        valid_label_columns=valid_label_columns,
        generator=generator,
        seed=seed,
    )


class _LengthGroupedSampler(LengthGroupedSampler):
    """Each epoch's order depends on seed and epoch alone, so that a resume in a later epoch finds the same."""

    def __init__(self, batch_size: int, *, lengths: list[int], generator: torch.Generator, seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=generator)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:  # called by accelerate
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


def _check_labels(pairs: Dataset) -> Dataset:
    pairs = pairs.cast_column("score", Value("float32"))
    if not all(math.isfinite(value) for value in pairs["score"]):
        raise StateError("a label is not finite; training would turn every weight into NaN")
    return pairs


def _check_tokens(model: SentenceTransformer, texts: list[str], limit: int) -> None:
    """Refuse texts that are all the same to the model; in most sets the first two differ."""
    first = None
    for start in range(0, len(texts), _PROBE):
        for ids in model.tokenizer(texts[start : start + _PROBE], truncation=True, max_length=limit)["input_ids"]:
            first = first or ids
            if ids != first:
                return
    raise InputError(
        f"all {len(texts)} sentences have the same tokens, as far as the model reads them ({limit} tokens): nothing "
        "to tell apart; give other text, or a higher max_length"
    )


def _watch_collapse(model: Encoder, rows: Dataset, context: TrainingContext) -> TrainerCallback:
    """The check of this form, on some of the training set."""
    some = rows.select(range(0, len(rows), max(1, len(rows) // _PROBE)))
    if isinstance(model, SentenceTransformer):
        return DistinctEmbeddings(_choose_probe(model, some), model)
    pairs = zip(some["sentence1"], some["sentence2"], strict=True)
    labels = dict(zip(pairs, some["score"], strict=True))
    return DistinctScores(list(labels), list(labels.values()), symmetric=context.symmetric)


def _choose_probe(model: SentenceTransformer, some: Dataset) -> list[str]:
    """Up to 64 texts that differ to the model: in their tokens."""
    texts = cut_texts([*some["sentence1"], *some["sentence2"]], _PROBE)
    tokens = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    return list({tuple(ids): text for ids, text in zip(tokens, texts, strict=True)}.values())[:_PROBE]


def _train_on(
    target: Target,
    model: Encoder,
    trainer_class: type,
    arguments_class: type,
    settings: TrainingSettings,
    context: TrainingContext,
    probe: Dataset,
) -> list[dict[str, Any]]:
    settings = dataclasses.replace(settings, batch_size=target.batch_size)
    return _train(model, target.rows, target.loss, trainer_class, arguments_class, settings, context, probe)


def _train(
    model: Encoder,
    rows: Dataset,
    loss: torch.nn.Module,
    trainer_class: type,
    arguments_class: type,
    settings: TrainingSettings,
    context: TrainingContext,
    probe: Dataset | None = None,
) -> list[dict[str, Any]]:
    choosing = context.dev is not None and context.eval_steps > 0
    arguments = arguments_class(
        output_dir=str(context.work / "trainer"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        bf16=context.precision == "bfloat16",
        fp16=context.precision == "float16",
        use_cpu=model.device.type == "cpu",
        seed=context.seed,
        save_strategy="steps",
        save_steps=context.save_steps,
        eval_strategy="steps" if choosing else "no",
        eval_steps=context.eval_steps if choosing else None,
        logging_steps=1,  # the check for non-finite numbers sees every step
        logging_nan_inf_filter=False,
        report_to=list(context.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=model.device.type != "cpu",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # or the trainer spreads the batches over all GPUs it sees (DataParallel)
    if settings.group_by_length:
        arguments.batch_sampler = group_by_length
    model.model_card_data.generate_widget_examples = False
    # a short window is for training speed; the model that is handed on keeps its own
    own_length = model.max_seq_length
    model.max_seq_length = min(settings.max_length, own_length or settings.max_length)
    # what a kill left of a save: never sealed, never read
    for leftover in context.work.glob("trainer/checkpoint-*"):
        shutil.rmtree(leftover)
    durable.remove_temporaries(context.work)
    # in this order: a checkpoint that a signal asks for is looked at as well
    callbacks = [SealedCheckpoints(context.work, context.stop, loss), FiniteNumbers(context.work)]
    callbacks.append(TrainingProgress())
    callbacks.append(_watch_collapse(model, rows if probe is None else probe, context))
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        evaluator=_DevSpearman(context) if choosing else None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which carries results alone
    dropout = use_dropout(torch.nn.ModuleList([model, loss]), settings.dropout)
    with dropout, durable.explain_full_disk(context.work), context.stop.deferred():
        checkpoint = newest_checkpoint(context.work)
        if checkpoint is not None:
            load_loss_state(loss, model, checkpoint)
        if checkpoint is not None and saved_step(checkpoint) >= train_steps(len(rows), settings):
            # trained to the end; the trainer would take one step more where an epoch is not whole
            _load_weights(model, checkpoint)
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if choosing and context.stop.signum is None:
            trainer.evaluate()
    model.max_seq_length = own_length
    if choosing and (best := best_checkpoint(context.work)) is not None:
        # the last weights stay beside the chosen ones, so that both choices can be compared
        save_model(model, context.work / "last")
        _load_weights(model, best)
    return trainer.state.log_history


def write_log(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Write a training's log as strict JSON, without its times: the same training writes the same file."""
    # with fp16 the norm of a gradient may overflow in a step that the trainer then skips
    strict = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in log]
    durable.write_json(path, [row for row in strict if "train_runtime" not in row])


def _load_weights(model: Encoder, folder: Path) -> None:
    model.load_state_dict(type(model)(str(folder), device=str(model.device)).state_dict())


class _DevSpearman(BaseEvaluator):
    """Dev Spearman through the one scoring path, for both forms."""

    def __init__(self, context: TrainingContext) -> None:
        super().__init__()
        self.context = context

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        dev = self.context.dev
        assert dev is not None
        scores = score_pairs(model, dev, symmetric=self.context.symmetric)
        value = correlation(scores, list(dev["score"]))["spearman"]
        return {} if value is None else {"dev_spearman": float(value)}


class TrainingProgress(ProgressCallback):
    """The trainer's progress bar with the loss in it; the original writes every log line to stdout."""

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Show the loss in the bar."""
        bar: Any = self.training_bar
        if bar is not None and logs and "loss" in logs:
            bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)
