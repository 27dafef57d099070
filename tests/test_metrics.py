"""The metrics against figures worked out by hand, and what they do where a figure is undefined."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from transenc import metrics
from transenc.errors import StateError
from transenc.metrics import Correlation, RankingQuality, correlation, ranking_quality


def test_spearman_with_ties_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: deviations (-1.5, 0, 0, 1.5) and (-1.5, .5, -.5, 1.5), so the
    # covariance sum is 4.5 and the squares sum to 4.5 and 5: 4.5 / sqrt(22.5) = 0.9486833.
    figures = correlation([0.1, 0.4, 0.4, 0.9], [1.0, 3.0, 2.0, 5.0])
    assert figures["spearman"] == pytest.approx(4.5 / math.sqrt(22.5), abs=1e-12)
    assert set(figures) == {"spearman", "pearson"}


def test_pearson_by_hand() -> None:
    # Deviations (-1, 0, 1) and (-2, -1, 3): 5 / sqrt(2 * 14); the ranks are in order.
    figures = correlation([1, 2, 3], [0, 1, 5])
    assert figures["pearson"] == pytest.approx(5 / math.sqrt(28), abs=1e-12)
    assert figures["spearman"] == pytest.approx(1.0, abs=1e-12)


def test_reversed_order_and_float32() -> None:
    figures = correlation(np.array([0.75, 0.5, 0.25], dtype=np.float32), [1, 2, 3])
    assert figures["spearman"] == pytest.approx(-1.0)
    assert figures["pearson"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("predictions", "references", "reason"),
    [
        ([0.5, 0.5, 0.5], [1, 2, 3], "all predictions are equal"),
        ([0.1, 0.2, 0.3], [4, 4, 4], "all gold scores are equal"),
        ([0.1], [4], "a correlation needs at least 2 pairs, found 1"),
        ([], [], "a correlation needs at least 2 pairs, found 0"),
    ],
)
def test_undefined_correlation_is_none_with_a_reason(predictions, references, reason: str) -> None:
    assert correlation(predictions, references) == {"spearman": None, "pearson": None, "reason": reason}


def test_extreme_values_never_give_nan() -> None:
    for predictions in ([1e308, -1e308, 1e308], [1.0, 1.0 + 4e-16, 1.0 + 9e-16], [5e-324, 1e-323, 2e-323]):
        figures = correlation(predictions, [1, 2, 4])
        assert all(figures[name] is None or math.isfinite(figures[name]) for name in ("spearman", "pearson"))


def test_auc_and_ap_by_hand() -> None:
    # Positives score 0.35 and 0.8, negatives 0.1 and 0.4: three of four pairs are in order. Precision at the
    # positives, from the top: 1/1 and 2/3, so AP = (1 + 2/3) / 2.
    figures = ranking_quality([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert figures == {"auc": pytest.approx(0.75), "ap": pytest.approx(5 / 6)}


def test_ties_count_half() -> None:
    # The positive ties with one negative and beats the other: (0.5 + 1) / 2. AP: at the tie 1 of 2 is right.
    assert ranking_quality([0.5, 0.5, 0.1], [1, 0, 0]) == {"auc": pytest.approx(0.75), "ap": pytest.approx(0.5)}
    assert ranking_quality([0.5] * 4, [1, 0, 0, 0]) == {"auc": pytest.approx(0.5), "ap": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("labels", "reason"), [([1, 1], "all labels are 1"), ([0, 0], "all labels are 0"), ([], "there are no pairs")]
)
def test_undefined_ranking_is_none_with_a_reason(labels: list[int], reason: str) -> None:
    assert ranking_quality([0.1, 0.2][: len(labels)], labels) == {"auc": None, "ap": None, "reason": reason}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_position(bad: float) -> None:
    with pytest.raises(StateError, match=r"^prediction 1: expected a finite number.*1 of 3 are not finite"):
        correlation([0.1, bad, 0.3], [1, 2, 3])
    with pytest.raises(StateError, match=r"^gold score 2: expected a finite number"):
        correlation([0.1, 0.2, 0.3], [1, 2, bad])
    with pytest.raises(StateError, match=r"^prediction 0: expected a finite number"):
        ranking_quality([bad, 0.2], [0, 1])


def test_labels_and_lengths_are_checked() -> None:
    with pytest.raises(StateError, match=r"^label 1: expected 0 or 1, found 2"):
        ranking_quality([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="expected one prediction a pair: 2, found 3"):
        correlation([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="expected one prediction a pair: 2, found 1"):
        ranking_quality([1], [1, 0])


@pytest.mark.parametrize("metric", [Correlation, RankingQuality])
def test_metrics_add_up_batches_in_memory(metric: type[Correlation]) -> None:
    batched = metric(keep_in_memory=True)
    batched.add_batch(predictions=[0.1, 0.4], references=[0, 0])
    batched.add_batch(predictions=[0.35, 0.8], references=[1, 1])
    whole = metric(keep_in_memory=True).compute(predictions=[0.1, 0.4, 0.35, 0.8], references=[0, 0, 1, 1])
    assert batched.compute() == whole
    assert {feature.dtype for feature in batched.features.values()} == {"float64"}


def test_examples_run() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted > 0
    assert result.failed == 0
