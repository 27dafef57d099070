"""Measure what mining pairs takes beyond encoding: time and peak memory, on sentences and vectors that are made up.

    python scripts/bench_mine.py [--sentences 1000000] [--dim 384] [--threads 1] [--work DIR] [--json FILE]

The vectors are Gaussian copies of a twentieth as many centres, at a mean cosine of 0.6 to them, so that there are near
neighbours as in text; they lie in a mapped file, as `mine_pairs` leaves them. Their making runs in a process of its
own, so that the memory is that of mining alone: `anonymous` is what the process holds, `mapped` the pages of the file
that it has touched, which the system may take back.
"""

from __future__ import annotations

import argparse
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
from bench_search import read_status
from machine import cpu_name

from transenc.config import MiningSettings
from transenc.durable import write_json

SEED = 0
COPY_COSINE = 0.6
ROWS_AT_ONCE = 65_536


def main() -> int:
    """Make the vectors, mine in a process of its own, and print what it took."""
    parser = argparse.ArgumentParser(description="Measure time and memory of mining pairs beyond encoding.")
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1, help="of faiss and the matrix library")
    parser.add_argument("--work", type=Path, help="folder for the vectors (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(mine(arguments.child, arguments.sentences, arguments.dim)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        path = Path(folder, "vectors")
        write_vectors(path, arguments.sentences, arguments.dim)
        command = [sys.executable, __file__, "--child", str(path), "--sentences", str(arguments.sentences)]
        command += ["--dim", str(arguments.dim)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(arguments.threads))
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
    figures = {
        "sentences": arguments.sentences, "dim": arguments.dim, "threads": arguments.threads, "cpu": cpu_name(),
        "vectors_mb": round(4e-6 * arguments.sentences * arguments.dim), **json.loads(done.stdout),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def write_vectors(path: Path, count: int, dim: int) -> None:
    """Write float32 [count, dim] at length 1, in blocks."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(max(2, count // 20), dim)).astype(np.float32)
    spread = np.sqrt(1 / COPY_COSINE**2 - 1)
    with open(path, "wb") as file:
        for start in range(0, count, ROWS_AT_ONCE):
            size = min(ROWS_AT_ONCE, count - start)
            block = centres[rng.integers(len(centres), size=size)] + spread * rng.normal(size=(size, dim))
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            file.write(block.astype("<f4").tobytes())


def mine(path: Path, count: int, dim: int) -> dict[str, Any]:
    """Mine pairs of the vectors, and return seconds, peak memory in MB, and what was found."""
    from transenc.mining.sentences import SOURCES, choose_pairs, make_pairs

    vectors = np.memmap(path, dtype=np.float32, mode="r", shape=(count, dim))
    texts = [f"the sentence with the number {row} has about sixty characters" for row in range(count)]
    settings = MiningSettings()
    before = read_memory()
    peak = {"anonymous": 0, "mapped": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            for name, size in read_memory().items():
                peak[name] = max(peak[name], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    chosen = choose_pairs(texts, vectors, settings=settings, seed=SEED, progress=True)
    seconds = time.perf_counter() - start
    pairs = make_pairs(texts, chosen, SOURCES)
    stop.set()
    watcher.join()
    counts, _ = np.histogram(chosen["cosine"], bins=settings.bins)
    return {
        "seconds": round(seconds, 1), "pairs": len(pairs), "bins": counts.tolist(),
        "sources": {name: int(np.sum(chosen["source"] == place)) for place, name in enumerate(SOURCES)},
        "before_mb": before, "peak_mb": peak,
    }  # fmt: skip


def read_memory() -> dict[str, int]:
    """Resident memory of this process in MB: what only it can hold, and what is a file."""
    return {"anonymous": read_status("RssAnon") // 1024, "mapped": read_status("RssFile") // 1024}


if __name__ == "__main__":
    sys.exit(main())
