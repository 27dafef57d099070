"""The command line: results on stdout, one clear line and an exit code for every mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from transenc.cli import build_parser, main
from transenc.durable import read_json
from transenc.pairs import read_gold, write_pairs

QUICK = ["--cycles", "1", "--precision", "float32", "--bi-batch-size", "16", "--cross-batch-size", "16"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_pairs: list[tuple[str, str]]) -> Path:
    """A folder with pairs.tsv (unscored), dev.tsv (score: common words) and labels.csv (0/1)."""
    folder = tmp_path_factory.mktemp("cli")
    write_tsv(folder / "pairs.tsv", ["sentence1", "sentence2"], tiny_pairs[:24])
    scored = [(str(common(pair)), *pair) for pair in tiny_pairs[24:]]
    write_tsv(folder / "dev.tsv", ["score", "sentence1", "sentence2"], scored)
    rows = [f"{int(common(pair) > 3)},{pair[0]},{pair[1]}" for pair in tiny_pairs]
    folder.joinpath("labels.csv").write_text("\n".join(["label,sentence1,sentence2", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(files: Path, tiny_bi: Path) -> Path:
    """A finished run of one cycle with a dev set."""
    output = files / "run"
    assert main(distill(tiny_bi, files, output, "--dev", str(files / "dev.tsv"))) == 0
    return output


def distill(model: Path, files: Path, output: Path, *more: str) -> list[str]:
    given = ["--model", str(model), "--pairs", str(files / "pairs.tsv"), "--output", str(output)]
    return ["distill", *given, *QUICK, *more]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def call_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_distill_reports_best_and_history(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path, tiny_bi: Path
) -> None:
    result = call_json(capsys, *distill(tiny_bi, files, run, "--dev", str(files / "dev.tsv")))
    assert result["run"] == str(run)
    assert [entry["cycle"] for entry in result["history"]] == [0, 1]
    scores = [model["score"] for entry in result["history"] for model in entry["bi"]]
    assert result["best"]["criterion"] == "dev"
    assert result["best"]["bi"]["score"] == max(scores)
    assert set(result["best"]["bi"]) >= {"path", "backbone", "cycle", "score"}
    assert Path(result["best"]["bi"]["path"], "modules.json").is_file()
    assert (run / "best" / "bi-encoder").resolve() == Path(result["best"]["bi"]["path"]).resolve()


def test_distill_shows_the_start_beside_every_cycle(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path, tiny_bi: Path
) -> None:
    code, out, _ = call(capsys, *distill(tiny_bi, files, run, "--dev", str(files / "dev.tsv")))
    assert code == 0
    first_words = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert first_words[:4] == ["cycle", "start", "1", "1"]
    assert ("it helped:" in out) != ("it did not help:" in out)


def test_the_score_of_the_table_is_what_evaluate_says(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path
) -> None:
    for form in ("bi", "cross"):
        best = read_json(run / "best.json")["best"][form]["score"]
        found = call_json(
            capsys, "evaluate", "--model", str(run / "best" / f"{form}-encoder"), "--file", str(files / "dev.tsv"),
            "--precision", "float32",
        )  # fmt: skip
        assert found["spearman"] == pytest.approx(best, abs=0.006)  # best.json has two decimals


def test_evaluate_reads_labels_compares_and_takes_an_ensemble(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path, tiny_bi: Path
) -> None:
    one = call_json(capsys, "evaluate", "--model", str(tiny_bi), "--file", str(files / "labels.csv"))
    assert set(one) == {"auc", "ap"}
    both = ["--model", str(tiny_bi), "--model", str(run / "best" / "cross-encoder")]
    compared = call_json(
        capsys, "evaluate", *both, "--file", str(files / "labels.csv"), "--compare", str(tiny_bi)
    )  # fmt: skip
    assert compared["difference"]["auc"]["difference"] == pytest.approx(compared["auc"] - one["auc"], abs=0.02)


def test_label_writes_the_mean_of_the_models(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path, tiny_bi: Path, tmp_path: Path
) -> None:
    models = [str(tiny_bi), str(run / "best" / "cross-encoder")]
    scores = []
    for name, chosen in (("a.tsv", models[:1]), ("b.jsonl", models[1:]), ("c.parquet", models)):
        flags = [part for model in chosen for part in ("--model", model)]
        result = call_json(
            capsys, "label", *flags, "--pairs", str(files / "pairs.tsv"), "--output", str(tmp_path / name)
        )
        assert result == {"output": str(tmp_path / name), "pairs": 24}
        scores.append(list(read_gold(tmp_path / name)["score"]))
    for first, second, mean in zip(*scores, strict=True):
        assert mean == pytest.approx(min(max((first + second) / 2, 0), 1), abs=2e-6)


def test_label_keeps_lists(capsys: pytest.CaptureFixture[str], tiny_bi: Path, tmp_path: Path) -> None:
    lists = Dataset.from_dict(
        {"sentence1": ["a cat", "a cat", "one"], "sentence2": ["cats", "a dog", "two"], "list": [0, 0, 1]}
    )
    write_pairs(tmp_path / "lists.parquet", lists)
    call_json(
        capsys, "label", "--model", str(tiny_bi), "--pairs", str(tmp_path / "lists.parquet"), "--output",
        str(tmp_path / "labels.parquet"),
    )  # fmt: skip
    rows = Dataset.from_parquet(str(tmp_path / "labels.parquet"), keep_in_memory=True)
    assert rows.column_names == ["sentence1", "sentence2", "list", "score"]
    assert rows["list"][:] == [0, 0, 1]


def test_verify_counts_and_refuses(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    result = call_json(capsys, "verify", str(run))
    assert result["stages"] == 7
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    damaged = next(copy.glob("stages/c01-40-bi-train/model-0/model.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    code, out, err = call(capsys, "verify", str(copy))
    assert (code, out) == (3, "")
    assert "c01-40-bi-train" in err and "model.safetensors" in err


def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path) -> None:
    plan = call_json(capsys, *distill(tiny_bi, files, tmp_path / "run", "--dry-run"))["plan"]
    steps = {stage["stage"]: stage["steps"] for stage in plan}
    assert steps["c01-20-cross-train"] == 3  # 24 pairs in both orders, 16 a batch
    assert steps["c01-40-bi-train"] == 2 * main_default_bi_epochs()
    assert not (tmp_path / "run").exists()


def main_default_bi_epochs() -> int:
    from transenc.config import DistillConfig

    return int(DistillConfig().bi.epochs)


def test_the_config_of_a_run_repeats_it(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    result = call_json(capsys, "distill", "--config", str(run / "run.json"), "--output", str(again))
    assert result["history"] == read_json(run / "best.json")["history"]
    assert read_json(again / "run.json") == read_json(run / "run.json")


def test_flags_beat_the_file_and_the_file_beats_the_preset(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path
) -> None:
    config = tmp_path / "mine.yaml"
    lines = ["preset: reference", f"pairs: {files / 'pairs.tsv'}", "cycles: 3", "bi: {epochs: 4, batch_size: 8}"]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    plan = call_json(
        capsys, "distill", "--model", str(tiny_bi), "--config", str(config), "--cycles", "1", "--bi-epochs", "2",
        "--output", str(tmp_path / "run"), "--dry-run",
    )["plan"]  # fmt: skip
    assert {stage["stage"][:3] for stage in plan} == {"c00", "c01"}
    # 24 pairs, 8 a batch, 2 epochs; the reference's cross-encoder batch of 32 for 48 rows
    assert {stage["stage"]: stage["steps"] for stage in plan}["c01-40-bi-train"] == 6
    assert {stage["stage"]: stage["steps"] for stage in plan}["c01-20-cross-train"] == 2


def test_scores_in_the_pair_file_are_not_read(files: Path, tiny_bi: Path, tmp_path: Path) -> None:
    lines = files.joinpath("pairs.tsv").read_text(encoding="utf-8").splitlines()
    scored = tmp_path / "scored.tsv"
    scored.write_text(
        "\n".join([lines[0] + "\tscore", *(f"{line}\tnan" for line in lines[1:])]) + "\n", encoding="utf-8"
    )
    plain = ["label", "--model", str(tiny_bi), "--pairs", str(files / "pairs.tsv"), "--output", str(tmp_path / "a.tsv")]
    assert main(plain) == 0
    assert main([*plain[:4], str(scored), "--output", str(tmp_path / "b.tsv")]) == 0
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "no/such/model"], 2, ["no/such/model"]),
        (["--model", "./nowhere"], 2, ["nowhere"]),
        (["--pairs", "nowhere.tsv"], 2, ["nowhere.tsv"]),
        (["--pairs", "suite:nothing"], 2, ["nothing", "sts_sickr"]),
        (["--pairs", "{files}/wrong.tsv"], 2, ["wrong.tsv", "sentence2"]),
        (["--cycles", "0"], 2, ["cycles", "0"]),
        (["--cross-batch-size", "0"], 2, ["cross", "batch_size", "0"]),
        (["--select", "dev"], 2, ["dev", "--dev"]),
        (["--dev", "nowhere.tsv"], 2, ["nowhere.tsv"]),
        (["--max-pairs", "0"], 2, ["max_pairs", "0"]),
        (["--device", "cuda:99"], 2, ["cuda:99"]),
        (["--output", "{files}"], 2, ["not a run"]),
        (["--output", "{files}/pairs.tsv"], 2, ["pairs.tsv", "folder"]),
        (["--cross-start", "a", "--cross-start", "b"], 2, ["--cross-start", "2"]),
        (["--weight", "2", "--weight", "1"], 2, ["--weight", "2"]),
        (["--weight", "0"], 2, ["weight", "positive", "0"]),
        (["--student", "1"], 2, ["student 1", "0 to 0"]),
        (["--keep-label", "sometimes"], 2, ["keep_label", "'agreement'", "sometimes"]),
        (["--keep-label", "1.5"], 2, ["keep_label", "1.5"]),
        (["--overlap", "-1"], 2, ["overlap", "0 or more"]),
        (["--snli"], 2, ["--snli"]),
        (["--config", "nowhere.yaml"], 2, ["nowhere.yaml"]),
    ],
)
def test_a_users_mistake_gets_one_line(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path, arguments: list[str], code: int,
    words: list[str],
) -> None:  # fmt: skip
    write_tsv(files / "wrong.tsv", ["sentence1", "text"], [("a", "b"), ("c", "d")])
    changed = [part.replace("{files}", str(files)) for part in arguments]
    command = distill(tiny_bi, files, tmp_path / "run")
    if changed[0] == "--model":
        command = [part for part in command if part not in ("--model", str(tiny_bi))]
    found, out, err = call(capsys, *command, *changed)
    last = err.strip().splitlines()[-1]
    assert (found, out) == (code, "")
    assert last.startswith("transenc: ") and "Traceback" not in err
    assert [word for word in words if word not in last] == []


def test_a_model_without_tokenizer_is_refused(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bi, model)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        model.joinpath(name).unlink(missing_ok=True)
    code, _, err = call(capsys, "evaluate", "--model", str(model), "--file", str(files / "dev.tsv"))
    assert code == 3
    assert "tokenizer" in err.strip().splitlines()[-1]


def test_another_seed_is_refused_and_named(
    capsys: pytest.CaptureFixture[str], run: Path, files: Path, tiny_bi: Path
) -> None:
    code, _, err = call(capsys, *distill(tiny_bi, files, run, "--dev", str(files / "dev.tsv"), "--seed", "7"))
    assert code == 3
    assert "config.seed: 2021 -> 7" in err and "--fork" in err


def test_a_task_of_another_suite_is_refused(capsys: pytest.CaptureFixture[str], tiny_bi: Path) -> None:
    code, _, err = call(capsys, "evaluate", "--model", str(tiny_bi), "--suite", "sts", "--task", "mrpc")
    assert code == 2
    assert "mrpc" in err and "sickr" in err


def test_missing_benchmarks_name_all_three_places(
    capsys: pytest.CaptureFixture[str], tiny_bi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSENC_DATA", raising=False)
    code, _, err = call(
        capsys, "evaluate", "--model", str(tiny_bi), "--suite", "sts", "--task", "stsb", "--data", str(tmp_path)
    )
    assert code == 2
    assert all(word in err for word in ("--data", "TRANSENC_DATA", "Hub"))


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "verify", str(tmp_path), "--debug")
    assert code == 2
    assert "Traceback" in err


def test_settings_become_flags_with_their_defaults() -> None:
    parsed = build_parser().parse_args(["distill", "--output", "r", "--bi-loss", "mse", "--no-cross-group-by-length"])
    assert vars(parsed)["set_bi-loss"] == "mse"
    assert vars(parsed)["set_cross-group-by-length"] is False
    assert vars(parsed)["set_keep-label"] is None


def common(pair: tuple[str, str]) -> float:
    """Words that both sentences have in the same place."""
    return float(sum(a == b for a, b in zip(pair[0].split(), pair[1].split(), strict=True)))


def write_tsv(path: Path, header: list[str], rows: Any) -> None:
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n", encoding="utf-8")
