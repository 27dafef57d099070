"""The study of docs/study.md: it runs end to end on tiny models, and the page says what the JSON says."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from scenario import snapshot
from tiny import count_common, make_pairs

from transenc.benchmarks import load_benchmark
from transenc.devices import resolve_precision
from transenc.encoders import load_bi_encoder
from transenc.evaluation import evaluate_pairs
from transenc.metrics import correlation
from transenc.scoring import score_pairs
from transenc.whitening import whiten_encoder

ROOT = Path(__file__).parents[1]
EXTRA = "--bi-batch-size 8 --cross-batch-size 8 --select last"


@pytest.fixture(autouse=True)
def script_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import study

    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.setattr(study, "DOCS", tmp_path / "docs")


def run_study(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    import study

    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
    return study.main()


def read(tmp_path: Path, name: str) -> dict[str, Any]:
    return json.loads((tmp_path / "docs" / "results" / f"study-{name}.json").read_text(encoding="utf-8"))


def test_labels_are_screened_without_training(
    monkeypatch: pytest.MonkeyPatch, tiny_bi: Path, tiny_cross: Path, benchmarks: Path, tmp_path: Path
) -> None:
    from study_results import SCREENS, describe_screen

    assert not run_study(monkeypatch, "--data", benchmarks, "screen", "--start", f"a={tiny_bi}", "--cross",
                         f"a={tiny_cross}")  # fmt: skip
    result = read(tmp_path, "screen-a-cross")
    assert list(result["labels"]) == list(SCREENS)
    dev = load_benchmark("stsb", split="dev", data=benchmarks)
    model = load_bi_encoder(tiny_bi, dtype=resolve_precision("auto"))
    expected = correlation(score_pairs(model, dev), list(dev["score"]))["spearman"]
    assert result["labels"]["cosine (the start)"]["stsb dev"] == pytest.approx(100 * expected, abs=0.006)
    assert len({str(figures) for figures in result["labels"].values()}) > 5  # the settings differ in what they give
    page = describe_screen(result)
    assert all(f"{figures['mean']:.2f}" in page for figures in result["labels"].values())


def test_an_arm_is_run_once_and_told_with_its_intervals(
    monkeypatch: pytest.MonkeyPatch, tiny_bi: Path, benchmarks: Path, tmp_path: Path
) -> None:
    from study_results import ARMS, describe_runs

    call = ["--data", benchmarks, "run", "--start", f"a={tiny_bi}", "--arm", "reference", "--arm", "half", "--pairs",
            12, "--work", tmp_path / "work", f"--extra={EXTRA} --bi-epochs 1"]  # fmt: skip
    assert not run_study(monkeypatch, *call)
    name = "a-transductive-12-half-seed2021"
    result = read(tmp_path, name)
    assert result["pairs"] == 12 and result["config"]["keep_label"] == 0.5 and result["flops"] > 0
    assert "$A" in result["command"] and str(tmp_path) not in result["command"]
    start, bi, cross = result["scores"]
    change = result["scores"][bi]["average"] - result["scores"][start]["average"]
    assert result["to_start"][bi]["difference"] == pytest.approx(change, abs=1e-6)
    assert result["to_start"][bi]["low"] <= change <= result["to_start"][bi]["high"]
    other = read(tmp_path, "a-transductive-12-reference-seed2021")
    assert other["to_reference"] is None
    gain = result["scores"][bi]["average"] - other["scores"][bi]["average"]
    assert result["to_reference"][bi]["difference"] == pytest.approx(gain, abs=1e-6)

    before = snapshot(tmp_path / "work")
    assert not run_study(monkeypatch, *call)
    assert snapshot(tmp_path / "work") == before
    assert read(tmp_path, name) == result
    with pytest.raises(SystemExit):  # the same place with other settings
        run_study(monkeypatch, *call[:-1], f"--extra={EXTRA} --bi-epochs 2")

    forking = ["--arm", "half-two-cycles", "--fork", tmp_path / "work" / name]
    monkeypatch.setitem(ARMS, "half-two-cycles", (*ARMS["half"], "--cycles", "2"))  # type: ignore[arg-type]
    assert not run_study(monkeypatch, *call[:5], *forking, *call[9:])
    longer = read(tmp_path, "a-transductive-12-half-two-cycles-seed2021")
    assert "--fork" not in longer["command"]  # it is the same without
    assert [path[7:10] for path in longer["scores"]] == ["c00", "c01", "c01", "c02", "c02"]
    assert longer["scores"][bi] == result["scores"][bi]
    forking[1] = "overlap-two-cycles"
    assert run_study(monkeypatch, *call[:5], *forking, *call[9:]) == 2  # not what was forked
    assert not (tmp_path / "docs" / "results" / "study-a-transductive-12-overlap-two-cycles-seed2021.json").exists()

    monkeypatch.setitem(ARMS, "half-no-dropout", (*ARMS["half"], "--bi-dropout", "0"))  # type: ignore[arg-type]
    forking[1] = "half-no-dropout"
    assert run_study(monkeypatch, *call[:5], *forking, *call[9:]) == 2  # its student is there already
    for part in ("best", "stages/c01-40-bi-train", "stages/c01-50-evaluate"):  # as if stopped before the student
        shutil.rmtree(tmp_path / "work" / name / part)
    (tmp_path / "work" / name / "best.json").unlink()
    shutil.rmtree(tmp_path / "work" / "a-transductive-12-half-no-dropout-seed2021")
    assert not run_study(monkeypatch, *call[:5], *forking, *call[9:])
    still = read(tmp_path, "a-transductive-12-half-no-dropout-seed2021")
    assert still["config"]["bi"]["dropout"] == 0
    assert still["scores"][cross] == result["scores"][cross] and still["scores"][bi] != result["scores"][bi]

    page = describe_runs("a", "transductive", 12, [other, result])
    for path in (bi, cross):
        assert f"{result['scores'][path]['average']:.2f} | {result['to_start'][path]['difference']:+.2f}" in page
    assert page.count("| start |") == 1


def test_what_was_learned_from_pair_classification_is_tested_there(
    monkeypatch: pytest.MonkeyPatch, tiny_bi: Path, benchmarks: Path, tmp_path: Path
) -> None:
    from study_results import describe_runs

    (benchmarks / "pairs").mkdir()
    for split in ("train", "dev", "test"):
        pairs = make_pairs(12, seed=["train", "dev", "test"].index(split))
        rows = [(str(int(count_common(pair) > 0.4)), *pair) for pair in pairs]
        lines = ["\t".join(row) for row in (("label", "sentence1", "sentence2"), *rows)]
        (benchmarks / "pairs" / f"mrpc.{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    call = ["--data", benchmarks, "run", "--start", f"a={tiny_bi}", "--arm", "half", "--pool", "mrpc",
            "--work", tmp_path / "work", f"--extra={EXTRA} --bi-epochs 1"]  # fmt: skip
    assert not run_study(monkeypatch, *call)
    result = read(tmp_path, "a-mrpc-half-seed2021")
    bi = "stages/c01-40-bi-train/model-0"
    auc = evaluate_pairs(tmp_path / "work" / "a-mrpc-half-seed2021" / bi, tasks=["mrpc"], data=benchmarks)["average"]
    assert result["scores"][bi] == {"mrpc": pytest.approx(auc, abs=0.5), "average": pytest.approx(auc, abs=0.5)}
    page = describe_runs("a", "mrpc", 36, [result])
    assert "**a, mrpc pool, 36 pairs**, ROC AUC x 100" in page and "| model | mrpc | to start |" in page


def test_seeds_have_a_mean_and_an_average_of_their_weights(
    monkeypatch: pytest.MonkeyPatch, tiny_bi: Path, benchmarks: Path, tmp_path: Path
) -> None:
    from study_results import describe_runs

    call = ["--data", benchmarks, "run", "--start", f"a={tiny_bi}", "--arm", "half", "--pairs", 12, "--seed", 1,
            "--seed", 2, "--average", "--work", tmp_path / "work", f"--extra={EXTRA} --bi-epochs 1"]  # fmt: skip
    assert not run_study(monkeypatch, *call)
    runs = [read(tmp_path, f"a-transductive-12-half-seed{seed}") for seed in (1, 2)]
    average = read(tmp_path, "a-transductive-12-half-average-1-2")
    bi = "stages/c01-40-bi-train/model-0"
    one, two, middle = (
        load_bi_encoder(tmp_path / "work" / folder).state_dict()["0.model.embeddings.word_embeddings.weight"]
        for folder in (
            *(f"a-transductive-12-half-seed{seed}/{bi}" for seed in (1, 2)),
            "a-transductive-12-half-average-1-2/model-0",
        )
    )
    assert not one.equal(two)
    assert middle.sub((one + two) / 2).abs().max() < 1e-6
    page = describe_runs("a", "transductive", 12, [*runs, average])
    mean = sum(run["scores"][bi]["average"] for run in runs) / 2
    (line,) = [line for line in page.splitlines() if "mean of 2 seeds, cycle 1 bi" in line]
    assert f"| {mean:.2f} |" in line
    (line,) = [line for line in page.splitlines() if "half, seeds 1, 2: weights averaged" in line]
    assert (
        f"{average['scores']['model-0']['average']:.2f} | {average['to_start']['model-0']['difference']:+.2f}" in line
    )

    call[call.index("--seed") : call.index("--work")] = [
        "--seed",
        1,
        "--average",
        "--with",
        "a-transductive-12-half-seed2",
    ]
    assert not run_study(monkeypatch, *call)
    same = read(tmp_path, "a-transductive-12-half-average-1-and1")
    assert same["scores"] == average["scores"]
    same["with"][0]["pool"] = "inductive"
    page = describe_runs("a", "transductive", 12, [*runs, same])
    assert "half, seed 1; half (inductive), seed 2: weights averaged" in page


def test_what_cannot_be_read_ends_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, tiny_bi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_study(monkeypatch, "--data", tmp_path / "none", "screen", "--start", f"a={tiny_bi}") == 2
    assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_study(monkeypatch, "run", "--start", f"a={tiny_bi}", "--arm", "half", "--with", "a-transductive-half-seed2")
    assert "--with names runs for --average, which is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_study(monkeypatch, "run", "--start", "nameless", "--arm", "half")
    assert "expected NAME=FOLDER, found 'nameless'" in capsys.readouterr().err


def test_the_page_is_made_of_the_results() -> None:
    from bootstrap_results import fill
    from study_results import render_blocks

    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert fill(page, render_blocks(), name="docs/study.md") == page


def test_a_model_with_a_layer_behind_the_same_transformer_is_scored_anew(
    tiny_bi: Path, benchmarks: Path, tmp_path: Path
) -> None:
    from reproduce_results import score_once

    sentences = [text for pair in make_pairs(100) for text in pair]
    for name, dimensions in (("plain", None), ("all", 32), ("few", 3)):
        model = load_bi_encoder(tiny_bi)
        if dimensions:
            whiten_encoder(model, sentences, dimensions=dimensions)
        model.save_pretrained(str(tmp_path / "run" / name), create_model_card=False)
    weights = {(tmp_path / "run" / name / "model.safetensors").read_bytes() for name in ("plain", "all", "few")}
    found = [score_once(tmp_path / "run", name, str(benchmarks), ["stsb"]) for name in ("plain", "all", "few", "plain")]
    assert len(weights) == 1
    assert len({scores["stsb"].tobytes() for scores in found}) == 3 and (found[0]["stsb"] == found[3]["stsb"]).all()
    assert len(list((tmp_path / "scores").iterdir())) == 3
