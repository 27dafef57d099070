"""The study of docs/choice.md: its rules by hand, a run on tiny models, a page that says what the JSON says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from transenc.config import CRITERIA

SCRIPTS = Path(__file__).parents[1] / "scripts"
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def script_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def make_run(start: float, *cycles: tuple[float, float, float | None]) -> dict[str, Any]:
    """Truth of the start; of each cycle its truth, its dev figure and its gain in agreement."""
    return {
        "start": "tiny",
        "pairs": 9,
        "truth": {"average": start, "dev": start},
        "candidates": [
            {
                "cycle": cycle,
                "truth": {"average": truth, "dev": dev},
                "criteria": {"alignment": None if gain is None else [0.9, 0.9 + gain]},
                "unseen": {},
                "symmetry": None,
            }
            for cycle, (truth, dev, gain) in enumerate(cycles, start=1)
        ],
    }


RUNS = {
    "good": make_run(60.0, (61.0, 60.5, 0.01), (62.0, 60.4, 0.02)),
    "bad": make_run(60.0, (55.0, 60.1, -0.01)),
}


def test_the_outcome_of_every_rule_by_hand() -> None:
    from choice_results import BEST, DEV, LAST, START, choose, find_outcomes, list_rules

    rules = list_rules(RUNS)
    assert find_outcomes(RUNS, rules[START]) == {"good": (0.0, 2.0), "bad": (0.0, 0.0)}
    assert find_outcomes(RUNS, rules[LAST]) == {"good": (2.0, 0.0), "bad": (-5.0, 5.0)}
    assert find_outcomes(RUNS, rules[DEV]) == {"good": (1.0, 1.0), "bad": (-5.0, 5.0)}
    assert find_outcomes(RUNS, rules["alignment"]) == {"good": (2.0, 0.0), "bad": (0.0, 0.0)}
    assert find_outcomes(RUNS, rules[BEST]) == find_outcomes(RUNS, rules["alignment"])
    assert find_outcomes(RUNS, rules["views"]) == {}  # not judged
    assert [choose(RUNS["good"], "alignment", margin=margin) for margin in (0.0, 0.015, 0.03)] == [2, 2, 0]
    assert choose(make_run(60.0, (61.0, 60.0, None)), "alignment") is None


def test_the_default_is_put_together_from_what_was_measured() -> None:
    from choice_results import choose, find_figures

    def judge(nearness: float, views: float, alignment: float) -> dict[str, Any]:
        run = make_run(60.0, (61.0, 60.5, alignment))
        run["candidates"][0]["criteria"] |= {"views": [0.9, 0.9 + views], "only cosine": [1.0, nearness]}
        return run

    assert choose(judge(0.99, 0.001, -0.1), "cautious") == 1
    assert choose(judge(0.99, -0.001, 0.1), "cautious") == 0
    assert choose(judge(0.97, 0.1, 0.004), "cautious") == 0
    assert choose(judge(0.97, -0.1, 0.006), "cautious") == 1
    assert find_figures(RUNS["bad"]["candidates"][0], "cautious") is None


def test_correlations_and_tables_by_hand() -> None:
    from choice_results import describe_correlations, describe_rules, list_gains

    found = list_gains(RUNS, "alignment")
    assert [(family, round(gain, 6), truth) for family, gain, truth in found] == [
        ("tiny", 0.01, 1.0), ("tiny", 0.02, 2.0), ("tiny", -0.01, -5.0)
    ]  # fmt: skip
    row = next(line for line in describe_correlations(RUNS).splitlines() if line.startswith("| alignment |"))
    assert row == "| alignment | 3 | 1.00 | 1.00 | 3 of 3 |"
    row = next(line for line in describe_rules(RUNS).splitlines() if line.startswith("| always the last |"))
    assert row == "| always the last | 2 | -1.50 | -5.00 | 2.50 | 5.00 | 1 | 1 |"


def test_the_study_runs_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    tiny_bi: Path,
    benchmarks: Path,
    tmp_path: Path,
) -> None:
    import choice_study
    from choice_results import render_blocks

    plans = (choice_study.Plan("tiny", "mixed", 16, 1e-4), choice_study.Plan("tiny", "default", 16, 1e-4))
    monkeypatch.setattr(choice_study, "PLANS", plans)
    monkeypatch.setattr(choice_study, "UNSEEN", ("tiny",))
    monkeypatch.setattr(choice_study, "SAMPLE", 12)

    def study(*more: str) -> dict[str, Any]:
        command = ["choice_study.py", "run", "--start", f"tiny={tiny_bi}", "--work", str(tmp_path / "work"), "--json",
                   str(tmp_path / "choice.json"), "--data", str(benchmarks), *more]  # fmt: skip
        monkeypatch.setattr(sys, "argv", command)
        assert choice_study.main() == 0
        return json.loads((tmp_path / "choice.json").read_text(encoding="utf-8"))

    result = study()
    assert list(result["runs"]) == ["tiny: mixed", "tiny: default"]
    judged = result["runs"]["tiny: default"]["candidates"][0]
    assert {*CRITERIA, "only cosine"} - {"cautious"} < set(judged["criteria"])
    assert judged["criteria"]["cross"] is not None and judged["unseen"]["alignment"]
    assert result["runs"]["tiny: mixed"]["candidates"][0]["criteria"]["cross"] is None
    assert str(tmp_path) not in json.dumps(result)
    monkeypatch.setattr(choice_study, "make_run", None)
    monkeypatch.setattr(choice_study, "look_at", None)
    monkeypatch.setattr(choice_study, "score_tasks", None)
    monkeypatch.setattr(choice_study, "PLANS", plans[:1])
    made = tmp_path / "work" / "tiny-default" / "run"
    assert study("--run", f"tiny:default={made}")["runs"] == result["runs"]  # nothing is made or measured again
    blocks = render_blocks(result)
    assert all("nan" not in text for text in blocks.values())
    assert f"{judged['truth']['average']:.2f}" in blocks["candidates"]


def test_the_page_says_what_the_json_says() -> None:
    from choice_results import RESULTS, render_blocks

    page = (DOCS / "choice.md").read_text(encoding="utf-8")
    blocks = render_blocks(json.loads(RESULTS.read_text(encoding="utf-8")))
    for name, text in blocks.items():
        assert f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->" in page
