"""Questions to an index and their answers, computed several at a time with the steps of `SemanticSearch.search`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from transenc.alignment import Alignment, align_tokens
from transenc.errors import InputError
from transenc.scoring import score_pairs
from transenc.search.engine import SemanticSearch
from transenc.search.reranking import Hit
from transenc.search.store import Condition


@dataclass(frozen=True, slots=True)
class Search:
    """What `SemanticSearch.search` takes.

    Args:
        query: Text with at least one visible character.
        top_k: Hits wanted.
        candidates: Documents retrieved for reranking and hybrid search.
        where: Conditions that must all hold.
        hybrid: Retrieve by words too.
        rerank: Rerank, if anything does.
        rerank_weight: Weight of the rerankers, 0 to 1; None: chosen without labels.
    """

    query: str
    top_k: int = 10
    candidates: int = 100
    where: tuple[Condition, ...] = ()
    hybrid: bool = False
    rerank: bool = True
    rerank_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Similarity:
    """Two sentences to compare."""

    sentence1: str
    sentence2: str


Question = Search | Similarity

CONDITION = "where: "  # how an error begins that is about a condition on metadata, and fit for the client


@dataclass(slots=True)
class SearchAnswer:
    """The hits of a search.

    Args:
        hits: What `SemanticSearch.search` gives.
        retrieved: Ids of the best `top_k` in the order of the retriever.
        others: Of those the ones that are not in `hits`, with the rank that they have in the final order.
        reranked: Whether the rerankers have had their say.
        generation: Of the index that was searched; None: a store without generations.
        batch: Questions that were answered together.
        timings: Milliseconds of the batch by step.
    """

    hits: list[Hit]
    retrieved: list[str]
    others: list[Hit]
    reranked: bool
    generation: int | None
    batch: int
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class SimilarityAnswer:
    """How similar two sentences are.

    Args:
        bi: Cosine of the bi-encoder, -1 to 1.
        cross: Mean score of what reranks, a cross-encoder in both orders; None if nothing does.
        alignment: Of the tokens.
        batch: Questions that were answered together.
        timings: Milliseconds by step.
    """

    bi: float
    cross: float | None
    alignment: Alignment
    batch: int
    timings: dict[str, float] = field(default_factory=dict)


Answer = SearchAnswer | SimilarityAnswer


def answer_questions(
    engine: SemanticSearch, questions: Sequence[Question]
) -> Iterator[tuple[int, Answer | InputError]]:
    """Answer several questions together, all searches from one generation of the index.

    Queries are encoded in one call, and retrieved for at once where they ask alike. Reranking is one call for all on a
    GPU. On a CPU, where one search fills the model's batches many times over, it is one call each: nobody waits for
    the others' candidates, and they cannot change a score.

    Args:
        engine: Index and models.
        questions: In any mixture.

    Yields:
        The position of a question and its answer, or why the index cannot answer it (an unknown metadata key); each
        once, as soon as it is there.

    Raises:
        TransencError: A text that the encoder refuses, NaN from a model, a store that cannot be read or that changed
            meanwhile; the questions that are left are not answered then.

    Example:
        >>> dict(answer_questions(engine, [Search("rain"), Similarity("rain", "snow")]))[0].hits  # doctest: +SKIP
    """
    batch = len(questions)
    searches = {i: question for i, question in enumerate(questions) if isinstance(question, Search)}
    if searches:
        yield from _answer_searches(engine, searches, batch=batch)
    for position, question in enumerate(questions):
        if isinstance(question, Similarity):
            yield position, _answer_similarity(engine, question, batch=batch)


def count_candidates(engine: SemanticSearch, question: Question) -> int:
    """Return how many documents are read to rerank for a question, at most."""
    if isinstance(question, Search) and _is_reranked(engine, question):
        return _count_wanted(question)
    return 0


def limit_candidates(engine: SemanticSearch) -> int:
    """Return how many documents should be read to rerank for one batch; every reranker reads them all.

    On a CPU more would only keep those waiting who could be answered, or dropped, meanwhile; a GPU can be kept busy.
    """
    return (200 if _is_on_cpu(engine) else 800) // max(1, len(engine.rerankers))


def _answer_searches(
    engine: SemanticSearch, searches: Mapping[int, Search], *, batch: int
) -> Iterator[tuple[int, SearchAnswer | InputError]]:
    generation = getattr(engine.store, "generation", None)
    started = time.perf_counter()
    vectors = engine.encoder.encode_queries([search.query for search in searches.values()])
    encoded = time.perf_counter()
    retrieved = _retrieve(engine, searches, vectors)
    timings = {
        "encode_ms": 1000 * (encoded - started),
        "retrieve_ms": 1000 * (time.perf_counter() - encoded),
        "rerank_ms": 0.0,
    }

    def answer(position: int, hits: list[Hit], *, rerank_ms: float | None = None) -> SearchAnswer:
        top_k, order = searches[position].top_k, retrieved[position]
        assert not isinstance(order, InputError)
        return SearchAnswer(
            hits=hits[:top_k],
            retrieved=[hit.id for hit in order[:top_k]],
            others=[hit for hit in hits[top_k:] if hit.retrieved_rank <= top_k],
            reranked=rerank_ms is not None,
            generation=generation,
            batch=batch,
            timings=timings | {"rerank_ms": rerank_ms or 0.0},
        )

    pending: dict[int, list[Hit]] = {}
    for position, hits in retrieved.items():
        if isinstance(hits, InputError):
            yield position, hits
        elif _is_reranked(engine, searches[position]):
            pending[position] = hits
        else:
            yield position, answer(position, hits)
    for group in _group_reranking(engine, searches, pending):
        started = time.perf_counter()
        ordered = engine.rerank(
            [searches[position].query for position in group],
            [pending[position] for position in group],
            weight=searches[group[0]].rerank_weight,
        )
        rerank_ms = 1000 * (time.perf_counter() - started)
        for position, hits in zip(group, ordered, strict=True):
            yield position, answer(position, hits, rerank_ms=rerank_ms)


def _retrieve(
    engine: SemanticSearch, searches: Mapping[int, Search], vectors: np.ndarray
) -> dict[int, list[Hit] | InputError]:
    """Once for all searches that ask alike. The count is part of that: an approximate index finds other neighbours."""
    rows = {position: row for row, position in enumerate(searches)}
    groups: dict[tuple[tuple[Condition, ...], bool, int], list[int]] = {}
    for position, search in searches.items():
        needed = search.hybrid or _is_reranked(engine, search)
        count = _count_wanted(search) if needed else search.top_k
        groups.setdefault((search.where, search.hybrid, count), []).append(position)
    results: dict[int, list[Hit] | InputError] = {}
    for (where, hybrid, count), members in groups.items():
        queries = [searches[position].query for position in members]
        chosen = vectors[[rows[position] for position in members]]
        try:
            found = engine.retrieve(queries, chosen, count, where=where, hybrid=hybrid)
        except InputError as error:
            if not str(error).startswith(CONDITION):
                raise
            results |= dict.fromkeys(members, error)
        else:
            results |= zip(members, found, strict=True)
    return results


def _group_reranking(
    engine: SemanticSearch, searches: Mapping[int, Search], pending: Mapping[int, list[Hit]]
) -> list[list[int]]:
    """What goes into one scoring call."""
    if _is_on_cpu(engine):
        return [[position] for position in pending]
    groups: dict[float | None, list[int]] = {}
    for position in pending:
        groups.setdefault(searches[position].rerank_weight, []).append(position)
    return list(groups.values())


def _answer_similarity(engine: SemanticSearch, question: Similarity, *, batch: int) -> SimilarityAnswer:
    pair = [(question.sentence1, question.sentence2)]
    model = engine.encoder.model
    started = time.perf_counter()
    bi = float(score_pairs(model, pair)[0])
    alignment = align_tokens(model, question.sentence1, question.sentence2)
    encoded = time.perf_counter()
    cross = float(score_pairs(engine.rerankers, pair)[0]) if engine.rerankers else None
    timings = {
        "encode_ms": 1000 * (encoded - started),
        "rerank_ms": 0.0 if cross is None else 1000 * (time.perf_counter() - encoded),
    }
    return SimilarityAnswer(bi, cross, alignment, batch, timings)


def _is_on_cpu(engine: SemanticSearch) -> bool:
    return any(reranker.device.type == "cpu" for reranker in engine.rerankers) or not engine.rerankers


def _is_reranked(engine: SemanticSearch, search: Search) -> bool:
    return search.rerank and bool(engine.rerankers)


def _count_wanted(search: Search) -> int:
    return max(search.top_k, search.candidates)
