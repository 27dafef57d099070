"""The search section of docs/results.md, made from docs/results/search-*.json alone.

python scripts/bench_search.py --json docs/results/search-scale.json
python scripts/bench_retrieval.py --rerank CROSS --json docs/results/search-quality.json
python scripts/bench_queries.py --rerank CROSS --json docs/results/search-latency.json
python scripts/bench_server.py --rerank CROSS --json docs/results/search-server.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SYSTEMS = {"bi": "bi-encoder", "bm25": "BM25", "hybrid": "both, by reciprocal rank"}
ORDERS = {"": "", " fused": ", fused with the cross-encoder", " reranked": ", the cross-encoder's order alone"}


def describe_search(folder: Path) -> list[str]:
    """The parts of the section for which there are figures, in order."""
    parts: list[tuple[str, Callable[[Any], str]]] = [
        ("quality", describe_quality),
        ("passages", describe_quality),
        ("scale", describe_scale),
        ("latency", describe_latency),
        ("server", describe_server),
    ]
    found = [(folder / f"search-{name}.json", describe) for name, describe in parts]
    texts = [describe(json.loads(path.read_text(encoding="utf-8"))) for path, describe in found if path.exists()]
    notes = folder / "search-notes.md"
    if notes.exists():
        texts.append(notes.read_text(encoding="utf-8").rstrip())
    return ["# Search", *texts] if texts else []


def describe_quality(result: Mapping[str, Any]) -> str:
    """nDCG@10 and the others for each system and order."""
    tables = []
    for task, rows in result.items():
        if not isinstance(rows, Mapping):
            continue
        names = list(next(iter(rows.values())))
        lines = [
            [SYSTEMS[system] + text, *(f"{rows[system + order][name]:.2f}" for name in names)]
            for system in SYSTEMS
            for order, text in ORDERS.items()
            if system + order in rows
        ]
        tables.append(f"**{task}**\n\n" + format_table([task, *names], lines))
        weights = {system: rows[f"{system} by weight"] for system in SYSTEMS if f"{system} by weight" in rows}
        if weights:
            grid = list(next(iter(weights.values())))
            lines = [[SYSTEMS[system], *(f"{found[w]:.1f}" for w in grid)] for system, found in weights.items()]
            tables.append(f"nDCG@10 by the weight of the cross-encoder:\n\n{format_table(['weight', *grid], lines)}")
    given = "--passages" if result["passages"] else "--rerank CROSS"
    title = "Long documents split into passages" if result["passages"] else "Retrieval and reranking"
    texts = [f"## {title}", f"    python scripts/bench_retrieval.py {given} --json FILE"]
    texts.append(
        f"nDCG@10, recall@100, MRR@10 and MAP x 100 of all-MiniLM-L6-v2 (supervised), split {result['split']}."
    )
    if any(" fused" in label for rows in result.values() if isinstance(rows, Mapping) for label in rows):
        texts[-1] += f" The first {result['depth']} documents are reranked, by {result['unit']}s."
    return "\n\n".join([*texts, *tables])


def describe_scale(result: Mapping[str, Any]) -> str:
    """Kinds of index at two sizes."""
    texts = []
    for name in ("real", "scale"):
        if name not in result:
            continue
        part = result[name]
        rows = [
            [
                kind,
                f"{found['recall@10']:.4f}",
                f"{found['p50_ms']:.2f}",
                f"{found['p95_ms']:.2f}",
                f"{found['times_faster_than_exact']:.1f}",
                f"{found['times_faster_alternating']:.1f}",
                f"{found['build_seconds']:.0f}",
                f"{found['index_bytes'] / 1e6:.1f}",
                f"{found['build_peak_mib']} ({found['build_peak_without_mapped_files_mib']})",
            ]
            for kind, found in part["kinds"].items()
        ]
        copies = ""
        if part["vectors"] > part["real"]:
            copies = (
                f" ({part['real']:,} distinct sentences, and copies at mean cosine {part['mean_cosine_of_copies']})"
            )
        names = [
            "kind",
            "recall@10",
            "p50 ms",
            "p95 ms",
            "x faster",
            "x faster, alternating",
            "build s",
            "index.faiss MB",
            "peak MiB",
        ]
        texts.append(f"**{part['vectors']:,} vectors{copies}**\n\n{format_table(names, rows)}")
    machine = result["machine"]
    return (
        f"## Kinds of index\n\n    {result['command']}\n\n"
        f"Embeddings of {result['encoder']}, {result['dim']} wide, {result['queries']:,} query sentences kept out. "
        f"Single queries, threads: {machine['threads']} of {machine['cpu']}, faiss {machine['faiss']}, other jobs "
        "beside it. Times faster than exact in the same process: in turns of 50 queries, and alternating query by "
        "query, when an exact scan empties the caches each time. Peak memory of building, in brackets without pages "
        "of the mapped vectors.\n\n" + "\n\n".join(texts)
    )


def describe_latency(result: Mapping[str, Any]) -> str:
    """Single queries against a plain script."""
    rows = [
        [
            label,
            str(result[step]["queries"]),
            *(f"{result[step][side][p]:.0f}" for side in ("ours", "plain") for p in ("p50", "p95")),
            f"{1 / result[step]['ratio']:.2f}",
        ]
        for step, label in STEPS.items()
        if step in result
    ]
    names = ["query", "n", "transenc p50 ms", "p95 ms", "plain p50 ms", "p95 ms", "x faster"]
    return (
        "## Single queries\n\n    python scripts/bench_queries.py --rerank CROSS --json FILE\n\n"
        f"{result['task']}, {result['documents']:,} documents, {result['threads']} threads, {result['precision']} "
        f"weights (plain: as the model's file has them).\n\n{format_table(names, rows)}"
    )


STEPS = {
    "retrieve": "retrieve",
    "rerank passages": "retrieve, rerank 100 whole documents (the same work)",
    "rerank sentences": "retrieve, rerank 100 by sentences (the default)",
}


def describe_server(result: Mapping[str, Any]) -> str:
    """Requests under load, with and without batching; memory; the command line's answers."""
    texts = [
        f"## The server\n\n    {result['command']}\n\n{result['task']}, {result['documents']:,} documents, top "
        f"{result['top_k']} of {result['candidates']} candidates; {result['machine']['cpus']} cores of "
        f"{result['machine']['cpu']}, clients on the same machine; medians of {result['rounds']} paired rounds."
    ]
    names = ["clients", "requests/s", "p50 ms", "p95 ms", "one by one: requests/s", "p50 ms", "p95 ms", "ratio (range)"]
    for kind, title in (("plain", "Without reranking"), ("reranked", "With reranking")):
        if kind not in result:
            continue
        rows = [
            [
                label.removesuffix(" clients"),
                *(
                    f"{found[side][n]:.0f}" if found[side][n] >= 1000 else f"{found[side][n]:.4g}"
                    for side in ("batching", "single")
                    for n in ("requests/s", "p50 ms", "p95 ms")
                ),
                f"{found['ratio']:.2f} ({found['ratio low']:.2f} to {found['ratio high']:.2f})",
            ]
            for label, found in result[kind].items()
            if label.endswith(" clients")
        ]
        texts.append(f"**{title}**\n\n{format_table(names, rows)}")
        if answers := result[kind].get("answers"):
            texts.append(
                f"Answers to 8 clients at once beside those of `transenc search --json`: the same order for "
                f"{answers['same order']} of {answers['queries']} queries, scores within "
                f"{answers['largest difference of scores']:.1e}."
            )
    if memory := result.get("memory"):
        early, late = (memory[key]["resident MiB"] for key in ("at 20 %", "at the end"))
        texts.append(
            f"Memory over {memory['requests']:,} requests: {early} MiB after a fifth of them, {late} MiB at the end "
            f"({memory['growth %']:+.1f} %)."
        )
    return "\n\n".join(texts)


def format_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows))
