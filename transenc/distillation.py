"""The cycle of Trans-Encoder (Liu et al., ICLR 2022): a bi-encoder labels, a cross-encoder learns, and back."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed

from transenc import durable
from transenc.bootstrapping import bootstrap_encoder
from transenc.config import Backbone, DistillConfig, TrainingSettings, to_dict
from transenc.encoders import (
    Encoder,
    detect_kind,
    load_bi_encoder,
    load_cross_encoder,
    load_encoder,
    model_digest,
    resolve_device,
    resolve_precision,
)
from transenc.labeling import Scores, make_labels, merge_scores, read_labels, read_rows
from transenc.metrics import correlation
from transenc.mining import mine_pairs
from transenc.model_cards import describe_origin, save_model
from transenc.outcome import DistillResult, find_outcome, publish_outcome, wants_cycle
from transenc.pairs import count_overlap, fold_sentence
from transenc.planning import BOOTSTRAP, MINE, START, check_inputs, describe_plan, needs_bootstrap, stage_name
from transenc.run import RUN_FILE, Run, check_identity, open_run
from transenc.scoring import score_pairs
from transenc.signals import StopRequest, stop_on_signals
from transenc.training import TrainingContext, train_bi_encoder, train_cross_encoder, write_log

__all__ = ["DistillResult", "describe_plan", "distill"]

logger = logging.getLogger(__name__)

FEW_PAIRS = 100


def distill(
    backbones: Sequence[Backbone],
    pairs: Dataset | None = None,
    *,
    output_dir: str | Path,
    sentences: Sequence[str] | None = None,
    config: DistillConfig | None = None,
    dev: Dataset | None = None,
    symmetric: bool = True,
    device: str | None = None,
    fork: str | Path | None = None,
    report_to: Sequence[str] = (),
    trust_remote_code: bool = False,
    inputs: dict[str, Any] | None = None,
) -> DistillResult:
    """Distil unlabelled pairs, or raw sentences, into better bi-encoders and cross-encoders, in a durable run.

    One backbone is self-distillation, several are mutual distillation: the teachers' scores are merged and every
    student learns from the same labels. The same call on the same folder resumes; interrupted and resumed equals
    uninterrupted, bit for bit on a CPU with the same number of threads. From sentences, two stages come first: a
    backbone that is a plain language model is bootstrapped, and the first backbone finds the pairs.

    Args:
        backbones: where to start from, one or more.
        pairs: columns sentence1, sentence2; no labels are read. None: they are mined from `sentences`.
        output_dir: the run directory (new, empty, or this very run).
        sentences: raw text instead of pairs, at least two different ones.
        config: settings; None: the preset `default`.
        dev: pairs with gold `score`, which then choose cycle and checkpoint. None: nothing gold is used.
        symmetric: whether (a, b) means the same as (b, a); False for question and answer.
        device: `cpu`, `cuda`, ...; None: a GPU if there is one.
        fork: a run with the same backbones and pairs whose finished stages are taken over under new settings.
        report_to: experiment trackers of HF Trainer.
        trust_remote_code: run model code that comes with a start model; only for code you have read.
        inputs: names to record in run.json, as the user gave them.

    Raises:
        InputError: no backbone, neither or both of pairs and sentences, too few of them, a folder of something else,
            an unusable model.
        StateError: changed settings or data, a damaged stage, a number that is not finite.
        BusyError: another process works on the run. Interrupted: a signal came; the run can be resumed.

    Example:
        >>> result = distill([Backbone("my/encoder")], read_pairs("pairs.tsv"), output_dir="run")  # doctest: +SKIP
        >>> evaluate_sts(result.bi_encoders)  # doctest: +SKIP
    """
    config = config or DistillConfig()
    check_inputs(backbones, pairs, sentences, config=config, dev=dev, symmetric=symmetric)
    device = resolve_device(device)
    identity = {
        "config": _describe_config(config, mined=pairs is None),
        "backbones": {f"model-{i}": _describe_backbone(backbone) for i, backbone in enumerate(backbones)},
        "pairs": {**_describe_texts(pairs, sentences), "symmetric": symmetric},
        "dev": None if dev is None else {"rows": len(dev), "sha256": _digest_rows(dev, tuple(dev.column_names))},
        "machine": {
            "device": device,
            "threads": torch.get_num_threads(),
            "precision": resolve_precision(config.precision, device=device),
        },
        "inputs": inputs or {},
    }
    folder = Path(output_dir)
    if (folder / "best.json").is_file() and (folder / RUN_FILE).is_file():
        check_identity(folder, identity)
        if (done := find_outcome(folder, config, has_dev=dev is not None)) is not None:
            logger.info("%s: complete, nothing to do", folder)
            return done
    if pairs is not None:
        _warn_of_pairs(pairs, dev)
    with stop_on_signals() as stop, open_run(folder, identity, fork=fork) as run:
        return _Distillation(
            run, tuple(backbones), pairs, sentences, config, dev, symmetric, stop, tuple(report_to), trust_remote_code
        ).finish()


@dataclass(frozen=True)
class _Distillation:
    run: Run
    backbones: tuple[Backbone, ...]
    given_pairs: Dataset | None
    sentences: Sequence[str] | None
    config: DistillConfig
    dev: Dataset | None
    symmetric: bool
    stop: StopRequest
    report_to: tuple[str, ...]
    trust_remote_code: bool

    def finish(self) -> DistillResult:
        """Walk the stages; those that are done cost a verification only."""
        has_dev = self.dev is not None
        self.run.stage(START, self._save_starts)
        if self._first == BOOTSTRAP:
            self.run.stage(BOOTSTRAP, self._bootstrap, inputs=[START])
        if self.sentences is not None:
            self.run.stage(MINE, self._mine, inputs=[self._first])
        history = [self._evaluate(0)]
        while wants_cycle(history, self.config, has_dev=has_dev):
            self._run_cycle(len(history))
            history.append(self._evaluate(len(history)))
        return publish_outcome(self.run, history, self.config, has_dev=has_dev)

    @cached_property
    def pairs(self) -> Dataset:
        """The pairs to label: as given, or as mined."""
        if self.given_pairs is not None:
            return self.given_pairs
        mined = read_rows(self.run.stage_path(MINE) / "pairs.parquet")
        _warn_of_pairs(mined, self.dev)
        return mined

    @cached_property
    def _first(self) -> str:
        """The stage with the bi-encoders that label first, and with which every cycle's student starts."""
        return BOOTSTRAP if needs_bootstrap(self.backbones, self.sentences) else START

    def _run_cycle(self, cycle: int) -> None:
        bi_label, cross_train, cross_label, bi_train = (
            stage_name(cycle, stage) for stage in ("10-bi-label", "20-cross-train", "30-cross-label", "40-bi-train")
        )
        teachers = self._first if cycle == 1 else stage_name(cycle - 1, "40-bi-train")
        carried = stage_name(cycle - 1, "20-cross-train") if self.config.continue_cross and cycle > 1 else None
        bi_start = teachers if self.config.continue_bi else self._first
        run = self.run.stage
        mined = [] if self.sentences is None else [MINE]
        run(bi_label, partial(self._label_by_bi, teachers=teachers), inputs=[teachers, *mined])
        run(
            cross_train,
            partial(self._train_cross, cycle=cycle, carried=carried, labels=bi_label),
            inputs=[*dict.fromkeys((START, self._first)), bi_label, *([carried] if carried else [])],
        )
        run(
            cross_label,
            partial(self._label_by_cross, teachers=cross_train, bi_label=bi_label),
            inputs=[cross_train, bi_label],
        )
        run(
            bi_train,
            partial(self._train_bi, cycle=cycle, start=bi_start, labels=cross_label),
            inputs=[bi_start, cross_label],
        )

    def _save_starts(self, out: Path, work: Path) -> None:
        options: dict[str, Any] = {"device": "cpu", "trust_remote_code": self.trust_remote_code}
        for i, backbone in enumerate(self.backbones):
            save_model(load_bi_encoder(backbone.bi, pooling=backbone.pooling, **options), out / f"model-{i}")
            if backbone.cross is not None:
                _seed(self.config.seed, "start", i)
                has_head = detect_kind(backbone.cross) == "cross"
                save_model(load_cross_encoder(backbone.cross, new_head=not has_head, **options), out / f"cross-{i}")

    def _bootstrap(self, out: Path, work: Path) -> None:
        assert self.sentences is not None
        for i, backbone in enumerate(self.backbones):
            start = self.run.stage_path(START) / f"model-{i}"
            if not needs_bootstrap([backbone], self.sentences):
                logger.info("%s is a bi-encoder already: not bootstrapped", backbone.bi)
                shutil.copytree(start, out / f"model-{i}")
                continue
            context = self._context(work, 0, "bootstrap", i)
            model = load_bi_encoder(start, device=self._device, trust_remote_code=self.trust_remote_code)
            log = bootstrap_encoder(model, self.sentences, settings=self.config.bootstrap, context=context)
            card = self._describe_model(0, i, self.config.bootstrap, sentences=len(self.sentences))
            _keep_model(model, out, i, context.work, log, card=card)

    def _mine(self, out: Path, work: Path) -> None:
        assert self.sentences is not None
        pairs = mine_pairs(
            load_bi_encoder(self.run.stage_path(self._first) / "model-0", **self._loading),
            self.sentences,
            settings=self.config.mine,
            seed=_seed(self.config.seed, 0, "mine", 0),
            batch_tokens=self.config.batch_tokens,
            progress=True,
            work=work,
        )
        pairs.to_parquet(str(out / "pairs.parquet"))

    def _label_by_bi(self, out: Path, work: Path, *, teachers: str) -> None:
        columns = {f"bi-{i}": scores for i, scores in enumerate(self._score(teachers))}
        scores = merge_scores(list(columns.values()), scale=self.config.scale)
        make_labels(self.pairs, columns, scores).to_parquet(str(out / "labels.parquet"))

    def _label_by_cross(self, out: Path, work: Path, *, teachers: str, bi_label: str) -> None:
        columns = _teacher_columns(self.run.stage_path(bi_label), "bi-")
        columns.update({f"cross-{i}": scores for i, scores in enumerate(self._score(teachers))})
        keep = self.config.keep_label
        weights = [keep if name.startswith("bi-") else 1 - keep for name in columns]
        scores = merge_scores(list(columns.values()), weights=weights, scale=self.config.scale)
        make_labels(self.pairs, columns, scores).to_parquet(str(out / "labels.parquet"))

    def _train_cross(self, out: Path, work: Path, *, cycle: int, carried: str | None, labels: str) -> None:
        for i in range(len(self.backbones)):
            context = self._context(work, cycle, "cross", i)
            own_start = self.run.stage_path(START) / f"cross-{i}"
            if carried is not None:
                source, has_head = self.run.stage_path(carried) / f"model-{i}", True
            elif own_start.is_dir():
                source, has_head = own_start, True
            else:
                source, has_head = self.run.stage_path(self._first) / f"model-{i}", False
            model = load_cross_encoder(
                source, new_head=not has_head, device=self._device, trust_remote_code=self.trust_remote_code
            )
            rows = read_labels(self.run.stage_path(labels))
            log = train_cross_encoder(model, rows, settings=self.config.cross, context=context)
            card = self._describe_model(cycle, i, self.config.cross, pairs=len(rows))
            _keep_model(model, out, i, context.work, log, card=card)

    def _train_bi(self, out: Path, work: Path, *, cycle: int, start: str, labels: str) -> None:
        for i in range(len(self.backbones)):
            context = self._context(work, cycle, "bi", i)
            source = self.run.stage_path(start) / f"model-{i}"
            model = load_bi_encoder(source, device=self._device, trust_remote_code=self.trust_remote_code)
            rows = read_labels(self.run.stage_path(labels))
            log = train_bi_encoder(model, rows, settings=self.config.bi, context=context)
            card = self._describe_model(cycle, i, self.config.bi, pairs=len(rows))
            _keep_model(model, out, i, context.work, log, card=card)

    def _evaluate(self, cycle: int) -> dict[str, Any]:
        trained = {"bi": stage_name(cycle, "40-bi-train"), "cross": stage_name(cycle, "20-cross-train")}
        stages = trained if cycle else {"bi": self._first}
        labels = stage_name(cycle, "30-cross-label") if cycle else None
        path = self.run.stage(
            stage_name(cycle, "50-evaluate"),
            partial(self._write_metrics, cycle=cycle, stages=stages, labels=labels),
            inputs=[*stages.values(), *([labels] if labels else [])],
        )
        return durable.read_json(path / "metrics.json")

    def _write_metrics(self, out: Path, work: Path, *, cycle: int, stages: dict[str, str], labels: str | None) -> None:
        entry: dict[str, Any] = {"cycle": cycle, "bi": [], "cross": [], "agreement": None}
        predictions: dict[str, list[float]] = {}
        for form, stage in stages.items():
            for kind in ("model", "last"):  # `last` is there when a checkpoint was chosen on the dev set
                for i in range(len(self.backbones)):
                    folder = self.run.stage_path(stage) / f"{kind}-{i}"
                    if folder.is_dir():
                        path = folder.relative_to(self.run.folder).as_posix()
                        figures, predictions[path] = self._score_on_dev(folder)
                        entry[form].append({"backbone": i, "path": path, **figures})
        if labels is not None:
            bi, cross = (_teacher_columns(self.run.stage_path(labels), form) for form in ("bi-", "cross-"))
            means = merge_scores(list(bi.values())), merge_scores(list(cross.values()))
            entry["agreement"] = _percent(correlation(*means)["spearman"])
        durable.write_json(out / "metrics.json", entry)
        if self.dev is not None:  # for the report
            kept = {"gold": list(self.dev["score"]), "scores": predictions}
            shared = count_overlap(read_labels(self.run.stage_path(labels)), self.dev) if labels else None
            durable.write_json(out / "dev.json", {**kept, "overlap": shared})

    def _score_on_dev(self, folder: Path) -> tuple[dict[str, Any], list[float]]:
        """The figures of one model, and its score of every dev pair."""
        if self.dev is None:
            return {"score": None}, []
        scores = score_pairs(
            self._load_for_scoring(folder), self.dev, symmetric=self.symmetric, batch_tokens=self.config.batch_tokens
        )
        kept = [float(str(score)) for score in scores]  # the shortest digits that give the float32 again
        found = correlation(scores, list(self.dev["score"]))
        if found["spearman"] is None:
            logger.warning("%s: the dev Spearman is undefined: %s", folder, found["reason"])
            return {"score": None, "reason": found["reason"]}, kept
        return {"score": _percent(found["spearman"])}, kept

    def _score(self, stage: str) -> list[Scores]:
        return [
            score_pairs(
                self._load_for_scoring(self.run.stage_path(stage) / f"model-{i}"),
                self.pairs,
                symmetric=self.symmetric,
                batch_tokens=self.config.batch_tokens,
                progress=True,
            )
            for i in range(len(self.backbones))
        ]

    def _describe_model(self, cycle: int, i: int, settings: TrainingSettings, **texts: int) -> dict[str, Any]:
        """What a student's model card says of its making."""
        names = (self.run.identity.get("inputs") or {}).get("model") or ()
        return describe_origin(
            names[i] if i < len(names) else None,
            self.run.identity["backbones"][f"model-{i}"]["bi"],
            settings=settings,
            seed=self.config.seed,
            cycle=cycle,
            **texts,
            labels="trained without labels" + (", a scored dev set chose" if self.dev is not None else ""),
        )

    def _load_for_scoring(self, folder: Path) -> Encoder:
        return load_encoder(folder, **self._loading)

    @property
    def _loading(self) -> dict[str, Any]:
        precision = self.run.identity["machine"]["precision"]
        return {"dtype": precision, "device": self._device, "trust_remote_code": self.trust_remote_code}

    @property
    def _device(self) -> str:
        return self.run.identity["machine"]["device"]

    def _context(self, work: Path, cycle: int, form: str, i: int) -> TrainingContext:
        return TrainingContext(
            work=work / f"model-{i}",
            seed=_seed(self.config.seed, cycle, form, i),
            precision=self.run.identity["machine"]["precision"],
            save_steps=self.config.save_steps,
            dev=self.dev,
            eval_steps=self.config.eval_steps,
            symmetric=self.symmetric,
            stop=self.stop,
            report_to=self.report_to,
        )


def _warn_of_pairs(pairs: Dataset, dev: Dataset | None) -> None:
    folded = [tuple(fold_sentence(text) for text in pair) for pair in zip(*_columns(pairs), strict=True)]
    alike = sum(first == second for first, second in folded)
    repeated = len(folded) - len({tuple(sorted(pair)) for pair in folded})
    if len(pairs) < FEW_PAIRS:
        logger.warning("only %d pairs: expect little of fewer than %d", len(pairs), FEW_PAIRS)
    if repeated:
        logger.warning("%d of %d pairs repeat another one (in either order); they count as often", repeated, len(pairs))
    if alike:
        logger.warning("%d of %d pairs have twice the same sentence, which teaches nothing", alike, len(pairs))
    if dev is not None and (shared := count_overlap(pairs, dev))["pairs"]:
        logger.warning("%d of %d dev pairs are also training pairs (without labels)", shared["pairs"], len(dev))


def _columns(pairs: Dataset) -> tuple[list[str], list[str]]:
    return list(pairs["sentence1"]), list(pairs["sentence2"])


def _keep_model(
    model: Encoder, out: Path, i: int, work: Path, log: list[dict[str, Any]], *, card: Mapping[str, Any] | None = None
) -> None:
    save_model(model, out / f"model-{i}", card=card)
    if (work / "last").is_dir():
        shutil.copytree(work / "last", out / f"last-{i}")
    write_log(out / f"log-{i}.json", log)


def _teacher_columns(stage: Path, prefix: str) -> dict[str, Scores]:
    labels = read_labels(stage).with_format("numpy")
    return {name: np.asarray(labels[name][:]) for name in labels.column_names if name.startswith(prefix)}


def _seed(*parts: Any) -> int:
    """Seed every generator from a stage's own seed, so that a stage does not depend on what ran before it."""
    seed = int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4])
    set_seed(seed)
    return seed


def _percent(value: Any) -> float | None:
    return None if value is None else round(100 * value, 2)


def _describe_backbone(backbone: Backbone) -> dict[str, Any]:
    return {
        "bi": model_digest(backbone.bi),
        "cross": None if backbone.cross is None else model_digest(backbone.cross),
        "pooling": backbone.pooling,
    }


def _describe_config(config: DistillConfig, *, mined: bool) -> dict[str, Any]:
    """The settings that matter: from given pairs nothing is bootstrapped or mined."""
    return {name: value for name, value in to_dict(config).items() if mined or name not in ("bootstrap", "mine")}


def _describe_texts(pairs: Dataset | None, sentences: Sequence[str] | None) -> dict[str, Any]:
    if pairs is not None:
        return {"rows": len(pairs), "sha256": _digest_rows(pairs, ("sentence1", "sentence2"))}
    assert sentences is not None
    rows = Dataset.from_dict({"sentence": list(sentences)})
    return {"sentences": len(rows), "sha256": _digest_rows(rows, ("sentence",))}


def _digest_rows(rows: Dataset, columns: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for values in zip(*(rows[name] for name in columns), strict=True):
        digest.update(json.dumps(values, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
