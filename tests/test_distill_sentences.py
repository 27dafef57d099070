"""From raw sentences to both encoders in one run: bootstrap, mine and distil are stages like the others."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scenario import CONFIG, Child, die_at, fingerprint, in_child, list_steps, snapshot
from sentence_transformers import SentenceTransformer
from tiny import make_pairs

from transenc import planning
from transenc.cli import main
from transenc.config import Backbone, BootstrapSettings, DistillConfig, MiningSettings
from transenc.distillation import DistillResult, describe_plan, distill
from transenc.encoders import detect_kind, load_bi_encoder
from transenc.errors import InputError, StateError
from transenc.planning import BOOTSTRAP, MINE, START
from transenc.scoring import encode_texts

SENTENCES = list(dict.fromkeys(sentence for pair in make_pairs(12, seed=7) for sentence in pair))
FROM_SENTENCES = dataclasses.replace(
    CONFIG,
    eval_steps=0,
    bootstrap=BootstrapSettings(batch_size=6, learning_rate=5e-4, max_length=24, objective="decomposed"),
    mine=MiningSettings(pairs_per_sentence=1.0, neighbours=3, bins=4),
)


def run(model: Path, output: Path, *, config: DistillConfig = FROM_SENTENCES, **options: Any) -> DistillResult:
    backbone = Backbone(str(model), pooling=None if detect_kind(model) == "bi" else "mean")
    return distill([backbone], sentences=SENTENCES, output_dir=output, config=config, device="cpu", **options)


@pytest.fixture(scope="module")
def finished(tiny_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences") / "run"
    ended = in_child(lambda: str(run(tiny_plain, folder).run))
    assert ended.status == 0, ended.error
    return folder


def test_the_stages_follow_each_other(finished: Path) -> None:
    names = [path.name for path in sorted((finished / "stages").iterdir())]
    assert names == [
        START, BOOTSTRAP, MINE, "c00-50-evaluate", "c01-10-bi-label", "c01-20-cross-train", "c01-30-cross-label",
        "c01-40-bi-train", "c01-50-evaluate",
    ]  # fmt: skip
    history = json.loads((finished / "best.json").read_text())["history"]
    assert history[0]["bi"][0]["path"] == f"stages/{BOOTSTRAP}/model-0"


def test_the_bootstrapped_encoder_finds_and_labels_the_pairs(finished: Path) -> None:
    mined = Dataset.from_parquet(str(finished / "stages" / MINE / "pairs.parquet"), keep_in_memory=True)
    labels = Dataset.from_parquet(str(finished / "stages/c01-10-bi-label/labels.parquet"), keep_in_memory=True)
    assert 2 <= len(mined) <= len(SENTENCES)
    assert {*mined["sentence1"], *mined["sentence2"]} <= {*SENTENCES}
    assert labels["sentence1"][:] == mined["sentence1"][:]
    model = load_bi_encoder(finished / "stages" / BOOTSTRAP / "model-0", device="cpu")
    first, second = (encode_texts(model, list(mined[name])) for name in ("sentence1", "sentence2"))
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(labels["bi-0"][:], cosines, atol=1e-5)


def test_bootstrap_has_changed_the_start_and_the_students_begin_with_it(finished: Path) -> None:
    manifest = json.loads((finished / "stages/c01-40-bi-train/MANIFEST.json").read_text())
    assert set(manifest["facts"]["inputs"]) == {BOOTSTRAP, "c01-30-cross-label"}
    start, bootstrapped = (
        SentenceTransformer(str(finished / "stages" / stage / "model-0"), device="cpu") for stage in (START, BOOTSTRAP)
    )
    assert not np.allclose(start.encode(SENTENCES[:2]), bootstrapped.encode(SENTENCES[:2]), atol=1e-4)


@pytest.mark.parametrize("trained", [False, True], ids=["a plain model", "an encoder"])
def test_the_first_teachers_are_whitened(trained: bool, tiny_plain: Path, tiny_bi: Path, tmp_path: Path) -> None:
    run(tiny_bi if trained else tiny_plain, tmp_path / "run", config=dataclasses.replace(FROM_SENTENCES, whiten=True))
    stages = tmp_path / "run/stages"
    first = START if trained else BOOTSTRAP
    vectors = encode_texts(load_bi_encoder(stages / first / "model-0", device="cpu"), SENTENCES)
    assert np.abs(vectors.mean(axis=0)).max() < 0.01
    assert (stages / BOOTSTRAP).exists() is not trained


def test_an_encoder_is_not_bootstrapped_again(tiny_bi: Path, tmp_path: Path) -> None:
    ended = in_child(lambda: str(run(tiny_bi, tmp_path / "run").run))
    assert ended.status == 0, ended.error
    assert not (tmp_path / "run/stages" / BOOTSTRAP).exists()
    assert (tmp_path / "run/stages" / MINE / "pairs.parquet").is_file()


def test_killed_at_any_step_and_resumed_is_as_uninterrupted(finished: Path, tiny_plain: Path, tmp_path: Path) -> None:
    steps = list_steps(lambda: str(run(tiny_plain, tmp_path / "counted").run))
    assert fingerprint(tmp_path / "counted") == fingerprint(finished)
    for number, count in enumerate(range(0, len(steps), max(1, len(steps) // 8))):
        folder = tmp_path / f"killed-{number}"
        assert in_child(die_at(count, lambda folder=folder: run(tiny_plain, folder))).status == 137
        ended = in_child(lambda folder=folder: str(run(tiny_plain, folder).run))
        assert ended.status == 0, ended.error
        assert fingerprint(folder) == fingerprint(finished)


def test_a_signal_in_the_bootstrap_saves_a_checkpoint(finished: Path, tiny_plain: Path, tmp_path: Path) -> None:
    child = Child(lambda: str(run(tiny_plain, tmp_path / "run").run))
    assert child.wait_for(lambda: any((tmp_path / "run/work" / BOOTSTRAP).glob("model-0/ckpt-*")))
    child.kill(signal.SIGTERM)
    assert child.finish().status in (143, 0)  # 0: it was past the last stage that listens
    ended = in_child(lambda: str(run(tiny_plain, tmp_path / "run").run))
    assert ended.status == 0, ended.error
    assert fingerprint(tmp_path / "run") == fingerprint(finished)


def test_a_finished_run_is_not_touched_and_other_sentences_are_refused(finished: Path, tiny_plain: Path) -> None:
    before = snapshot(finished)
    assert run(tiny_plain, finished).best["cross"]["cycle"] == 1
    with pytest.raises(StateError, match=r"pairs.sentences: \d+ -> \d+"):
        distill(
            [Backbone(str(tiny_plain), pooling="mean")], sentences=SENTENCES[1:], output_dir=finished,
            config=FROM_SENTENCES, device="cpu",
        )  # fmt: skip
    changed = dataclasses.replace(FROM_SENTENCES, mine=MiningSettings(neighbours=4))
    with pytest.raises(StateError, match=r"config.mine.neighbours: 3 -> 4"):
        run(tiny_plain, finished, config=changed)
    assert snapshot(finished) == before


def test_a_plain_model_and_an_encoder_teach_each_other(
    tiny_plain: Path, tiny_bi_b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "corpus.txt"
    source.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    models = ["--model", str(tiny_bi_b), "--model", str(tiny_plain), "--pooling", "mean"]
    flags = ["--sentences", str(source), "--device", "cpu", "--json", "--output", str(tmp_path / "run")]
    assert main(["distill", *models, *flags]) == 0
    captured = capsys.readouterr()
    assert "says itself how it pools" in captured.err and "not bootstrapped" in captured.err
    history = json.loads(captured.out)["history"]
    assert [model["path"] for model in history[0]["bi"]] == [f"stages/{BOOTSTRAP}/model-{i}" for i in (0, 1)]
    start, kept = (
        SentenceTransformer(str(tmp_path / "run/stages" / stage / "model-0"), device="cpu")
        for stage in (START, BOOTSTRAP)
    )
    assert start[1].pooling_mode == kept[1].pooling_mode == "cls"
    np.testing.assert_array_equal(start.encode(SENTENCES[:2]), kept.encode(SENTENCES[:2]))


def test_a_fork_takes_over_what_its_settings_made(finished: Path, tiny_plain: Path, tmp_path: Path) -> None:
    changed = dataclasses.replace(FROM_SENTENCES, mine=MiningSettings(neighbours=4, max_pairs=9))
    ended = in_child(lambda: str(run(tiny_plain, tmp_path / "run", config=changed, fork=finished).run))
    assert ended.status == 0, ended.error
    old, new = fingerprint(finished), fingerprint(tmp_path / "run")
    same = {name.split("/")[1] for name in old if old[name] == new.get(name)}
    assert same == {START, BOOTSTRAP, "c00-50-evaluate"}
    pairs = Dataset.from_parquet(str(tmp_path / "run/stages" / MINE / "pairs.parquet"), keep_in_memory=True)
    assert len(pairs) <= 9


def test_settings_that_pairs_do_not_need_are_not_part_of_their_runs(tiny_bi: Path, tmp_path: Path) -> None:
    pairs = Dataset.from_dict({"sentence1": SENTENCES[:4], "sentence2": SENTENCES[4:8]})
    options = {"output_dir": tmp_path / "run", "device": "cpu"}
    ended = in_child(lambda: distill([Backbone(str(tiny_bi))], pairs, config=CONFIG, **options) and None)
    assert ended.status == 0, ended.error
    assert not {"bootstrap", "mine"} & {*json.loads((tmp_path / "run/run.json").read_text())["config"]}


def test_pairs_or_sentences_but_not_both(tiny_bi: Path, tmp_path: Path) -> None:
    pairs = Dataset.from_dict({"sentence1": SENTENCES[:4], "sentence2": SENTENCES[4:8]})
    with pytest.raises(InputError, match="either pairs or sentences, got neither"):
        distill([Backbone(str(tiny_bi))], output_dir=tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="either pairs or sentences, got both"):
        distill([Backbone(str(tiny_bi))], pairs, sentences=SENTENCES, output_dir=tmp_path / "run", device="cpu")
    options: dict[str, Any] = {"output_dir": tmp_path / "run", "device": "cpu"}
    with pytest.raises(InputError, match="at least 3 different sentences, got 2"):
        distill([Backbone(str(tiny_bi))], sentences=[*SENTENCES[:2], SENTENCES[0]], **options)
    with pytest.raises(TypeError, match="a sequence of texts, found one text"):
        distill([Backbone(str(tiny_bi))], sentences="corpus.txt", **options)
    with pytest.raises(InputError, match="are symmetric"):
        distill([Backbone(str(tiny_bi))], sentences=SENTENCES, symmetric=False, **options)
    assert not (tmp_path / "run").exists()


def test_the_plan_has_the_stages_in_front(tiny_plain: Path, tiny_bi: Path) -> None:
    plain = [Backbone(str(tiny_plain), pooling="mean")]
    plan = {row["stage"]: row for row in describe_plan(plain, sentences=SENTENCES, config=FROM_SENTENCES, device="cpu")}
    assert list(plan)[:4] == [START, BOOTSTRAP, MINE, "c00-50-evaluate"]
    assert (plan[BOOTSTRAP]["pairs"], plan[BOOTSTRAP]["steps"]) == (24, 4)
    assert plan["c01-10-bi-label"]["pairs"] == 24
    encoder = describe_plan([Backbone(str(tiny_bi))], sentences=SENTENCES, config=FROM_SENTENCES, device="cpu")
    assert BOOTSTRAP not in {row["stage"] for row in encoder}


def test_the_plan_measures_every_backbone(tiny_plain: Path, tiny_bi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = iter([3.0, 5.0])
    monkeypatch.setattr(planning, "_measure", lambda *_: (np.zeros(1, np.float32), next(minutes)))
    backbones = [Backbone(str(tiny_plain), pooling="mean"), Backbone(str(tiny_bi))]
    plan = {row["stage"]: row for row in describe_plan(backbones, sentences=SENTENCES, config=FROM_SENTENCES)}
    assert plan["c01-10-bi-label"]["minutes"] == plan["c01-10-bi-label"]["pairs"] / 2 * (3 + 5)


def test_the_plan_trains_side_by_side(tiny_bi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_load", lambda *_: None)
    monkeypatch.setattr(planning, "_measure", lambda *_: (np.zeros(1, np.float32), 1.0))
    minutes = {}
    for devices in (["cuda:0"], ["cuda:0", "cuda:0"], ["cuda:0", "cuda:1"]):
        monkeypatch.setattr(planning, "resolve_devices", lambda _, devices=devices: devices)
        plan = describe_plan([Backbone(str(tiny_bi))] * 3, sentences=SENTENCES, config=FROM_SENTENCES)
        minutes[",".join(devices)] = {row["stage"]: row["minutes"] for row in plan}
    one, same, two = minutes.values()
    assert one == same
    assert two["c01-20-cross-train"] == pytest.approx(one["c01-20-cross-train"] * 2 / 3)  # three in two turns
    assert two["c01-40-bi-train"] == pytest.approx(one["c01-40-bi-train"] * 2 / 3)
    assert two["c01-10-bi-label"] == one["c01-10-bi-label"] > 0
    assert two["c01-30-cross-label"] == one["c01-30-cross-label"] > 0


def test_the_command_line(tiny_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "corpus.txt"
    source.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    common = ["distill", "--model", str(tiny_plain), "--pooling", "mean", "--sentences", str(source), "--device", "cpu"]
    common += ["--output", str(tmp_path / "run"), "--json", "--bootstrap-batch-size", "6", "--mine-neighbours", "3"]
    assert main([*common, "--dry-run"]) == 0
    plan = [row["stage"] for row in json.loads(capsys.readouterr().out)["plan"]]
    assert plan[1:3] == [BOOTSTRAP, MINE]
    for flags, hint in ((["--max-pairs", "4"], "--mine-max-pairs"), (["--snli"], "another --sentences"),
                        (["--asymmetric"], "mined from documents")):  # fmt: skip
        assert main([*common, *flags]) == 2
        assert hint in capsys.readouterr().err
    assert main([*common, "--max-sentences", "10"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["cross"]["cycle"] == 1
    assert json.loads((tmp_path / "run/run.json").read_text())["pairs"]["sentences"] == 10


def test_the_four_commands_on_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(__file__).parents[1] / "data"
    text = ["--sentences", str(data / "sample" / "sentences.txt"), "--max-sentences", "60", "--device", "cpu", "--json"]
    plain = ["--model", str(data / "models" / "bpe"), "--pooling", "mean"]
    encoder, pairs, mined, whole = (str(tmp_path / name) for name in ("enc", "pairs.parquet", "mine", "all"))
    assert main(["bootstrap", *plain, *text, "--output", encoder, "--batch-size", "16"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert main(["mine", "--model", encoder, *text, "--output", pairs]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 60 <= found["pairs"] <= 120
    assert sum(row["pairs"] > 0 for row in found["bins"]) >= 8
    training = ["--device", "cpu", "--json", "--precision", "float32"]
    assert main(["distill", "--model", encoder, "--pairs", pairs, "--output", mined, *training]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["cross"]["cycle"] == 1
    assert main(["distill", *plain, *text, "--output", whole, "--bootstrap-batch-size", "16"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["cross"]["cycle"] == 1
    assert (Path(whole) / "stages" / MINE / "pairs.parquet").is_file()
