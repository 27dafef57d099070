"""Models load with what was asked for, and damaged folders are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense
from transformers import AutoModel, AutoTokenizer

from transenc.devices import resolve_device, resolve_precision
from transenc.encoders import (
    detect_kind,
    load_bi_encoder,
    load_cross_encoder,
    load_encoder,
)
from transenc.errors import InputError, StateError

SENTENCES = ["the small cat sees the dog today", "a bird", "the old farmer sells the bread at the market"]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    def copy_folder(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copy_folder


# ---- what loads


def test_a_sentence_transformers_folder_keeps_pooling_and_length(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi)
    plain = SentenceTransformer(str(tiny_bi), device="cpu")
    assert (model[1].pooling_mode, model.max_seq_length, model.training) == ("mean", 64, False)
    torch.testing.assert_close(model.encode(SENTENCES), plain.encode(SENTENCES), rtol=0, atol=1e-6)


def test_a_bare_folder_is_pooled_as_asked(tiny_plain: Path) -> None:
    network, tokenizer = AutoModel.from_pretrained(tiny_plain), AutoTokenizer.from_pretrained(tiny_plain)
    with torch.inference_mode():
        states = network.eval()(**tokenizer(SENTENCES[0], return_tensors="pt")).last_hidden_state[0]
    for pooling, expected in (("cls", states[0]), ("mean", states.mean(0)), ("lasttoken", states[-1])):
        found = load_bi_encoder(tiny_plain, pooling=pooling).encode(SENTENCES[0])
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)


def test_pooling_replaces_what_the_folder_says(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, pooling="cls")
    assert model[1].pooling_mode == "cls"
    assert model.max_seq_length == 64


def test_a_pooling_that_would_drop_a_module_is_refused(tiny_bi: Path, tmp_path: Path) -> None:
    model = load_bi_encoder(tiny_bi)
    model.append(Dense(32, 8))
    model.save_pretrained(str(tmp_path / "dense"))
    assert load_bi_encoder(tmp_path / "dense").get_embedding_dimension() == 8
    with pytest.raises(InputError, match="would drop its Dense"):
        load_bi_encoder(tmp_path / "dense", pooling="cls")


def test_the_type_of_the_weights_is_the_asked_one(tiny_bi: Path, tmp_path: Path) -> None:
    load_bi_encoder(tiny_bi, dtype="float16").save_pretrained(str(tmp_path / "half"))
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert load_bi_encoder(tmp_path / "half").dtype == torch.float32
    assert load_bi_encoder(tmp_path / "half", dtype="bfloat16").dtype == torch.bfloat16


def test_lengths(tiny_bi: Path, tiny_plain: Path, tiny_cross: Path) -> None:
    assert load_bi_encoder(tiny_bi, max_length=16).max_seq_length == 16
    assert load_bi_encoder(tiny_plain, pooling="mean").max_seq_length == 64
    assert load_cross_encoder(tiny_cross).max_seq_length == 64
    assert load_cross_encoder(tiny_bi, new_head=True, max_length=40).max_seq_length == 40
    assert load_cross_encoder(tiny_bi, new_head=True).max_seq_length == 64  # twice 64, but the model has 64 positions
    for length in (2, 65, True, "8"):
        with pytest.raises(InputError, match="from 3 to 64"):
            load_bi_encoder(tiny_bi, max_length=length)  # type: ignore[arg-type]


def test_a_cross_encoder_made_from_a_short_bi_encoder_reads_twice_its_length(tiny_bi: Path, tmp_path: Path) -> None:
    load_bi_encoder(tiny_bi, max_length=20).save_pretrained(str(tmp_path / "short"))
    assert load_bi_encoder(tmp_path / "short").max_seq_length == 20
    assert load_cross_encoder(tmp_path / "short", new_head=True).max_seq_length == 40


def test_lengths_of_a_real_model(minilm: Path) -> None:
    assert load_bi_encoder(minilm).max_seq_length == 256  # its config; its positions are 512
    assert load_cross_encoder(minilm, new_head=True).max_seq_length == 512


def test_a_new_head_stands_on_the_same_encoder(tiny_bi: Path, tiny_plain: Path) -> None:
    for folder in (tiny_bi, tiny_plain):
        torch.manual_seed(5)
        model = load_cross_encoder(folder, new_head=True)
        torch.manual_seed(5)
        again = load_cross_encoder(folder, new_head=True)
        torch.manual_seed(6)
        other = load_cross_encoder(folder, new_head=True)
        encoder = load_bi_encoder(folder, pooling="mean")[0].auto_model.state_dict()
        for key, tensor in encoder.items():
            assert torch.equal(model.model.bert.state_dict()[key], tensor)
        heads = [m.model.classifier.weight for m in (model, again, other)]
        assert heads[0].shape == (1, 32)
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        assert isinstance(model.activation_fn, torch.nn.Sigmoid)


def test_a_made_cross_encoder_loads_in_plain_sentence_transformers(tiny_bi: Path, tmp_path: Path) -> None:
    model = load_cross_encoder(tiny_bi, new_head=True, max_length=48)
    model.save_pretrained(str(tmp_path / "made"))
    plain = CrossEncoder(str(tmp_path / "made"), device="cpu")
    pairs = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], SENTENCES[0])]
    assert plain.predict(pairs).tolist() == pytest.approx(model.predict(pairs).tolist(), abs=1e-6)
    assert plain.max_seq_length == 48
    assert load_cross_encoder(tmp_path / "made").predict(pairs).tolist() == plain.predict(pairs).tolist()


def test_the_encoder_of_a_cross_encoder_can_be_reused(tiny_cross: Path) -> None:
    with pytest.raises(InputError, match=r"is a cross-encoder, not a bi-encoder.*--pooling"):
        load_bi_encoder(tiny_cross)
    reused = load_bi_encoder(tiny_cross, pooling="mean")[0].auto_model.state_dict()
    for key, tensor in load_cross_encoder(tiny_cross).model.bert.state_dict().items():
        assert torch.equal(reused[key], tensor)


def test_the_kind_is_detected(tiny_bi: Path, tiny_plain: Path, tiny_cross: Path, tmp_path: Path) -> None:
    from tiny import build_plain

    classifier = build_plain(tmp_path / "classifier", labels=1)  # a cross-encoder as versions before 6 saved it
    folders = (tiny_bi, tiny_plain, tiny_cross, classifier)
    assert [detect_kind(folder) for folder in folders] == ["bi", "plain", "cross", "cross"]
    assert isinstance(load_encoder(tiny_bi), SentenceTransformer)
    assert isinstance(load_encoder(tiny_cross), CrossEncoder)
    assert isinstance(load_encoder(classifier), CrossEncoder)
    assert load_encoder(tiny_plain, pooling="cls")[1].pooling_mode == "cls"


def test_one_pooling_for_a_list_of_models_leaves_those_that_know_theirs(
    tiny_bi: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_encoder(tiny_bi, pooling="cls")[1].pooling_mode == "mean"
    assert "pooling=cls is for bare folders and not used" in caplog.text


def test_unused_pretraining_heads_are_no_damage(tiny_plain: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(tiny_plain)
    weights = load_file(folder / "model.safetensors")
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        del weights[name]
    weights |= {"cls.predictions.bias": torch.zeros(3), "lm_head.weight": torch.zeros(3)}
    weights["embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected = load_bi_encoder(tiny_plain, pooling="mean").encode(SENTENCES)
    assert load_bi_encoder(folder, pooling="mean").encode(SENTENCES).tolist() == expected.tolist()


def test_sharded_weights(tiny_bi: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(tiny_bi)
    model = load_bi_encoder(tiny_bi)
    (folder / "model.safetensors").unlink()
    model[0].auto_model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_bi_encoder(folder).encode(SENTENCES).tolist() == model.encode(SENTENCES).tolist()
    shards[-1].unlink()
    with pytest.raises(StateError, match=f"{shards[-1].name} is missing"):
        load_bi_encoder(folder)


# ---- what is refused


def test_a_bare_folder_without_pooling_is_refused(
    tiny_plain: Path, tiny_bi: Path, copy: Callable[[Path], Path]
) -> None:
    for load in (load_bi_encoder, load_encoder):
        with pytest.raises(InputError, match=r"bare Hugging Face folder.*--pooling"):
            load(tiny_plain)
    folder = copy(tiny_bi)
    (folder / "modules.json").unlink()
    with pytest.raises(InputError, match=r"lost its modules.json.*--pooling"):
        load_bi_encoder(folder)


def test_a_head_is_wanted_or_not(tiny_bi: Path, tiny_plain: Path, tiny_cross: Path, tmp_path: Path) -> None:
    from tiny import build_plain

    for folder, found in ((tiny_bi, "a bi-encoder"), (tiny_plain, "a language model without a head")):
        with pytest.raises(InputError, match=f"is {found}; expected a trained cross-encoder"):
            load_cross_encoder(folder)
    with pytest.raises(InputError, match="trained head"):
        load_cross_encoder(tiny_cross, new_head=True)
    with pytest.raises(InputError, match="3 outputs"):
        load_cross_encoder(build_plain(tmp_path / "three", labels=3))


def _edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def _cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])  # type: ignore[return-value]


def _rename_all(weights: dict[str, torch.Tensor]) -> None:
    for key in list(weights):
        weights[f"net.{key}"] = weights.pop(key)


LAYER = "encoder.layer.1.output.dense.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty weights": (_cut("model.safetensors", 0), r"model.safetensors: damaged weights \(0 bytes\)"),
    "short header": (_cut("model.safetensors", 100), r"damaged weights \(100 bytes\)"),
    "truncated weights": (_cut("model.safetensors", 50_000), r"damaged weights \(50000 bytes\)"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "tensor missing": (_edit(lambda w: w.pop(_find(w, LAYER))), "1 tensors are missing from the weights"),
    "keys renamed": (_edit(_rename_all), r"\d\d tensors are missing from the weights"),
    "tensor left over": (
        _edit(lambda w: w.update({_find(w, LAYER).replace("layer.1", "layer.2"): torch.zeros(2)})),
        "1 tensors in the weights are unknown",
    ),
    "wrong shape": (_edit(lambda w: w.update({_find(w, LAYER): torch.zeros(3, 3)})), "cannot be loaded"),
    "NaN": (_edit(lambda w: w[_find(w, LAYER)][1, 2:3].fill_(float("nan"))), "output.dense.weight holds NaN or inf"),
    "inf": (_edit(lambda w: w[_find(w, LAYER)][1, 2:3].fill_(float("-inf"))), "holds NaN or inf"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer files"),
    "broken tokenizer": (_cut("tokenizer.json", 1000), "cannot be loaded"),
    "another tokenizer": (lambda f: _swap_tokenizer(f), "the tokenizer has 5 entries for 256 embeddings"),
    "broken config": (_cut("config.json", 20), "config.json: cannot be read as JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "broken modules": (_cut("modules.json", 30), "modules.json: cannot be read as JSON"),
    "modules of another kind": (lambda f: (f / "modules.json").write_text('{"a": 1}'), "not a list of modules"),
}


def _find(weights: dict[str, torch.Tensor], key: str) -> str:
    return next(name for name in weights if name.endswith(key))


def _swap_tokenizer(folder: Path) -> None:
    from transformers import BertTokenizer

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    BertTokenizer(vocab={token: number for number, token in enumerate(special)}).save_pretrained(folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", ["bi", "cross"])
def test_damage_is_refused(
    form: str, damage: str, tiny_bi: Path, tiny_cross: Path, copy: Callable[[Path], Path]
) -> None:
    folder = copy(tiny_bi if form == "bi" else tiny_cross)
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(StateError, match=message) as caught:
        load_encoder(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_pooling_config_is_refused(tiny_bi: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(tiny_bi)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(StateError, match="cannot be loaded"):
        load_bi_encoder(folder)


def test_a_damaged_start_is_refused_for_a_new_head_too(tiny_bi: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(tiny_bi)
    _edit(lambda weights: weights.pop(LAYER))(folder)
    with pytest.raises(StateError, match="1 tensors are missing"):
        load_cross_encoder(folder, new_head=True)


def test_a_trained_cross_encoder_without_its_head_is_refused(tiny_cross: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(tiny_cross)
    _edit(lambda weights: weights.pop("classifier.weight"))(folder)
    with pytest.raises(StateError, match=r"1 tensors are missing from the weights \(first: classifier.weight\)"):
        load_cross_encoder(folder)


def test_pickled_weights_are_never_opened(tiny_bi: Path, tiny_plain: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(tiny_bi)
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_bi_encoder(folder)  # beside safetensors it is ignored
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pickle format \(pytorch_model.bin\).*convert them to safetensors"):
        load_bi_encoder(folder)


def test_a_pickled_module_is_never_opened(tiny_bi: Path, tmp_path: Path) -> None:
    model = load_bi_encoder(tiny_bi)
    model.append(Dense(32, 8))
    model.save_pretrained(str(tmp_path / "dense"))
    (tmp_path / "dense" / "2_Dense" / "model.safetensors").rename(tmp_path / "dense" / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"2_Dense: the weights are only in a pickle format"):
        load_bi_encoder(tmp_path / "dense")


def test_code_in_a_model_folder_does_not_run(tiny_bi: Path, copy: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = copy(tiny_bi)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: ...\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "own.Own"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"brings its own Python code.*--trust-remote-code"):
        load_bi_encoder(folder)
    assert not (tmp_path / "ran").exists()


def test_arguments_out_of_range(tiny_bi: Path) -> None:
    with pytest.raises(InputError, match="pooling must be one of cls, max, mean"):
        load_bi_encoder(tiny_bi, pooling="average")
    with pytest.raises(InputError, match="one of float32, bfloat16, float16, found 'int8'"):
        load_bi_encoder(tiny_bi, dtype="int8")
    with pytest.raises(InputError, match="found 'gpu'"):
        load_cross_encoder(tiny_bi, new_head=True, device="gpu")
    with pytest.raises(InputError, match="not on this machine"):
        load_encoder(tiny_bi, device="cuda:99")


# ---- devices and precision


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device(None) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(device) for device in (None, "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]
    for device in ("cuda:2", "xpu", "nonsense", 3.5):
        with pytest.raises(InputError, match="device"):
            resolve_device(device)  # type: ignore[arg-type]


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for abilities, expected in (({"avx512_bf16": True}, "bfloat16"), ({"avx512_bf16": False}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda abilities=abilities: abilities, raising=False)
        assert resolve_precision("auto", device="cpu") == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for supported, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert resolve_precision("auto") == expected
    assert resolve_precision("float32", device="cuda") == "float32"
    with pytest.raises(InputError, match="found 'double'"):
        resolve_precision("double")
