"""Labels against figures worked out by hand."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from scenario import make_dataset

from transenc.config import DistillConfig
from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import InputError, StateError
from transenc.labeling import (
    clip_scores,
    label_pairs,
    make_labels,
    merge_labels,
    merge_scores,
    read_labels,
    thin_out,
    usable_columns,
    weigh_columns,
)
from transenc.scoring import score_pairs

A = np.array([0.0, 0.2, 0.4, 1.0], dtype=np.float32)
B = np.array([0.9, 0.1, 0.5, 0.7], dtype=np.float32)


def test_raw_is_the_plain_mean() -> None:
    assert merge_scores([A, B]).tolist() == pytest.approx([0.45, 0.15, 0.45, 0.85])
    assert merge_scores([A, B]).dtype == np.float32


def test_weights_need_not_sum_to_one() -> None:
    # (3 a + b) / 4
    assert merge_scores([A, B], weights=[6, 2]).tolist() == pytest.approx([0.225, 0.175, 0.425, 0.925])
    assert merge_scores([A, B], weights=[0, 1]).tolist() == pytest.approx(B.tolist())


def test_quantile_puts_both_on_the_mean_quantile_function() -> None:
    # sorted: a = 0, .2, .4, 1; b = .1, .5, .7, .9; their mean = .05, .35, .55, .95
    # places in a: 0 1 2 3, in b: 3 0 1 2
    expected = [(0.05 + 0.95) / 2, (0.35 + 0.05) / 2, (0.55 + 0.35) / 2, (0.95 + 0.55) / 2]
    assert merge_scores([A, B], scale="quantile").tolist() == pytest.approx(expected)


def test_quantile_weighs_the_common_scale_too() -> None:
    # weights 3/4, 1/4: common = 3/4 a + 1/4 b sorted = .025, .275, .475, .975
    common = [0.025, 0.275, 0.475, 0.975]
    expected = [0.75 * common[i] + 0.25 * common[j] for i, j in zip(range(4), [3, 0, 1, 2], strict=True)]
    assert merge_scores([A, B], weights=[3, 1], scale="quantile").tolist() == pytest.approx(expected)


def test_ties_share_the_mean_of_their_places() -> None:
    tied = np.array([0.5, 0.5, 0.1, 0.9], dtype=np.float32)
    # sorted: .1, .5, .5, .9 and 0, .2, .4, 1: common = .05, .35, .45, .95; the two at .5 share .4
    # the other's places: 0, 1, 2, 3
    expected = [(0.4 + 0.05) / 2, (0.4 + 0.35) / 2, (0.05 + 0.45) / 2, (0.95 + 0.95) / 2]
    assert merge_scores([tied, A], scale="quantile").tolist() == pytest.approx(expected)


def test_one_teacher_or_one_pair_is_left_alone() -> None:
    assert merge_scores([B], scale="quantile").tolist() == pytest.approx(B.tolist())
    assert merge_scores([A[:1], B[:1]], scale="quantile").tolist() == pytest.approx([0.45])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(StateError, match=rf"teacher 1 scored pair 2 as {bad}; expected a finite number"):
        merge_scores([A, np.array([0, 0, bad, 0], dtype=np.float32)])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="expected 2 weights of 0 or more, not all 0"):
        merge_scores([A, B], weights=weights)


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(InputError, match="no teacher's scores given"):
        merge_scores([])


def test_scores_are_clipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    scores = np.array([-0.25, 0.0, 1.0, 1.5], dtype=np.float32)
    clipped, count = clip_scores(scores)
    assert clipped.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert count == 2
    with caplog.at_level(logging.INFO):
        labels = make_labels(make_dataset(4), {"bi-0": scores}, scores)
    assert labels.column_names == ["sentence1", "sentence2", "bi-0", "score"]
    assert list(labels["score"]) == [0.0, 0.0, 1.0, 1.0]
    assert list(labels["bi-0"]) == [-0.25, 0.0, 1.0, 1.5]  # what the teacher said is kept
    assert caplog.messages == ["2 of 4 labels lay outside [0, 1] and were clipped"]


def test_labels_come_back_from_disk_without_a_copy_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    labels = make_labels(make_dataset(4), {"bi-0": A, "cross-0": B}, A)
    labels.to_parquet(str(tmp_path / "labels.parquet"))
    read = read_labels(tmp_path)
    assert read.to_dict() == labels.to_dict()
    assert read.features == labels.features
    assert not (tmp_path / "cache").exists()


def test_teachers_by_name_and_by_object(tiny_bi: Path, tiny_cross: Path) -> None:
    pairs = make_dataset(6)
    bi, cross = load_bi_encoder(tiny_bi, device="cpu"), load_cross_encoder(tiny_cross, device="cpu")
    expected = [score_pairs(bi, pairs), score_pairs(cross, pairs)]
    labels = label_pairs([str(tiny_bi), cross], pairs)
    assert labels.column_names == ["sentence1", "sentence2", "teacher-0", "teacher-1", "score"]
    assert list(labels["teacher-0"]) == pytest.approx(expected[0].tolist(), abs=1e-6)
    assert list(labels["teacher-1"]) == pytest.approx(expected[1].tolist(), abs=1e-6)
    merged = [min(1.0, max(0.0, (x + y) / 2)) for x, y in zip(*expected, strict=True)]
    assert list(labels["score"]) == pytest.approx(merged, abs=1e-6)
    assert list(labels["sentence1"]) == list(pairs["sentence1"])
    one = label_pairs(tiny_bi, pairs)
    assert list(one["score"]) == pytest.approx(np.clip(expected[0], 0, 1).tolist(), abs=1e-6)


def test_the_order_counts_for_asymmetric_pairs(tiny_cross: Path) -> None:
    pairs = make_dataset(6)
    cross = load_cross_encoder(tiny_cross, device="cpu")
    turned = pairs.rename_columns({"sentence1": "sentence2", "sentence2": "sentence1"})
    one, other = (np.array(label_pairs(cross, rows, symmetric=False)["score"]) for rows in (pairs, turned))
    assert np.abs(one - other).max() > 1e-3
    both = np.array(label_pairs(cross, pairs)["score"])
    assert both.tolist() == pytest.approx(((one + other) / 2).tolist(), abs=1e-6)


def test_no_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="labels need at least one teacher"):
        label_pairs([], make_dataset(2))


# ---- the labels of a run


def test_the_share_of_the_forms_is_kept_whatever_the_number_of_columns() -> None:
    columns = {
        "bi-0": np.array([0.0, 0.2]), "align-0": np.array([0.4, 0.4]), "overlap": np.array([0.0, 1.0]),
        "cross-0": np.array([1.0, 0.0]), "cross-1": np.array([1.0, 1.0]),
    }  # fmt: skip
    config = DistillConfig(keep_label=0.25, scale="raw", alignment=2.0, overlap=1.0)
    scores, keep = merge_labels(columns, config)
    bi = (columns["bi-0"] + 2 * columns["align-0"] + columns["overlap"]) / 4
    cross = (columns["cross-0"] + columns["cross-1"]) / 2
    assert keep == 0.25
    assert scores == pytest.approx(0.25 * bi + 0.75 * cross, abs=1e-6)


def test_backbones_count_as_much_as_their_weights_in_every_cycle() -> None:
    names = ["c01-bi-1", "bi-0", "plain-1", "overlap", "cross-1"]
    config = DistillConfig(simplified=0.5, overlap=3.0)
    assert weigh_columns(names, config, [1.0, 4.0]) == [4.0, 1.0, 2.0, 15.0, 4.0]


@pytest.mark.parametrize(
    ("cross", "keep"),
    [([0.1, 0.2, 0.9], 2 / 3), ([0.2, 0.1, 0.9], 2 / 2.0625), ([0.9, 0.2, 0.1], 1.0), ([0.3, 0.3, 0.3], 1.0)],
)
def test_by_agreement_a_cross_encoder_that_learned_nothing_has_no_say(cross: list[float], keep: float) -> None:
    columns = {"bi-0": np.array([0.1, 0.5, 0.8]), "cross-0": np.array(cross)}
    assert merge_labels(columns, DistillConfig(keep_label="agreement"))[1] == pytest.approx(keep)


def test_without_a_cross_encoder_nothing_is_kept_back() -> None:
    scores, keep = merge_labels({"bi-0": np.array([0.1, 0.5])}, DistillConfig())
    assert keep is None
    assert scores == pytest.approx([0.1, 0.5])


def test_unusable_teachers_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    good = np.array([0.1, 0.9], np.float32)
    with caplog.at_level("WARNING"):
        kept = usable_columns({"bi-0": good, "bi-1": good * np.nan, "cross-0": np.array([0.5, 0.5])})
    assert list(kept) == ["bi-0"]
    told = [record.getMessage() for record in caplog.records]
    assert "bi-1" in told[0] and "2 of 2 scores are not finite" in told[0]
    assert "cross-0" in told[1] and "scores every pair 0.5" in told[1]
    with pytest.raises(StateError, match="no teacher is left"):
        usable_columns({"bi-0": good * np.inf})


def test_pairs_that_teachers_disagree_on_are_thinned_out() -> None:
    n = 400
    rng = np.random.default_rng(0)
    base = rng.random(n)
    other = np.where(np.arange(n) < n // 2, base, rng.random(n))  # the teachers agree on the first half
    texts = [str(row) for row in range(n)]
    pairs = Dataset.from_dict({"sentence1": texts, "sentence2": texts})
    labels = make_labels(pairs, {"bi-0": base, "cross-0": other}, base)
    assert thin_out(labels, 0.0, seed=1) is labels
    stays = [int(text) for text in thin_out(labels, 1.0, seed=1)["sentence1"]]
    assert stays == sorted(stays)
    assert stays == [int(text) for text in thin_out(labels, 1.0, seed=1)["sentence1"]]
    assert len(stays) == pytest.approx(n / 2, rel=0.15)
    first = sum(row < n // 2 for row in stays)
    assert first > 2 * (len(stays) - first)


def test_lists_are_thinned_out_as_a_whole() -> None:
    queries = [str(row // 4) for row in range(400)]
    pairs = Dataset.from_dict({"sentence1": queries, "sentence2": [f"t{row}" for row in range(400)]})
    rng = np.random.default_rng(3)
    labels = make_labels(pairs, {"bi-0": rng.random(400), "cross-0": rng.random(400)}, rng.random(400))
    kept = thin_out(labels, 0.8, seed=1, lists=True)
    counts = np.unique(np.array(kept["sentence1"]), return_counts=True)[1]
    assert set(counts) == {4} and 20 < len(counts) < 90
    assert set(np.unique(np.array(thin_out(labels, 0.8, seed=1)["sentence1"]), return_counts=True)[1]) > {4}


def test_words_in_common_are_no_teacher_of_their_own() -> None:
    with pytest.raises(StateError, match="no teacher is left"):
        usable_columns({"bi-0": np.full(3, np.nan), "overlap": np.arange(3.0), "c01-bi-0": np.arange(3.0)})


def test_words_in_common_weigh_the_same_whatever_the_backbones_weigh_to_each_other() -> None:
    config = DistillConfig(overlap=1.0, simplified=0.0)
    assert weigh_columns(["bi-0", "overlap"], config, [10.0]) == [10.0, 10.0]
    assert weigh_columns(["bi-0", "bi-1", "overlap"], config, [1.0, 3.0]) == [1.0, 3.0, 4.0]


def test_one_teacher_alone_disagrees_with_nobody() -> None:
    pairs = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"]})
    labels = make_labels(pairs, {"bi-0": np.array([0.1, 0.2])}, np.array([0.1, 0.2]))
    assert len(thin_out(labels, 1.0, seed=0)) == 2
