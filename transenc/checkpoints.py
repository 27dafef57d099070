"""Checkpoints that survive a kill: sealed with a manifest, the newest two and the best on dev kept."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import NoReturn

from transformers import TrainerCallback

from transenc import durable
from transenc.errors import StateError
from transenc.signals import StopRequest

logger = logging.getLogger(__name__)

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


class SealedCheckpoints(TrainerCallback):
    """Seals what the trainer saved, keeps the newest two, and the best on dev; saves and ends when asked to stop."""

    def __init__(self, work: Path, stop: StopRequest) -> None:
        self.work = work
        self.stop = stop

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Ask for a checkpoint and the end when a signal has come."""
        if self.stop.signum is not None:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Seal the trainer's checkpoint and drop the oldest."""
        durable.seal_directory(
            Path(args.output_dir) / f"checkpoint-{state.global_step}",
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
