"""Evaluate retrieval: a bi-encoder, BM25 or both together, each with or without encoders that rerank.

The figures are those of what serves: documents go through `FaissStore` and `PassageEncoder`, queries through
`SemanticSearch`. They are percentages.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from transenc.benchmarks import RETRIEVAL_TASKS
from transenc.corpus import Document
from transenc.encoders import Encoder, load_bi_encoder
from transenc.errors import InputError
from transenc.metrics import retrieval_quality
from transenc.retrieval_sets import RetrievalSet, load_retrieval
from transenc.search.engine import SemanticSearch
from transenc.search.faiss_store import FaissStore
from transenc.search.lexical import LexicalIndex
from transenc.search.models import Rerankers, load_rerankers
from transenc.search.passages import PassageEncoder
from transenc.search.reranking import Hit, choose_weight, fuse_scores, rerank_many

SYSTEMS = ("bi", "bm25", "hybrid")

Found = dict[str, list[Hit]]  # query id -> its hits, best first, without their texts

_DEPTH = 100  # documents ranked a query, what recall@100 needs
_FIGURES = ("ndcg@10", "recall@100", "mrr@10", "map")
_QUERIES_AT_ONCE = 64  # bounds the documents in memory: 64 queries with 100 candidates are 6,400


def evaluate_retrieval(
    bi_encoder: SentenceTransformer | str | Path | None = None,
    *,
    tasks: Sequence[str | Path] = RETRIEVAL_TASKS,
    split: str = "test",
    data: str | os.PathLike[str] | None = None,
    system: str = "bi",
    rerank: Rerankers | None = None,
    rerank_unit: str = "sentence",
    rerank_weight: float | None = None,
    candidates: int = 100,
    passages: bool = False,
    pooling: str | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate on retrieval benchmarks by nDCG@10, recall@100, MRR@10 and MAP of the first 100 documents.

    Args:
        bi_encoder: A bi-encoder, or the folder or Hub id of one; None for the system "bm25", which has none.
        tasks: Some of `RETRIEVAL_TASKS`, other names in the data folder, or folders, as for `load_retrieval`.
        split: Whose judgements to use.
        data: Where the benchmarks are, as for `load_retrieval`.
        system: What retrieves: "bi" (cosine, exact), "bm25" (extra `hybrid`), or "hybrid" (both, by reciprocal rank
            fusion).
        rerank: A cross-encoder or a bi-encoder, or the folder or Hub id of one; several: their ensemble, see
            `search.reranking.rerank`; None: no reranking.
        rerank_unit: What it reads, "sentence" or "passage", see `rerank`.
        rerank_weight: Of what reranks, 0 to 1, as for `SemanticSearch.search`; None: decided without labels.
        candidates: Documents a query that are reranked. With less than 100, what is found later counts as not found.
        passages: Split documents that are longer than the bi-encoder's window; False: read their beginning, which is
            what published figures do.
        pooling: For bare Hugging Face folders.
        batch_tokens: As for `score_pairs`.
        progress: Show progress bars on stderr.

    Returns:
        Task -> {"ndcg@10", "recall@100", "mrr@10", "map"} x 100, "average" of the nDCG@10 (None when a task is
        undefined), and for undefined figures "reasons": task -> text. With `rerank` each task also has "retrieved" and
        "reranked", the figures of the same documents in the retriever's and in the rerankers' order alone, and
        "best_weight", what `choose_weight` gives for this split: a weight to use elsewhere, not a result.

    Raises:
        InputError: An unknown system or task, arguments that do not go together, an unusable benchmark or model.

    Example:
        >>> from transenc import evaluate_retrieval  # doctest: +SKIP
        >>> evaluate_retrieval("sentence-transformers/all-MiniLM-L6-v2", tasks=["scifact"])["average"]  # doctest: +SKIP
        64.5...
    """
    _check_arguments(bi_encoder, tasks, system, rerank, rerank_weight, candidates, passages)
    # All of them before the models run, so that a missing file is found at once.
    sets = {str(task): load_retrieval(task, split=split, data=data) for task in tasks}
    encoder = None
    if bi_encoder is not None:
        model = load_bi_encoder(bi_encoder, pooling=pooling) if isinstance(bi_encoder, str | Path) else bi_encoder
        # The index lives as long as this call, so its encoder needs no name.
        encoder = PassageEncoder(model, fingerprint="", split=passages, batch_tokens=batch_tokens)
    rerankers = load_rerankers(rerank, precision="float32")
    result: dict[str, Any] = {}
    reasons = {}
    for task, loaded in sets.items():
        if encoder is None:
            found = _rank_by_words(
                loaded, rerankers, rerank_unit, rerank_weight, candidates, batch_tokens, progress=progress
            )
        else:
            found = _rank_by_index(
                loaded,
                encoder,
                rerankers,
                rerank_unit,
                rerank_weight,
                candidates,
                system == "hybrid",
                batch_tokens,
                progress=progress,
            )
        figures = _measure(found, loaded)
        result[task] = {name: _times_100(figures[name]) for name in _FIGURES}
        if rerankers:
            result[task] |= _compare_orders(found, loaded)
        if "reason" in figures:
            reasons[task] = figures["reason"]
    main = [figures["ndcg@10"] for figures in result.values()]
    # The mean of the other tasks would pass for the mean of all.
    result["average"] = None if None in main else sum(main) / len(main)
    return result | ({"reasons": reasons} if reasons else {})


def _check_arguments(
    bi_encoder: Any, tasks: Any, system: Any, rerank: Any, rerank_weight: Any, candidates: Any, passages: Any
) -> None:
    if isinstance(tasks, str | Path) or not tasks or len({str(task) for task in tasks}) < len(tasks):
        raise InputError(f"tasks must be a list of different names or folders, found {tasks!r}")
    if system not in SYSTEMS:
        raise InputError(f"system must be one of {', '.join(SYSTEMS)}, found {system!r}")
    if (bi_encoder is None) != (system == "bm25"):
        expected = "no bi-encoder" if system == "bm25" else "a bi-encoder"
        raise InputError(f"the system {system} takes {expected}, found {'none' if bi_encoder is None else 'one'}")
    if passages and system == "bm25":
        raise InputError("bm25 reads whole documents; passages are for a bi-encoder")
    if rerank_weight is not None and rerank is None:
        raise InputError("rerank_weight is the weight of what reranks; name an encoder with rerank")
    # The rest would otherwise come up when the documents are encoded.
    for each in rerank if isinstance(rerank, list | tuple) else () if rerank is None else (rerank,):
        if not isinstance(each, str | Path | Encoder):
            raise TypeError(f"rerank must be an encoder, the name of one, or a list, found {type(each).__name__}")
    fuse_scores([], [], weight=rerank_weight)
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
        raise InputError(f"candidates must be a whole number of 1 or more, found {candidates!r}")


def _rank_by_index(
    loaded: RetrievalSet,
    encoder: PassageEncoder,
    rerankers: list[Encoder],
    unit: str,
    weight: float | None,
    candidates: int,
    hybrid: bool,
    batch_tokens: int | None,
    *,
    progress: bool,
) -> Found:
    with tempfile.TemporaryDirectory(prefix="transenc-") as folder:
        store = FaissStore.build(
            Path(folder) / "index",
            loaded.documents,
            encoder,
            encoder={},
            kind="exact",
            lexical=hybrid,
            progress=progress,
        )
        with SemanticSearch(store, encoder, rerankers or None, rerank_unit=unit, batch_tokens=batch_tokens) as engine:

            def search(queries: list[str]) -> list[list[Hit]]:
                top_k = candidates if rerankers else _DEPTH  # of which each order shows its first
                return engine.search_many(
                    queries, top_k=top_k, candidates=candidates, hybrid=hybrid, rerank_weight=weight
                )

            return _rank(loaded.queries, search, progress=progress)


def _rank_by_words(
    loaded: RetrievalSet,
    rerankers: list[Encoder],
    unit: str,
    weight: float | None,
    candidates: int,
    batch_tokens: int | None,
    *,
    progress: bool,
) -> Found:
    # In the order of the ids, so that ties by position are ties by id.
    documents = sorted(loaded.documents, key=lambda document: document.id)
    index = LexicalIndex.build((document.content for document in documents), progress=progress)

    def search(queries: list[str]) -> list[list[Hit]]:
        found = index.search(queries, candidates if rerankers else _DEPTH)
        hits = [_make_hits(documents, positions, scores) for positions, scores in found]
        if not rerankers:
            return hits
        return rerank_many(queries, hits, rerankers, unit=unit, weight=weight, top_k=_DEPTH, batch_tokens=batch_tokens)

    return _rank(loaded.queries, search, progress=progress)


def _make_hits(documents: list[Document], positions: np.ndarray, scores: np.ndarray) -> list[Hit]:
    hits = []
    for rank, (position, score) in enumerate(zip(positions.tolist(), scores.tolist(), strict=True), start=1):
        document = documents[position]
        hits.append(Hit(document.id, score, rank, rank, score, title=document.title, text=document.text))
    return hits


def _rank(queries: Mapping[str, str], search: Callable[[list[str]], list[list[Hit]]], *, progress: bool) -> Found:
    found: Found = {}
    with tqdm(total=len(queries), unit="query", disable=not progress) as bar:
        items = iter(queries.items())
        while block := list(islice(items, _QUERIES_AT_ONCE)):
            for (key, _), hits in zip(block, search([text for _, text in block]), strict=True):
                found[key] = [replace(hit, title="", text="", metadata={}) for hit in hits]
            bar.update(len(block))
    return found


def _measure(found: Found, loaded: RetrievalSet) -> Mapping[str, Any]:
    return retrieval_quality({key: [hit.id for hit in hits[:_DEPTH]] for key, hits in found.items()}, loaded.qrels)


def _compare_orders(found: Found, loaded: RetrievalSet) -> dict[str, Any]:
    retrieved = {key: sorted(hits, key=lambda hit: hit.retrieved_rank) for key, hits in found.items()}
    reranked = {key: sorted(hits, key=lambda hit: (-(hit.rerank_score or 0.0), hit.id)) for key, hits in found.items()}
    orders: dict[str, Any] = {
        name: {figure: _times_100(value) for figure, value in _measure(order, loaded).items() if figure in _FIGURES}
        for name, order in (("retrieved", retrieved), ("reranked", reranked))
    }
    gains = [[max(0, loaded.qrels[key].get(hit.id, 0)) for hit in hits] for key, hits in found.items()]
    orders["best_weight"] = None
    if any(any(row) for row in gains):
        orders["best_weight"] = choose_weight(
            [[hit.retrieval_score for hit in hits] for hits in found.values()],
            [[hit.rerank_score or 0.0 for hit in hits] for hits in found.values()],
            gains,
        )
    return orders


def _times_100(value: Any) -> float | None:
    return None if value is None else 100.0 * float(value)
