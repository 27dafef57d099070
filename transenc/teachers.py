"""The teachers of a run label its pairs: bi-encoders in their views, words in common, cross-encoders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from transenc import durable
from transenc.config import DistillConfig
from transenc.encoders import Encoder
from transenc.errors import StateError
from transenc.labeling import (
    Scores,
    make_labels,
    merge_labels,
    read_labels,
    read_teachers,
    usable_columns,
)
from transenc.preflight import inspect_pairs, pair_strangers
from transenc.scoring import score_pairs
from transenc.views import score_alignments, score_overlap, score_simplified

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teachers:
    """The label stages of a run: every backbone's model scores the pairs, the scores become one label.

    Args:
        pairs: columns sentence1, sentence2; n rows.
        config: which views count, and how the label is merged.
        weights: of the backbones, by their number.
        symmetric: a cross-encoder's score is the mean of both orders.
        load: the encoder in a folder, by its backbone's number.

    Example:
        >>> teachers = Teachers(pairs, config, [1.0], True, load)  # doctest: +SKIP
        >>> teachers.label_by_bi([start / "model-0"], out=stage)  # doctest: +SKIP
    """

    pairs: Dataset
    config: DistillConfig
    weights: Sequence[float]
    symmetric: bool
    load: Callable[[Path, int], Encoder]

    def label_by_bi(self, models: Sequence[Path], *, out: Path, earlier: Path | None = None) -> None:
        """Write what the bi-encoders say, in each view that counts, and the label that follows, to `out`.

        Args:
            models: a folder a backbone.
            out: gets labels.parquet.
            earlier: the last label stage of the cycle before, whose teachers go on having a say.

        Raises:
            StateError: no teacher orders the pairs.
        """
        columns: dict[str, Scores] = {}
        if earlier is not None:
            columns = read_teachers(read_labels(earlier), earlier=earlier.name.partition("-")[0])
        views = {
            "plain": (self.config.simplified, score_simplified),
            "align": (self.config.alignment, score_alignments),
        }
        for i, folder in enumerate(models):
            columns[f"bi-{i}"] = self._score(score_pairs, folder, i)
            columns |= {
                f"{name}-{i}": self._score(score, folder, i) for name, (weight, score) in views.items() if weight
            }
        if self.config.overlap:
            columns["overlap"] = score_overlap(self.pairs)
        self._write(columns, out)

    def label_by_cross(self, models: Sequence[Path], *, out: Path, labels: Path) -> None:
        """Write what the teachers of `labels` and the cross-encoders say to `out`, as `label_by_bi`."""
        columns = read_teachers(read_labels(labels))
        for i, folder in enumerate(models):
            columns[f"cross-{i}"] = self._score(score_pairs, folder, i, symmetric=self.symmetric)
        self._write(columns, out)

    def inspect(
        self,
        models: Sequence[Path],
        *,
        out: Path,
        plain: Sequence[bool],
        dev: Dataset | None,
        tests: Mapping[str, Dataset],
    ) -> None:
        """Say what speaks against the run while it has cost little: inspection.json in `out`, and the log.

        Args:
            models: as for `label_by_bi`, whose labels lie in `out`.
            out: a label stage.
            plain: of each backbone, whether it is a language model as it was downloaded.
            dev: pairs that will choose.
            tests: pairs that will measure, by name.
        """
        labels = read_labels(out)
        scores = {**read_teachers(labels), "score": np.asarray(labels["score"], dtype=np.float32)}
        first = next((int(name.removeprefix("bi-")) for name in scores if name.startswith("bi-")), 0)
        try:
            strangers = score_pairs(
                self.load(models[first], first), pair_strangers(self.pairs), batch_tokens=self.config.batch_tokens
            )
        except StateError as error:
            logger.warning("unrelated sentences were not looked at: %s", error)
            strangers = None
        inspection = inspect_pairs(
            self.pairs, scores, strangers=strangers, dev=dev, tests=tests, symmetric=self.symmetric, plain=plain[first]
        )
        durable.write_json(out / "inspection.json", inspection.to_dict())
        for finding in inspection.findings:
            logger.warning("%s", finding.text)

    def _score(self, score: Callable[..., Scores], folder: Path, i: int, **options: Any) -> Scores:
        """A teacher's scores of the pairs by `score`; NaN throughout where the teacher gives no number."""
        try:
            return score(
                self.load(folder, i), self.pairs, batch_tokens=self.config.batch_tokens, progress=True, **options
            )
        except StateError as error:
            logger.warning("%s: %s", folder, error)
            return np.full(len(self.pairs), np.nan, dtype=np.float32)

    def _write(self, columns: Mapping[str, Scores], out: Path) -> None:
        columns = usable_columns(columns)
        scores, keep = merge_labels(columns, self.config, backbones=self.weights)
        if keep is not None:
            logger.info("labels: %.0f %% of the bi-encoders, the rest of the cross-encoders", 100 * keep)
        make_labels(self.pairs, columns, scores).to_parquet(str(out / "labels.parquet"))
