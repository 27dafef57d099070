"""The command `bootstrap`, and that `verify` knows its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_pairs

from transenc.cli import build_parser, main
from transenc.cli.options import changed_settings
from transenc.config import BootstrapSettings, DistillConfig
from transenc.durable import read_json


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two files of sentences, 16 different ones together."""
    folder = tmp_path_factory.mktemp("cli")
    sentences = [a for a, _ in make_pairs(16)]
    folder.joinpath("a.txt").write_text("\n".join(sentences[:9]) + "\n\n", encoding="utf-8")
    folder.joinpath("b.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in sentences[8:]), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def made(files: Path, tiny_plain: Path) -> list[object]:
    """The command that has made an encoder."""
    command = [
        "bootstrap", "--model", tiny_plain, "--sentences", files / "a.txt", "--sentences", files / "b.jsonl",
        "--output", files / "enc", "--pooling", "mean", "--objective", "decomposed", "--queue", "4",
        "--batch-size", "8", "--template", "a {} is {mask}", "--precision", "float32", "--device", "cpu",
    ]  # fmt: skip
    assert main([str(argument) for argument in command]) == 0
    return command


def test_the_result_and_its_json(made: list[object], files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *made)
    assert code == 0
    assert err.endswith(f"{files / 'enc'}: complete, nothing to do\n")
    first, second = out.splitlines()
    assert first == f"{files / 'enc'}: decomposed, 16 sentences, 2 steps"
    assert second.startswith("embeddings: mean cosine 0.") and second.count(" -> ") == 3
    code, out, _ = call(capsys, *made, "--json")
    result = json.loads(out)
    assert (result["output"], result["objective"], result["sentences"], result["steps"]) == (
        str(files / "enc"), "decomposed", 16, 2,
    )  # fmt: skip
    assert result["spread"].keys() == {"before", "after"}


def test_flags_reach_the_settings(made: list[object], files: Path) -> None:
    facts = read_json(files / "enc" / "MANIFEST.json")["facts"]
    settings = facts["config"]["bootstrap"]
    assert (settings["objective"], settings["queue"], settings["batch_size"]) == ("decomposed", 4, 8)
    assert settings["template"] == "a {} is {mask}"
    assert (facts["config"]["seed"], facts["config"]["save_steps"], facts["pooling"]) == (2021, 200, "mean")


def test_flags_beat_the_file_of_settings(
    files: Path, tiny_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "settings.yaml"
    given = ["--model", tiny_plain, "--pooling", "mean", "--sentences", files / "a.txt", "--output", tmp_path / "enc",
             "--device", "cpu", "--config", config, "--batch-size", "8"]  # fmt: skip
    for text, words in (("objectiv: mirror", "objectiv"), ("epochs: many", "epochs")):
        config.write_text(text)
        code, _, err = call(capsys, "bootstrap", *given)
        assert code == 2 and f"{config}: " in err and words in err
    config.write_text("objective: mirror\nbatch_size: 4\n")
    assert call(capsys, "bootstrap", *given)[0] == 0
    settings = read_json(tmp_path / "enc" / "MANIFEST.json")["facts"]["config"]["bootstrap"]
    assert (settings["objective"], settings["batch_size"]) == ("mirror", 8)


def test_every_setting_has_a_flag_of_its_type() -> None:
    given = ["--temperature", "0.1", "--mini-batch", "4", "--sample", "--mask-span", "3", "--no-group-by-length"]
    arguments = build_parser().parse_args(
        ["bootstrap", "--model", "m", "--sentences", "s", "--output", "o", *given, "--epochs", "2"]
    )
    changed = changed_settings(BootstrapSettings(), arguments)
    assert changed == BootstrapSettings(temperature=0.1, mini_batch=4, sample=True, mask_span=3, epochs=2.0)


def test_distill_has_the_settings_of_both_stages() -> None:
    given = ["--bootstrap-objective", "mirror", "--bootstrap-temperature", "0.1", "--mine-max-pairs", "10"]
    arguments = build_parser().parse_args(["distill", "--output", "o", *given, "--cycles", "auto", "--bi-epochs", "3"])
    changed = changed_settings(DistillConfig(), arguments)
    assert (changed.bootstrap.objective, changed.bootstrap.temperature, changed.mine.max_pairs) == ("mirror", 0.1, 10)
    assert (changed.cycles, changed.bi.epochs, changed.cross) == ("auto", 3.0, DistillConfig().cross)


def test_verify_checks_the_folder(made: list[object], files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "verify", files / "enc")
    assert code == 0
    assert out == f"{files / 'enc'}: 11 files: all digests fit; 39 tensors: all finite\n"
    copy = files / "copy"
    copy.mkdir()
    for path in (files / "enc").iterdir():
        if path.is_file():
            copy.joinpath(path.name).write_bytes(path.read_bytes())
    code, _, err = call(capsys, "verify", copy)
    assert code == 3
    assert "1_Pooling/config.json: is missing" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seed", "-1"], "seed must be 0 or more, found -1"),
        (["--seed", str(2**32)], "seed must be 4294967295 or less, found 4294967296"),
        (["--save-steps", "0"], "save_steps must be 1 or more, found 0"),
        (["--batch-size", "1"], "command line: batch_size must be 2 or more"),
        (["--objective", "tension", "--mini-batch", "4"], "simcse and mirror have it"),
        (["--template", "{} is"], "must end in the mask token"),
        (["--max-sentences", "1"], "max_sentences: expected at least 2"),
        (["--sentences", "no/such.txt"], "no/such.txt"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], words: str, files: Path, tiny_plain: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["--model", tiny_plain, "--pooling", "mean", "--sentences", files / "a.txt", "--output", tmp_path / "enc"]
    code, out, err = call(capsys, "bootstrap", *given, *more)
    assert (code, out) == (2, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("transenc: ") and words in line
    assert not (tmp_path / "enc").exists()


def test_changed_settings_are_refused(made: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, *made, "--epochs", "2")
    assert code == 3
    assert "config.bootstrap.epochs: 1.0 -> 2.0" in err
    assert err.endswith("repeat the original command, or name another output folder\n")
