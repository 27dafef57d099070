"""The main job on the sample: distil an encoder without labels, see what it gave, and search with it.

Runs the commands a user would type and prints each before it runs. The start, all-MiniLM-L6-v2, is a *supervised*
encoder, taken because its weights come with a small package; any other encoder folder or Hub id takes its place:

    python scripts/demo.py [--model FOLDER_OR_ID] [--output RUN]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from bundled import bundled_model

from transenc.cli import main

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"


def run_demo(model: str, output: str) -> int:
    """Distil and evaluate; the exit code of the first command that fails, or 0."""
    test, corpus, index = str(SAMPLE / "test.tsv"), str(SAMPLE / "retrieval/sample/corpus.jsonl"), f"{output}-index"
    commands = [
        ["distill", "--model", model, "--pairs", str(SAMPLE / "pairs.tsv"), "--dev", str(SAMPLE / "dev.tsv"),
         "--output", output],
        ["evaluate", "--model", f"{output}/best/bi-encoder", "--file", test, "--compare", model],
        ["evaluate", "--model", f"{output}/best/cross-encoder", "--file", test],
        ["verify", output],
        ["index", "build", index, "--model", f"{output}/best/bi-encoder", "--corpus", corpus, "--hybrid"],
        ["search", index, "my soup is too salty", "--top-k", "3"],
        ["search", index, "my soup is too salty", "--top-k", "3", "--rerank", f"{output}/best/cross-encoder"],
        ["search", index, "salt", "--top-k", "3", "--hybrid", "--where", "topic=cooking", "--where", "year>=2019"],
    ]  # fmt: skip
    started = time.perf_counter()
    for command in commands:
        print(f"\n$ transenc {shlex.join(command)}", flush=True)
        if code := main(command):
            return code
    print(
        f"\nDone in {time.perf_counter() - started:.0f} s. Everything is in {output}: best/ has the two models (plain "
        "sentence-transformers folders), stages/ every label and weight, run.json the settings; "
        f"{index} is the search index.\n"
        "A thousand pairs show how it works, not what it gives: the dev and test files are small, and their choice and "
        "verdict may differ. docs/results.md has the real benchmarks."
    )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil the sample pairs, show what it gave, and search with it.")
    parser.add_argument("--model", help="bi-encoder to start from (default: the bundled all-MiniLM-L6-v2)")
    parser.add_argument("--output", default="runs/demo", help="run directory (default: runs/demo)")
    arguments = parser.parse_args()
    sys.exit(run_demo(arguments.model or bundled_model(), arguments.output))
