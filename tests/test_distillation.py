"""The cycle on tiny models: which model labels what, who learns from it, what is chosen, and what comes out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file
from scenario import CONFIG, STAGES, Child, Scenario, fingerprint, in_child, make_dataset, snapshot
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import set_seed

from transenc import durable
from transenc.config import PRESETS, Backbone, BiTrainingSettings, DistillConfig
from transenc.distillation import DistillResult, _Distillation, describe_plan, distill
from transenc.encoders import load_bi_encoder, load_cross_encoder, load_encoder
from transenc.errors import InputError, StateError
from transenc.metrics import correlation
from transenc.outcome import choose_best, wants_cycle
from transenc.run import open_run, verify_run
from transenc.scoring import encode_texts, score_pairs
from transenc.training import TrainingContext, train_bi_encoder, train_cross_encoder, write_log
from transenc.whitening import remove_whitening, whiten_encoder

PAIRS = make_dataset(16)
PLAIN = dataclasses.replace(CONFIG, eval_steps=0)  # without a choice of checkpoints


def read_labels(stage: Path) -> dict[str, np.ndarray]:
    rows = Dataset.from_parquet(str(stage / "labels.parquet"), keep_in_memory=True).with_format("numpy")
    return {name: rows[name][:] for name in rows.column_names}


def equal_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def run(output: Path, *models: Path, config: DistillConfig = PLAIN, **options: Any) -> DistillResult:
    options = {"device": "cpu", **options}
    return distill([Backbone(str(model)) for model in models], PAIRS, output_dir=output, config=config, **options)


@pytest.fixture(scope="module")
def scenario(tiny_bi: Path) -> Scenario:
    return Scenario((tiny_bi,))


@pytest.fixture(scope="module")
def finished(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistillResult]:
    """The run of the scenario, with a dev set; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return output, scenario.run(output)


@pytest.fixture
def copied(finished: tuple[Path, DistillResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run", symlinks=True))


# ---- labels and students


@pytest.fixture(scope="module")
def mutual(tiny_bi: Path, tiny_bi_b: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two different models, two cycles that go on from each other, a quarter of the old label kept."""
    output = tmp_path_factory.mktemp("mutual") / "run"
    config = dataclasses.replace(
        PLAIN, cycles=2, scale="raw", keep_label=0.25, continue_bi=True, continue_cross=True, seed=8, select="last"
    )
    result = run(output, tiny_bi, tiny_bi_b, config=config)
    names = [path.relative_to(output / "stages").as_posix() for path in result.bi_encoders + result.cross_encoders]
    assert names == [
        "c02-40-bi-train/model-0",
        "c02-40-bi-train/model-1",
        "c02-20-cross-train/model-0",
        "c02-20-cross-train/model-1",
    ]
    return output / "stages"


@pytest.mark.parametrize(
    ("cycle", "teachers"), [("c01", "c00-00-start"), ("c02", "c01-40-bi-train")], ids=["first", "second"]
)
def test_the_labels_of_bi_encoders_are_the_mean_of_their_cosines(cycle: str, teachers: str, mutual: Path) -> None:
    labels = read_labels(mutual / f"{cycle}-10-bi-label")
    assert list(labels) == ["sentence1", "sentence2", "bi-0", "bi-1", "score"]
    assert list(labels["sentence1"]) == list(PAIRS["sentence1"])
    for i in range(2):
        teacher = load_bi_encoder(mutual / teachers / f"model-{i}", device="cpu")
        assert labels[f"bi-{i}"] == pytest.approx(score_pairs(teacher, PAIRS), abs=1e-6)
    mean = (labels["bi-0"].astype(float) + labels["bi-1"]) / 2
    assert labels["score"] == pytest.approx(np.clip(mean, 0, 1), abs=1e-6)


@pytest.mark.parametrize("cycle", ["c01", "c02"])
def test_the_labels_of_cross_encoders_keep_a_share_of_the_old_one(cycle: str, mutual: Path) -> None:
    labels, old = (read_labels(mutual / f"{cycle}-{stage}-label") for stage in ("30-cross", "10-bi"))
    assert list(labels) == ["sentence1", "sentence2", "bi-0", "bi-1", "cross-0", "cross-1", "score"]
    for i in range(2):
        assert np.array_equal(labels[f"bi-{i}"], old[f"bi-{i}"])
        teacher = load_cross_encoder(mutual / f"{cycle}-20-cross-train/model-{i}", device="cpu")
        both = np.array(
            [teacher.predict(list(zip(PAIRS[a][:], PAIRS[b][:], strict=True)), show_progress_bar=False)
             for a, b in (("sentence1", "sentence2"), ("sentence2", "sentence1"))]
        )  # fmt: skip
        assert labels[f"cross-{i}"] == pytest.approx(both.mean(axis=0), abs=1e-5)
    bi = (labels["bi-0"].astype(float) + labels["bi-1"]) / 2
    cross = (labels["cross-0"].astype(float) + labels["cross-1"]) / 2
    assert labels["score"] == pytest.approx(np.clip(0.25 * bi + 0.75 * cross, 0, 1), abs=1e-6)


def seed_of(*parts: Any) -> int:
    return int(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:8], 16)


@pytest.mark.parametrize("i", [0, 1])
def test_every_student_learns_from_the_common_labels(i: int, mutual: Path, tmp_path: Path) -> None:
    labels = Dataset.from_parquet(str(mutual / "c02-10-bi-label/labels.parquet"), keep_in_memory=True)
    seed = seed_of(8, 2, "cross", i)
    set_seed(seed)
    # continue_cross: from the cross-encoder of the cycle before
    cross = load_cross_encoder(mutual / f"c01-20-cross-train/model-{i}", device="cpu")
    train_cross_encoder(cross, labels, settings=PLAIN.cross, context=TrainingContext(tmp_path / "cross", seed))
    cross.save_pretrained(str(tmp_path / "cross-model"))
    assert equal_weights(tmp_path / "cross-model", mutual / f"c02-20-cross-train/model-{i}")

    labels = Dataset.from_parquet(str(mutual / "c02-30-cross-label/labels.parquet"), keep_in_memory=True)
    seed = seed_of(8, 2, "bi", i)
    set_seed(seed)
    bi = load_bi_encoder(mutual / f"c01-40-bi-train/model-{i}", device="cpu")
    train_bi_encoder(bi, labels, settings=PLAIN.bi, context=TrainingContext(tmp_path / "bi", seed))
    bi.save_pretrained(str(tmp_path / "bi-model"))
    assert equal_weights(tmp_path / "bi-model", mutual / f"c02-40-bi-train/model-{i}")


def is_white(model: Path) -> bool:
    vectors = encode_texts(load_bi_encoder(model, device="cpu"), list({*PAIRS["sentence1"], *PAIRS["sentence2"]}))
    return bool(np.abs(vectors.mean(axis=0)).max() < 0.01)


def test_whitened_students_are_trained_below_the_layer(tiny_bi: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(PLAIN, whiten=True, cycles=2, continue_bi=True, select="last")
    run(tmp_path / "run", tiny_bi, config=config)
    stages = tmp_path / "run/stages"
    assert not is_white(tiny_bi)
    assert all(is_white(stages / stage / "model-0") for stage in (STAGES[0], "c01-40-bi-train", "c02-40-bi-train"))
    labels = Dataset.from_parquet(str(stages / "c02-30-cross-label/labels.parquet"), keep_in_memory=True)
    seed = seed_of(PLAIN.seed, 2, "bi", 0)
    set_seed(seed)
    bi = load_bi_encoder(stages / "c01-40-bi-train/model-0", device="cpu")
    assert remove_whitening(bi)
    train_bi_encoder(bi, labels, settings=PLAIN.bi, context=TrainingContext(tmp_path / "bi", seed))
    whiten_encoder(bi, [*PAIRS["sentence1"], *PAIRS["sentence2"]])
    bi.save_pretrained(str(tmp_path / "bi-model"))
    assert equal_weights(tmp_path / "bi-model", stages / "c02-40-bi-train/model-0")
    count = len({*PAIRS["sentence1"], *PAIRS["sentence2"]})
    card = (stages / "c02-40-bi-train/model-0/README.md").read_text(encoding="utf-8")
    assert f"| whitened over sentences | {count} |" in card


def test_with_a_dev_set_the_last_weights_are_whitened_too(scenario: Scenario, tmp_path: Path) -> None:
    result = scenario.change(whiten=True).run(tmp_path / "run")
    stage = tmp_path / "run/stages/c01-40-bi-train"
    assert is_white(stage / "model-0")
    assert is_white(stage / "last-0")
    assert all(model["score"] is not None for model in result.history[1]["bi"])


def test_the_manifests_say_what_was_made_from_what(mutual: Path) -> None:
    inputs = {path.name: list(durable.verify_directory(path)["inputs"]) for path in sorted(mutual.iterdir())}
    assert inputs["c01-20-cross-train"] == ["c00-00-start", "c01-10-bi-label"]
    assert inputs["c01-40-bi-train"] == ["c00-00-start", "c01-30-cross-label"]
    assert inputs["c02-10-bi-label"] == ["c01-40-bi-train"]
    assert inputs["c02-20-cross-train"] == ["c00-00-start", "c02-10-bi-label", "c01-20-cross-train"]
    assert inputs["c02-30-cross-label"] == ["c02-20-cross-train", "c02-10-bi-label"]
    assert inputs["c02-40-bi-train"] == ["c01-40-bi-train", "c02-30-cross-label"]


def test_the_agreement_is_the_spearman_of_the_mean_labels(mutual: Path) -> None:
    labels = read_labels(mutual / "c02-30-cross-label")
    found = json.loads((mutual / "c02-50-evaluate/metrics.json").read_text())
    bi, cross = labels["bi-0"] + labels["bi-1"], labels["cross-0"] + labels["cross-1"]
    assert found["agreement"] == pytest.approx(100 * correlation(bi, cross)["spearman"], abs=0.006)
    assert [model["score"] for model in found["bi"] + found["cross"]] == [None] * 4


def test_one_student_learns_from_all_and_the_others_stay_what_they_were(
    tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        PLAIN, cycles=2, student=1, continue_bi=True, keep_teachers=True, simplified=1.0, select="last"
    )
    result = run(tmp_path / "run", tiny_bi, tiny_bi_b, config=config)
    stages = tmp_path / "run/stages"
    assert result.best["bi"]["path"] == "stages/c02-40-bi-train/model-1"
    assert [model["backbone"] for model in result.history[2]["bi"]] == [1]
    assert [model["backbone"] for model in result.history[2]["cross"]] == [0, 1]
    labels = read_labels(stages / "c02-10-bi-label")
    for i, teacher in enumerate(("c00-00-start/model-0", "c01-40-bi-train/model-1")):
        assert labels[f"bi-{i}"] == pytest.approx(score_pairs(load_bi_encoder(stages / teacher), PAIRS), abs=1e-6)
    # the first cycle's teachers have their say in the second
    before = read_labels(stages / "c01-30-cross-label")
    for name in ("bi-0", "bi-1", "plain-1", "cross-0", "cross-1"):
        assert np.array_equal(labels[f"c01-{name}"], before[name])
    assert durable.verify_directory(stages / "c02-10-bi-label")["inputs"].keys() == {
        "c00-00-start", "c01-40-bi-train", "c01-30-cross-label",
    }  # fmt: skip


def test_a_teacher_without_numbers_is_left_out(
    tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "run/stages/c00-00-start/model-1"
    plain = _Distillation._load_for_scoring

    def load(self: _Distillation, folder: Path, i: int) -> Any:
        if folder == broken:
            raise StateError("the bi-encoder gave NaN or inf for 16 texts")
        return plain(self, folder, i)

    monkeypatch.setattr(_Distillation, "_load_for_scoring", load)
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "run", tiny_bi, tiny_bi_b, config=dataclasses.replace(PLAIN, simplified=1.0))
    labels = [read_labels(tmp_path / f"run/stages/c01-{stage}-label") for stage in ("10-bi", "30-cross")]
    assert list(labels[0]) == ["sentence1", "sentence2", "bi-0", "plain-0", "score"]
    assert list(labels[1]) == ["sentence1", "sentence2", "bi-0", "plain-0", "cross-0", "cross-1", "score"]
    assert "teacher bi-1 is left out of the labels: 16 of 16 scores are not finite" in caplog.text
    assert "gave NaN or inf for 16 texts" in caplog.text


def test_two_devices_train_the_same_students(tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", tiny_bi, tiny_bi_b)
    run(tmp_path / "two", tiny_bi, tiny_bi_b, device=["cpu", "cpu"])
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    assert json.loads((tmp_path / "two/run.json").read_text())["machine"]["device"] == "cpu,cpu"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_on_two_devices_resumes(signum: int, tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    longer = dataclasses.replace(PLAIN, bi=dataclasses.replace(PLAIN.bi, epochs=60), save_steps=5)
    options: dict[str, Any] = {"config": longer, "device": "cpu,cpu"}
    run(tmp_path / "whole", tiny_bi, tiny_bi_b, **options)
    child = Child(lambda: run(tmp_path / "cut", tiny_bi, tiny_bi_b, **options) and None)
    work = tmp_path / "cut/work/c01-40-bi-train"
    assert child.wait_for(lambda: all(list(work.glob(f"model-{i}/ckpt-*")) for i in (0, 1)), seconds=200)
    child.kill(signum)
    assert child.finish().status == 128 + signum
    assert not (tmp_path / "cut/stages/c01-40-bi-train").exists()
    run(tmp_path / "cut", tiny_bi, tiny_bi_b, **options)
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "cut")


@pytest.mark.parametrize("device", ["cpu,cuda:99", "cpu,mps", "", []])
def test_devices_that_are_not_there_are_refused(device: Any, tiny_bi: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device"):
        run(tmp_path / "run", tiny_bi, device=device)
    assert not (tmp_path / "run").exists()


def test_a_fork_with_another_student_trains_it(tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    first = dataclasses.replace(PLAIN, student=0)
    run(tmp_path / "first", tiny_bi, tiny_bi_b, config=first)
    second = dataclasses.replace(PLAIN, student=1, select="last")
    result = run(tmp_path / "fork", tiny_bi, tiny_bi_b, config=second, fork=tmp_path / "first")
    assert [path.name for path in (tmp_path / "fork/stages/c01-40-bi-train").glob("model-*")] == ["model-1"]
    assert (result.best["bi"]["backbone"], result.best["cross"]["backbone"]) == (1, 1)
    alone = run(tmp_path / "alone", tiny_bi, tiny_bi_b, config=second)
    assert fingerprint(tmp_path / "fork") == fingerprint(tmp_path / "alone")
    assert alone.best["bi"] == result.best["bi"]


def test_auto_follows_the_student_and_not_a_better_teacher() -> None:
    def model(backbone: int, score: float) -> dict[str, Any]:
        return {"backbone": backbone, "path": f"c/model-{backbone}", "score": score}

    history = [
        {"cycle": 0, "bi": [model(0, 85.0), model(1, 60.0)], "agreement": None},
        {"cycle": 1, "bi": [model(1, 70.0)], "agreement": 90.0},
    ]
    assert wants_cycle(history, DistillConfig(cycles="auto", student=1), has_dev=True)


def test_a_student_beyond_the_backbones_is_refused(tiny_bi: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="student 1: expected the number of a backbone, 0 to 0"):
        run(tmp_path / "run", tiny_bi, config=dataclasses.replace(PLAIN, student=1))
    assert not (tmp_path / "run").exists()


def test_the_reference_hands_on_the_cross_encoders_label_alone(tiny_bi: Path, tmp_path: Path) -> None:
    reference = PRESETS["reference"]
    assert (reference.keep_label, reference.scale, reference.bi.loss) == (0.0, "raw", "mse")
    config = dataclasses.replace(
        reference,
        cycles=1,
        eval_steps=2,
        precision="float32",
        bi=dataclasses.replace(reference.bi, epochs=2, batch_size=8),
        cross=dataclasses.replace(reference.cross, batch_size=8),
    )
    result = run(tmp_path / "run", tiny_bi, config=config, dev=make_dataset(10, seed=1, gold=True))
    stages = tmp_path / "run/stages"
    labels = read_labels(stages / "c01-30-cross-label")
    assert np.array_equal(labels["score"], np.clip(labels["cross-0"], 0, 1))
    for name in ("c01-20-cross-train", "c01-40-bi-train"):  # the chosen checkpoint, and the last beside it
        log = json.loads((stages / name / "log-0.json").read_text())
        scores = {row["step"]: row["eval_dev_spearman"] for row in log if "eval_dev_spearman" in row}
        assert list(scores) == [2, 4]
        form = "bi" if "bi" in name else "cross"
        found = {model["path"].split("/")[-1]: model["score"] for model in result.history[1][form]}
        assert found == {
            "model-0": pytest.approx(100 * max(scores.values()), abs=0.006),
            "last-0": pytest.approx(100 * scores[4], abs=0.006),
        }
    assert all("last-" not in path.name for path in result.bi_encoders + result.cross_encoders)


@pytest.mark.parametrize("with_head", [False, True])
def test_a_start_of_its_own_for_the_cross_encoder(
    with_head: bool, tiny_bi: Path, tiny_plain: Path, tiny_cross: Path, tmp_path: Path
) -> None:
    start = tiny_cross if with_head else tiny_plain
    distill([Backbone(str(tiny_bi), cross=str(start))], PAIRS, output_dir=tmp_path / "run", config=PLAIN, device="cpu")
    saved = load_file(tmp_path / "run/stages/c00-00-start/cross-0/model.safetensors")
    given = {
        ("" if with_head else "bert.") + name: value for name, value in load_file(start / "model.safetensors").items()
    }
    assert {name for name in given if not np.array_equal(saved[name], given[name])} == set()
    assert ("classifier.weight" in given) is with_head
    labels = Dataset.from_parquet(str(tmp_path / "run/stages/c01-10-bi-label/labels.parquet"), keep_in_memory=True)
    set_seed(seed := seed_of(5, 1, "cross", 0))
    cross = load_cross_encoder(tmp_path / "run/stages/c00-00-start/cross-0", device="cpu")
    train_cross_encoder(cross, labels, settings=PLAIN.cross, context=TrainingContext(tmp_path / "work", seed))
    cross.save_pretrained(str(tmp_path / "model"))
    assert equal_weights(tmp_path / "model", tmp_path / "run/stages/c01-20-cross-train/model-0")


def test_asymmetric_pairs_are_seen_in_one_order(tiny_bi: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", tiny_bi, symmetric=False)
    stages = tmp_path / "run/stages"
    log = json.loads((stages / "c01-20-cross-train/log-0.json").read_text())
    assert [row["step"] for row in log if "loss" in row] == [1, 2]  # 16 rows in batches of 8
    teacher = CrossEncoder(str(stages / "c01-20-cross-train/model-0"), device="cpu")
    one_order = teacher.predict(list(zip(PAIRS["sentence1"][:], PAIRS["sentence2"][:], strict=True)))
    assert read_labels(stages / "c01-30-cross-label")["cross-0"] == pytest.approx(one_order, abs=1e-5)


# ---- the choice


def entry(
    cycle: int, bi: float | None, cross: float | None = None, *, agreement: float | None = None
) -> dict[str, Any]:
    def models(form: str, score: float | None) -> list[dict[str, Any]]:
        return [
            {"backbone": 0, "path": f"stages/c{cycle:02d}-{form}/model-0", "score": score},
            {"backbone": 0, "path": f"stages/c{cycle:02d}-{form}/last-0", "score": 99.0},  # never chosen
        ]

    return {
        "cycle": cycle,
        "bi": models("bi", bi),
        "cross": models("cross", cross) if cycle else [],
        "agreement": agreement,
    }


@pytest.mark.parametrize(
    ("bi", "cross", "best_bi", "best_cross"),
    [
        ([70.0, 71.0, 72.0], [73.0, 74.0], 2, 2),
        ([70.0, 71.0, 70.5], [74.0, 73.0], 1, 1),
        ([72.0, 71.0, 70.0], [71.0, 73.0], 0, 2),  # the start wins
        ([70.0, 70.0, 69.0], [71.0, 71.0], 0, 1),  # the earliest of equals
        ([70.0, None, None], [None, 71.0], 0, 2),  # what is undefined is never the best
        ([None, None, 1.0], [1.0, None], 2, 1),
    ],
)
def test_the_dev_set_chooses(bi: list[float | None], cross: list[float | None], best_bi: int, best_cross: int) -> None:
    history = [entry(cycle, score, [None, *cross][cycle]) for cycle, score in enumerate(bi)]
    best = choose_best(history, DistillConfig(), has_dev=True)
    assert best["criterion"] == "dev"
    assert (best["bi"]["cycle"], best["cross"]["cycle"]) == (best_bi, best_cross)
    assert (best["bi"]["score"], best["cross"]["score"]) == (bi[best_bi], cross[best_cross - 1])
    assert best["start_won"] is (best_bi == 0)


def test_the_last_cycle_is_taken_when_asked() -> None:
    history = [entry(0, None), entry(1, None), entry(2, None)]
    last = DistillConfig(select="last")
    assert choose_best(history, last, has_dev=False)["bi"]["path"] == "stages/c02-bi/model-0"
    scored = [entry(0, 80.0), entry(1, 70.0, 70.0)]
    assert choose_best(scored, DistillConfig(select="last"), has_dev=True)["bi"]["cycle"] == 1


@pytest.mark.parametrize(
    ("dev", "more"),
    [
        ([70.0], True),
        ([70.0, 70.2], True),  # rises by more than 0.1
        ([70.0, 70.05], False),
        ([70.0, 72.0, 71.0], False),
        ([70.0, 72.0, 71.0, 72.5], True),  # against the best so far
        ([None, 70.0], True),
        ([70.0, None], False),
        ([70.0, *range(71, 80)], True),
        ([70.0, *range(71, 81)], False),  # 10 cycles are the limit
    ],
)
def test_auto_goes_on_while_the_dev_score_rises(dev: list[float | None], more: bool) -> None:
    history = [entry(i, score, score, agreement=10.0 * i) for i, score in enumerate(dev)]
    assert wants_cycle(history, DistillConfig(cycles="auto"), has_dev=True) is more


@pytest.mark.parametrize(
    ("agreement", "more"),
    [
        ([None], True),
        ([None, 50.0], True),
        ([None, None], False),
        ([None, 50.0, 50.2], True),
        ([None, 50.0, 49], False),
    ],
)
def test_when_nothing_chooses_auto_goes_on_while_the_forms_come_to_agree(
    agreement: list[float | None], more: bool
) -> None:
    history = [entry(i, None, agreement=value) for i, value in enumerate(agreement)]
    assert wants_cycle(history, DistillConfig(cycles="auto", select="last"), has_dev=False) is more


def test_auto_runs(tiny_bi: Path, tmp_path: Path) -> None:
    dev = make_dataset(10, seed=1, gold=True)
    result = run(tmp_path / "run", tiny_bi, config=dataclasses.replace(PLAIN, cycles="auto"), dev=dev)
    scores = [cycle["bi"][0]["score"] for cycle in result.history]
    assert all(now - max(scores[:i]) > 0.1 for i, now in enumerate(scores[:-1]) if i)
    assert scores[-1] - max(scores[:-1]) <= 0.1
    assert result.best["bi"]["score"] == max(scores)
    again = run(tmp_path / "run", tiny_bi, config=dataclasses.replace(PLAIN, cycles="auto"), dev=dev)
    assert again == result


def test_the_start_wins_when_it_is_the_best(tiny_bi: Path, tmp_path: Path) -> None:
    pairs = make_dataset(10, seed=1)
    gold = score_pairs(load_bi_encoder(tiny_bi, device="cpu"), pairs)
    result = run(tmp_path / "run", tiny_bi, dev=pairs.add_column("score", gold.astype(float)))
    assert result.best["start_won"] is True
    assert result.best["bi"] == {
        "backbone": 0, "path": "stages/c00-00-start/model-0", "score": 100.0, "cycle": 0
    }  # fmt: skip
    assert result.best["cross"]["cycle"] == 1
    assert json.loads((tmp_path / "run/best.json").read_text())["best"]["start_won"] is True
    assert os.readlink(tmp_path / "run/best/bi-encoder") == "../stages/c00-00-start/model-0"
    assert equal_weights(tmp_path / "run/best/bi-encoder", tiny_bi)


def test_an_undefined_dev_score_is_null_with_a_reason_and_stops_only_a_choice(tiny_bi: Path, tmp_path: Path) -> None:
    dev = make_dataset(6, seed=1).add_column("score", [0.5] * 6)
    with pytest.raises(
        StateError, match=r"dev Spearman of every bi-encoder is undefined \(all gold scores are equal\)"
    ):
        run(tmp_path / "run", tiny_bi, dev=dev)
    found = json.loads((tmp_path / "run/stages/c01-50-evaluate/metrics.json").read_text())
    for model in found["bi"] + found["cross"]:
        assert model["score"] is None
        assert "gold scores are equal" in model["reason"]
    config = dataclasses.replace(PLAIN, select="last")
    result = run(tmp_path / "fork", tiny_bi, config=config, dev=dev, fork=tmp_path / "run")
    assert result.best["bi"]["cycle"] == 1
    assert fingerprint(tmp_path / "fork") == fingerprint(tmp_path / "run")


# ---- what comes out


def test_the_models_load_in_plain_sentence_transformers_and_score_the_same(
    finished: tuple[Path, DistillResult],
) -> None:
    output, result = finished
    first, second = list(PAIRS["sentence1"]), list(PAIRS["sentence2"])
    folders = [*result.bi_encoders, *output.glob("stages/*bi-train/last-0"), output / "best/bi-encoder"]
    assert len(folders) == 3
    for folder in folders:
        model = SentenceTransformer(str(folder), device="cpu")
        cosine = torch.nn.functional.cosine_similarity(
            model.encode(first, convert_to_tensor=True), model.encode(second, convert_to_tensor=True)
        )
        assert score_pairs(load_encoder(folder, device="cpu"), PAIRS) == pytest.approx(cosine.numpy(), abs=1e-5)
        assert model.max_seq_length == 64
    folders = [*result.cross_encoders, *output.glob("stages/*cross-train/last-0"), output / "best/cross-encoder"]
    assert len(folders) == 3
    for folder in folders:
        cross = CrossEncoder(str(folder), device="cpu")
        there, back = (cross.predict(list(zip(a, b, strict=True))) for a, b in ((first, second), (second, first)))
        assert score_pairs(load_encoder(folder, device="cpu"), PAIRS) == pytest.approx((there + back) / 2, abs=1e-5)
        assert score_pairs(load_encoder(folder, device="cpu"), PAIRS, symmetric=False) == pytest.approx(there, abs=1e-5)


def test_the_result_describes_the_run(finished: tuple[Path, DistillResult]) -> None:
    output, result = finished
    assert sorted(path.name for path in output.iterdir()) == [
        "best", "best.json", "journal.jsonl", "lock", "run.json", "stages", "work"
    ]  # fmt: skip
    assert sorted(path.name for path in (output / "stages").iterdir()) == sorted(STAGES)
    assert result.run == output
    assert [cycle["cycle"] for cycle in result.history] == [0, 1]
    dev = make_dataset(10, seed=1, gold=True)
    for model in [*result.history[0]["bi"], *result.history[1]["bi"], *result.history[1]["cross"]]:
        scores = score_pairs(load_encoder(output / model["path"], device="cpu"), dev)
        assert model["score"] == pytest.approx(100 * correlation(scores, dev["score"][:])["spearman"], abs=0.006)
    assert result.best["bi"] == {
        **result.history[result.best["bi"]["cycle"]]["bi"][0],
        "cycle": result.best["bi"]["cycle"],
    }
    assert (output / "best/bi-encoder").resolve() == result.bi_encoders[0]
    assert (output / "best/cross-encoder").resolve() == result.cross_encoders[0]
    counts = verify_run(output)
    assert (counts["stages"], counts["labels"]) == (7, 32)
    assert counts["tensors"] == sum(len(load_file(path)) for path in output.glob("stages/*/*/*.safetensors"))


def test_every_json_file_is_strict(finished: tuple[Path, DistillResult]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    names = []
    for path in [*finished[0].rglob("*.json"), *finished[0].rglob("*.jsonl")]:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)
        names.append(path.name)
    assert {"run.json", "best.json", "journal.jsonl", "metrics.json", "log-0.json", "MANIFEST.json"} <= set(names)


def test_a_log_with_an_overflow_is_strict_too(tmp_path: Path) -> None:
    log = [{"step": 1, "loss": 0.5, "grad_norm": float("inf")}, {"step": 2, "loss": 0.25, "grad_norm": float("nan")}]
    write_log(tmp_path / "log-0.json", log)
    assert json.loads((tmp_path / "log-0.json").read_text()) == [
        {"step": 1, "loss": 0.5, "grad_norm": None},
        {"step": 2, "loss": 0.25, "grad_norm": None},
    ]


# ---- the same command again


def test_a_finished_run_is_not_touched(
    copied: Path, scenario: Scenario, finished: tuple[Path, DistillResult], caplog: pytest.LogCaptureFixture
) -> None:
    before = snapshot(copied)
    identity = json.loads((copied / "run.json").read_text())
    with caplog.at_level(logging.INFO, logger="transenc"):
        result = scenario.run(copied)
    assert snapshot(copied) == before
    assert caplog.messages == [f"{copied}: complete, nothing to do"]
    assert result == dataclasses.replace(
        finished[1],
        run=copied,
        bi_encoders=tuple(copied / path.relative_to(finished[0]) for path in finished[1].bi_encoders),
        cross_encoders=tuple(copied / path.relative_to(finished[0]) for path in finished[1].cross_encoders),
    )
    del identity["versions"]
    with open_run(copied, identity):  # not even the lock is needed
        before = snapshot(copied)
        assert in_child(lambda: scenario.run(copied) and None).status == 0
        assert snapshot(copied) == before


BEST = {
    "deleted": None,
    "empty": b"",
    "truncated": b'{"complete": true, "best": {"crit',
    "garbage": b"\x00\xfe\xff",
    "another": b'{"history": [{}, {}, {}]}',
    "a list": b"[]",
    "a cycle less": b'{"history": [{}]}',
}


@pytest.mark.parametrize("kind", BEST)
def test_a_damaged_best_file_is_made_again(kind: str, copied: Path, scenario: Scenario) -> None:
    path, content = copied / "best.json", BEST[kind]
    expected, stages = path.read_bytes(), snapshot(copied / "stages")
    path.unlink() if content is None else path.write_bytes(content)
    result = scenario.run(copied)
    assert path.read_bytes() == expected
    assert snapshot(copied / "stages") == stages
    assert result.best == json.loads(expected)["best"]


def test_an_edited_best_file_and_wrong_links_are_made_again(
    copied: Path, scenario: Scenario, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied / "best.json"
    expected = path.read_bytes()
    path.write_bytes(expected.replace(b'"cycle": 1', b'"cycle": 0'))
    scenario.run(copied)
    assert path.read_bytes() == expected
    assert f"{path}: says something else than the stages; it is made again from the stages" in caplog.messages
    link = copied / "best/bi-encoder"
    target = os.readlink(link)
    for other in (None, "../stages/c01-20-cross-train/model-0", "../stages/nothing"):
        link.unlink()
        if other is not None:
            link.symlink_to(other)
        scenario.run(copied)
        assert os.readlink(link) == target


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seed": 6}, ["config.seed: 5 -> 6"]),
        ({"bi": dataclasses.replace(CONFIG.bi, batch_size=4)}, ["config.bi.batch_size: 8 -> 4"]),
        ({"bi": dataclasses.replace(CONFIG.bi, learning_rate=1e-4)}, ["config.bi.learning_rate: 0.0005 -> 0.0001"]),
        ({"bi": dataclasses.replace(CONFIG.bi, epochs=3)}, ["config.bi.epochs: 2 -> 3"]),
        ({"bi": dataclasses.replace(CONFIG.bi, loss="mse")}, ["config.bi.loss: 'cosent' -> 'mse'"]),
        ({"cycles": 2, "keep_label": 0.0}, ["config.cycles: 1 -> 2", "config.keep_label: 0.5 -> 0.0"]),
    ],
)
def test_changed_settings_are_refused(
    changes: dict[str, Any], shown: list[str], copied: Path, scenario: Scenario
) -> None:
    before = snapshot(copied)
    with pytest.raises(StateError) as error:
        scenario.change(**changes).run(copied)
    assert f"({'; '.join(shown)})" in str(error.value)
    assert "--fork" in str(error.value)
    assert snapshot(copied) == before


def test_changed_data_and_models_are_refused(copied: Path, scenario: Scenario, tiny_bi_b: Path) -> None:
    before = snapshot(copied)
    for other, key in (
        (dataclasses.replace(scenario, pairs=15), "pairs.rows: 16 -> 15; pairs.sha256: '"),
        (dataclasses.replace(scenario, models=(tiny_bi_b,)), "(backbones.model-0.bi: '"),
        (dataclasses.replace(scenario, models=(*scenario.models, tiny_bi_b)), "backbones.model-1.bi: None -> '"),
        (dataclasses.replace(scenario, dev=False), "dev.rows: 10 -> None; dev.sha256: '"),
    ):
        with pytest.raises(StateError) as error:
            other.run(copied)
        assert key in str(error.value)
    with pytest.raises(StateError, match=r"\(pairs.symmetric: True -> False\)"):
        scenario.run(copied, symmetric=False)
    assert snapshot(copied) == before


def test_a_fork_goes_on_under_new_settings(copied: Path, scenario: Scenario, tmp_path: Path) -> None:
    fork = scenario.change(cycles=2)
    result = fork.run(tmp_path / "fork", fork=copied)
    assert [cycle["cycle"] for cycle in result.history] == [0, 1, 2]
    known = fingerprint(copied)
    assert {name: value for name, value in fingerprint(tmp_path / "fork").items() if name in known} == known
    # without continue_bi and continue_cross every cycle starts anew
    inputs = {path.name: [*durable.verify_directory(path)["inputs"]] for path in (tmp_path / "fork/stages").iterdir()}
    assert inputs["c02-20-cross-train"] == ["c00-00-start", "c02-10-bi-label"]
    assert inputs["c02-40-bi-train"] == ["c00-00-start", "c02-30-cross-label"]
    journal = [record.get("name") for record in durable.read_records(tmp_path / "fork/journal.jsonl")]
    assert "c02-40-bi-train" in journal
    assert fork.run(tmp_path / "fork", fork=copied) == result  # the same command again


@pytest.mark.parametrize("name", ["c01-10-bi-label/labels.parquet", "c01-30-cross-label/labels.parquet"])
def test_edited_labels_are_refused(name: str, copied: Path, scenario: Scenario) -> None:
    path = copied / "stages" / name
    labels = Dataset.from_parquet(str(path), keep_in_memory=True)
    labels.map(lambda row: {"score": 0.5}, load_from_cache_file=False).to_parquet(str(path))
    for made in ("best.json", "stages/c01-50-evaluate", "stages/c01-40-bi-train"):  # finished, and in the middle
        with pytest.raises(StateError, match=name):
            scenario.run(copied)
        place = copied / made
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(StateError, match=name):
        scenario.run(copied)


# ---- what goes in


def test_unusable_input_is_refused(tiny_bi: Path, tmp_path: Path) -> None:
    backbone, output = Backbone(str(tiny_bi)), tmp_path / "run"
    for backbones, pairs, options, message in (
        ([], PAIRS, {}, "at least one backbone"),
        ([backbone], PAIRS.select([]), {}, "at least 2 pairs, got 0"),
        ([backbone], PAIRS.select([0]), {}, "at least 2 pairs, got 1"),
        (
            [backbone],
            PAIRS.rename_column("sentence2", "b"),
            {},
            "pairs must have the column 'sentence2', found sentence1, b",
        ),
        ([backbone], PAIRS, {"dev": PAIRS}, "dev set must have the column 'score'"),
        ([backbone], PAIRS, {"config": DistillConfig(select="dev")}, "select 'dev' needs a dev set"),
        ([Backbone(str(tmp_path / "no/model"))], PAIRS, {}, "no such model folder"),
        ([backbone], PAIRS, {"device": "abacus"}, "device must be"),
    ):
        with pytest.raises(InputError, match=message):
            distill(backbones, pairs, output_dir=output, **options)
        assert not output.exists()


def test_two_pairs_are_enough_and_what_speaks_against_them_is_said(
    tiny_bi: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = Dataset.from_dict({"sentence1": ["the small cat"] * 2, "sentence2": ["The small CAT "] * 2})
    options: dict[str, Any] = {"config": PLAIN, "device": "cpu"}
    with pytest.raises(StateError, match="bi-0: it scores every pair 1"):
        distill([Backbone(str(tiny_bi))], same, output_dir=tmp_path / "same", **options)
    pairs = Dataset.from_dict({"sentence1": ["the small cat"] * 2, "sentence2": ["The small CAT ", "the old tree"]})
    dev = Dataset.from_dict(
        {"sentence1": ["the small cat", "the"], "sentence2": ["the small cat", "dog"], "score": [1, 0]}
    )
    distill([Backbone(str(tiny_bi))], pairs, output_dir=tmp_path / "run", dev=dev, **options)
    for message in (
        "this will probably not help, because there are only 2 pairs: ",
        "1 of 2 pairs have twice the same sentence: ",
        "1 of 2 pairs and 1 of 3 sentences of dev are also trained on, without labels: ",
    ):
        assert sum(told.startswith(message) for told in caplog.messages) == 1


def test_a_plan_lists_the_stages_and_their_sizes(finished: tuple[Path, DistillResult], tiny_bi: Path) -> None:
    dev = make_dataset(10, seed=1, gold=True)
    plan = describe_plan([Backbone(str(tiny_bi))], PAIRS, config=CONFIG, dev=dev, device="cpu")
    assert [stage["stage"] for stage in plan] == list(STAGES)
    assert {stage["stage"]: stage["steps"] for stage in plan if stage["steps"]} == {
        "c01-20-cross-train": 4,  # 16 pairs in both orders, batches of 8
        "c01-40-bi-train": 4,  # 16 pairs twice, batches of 8
    }
    for stage in ("c01-20-cross-train", "c01-40-bi-train"):
        log = json.loads((finished[0] / "stages" / stage / "log-0.json").read_text())
        assert max(row["step"] for row in log) == 4
    assert [stage["pairs"] for stage in plan] == [
        0,
        10,
        16,
        32 + 2 * 2 * 10,  # both orders; two evaluations in both orders
        32,
        32 + 2 * 10,  # two epochs; two evaluations
        30,
    ]
    assert all(stage["minutes"] >= 0 for stage in plan)
    two = describe_plan(
        [Backbone(str(tiny_bi))] * 2, PAIRS,
        config=DistillConfig(cycles=2, simplified=0.0, bi=BiTrainingSettings(batch_size=5)),
        symmetric=False, device="cpu",
    )  # fmt: skip
    assert [(stage["stage"], stage["pairs"], stage["steps"]) for stage in two][-5:] == [
        ("c02-10-bi-label", 32, 0),
        ("c02-20-cross-train", 32, 2),
        ("c02-30-cross-label", 32, 0),
        ("c02-40-bi-train", 32, 8),
        ("c02-50-evaluate", 0, 0),
    ]
