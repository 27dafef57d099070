"""Checkpoints that survive a kill: sealed with a manifest, the newest two and the best on dev kept."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from transenc import durable
from transenc.errors import StateError
from transenc.losses import DecomposedContrastiveLoss
from transenc.metrics import embedding_spread
from transenc.scoring import score_pairs
from transenc.signals import StopRequest

logger = logging.getLogger(__name__)

LOSS_STATE = "loss.safetensors"
_ALIKE = 1e-4  # bfloat16 rounds a vector by 0.4 %, which takes 1e-5 off a cosine
_KEPT = {"uniformity": 0.1, "effective_rank": 0.25}  # of the start's spread, or it is a collapse
_EQUAL = 1e-5  # standard deviation of scores that differ by hardly more than rounding
_NARROW = 0.2  # standard deviation of a cross-encoder's scores, as a share of that of its labels

# The folder of a training holds `ckpt-<step>` (all that a resume needs), `best-<step>` (weights) and `trainer/`, where
# the trainer writes; nothing there is read.


def newest_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint under `work` that verifies; damaged ones are removed with a warning.

    Example:
        >>> print(newest_checkpoint(Path("no/such/folder")))
        None
    """
    damaged = 0
    for path in sorted(work.glob("ckpt-*"), reverse=True):
        try:
            durable.verify_directory(path)
        except StateError as error:
            logger.warning("stepping back to an earlier checkpoint: %s", error)
            shutil.rmtree(path)
            damaged += 1
        else:
            return path
    if damaged:
        logger.warning("no checkpoint in %s is intact: this training starts again from its inputs", work)
    return None


def saved_step(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved.

    Example:
        >>> saved_step(Path("work/c01-40-bi-train/model-0/ckpt-00000200"))
        200
    """
    return int(checkpoint.name.removeprefix("ckpt-"))


def best_checkpoint(work: Path) -> Path | None:
    """The weights under `work` with the best dev Spearman, of those that verify; the earliest of equals.

    Example:
        >>> print(best_checkpoint(Path("no/such/folder")))
        None
    """
    best = _find_best(work)
    return None if best is None else best[1]


def load_loss_state(loss: nn.Module, model: nn.Module, checkpoint: Path) -> None:
    """Give a loss what it had at a checkpoint: a decoder, a second encoder, its averages.

    Raises:
        StateError: the checkpoint is one of another loss.
    """
    expected, path = _loss_state(loss, model), checkpoint / LOSS_STATE
    found = load_file(str(path)) if path.is_file() else {}
    if found.keys() != expected.keys():
        raise StateError(f"{path}: expected {sorted(expected)[:3]}, found {sorted(found)[:3]}; start anew elsewhere")
    if isinstance(loss, DecomposedContrastiveLoss):
        loss.load_state(found)
    else:
        loss.load_state_dict(found, strict=False)  # the model's own weights are in the model's file


def _loss_state(loss: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a loss that are not the model's; one name for those that are tied."""
    if isinstance(loss, DecomposedContrastiveLoss):
        return loss.state()
    seen = {value.data_ptr() for value in model.state_dict().values()}
    own = {}
    for name, value in loss.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            own[name] = value.contiguous()
    return own


class SealedCheckpoints(TrainerCallback):
    """Seals what the trainer saved, keeps the newest two, and the best on dev; saves and ends when asked to stop.

    What `loss` has learned besides the model's weights is saved with them.
    """

    def __init__(self, work: Path, stop: StopRequest, loss: nn.Module | None = None) -> None:
        self.work = work
        self.stop = stop
        self.loss = loss

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Ask for a checkpoint and the end when a signal has come."""
        if self.stop.signum is not None:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Seal the trainer's checkpoint and drop the oldest."""
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.loss is not None and (own := _loss_state(self.loss, model)):
            save_file(own, str(saved / LOSS_STATE))
        durable.seal_directory(
            saved,
            self.work / f"ckpt-{state.global_step:08d}",
            facts={"step": state.global_step},
        )
        for old in sorted(self.work.glob("ckpt-*"))[:-2]:
            shutil.rmtree(old)

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Keep the weights if no earlier ones were as good; an undefined score never is."""
        dev = metrics.get("eval_dev_spearman")
        best = _find_best(self.work)
        if dev is None or (best is not None and dev <= best[0]):
            return
        target = self.work / f"best-{state.global_step:08d}"
        with durable.publish_directory(target, facts={"dev": dev, "step": state.global_step}) as temporary:
            model.save_pretrained(str(temporary))
        if best is not None:
            shutil.rmtree(best[1])


class FiniteNumbers(TrainerCallback):
    """Stops at the first loss, gradient or weight to be saved or scored that is NaN or infinite."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Look at the weights where they are about to be saved or scored: the loss shows them one step later."""
        if control.should_save or control.should_evaluate:
            for name, weight in model.named_parameters():
                if not all(math.isfinite(value) for value in weight.detach().aminmax()):
                    self._refuse(f"weight {name} holds NaN or inf after step {state.global_step}")

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Look at the loss and the gradient of every step."""
        # fp16 loss scaling overflows on purpose in its first steps, so only its loss is judged
        for key in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            if key in logs and not math.isfinite(logs[key]):
                self._refuse(f"{key} is {logs[key]} at step {state.global_step}")

    def _refuse(self, problem: str) -> NoReturn:
        last = newest_checkpoint(self.work)
        raise StateError(
            f"{problem}: training stopped; last good checkpoint: {last or 'none yet'}; start anew with a lower "
            "learning rate or --precision float32"
        )


class DistinctEmbeddings(TrainerCallback):
    """Stops where a checkpoint is due and the bi-encoder gives different sentences all the same vector, or nearly.

    It looks at a few fixed sentences, at the start and once a tenth of the steps is done. The vectors of a plain
    language model may all point into one direction when training begins; one that has collapsed is beyond that: the
    mean cosine is above 0.9999, or all vectors are 0, or of the start's uniformity less than a tenth is left, or of its
    effective rank less than a quarter (healthy trainings kept 45 % and 75 % or more: docs/warnings.md). Nothing is
    drawn at random, so the training goes on as if it had not looked.

    Args:
        sentences: different texts, two or more; with fewer nothing is looked at.
        model: the bi-encoder before its training, also where that is resumed.
    """

    def __init__(self, sentences: list[str], model: SentenceTransformer) -> None:
        self.sentences = sentences
        self.start = self._measure(model) if len(sentences) >= 2 else {}

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Look at the embeddings where the weights are about to be saved."""
        if not _is_due(state, control) or not self.start:
            return
        spread = self._measure(model)
        if spread["mean_cosine"] > 1 - _ALIKE or spread["effective_rank"] < 1:
            raise StateError(
                f"all embeddings are alike after step {state.global_step} (mean cosine {spread['mean_cosine']:.6f} of "
                f"{len(self.sentences)} different sentences): the encoder has collapsed and training stopped; start "
                "anew with a lower learning rate, more warm-up or another objective"
            )
        for name, share in _KEPT.items():
            before, now = self.start[name], spread[name]
            if abs(now) < share * abs(before):
                raise StateError(
                    f"the embeddings have lost their spread after step {state.global_step} ({name.replace('_', ' ')} "
                    f"{now:.3g} of {len(self.sentences)} different sentences, {before:.3g} at the start): the encoder "
                    "is collapsing and training stopped; start anew with a lower learning rate or other labels"
                )

    def _measure(self, model: SentenceTransformer) -> dict[str, float]:
        with _as_it_was(model), torch.inference_mode():
            vectors = model.encode(self.sentences, batch_size=len(self.sentences), show_progress_bar=False)
        return embedding_spread(vectors)


class DistinctScores(TrainerCallback):
    """Stops where a checkpoint is due and the cross-encoder scores different pairs all the same; warns of nearly.

    It looks at a few fixed pairs once a tenth of the steps is done, and at the end, when it warns if the scores spread
    less than a fifth as wide as the labels (healthy trainings reached 57 % or more, those on too few pairs 1 %:
    docs/warnings.md). Pairs whose labels are all the same are not looked at.

    Args:
        pairs: different pairs of texts.
        labels: of these pairs.
        symmetric: whether both orders are scored.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], labels: Sequence[float], *, symmetric: bool = True) -> None:
        self.pairs = pairs
        self.deviation = float(np.std(labels)) if len(labels) else 0.0
        self.symmetric = symmetric

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Look at the scores where the weights are about to be saved."""
        if not _is_due(state, control) or self.deviation <= _EQUAL:
            return
        if (deviation := self._measure(model)) <= _EQUAL:
            raise StateError(
                f"all scores are alike after step {state.global_step} (standard deviation {deviation:.1e} over "
                f"{len(self.pairs)} different pairs, {self.deviation:.2f} of their labels): the cross-encoder learns "
                "nothing and training stopped; start anew with a lower learning rate or more warm-up"
            )

    def on_train_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Say it if the scores are narrow, unless the training was interrupted."""
        if self.deviation <= _EQUAL or state.global_step < state.max_steps:
            return
        if (deviation := self._measure(model)) < _NARROW * self.deviation:
            logger.warning(
                "the cross-encoder hardly separates the pairs: standard deviation %.2g against %.2g of its labels; "
                "more pairs, more epochs or a higher learning rate may help", deviation, self.deviation
            )  # fmt: skip

    def _measure(self, model: CrossEncoder) -> float:
        with _as_it_was(model):
            return float(np.std(score_pairs(model, self.pairs, symmetric=self.symmetric), dtype=np.float64))


def _is_due(state: TrainerState, control: TrainerControl) -> bool:
    return control.should_save and 10 * state.global_step >= state.max_steps


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Training goes on in the mode it was in: inference turns dropout off."""
    training = model.training
    try:
        yield
    finally:
        model.train(training)


def _find_best(work: Path) -> tuple[float, Path] | None:
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
