"""One student's training in a stage of a run: all it needs, in a form that can be sent to another process."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from transenc.bootstrapping import bootstrap_encoder
from transenc.config import LIST_LOSSES, BiTrainingSettings, BootstrapSettings, CrossTrainingSettings
from transenc.encoders import Encoder, load_bi_encoder, load_cross_encoder
from transenc.labeling import read_labels, thin_out
from transenc.model_cards import save_model
from transenc.signals import StopRequest
from transenc.training import TrainingContext, train_bi_encoder, train_cross_encoder, write_log
from transenc.whitening import remove_whitening, whiten_encoder


@dataclass(frozen=True)
class Student:
    """A model of a stage that is to be trained; the verbs write it with its log to `out`.

    Args:
        number: of its backbone; the files are model-<number> and log-<number>.json, and last-<number> with the last
            weights where a dev set chose others.
        start: the folder whose weights it begins with.
        out: the stage's folder.
        context: scratch folder, seed, precision; its `stop` is replaced by that of the process which trains.
        describe: what its model card says, called with `settings` and the number of `pairs` or `sentences`.
        trust_remote_code: run model code that comes with the start.

    Example:
        >>> student = Student(0, start / "model-0", out, context, describe)  # doctest: +SKIP
        >>> student.learn_bi(labels, settings=BiTrainingSettings(), device="cpu", stop=stop)  # doctest: +SKIP
    """

    number: int
    start: Path
    out: Path
    context: TrainingContext
    describe: Callable[..., Mapping[str, Any]]
    trust_remote_code: bool = False

    def bootstrap(
        self, sentences: Sequence[str], *, settings: BootstrapSettings, device: str, stop: StopRequest
    ) -> None:
        """Train on raw sentences; errors as of `bootstrapping.bootstrap_encoder`."""
        with self._prepare(stop) as context:
            model = load_bi_encoder(self.start, device=device, trust_remote_code=self.trust_remote_code)
            log = bootstrap_encoder(model, sentences, settings=settings, context=context)
            self._keep(model, log, settings=settings, sentences=len(sentences))

    def learn_cross(
        self, labels: Path, *, new_head: bool, settings: CrossTrainingSettings, device: str, stop: StopRequest
    ) -> None:
        """Train a cross-encoder on the labels of a stage; errors as of `training.train_cross_encoder`."""
        with self._prepare(stop) as context:
            model = load_cross_encoder(
                self.start, new_head=new_head, device=device, trust_remote_code=self.trust_remote_code
            )
            rows = read_labels(labels)
            log = train_cross_encoder(model, rows, settings=settings, context=context)
            self._keep(model, log, settings=settings, pairs=len(rows))

    def learn_bi(
        self,
        labels: Path,
        *,
        settings: BiTrainingSettings,
        device: str,
        stop: StopRequest,
        down_weight: float = 0.0,
        peer: Path | None = None,
        whiten: bool = False,
    ) -> None:
        """Train a bi-encoder on the labels of a stage; errors as of `training.train_bi_encoder`.

        Args:
            labels: a label stage.
            settings: how to train.
            device: where.
            stop: asked after every step.
            down_weight: see `labeling.thin_out`.
            peer: the folder of the bi-encoder whose geometry is kept; None: its own.
            whiten: train without the whitening layer that the start may have, and whiten over the texts at the end.
        """
        with self._prepare(stop) as context:
            model = load_bi_encoder(self.start, device=device, trust_remote_code=self.trust_remote_code)
            if whiten:
                remove_whitening(model)
            given = read_labels(labels)
            rows = thin_out(given, down_weight, seed=context.seed, lists=settings.loss in LIST_LOSSES)
            other = None
            if peer is not None:
                other = load_bi_encoder(
                    peer, dtype=context.precision, device=device, trust_remote_code=self.trust_remote_code
                )
            log = train_bi_encoder(model, rows, settings=settings, context=context, peer=other)
            facts: dict[str, Any] = {"settings": settings, "pairs": len(rows)}
            if whiten:
                texts = [*given["sentence1"], *given["sentence2"]]
                facts["whitened over sentences"] = whiten_encoder(model, texts)
                if self._last.is_dir():
                    last = load_bi_encoder(self._last, device=device, trust_remote_code=self.trust_remote_code)
                    whiten_encoder(last, texts)
                    save_model(last, self._last)
            self._keep(model, log, **facts)

    @contextmanager
    def _prepare(self, stop: StopRequest) -> Iterator[TrainingContext]:
        with self.context.hold():
            set_seed(self.context.seed)
            yield dataclasses.replace(self.context, stop=stop)

    def _keep(self, model: Encoder, log: Sequence[Mapping[str, Any]], **facts: Any) -> None:
        save_model(model, self.out / f"model-{self.number}", card=self.describe(**facts))
        if self._last.is_dir():
            shutil.copytree(self._last, self.out / f"last-{self.number}")
        write_log(self.out / f"log-{self.number}.json", log)

    @property
    def _last(self) -> Path:
        """The last weights, where a training chose others."""
        return self.context.work / "last"
