"""The scripts: the demo runs end to end, and the results page says what its JSON says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def script_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_the_demo_distils_evaluates_verifies_and_searches(
    capsys: pytest.CaptureFixture[str], tiny_bi: Path, tmp_path: Path
) -> None:
    import demo

    assert demo.run_demo(str(tiny_bi), str(tmp_path / "run")) == 0
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines() if line.startswith("$ transenc")] == [
        "distill",
        "evaluate",
        "evaluate",
        "verify",
        "index",
        "search",
        "search",
        "search",
    ]
    assert out.count("  1  ") == 3  # each search has a first hit
    assert "all digests fit" in out and ("it helped:" in out or "it did not help:" in out)
    assert (tmp_path / "run" / "best" / "bi-encoder" / "modules.json").is_file()


def test_a_comparison_gives_medians_and_paired_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    import bench

    clock = iter([0, 9, 0, 9, 0, 1, 0, 2, 0, 3, 0, 4, 0, 2, 0, 8])  # a warm-up pair, then 1/2, 3/4, 2/8
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    found = bench.compare(lambda: None, lambda: None, repeats=3)
    assert found == {"ours": 2.0, "other": 4.0, "ratio": 0.5, "low": 0.25, "high": 0.75}


def test_the_results_page_says_what_the_json_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the results page needs matplotlib (extra: dev)")
    import reproduce_results

    monkeypatch.setattr(reproduce_results, "DOCS", tmp_path)
    tasks = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")
    start, student = ({**dict.fromkeys(tasks, value), "average": value, "pearson": {}} for value in (70.0, 71.5))
    result = {
        "arm": "full", "title": "a title", "seed": 7, "command": "transenc distill --seed 7", "pairs": 37075,
        "machine": {"device": "cpu", "threads": 2, "precision": "bfloat16", "cpu": "a processor", "torch": "2"},
        "seconds": {"c01-20-cross-train": 120.0, "c01-50-evaluate": 6.0},
        "history": [], "best": {"bi": {"path": "stages/c01-40-bi-train/model-0"}, "cross": {"path": "none"}},
        "scores": {"stages/c00-00-start/model-0": start, "stages/c01-40-bi-train/model-0": student},
        "difference": {"average": {"difference": 1.5, "low": 1.25, "high": 1.75}}, "agreement": {"1": 95.5},
        "labels": {"cycle 1 labels, merged": {**student, "average": 72.0}},
    }  # fmt: skip
    tmp_path.joinpath("results").mkdir()
    tmp_path.joinpath("results", "introduction.md").write_text("# Results\n", encoding="utf-8")
    tmp_path.joinpath("results", "full-seed7.json").write_text(json.dumps(result), encoding="utf-8")
    reproduce_results.write_page()
    page = tmp_path.joinpath("results.md").read_text(encoding="utf-8")
    assert "| cycle 1 bi **(chosen)** |" + " 71.50 |" * 8 + " +1.50 |" in page
    assert "| cycle 1 labels, merged |" + " 71.50 |" * 7 + " 72.00 | +2.00 |" in page
    assert "average: +1.50 (95 % paired bootstrap over the test pairs: +1.25 to +1.75; one seed, 7)" in page
    assert "37,075 pairs" in page and "Wall time 2 min (20-cross-train 2.0)" in page
    assert tmp_path.joinpath("results", "average.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.slow
def test_the_published_page_is_made_from_the_published_json() -> None:
    import reproduce_results

    page = reproduce_results.DOCS / "results.md"
    before = page.read_text(encoding="utf-8")
    reproduce_results.write_page()
    assert page.read_text(encoding="utf-8") == before
    assert "reproduce_results" in sys.modules


def test_the_search_section_says_what_the_json_says(tmp_path: Path) -> None:
    from search_results import describe_search

    assert describe_search(tmp_path) == []
    figures = {"ndcg@10": 64.5, "recall@100": 92.5, "mrr@10": 60.0, "map": 59.0}
    weights = {"0.0": 64.5, "1.0": 50.0}
    rows = {"bi": figures, "bi fused": {**figures, "ndcg@10": 65.25}, "bi by weight": weights}
    quality = {"split": "test", "depth": 50, "passages": False, "unit": "sentence", "scifact": rows}
    kind = {"recall@10": 0.995, "p50_ms": 0.5, "p95_ms": 1.0, "build_seconds": 60.0, "index_bytes": 65_000_000,
            "times_faster_than_exact": 12.0, "times_faster_alternating": 9.5, "build_peak_mib": 400,
            "build_peak_without_mapped_files_mib": 300}  # fmt: skip
    scale = {
        "machine": {"threads": 2, "cpu": "a processor", "faiss": "1"},
        "command": "python scripts/bench_search.py --real 1000",
        "encoder": "an encoder",
        "dim": 384,
        "queries": 7,
        "real": {"vectors": 1000, "real": 1000, "kinds": {"hnsw": kind}},
    }
    latency = {"task": "scifact", "documents": 5183, "threads": 2, "precision": "bfloat16",
               "retrieve": {"ours": {"p50": 10.0, "p95": 20.0}, "plain": {"p50": 15.0, "p95": 30.0}, "ratio": 0.5,
                            "same_first_hit": 1.0, "queries": 7}}  # fmt: skip
    side = {"requests/s": 80.0, "p50 ms": 11.0, "p95 ms": 22.0}
    found = {
        "batching": side,
        "single": {**side, "requests/s": 40.0},
        "ratio": 2.0,
        "ratio low": 1.9,
        "ratio high": 2.1,
    }
    server = {"command": "c", "task": "scifact", "documents": 5183, "top_k": 10, "candidates": 100, "rounds": 3,
              "machine": {"cpus": 2, "cpu": "a processor"}, "plain": {"8 clients": found},
              "memory": {"requests": 5000, "at 20 %": {"resident MiB": 900.0}, "at the end": {"resident MiB": 909.0},
                         "growth %": 1.0}}  # fmt: skip
    for name, content in (("quality", quality), ("scale", scale), ("latency", latency), ("server", server)):
        tmp_path.joinpath(f"search-{name}.json").write_text(json.dumps(content), encoding="utf-8")
    text = "\n\n".join(describe_search(tmp_path))
    assert "| bi-encoder, fused with the cross-encoder | 65.25 | 92.50 | 60.00 | 59.00 |" in text
    assert "| bi-encoder | 64.5 | 50.0 |" in text
    assert "| hnsw | 0.9950 | 0.50 | 1.00 | 12.0 | 9.5 | 60 | 65.0 | 400 (300) |" in text
    assert "| retrieve | 7 | 10 | 20 | 15 | 30 | 2.00 |" in text
    assert "| 8 | 80 | 11 | 22 | 40 | 11 | 22 | 2.00 (1.90 to 2.10) |" in text
    assert "900.0 MiB after a fifth of them, 909.0 MiB at the end (+1.0 %)" in text
