"""Whitening: mean and covariance as they are told, an ordinary model afterwards, and what cannot be whitened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from tiny import make_pairs

from transenc.averaging import average_weights
from transenc.bootstrapping import bootstrap
from transenc.cli import main
from transenc.config import BiTrainingSettings, BootstrapSettings
from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import InputError, StateError
from transenc.labeling import make_labels
from transenc.pairs import read_pairs
from transenc.run import verify_published
from transenc.scoring import encode_texts, score_pairs
from transenc.training import TrainingContext, train_bi_encoder
from transenc.whitening import fit_whitening, remove_whitening, whiten_encoder

SENTENCES = [text for pair in make_pairs(300) for text in pair]


# ---- the numbers


def test_directions_get_the_mean_0_and_the_identity_as_covariance() -> None:
    rng = np.random.default_rng(0)
    # all vectors point the same way, and one direction has most of what they differ in
    vectors = rng.normal(size=(5000, 6)) * [0.1, 3.0, 0.3, 0.3, 0.2, 0.1] + [10.0, 0, 0, 0, 0, 0]
    mean, matrix = fit_whitening(vectors.astype(np.float32))
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    white = (directions - mean) @ matrix
    assert white.mean(axis=0) == pytest.approx(np.zeros(6), abs=1e-3)
    assert np.cov(white[:, :5].T) == pytest.approx(np.eye(5), abs=0.05)


def test_the_directions_that_vary_most_come_first() -> None:
    vectors = np.random.default_rng(0).normal(size=(5000, 4)) * [1.0, 0.1, 3.0, 0.2] + [0, 5.0, 0, 0]
    _, matrix = fit_whitening(vectors, 2)
    assert matrix.shape == (4, 2)
    assert np.abs(matrix).argmax(axis=0).tolist() == [2, 0]
    assert matrix == pytest.approx(fit_whitening(vectors, 4)[1][:, :2])


def test_with_all_dimensions_the_matrix_is_symmetric_and_does_not_jump() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 8)) + 2
    mean, matrix = fit_whitening(vectors)
    assert matrix == pytest.approx(matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0
    # a little change of the vectors is a little change of the matrix: two of them can be averaged
    near = fit_whitening(vectors + 0.01 * rng.normal(size=vectors.shape))[1]
    assert np.abs(near - matrix).max() < 0.02 * np.abs(matrix).max()
    # the cosines are those along the principal axes
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) - mean
    axes = fit_whitening(vectors, 8)[1]
    assert (directions @ matrix) @ (directions @ matrix)[0] == pytest.approx(
        (directions @ axes) @ (directions @ axes)[0]
    )


def test_fewer_vectors_than_dimensions_are_enough() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 32)) + 3
    _, matrix = fit_whitening(vectors)
    assert np.isfinite(matrix).all() and matrix.shape == (32, 32)
    assert np.linalg.norm(matrix, axis=0).max() < 100 * np.linalg.norm(matrix, axis=0).min()  # shrunk


@pytest.mark.parametrize(
    "vectors", [np.ones((9, 3)), np.zeros((9, 3)), np.outer(range(1, 9), [1.0, 2.0]), np.eye(3)[:1]]
)
def test_what_points_one_way_cannot_be_whitened(vectors: np.ndarray) -> None:
    with pytest.raises(StateError, match="the same embedding"):
        fit_whitening(vectors)


@pytest.mark.parametrize("dimensions", [0, 4, -1])
def test_dimensions_are_at_most_those_of_the_embeddings(dimensions: int) -> None:
    with pytest.raises(InputError, match=f"dimensions must be 1 to 3, .* found {dimensions}"):
        fit_whitening(np.eye(3), dimensions)


# ---- the model


def test_a_whitened_model_is_an_ordinary_one(tiny_bi: Path, tmp_path: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    before = encode_texts(model, SENTENCES)
    whiten_encoder(model, SENTENCES)
    mean, matrix = fit_whitening(np.unique(before, axis=0))
    directions = before / np.linalg.norm(before, axis=1, keepdims=True)
    found = encode_texts(model, SENTENCES)
    assert found == pytest.approx((directions - mean) @ matrix, abs=0.02)
    assert not model.training
    model.save_pretrained(str(tmp_path / "white"))
    plain = SentenceTransformer(str(tmp_path / "white"), device="cpu")
    assert plain.encode(SENTENCES[:9]) == pytest.approx(found[:9], abs=1e-5)
    again = load_bi_encoder(tmp_path / "white", device="cpu")
    assert encode_texts(again, SENTENCES[:9]) == pytest.approx(found[:9], abs=1e-5)
    assert load_bi_encoder(tmp_path / "white", device="cpu", dtype="bfloat16")[-1].linear.weight.dtype == torch.bfloat16
    load_cross_encoder(tmp_path / "white", device="cpu", new_head=True)


def test_cosines_are_spread(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    strangers = list(zip(SENTENCES[:200:2], SENTENCES[201:401:2], strict=True))
    before = score_pairs(model, strangers)
    whiten_encoder(model, SENTENCES)
    assert abs(score_pairs(model, strangers).mean()) < 0.1 < before.mean()


def test_fewer_dimensions(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    whiten_encoder(model, SENTENCES, dimensions=7)
    assert encode_texts(model, ["a cat"]).shape == (1, 7)
    assert model.get_embedding_dimension() == 7


def test_the_layer_is_taken_off_and_replaced(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    before = [type(module).__name__ for module in model]
    assert not remove_whitening(model)
    expected = score_pairs(model, make_pairs(9))
    whiten_encoder(model, SENTENCES[:40])
    whiten_encoder(model, SENTENCES, dimensions=5)
    whiten_encoder(model, SENTENCES)
    once = load_bi_encoder(tiny_bi, device="cpu")
    whiten_encoder(once, SENTENCES)
    assert encode_texts(model, SENTENCES[:9]) == pytest.approx(encode_texts(once, SENTENCES[:9]), abs=1e-5)
    assert remove_whitening(model)
    assert [type(module).__name__ for module in model][: len(before)] == before
    assert score_pairs(model, make_pairs(9)) == pytest.approx(expected, abs=1e-6)
    assert not remove_whitening(model)


def test_a_dense_layer_of_another_kind_stays(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    model.append(Dense(32, 16))  # with its tanh
    assert not remove_whitening(model)
    assert encode_texts(model, ["a cat"]).shape == (1, 16)


def test_whitened_models_of_one_start_can_be_averaged(tiny_bi: Path) -> None:
    models = []
    for texts in (SENTENCES[:400], SENTENCES[200:]):
        models.append(load_bi_encoder(tiny_bi, device="cpu"))
        whiten_encoder(models[-1], texts)
    pairs = make_pairs(50, seed=3)
    both = np.mean([score_pairs(model, pairs) for model in models], axis=0)
    assert score_pairs(average_weights(models), pairs) == pytest.approx(both, abs=0.05)


def test_a_whitened_model_can_be_trained(tiny_bi: Path, tmp_path: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    whiten_encoder(model, SENTENCES)
    layer = model[-1].linear.weight.detach().clone()
    pairs = read_pairs(make_pairs(32))
    labels = make_labels(pairs, {}, np.linspace(0, 1, len(pairs), dtype=np.float32))
    context = TrainingContext(work=tmp_path / "work", seed=1, precision="float32")
    train_bi_encoder(model, labels, settings=BiTrainingSettings(epochs=1, batch_size=8), context=context)
    assert not torch.equal(layer, model[-1].linear.weight)


def test_sentences_are_counted_once_and_many_are_thinned(tiny_bi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("transenc.whitening._MOST_SENTENCES", 100)
    monkeypatch.setattr(
        "transenc.whitening.encode_texts",
        lambda model, texts, **options: seen.append(list(texts)) or encode_texts(model, texts, **options),
    )
    used = whiten_encoder(load_bi_encoder(tiny_bi, device="cpu"), [*SENTENCES, *SENTENCES])
    different = list(dict.fromkeys(SENTENCES))
    (texts,) = seen
    assert used == len(texts) <= 100 and texts == different[:: -(-len(different) // 100)]


def test_few_sentences_are_told(tiny_bi: Path, caplog: pytest.LogCaptureFixture) -> None:
    whiten_encoder(load_bi_encoder(tiny_bi, device="cpu"), SENTENCES[:9])
    assert "whitened 32 dimensions over 9 sentences; more of them give more" in caplog.text


def test_bad_input(tiny_bi: Path, tiny_cross: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    with pytest.raises(TypeError, match="found one text"):
        whiten_encoder(model, "one text")
    with pytest.raises(TypeError, match="expected a bi-encoder"):
        whiten_encoder(load_cross_encoder(tiny_cross, device="cpu"), SENTENCES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 2 different sentences, got 1"):
        whiten_encoder(model, ["a", "a"])
    model.truncate_dim = 8
    with pytest.raises(InputError, match="cuts its embeddings to 8"):
        whiten_encoder(model, SENTENCES)


# ---- bootstrap and the command


def test_bootstrap_whitens_at_its_end(tiny_plain: Path, tmp_path: Path) -> None:
    settings = BootstrapSettings(batch_size=16, whiten=True)
    folder = bootstrap(
        tiny_plain, SENTENCES[:64], output_dir=tmp_path / "enc", pooling="mean", settings=settings, device="cpu",
        precision="float32",
    )  # fmt: skip
    vectors = encode_texts(load_bi_encoder(folder, device="cpu"), list(dict.fromkeys(SENTENCES[:64])))
    assert vectors.mean(axis=0) == pytest.approx(np.zeros(vectors.shape[1]), abs=1e-2)


def test_the_command(tiny_bi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES), encoding="utf-8")
    command = ["whiten", "--model", str(tiny_bi), "--sentences", str(texts), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "white"), "--dimensions", "16"]) == 0
    count = len(dict.fromkeys(SENTENCES))
    assert capsys.readouterr().out == f"{tmp_path / 'white'}: 16 dimensions, whitened over {count} sentences\n"
    verify_published(tmp_path / "white")
    card = (tmp_path / "white" / "README.md").read_text(encoding="utf-8")
    assert f"| over sentences | {count} |" in card and "| dimensions | 16 |" in card and str(tmp_path) not in card
    assert main([*command, "--output", str(tmp_path / "few"), "--max-sentences", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": str(tmp_path / "few"), "model": str(tiny_bi), "sentences": 50, "dimensions": 32,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--dimensions": "33"}, "dimensions must be 1 to 32"),
        ({"--sentences": "no/file.txt"}, "no such file"),
        ({"--model": "./no/model"}, "no such model folder"),
        ({"--max-sentences": "1"}, "expected at least 2"),
    ],
)
def test_the_command_refuses(
    changed: dict[str, str], words: str, tiny_bi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES[:40]), encoding="utf-8")
    given = {"--model": str(tiny_bi), "--sentences": str(texts), "--device": "cpu", "--output": str(tmp_path / "white")}
    assert main(["whiten", *(word for pair in (given | changed).items() for word in pair)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("transenc: ") and words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt"]


def test_the_command_leaves_an_existing_folder_alone(
    tiny_bi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, kept = tmp_path / "texts.txt", tmp_path / "white"
    texts.write_text("\n".join(SENTENCES[:40]), encoding="utf-8")
    kept.mkdir()
    kept.joinpath("mine").write_text("mine")
    command = ["whiten", "--model", tiny_bi, "--sentences", texts, "--output", kept, "--device", "cpu"]
    assert main([str(word) for word in command]) == 3
    assert "exists" in capsys.readouterr().err and kept.joinpath("mine").read_text() == "mine"
