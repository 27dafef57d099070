"""The paper's runs, end to end on tiny models, which lie in the Hub's cache like the real ones, and tiny benchmarks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from scenario import snapshot
from tiny import build_plain, count_common, make_pairs
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel, RobertaTokenizer

SCRIPTS = Path(__file__).parents[1] / "scripts"
REVISION = "0123456789abcdef0123456789abcdef01234567"
SPLITS = {
    "sts": {
        "sts12": ("test",), "sts13": ("test",), "sts14": ("test",), "sts15": ("test", "unscored"),
        "sts16": ("test", "unscored"), "stsb": ("train", "dev", "test"), "sickr": ("train", "trial", "test"),
    },
    "pairs": {"mrpc": ("train", "dev", "test")},
}  # fmt: skip


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRANSENC_DATA", raising=False)
        patch.syspath_prepend(str(SCRIPTS))
        yield patch


@pytest.fixture(scope="module")
def script(patch: pytest.MonkeyPatch) -> ModuleType:
    import reproduce_paper

    return reproduce_paper


@pytest.fixture(scope="module")
def hub(script: ModuleType, patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hub's cache with the four base models: tensors have the names that the published files give them."""
    cache = tmp_path_factory.mktemp("hub")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    builders = {
        "bert-base": (lambda folder: build_plain(folder, seed=0), build_pretrained_bert),
        "roberta-base": (
            lambda folder: build_roberta(folder, RobertaModel, seed=1),
            lambda folder: build_roberta(folder, RobertaForMaskedLM, seed=2),
        ),
    }
    for model, (build_bi, build_cross) in builders.items():
        start = script.STARTS[model]
        for name, build in ((start.bi, build_bi), (start.cross, build_cross)):
            place = cache / f"models--{name.replace('/', '--')}"
            build(place / "snapshots" / REVISION)
            (place / "refs").mkdir()
            (place / "refs" / "main").write_text(REVISION)
    simcse = cache / "models--princeton-nlp--unsup-simcse-bert-base-uncased" / "snapshots" / REVISION
    weights = load_file(simcse / "model.safetensors")
    weights["embeddings.position_ids"] = torch.arange(64)[None]  # a buffer that old versions saved
    save_file(weights, simcse / "model.safetensors", metadata={"format": "pt"})
    return cache


def build_pretrained_bert(folder: Path) -> None:
    """As bert-base-uncased lies on the Hub: a prefix, the old names of the normalisation, the heads of pretraining."""
    build_plain(folder, seed=3)
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for new, old in names.items():
            name = name.replace(new, old)
        weights[f"bert.{name}"] = tensor
    weights["cls.predictions.bias"] = torch.zeros(8)
    weights["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))


def build_roberta(folder: Path, kind: Any, *, seed: int) -> None:
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    sentences = [sentence for pair in make_pairs(64) for sentence in pair]
    bpe.train_from_iterator(sentences, vocab_size=500, special_tokens=special, show_progress=False)
    folder.mkdir(parents=True)
    content = json.loads(bpe._tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in content["merges"]]
    tokenizer = RobertaTokenizer(vocab=content["vocab"], merges=merges, model_max_length=64)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, initializer_range=0.2, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every split that the pools and tests need, 8 pairs each, scored by the words that both sentences have."""
    folder = tmp_path_factory.mktemp("data")
    for kind, tasks in SPLITS.items():
        (folder / kind).mkdir()
        for i, (task, splits) in enumerate(tasks.items()):
            for j, split in enumerate(splits):
                gold = "" if split == "unscored" else "label\t" if kind == "pairs" else "score\t"
                subset = kind == "sts" and task != "sickr"
                lines = [f"{gold}sentence1\tsentence2" + "\tsubset" * subset]
                for pair in make_pairs(8, seed=10 * i + j):
                    common = count_common(pair)
                    value = f"{int(common > 0.5)}\t" if kind == "pairs" else f"{1 + 4 * common:g}\t"
                    lines.append((value if gold else "") + "\t".join(pair) + "\tpart" * subset)
                (folder / kind / f"{task}.{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def output(script: ModuleType, hub: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished self-distillation with three cycles of the reference recipe; not to be changed."""
    output = tmp_path_factory.mktemp("paper")
    assert script.main(["--output", str(output), "--only", "self-bert", "--data", data, "--allow-cpu"]) == 0
    return output


# ---- one command


def test_the_same_command_on_finished_runs_touches_nothing_and_needs_nothing(
    script: ModuleType, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(output / "none"))
    before = snapshot(output)
    assert script.main(["--output", str(output), "--only", "self-bert"]) == 0  # no data, no models, no --allow-cpu
    assert snapshot(output) == before


def test_a_result_that_was_lost_is_made_again_from_the_run(
    script: ModuleType, output: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(output, tmp_path / "copy", symlinks=True))
    shutil.rmtree(copy / "results")
    (copy / "results.md").unlink()
    before = snapshot(copy / "runs")
    assert script.main(["--output", str(copy), "--only", "self-bert", "--data", data, "--allow-cpu"]) == 0
    assert snapshot(copy / "runs") == before
    assert read_result(copy) == read_result(output)
    assert (copy / "results.md").read_text() == (output / "results.md").read_text()
    assert capsys.readouterr().out == f"{copy / 'results.md'}\n"


def read_result(output: Path, name: str = "sts-self-bert-base-reference-seed2021") -> dict[str, Any]:
    return json.loads((output / "results" / f"{name}.json").read_text(encoding="utf-8"))


def read_tables(output: Path) -> list[list[list[str]]]:
    """The cells of every table of the page, without their header lines."""
    blocks = (output / "results.md").read_text(encoding="utf-8").split("\n\n")
    tables = [block.splitlines()[2:] for block in blocks if block.startswith("| ")]
    return [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines] for lines in tables]


def test_the_run_is_the_paper_s(output: Path, data: str) -> None:
    result = read_result(output)
    assert result["pairs"] == 8 * 13  # pairs of 13 splits
    assert result["config"]["cycles"] == 3 and result["config"]["bi"]["epochs"] == 10
    assert result["config"]["bi"]["loss"] == "mse" and result["config"]["seed"] == 2021
    assert result["backbones"]["model-0"] == {
        "bi": f"hub:princeton-nlp/unsup-simcse-bert-base-uncased@{REVISION}",
        "cross": f"hub:google-bert/bert-base-uncased@{REVISION}",
        "pooling": "cls",
        "weight": 1.0,
    }
    inputs = json.loads((output / "runs" / "sts-self-bert-base-reference-seed2021" / "run.json").read_text())["inputs"]
    assert inputs["pairs"] == "suite:sts_sickr" and inputs["dev"] == "suite:stsb.dev"


def test_the_figures_are_those_of_the_chosen_models(script: ModuleType, output: Path, data: str) -> None:
    from transenc import evaluate_sts

    result = read_result(output)
    run = output / "runs" / "sts-self-bert-base-reference-seed2021"
    bi = [model for entry in result["history"] for model in entry["bi"] if "/model-" in model["path"]]
    by_dev = max(bi, key=lambda model: model["score"])["path"]
    found = result["figures"]["bert-base"]
    assert found["bi"]["gold dev"]["path"] == by_dev
    assert found["bi"]["without gold"]["cycle"] == 3
    assert found["bi"]["without gold"]["path"].startswith("stages/c03-40-bi-train/")
    for chosen in (found["bi"]["without gold"], found["cross"]["gold dev"]):
        expected = evaluate_sts(run / chosen["path"], data=data)
        assert chosen["figures"] == pytest.approx({k: v for k, v in expected.items() if k != "pearson"}, abs=1e-6)


def test_the_table_says_what_the_json_says(output: Path) -> None:
    found = read_result(output)["figures"]["bert-base"]
    summary, details = read_tables(output)
    choices = ("gold dev", "without gold")
    rows = {"start": [found["start"]] * 2, **{f: [found[f][c]["figures"] for c in choices] for f in ("bi", "cross")}}
    expected = {"start": (76.21, "published"), "bi": (78.65, "recalled"), "cross": (78.32, "recalled")}
    assert summary == [
        ["sts", "reference", "self-bert", "bert-base", form, f"{expected[form][0]:.2f}", expected[form][1]]
        + [f"{f['average']:.2f} ({f['average'] - expected[form][0]:+.2f})" for f in figures]
        for form, figures in rows.items()
    ]
    tasks = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr", "average")
    assert details[0] == ["bert-base", "start", "-", "0", *(f"{found['start'][task]:.2f}" for task in tasks)]
    assert details[1:] == [
        ["bert-base", form, name, str(found[form][name]["cycle"])]
        + [f"{found[form][name]['figures'][task]:.2f}" for task in tasks]
        for form in ("bi", "cross")
        for name in choices
    ]


def test_write_only_makes_the_table_from_the_json(script: ModuleType, output: Path, tmp_path: Path) -> None:
    assert script.main(["--output", str(tmp_path), "--write-only"]) == 2
    for seed, change in ((2021, 0.0), (2022, 1.0)):
        result = {**read_result(output), "seed": seed}
        for form in ("bi", "cross"):
            result["figures"]["bert-base"][form]["gold dev"]["figures"]["average"] = 78.0 + change
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{seed}.json").write_text(json.dumps(result))
    assert script.main(["--output", str(tmp_path), "--write-only"]) == 0
    summary = read_tables(tmp_path)[0]
    assert summary[1][7] == "78.50 (-0.15) [78.00 to 79.00]"
    assert summary[2][7] == "78.50 (+0.18) [78.00 to 79.00]"


# ---- expectation and choice


def test_the_expected_figures_and_their_sources(script: ModuleType) -> None:
    expected = script.EXPECTED
    assert expected["sts", "start", "roberta-base", "bi"] == (76.10, "published")
    assert expected["sts", "mutual", "bert-base", "bi"] == (80.41, "published")
    assert expected["sts", "mutual", "roberta-base", "cross"] == (81.15, "published")
    assert expected["sts", "self", "roberta-base", "cross"] == (78.86, "recalled")
    assert expected["sts", "mutual", "bert-large", "cross"] == (82.52, "published")
    assert expected["mean of mrpc, qnli, qqp", "mutual", "bert-base", "bi"] == (79.18, "recalled")
    assert {source for key, (_, source) in expected.items() if key[1] == "self"} == {"recalled"}


def test_the_document_expects_the_same(script: ModuleType) -> None:
    text = (SCRIPTS.parent / "docs" / "paper.md").read_text(encoding="utf-8")
    assert "| start from | start (published) | self (recalled) | mutual (published) |" in text
    for model in script.STARTS:
        start, *pairs = [
            [script.EXPECTED["sts", run, model, form][0] for form in forms]
            for run, forms in (("start", ["bi"]), ("self", ["bi", "cross"]), ("mutual", ["bi", "cross"]))
        ]
        cells = [f"{start[0]:.2f}", *(f"{bi:.2f} / {cross:.2f}" for bi, cross in pairs)]
        assert f"| {model} | {' | '.join(cells)} |" in text


def test_the_binary_tasks_are_compared_by_their_mean(script: ModuleType) -> None:
    def result(task: str, seed: int, average: float | None) -> dict[str, Any]:
        chosen = {name: {"figures": {"average": average}} for name in ("gold dev", "without gold")}
        figures = {"bert-base": {"start": {"average": 70.0}, "bi": chosen, "cross": chosen}}
        return {"task": task, "preset": "reference", "kind": "mutual", "seed": seed, "figures": figures}

    results = [result("mrpc", 1, 80.0), result("qnli", 1, 70.0), result("qqp", 1, 90.0), result("mrpc", 2, None)]
    rows = {(row["task"], row["form"]): row for row in script.summarize(results)}
    assert rows["mean of mrpc, qnli, qqp", "bi"]["gold dev"] == "80.00 (+0.82)"
    assert rows["mean of mrpc, qnli, qqp", "start"]["without gold"] == "70.00 (-5.59)"
    assert rows["mrpc", "bi"]["gold dev"] == "-"  # undefined for one of its seeds
    assert rows["qqp", "cross"] | {"expected": "-", "gold dev": "90.00"} == rows["qqp", "cross"]


def test_each_backbone_has_its_own_choice(script: ModuleType) -> None:
    def entry(cycle: int, *scores: float) -> dict[str, Any]:
        def models(stage: str, kind: str = "model") -> list[dict[str, Any]]:
            return [{"backbone": i, "path": f"c{cycle}-{stage}/{kind}-{i}", "score": s} for i, s in enumerate(scores)]

        last = models("bi", "last")[:1] if cycle else []  # of the first backbone only
        cross = models("cross") if cycle else []
        return {"cycle": cycle, "bi": models("bi") + last, "cross": cross, "agreement": None}

    history = [entry(0, 70.0, 80.0), entry(1, 75.0, 79.0), entry(2, 72.0, 78.0)]
    config = script.PaperRun("sts", "mutual", "base", "reference", 1).config

    def chosen(backbone: int, gold: bool) -> dict[str, str]:
        found = script.choose(history, backbone, config=config, gold=gold)
        return {form: found[form]["path"] for form in ("bi", "cross")}

    assert chosen(0, True) == {"bi": "c1-bi/model-0", "cross": "c1-cross/model-0"}
    assert chosen(1, True) == {"bi": "c0-bi/model-1", "cross": "c1-cross/model-1"}
    assert chosen(0, False) == {"bi": "c2-bi/last-0", "cross": "c2-cross/model-0"}
    assert chosen(1, False) == {"bi": "c2-bi/model-1", "cross": "c2-cross/model-1"}


def test_the_binary_tasks_run_five_cycles_of_the_reference(script: ModuleType) -> None:
    runs = [script.PaperRun(task, "self-bert", "base", preset, 7)
            for preset in ("reference", "default") for task in ("sts", "qnli")]  # fmt: skip
    assert [run.config.cycles for run in runs] == [3, 5, 1, 1]
    assert {run.config.seed for run in runs} == {7}


# ---- before a run


def test_a_dry_run_lists_the_runs_and_their_sizes(
    script: ModuleType, output: Path, data: str, tiny_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_plain, tmp_path / "roberta-base")
    before = snapshot(output)
    command = ["--output", str(output), "--data", data, "--model-root", str(tmp_path), "--dry-run"]
    assert script.main(command) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "models", "pairs", "cycles", "steps", "disk", "state"]
    bert = "princeton-nlp/unsup-simcse-bert-base-uncased, google-bert/bert-base-uncased"
    roberta = f"princeton-nlp/unsup-simcse-roberta-base, {tmp_path / 'roberta-base'}"
    # 3 cycles of 7 cross steps (208 of 32) and 10 epochs of 1 step; 14 copies of 110 or 125 million float32
    assert [" ".join(line.split()) for line in lines] == [
        f"sts-self-bert-base-reference-seed2021 {bert} 104 3 51 6 GB finished",
        f"sts-self-roberta-base-reference-seed2021 {roberta} 104 3 51 7 GB to do",
        f"sts-mutual-base-reference-seed2021 {bert}, {roberta} 104 3 102 13 GB to do",
    ]
    assert snapshot(output) == before


@pytest.fixture
def complain(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The line on stderr of a command that is refused before it has written anything."""

    def run(*flags: str) -> str:
        assert script.main(["--output", str(tmp_path / "none"), "--only", "self-bert", *flags]) == 2
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is on this machine")
def test_without_a_gpu_nothing_begins(complain: Any, data: str) -> None:
    assert complain("--data", data) == (
        "reproduce_paper: no GPU here, and these runs take days without one; give --allow-cpu to run them all the same"
    )


def test_data_that_are_missing(complain: Any, hub: Path, data: str, tmp_path: Path) -> None:
    assert "no file sts/sts12.test.tsv" in complain("--allow-cpu")
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    (copy / "sts" / "stsb.dev.tsv").unlink()
    assert "no file sts/stsb.dev.tsv" in complain("--allow-cpu", "--data", str(copy))
    assert "no such folder 'nowhere'" in complain("--allow-cpu", "--data", "nowhere")


def test_a_model_that_is_missing(
    complain: Any, data: str, tiny_plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    flags = ("--allow-cpu", "--data", data, "--model-root")
    assert complain(*flags, "nowhere") == "reproduce_paper: --model-root: no such folder: nowhere"
    shutil.copytree(tiny_plain, tmp_path / "models" / "princeton-nlp" / "unsup-simcse-bert-base-uncased")
    found = complain(*flags, str(tmp_path / "models"))
    assert "no model folder google-bert/bert-base-uncased here" in found and "HF_HUB_OFFLINE is set" in found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    found = complain(*flags, str(tmp_path / "models"))
    assert "google-bert/bert-base-uncased" in found and "the Hub gave no answer: ConnectError" in found


def test_weights_in_a_pickle_format_are_explained(complain: Any, data: str, tiny_plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_plain, tmp_path / "unsup-simcse-bert-base-uncased"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    found = complain("--allow-cpu", "--data", data, "--model-root", str(tmp_path))
    assert found.startswith("reproduce_paper: princeton-nlp/unsup-simcse-bert-base-uncased: ")
    assert "no weights in the safetensors format; convert them as docs/paper.md says" in found


# ---- the other runs


@pytest.mark.slow
def test_mutual_distillation_a_binary_task_and_the_second_arm(
    script: ModuleType, hub: Path, data: str, tmp_path: Path
) -> None:
    common = ["--output", str(tmp_path), "--data", data, "--allow-cpu"]
    assert script.main([*common, "--only", "mutual", "--preset", "reference", "default"]) == 0
    assert script.main([*common, "--only", "self-roberta", "--tasks", "mrpc"]) == 0
    mutual = read_result(tmp_path, "sts-mutual-base-reference-seed2021")
    assert list(mutual["figures"]) == ["bert-base", "roberta-base"]
    for i, model in enumerate(mutual["figures"]):
        for form in ("bi", "cross"):
            assert mutual["figures"][model][form]["without gold"]["path"].endswith(f"-{i}")
    assert read_result(tmp_path, "sts-mutual-base-default-seed2021")["config"]["cycles"] == 1
    binary = read_result(tmp_path, "mrpc-self-roberta-base-reference-seed2021")
    assert binary["config"]["cycles"] == 5 and binary["pairs"] == 24
    start = binary["figures"]["roberta-base"]["start"]
    assert start["mrpc"] == start["average"] and 0 <= start["mrpc"] <= 100
    summary = read_tables(tmp_path)[0]
    assert [row[:5] for row in summary if row[0] == "mrpc"] == [
        ["mrpc", "reference", "self-roberta", "roberta-base", form] for form in ("start", "bi", "cross")
    ]
    assert {(row[1], row[5]) for row in summary if row[3:5] == ["roberta-base", "cross"] and row[0] == "sts"} == {
        ("reference", "81.15"),
        ("default", "81.15"),
    }
