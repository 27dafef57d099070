"""Rerank what was retrieved with a cross-encoder or another encoder, without losing what the retriever knew.

A cross-encoder that was distilled on sentence pairs cannot rank passages: over whole abstracts it is little better
than chance, and over their sentences it is a good ranker (figures in docs/results.md). So it reads sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from transenc.encoders import Encoder
from transenc.errors import InputError, StateError
from transenc.labeling import merge_scores
from transenc.scoring import list_encoders, score_each
from transenc.search.passages import passage_text
from transenc.search.sentences import choose_sentences, split_sentences
from transenc.search.store import check_top_k

UNITS = ("sentence", "passage")

_SENTENCES = 3  # read of each candidate: as good on development queries as all of them, at a third of the work
_GRID = np.linspace(0.0, 1.0, 11)
_CUTOFF = 10  # of the nDCG that choose_weight looks at


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found.

    Args:
        id: The document's.
        score: What the final order follows, best first, ties by id.
        rank: Place in the final order, from 1.
        retrieved_rank: Place in the order of the retriever, from 1.
        retrieval_score: The retriever's score: the cosine, or for hybrid search the fused rank score.
        rerank_score: The score of what reranks; None if nothing does.
        title: The document's title.
        text: The document's whole text.
        metadata: The document's other columns.
        start: First character of the best passage in `text`; -1: not known.
        end: Character after its last; -1: not known.

    Example:
        >>> Hit("d1", 0.9, 1, 1, 0.9, text="It is mild.").rerank_score is None
        True
    """

    id: str
    score: float
    rank: int
    retrieved_rank: int
    retrieval_score: float
    rerank_score: float | None = None
    title: str = ""
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    start: int = -1
    end: int = -1


def describe_hit(hit: Hit) -> dict[str, Any]:
    """Return a hit as JSON: what `transenc search --json` prints, and what the server answers.

    Example:
        >>> describe_hit(Hit("d1", 0.9, 1, 1, 0.9, text="It is mild.", start=0, end=11))["passage"]
        [0, 11]
    """
    return {
        "id": hit.id,
        "score": hit.score,
        "rank": hit.rank,
        "retrieved_rank": hit.retrieved_rank,
        "retrieval_score": hit.retrieval_score,
        "rerank_score": hit.rerank_score,
        "title": hit.title,
        "text": hit.text,
        "passage": [hit.start, hit.end],
        "metadata": dict(hit.metadata),
    }


def rerank(
    query: str,
    hits: Sequence[Hit],
    rerankers: Encoder | Sequence[Encoder],
    *,
    unit: str = "sentence",
    weight: float | None = None,
    top_k: int | None = None,
    batch_tokens: int | None = None,
) -> list[Hit]:
    """Order hits anew by the scores of retriever and reranker together.

    What reranks is a cross-encoder, or a bi-encoder, whose score is the cosine of two sentences. It reads the query
    with the title and best passage of each hit: with its sentences, and the highest score counts, or with the whole.
    Of the sentences only three are read, those that share the most words with the query (`choose_sentences`). The two
    scores are fused by `fuse_scores`. To rerank for many queries at once, see `rerank_many`.

    Several rerankers are an ensemble: the mean of their scores of each hit. Cosines and sigmoids are spread
    differently, so they are brought to one scale first, the quantiles of `merge_scores` over the query's hits.

    Args:
        query: The query that the hits were retrieved for.
        hits: In any order; what counts is `retrieval_score`.
        rerankers: A cross-encoder with one output or a bi-encoder, or several.
        unit: "sentence", right for encoders that were trained on sentence pairs, or "passage", for those that were
            trained to rank passages.
        weight: Of the rerankers, 0 (the order of the retriever) to 1 (their order alone); None: decided for
            the query, without labels, see `fuse_scores`.
        top_k: Hits to return, 1 or more; None: all.
        batch_tokens: As for `score_pairs`.

    Returns:
        The hits, best first, ties by id, with new `score`, `rank` and `rerank_score`.

    Raises:
        TypeError: Not hits, a query that is no string, or not an encoder.
        InputError: A weight outside [0, 1], another unit, no encoder, or a `top_k` below 1.
        StateError: A score is not finite.

    Example:
        >>> hits = rerank("mild winters", engine.search("mild winters"), cross)  # doctest: +SKIP
    """
    return rerank_many([query], [hits], rerankers, unit=unit, weight=weight, top_k=top_k, batch_tokens=batch_tokens)[0]


def rerank_many(
    queries: Sequence[str],
    hits: Sequence[Sequence[Hit]],
    rerankers: Encoder | Sequence[Encoder],
    *,
    unit: str = "sentence",
    weight: float | None = None,
    top_k: int | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> list[list[Hit]]:
    """Rerank for several queries in one scoring call; see `rerank`.

    Args:
        queries: q strings.
        hits: For each query its hits.
        rerankers: As for `rerank`.
        unit: As for `rerank`.
        weight: As for `rerank`.
        top_k: As for `rerank`, for each query.
        batch_tokens: As for `score_pairs`.
        progress: Show a progress bar on stderr.

    Returns:
        For each query what `rerank` returns.

    Raises:
        TypeError: As for `rerank`; the position is named.
        InputError: As for `rerank`, or not one list of hits for each query.
        StateError: A score is not finite.

    Example:
        >>> rerank_many([], [], cross)  # doctest: +SKIP
        []
    """
    group = list_encoders(rerankers)
    _check_weight(weight)
    _check_hits(queries, hits)
    count = None if top_k is None else check_top_k(top_k)
    texts = [list_readings(query, found, unit=unit) for query, found in zip(queries, hits, strict=True)]
    pairs = [(query, text) for query, read in zip(queries, texts, strict=True) for part in read for text in part]
    columns = score_each(group, pairs, symmetric=False, batch_tokens=batch_tokens, progress=progress)
    results, start = [], 0
    for found, read in zip(hits, texts, strict=True):
        stop = start + sum(len(part) for part in read)
        best = _take_best(columns[:, start:stop], [len(part) for part in read])
        results.append(_order(found, merge_scores(list(best), scale="quantile"), weight)[:count])
        start = stop
    return results


def list_readings(query: str, hits: Sequence[Hit], *, unit: str = "sentence") -> list[list[str]]:
    """Return what a reranker reads of each hit of a query; the highest of its scores is the hit's.

    Args:
        query: The query that the hits were retrieved for.
        hits: Its hits.
        unit: As for `rerank`.

    Returns:
        For each hit one text or more.

    Raises:
        InputError: Another unit.

    Example:
        >>> hits = [Hit("d1", 0.9, 1, 1, 0.9, title="Winters in Porto", text="It is mild. It rains a lot in January.")]
        >>> list_readings("rain in January", hits)
        [['It is mild. It rains a lot in January.', 'Winters in Porto']]
    """
    if unit not in UNITS:
        raise InputError(f"the rerank unit must be one of {', '.join(UNITS)}, found {unit!r}")
    if unit == "passage":
        return [[passage_text(hit, hit.start, hit.end)] for hit in hits]
    sentences = []
    for hit in hits:
        text = hit.text if hit.start < 0 or hit.end < 0 else hit.text[hit.start : hit.end]
        sentences.append([*split_sentences(hit.title), *split_sentences(text)])
    chosen = choose_sentences(query, sentences, count=_SENTENCES)
    return [part or [passage_text(hit, hit.start, hit.end)] for hit, part in zip(hits, chosen, strict=True)]


def fuse_scores(
    retrieval: Sequence[float] | np.ndarray, rerank: Sequence[float] | np.ndarray, *, weight: float | None = None
) -> np.ndarray:
    """Fuse the two scores of a query's candidates.

    Both are standardised over the candidates (mean 0, standard deviation 1; all equal: 0) and averaged with the
    weight. A reranker may know little of the task, so without a weight it is believed half as far as it agrees
    with the retriever: fused = z(retrieval) + r / 2 z(rerank), where r is the correlation of the two, that is a weight
    of r / (2 + r), at most a third. An r that chance would give (up to 2 / sqrt(n), so any for 4 candidates or fewer)
    counts as 0. `choose_weight` finds a weight from labelled queries.

    Args:
        retrieval: The retriever's scores of one query's candidates, shape [n], any scale.
        rerank: The reranker's, shape [n], any scale.
        weight: Of `rerank`, from 0 to 1; None: decided from the scores, for this query alone.

    Returns:
        float64 of shape [n], higher is better, comparable within the query only.

    Raises:
        InputError: Not two arrays of one length, or a weight outside [0, 1].
        StateError: A score is not finite; the position is named.

    Example:
        >>> fuse_scores([0.9, 0.5], [0.1, 0.3], weight=0.25).tolist()
        [0.5, -0.5]
        >>> fuse_scores([0.9, 0.5], [0.1, 0.3]).tolist()  # two candidates tell nothing
        [1.0, -1.0]
    """
    _check_weight(weight)
    one, other = _check_scores(retrieval, "retrieval"), _check_scores(rerank, "rerank")
    if one.shape != other.shape:
        raise InputError(f"expected as many rerank scores as retrieval scores ({one.size}), found {other.size}")
    left, right = _standardize(one), _standardize(other)
    if weight is None:
        agreement = float((left * right).mean()) if one.size else 0.0
        weight = agreement / (2.0 + agreement) if agreement > 2.0 / np.sqrt(one.size or 1) else 0.0
    # rounded, so that what ties on paper ties here
    return np.round((1.0 - weight) * left + weight * right, 9)


def choose_weight(
    retrieval: Sequence[Sequence[float] | np.ndarray],
    rerank: Sequence[Sequence[float] | np.ndarray],
    gains: Sequence[Sequence[float] | np.ndarray],
) -> float:
    """Choose the weight for `fuse_scores` from queries with known relevant documents.

    Args:
        retrieval: For each query the retriever's scores of its candidates, shape [n].
        rerank: For each query the reranker's, shape [n].
        gains: For each query the gains (grades of relevance, 0: not relevant) of its candidates, shape [n].

    Returns:
        The weight of 0, 0.1, ..., 1 with the largest mean nDCG@10 (ideal order: of the candidates); the
        smallest of equals.

    Raises:
        InputError: Not the same numbers of queries and candidates, or no query with a relevant candidate.
        StateError: A score is not finite.

    Example:
        >>> choose_weight([[0.9, 0.8]], [[0.1, 0.7]], [[0, 1]])
        0.6
    """
    if not len(retrieval) == len(rerank) == len(gains):
        raise InputError(
            f"expected as many lists of each kind, found {len(retrieval)} of retrieval scores, {len(rerank)} of "
            f"rerank scores and {len(gains)} of gains"
        )
    total, known = np.zeros(len(_GRID)), 0
    for row, (one, other, grades) in enumerate(zip(retrieval, rerank, gains, strict=True)):
        worth = _check_scores(grades, "gain")
        if worth.size != len(one):
            raise InputError(f"query {row}: expected a gain for each of {len(one)} candidates, found {worth.size}")
        if worth.size and worth.max() > 0:
            known += 1
            total += [_ndcg(fuse_scores(one, other, weight=weight), worth) for weight in _GRID]
    if not known:
        raise InputError("no query has a relevant candidate, so no weight is better than another")
    # what differs by rounding only is equal
    return round(float(_GRID[np.argmax(np.round(total / known, 12))]), 1)


def _take_best(columns: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The highest score of each hit's readings, by reranker."""
    if not lengths:
        return columns
    return np.maximum.reduceat(columns, np.cumsum([0, *lengths[:-1]]), axis=1)


def _order(hits: Sequence[Hit], scores: np.ndarray, weight: float | None) -> list[Hit]:
    fused = fuse_scores([hit.retrieval_score for hit in hits], scores, weight=weight)
    order = sorted(range(len(hits)), key=lambda row: (-fused[row], hits[row].id))
    return [
        replace(hits[row], score=float(fused[row]), rank=rank, rerank_score=float(scores[row]))
        for rank, row in enumerate(order, start=1)
    ]


def _standardize(scores: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1; zeros where all are equal."""
    lowest, highest = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    if not lowest < highest:
        return np.zeros_like(scores)
    # To [0, 1] first, so that neither tiny nor huge numbers are lost in the squares.
    scores = (scores - lowest) / (highest - lowest)
    return (scores - scores.mean()) / scores.std()


def _ndcg(scores: np.ndarray, gains: np.ndarray) -> float:
    discounts = 1.0 / np.log2(np.arange(2, min(_CUTOFF, len(gains)) + 2))
    found = gains[np.argsort(-scores, kind="stable")][:_CUTOFF]
    return float(found @ discounts / (np.sort(gains)[::-1][:_CUTOFF] @ discounts))


def _check_weight(weight: Any) -> None:
    if weight is None:
        return
    if isinstance(weight, bool) or not isinstance(weight, int | float | np.floating) or not 0.0 <= weight <= 1.0:
        raise InputError(f"the rerank weight must be a number from 0 to 1, found {weight!r}")


def _check_scores(scores: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"expected one {name} score a candidate, found an array of shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise StateError(f"{name} score {bad[0]}: expected a finite number, found {array[bad[0]]}")
    return array


def _check_hits(queries: Any, hits: Any) -> None:
    for name, values in (("queries", queries), ("hits", hits)):
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            raise TypeError(f"{name} must be a sequence such as a list, found {type(values).__name__}")
    if len(queries) != len(hits):
        raise InputError(f"expected a list of hits for each of {len(queries)} queries, found {len(hits)}")
    for row, (query, found) in enumerate(zip(queries, hits, strict=True)):
        if not isinstance(query, str):
            raise TypeError(f"query {row} must be a string, found {type(query).__name__}")
        if isinstance(found, str | bytes) or not isinstance(found, Sequence):
            raise TypeError(f"hits of query {row} must be a sequence such as a list, found {type(found).__name__}")
        for place, hit in enumerate(found):
            if not isinstance(hit, Hit):
                raise TypeError(f"hit {place} of query {row} must be a Hit, found {type(hit).__name__}")
