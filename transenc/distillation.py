"""The cycle of Trans-Encoder (Liu et al., ICLR 2022): a bi-encoder labels, a cross-encoder learns, and back."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import set_seed

from transenc import durable
from transenc.config import Backbone, DistillConfig, to_dict
from transenc.encoders import (
    Encoder,
    load_bi_encoder,
    load_cross_encoder,
    load_encoder,
    model_digest,
    resolve_device,
    resolve_precision,
)
from transenc.errors import InputError, StateError
from transenc.labeling import Scores, labelled, merge_scores
from transenc.metrics import correlation
from transenc.pairs import count_overlap
from transenc.run import Run, check_identity, open_run, verify_run
from transenc.scoring import score_pairs
from transenc.signals import StopRequest, stop_on_signals
from transenc.training import TrainingContext, train_bi_encoder, train_cross_encoder, train_steps

logger = logging.getLogger(__name__)

START = "c00-00-start"
MAX_AUTO_CYCLES = 10
RISE = 0.1  # `cycles: auto` goes on while the criterion (x100) rises by more than this


@dataclass(frozen=True)
class DistillResult:
    """What a finished run made; every path is an ordinary sentence-transformers folder.

    Args:
        run: the run directory.
        bi_encoders: the bi-encoders of the chosen cycle, the chosen one first.
        cross_encoders: the cross-encoders of the chosen cycle (of the best one when the start won), likewise.
        best: `{"bi": {"path", "backbone", "cycle", "score"}, "cross": {...}, "criterion"}`; scores x100 or None.
        history: a dict a cycle, the start first: `{"cycle", "bi": [...], "cross": [...], "agreement"}`.
    """

    run: Path
    bi_encoders: tuple[Path, ...]
    cross_encoders: tuple[Path, ...]
    best: dict[str, Any]
    history: tuple[dict[str, Any], ...]


def distill(
    backbones: Sequence[Backbone],
    pairs: Dataset,
    *,
    output_dir: str | Path,
    config: DistillConfig | None = None,
    dev: Dataset | None = None,
    symmetric: bool = True,
    device: str | None = None,
    fork: str | Path | None = None,
    report_to: Sequence[str] = (),
    trust_remote_code: bool = False,
    inputs: dict[str, Any] | None = None,
) -> DistillResult:
    """Distil unlabelled pairs into better bi-encoders and cross-encoders, in a durable run.

    One backbone is self-distillation, several are mutual distillation: the teachers' scores are merged and every
    student learns from the same labels. The same call on the same folder resumes; interrupted and resumed equals
    uninterrupted, bit for bit on a CPU with the same number of threads.

    Args:
        backbones: where to start from, one or more.
        pairs: columns sentence1, sentence2; no labels are read.
        output_dir: the run directory (new, empty, or this very run).
        config: settings; None: the preset `default`.
        dev: pairs with gold `score`, which then choose cycle and checkpoint. None: nothing gold is used.
        symmetric: whether (a, b) means the same as (b, a); False for question and answer.
        device: `cpu`, `cuda`, ...; None: a GPU if there is one.
        fork: a run with the same backbones and pairs whose finished stages are taken over under new settings.
        report_to: experiment trackers of HF Trainer.
        trust_remote_code: run model code that comes with a start model; only for code you have read.
        inputs: names to record in run.json, as the user gave them.

    Raises:
        InputError: no backbone, too few pairs, a folder of something else, an unusable model.
        StateError: changed settings or data, a damaged stage, a number that is not finite.
        BusyError: another process works on the run. Interrupted: a signal came; the run can be resumed.

    Example:
        >>> result = distill([Backbone("my/encoder")], read_pairs("pairs.tsv"), output_dir="run")  # doctest: +SKIP
        >>> evaluate_sts(result.bi_encoders)  # doctest: +SKIP
    """
    config = config or DistillConfig()
    if not backbones:
        raise InputError("distillation needs at least one backbone, got none")
    if len(pairs) < 2:
        raise InputError(f"distillation needs at least 2 pairs, got {len(pairs)}")
    if config.select == "dev" and dev is None:
        raise InputError("select 'dev' needs a dev set; give one (--dev FILE) or use --select last")
    device = resolve_device(device)
    identity = {
        "config": to_dict(config),
        "backbones": {f"model-{i}": _backbone_digests(backbone) for i, backbone in enumerate(backbones)},
        "pairs": {
            "rows": len(pairs),
            "sha256": _rows_digest(pairs, ("sentence1", "sentence2")),
            "symmetric": symmetric,
        },
        "dev": None if dev is None else {"rows": len(dev), "sha256": _rows_digest(dev, tuple(dev.column_names))},
        "machine": {
            "device": device,
            "threads": torch.get_num_threads(),
            "precision": resolve_precision(config.precision, device=device),
        },
        "inputs": inputs or {},
    }
    if (done := _finished(Path(output_dir), identity)) is not None:
        logger.info("%s: complete, nothing to do", output_dir)
        return done
    if dev is not None and (shared := count_overlap(pairs, dev))["pairs"]:
        logger.warning("%d of %d dev pairs are also training pairs (without labels)", shared["pairs"], len(dev))
    with stop_on_signals() as stop, open_run(output_dir, identity, fork=fork) as run:
        loop = _Distillation(
            run, tuple(backbones), pairs, config, dev, symmetric, stop, tuple(report_to), trust_remote_code
        )
        return loop.finish()


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

    The time comes from scoring up to 64 of the pairs with the first backbone here and now; a training step is taken
    as three times a forward pass, a cross-encoder's pass over a pair as one over its two sentences.

    Returns:
        One dict a stage: `stage`, `pairs` that pass through a model, `steps` (training), `minutes`.

    Raises:
        InputError: an unusable model.

    Example:
        >>> describe_plan([Backbone("my/encoder")], pairs, config=DistillConfig())  # doctest: +SKIP
    """
    model = load_bi_encoder(backbones[0].bi, pooling=backbones[0].pooling, device=device)
    sample = pairs.select(range(0, len(pairs), max(1, len(pairs) // 64)))
    score_pairs(model, sample.select(range(2)), batch_tokens=config.batch_tokens)  # the first call warms up
    started = time.perf_counter()
    score_pairs(model, sample, batch_tokens=config.batch_tokens)
    minutes_a_pair = (time.perf_counter() - started) / len(sample) / 60
    n, k = len(pairs), len(backbones)
    orders = 2 if symmetric else 1
    cycles = config.cycles if isinstance(config.cycles, int) else MAX_AUTO_CYCLES
    plan = [{"stage": START, "pairs": 0, "steps": 0, "minutes": 0.0}]
    for cycle in range(1, cycles + 1):
        cross_steps, bi_steps = train_steps(orders * n, config.cross), train_steps(n, config.bi)
        for stage, passes, steps in (
            ("10-bi-label", n, 0),
            ("20-cross-train", round(3 * orders * n * config.cross.epochs), cross_steps),
            ("30-cross-label", orders * n, 0),
            ("40-bi-train", round(3 * n * config.bi.epochs), bi_steps),
            ("50-evaluate", 0 if dev is None else (1 + orders) * len(dev), 0),
        ):
            minutes = round(k * passes * minutes_a_pair, 1)
            plan.append({"stage": _name(cycle, stage), "pairs": k * passes, "steps": k * steps, "minutes": minutes})
    return plan


@dataclass(frozen=True)
class _Distillation:
    run: Run
    backbones: tuple[Backbone, ...]
    pairs: Dataset
    config: DistillConfig
    dev: Dataset | None
    symmetric: bool
    stop: StopRequest
    report_to: tuple[str, ...]
    trust_remote_code: bool

    def finish(self) -> DistillResult:
        """Walk the stages; those that are done cost a verification only."""
        self.run.stage(START, self._save_starts)
        history = [self._evaluate(0)]
        for cycle in self._cycles(history):
            previous = START if cycle == 1 else _name(cycle - 1, "40-bi-train")
            bi_label, cross_train, cross_label, bi_train = (
                _name(cycle, stage) for stage in ("10-bi-label", "20-cross-train", "30-cross-label", "40-bi-train")
            )
            carry = [_name(cycle - 1, "20-cross-train")] if self.config.continue_cross and cycle > 1 else []
            self.run.stage(bi_label, lambda out, _, a=previous: self._label_by_bi(out, a), inputs=[previous])
            self.run.stage(
                cross_train,
                lambda out, work, c=cycle, a=bi_label: self._train_cross(out, work, c, a),
                inputs=[START, bi_label, *carry],
            )
            self.run.stage(
                cross_label,
                lambda out, _, a=cross_train, b=bi_label: self._label_by_cross(out, a, b),
                inputs=[cross_train, bi_label],
            )
            start = previous if self.config.continue_bi else START
            self.run.stage(
                bi_train,
                lambda out, work, c=cycle, a=start, b=cross_label: self._train_bi(out, work, c, a, b),
                inputs=[start, cross_label],
            )
            history.append(self._evaluate(cycle))
        return self._publish_best(history)

    def _cycles(self, history: list[dict[str, Any]]) -> Iterator[int]:
        if isinstance(self.config.cycles, int):
            yield from range(1, self.config.cycles + 1)
            return
        for cycle in range(1, MAX_AUTO_CYCLES + 1):
            yield cycle
            values = [_criterion(entry) for entry in history]
            last, before = values[-1], max((v for v in values[:-1] if v is not None), default=None)
            if last is None or (before is not None and last - before <= RISE):
                return

    def _save_starts(self, out: Path, work: Path) -> None:
        for i, backbone in enumerate(self.backbones):
            bi = load_bi_encoder(
                backbone.bi, pooling=backbone.pooling, device="cpu", trust_remote_code=self.trust_remote_code
            )
            _save(bi, out / f"model-{i}")
            if backbone.cross is not None:
                _seed(self.config.seed, "start", i)
                cross = load_cross_encoder(
                    backbone.cross, new_head=True, device="cpu", trust_remote_code=self.trust_remote_code
                )
                _save(cross, out / f"cross-{i}")

    def _label_by_bi(self, out: Path, teachers: str) -> None:
        columns = {f"bi-{i}": scores for i, scores in enumerate(self._score(teachers))}
        scores = merge_scores(list(columns.values()), scale=self.config.scale)
        labelled(self.pairs, columns, scores).to_parquet(str(out / "labels.parquet"))

    def _label_by_cross(self, out: Path, teachers: str, bi_label: str) -> None:
        old = _read_labels(self.run.stage_path(bi_label))
        columns = {name: old.with_format("numpy")[name][:] for name in old.column_names if name.startswith("bi-")}
        columns.update({f"cross-{i}": scores for i, scores in enumerate(self._score(teachers))})
        keep = self.config.keep_label
        weights = [keep if name.startswith("bi-") else 1 - keep for name in columns]
        scores = merge_scores(list(columns.values()), weights=weights, scale=self.config.scale)
        labelled(self.pairs, columns, scores).to_parquet(str(out / "labels.parquet"))

    def _train_cross(self, out: Path, work: Path, cycle: int, labels: str) -> None:
        starts = self.run.stage_path(START)
        for i in range(len(self.backbones)):
            context = self._context(work, cycle, "cross", i)
            fresh = starts / f"cross-{i}" if (starts / f"cross-{i}").is_dir() else starts / f"model-{i}"
            carried = self.config.continue_cross and cycle > 1
            source = self.run.stage_path(_name(cycle - 1, "20-cross-train")) / f"model-{i}" if carried else fresh
            has_head = carried or source.name.startswith("cross-")
            model = load_cross_encoder(str(source), new_head=not has_head, device=self._device)
            log = train_cross_encoder(
                model, _read_labels(self.run.stage_path(labels)), settings=self.config.cross, context=context
            )
            _publish_model(model, out, i, context.work, log)

    def _train_bi(self, out: Path, work: Path, cycle: int, start: str, labels: str) -> None:
        for i in range(len(self.backbones)):
            context = self._context(work, cycle, "bi", i)
            source = self.run.stage_path(start) / f"model-{i}"
            model = load_bi_encoder(str(source), device=self._device)
            log = train_bi_encoder(
                model, _read_labels(self.run.stage_path(labels)), settings=self.config.bi, context=context
            )
            _publish_model(model, out, i, context.work, log)

    def _evaluate(self, cycle: int) -> dict[str, Any]:
        name = _name(cycle, "50-evaluate")
        stages = {"bi": START} if cycle == 0 else {form: _name(cycle, s) for form, s in _STAGES.items()}
        inputs = list(stages.values()) + ([_name(cycle, "30-cross-label")] if cycle else [])
        path = self.run.stage(name, lambda out, _: self._write_metrics(out, cycle, stages), inputs=inputs)
        return durable.read_json(path / "metrics.json")

    def _write_metrics(self, out: Path, cycle: int, stages: dict[str, str]) -> None:
        entry: dict[str, Any] = {"cycle": cycle, "bi": [], "cross": [], "agreement": None}
        for form, stage in stages.items():
            for kind in ("model", "last"):  # `last` is there when a checkpoint was chosen on the dev set
                for i in range(len(self.backbones)):
                    folder = self.run.stage_path(stage) / f"{kind}-{i}"
                    if folder.is_dir():
                        path = folder.relative_to(self.run.folder).as_posix()
                        entry[form].append({"backbone": i, "path": path, "score": self._dev_score(folder)})
        if cycle:
            labels = _read_labels(self.run.stage_path(_name(cycle, "30-cross-label"))).with_format("numpy")
            means = [
                merge_scores([labels[name][:] for name in labels.column_names if name.startswith(form)])
                for form in ("bi-", "cross-")
            ]
            entry["agreement"] = _percent(correlation(means[0], means[1])["spearman"])
        durable.write_json(out / "metrics.json", entry)

    def _dev_score(self, folder: Path) -> float | None:
        if self.dev is None:
            return None
        encoder = self._load_for_scoring(folder)
        scores = score_pairs(encoder, self.dev, symmetric=self.symmetric, batch_tokens=self.config.batch_tokens)
        return _percent(correlation(scores, list(self.dev["score"]))["spearman"])

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

    def _load_for_scoring(self, folder: Path) -> Encoder:
        return load_encoder(str(folder), dtype=self.run.identity["machine"]["precision"], device=self._device)

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

    def _publish_best(self, history: list[dict[str, Any]]) -> DistillResult:
        by_dev = self.config.select == "dev" or (self.config.select == "auto" and self.dev is not None)
        best: dict[str, Any] = {"criterion": "dev" if by_dev else "last"}
        for form in ("bi", "cross"):
            candidates = [
                {**entry, "cycle": e["cycle"]} for e in history for entry in e[form] if "/model-" in entry["path"]
            ]
            if by_dev:
                candidates = [c for c in candidates if c["score"] is not None]
                if not candidates:
                    raise StateError(
                        f"{self.run.folder}: the dev Spearman of every {form}-encoder is undefined (constant gold "
                        "scores or constant predictions); nothing can be chosen: give another dev set or --select last"
                    )
                best[form] = max(candidates, key=lambda c: c["score"])  # the earliest of equals: the start first
            else:
                best[form] = next(c for c in candidates if c["cycle"] == history[-1]["cycle"])
        best["start_won"] = best["bi"]["cycle"] == 0
        (self.run.folder / "best").mkdir(exist_ok=True)
        for form, link in (("bi", "bi-encoder"), ("cross", "cross-encoder")):
            durable.replace_symlink(self.run.folder / "best" / link, Path("..") / best[form]["path"])
        durable.write_json(self.run.folder / "best.json", {"complete": True, "best": best, "history": history})
        self.run.record("complete", best=best)
        return _read_result(self.run.folder)


_STAGES = {"bi": "40-bi-train", "cross": "20-cross-train"}


def _finished(folder: Path, identity: dict[str, Any]) -> DistillResult | None:
    """The result of a complete run, verified without writing a byte; None when there is work to do."""
    if not (folder / "best.json").is_file() or not (folder / "run.json").is_file():
        return None
    check_identity(folder, identity)
    try:
        result = _read_result(folder)
    except StateError as error:
        logger.warning("%s; it is made again from the stages", error)
        return None
    verify_run(folder)
    return result if all(path.exists() for path in result.bi_encoders + result.cross_encoders) else None


def _read_result(folder: Path) -> DistillResult:
    content = durable.read_json(folder / "best.json")
    try:
        best, history = content["best"], content["history"]
        models = {}
        for form in ("bi", "cross"):
            chosen = best[form]["path"]
            others = [model["path"] for model in _chosen(history[best[form]["cycle"]], form)]
            models[form] = tuple(folder / p for p in [chosen, *(o for o in others if o != chosen)])
    except (KeyError, IndexError, TypeError):
        raise StateError(f"{folder / 'best.json'}: not the result of a run") from None
    return DistillResult(folder, models["bi"], models["cross"], best, tuple(history))


def _chosen(entry: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """A cycle's models of one form, without the `last-*` copies kept beside checkpoints chosen on the dev set."""
    return [model for model in entry[form] if "/model-" in model["path"]]


def _criterion(entry: dict[str, Any]) -> float | None:
    """What `cycles: auto` watches: the best dev score, else the agreement of labels of both forms; x100."""
    scores = [model["score"] for model in _chosen(entry, "bi") if model["score"] is not None]
    return max(scores) if scores else entry["agreement"]


def _publish_model(model: Encoder, out: Path, i: int, work: Path, log: list[dict[str, Any]]) -> None:
    _save(model, out / f"model-{i}")
    if (work / "last").is_dir():
        shutil.copytree(work / "last", out / f"last-{i}")
    durable.write_json(out / f"log-{i}.json", log)


def _save(model: Encoder, folder: Path) -> None:
    model.model_card_data.generate_widget_examples = False
    model.save_pretrained(str(folder))


def _read_labels(stage: Path) -> Dataset:
    return Dataset.from_parquet(str(stage / "labels.parquet"), keep_in_memory=True)


def _name(cycle: int, stage: str) -> str:
    return f"c{cycle:02d}-{stage}"


def _seed(*parts: Any) -> int:
    """Seed every generator from a stage's own seed, so that a stage does not depend on what ran before it."""
    seed = int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4])
    set_seed(seed)
    return seed


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)


def _backbone_digests(backbone: Backbone) -> dict[str, Any]:
    return {
        "bi": model_digest(backbone.bi),
        "cross": None if backbone.cross is None else model_digest(backbone.cross),
        "pooling": backbone.pooling,
    }


def _rows_digest(rows: Dataset, columns: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for values in zip(*(rows[name] for name in columns), strict=True):
        digest.update(json.dumps(values, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
