"""The studies of docs/bootstrap.md: they run end to end on a tiny model, and the page says what the JSON says."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import make_pairs

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def script_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def sentences(benchmarks: Path, tmp_path: Path) -> Path:
    """40 sentences, of which 1 is in a test."""
    in_test = (benchmarks / "sts" / "sts12.test.tsv").read_text(encoding="utf-8").splitlines()[1].split("\t")[1]
    texts = dict.fromkeys(text for pair in make_pairs(30, seed=6) for text in pair if text != in_test)
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join([in_test.upper(), *list(texts)[:39]]) + "\n", encoding="utf-8")
    return path


def run_study(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    import bootstrap_study

    monkeypatch.setattr(sys, "argv", ["bootstrap_study.py", *map(str, arguments)])
    return bootstrap_study.main()


def common(tiny_plain: Path, sentences: Path, benchmarks: Path, tmp_path: Path) -> list[object]:
    return ["--name", "tiny", "--model", tiny_plain, "--sentences", sentences, "--work", tmp_path / "work",
            "--json", tmp_path / "figures.json", "--data", benchmarks, "--precision", "float32"]  # fmt: skip


def test_the_ladder_is_climbed_and_goes_on_where_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tiny_plain: Path, sentences: Path, benchmarks: Path, tmp_path: Path
) -> None:
    import bootstrap_study
    from bootstrap_results import FIGURES, describe_ladder, describe_whitening, list_rungs

    ladder = ["ladder", *common(tiny_plain, sentences, benchmarks, tmp_path), "--sentence-budget", 12, "--pairs", 8,
              "--objectives", "simcse", "decomposed", "--longer-cap", 20, "--queue", 4]  # fmt: skip
    distil = bootstrap_study.distil
    monkeypatch.setattr(bootstrap_study, "distil", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        run_study(monkeypatch, *ladder)
    half = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    trials = ["simcse, rate 0.0002", "decomposed, rate 0.0002"]
    assert list(half["cells"]) == ["word overlap", "untrained, mean", "untrained, cls", *trials]
    assert "| not run |" in describe_ladder(half)

    monkeypatch.setattr(bootstrap_study, "distil", distil)
    assert run_study(monkeypatch, *ladder) == 0
    result = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    cells = result["cells"]
    assert {name: cells[name] for name in half["cells"]} == half["cells"]  # not computed again, the seconds too
    assert set(list_rungs(result["settings"])) <= set(cells)
    assert all(isinstance(cells[name][figure], float) for name in list_rungs(result["settings"]) for figure in FIGURES)
    assert result["sentences"] == {"files": ["sentences.txt"], "different": 39, "left_out": 1}
    best = max(trials, key=lambda name: cells[name]["stsb dev"])
    assert cells["bootstrap longer"]["objective"] == cells["chosen, seed 2022"]["objective"] == best.split(",")[0]
    longer = cells["bootstrap longer"]
    spent = [cells[name]["cpu_seconds"] for name in ("transductive, training", best)]
    assert longer["wanted"] == math.ceil(12 * spent[0] / spent[1]) and longer["cost"] == "CPU seconds"
    assert longer["capped"] == (longer["wanted"] > 20) and not longer["cost_resumed"]
    assert longer["sentences"] == min(20, longer["wanted"]) and cells[trials[0]]["steps"] == 1
    assert f"{longer['wanted']:,} sentences cost as much as the transductive" in describe_ladder(result)
    assert cells[trials[1]]["settings"]["queue"] == 4
    assert cells["transductive, training"]["steps"] == {"bi": 2, "cross": 1}
    gain = cells["transductive, cycle 1, bi"]["average"] - cells[best]["average"]
    assert cells[f"transductive, cycle 1, bi minus {best}"]["difference"] == pytest.approx(gain, abs=0.01)
    white = [cells[f"{name}, whitened"] for name in ("untrained, mean", *trials, "bootstrap longer")]
    assert all(cell["sentences"] == 12 and isinstance(cell["average"], float) for cell in white)
    assert isinstance(cells[f"{best}, whitened minus {best}"]["difference"], float)
    assert describe_whitening(result).count(" (95 %: ") == len(white) + 1  # and the distilled one
    assert str(tmp_path) not in json.dumps(result)


def test_batch_sizes_see_equally_many_sentences(
    monkeypatch: pytest.MonkeyPatch, tiny_plain: Path, sentences: Path, benchmarks: Path, tmp_path: Path
) -> None:
    from bootstrap_results import describe_batches

    assert run_study(
        monkeypatch, "batches", *common(tiny_plain, sentences, benchmarks, tmp_path), "--sentence-budget", 16,
        "--batches", 4, 8, "--mini-batch", 4, "--queue", 8, "--temperature", 0.1,
    ) == 0  # fmt: skip
    result = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    steps = {name: cell["steps"] for name, cell in result["cells"].items()}
    assert steps == {
        f"{method}, batch {batch}, seed 2021, rate 0.0002": 16 // batch
        for method, batch in (("simcse", 4), ("decomposed", 4), ("simcse", 8), ("decomposed", 8), ("gradcache", 8))
    }  # fmt: skip
    settings = {name.removesuffix(", rate 0.0002"): cell["settings"] for name, cell in result["cells"].items()}
    assert settings["decomposed, batch 4, seed 2021"]["queue"] == 8
    assert settings["gradcache, batch 8, seed 2021"]["mini_batch"] == 4
    assert {found["temperature"] for found in settings.values()} == {0.1}
    average = result["cells"]["gradcache, batch 8, seed 2021, rate 0.0002"]["average"]
    assert f"| 8 | gradcache | {average:.2f} |" in describe_batches(result)


def test_too_few_sentences_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_plain: Path, sentences: Path,
    benchmarks: Path, tmp_path: Path,
) -> None:  # fmt: skip
    assert run_study(monkeypatch, "ladder", *common(tiny_plain, sentences, benchmarks, tmp_path)) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("expected 16000 sentences, found 39; --sentence-budget")


@pytest.mark.slow
def test_word_overlap_is_the_published_floor(shared_data: Path, tmp_path: Path) -> None:
    from bootstrap_study import evaluate, overlap_scores

    found = evaluate(overlap_scores(str(shared_data)), tmp_path, str(shared_data))
    published = {"sts12": 49.1, "sts13": 50.3, "sts14": 56.2, "sts15": 69.8, "sts16": 60.0, "stsb": 56.5, "sickr": 57.5}
    assert {task: round(found[task], 1) for task in published} == published
    assert round(found["average"], 1) == 57.1


def test_a_part_of_the_page_needs_its_marks() -> None:
    from bootstrap_results import fill

    page = "by hand\n<!-- begin a -->\nold \\1\n<!-- end a -->\nby hand\n"
    assert fill(page, {"a": "new \\1"}) == page.replace("old", "new")
    with pytest.raises(SystemExit, match="<!-- begin b -->"):
        fill(page, {"b": "text"})


def test_the_page_says_what_the_json_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib (extra: dev)")
    import bootstrap_results

    monkeypatch.setattr(bootstrap_results, "DOCS", tmp_path)
    tmp_path.joinpath("results").mkdir()
    names = ("synthetic", "batches", "objectives", "whitening", "ladder")
    page = "".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in names)
    tmp_path.joinpath("bootstrap.md").write_text(page, encoding="utf-8")
    bootstrap_results.write_page()
    assert tmp_path.joinpath("bootstrap.md").read_text(encoding="utf-8").count("not run") == len(names)

    machine = {"cpu": "a processor", "threads": 1, "precision": "float32", "torch": "2"}

    def cell(average: float, **facts: Any) -> dict[str, Any]:
        return {**dict.fromkeys(bootstrap_results.FIGURES, average), "machine": machine, **facts}

    cost = {"sentences": 16000, "steps": 250, "seconds": 300.0, "resumed": False}
    result = {
        "name": "wordpiece", "command": "python scripts/bootstrap_study.py ladder", "sentences": {
            "files": ["a.txt"], "different": 90000, "left_out": 12},
        "model": {"layers": 4, "width": 256, "vocabulary": 8192, "parameters": 5_300_000},
        "settings": {"objectives": ["simcse", "mirror", "tsdae"], "rates": [1e-4, 3e-5], "seed": [2021, 2022],
                     "cycles": 1, "pairs": 20000, "overlap": 4.0, "sentence_budget": 16000,
                     "longer_cap": 50000},
        "cells": {
            "word overlap": cell(57.0), "simcse, rate 0.0001": cell(60.0, **cost),
            "mirror, rate 3e-05": cell(61.5, **cost, peak_mib=80, settings={"learning_rate": 3e-5}),
            **{f"{name}, rate 0.0001": {"stopped": "all alike", "machine": machine} for name in ("mirror", "tsdae")},
            "bootstrap longer": cell(62.0, **{**cost, "sentences": 50000}),
            "transductive, training": {"pairs": 37075, "steps": {"bi": 2318, "cross": 2318}, "seconds": 1200.4,
                                       "resumed": True, "machine": machine},
            "transductive, cycle 1, bi": cell(65.0),
            "transductive, cycle 1, bi minus mirror, rate 3e-05": {
                "difference": 3.5, "low": 3.0, "high": 4.0, "machine": machine},
            "bootstrap longer, whitened": cell(66.0, **{**cost, "steps": 0, "seconds": 55.2}),
            "bootstrap longer, whitened minus bootstrap longer": {
                "difference": 4.0, "low": 3.1, "high": 4.9, "machine": machine},
        },
    }  # fmt: skip
    tmp_path.joinpath("results", "ladder-wordpiece.json").write_text(json.dumps(result), encoding="utf-8")
    bootstrap_results.write_page()
    page = tmp_path.joinpath("bootstrap.md").read_text(encoding="utf-8")
    assert "| mirror, rate 3e-05 **(chosen)** |" + " 61.50 |" * 8 + " +4.50 | 61.50 | 16,000 | 250 | 300 |" in page
    assert (
        "| distilled, transductive, cycle 1: bi-encoder |" + " 65.00 |" * 8 + " +8.00 | 65.00 | 37,075 pairs |" in page
    )
    assert "| 2,318 bi + 2,318 cross | at least 1,200 |" in page
    assert "| chosen, seed 2022 | not run |" in page and "| mirror | 61.50 | 61.50 | 3e-05 | 300 |" in page
    assert "| mirror, rate 0.0001 | stopped |" in page and "mirror, rate 0.0001 stopped: all alike" in page
    assert "cycle 1: bi-encoder minus mirror, rate 3e-05: +3.50 (95 %: +3.00 to +4.00)" in page
    assert "| tsdae | stopped |  |  |  |" in page  # whichever rate: none of them was chosen
    assert "Learning rates 0.0001, 3e-05, of which" in page and "Distilled on 20,000 pairs, a random sample," in page
    assert "| bootstrap longer | 62.00 | 66.00 | +4.00 (95 %: +3.10 to +4.90) | 62.00 | 66.00 | 55 |" in page
    # cells of a study without CPU seconds: 1,200.4 / 300 of 16,000 sentences, by the clock on the wall
    longer = (
        "*bootstrap longer*: 64,022 sentences cost as much as the transductive distillation, by wall seconds on a "
        "machine shared with other studies; a training was resumed, so its cost is at least that; cut "
        "to 50,000 by --longer-cap"
    )
    assert longer in page
    figure = tmp_path.joinpath("bootstrap-ladder.svg").read_bytes()
    assert b"<!-- stopped -->" in figure and b"<!-- not run -->" in figure
    bootstrap_results.write_page()
    assert tmp_path.joinpath("bootstrap-ladder.svg").read_bytes() == figure


def test_the_published_page_is_made_from_the_published_json() -> None:
    from bootstrap_results import DOCS, fill, render_blocks

    page = (DOCS / "bootstrap.md").read_text(encoding="utf-8")
    assert fill(page, render_blocks()) == page
