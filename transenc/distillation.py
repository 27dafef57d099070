"""The cycle of Trans-Encoder (Liu et al., ICLR 2022): a bi-encoder labels, a cross-encoder learns, and back."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from transenc import durable
from transenc.config import CRITERIA, Backbone, DistillConfig
from transenc.criteria import judge_students, sample_rows
from transenc.devices import resolve_devices
from transenc.encoders import (
    Encoder,
    detect_kind,
    load_bi_encoder,
    load_cross_encoder,
    load_encoder,
)
from transenc.identity import identify_run
from transenc.labeling import Scores, merge_scores, read_labels, read_rows, read_teachers
from transenc.metrics import correlation
from transenc.mining import flatten_lists, mine_lists, mine_pairs
from transenc.model_cards import describe_origin, save_model
from transenc.outcome import DistillResult, choosing_by, find_outcome, publish_outcome, wants_cycle
from transenc.pairs import count_overlap
from transenc.planning import BOOTSTRAP, MINE, START, check_inputs, describe_plan, needs_bootstrap, stage_name
from transenc.run import RUN_FILE, Run, check_identity, open_run
from transenc.scoring import score_pairs
from transenc.signals import StopRequest, stop_on_signals
from transenc.students import Student
from transenc.teachers import Teachers
from transenc.training import TrainingContext
from transenc.whitening import whiten_encoder
from transenc.workers import refuse_repeated_script, run_on_devices

__all__ = ["DistillResult", "describe_plan", "distill"]

logger = logging.getLogger(__name__)


def distill(
    backbones: Sequence[Backbone],
    pairs: Dataset | None = None,
    *,
    output_dir: str | Path,
    sentences: Sequence[str] | None = None,
    config: DistillConfig | None = None,
    dev: Dataset | None = None,
    tests: Mapping[str, Dataset] | None = None,
    symmetric: bool = True,
    device: str | Sequence[str] | None = None,
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
        tests: name -> pairs that will measure the result; what they share with the training pairs is told.
        symmetric: whether (a, b) means the same as (b, a); False for question and answer.
        device: `cpu`, `cuda`, ...; None: a GPU if there is one. Several (`"cuda:0,cuda:1"` or a list) train the
            students of several backbones side by side, backbone i on device i modulo their number; each in a process of
            its own (`workers.run_on_devices`).
        fork: a run with the same backbones and pairs whose finished stages are taken over under new settings.
        report_to: experiment trackers of HF Trainer.
        trust_remote_code: run model code that comes with a start model; only for code you have read.
        inputs: names to record in run.json, as the user gave them.

    Raises:
        InputError: no backbone, neither or both of pairs and sentences, too few of them, a folder of something else,
            an unusable model.
        StateError: changed settings or data, a damaged stage, a number that is not finite, a training process that
            was killed, a script with several devices and no `if __name__ == "__main__":`.
        BusyError: another process works on the run. Interrupted: a signal came; the run can be resumed.

    Example:
        >>> result = distill([Backbone("my/encoder")], read_pairs("pairs.tsv"), output_dir="run")  # doctest: +SKIP
        >>> evaluate_sts(result.bi_encoders)  # doctest: +SKIP
    """
    refuse_repeated_script()
    config = config or DistillConfig()
    check_inputs(backbones, pairs, sentences, config=config, dev=dev, symmetric=symmetric)
    identity = identify_run(
        backbones, pairs, sentences, config=config, dev=dev, symmetric=symmetric, device=device, inputs=inputs
    )
    folder = Path(output_dir)
    if (folder / "best.json").is_file() and (folder / RUN_FILE).is_file():
        check_identity(folder, identity)
        if (done := find_outcome(folder, config, has_dev=dev is not None)) is not None:
            logger.info("%s: complete, nothing to do", folder)
            return done
    with stop_on_signals() as stop, open_run(folder, identity, fork=fork) as run:
        return _Distillation(
            run, tuple(backbones), pairs, sentences, config, dev, symmetric, stop, tuple(report_to), trust_remote_code,
            tests or {},
        ).finish()  # fmt: skip


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
    tests: Mapping[str, Dataset]

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
        return read_rows(self.run.stage_path(MINE) / "pairs.parquet")

    @property
    def _texts(self) -> list[str]:
        """What the starts are whitened over."""
        if self.sentences is not None:
            return list(self.sentences)
        return [*self.pairs["sentence1"], *self.pairs["sentence2"]]

    @cached_property
    def _first(self) -> str:
        """The stage with the bi-encoders that label first, and with which every cycle's student starts."""
        return BOOTSTRAP if needs_bootstrap(self.backbones, self.sentences) else START

    @property
    def _mined(self) -> list[str]:
        """The stage whose pairs are labelled, if they were not given."""
        return [] if self.sentences is None else [MINE]

    def _run_cycle(self, cycle: int) -> None:
        bi_label, cross_train, cross_label, bi_train = (
            stage_name(cycle, stage) for stage in ("10-bi-label", "20-cross-train", "30-cross-label", "40-bi-train")
        )
        teachers = self._first if cycle == 1 else stage_name(cycle - 1, "40-bi-train")
        carried = stage_name(cycle - 1, "20-cross-train") if self.config.continue_cross and cycle > 1 else None
        bi_start = teachers if self.config.continue_bi else self._first
        run = self.run.stage
        mined = self._mined
        # with one student alone the other backbones teach as they began
        teaching = [teachers] if self.config.student is None else list(dict.fromkeys((self._first, teachers)))
        earlier = stage_name(cycle - 1, "30-cross-label") if self.config.keep_teachers and cycle > 1 else None
        run(
            bi_label,
            partial(self._label_by_bi, teachers=teachers, earlier=earlier),
            inputs=[*teaching, *mined, *([earlier] if earlier else [])],
        )
        run(
            cross_train,
            partial(self._train_cross, cycle=cycle, carried=carried, labels=bi_label),
            inputs=[*dict.fromkeys((START, self._first)), bi_label, *([carried] if carried else [])],
        )
        run(
            cross_label,
            partial(self._label_by_cross, teachers=cross_train, bi_label=bi_label),
            inputs=[cross_train, bi_label, *mined],
        )
        peers = [self._first] if self.config.bi.geometry and len(self.backbones) > 1 else []
        run(
            bi_train,
            partial(self._train_bi, cycle=cycle, start=bi_start, labels=cross_label),
            inputs=list(dict.fromkeys((bi_start, *peers, cross_label))),
        )

    def _save_starts(self, out: Path, work: Path) -> None:
        options: dict[str, Any] = {"device": "cpu", "trust_remote_code": self.trust_remote_code}
        for i, backbone in enumerate(self.backbones):
            model = load_bi_encoder(backbone.bi, pooling=backbone.pooling, **options)
            if self.config.whiten and not needs_bootstrap([backbone], self.sentences):
                whiten_encoder(model.to(self._devices[i % len(self._devices)]), self._texts, progress=True)
            save_model(model, out / f"model-{i}")
            if backbone.cross is not None:
                _seed(self.config.seed, "start", i)
                has_head = detect_kind(backbone.cross) == "cross"
                save_model(load_cross_encoder(backbone.cross, new_head=not has_head, **options), out / f"cross-{i}")

    def _bootstrap(self, out: Path, work: Path) -> None:
        assert self.sentences is not None
        settings = replace(self.config.bootstrap, whiten=self.config.whiten or self.config.bootstrap.whiten)
        jobs = {}
        for i, backbone in enumerate(self.backbones):
            start = self.run.stage_path(START) / f"model-{i}"
            if not needs_bootstrap([backbone], self.sentences):
                logger.info("%s is a bi-encoder already: not bootstrapped", backbone.bi)
                shutil.copytree(start, out / f"model-{i}")
                continue
            student = self._student(i, start, out, work, 0, "bootstrap")
            jobs[i] = partial(student.bootstrap, self.sentences, settings=settings)
        run_on_devices(jobs, self._devices, stop=self.stop)

    def _mine(self, out: Path, work: Path) -> None:
        assert self.sentences is not None
        mine = partial(mine_lists, size=self.config.mine.list_size) if self.config.mine.list_size else mine_pairs
        mined = mine(
            load_bi_encoder(self.run.stage_path(self._first) / "model-0", **self._loading(0)),
            self.sentences,
            settings=self.config.mine,
            seed=_seed(self.config.seed, 0, "mine", 0),
            batch_tokens=self.config.batch_tokens,
            progress=True,
            work=work,
        )
        pairs = flatten_lists(mined) if self.config.mine.list_size else mined
        pairs.to_parquet(str(out / "pairs.parquet"))

    def _label_by_bi(self, out: Path, work: Path, *, teachers: str, earlier: str | None) -> None:
        models = self._teacher_paths(teachers)
        self._teachers.label_by_bi(models, out=out, earlier=None if earlier is None else self.run.stage_path(earlier))
        if teachers == self._first:
            plain = [teachers == START and detect_kind(backbone.bi) != "bi" for backbone in self.backbones]
            self._teachers.inspect(models, out=out, plain=plain, dev=self.dev, tests=self.tests)

    def _label_by_cross(self, out: Path, work: Path, *, teachers: str, bi_label: str) -> None:
        self._teachers.label_by_cross(self._teacher_paths(teachers), out=out, labels=self.run.stage_path(bi_label))

    def _train_cross(self, out: Path, work: Path, *, cycle: int, carried: str | None, labels: str) -> None:
        jobs = {}
        for i in range(len(self.backbones)):
            own_start = self.run.stage_path(START) / f"cross-{i}"
            if carried is not None:
                source, has_head = self.run.stage_path(carried) / f"model-{i}", True
            elif own_start.is_dir():
                source, has_head = own_start, True
            else:
                source, has_head = self.run.stage_path(self._first) / f"model-{i}", False
            jobs[i] = partial(
                self._student(i, source, out, work, cycle, "cross").learn_cross,
                self.run.stage_path(labels), new_head=not has_head, settings=self.config.cross,
            )  # fmt: skip
        run_on_devices(jobs, self._devices, stop=self.stop)

    def _train_bi(self, out: Path, work: Path, *, cycle: int, start: str, labels: str) -> None:
        chosen, peers = self.config.student, self._teacher_paths(start)
        jobs = {}
        for i in range(len(self.backbones)) if chosen is None else [chosen]:
            # the geometry to keep: the next backbone's at the start of this cycle, or else the student's own
            peer = peers[(i + 1) % len(peers)] if self.config.bi.geometry and len(peers) > 1 else None
            jobs[i] = partial(
                self._student(i, self.run.stage_path(start) / f"model-{i}", out, work, cycle, "bi").learn_bi,
                self.run.stage_path(labels), settings=self.config.bi, down_weight=self.config.down_weight, peer=peer,
                whiten=self.config.whiten,
            )  # fmt: skip
        run_on_devices(jobs, self._devices, stop=self.stop)

    def _evaluate(self, cycle: int) -> dict[str, Any]:
        trained = {"bi": stage_name(cycle, "40-bi-train"), "cross": stage_name(cycle, "20-cross-train")}
        stages = trained if cycle else {"bi": self._first}
        labels = stage_name(cycle, "30-cross-label") if cycle else None
        path = self.run.stage(
            stage_name(cycle, "50-evaluate"),
            partial(self._write_metrics, cycle=cycle, stages=stages, labels=labels),
            inputs=list(dict.fromkeys((*stages.values(), *([labels, self._first, *self._mined] if labels else [])))),
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
                        figures, predictions[path] = self._score_on_dev(folder, i)
                        entry[form].append({"backbone": i, "path": path, **figures})
        if labels is not None:
            columns = read_teachers(read_labels(self.run.stage_path(labels)))
            forms = [[columns[name] for name in columns if name.startswith(form)] for form in ("bi-", "cross-")]
            if all(forms):  # a teacher without a usable score is left out
                entry["agreement"] = _percent(correlation(*map(merge_scores, forms))["spearman"])
            if choosing_by(self.config, has_dev=self.dev is not None) in CRITERIA:
                self._judge(entry, columns)
        durable.write_json(out / "metrics.json", entry)
        if self.dev is not None:  # for the report
            kept = {"gold": list(self.dev["score"]), "scores": predictions}
            shared = count_overlap(read_labels(self.run.stage_path(labels)), self.dev) if labels else None
            durable.write_json(out / "dev.json", {**kept, "overlap": shared})

    def _judge(self, entry: dict[str, Any], labels: dict[str, Scores]) -> None:
        """Put the criteria without labels into `entry`: of each trained bi-encoder, and of its start beside it."""
        rows = sample_rows(self.pairs, seed=self.config.seed)
        students = [model for model in entry["bi"] if "/model-" in model["path"]]
        judged = judge_students(
            [(model["backbone"], self.run.folder / model["path"]) for model in students],
            [self.run.stage_path(self._first) / f"model-{i}" for i in range(len(self.backbones))],
            self.pairs.select(rows),
            labels={name: scores[rows] for name, scores in labels.items()},
            load=partial(load_bi_encoder, **self._loading(0)),
            seed=self.config.seed,
        )
        for model, criteria in zip(students, judged, strict=True):
            model["criteria"] = criteria

    def _score_on_dev(self, folder: Path, i: int) -> tuple[dict[str, Any], list[float]]:
        """The figures of one model, and its score of every dev pair."""
        if self.dev is None:
            return {"score": None}, []
        scores = score_pairs(
            self._load_for_scoring(folder, i), self.dev, symmetric=self.symmetric, batch_tokens=self.config.batch_tokens
        )
        kept = [float(str(score)) for score in scores]  # the shortest digits that give the float32 again
        found = correlation(scores, list(self.dev["score"]))
        if found["spearman"] is None:
            logger.warning("%s: the dev Spearman is undefined: %s", folder, found["reason"])
            return {"score": None, "reason": found["reason"]}, kept
        return {"score": _percent(found["spearman"])}, kept

    def _teacher_paths(self, stage: str) -> list[Path]:
        """The models of `stage`, one a backbone; with one student alone the others stay what they were."""
        paths = [self.run.stage_path(stage) / f"model-{i}" for i in range(len(self.backbones))]
        first = self.run.stage_path(self._first)
        return [path if path.is_dir() else first / path.name for path in paths]

    @property
    def _teachers(self) -> Teachers:
        weights = [backbone.weight for backbone in self.backbones]
        return Teachers(self.pairs, self.config, weights, self.symmetric, self._load_for_scoring)

    def _student(self, i: int, start: Path, out: Path, work: Path, cycle: int, form: str) -> Student:
        names = (self.run.identity.get("inputs") or {}).get("model") or ()
        describe = partial(
            describe_origin,
            names[i] if i < len(names) else None,
            self.run.identity["backbones"][f"model-{i}"]["bi"],
            seed=self.config.seed,
            cycle=cycle,
            labels="trained without labels" + (", a scored dev set chose" if self.dev is not None else ""),
        )
        context = TrainingContext(
            work=work / f"model-{i}",
            seed=_seed(self.config.seed, cycle, form, i),
            precision=self._precision,
            save_steps=self.config.save_steps,
            dev=self.dev,
            eval_steps=self.config.eval_steps,
            symmetric=self.symmetric,
            report_to=self.report_to,
        )
        return Student(i, start, out, context, describe, self.trust_remote_code)

    def _load_for_scoring(self, folder: Path, i: int) -> Encoder:
        return load_encoder(folder, **self._loading(i))

    def _loading(self, i: int) -> dict[str, Any]:
        """How the models of a backbone are loaded where they are not trained."""
        device = self._devices[i % len(self._devices)]
        return {"dtype": self._precision, "device": device, "trust_remote_code": self.trust_remote_code}

    @property
    def _precision(self) -> str:
        return self.run.identity["machine"]["precision"]

    @property
    def _devices(self) -> list[str]:
        return resolve_devices(self.run.identity["machine"]["device"])


def _seed(*parts: Any) -> int:
    """Seed every generator from a stage's own seed, so that a stage does not depend on what ran before it."""
    seed = int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4])
    set_seed(seed)
    return seed


def _percent(value: Any) -> float | None:
    return None if value is None else round(100 * value, 2)
