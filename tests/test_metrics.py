"""The metrics against figures worked out by hand, and what they do where a figure is undefined."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from transenc import metrics
from transenc.errors import InputError, StateError
from transenc.metrics import (
    Correlation,
    RankingQuality,
    RetrievalQuality,
    correlation,
    embedding_spread,
    ranking_quality,
    retrieval_quality,
)


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


# ---- retrieval


def test_retrieval_by_hand() -> None:
    # Found: b (score 2), x, c (score 1); a (score 1) is not found. DCG = 2 / log2(2) + 1 / log2(4) = 2.5; the best
    # order has 2, 1, 1: 2 + 1 / log2(3) + 1 / log2(4). Precision at the found ones: 1/1 and 2/3, over three.
    figures = retrieval_quality({"q": ["b", "x", "c"]}, {"q": {"a": 1, "b": 2, "c": 1, "x": 0}})
    assert figures == {
        "ndcg@10": pytest.approx(2.5 / (2.5 + 1 / math.log2(3)), abs=1e-12),
        "recall@100": pytest.approx(2 / 3, abs=1e-12),
        "mrr@10": 1.0,
        "map": pytest.approx((1 + 2 / 3) / 3, abs=1e-12),
    }


def test_retrieval_looks_at_10_and_100_documents() -> None:
    others = [f"x{i}" for i in range(200)]
    for place, expected in (
        (9, {"ndcg@10": 1 / math.log2(11), "recall@100": 1.0, "mrr@10": 0.1, "map": 0.1}),
        (10, {"ndcg@10": 0.0, "recall@100": 1.0, "mrr@10": 0.0, "map": 1 / 11}),
        (99, {"ndcg@10": 0.0, "recall@100": 1.0, "mrr@10": 0.0, "map": 0.01}),
        (100, {"ndcg@10": 0.0, "recall@100": 0.0, "mrr@10": 0.0, "map": 1 / 101}),
    ):
        ranking = [*others[:place], "d", *others[place:]]
        assert retrieval_quality({"q": ranking}, {"q": {"d": 1}}) == pytest.approx(expected, abs=1e-12)


def test_retrieval_is_the_mean_over_the_judged_queries() -> None:
    # q1 is perfect; q2 found nothing, q3 is missing, q4 has no relevant document: four queries. q5 is not judged.
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 3}, "q4": {"a": 0, "b": -1}}
    figures = retrieval_quality({"q1": ["a"], "q2": [], "q4": ["b", "a"], "q5": ["a"]}, qrels)
    assert figures == {"ndcg@10": 0.25, "recall@100": 0.25, "mrr@10": 0.25, "map": 0.25}


def test_retrieval_goes_by_the_order_given_and_whole_ids() -> None:
    # trec_eval would put equal scores in the order of the ids, and would read these ids up to the NUL.
    assert retrieval_quality({"q": ["a\x00x", "a\x00y"]}, {"q": {"a\x00y": 1}})["mrr@10"] == 0.5
    for ids in (["a", "b"], ["b", "a"]):
        assert retrieval_quality({"q": ids}, {"q": {ids[1]: 1}})["mrr@10"] == 0.5


def test_a_negative_judgement_counts_as_not_relevant() -> None:
    figures = retrieval_quality({"q": ["bad", "good"]}, {"q": {"bad": -1, "good": 1}})
    assert figures == {"ndcg@10": pytest.approx(1 / math.log2(3)), "recall@100": 1.0, "mrr@10": 0.5, "map": 0.5}


@pytest.mark.parametrize(
    ("qrels", "reason"),
    [
        ({}, "there are no queries"),
        ({"q": {}}, "no query has a relevant document"),
        ({"q": {"a": 0}, "r": {"a": -1}}, "no query has a relevant document"),
    ],
)
def test_undefined_retrieval_is_none_with_a_reason(qrels: dict, reason: str) -> None:
    expected = {"ndcg@10": None, "recall@100": None, "mrr@10": None, "map": None, "reason": reason}
    assert retrieval_quality({"q": ["a"]}, qrels) == expected


def test_bad_rankings_and_judgements_are_refused() -> None:
    with pytest.raises(StateError, match=r"^rankings\['q'\]: a document stands in it twice"):
        retrieval_quality({"q": ["a", "b", "a"]}, {"q": {"a": 1}})
    with pytest.raises(TypeError, match=r"^rankings\['q'\]: expected a list of ids, found str"):
        retrieval_quality({"q": "ab"}, {"q": {"a": 1}})
    for score in (0.5, True, "1", None):
        with pytest.raises(TypeError, match=r"^qrels\['q'\]\['a'\]: expected a whole number, found "):
            retrieval_quality({"q": ["a"]}, {"q": {"a": score}})  # type: ignore[dict-item]


def test_retrieval_adds_up_batches_in_memory() -> None:
    metric = RetrievalQuality(keep_in_memory=True)
    metric.add_batch(predictions=[["a", "b"]], references=[{"documents": ["b"], "scores": [1]}])
    metric.add_batch(predictions=[["a"]], references=[{"documents": ["a", "c"], "scores": [1, 0]}])
    assert metric.compute()["mrr@10"] == 0.75


def test_examples_run() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted > 0
    assert result.failed == 0


# ---- the spread of embeddings


def test_the_spread_of_three_axes_by_hand() -> None:
    # cosines 0, squared distances 2, singular values 1, 1, 1; lengths do not count
    spread = embedding_spread(np.diag([1.0, 5.0, 0.1]).astype(np.float32))
    assert spread == pytest.approx({"mean_cosine": 0.0, "uniformity": -4.0, "effective_rank": 3.0})


def test_the_spread_of_a_mixed_set_by_hand() -> None:
    # (1, 0), (-2, 0), (0, 3): cosines -1, 0, 0; squared distances 4, 2, 2; singular values sqrt 2 and 1
    spread = embedding_spread(np.array([[1.0, 0], [-2, 0], [0, 3]]))
    p = math.sqrt(2) / (1 + math.sqrt(2))
    assert spread["mean_cosine"] == pytest.approx(-1 / 3)
    assert spread["uniformity"] == pytest.approx(math.log((math.exp(-8) + 2 * math.exp(-4)) / 3))
    assert spread["effective_rank"] == pytest.approx(math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p)))


def test_the_spread_of_vectors_that_are_alike() -> None:
    alike = {"mean_cosine": 1.0, "uniformity": 0.0, "effective_rank": 1.0}
    assert embedding_spread(np.full((4, 3), 0.7)) == pytest.approx(alike, abs=1e-6)
    assert embedding_spread(np.zeros((4, 3))) == {"mean_cosine": 0.0, "uniformity": 0.0, "effective_rank": 0.0}
    # a vector of length 0 is as far from the others as the centre: squared distance 1
    one_zero = embedding_spread(np.array([[1.0, 0], [0, 0]]))
    assert one_zero == pytest.approx({"mean_cosine": 0.0, "uniformity": -2.0, "effective_rank": 1.0})


def test_a_spread_that_is_undefined_is_refused() -> None:
    with pytest.raises(InputError, match="2 vectors or more"):
        embedding_spread(np.ones((1, 3)))
    with pytest.raises(StateError, match="NaN or inf"):
        embedding_spread(np.array([[1.0, math.nan], [0, 1]]))
