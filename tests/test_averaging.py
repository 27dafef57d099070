"""Averaged weights: the numbers by hand, what does not go together is named, and the folder is an ordinary model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from tiny import build_bi, build_cross, build_plain
from tokenizers.normalizers import BertNormalizer

from transenc.averaging import average_weights, describe_average
from transenc.cli import main
from transenc.encoders import Encoder, load_bi_encoder, load_cross_encoder
from transenc.errors import InputError, StateError
from transenc.model_folders import model_digest
from transenc.run import verify_published
from transenc.scoring import score_pairs

Pairs = list[tuple[str, str]]


def change(model: Any, *, seed: int, size: float = 0.01) -> Any:
    """As if it had been trained a little more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += size * torch.randn(tensor.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def trained(tiny_bi: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bi-encoders from one start."""
    folders = [tmp_path_factory.mktemp("average") / f"seed{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        change(load_bi_encoder(tiny_bi), seed=seed).save_pretrained(str(folder), create_model_card=False)
    return folders


# ---- the numbers


@pytest.mark.parametrize("given", [None, [1.0, 1.0, 1.0], [2, 1, 5]])
def test_every_weight_is_the_mean(trained: list[Path], given: list[float] | None) -> None:
    models = [load_bi_encoder(folder) for folder in trained]
    before = [{key: tensor.clone() for key, tensor in model.state_dict().items()} for model in models]
    shares = np.array(given or [1, 1, 1]) / sum(given or [1, 1, 1])
    for found in (average_weights(models, weights=given), average_weights(trained, weights=given)):
        assert isinstance(found, SentenceTransformer) and not found.training
        for key, tensor in found.state_dict().items():
            expected = sum(share * tensors[key].double() for share, tensors in zip(shares, before, strict=True))
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
    for model, tensors in zip(models, before, strict=True):  # what was given stays
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())


def test_a_weight_of_1_is_that_model(trained: list[Path]) -> None:
    found = average_weights(trained, weights=[0, 3, 0]).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in load_bi_encoder(trained[1]).state_dict().items())


def test_it_is_the_same_every_time_and_in_any_order_but_for_rounding(trained: list[Path]) -> None:
    one, again, other = (average_weights(each).state_dict() for each in (trained, trained, trained[::-1]))
    for key, tensor in one.items():
        assert torch.equal(tensor, again[key])
        torch.testing.assert_close(tensor, other[key], atol=1e-7, rtol=1e-6)


def test_a_model_and_itself(trained: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    found = average_weights([trained[0], str(trained[0])]).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in load_bi_encoder(trained[0]).state_dict().items())
    assert f"{trained[0]} is given more than once, and counts as often" in caplog.text


def test_cross_encoders_keep_their_activation(tiny_cross: Path, tiny_pairs: Pairs) -> None:
    models = [change(load_cross_encoder(tiny_cross), seed=seed) for seed in (0, 1)]
    for model in models:
        model.activation_fn = torch.nn.Identity()
    found = average_weights(models)
    assert isinstance(found, CrossEncoder)
    assert isinstance(found.activation_fn, torch.nn.Identity)
    # a small step from one start: the average scores like the ensemble
    np.testing.assert_allclose(score_pairs(found, tiny_pairs), score_pairs(models, tiny_pairs), atol=0.05)


def test_the_first_decides_everything_else(tiny_bi: Path) -> None:
    first, second = load_bi_encoder(tiny_bi, max_length=16, dtype="bfloat16"), load_bi_encoder(tiny_bi, max_length=32)
    found = average_weights([first, change(second, seed=1)])
    assert found.max_seq_length == 16
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.bfloat16}


def test_models_without_a_common_start_are_told(
    tiny_bi: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = build_bi(tmp_path / "stranger", build_plain(tmp_path / "plain", seed=7))
    average_weights([tiny_bi, stranger])
    assert f"{stranger} does not look trained from the start of {tiny_bi}" in caplog.text


# ---- what does not go together


def with_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    return folder


def make_wider(folder: Path) -> Path:
    return build_bi(folder / "bi", build_plain(folder / "plain", width=48))


def make_other_pooling(folder: Path) -> Path:
    return build_bi(folder / "bi", build_plain(folder / "plain"), pooling="cls")


def make_smaller_vocabulary(folder: Path) -> Path:
    return build_bi(folder / "bi", build_plain(folder / "plain", letters=False))


def make_other_activation(folder: Path) -> Path:
    return build_bi(folder / "bi", with_config(build_plain(folder / "plain"), hidden_act="relu"))


def make_normalized(folder: Path) -> Path:
    model = load_bi_encoder(build_bi(folder / "bi", build_plain(folder / "plain")))
    SentenceTransformer(modules=[*model, Normalize()], device="cpu").save_pretrained(
        str(folder / "normal"), create_model_card=False
    )
    return folder / "normal"


def make_cross(folder: Path) -> Path:
    return build_cross(folder / "cross", build_plain(folder / "plain", labels=1))


def make_prompted(folder: Path) -> Path:
    model = load_bi_encoder(build_bi(folder / "bi", build_plain(folder / "plain")))
    model.prompts["query"] = "ask: "
    model.save_pretrained(str(folder / "prompted"), create_model_card=False)
    return folder / "prompted"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_cross, 'kind: expected "bi-encoder", found "cross-encoder"'),
        (make_wider, "hidden_size: expected 32, found 48"),
        (make_smaller_vocabulary, "vocab_size: expected 256, found 173"),
        (make_other_activation, 'hidden_act: expected "gelu", found "relu"'),
        (make_other_pooling, 'Pooling.pooling_mode: expected "mean", found "cls"'),
        (make_normalized, 'modules: expected "Transformer, Pooling", found "Transformer, Pooling, Normalize"'),
        (make_prompted, 'prompts: expected {}, found {"query": "ask: "}'),
    ],
)
def test_what_differs_is_named(make: Callable[[Path], Path], expected: str, tiny_bi: Path, tmp_path: Path) -> None:
    other = make(tmp_path)
    with pytest.raises(InputError) as raised:
        average_weights([tiny_bi, other])
    message = str(raised.value)
    assert message.startswith(f"{other} cannot be averaged with {tiny_bi}: {expected}")
    assert "\n" not in message and message.endswith("give models that were trained from one start")


def test_words_of_one_number_in_another_order_are_named(tiny_bi: Path) -> None:
    first, second = load_bi_encoder(tiny_bi), load_bi_encoder(tiny_bi)
    second.tokenizer.add_tokens(["[FIRST]", "[SECOND]"])
    first.tokenizer.add_tokens(["[SECOND]", "[FIRST]"])
    with pytest.raises(InputError, match=r"models\[1\] cannot be averaged with models\[0\]: vocabulary: expected 258"):
        average_weights([first, second])


def test_other_ways_to_read_a_text_are_refused(tiny_bi: Path) -> None:
    models = [load_bi_encoder(tiny_bi) for _ in range(2)]
    models[1].tokenizer.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)
    with pytest.raises(InputError, match="the tokenizer's normalizer: expected"):
        average_weights(models)


def test_cross_encoders_of_other_activations_are_refused(tiny_cross: Path) -> None:
    models = [load_cross_encoder(tiny_cross) for _ in range(2)]
    models[1].activation_fn = torch.nn.Identity()
    with pytest.raises(InputError, match='activation: expected "Sigmoid", found "Identity"'):
        average_weights(models)


def test_other_settings_of_the_modules_are_refused(tiny_bi: Path) -> None:
    models = [load_bi_encoder(tiny_bi) for _ in range(2)]
    models[1].similarity_fn_name = "dot"
    with pytest.raises(InputError, match='similarity_fn_name: expected "cosine", found "dot"'):
        average_weights(models)
    models[1].similarity_fn_name = "cosine"
    models[1][0].do_lower_case = True
    with pytest.raises(InputError, match="do_lower_case: expected false, found true"):
        average_weights(models)


def make_new_head(bi: Path, *, seed: int) -> CrossEncoder:
    torch.manual_seed(seed)
    return load_cross_encoder(bi, new_head=True)


def test_heads_that_were_drawn_apart_are_refused(tiny_bi: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = [make_new_head(tiny_bi, seed=seed) for seed in (0, 1)]
    with pytest.raises(InputError) as raised:
        average_weights(models)
    message = str(raised.value)
    assert message.startswith("models[1] cannot be averaged with models[0]: their heads do not come from one start")
    assert "--continue-cross" in message and "--cross-start" in message and "\n" not in message
    assert caplog.text == ""  # all weights together look alike
    same = [change(make_new_head(tiny_bi, seed=3), seed=seed, size=0.001) for seed in (0, 1)]
    assert isinstance(average_weights(same), CrossEncoder)


def test_a_pooler_that_was_drawn_apart_is_refused(tiny_cross: Path) -> None:
    models = [load_cross_encoder(tiny_cross) for _ in range(2)]
    pooler = models[1].transformers_model.bert.pooler.dense.weight
    with torch.no_grad():
        pooler.copy_(0.02 * torch.randn(pooler.shape, generator=torch.Generator().manual_seed(5)))
    with pytest.raises(InputError, match=r"do not come from one start \(cosine of .*pooler.dense.weight"):
        average_weights(models)


def test_whole_numbers_must_be_equal(tiny_bi: Path) -> None:
    models = [load_bi_encoder(tiny_bi) for _ in range(2)]
    for number, model in enumerate(models):
        model[1].register_buffer("steps", torch.tensor([7, number // 2]))
    assert average_weights(models).state_dict()["1.steps"].tolist() == [7, 0]
    models[1][1].steps += 1
    with pytest.raises(InputError, match=r"models\[1\] cannot be averaged .*: 1.steps holds other whole numbers"):
        average_weights(models)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0], "expected one weight for each of 2 models, found 1"),
        ([1.0, math.nan], "a weight must be a finite number of 0 or more, found nan"),
        ([1.0, math.inf], "a weight must be a finite number of 0 or more, found inf"),
        ([2.0, -1.0], "a weight must be a finite number of 0 or more, found -1.0"),
        ([1.0, "2"], "a weight must be a finite number of 0 or more, found '2'"),
        ([1.0, True], "a weight must be a finite number of 0 or more, found True"),
        ([0.0, 0.0], "expected a weight above 0"),
    ],
)
def test_weights_out_of_range_are_refused(trained: list[Path], weights: Any, expected: str) -> None:
    for function in (average_weights, describe_average):
        with pytest.raises(InputError, match=expected):
            function(trained[:2], weights=weights)


def test_bad_models(trained: list[Path], tiny_bi: Path, tiny_plain: Path, tmp_path: Path) -> None:
    for few in ([], [tiny_bi]):
        with pytest.raises(InputError, match=f"needs 2 models or more, found {len(few)}"):
            average_weights(few)
    with pytest.raises(TypeError, match="expected a list of models or their folders, found str"):
        average_weights("my/encoder")
    with pytest.raises(TypeError, match="model 1 must be an encoder, a folder or a Hub id, found NoneType"):
        average_weights([tiny_bi, None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="no such model folder"):
        average_weights([tiny_bi, tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a model folder"):
        average_weights([tiny_bi, tmp_path / "empty"])
    with pytest.raises(InputError, match="please give --pooling"):
        average_weights([tiny_bi, tiny_plain])
    with pytest.raises(InputError, match="3 outputs"):
        average_weights([tiny_bi, build_plain(tmp_path / "three", labels=3)])
    broken = load_bi_encoder(trained[1])
    with torch.no_grad():
        broken[0].model.encoder.layer[1].output.dense.bias[3] = math.nan
    with pytest.raises(StateError, match=r"models\[1\]: weight .*1.output.dense.bias holds NaN or inf"):
        average_weights([trained[0], broken])


def test_bare_folders_are_averaged_with_a_pooling(tiny_plain: Path, tiny_bi: Path) -> None:
    found: Encoder = average_weights([tiny_plain, tiny_plain], pooling="mean")
    pair = [("the small cat", "a big dog")]
    assert score_pairs(found, pair) == pytest.approx(score_pairs(load_bi_encoder(tiny_bi), pair), abs=1e-6)


# ---- the command


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["average", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_publishes_an_ordinary_model(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_pairs: Pairs
) -> None:
    output = tmp_path / "soup"
    flags = ["--model", str(trained[0]), "--model", str(trained[1]), "--weight", "3", "--weight", "1"]
    code, out, err = call(capsys, *flags, "--output", str(output), "--json")
    assert code == 0, err
    expected = average_weights(trained[:2], weights=[3, 1])
    assert json.loads(out) == {
        "output": str(output),
        "models": [str(folder) for folder in trained[:2]],
        "weights": [3.0, 1.0],
        "parameters": sum(tensor.numel() for tensor in expected.parameters()),
    }
    assert verify_published(output)["tensors"] > 0
    found = load_bi_encoder(output)
    assert np.array_equal(score_pairs(found, tiny_pairs), score_pairs(expected, tiny_pairs))
    plain = SentenceTransformer(str(output), device="cpu")
    assert np.array_equal(plain.encode(["the cat"]), found.encode(["the cat"]))
    card = (output / "README.md").read_text("utf-8")
    digests = [model_digest(folder)[:12] for folder in trained]
    assert f"| average of | 0.75 seed0 sha256 {digests[0]}, 0.25 seed1 sha256 {digests[1]} |" in card
    assert str(tmp_path) not in card


def test_the_command_touches_nothing_that_is_there(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["--model", str(trained[0]), "--model", str(trained[1])]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    code, out, err = call(capsys, *two, "--output", str(tmp_path / "there"))
    assert (code, out) == (3, "")
    assert "there" in err and "exist" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "file"]
    for flags in ([*two[:2]], [*two, "--weight", "1"], [*two, "--weight", "nan", "--weight", "1"]):
        code, out, err = call(capsys, *flags, "--output", str(tmp_path / "new"))
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    code, _, err = call(capsys, *two, "--output", str(tmp_path / "no" / "parent"))
    assert code == 2, err


def test_the_command_speaks_to_people(trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--model", str(trained[0]), "--model", str(trained[2]), "--output", str(tmp_path / "s"))
    assert code == 0
    assert out.startswith(f"{tmp_path / 's'}: the average of 2 models, ")
