"""Reranking: the two scores are fused by hand, ties go by id, and a poor cross-encoder is not believed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn

from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import InputError, StateError
from transenc.scoring import score_pairs
from transenc.search.reranking import Hit, choose_weight, fuse_scores, rerank, rerank_many

QUERY = "the small cat sees the dog home"
TEXTS = {
    "d1": "the small cat sees the bird home",
    "d2": "a big horse finds the river today",
    "d3": "the small cat sees the dog home",
    "d4": "the old farmer",
    "d5": "soup and bread alone",
}


@pytest.fixture(scope="module")
def cross(tiny_cross: Path) -> CrossEncoder:
    return load_cross_encoder(tiny_cross)


def make_hits(scores: list[float] | None = None, *, texts: dict[str, str] = TEXTS, **fields: Any) -> list[Hit]:
    scores = scores or [0.9, 0.8, 0.7, 0.6, 0.5]
    return [
        Hit(key, score, rank, rank, score, text=text, **fields)
        for rank, (score, (key, text)) in enumerate(zip(scores, texts.items(), strict=True), start=1)
    ]


# ---- fusion


def test_fused_scores_are_the_weighted_means_of_the_standardised_ones() -> None:
    # 3, 2, 1 standardised is 1.5 ** 0.5 times 1, 0, -1; 0, 0, 30 is 2 ** -0.5 times -1, -1, 2
    high, low = math.sqrt(1.5), math.sqrt(0.5)
    expected = [0.75 * high - 0.25 * low, -0.25 * low, -0.75 * high + 0.25 * 2 * low]
    assert fuse_scores([3, 2, 1], [0, 0, 30], weight=0.25).tolist() == pytest.approx(expected, abs=1e-9)


def test_the_ends_of_the_weight_are_the_two_orders() -> None:
    retrieval, other = np.array([0.9, 0.8, 0.1, 0.3]), np.array([0.2, 0.9, 0.8, 0.3], dtype=np.float32)
    assert np.argsort(-fuse_scores(retrieval, other, weight=0)).tolist() == [0, 1, 3, 2]
    assert np.argsort(-fuse_scores(retrieval, other, weight=1)).tolist() == [1, 2, 3, 0]


def test_without_a_weight_the_cross_encoder_is_believed_as_far_as_it_agrees() -> None:
    # Standardised: 1.5 ** 0.5 times (1, 0, -1) and (0, 1, -1). Their correlation is 1.5 * 1 / 3 = 0.5, so the weights
    # are 1 and 0.25 of 1.25. By chance there would be up to 2 / sqrt(18) = 0.47 of it, and among 15 up to 0.52.
    retrieval, other = [3, 2, 1], [20, 30, 10]
    expected = [0.8 * math.sqrt(1.5), 0.2 * math.sqrt(1.5), -math.sqrt(1.5)]
    assert fuse_scores(retrieval * 6, other * 6).tolist() == pytest.approx(expected * 6, abs=1e-9)
    alone = fuse_scores(retrieval, other, weight=0).tolist()
    assert fuse_scores(retrieval * 5, other * 5).tolist() == alone * 5
    assert fuse_scores(retrieval * 6, [10, 30, 20] * 6).tolist() == alone * 6
    assert fuse_scores([3, 2, 1], [6, 4, 2]).tolist() == fuse_scores([3, 2, 1], [6, 4, 2], weight=0.5).tolist()


def test_a_poor_cross_encoder_does_no_harm_and_a_good_one_helps() -> None:
    # 200 queries with 50 candidates, one of them relevant, which both scores see through noise of their own.
    rng = np.random.default_rng(0)
    relevant = np.zeros(50)
    relevant[0] = 1
    ranks: dict[str, list[int]] = {"retrieved": [], "noise": [], "good": [], "noise at half": []}
    for _ in range(200):
        topic = rng.standard_normal(50)  # what makes candidates look alike to both
        retrieval = 3 * relevant + topic + rng.standard_normal(50)
        noise = rng.standard_normal(50)
        for name, scores in {
            "retrieved": retrieval,
            "noise": fuse_scores(retrieval, noise),
            "good": fuse_scores(retrieval, 3 * relevant + topic + noise),
            "noise at half": fuse_scores(retrieval, noise, weight=0.5),
        }.items():
            ranks[name].append(1 + int((scores > scores[0]).sum()))
    quality = {
        name: np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in found]) for name, found in ranks.items()
    }
    assert quality["noise"] > quality["retrieved"] - 0.005
    assert quality["good"] > quality["retrieved"] + 0.02
    assert quality["noise at half"] < quality["retrieved"] - 0.05


@pytest.mark.parametrize("weight", [None, 0, 0.5, 1])
def test_what_is_undefined_is_zero(weight: float | None) -> None:
    assert fuse_scores([], [], weight=weight).shape == (0,)
    assert fuse_scores([0.7], [0.2], weight=weight).tolist() == [0.0]
    assert fuse_scores([0.1] * 3, [0.3] * 3, weight=weight).tolist() == [0.0] * 3  # 0.1 has no exact mean


def test_equal_scores_of_one_side_leave_the_order_to_the_other() -> None:
    assert np.argsort(-fuse_scores([0.1, 0.3, 0.2], [0.7] * 3)).tolist() == [1, 2, 0]
    assert np.argsort(-fuse_scores([0.7] * 3, [0.1, 0.3, 0.2], weight=0.5)).tolist() == [1, 2, 0]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("weight", [None, 0.4])
def test_scales_do_not_matter(scale: float, weight: float | None) -> None:
    retrieval, other = np.random.default_rng(0).random((2, 20))
    expected = fuse_scores(retrieval, other, weight=weight)
    np.testing.assert_allclose(fuse_scores(retrieval * scale, other, weight=weight), expected, atol=1e-8)
    np.testing.assert_allclose(fuse_scores(retrieval, other * scale - scale, weight=weight), expected, atol=1e-8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(StateError, match="retrieval score 1: expected a finite number"):
        fuse_scores([0.1, bad], [0.1, 0.2])
    with pytest.raises(StateError, match="rerank score 0: expected a finite number"):
        fuse_scores([0.1, 0.2], [bad, 0.2])


@pytest.mark.parametrize(
    ("retrieval", "other", "message"),
    [
        ([0.1, 0.2], [0.1], r"as many rerank scores as retrieval scores \(2\), found 1"),
        ([[0.1, 0.2]], [0.1, 0.2], r"found an array of shape \(1, 2\)"),
    ],
)
def test_scores_that_do_not_fit_are_refused(retrieval: Any, other: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fuse_scores(retrieval, other)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, "0.5", True])
def test_a_weight_outside_its_range_is_refused(weight: Any, cross: CrossEncoder) -> None:
    message = "the rerank weight must be a number from 0 to 1"
    with pytest.raises(InputError, match=message):
        fuse_scores([0.1], [0.2], weight=weight)
    with pytest.raises(InputError, match=message):
        rerank(QUERY, make_hits(), cross, weight=weight)


# ---- choosing a weight from labelled queries


def test_the_best_weight_is_chosen() -> None:
    # Query 1: fused (1 - w) - w and its negative, so the second is first from 0.6 on. Query 2: the first stays first
    # up to 0.4, and is the better one: with 0.6 and more query 1 gains what query 2 loses, so grades decide.
    retrieval, other = [[0.9, 0.8], [0.9, 0.8]], [[0.1, 0.7], [0.1, 0.7]]
    assert choose_weight(retrieval, other, [[0, 1], [0, 1]]) == 0.6
    assert choose_weight(retrieval, other, [[1, 0], [1, 0]]) == 0.0
    # nDCG of grades 1 and 0.9 hardly changes when they swap, that of 0 and 1 does
    assert choose_weight(retrieval, other, [[1, 0.9], [0, 1]]) == 0.6


def test_the_smaller_of_equally_good_weights_is_chosen() -> None:
    assert choose_weight([[0.9, 0.8]], [[0.7, 0.1]], [[1, 0]]) == 0.0
    # one gains as much as the other loses
    assert choose_weight([[0.9, 0.8]] * 2, [[0.1, 0.7]] * 2, [[0, 1], [1, 0]]) == 0.0


def test_queries_without_relevant_candidates_do_not_count() -> None:
    assert choose_weight([[0.9, 0.8]] * 3, [[0.1, 0.7]] * 3, [[0, 1], [0, 0], [0, 0]]) == 0.6
    with pytest.raises(InputError, match="no query has a relevant candidate"):
        choose_weight([[0.9, 0.8], []], [[0.1, 0.7], []], [[0, 0], []])
    with pytest.raises(InputError, match="no query has a relevant candidate"):
        choose_weight([], [], [])


def test_only_the_first_ten_places_count() -> None:
    # The relevant one is the last of 12 by retrieval; the weight that brings it to place 10 is the first that counts.
    retrieval, other, gains = np.linspace(1, 0, 12), np.zeros(12), np.zeros(12)
    other[11] = gains[11] = 1
    weight = choose_weight([retrieval], [other], [gains])
    fused = [fuse_scores(retrieval, other, weight=step / 10) for step in range(11)]
    ranks = [int((scores > scores[11]).sum()) for scores in fused]
    assert ranks[0] == 11
    assert weight == ranks.index(0) / 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], [[1.0]], []), "found 1 of retrieval scores, 1 of rerank scores and 0 of gains"),
        (([[1.0, 2.0]], [[1.0, 2.0]], [[1]]), "query 0: expected a gain for each of 2 candidates, found 1"),
        (([[1.0, 2.0]], [[1.0]], [[1, 0]]), "as many rerank scores"),
    ],
)
def test_lists_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_weight(*arguments)


# ---- reranking


def test_hits_are_ordered_by_the_fused_score(cross: CrossEncoder) -> None:
    hits = make_hits()
    scores = score_pairs(cross, [(QUERY, text) for text in TEXTS.values()], symmetric=False)
    fused = fuse_scores([0.9, 0.8, 0.7, 0.6, 0.5], scores, weight=0.5)
    found = rerank(QUERY, hits, cross, weight=0.5)
    order = np.argsort(-fused)
    assert [hit.id for hit in found] == [f"d{row + 1}" for row in order]
    assert [hit.rank for hit in found] == [1, 2, 3, 4, 5]
    assert [hit.retrieved_rank for hit in found] == [row + 1 for row in order]
    assert [hit.score for hit in found] == pytest.approx(fused[order], abs=1e-5)
    assert [hit.rerank_score for hit in found] == pytest.approx(scores[order], abs=1e-5)
    assert [hit.retrieval_score for hit in found] == [hits[row].retrieval_score for row in order]
    assert [hit.text for hit in found] == [hits[row].text for row in order]


def test_weight_0_is_the_retrieved_order_and_1_the_cross_encoders(cross: CrossEncoder) -> None:
    scores = score_pairs(cross, [(QUERY, text) for text in TEXTS.values()], symmetric=False)
    assert [hit.id for hit in rerank(QUERY, make_hits(), cross, weight=0)] == list(TEXTS)
    by_cross = [f"d{row + 1}" for row in np.argsort(-scores)]
    assert by_cross != list(TEXTS)
    assert [hit.id for hit in rerank(QUERY, make_hits(), cross, weight=1)] == by_cross


def test_ties_are_in_order_of_id(cross: CrossEncoder) -> None:
    texts = {key: "the same text" for key in ("c", "a", "b")}
    for weight in (None, 0.0, 0.3, 1.0):
        found = rerank(QUERY, make_hits([0.5, 0.5, 0.5], texts=texts), cross, weight=weight)
        assert [(hit.id, hit.rank, hit.score) for hit in found] == [("a", 1, 0.0), ("b", 2, 0.0), ("c", 3, 0.0)]


def test_the_order_of_the_hits_does_not_matter(cross: CrossEncoder) -> None:
    assert rerank(QUERY, make_hits()[::-1], cross) == rerank(QUERY, make_hits(), cross)


def test_the_best_passage_is_read_with_its_title(cross: CrossEncoder) -> None:
    text = "soup and bread. the small cat sees the dog."
    hit = Hit("d", 0.5, 1, 1, 0.5, title="home", text=text, start=16, end=43)
    expected = score_pairs(cross, [(QUERY, "home the small cat sees the dog.")], symmetric=False)
    found = rerank(QUERY, [hit], cross, unit="passage")[0].rerank_score
    assert found == pytest.approx(float(expected[0]), abs=1e-6)
    whole = score_pairs(cross, [(QUERY, f"home {text}")], symmetric=False)
    [found_whole] = rerank(QUERY, make_hits([0.5], texts={"d": text}, title="home"), cross, unit="passage")
    assert found_whole.rerank_score == pytest.approx(float(whole[0]), abs=1e-6)


def test_of_the_sentences_the_best_one_counts(cross: CrossEncoder) -> None:
    read = ["the big cat sees the old dog.", "the small dog hears the cat.", "the old farmer sees the dog."]
    text = f"the bread is on the table today. {read[0]} {read[1]} a bird sings in the garden. {read[2]}"
    query = "the big cat hears the old dog"
    hit = Hit("d", 0.5, 1, 1, 0.5, title="home", text=text)
    expected = score_pairs(cross, [(query, sentence) for sentence in read], symmetric=False)
    assert rerank(query, [hit], cross)[0].rerank_score == pytest.approx(float(expected.max()), abs=1e-6)
    with pytest.raises(InputError, match="unit must be one of sentence, passage, found 'word'"):
        rerank(query, [hit], cross, unit="word")


def test_top_k_cuts_after_reranking(cross: CrossEncoder) -> None:
    everything = rerank(QUERY, make_hits(), cross, weight=1)
    assert rerank(QUERY, make_hits(), cross, weight=1, top_k=2) == everything[:2]
    assert rerank(QUERY, make_hits(), cross, weight=1, top_k=10**9) == everything
    for top_k in (0, -1, 1.5, "8", True):
        with pytest.raises(InputError, match="top_k"):
            rerank(QUERY, make_hits(), cross, top_k=top_k)  # type: ignore[arg-type]


def test_no_hits_stay_no_hits(cross: CrossEncoder) -> None:
    assert rerank(QUERY, [], cross) == []
    assert rerank_many([], [], cross) == []


def test_many_queries_are_reranked_as_one_by_one(cross: CrossEncoder) -> None:
    queries = [QUERY, "the old farmer", "bread"]
    hits = [make_hits(), [], make_hits()[1:4]]
    found = rerank_many(queries, hits, cross, top_k=2)
    assert [[hit.id for hit in part] for part in found] == [
        [hit.id for hit in rerank(query, part, cross, top_k=2)] for query, part in zip(queries, hits, strict=True)
    ]
    assert [len(part) for part in found] == [2, 0, 2]


def test_all_pairs_are_scored_at_once(cross: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    original = cross.predict

    def predict(batch: Any, **options: Any) -> Any:
        batches.append(len(batch))
        return original(batch, **options)

    monkeypatch.setattr(cross, "predict", predict)
    rerank_many([QUERY, "bread"], [make_hits(), make_hits()], cross, unit="passage")
    assert batches == [10]


@pytest.mark.parametrize(
    ("query", "hits", "message"),
    [
        (QUERY, "hits", "hits of query 0 must be a sequence such as a list, found str"),
        (QUERY, ["the cat"], "hit 0 of query 0 must be a Hit, found str"),
        (QUERY, [["the cat"]], "hit 0 of query 0 must be a Hit, found list"),
        (QUERY, None, "found NoneType"),
        (None, [], "query 0 must be a string, found NoneType"),
        ([QUERY], [], "query 0 must be a string, found list"),
    ],
)
def test_other_types_are_refused(cross: CrossEncoder, query: Any, hits: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        rerank(query, hits, cross)


def test_batches_of_other_types_are_refused(cross: CrossEncoder) -> None:
    with pytest.raises(TypeError, match="queries must be a sequence such as a list, found str"):
        rerank_many("abc", [[], [], []], cross)
    with pytest.raises(TypeError, match="hits must be a sequence such as a list, found dict"):
        rerank_many([], {}, cross)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a list of hits for each of 2 queries, found 1"):
        rerank_many([QUERY, QUERY], [make_hits()], cross)


def test_what_is_no_encoder_does_not_rerank(cross: CrossEncoder) -> None:
    with pytest.raises(TypeError, match="found str"):
        rerank(QUERY, make_hits(), "my/encoder")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="found NoneType"):
        rerank(QUERY, make_hits(), [cross, None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="no encoder given"):
        rerank(QUERY, [], [])


# ---- other encoders, and several


def test_a_bi_encoder_reranks_by_the_cosines_of_sentences(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi)
    hits = [
        Hit("d1", 0.9, 1, 1, 0.9, title="the old farmer", text="the small cat sees the bird home."),
        Hit("d2", 0.8, 2, 2, 0.8, text="soup and bread alone"),
    ]
    read = [["the old farmer", "the small cat sees the bird home."], ["soup and bread alone"]]
    plain = SentenceTransformer(str(tiny_bi), device="cpu")
    expected = [float(plain.similarity(plain.encode([QUERY]), plain.encode(texts)).max()) for texts in read]
    found = {hit.id: hit.rerank_score for hit in rerank(QUERY, hits, model)}
    assert [found["d1"], found["d2"]] == pytest.approx(expected, abs=1e-5)


def test_several_rerankers_meet_on_one_scale(tiny_bi: Path, cross: CrossEncoder) -> None:
    model = load_bi_encoder(tiny_bi)
    hits = make_hits()
    alone = []
    for encoder in (model, cross):
        scores = {hit.id: hit.rerank_score or 0.0 for hit in rerank(QUERY, hits, encoder)}
        alone.append(np.array([scores[hit.id] for hit in hits]))
    common = np.mean([np.sort(scores) for scores in alone], axis=0)
    places = [np.argsort(np.argsort(scores)) for scores in alone]
    expected = (common[places[0]] + common[places[1]]) / 2
    found = {hit.id: hit for hit in rerank(QUERY, hits, [model, cross], weight=1.0)}
    assert [found[hit.id].rerank_score for hit in hits] == pytest.approx(expected, abs=1e-6)
    best = min(range(len(hits)), key=lambda row: (-round(float(expected[row]), 6), hits[row].id))
    assert found[hits[best].id].rank == 1


def test_an_ensemble_is_asked_query_by_query(tiny_bi: Path, cross: CrossEncoder) -> None:
    both = [load_bi_encoder(tiny_bi), cross]
    queries, hits = [QUERY, "bread", "the old farmer"], [make_hits(), [], make_hits()[2:]]
    found = rerank_many(queries, hits, both)
    for query, part, ordered in zip(queries, hits, found, strict=True):
        alone = rerank(query, part, both)
        assert [hit.id for hit in ordered] == [hit.id for hit in alone]
        scores = [hit.rerank_score for hit in alone]
        assert [hit.rerank_score for hit in ordered] == pytest.approx(scores, abs=1e-5)


def test_an_activation_does_not_decide_between_rerankers(tiny_bi: Path, tiny_cross: Path) -> None:
    """Logits are spread far wider than cosines; on one scale they count no more."""
    orders = []
    for activation in (nn.Identity(), nn.Sigmoid()):
        cross = load_cross_encoder(tiny_cross)
        cross.activation_fn = activation
        orders.append([hit.id for hit in rerank(QUERY, make_hits(), [load_bi_encoder(tiny_bi), cross], weight=1.0)])
    assert orders[0] == orders[1]


def test_the_encoder_that_gives_nan_is_named(tiny_bi: Path, cross: CrossEncoder) -> None:
    broken = load_bi_encoder(tiny_bi)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    with pytest.raises(StateError, match=r"^encoder 1: the bi-encoder gave NaN"):
        rerank(QUERY, make_hits(), [cross, broken])
    with pytest.raises(StateError, match=r"^encoder 0: the bi-encoder gave NaN"):
        score_pairs([broken, cross], [("a cat", "a dog")])
