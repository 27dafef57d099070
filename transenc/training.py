"""Train one bi-encoder or one cross-encoder on labelled pairs: thin over the sentence-transformers trainers.

What is added: sealed checkpoints that survive a kill, an exact resume, a stop on the first non-finite number,
the best checkpoint on a dev set, a progress bar on stderr.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
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
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss, CosineSimilarityLoss
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from transenc import durable
from transenc.config import BiTrainingSettings, TrainingSettings
from transenc.encoders import Encoder
from transenc.errors import StateError
from transenc.metrics import correlation
from transenc.scoring import score_pairs
from transenc.signals import StopRequest

logger = logging.getLogger(__name__)

LOSSES = {"mse": CosineSimilarityLoss, "cosent": CoSENTLoss, "angle": AnglELoss}


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


def train_bi_encoder(
    model: SentenceTransformer, pairs: Dataset, *, settings: BiTrainingSettings, context: TrainingContext
) -> list[dict[str, Any]]:
    """Fit the cosine of `model` to the `score` of the pairs, in place (Trans-Encoder section 3, step 4).

    Args:
        model: float32 weights; left with the best dev checkpoint when the context asks for it.
        pairs: columns sentence1, sentence2, score in [0, 1].
        settings: how to train; the model's maximum length becomes theirs.
        context: scratch folder, seed, precision, dev set.

    Returns:
        The trainer's log: one dict a step with `loss`, `grad_norm`, `learning_rate`, or dev metrics.

    Raises:
        StateError: a loss or gradient is not finite. Interrupted: a signal came; a checkpoint is saved.

    Example:
        >>> from transenc.config import BiTrainingSettings
        >>> train_bi_encoder.__name__, BiTrainingSettings(epochs=2).loss
        ('train_bi_encoder', 'cosent')
    """
    return _train(
        model, pairs, LOSSES[settings.loss](model), SentenceTransformerTrainer, SentenceTransformerTrainingArguments,
        settings, context,
    )  # fmt: skip


def train_cross_encoder(
    model: CrossEncoder, pairs: Dataset, *, settings: TrainingSettings, context: TrainingContext
) -> list[dict[str, Any]]:
    """Fit the sigmoid of `model`'s logit to the `score` by binary cross-entropy, in place (Trans-Encoder, step 2).

    Symmetric pairs are seen in both orders. Arguments, result and errors as for `train_bi_encoder`.

    Example:
        >>> train_cross_encoder.__name__
        'train_cross_encoder'
    """
    if context.symmetric:
        pairs = both_orders(pairs)
    return _train(
        model, pairs, BinaryCrossEntropyLoss(model), CrossEncoderTrainer, CrossEncoderTrainingArguments, settings,
        context,
    )  # fmt: skip


def both_orders(pairs: Dataset) -> Dataset:
    """The pairs followed by the same pairs with their sentences exchanged."""
    first, second, score = (list(pairs[name]) for name in ("sentence1", "sentence2", "score"))
    return Dataset.from_dict({"sentence1": first + second, "sentence2": second + first, "score": score + score})


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
    """A batch sampler (the `batch_sampler` hook of the trainers) of random batches with similar text lengths."""
    texts = zip(dataset["sentence1"], dataset["sentence2"], strict=True)
    lengths = [len(first) + len(second) for first, second in texts]
    sampler = LengthGroupedSampler(batch_size, lengths=lengths, generator=generator)
    return DefaultBatchSampler(
        sampler,  # type: ignore[arg-type]  # the hook's own default passes a sampler here as well
        batch_size=batch_size,
        drop_last=drop_last,
        valid_label_columns=valid_label_columns,
        generator=generator,
        seed=seed,
    )


def _train(
    model: Encoder,
    pairs: Dataset,
    loss: torch.nn.Module,
    trainer_class: type,
    arguments_class: type,
    settings: TrainingSettings,
    context: TrainingContext,
) -> list[dict[str, Any]]:
    pairs = pairs.select_columns(["sentence1", "sentence2", "score"]).cast_column("score", Value("float32"))
    if not all(math.isfinite(value) for value in pairs["score"]):
        raise StateError("a label is not finite; training would turn every weight into NaN")
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
    if settings.group_by_length:
        arguments.batch_sampler = group_by_length
    model.model_card_data.generate_widget_examples = False
    # a short window is for training speed; the model that is handed on keeps its own
    own_length = model.max_seq_length
    model.max_seq_length = min(settings.max_length, own_length or settings.max_length)
    checkpoints = _Checkpoints(context)
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=pairs,
        loss=loss,
        evaluator=_DevSpearman(context) if choosing else None,
        callbacks=[_FiniteNumbers(context), checkpoints, _Progress()],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which carries results alone
    with durable.explain_full_disk(context.work), context.stop.deferred():
        trainer.train(resume_from_checkpoint=newest_checkpoint(context.work))
        if choosing and context.stop.signum is None:
            trainer.evaluate()
    model.max_seq_length = own_length
    if choosing and (best := best_checkpoint(context.work)) is not None:
        # the last weights stay beside the chosen ones, so that both choices can be compared
        model.save_pretrained(str(context.work / "last"))
        _load_weights(model, best[1])
    return trainer.state.log_history


def newest_checkpoint(work: Path) -> str | None:
    """The newest checkpoint under `work` that verifies; damaged ones are removed with a warning."""
    for path in sorted(work.glob("ckpt-*"), reverse=True):
        try:
            durable.verify_directory(path)
        except StateError as error:
            logger.warning("stepping back to an earlier checkpoint: %s", error)
            shutil.rmtree(path)
        else:
            return str(path)
    return None


def best_checkpoint(work: Path) -> tuple[float, Path] | None:
    """The dev Spearman and folder of the best checkpoint under `work` that verifies; the earliest of equals."""
    found = []
    for path in sorted(work.glob("best-*")):
        try:
            facts = durable.verify_directory(path)
        except StateError as error:
            logger.warning("%s", error)
            shutil.rmtree(path)
        else:
            found.append((facts["dev"], path))
    return max(found, key=lambda item: item[0], default=None)


def _load_weights(model: Encoder, folder: Path) -> None:
    model.load_state_dict(type(model)(str(folder), device=str(model.device)).state_dict())


class _DevSpearman(BaseEvaluator):
    """Dev Spearman through the one scoring path, for both forms."""

    def __init__(self, context: TrainingContext) -> None:
        super().__init__()
        self.context = context

    def __call__(
        self, model: Encoder, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        dev = self.context.dev
        assert dev is not None
        scores = score_pairs(model, dev, symmetric=self.context.symmetric)
        value = correlation(scores, list(dev["score"]))["spearman"]
        return {} if value is None else {"dev_spearman": value}


class _FiniteNumbers(TrainerCallback):
    def __init__(self, context: TrainingContext) -> None:
        self.context = context

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        # fp16 loss scaling overflows on purpose in its first steps, so only its loss is judged
        for key in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            if key in logs and not math.isfinite(logs[key]):
                last = newest_checkpoint(self.context.work)
                raise StateError(
                    f"{key} is {logs[key]} at step {state.global_step}: training stopped; last good checkpoint: "
                    f"{last or 'none yet'}; lower the learning rate or use --precision float32"
                )


class _Checkpoints(TrainerCallback):
    """Seals what the trainer saved, keeps the newest two, and the best on dev."""

    def __init__(self, context: TrainingContext) -> None:
        self.context = context

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if self.context.stop.signum is not None:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        target = self.context.work / f"ckpt-{state.global_step:08d}"
        if target.exists():  # a resume at the last step saves that step again
            shutil.rmtree(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            return
        durable.seal_directory(
            Path(args.output_dir) / f"checkpoint-{state.global_step}",
            target,
            facts={"step": state.global_step},
        )
        for old in sorted(self.context.work.glob("ckpt-*"))[:-2]:
            shutil.rmtree(old)

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):  # type: ignore[no-untyped-def]
        dev = metrics.get("eval_dev_spearman")
        best = best_checkpoint(self.context.work)
        if dev is None or (best is not None and dev <= best[0]):
            return
        target = self.context.work / f"best-{state.global_step:08d}"
        with durable.publish_directory(target, facts={"dev": dev, "step": state.global_step}) as temporary:
            model.save_pretrained(str(temporary))
        if best is not None:
            shutil.rmtree(best[1])


class _Progress(ProgressCallback):
    """The trainer's progress bar with the loss in it; the original writes every log line to stdout."""

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)
