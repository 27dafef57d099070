"""Training of tiny models: what it sees, where it stops, and that a resume is exact."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from scenario import make_dataset
from transformers import TrainerControl, TrainerState, set_seed

from transenc import durable
from transenc.checkpoints import (
    LOSS_STATE,
    DistinctEmbeddings,
    DistinctScores,
    best_checkpoint,
    newest_checkpoint,
    saved_step,
)
from transenc.config import BiTrainingSettings, BootstrapSettings, CrossTrainingSettings, TrainingSettings
from transenc.encoders import Encoder, load_bi_encoder, load_cross_encoder
from transenc.errors import Interrupted, StateError
from transenc.metrics import correlation
from transenc.scoring import score_pairs
from transenc.signals import StopRequest
from transenc.targets import both_orders
from transenc.training import (
    TrainingContext,
    group_by_length,
    train_bi_encoder,
    train_contrastive,
    train_cross_encoder,
    train_steps,
)

BI = BiTrainingSettings(epochs=1, batch_size=8, learning_rate=5e-4, max_length=24)
CROSS = CrossTrainingSettings(epochs=1, batch_size=16, learning_rate=5e-4, max_length=40)
RAW = BootstrapSettings(epochs=2, batch_size=8, learning_rate=5e-4, max_length=24)
PAIRS = make_dataset(32, gold=True)


def digest(model: Encoder) -> str:
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


@dataclasses.dataclass
class Training:
    """One training of a tiny model, as often as wanted from the same start."""

    start: Path
    work: Path
    settings: TrainingSettings = BI
    context: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, pairs: Dataset = PAIRS, **context: Any) -> tuple[Encoder, list[dict[str, Any]]]:
        set_seed(3)
        place = TrainingContext(work=self.work, seed=3, **{"save_steps": 2, **self.context, **context})
        model: Encoder
        if isinstance(self.settings, BootstrapSettings):
            model = load_bi_encoder(self.start, device="cpu")
            return model, train_contrastive(model, pairs["sentence1"][:], settings=self.settings, context=place)
        if isinstance(self.settings, BiTrainingSettings):
            model = load_bi_encoder(self.start, device="cpu")
            return model, train_bi_encoder(model, pairs, settings=self.settings, context=place)
        model = load_cross_encoder(self.start, device="cpu", new_head=True)
        return model, train_cross_encoder(model, pairs, settings=self.settings, context=place)

    def elsewhere(self, name: str) -> Training:
        return dataclasses.replace(self, work=self.work.with_name(name))

    def interrupt(self, monkeypatch: pytest.MonkeyPatch, *, at: str, **context: Any) -> None:
        """Let a signal seem to come at the first touch of the disk whose name has `at` in it."""
        stop = StopRequest()

        def hook(step: str) -> None:
            if at in step:
                stop.signum = 15

        with monkeypatch.context() as patch, pytest.raises(Interrupted) as interrupted:
            patch.setattr(durable, "on_step", hook)
            self.run(stop=stop, **context)
        assert interrupted.value.signum == 15


@pytest.fixture
def training(tiny_bi: Path, tmp_path: Path) -> Training:
    return Training(tiny_bi, tmp_path / "work")


# ---- what is trained on


def test_both_orders() -> None:
    pairs = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [0.1, 0.2]})
    assert both_orders(pairs).to_dict() == {
        "sentence1": ["a", "b", "c", "d"],
        "sentence2": ["c", "d", "a", "b"],
        "score": [0.1, 0.2, 0.1, 0.2],
    }


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(32, 1, 4), (33, 1, 5), (32, 10, 40), (32, 0.5, 2), (33, 0.5, 3), (1, 1, 1)]
)
def test_train_steps(rows: int, epochs: float, steps: int) -> None:
    assert train_steps(rows, dataclasses.replace(BI, epochs=epochs)) == steps


@pytest.mark.parametrize(("symmetric", "rows"), [(True, 64), (False, 32)])
def test_a_cross_encoder_sees_both_orders_of_symmetric_pairs(symmetric: bool, rows: int, training: Training) -> None:
    training.settings = CROSS
    _, log = training.run(symmetric=symmetric)
    assert [row["step"] for row in log if "loss" in row] == list(range(1, rows // 16 + 1))


def test_group_by_length_makes_batches_of_like_lengths() -> None:
    lengths = list(range(1, 401))
    random.Random(0).shuffle(lengths)
    pairs = Dataset.from_dict({"sentence1": ["x" * n for n in lengths], "sentence2": ["y"] * 400, "score": [0.0] * 400})
    sampler = group_by_length(pairs, 8, False, seed=1)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(400))
    assert {len(batch) for batch in batches} == {8}
    spans = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    # sorted within 96 of 400 rows, 8 neighbours lie 400 * 7 / 97 = 29 apart; 8 random rows 400 * 7 / 9 = 311
    assert sum(spans) / len(spans) < 50
    assert list(group_by_length(pairs, 8, False, seed=2)) != batches


def test_the_order_of_an_epoch_does_not_depend_on_the_epochs_before_it() -> None:
    first, second = (group_by_length(PAIRS, 4, False, seed=1) for _ in range(2))
    epochs = []
    for epoch in range(3):
        first.sampler.set_epoch(epoch)
        epochs.append(list(first))
    assert epochs[0] != epochs[1] != epochs[2]
    second.sampler.set_epoch(2)
    assert list(second) == epochs[2]


def test_a_bi_encoder_learns_its_labels(training: Training) -> None:
    training.settings = dataclasses.replace(BI, epochs=6, loss="mse", learning_rate=2e-3)
    before = load_bi_encoder(training.start, device="cpu")
    model, log = training.run()
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 24
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    was, now = (correlation(score_pairs(each, PAIRS), PAIRS["score"][:])["spearman"] for each in (before, model))
    assert now > was + 0.05
    assert log[0]["learning_rate"] == pytest.approx(2e-3)  # no warm-up
    assert log[12]["learning_rate"] == pytest.approx(1e-3)  # linear to 0


def test_the_short_window_is_for_training_only(training: Training) -> None:
    own = load_bi_encoder(training.start, device="cpu").max_seq_length
    assert own == 64
    model, _ = training.run()
    assert model.max_seq_length == own
    training.settings = dataclasses.replace(BI, max_length=500)  # more than the model has positions for
    long = Dataset.from_dict({"sentence1": ["cat " * 90] * 8, "sentence2": ["dog"] * 8, "score": [0.5] * 8})
    model, _ = training.elsewhere("long").run(long)
    assert model.max_seq_length == own


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_label_that_is_not_finite_is_refused(bad: float, training: Training) -> None:
    pairs = PAIRS.remove_columns("score").add_column("score", [0.5] * 31 + [bad])
    with pytest.raises(StateError, match="a label is not finite"):
        training.run(pairs)


# ---- resuming


@pytest.mark.parametrize(
    ("settings", "at"),
    [
        (dataclasses.replace(BI, epochs=2), "checkpoint-4"),  # after step 5: in the second epoch
        (dataclasses.replace(BI, epochs=1.5, group_by_length=True), "checkpoint-2"),
        (dataclasses.replace(BI, epochs=0.5), "checkpoint-2"),  # at the end, in the middle of an epoch
        (dataclasses.replace(CROSS, epochs=2, group_by_length=True, warmup=0.1), "checkpoint-4"),
        (RAW, "checkpoint-4"),
        (dataclasses.replace(RAW, mini_batch=3), "checkpoint-4"),
        (dataclasses.replace(RAW, objective="mirror", group_by_length=True), "checkpoint-4"),
        (dataclasses.replace(RAW, objective="decomposed", queue=0, sample=True), "checkpoint-4"),
        (dataclasses.replace(RAW, objective="decomposed", queue=12), "checkpoint-4"),
        (dataclasses.replace(RAW, objective="tsdae"), "checkpoint-4"),
        (dataclasses.replace(RAW, objective="tension"), "checkpoint-4"),
    ],
    ids=["epochs", "half an epoch more", "half an epoch", "cross-encoder", "simcse", "cached", "mirror", "decomposed",
         "queue", "tsdae", "tension"],
)  # fmt: skip
def test_interrupted_and_resumed_equals_uninterrupted(
    settings: TrainingSettings, at: str, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.settings = settings
    model, log = training.elsewhere("whole").run()
    training.interrupt(monkeypatch, at=at)
    resumed, resumed_log = training.run()
    assert digest(resumed) == digest(model)
    keys = ("step", "loss", "grad_norm", "learning_rate")
    assert [[row[key] for key in keys] for row in resumed_log if "loss" in row] == [
        [row[key] for key in keys] for row in log if "loss" in row
    ]


@pytest.mark.parametrize(
    ("objective", "learned"),
    [
        ("simcse", set()),
        ("decomposed", {"log_s"}),
        ("tension", {"logit_scale", "model1.0.model.embeddings.word_embeddings.weight"}),
        ("tsdae", {"decoder.bert.encoder.layer.0.crossattention.self.query.weight", "decoder.cls.predictions.bias"}),
    ],
)
def test_what_a_loss_learns_is_trained_and_in_its_checkpoints(
    objective: str, learned: set[str], training: Training
) -> None:
    training.settings = dataclasses.replace(RAW, objective=objective, queue=0, epochs=1, warmup=0.0)
    training.run()
    first, last = (training.work / f"ckpt-{step:08d}" / LOSS_STATE for step in (2, 4))
    assert last.is_file() == bool(learned)
    if learned:
        before, after = load_file(str(first)), load_file(str(last))
        assert learned <= before.keys() == after.keys()
        assert [name for name in learned if torch.equal(before[name], after[name])] == []
        # nothing twice: not the model's weights, nor the decoder's that are tied to them
        assert {name for name in after if name.startswith(("model.", "model2.", "encoder."))} == set()
        assert "decoder.bert.embeddings.word_embeddings.weight" not in after


def test_a_checkpoint_of_another_loss_is_refused(training: Training) -> None:
    training.settings = dataclasses.replace(RAW, objective="decomposed", queue=0, epochs=1)
    training.run()
    training.settings = RAW
    with pytest.raises(StateError, match=r"ckpt-00000004/loss.safetensors: expected \[\], found \['log_s'\]"):
        training.run()


def test_a_signal_before_the_first_step_still_leaves_a_checkpoint(training: Training) -> None:
    stop = StopRequest()
    stop.signum = 2
    with pytest.raises(Interrupted) as interrupted:
        training.run(stop=stop)
    assert interrupted.value.exit_code == 130
    newest = newest_checkpoint(training.work)
    assert newest is not None
    assert saved_step(newest) == 1
    assert digest(training.run()[0]) == digest(training.elsewhere("whole").run()[0])


def test_a_training_at_its_end_takes_no_step_more(training: Training) -> None:
    training.settings = dataclasses.replace(BI, epochs=0.5)
    model, log = training.run()
    again, log_again = training.run()
    assert digest(again) == digest(model)
    assert [row["step"] for row in log if "loss" in row] == [row["step"] for row in log_again] == [1, 2]


def test_the_newest_two_checkpoints_are_kept_and_leftovers_of_a_kill_not_read(training: Training) -> None:
    leftover = training.work / "trainer/checkpoint-2"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors.index.json").write_text("half")
    (training.work / ".tmp-12").mkdir()
    training.run(save_steps=1)
    assert sorted(path.name for path in training.work.iterdir()) == ["ckpt-00000003", "ckpt-00000004", "trainer"]
    assert list((training.work / "trainer").iterdir()) == []
    assert not list(training.work.glob("ckpt-*/*index.json"))


@pytest.fixture(scope="module")
def stopped(tiny_bi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scratch folder of a training stopped after step 3, with checkpoints 2 and 3."""
    work = tmp_path_factory.mktemp("stopped") / "work"
    with pytest.MonkeyPatch.context() as patch:
        Training(tiny_bi, work).interrupt(patch, at="checkpoint-2")
    return work


def remove(*names: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        for name in names:
            (checkpoint / name).unlink()

    return damage


def keep(*names: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        for path in checkpoint.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[5000] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "empty": keep(),
    "only config": keep("config.json"),
    "only a manifest": keep("MANIFEST.json"),
    "no optimizer": remove("optimizer.pt"),
    "no trainer state": remove("trainer_state.json"),
    "no manifest": remove("MANIFEST.json"),
    "truncated": truncate,
    "a bit flipped": flip_a_bit,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_stepped_back_from(
    kind: str, stopped: Path, training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stopped, training.work)
    DAMAGE[kind](training.work / "ckpt-00000003")
    model, _ = training.run()
    assert digest(model) == digest(training.elsewhere("whole").run()[0])
    ours = [record for record in caplog.records if record.name.startswith("transenc")]
    assert [record.levelname for record in ours] == ["WARNING"]
    assert ours[0].getMessage().startswith("stepping back to an earlier checkpoint: ")
    assert str(training.work / "ckpt-00000003") in ours[0].getMessage()


def test_without_an_intact_checkpoint_the_training_starts_again(
    stopped: Path, training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stopped, training.work)
    for path in training.work.glob("ckpt-*"):
        flip_a_bit(path)
    model, log = training.run()
    assert digest(model) == digest(training.elsewhere("whole").run()[0])
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    expected = f"no checkpoint in {training.work} is intact: this training starts again from its inputs"
    assert caplog.messages[-1] == expected
    assert len(caplog.messages) == 3


# ---- numbers that are not finite


def test_a_loss_that_is_not_finite_stops_within_one_step(training: Training) -> None:
    training.settings = dataclasses.replace(BI, learning_rate=1e30, epochs=3)
    with pytest.raises(StateError, match=r"^loss is nan at step 2: training stopped; last good checkpoint: none yet;"):
        training.run(save_steps=3)
    with pytest.raises(StateError) as error:
        training.run(save_steps=1)  # then the weights are looked at after each step, which comes before the loss
    kept = training.work / "ckpt-00000001"
    assert f"holds NaN or inf after step 2: training stopped; last good checkpoint: {kept};" in str(error.value)
    assert newest_checkpoint(training.work) == kept


def test_weights_that_are_not_finite_are_never_saved(training: Training) -> None:
    training.settings = dataclasses.replace(BI, learning_rate=1e39, epochs=0.25)  # one step, past the largest float32
    with pytest.raises(
        StateError, match=r"weight \S+ holds NaN or inf after step 1: .* checkpoint: none yet; start anew"
    ):
        training.run()
    assert list(training.work.glob("ckpt-*")) == list(training.work.glob("trainer/*")) == []


@pytest.mark.parametrize("settings", [RAW, dataclasses.replace(BI, epochs=2)], ids=["raw", "pairs"])
def test_a_collapse_stops_the_training(settings: TrainingSettings, training: Training) -> None:
    training.settings = dataclasses.replace(settings, learning_rate=1.0, warmup=0.0)
    with pytest.raises(StateError, match=r"^all embeddings are alike after step 2 \(mean cosine (1|0\.9999).* diff"):
        training.run()
    assert newest_checkpoint(training.work) is None


def test_a_look_at_the_embeddings_changes_nothing(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.settings = RAW  # with dropout, so that one draw more or evaluation mode would show
    model, _ = training.run()
    monkeypatch.setattr(DistinctEmbeddings, "on_step_end", lambda *_, **__: None)
    assert digest(training.elsewhere("without").run()[0]) == digest(model)


def test_embeddings_are_judged_once_training_has_begun(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu").train()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # all vectors are 0
    check = DistinctEmbeddings(["a cat", "a dog"], model)
    control = TrainerControl(should_save=True)
    check.on_step_end(None, TrainerState(global_step=9, max_steps=100), control, model=model)
    with pytest.raises(StateError, match="alike after step 10"):
        check.on_step_end(None, TrainerState(global_step=10, max_steps=100), control, model=model)
    assert model.training
    alone = DistinctEmbeddings(["a cat"], model)
    alone.on_step_end(None, TrainerState(global_step=10, max_steps=10), control, model=model)


@pytest.mark.parametrize(
    ("labels", "rate", "reason"),
    [
        ([1.0] * 32, 5e-3, r"uniformity -0\.0\d+ of 64 different sentences, -1\.\d+ at the start"),
        (None, 0.1, r"effective rank [23]\.\d+ of 64 different sentences, 1\d\.\d at the start"),
    ],
    ids=["labels all 1", "a huge learning rate"],
)
def test_a_student_that_loses_its_spread_stops(
    labels: list[float] | None, rate: float, reason: str, training: Training
) -> None:
    training.settings = dataclasses.replace(BI, loss="mse", learning_rate=rate, epochs=2)
    pairs = PAIRS if labels is None else PAIRS.remove_columns("score").add_column("score", labels)
    with pytest.raises(
        StateError, match=rf"^the embeddings have lost their spread after step \d \({reason}\)"
    ) as error:
        training.run(pairs)
    assert error.value.exit_code == 3


def test_the_spread_is_compared_with_the_start_also_after_a_resume(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    watch = DistinctEmbeddings.__init__

    def spy(self: DistinctEmbeddings, *arguments: Any) -> None:
        watch(self, *arguments)
        found.append(self.start["uniformity"])

    monkeypatch.setattr(DistinctEmbeddings, "__init__", spy)
    training.interrupt(monkeypatch, at="ckpt-00000002")
    training.run()
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_cross_encoder_that_scores_all_pairs_alike_stops(tiny_bi: Path, tmp_path: Path) -> None:
    training = Training(tiny_bi, tmp_path / "work", dataclasses.replace(CROSS, learning_rate=1.0))
    with pytest.raises(
        StateError, match=r"^all scores are alike after step 2 \(standard deviation \S+ over 32 .* 0\.27"
    ):
        training.run()
    assert newest_checkpoint(training.work) is None


def test_a_cross_encoder_that_hardly_separates_the_pairs_warns(
    tiny_bi: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Training(tiny_bi, tmp_path / "healthy", CROSS).run()
    assert "hardly" not in caplog.text
    Training(tiny_bi, tmp_path / "work", dataclasses.replace(CROSS, learning_rate=0.1)).run()
    assert re.search(
        r"the cross-encoder hardly separates .* deviation 0\.00\d+ against 0\.27 of its labels", caplog.text
    )


def test_scores_are_not_judged_where_there_is_nothing_to_tell_apart(tiny_cross: Path) -> None:
    model = load_cross_encoder(tiny_cross, device="cpu").train()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # all scores are 0.5
    pairs, control = [("a cat", "a dog"), ("a cat", "a tree")], TrainerControl(should_save=True)
    late, early = (TrainerState(global_step=step, max_steps=100) for step in (10, 9))
    for labels, state in (([0.5, 0.5], late), ([0.1, 0.9], early)):
        DistinctScores(pairs, labels).on_step_end(None, state, control, model=model)
    with pytest.raises(StateError, match="all scores are alike after step 10"):
        DistinctScores(pairs, [0.1, 0.9]).on_step_end(None, late, control, model=model)
    assert model.training


# ---- the best checkpoint on a dev set

DEV = make_dataset(12, seed=1, gold=True)


def test_the_best_checkpoint_is_chosen_and_the_last_one_kept(training: Training) -> None:
    training.settings = dataclasses.replace(BI, epochs=3, learning_rate=2e-3, loss="mse")
    labels = PAIRS.remove_columns("score").add_column("score", [1 - score for score in PAIRS["score"]])  # it gets worse
    model, log = training.run(labels, dev=DEV, eval_steps=2)
    scores = {row["step"]: row["eval_dev_spearman"] for row in log if "eval_dev_spearman" in row}
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    best = best_checkpoint(training.work)
    assert best == training.work / f"best-{max(scores, key=lambda step: scores[step]):08d}"
    assert durable.verify_directory(best)["dev"] == max(scores.values())
    assert correlation(score_pairs(model, DEV), DEV["score"][:])["spearman"] == pytest.approx(max(scores.values()))
    last = load_bi_encoder(training.work / "last", device="cpu")
    assert "widget:" not in (card := (training.work / "last" / "README.md").read_text("utf-8"))
    assert not any(text in card for text in PAIRS["sentence1"])
    assert correlation(score_pairs(last, DEV), DEV["score"][:])["spearman"] == pytest.approx(scores[12])
    assert max(scores.values()) > scores[12] + 0.01


def test_the_choice_is_the_same_after_an_interruption(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.settings = dataclasses.replace(CROSS, epochs=1.5)
    training.context = {"dev": DEV, "eval_steps": 1}
    model, _ = training.elsewhere("whole").run()
    training.interrupt(monkeypatch, at="checkpoint-2")
    assert digest(training.run()[0]) == digest(model)
    whole = best_checkpoint(training.work.with_name("whole"))
    best = best_checkpoint(training.work)
    assert whole is not None
    assert best is not None
    assert best.name == whole.name


def test_a_damaged_best_checkpoint_is_not_taken(training: Training, caplog: pytest.LogCaptureFixture) -> None:
    training.context = {"dev": DEV, "eval_steps": 2}
    training.run()
    best = best_checkpoint(training.work)
    assert best is not None
    (best / "model.safetensors").write_bytes(b"")
    assert best_checkpoint(training.work) is None
    assert "model.safetensors: expected" in caplog.messages[-1]


def test_an_undefined_dev_score_is_never_the_best(training: Training) -> None:
    constant = DEV.remove_columns("score").add_column("score", [0.5] * len(DEV))
    model, log = training.run(dev=constant, eval_steps=2)
    assert not any("eval_dev_spearman" in row for row in log)
    assert best_checkpoint(training.work) is None
    assert not (training.work / "last").exists()
    last = training.elsewhere("again").run(dev=constant, eval_steps=2)[0]
    assert digest(model) == digest(last)
