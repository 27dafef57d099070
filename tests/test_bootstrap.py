"""From a plain language model to a bi-encoder: durable, with a template, from any text, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scenario import die_at, in_child, list_steps, snapshot
from sentence_transformers import SentenceTransformer
from tiny import make_pairs, make_vocabulary
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from transenc import bootstrapping, durable
from transenc.bootstrapping import bootstrap, bootstrap_encoder, read_figures
from transenc.config import BootstrapSettings
from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import BusyError, InputError, StateError
from transenc.locks import lock
from transenc.run import verify_published
from transenc.scoring import encode_texts, score_pairs
from transenc.signals import StopRequest
from transenc.templates import install_template
from transenc.training import TrainingContext

SENTENCES = [a for a, _ in make_pairs(16)]
SETTINGS = BootstrapSettings(batch_size=8, epochs=2, learning_rate=5e-4, max_length=24)
TEMPLATE = "near a {} is {mask}"


def run(model: Path, output: Path, sentences: list[str] = SENTENCES, **changes: Any) -> Path:
    options = {name: changes.pop(name) for name in ("seed", "pooling", "save_steps") if name in changes}
    return bootstrap(
        model,
        sentences,
        output_dir=output,
        settings=dataclasses.replace(SETTINGS, **changes),
        device="cpu",
        precision="float32",
        **{"pooling": "mean", "save_steps": 2, **options},
    )


def weights(folder: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(folder / "model.safetensors").items()}


@pytest.fixture(scope="module")
def whole(tiny_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished encoder."""
    return run(tiny_plain, tmp_path_factory.mktemp("whole") / "enc")


# ---- what comes out


def test_the_result_is_an_ordinary_folder_with_its_figures(whole: Path, tiny_plain: Path) -> None:
    model = SentenceTransformer(str(whole), device="cpu", local_files_only=True)
    start = load_bi_encoder(tiny_plain, pooling="mean", device="cpu")
    assert model.max_seq_length == start.max_seq_length  # the short window was for training
    assert np.abs(model.encode(SENTENCES) - start.encode(SENTENCES)).max() > 0.01
    figures = read_figures(whole)
    assert (figures["sentences"], figures["steps"]) == (16, 4)
    assert figures["spread"]["before"].keys() == {"mean_cosine", "uniformity", "effective_rank"}
    assert figures["spread"]["after"]["mean_cosine"] < figures["spread"]["before"]["mean_cosine"]
    assert verify_published(whole)["tensors"] == 39
    assert sorted(path.name for path in whole.parent.iterdir()) == ["enc"]
    assert [row["step"] for row in durable.read_json(whole / "log.json")] == [1, 2, 3, 4]


def test_the_card_says_how_it_was_made_and_quotes_no_sentence(whole: Path, tiny_plain: Path) -> None:
    card = (whole / "README.md").read_text("utf-8")
    for fact in (
        f"| backbone | {tiny_plain.name}, sha256 ",
        "| sentences | 16 |",
        "| seed | 2021 |",
        "objective simcse",
    ):
        assert fact in card
    assert not any(text in card for text in SENTENCES)
    assert "widget:" not in card
    assert str(tiny_plain) not in card


def test_the_same_call_makes_the_same_folder(whole: Path, tiny_plain: Path, tmp_path: Path) -> None:
    again = run(tiny_plain, tmp_path / "enc")
    assert weights(again) == weights(whole)
    assert durable.read_json(again / "log.json") == durable.read_json(whole / "log.json")
    assert weights(run(tiny_plain, tmp_path / "other", seed=1)) != weights(whole)


def test_a_bi_encoder_is_trained_on(tiny_bi_b: Path, tmp_path: Path) -> None:
    made = load_bi_encoder(run(tiny_bi_b, tmp_path / "enc", pooling=None, epochs=1), device="cpu")
    assert made[1].pooling_mode == "cls"


def test_a_corpus_smaller_than_a_batch(tiny_plain: Path, tmp_path: Path) -> None:
    made = run(tiny_plain, tmp_path / "enc", ["a cat sees a dog", "the rain again", "snow"], batch_size=64, epochs=1)
    assert read_figures(made)["steps"] == 1
    log = durable.read_json(made / "log.json")
    assert log[0]["loss"] > 0


@pytest.mark.parametrize("objective", ["simcse", "mirror", "decomposed", "tsdae", "tension"])
def test_a_last_batch_of_one_and_texts_of_all_kinds(objective: str, tiny_plain: Path, tmp_path: Path) -> None:
    texts = ["今日は天気がいい", "🙂", "العربية", "a cat " * 200_000, "x"]
    made = run(tiny_plain, tmp_path / "enc", texts, batch_size=2, epochs=1, objective=objective)
    assert read_figures(made)["steps"] == 3
    assert verify_published(made)


# ---- durable


def test_a_finished_folder_is_left_as_it_is(
    whole: Path, tiny_plain: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO", logger="transenc")
    before = snapshot(whole)
    assert run(tiny_plain, whole) == whole
    assert snapshot(whole) == before
    assert caplog.messages == [f"{whole}: complete, nothing to do"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 7}, "config.seed: 2021 -> 7"),
        ({"objective": "mirror", "batch_size": 4}, "config.bootstrap.batch_size: 8 -> 4; config.bootstrap.objective"),
        ({"pooling": "cls"}, "pooling: 'mean' -> 'cls'"),
        ({"sentences": SENTENCES[:15]}, "sentences.rows: 16 -> 15"),
    ],
)
def test_another_identity_is_refused(changes: dict[str, Any], words: str, whole: Path, tiny_plain: Path) -> None:
    before = snapshot(whole)
    with pytest.raises(StateError) as error:
        run(tiny_plain, whole, **changes)
    assert words in str(error.value)
    assert snapshot(whole) == before
    assert not whole.with_name("enc.part").exists()


def test_another_model_is_refused_also_in_an_unfinished_run(
    tiny_plain: Path, tiny_bi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="stop here"):
        patch.setattr("transenc.bootstrapping.load_bi_encoder", refuse)
        run(tiny_plain, tmp_path / "enc")
    with pytest.raises(StateError, match="model: ") as error:
        run(tiny_bi, tmp_path / "enc")
    assert str(error.value).endswith(
        f"; repeat the original command, name another output folder, or delete {tmp_path / 'enc.part'} to start anew"
    )


def refuse(*_: Any, **__: Any) -> None:
    raise ValueError("stop here")


def test_killed_at_any_moment_it_resumes_to_the_same_weights(whole: Path, tiny_plain: Path, tmp_path: Path) -> None:
    steps = list_steps(lambda: str(run(tiny_plain, tmp_path / "count" / "enc")))
    parts = [i for i, name in enumerate(steps) if "publish:rename" in name]
    assert len(parts) == 3  # two checkpoints and the encoder
    # after the first checkpoint, while the encoder is sealed, and once it is there
    for count in (parts[0] + 1, parts[2] - 1, len(steps) - 1):
        output = tmp_path / str(count) / "enc"
        assert in_child(die_at(count, lambda output=output: str(run(tiny_plain, output)))).status == 137
        assert durable.is_published(output) == (count > parts[2])
        assert weights(run(tiny_plain, output)) == weights(whole)
        card = (output / "README.md").read_text("utf-8")
        assert "| sentences | 16 |" in card and not any(text in card for text in SENTENCES)
        assert sorted(path.name for path in output.parent.iterdir()) == ["enc"]


def test_scratch_that_a_kill_left_is_removed(whole: Path, tiny_plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "enc"
    shutil.copytree(whole, output)
    part = tmp_path / "enc.part"
    (part / "work" / "train").mkdir(parents=True)
    run(tiny_plain, output)
    assert part.exists()  # without a run.json it may be anybody's
    mine = durable.verify_directory(output)
    for other in ({}, {**mine, "pooling": "cls"}):  # no run at all, and somebody else's
        durable.write_json(part / "run.json", other)
        run(tiny_plain, output)
        assert (part / "work" / "train").is_dir()
    mine.pop("figures")
    durable.write_json(part / "run.json", mine)
    (part / "notes.txt").write_text("mine")
    run(tiny_plain, output)
    assert [path.name for path in part.iterdir()] == ["notes.txt"]
    (part / "notes.txt").unlink()
    durable.write_json(part / "run.json", mine)
    run(tiny_plain, output)
    assert not part.exists()


def test_a_second_process_is_told(tiny_plain: Path, tmp_path: Path) -> None:
    (tmp_path / "enc.part").mkdir()
    with lock(tmp_path / "enc.part" / "lock"), pytest.raises(BusyError):
        run(tiny_plain, tmp_path / "enc")


def test_output_folders(whole: Path, tiny_plain: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(InputError, match="name a new folder"):
            run(tiny_plain, tmp_path / name)
    with durable.publish_directory(tmp_path / "other"):
        pass
    with pytest.raises(InputError, match="not made by bootstrap"):
        run(tiny_plain, tmp_path / "other")
    with pytest.raises(InputError, match="not made by bootstrap"):
        read_figures(tmp_path / "other")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="link: is a link"):
        run(tiny_plain, tmp_path / "link")
    assert not (tmp_path / "link.part").exists()
    (tmp_path / "empty é").mkdir()
    assert weights(run(tiny_plain, tmp_path / "empty é")) == weights(whole)
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    (damaged / "config.json").write_text("{}")
    with pytest.raises(StateError, match=r"config\.json: expected"):
        run(tiny_plain, damaged)


# ---- the template


@pytest.fixture(scope="module")
def prompted(tiny_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a template."""
    return run(tiny_plain, tmp_path_factory.mktemp("prompted") / "enc", template=TEMPLATE, pooling="cls", epochs=1)


def test_a_template_is_in_the_saved_folder(prompted: Path) -> None:
    model = SentenceTransformer(str(prompted), device="cpu", local_files_only=True)
    assert model[1].pooling_mode == "lasttoken"
    for text, seen in (("The cat sees", "the cat sees"), ("dog " * 300, "dog " * 59)):
        ids = model.preprocess([text])["input_ids"][0]
        tokens = model.tokenizer.convert_ids_to_tokens(ids)
        assert tokens == ["[CLS]", "near", "a", *seen.split(), "is", "[MASK]"]
    # padded beside a longer text, a vector is still that of its mask token
    texts = ["the cat sees", "dog " * 40]
    both = model.encode(texts)
    assert np.abs(both[0] - model.encode(texts[0])).max() < 1e-5
    assert np.abs(both - encode_texts(load_bi_encoder(prompted, device="cpu"), texts)).max() < 1e-5
    tokens_of = model.encode(texts[:1], output_value=None)[0]
    assert torch.equal(tokens_of["sentence_embedding"], tokens_of["token_embeddings"][-1])


def test_a_cross_encoder_of_it_reads_pairs_without_the_template(prompted: Path) -> None:
    model = load_cross_encoder(prompted, new_head=True, device="cpu")
    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenizer("a cat", "the dog")["input_ids"])
    assert tokens == ["[CLS]", "a", "cat", "[SEP]", "the", "dog", "[SEP]"]


def test_a_template_is_refused_where_it_cannot_work(tiny_plain: Path, prompted: Path) -> None:
    def load(folder: Path = tiny_plain, pooling: str | None = "mean") -> SentenceTransformer:
        return load_bi_encoder(folder, pooling=pooling, device="cpu")

    for template in ("{} means", "{mask} {}", "{} is {mask} ."):
        with pytest.raises(InputError, match=r"must end in the mask token \[MASK\]"):
            install_template(load(), template)
    with pytest.raises(InputError, match="has a template already"):
        install_template(load(prompted, None), TEMPLATE)
    model = load()
    model.tokenizer.mask_token = None
    with pytest.raises(InputError, match="needs a mask token"):
        install_template(model, TEMPLATE)
    model = load()
    model.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(InputError, match="TemplateProcessing, found none"):
        install_template(model, TEMPLATE)


def test_a_template_leaves_room_for_the_sentence(tiny_plain: Path, tmp_path: Path) -> None:
    model = load_bi_encoder(tiny_plain, pooling="mean", device="cpu")
    settings = dataclasses.replace(SETTINGS, template=TEMPLATE, max_length=5)
    with pytest.raises(InputError, match=r"max_length 5 leaves no room .* the template's 5 tokens"):
        bootstrap_encoder(model, SENTENCES, settings=settings, context=TrainingContext(work=tmp_path, seed=1))


def test_tsdae_with_a_template(tiny_plain: Path, tmp_path: Path) -> None:
    made = run(tiny_plain, tmp_path / "enc", template=TEMPLATE, objective="tsdae", epochs=1)
    model = load_bi_encoder(made, device="cpu")
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer("cat")["input_ids"])[-2:] == ["is", "[MASK]"]


# ---- models of other kinds, and what is refused


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a model with a tokenizer of the tiny words."""

    def save(model: Any, **special: str) -> Path:
        folder = tmp_path_factory.mktemp("model")
        backend = Tokenizer(models.WordLevel(make_vocabulary(), unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", model_max_length=64, **special
        ).save_pretrained(folder)
        return folder

    return save


def gpt2() -> GPT2LMHeadModel:
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(make_vocabulary()), bos_token_id=3, eos_token_id=3, **size))


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
def test_a_decoder_only_model_pads_with_its_end_token(pooling: str, save: Callable[..., Path], tmp_path: Path) -> None:
    made = run(save(gpt2(), eos_token="[SEP]"), tmp_path / "enc", pooling=pooling, epochs=1)
    model = load_bi_encoder(made, device="cpu")
    assert (model.tokenizer.pad_token, model.transformers_model.config.pad_token_id) == ("[SEP]", 3)
    both = model.encode(["a cat", "the dog sees a boat near the lake"])
    assert np.abs(both[0] - model.encode("a cat")).max() < 1e-5
    cross = load_cross_encoder(made, new_head=True, device="cpu")
    assert score_pairs(cross, [("a cat", "a dog"), ("rain", "the cat sees the dog")]).shape == (2,)


def test_objectives_that_a_decoder_only_model_cannot_do(save: Callable[..., Path], tmp_path: Path) -> None:
    folder = save(gpt2(), eos_token="[SEP]")
    with pytest.raises(InputError, match="mirror: the model's tokenizer has no mask token"):
        run(folder, tmp_path / "mirror", objective="mirror")
    with pytest.raises(InputError, match="needs a mask token"):
        run(folder, tmp_path / "template", template=TEMPLATE)
    with pytest.raises(InputError, match="neither a padding nor an end token"):
        run(save(gpt2()), tmp_path / "padding")


def test_sequence_to_sequence_models(save: Callable[..., Path], tmp_path: Path) -> None:
    size = len(make_vocabulary())
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    made = run(save(t5, pad_token="[PAD]", eos_token="[SEP]"), tmp_path / "enc", epochs=1)
    assert not any("decoder" in name for name in load_file(made / "model.safetensors"))
    with pytest.raises(InputError, match=r"sequence-to-sequence model \(t5\)"):
        load_cross_encoder(made, new_head=True, device="cpu")
    with pytest.raises(InputError, match="tsdae: T5EncoderModel has no decoder with cross-attention"):
        run(made, tmp_path / "tsdae", objective="tsdae", pooling=None)
    layers = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    bart = BartModel(BartConfig(vocab_size=size, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **layers))
    with pytest.raises(InputError, match=r"sequence-to-sequence model \(bart\)"):
        run(save(bart, pad_token="[PAD]"), tmp_path / "bart")


@pytest.mark.parametrize("sentences", [[], ["one"], ["same", "same"]])
def test_fewer_than_two_sentences_are_refused(sentences: list[str], tiny_plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 2 or more different sentences, found"):
        run(tiny_plain, tmp_path / "enc", sentences)
    assert list(tmp_path.iterdir()) == []


def test_one_string_is_not_sentences(tiny_plain: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a sequence of texts, found one string"):
        run(tiny_plain, tmp_path / "enc", "corpus.txt")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int, tiny_plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed must be"):
        run(tiny_plain, tmp_path / "enc", seed=seed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sentences", [["", "  ", "\t"], [f"{'dog ' * 30}{end}" for end in ("a cat", "the sun", "a lake")]]
)
def test_texts_that_are_the_same_to_the_model_are_refused(
    sentences: list[str], tiny_plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="all 3 sentences have the same tokens"):
        run(tiny_plain, tmp_path / "enc", sentences)
    assert not (tmp_path / "enc").exists()


def test_a_plain_model_needs_a_pooling(tiny_plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --pooling"):
        run(tiny_plain, tmp_path / "enc", pooling=None)


def test_a_collapse_leaves_no_folder(tiny_plain: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="the encoder has collapsed"):
        run(tiny_plain, tmp_path / "enc", learning_rate=1.0, warmup=0.0)
    assert not (tmp_path / "enc").exists()


# ---- where it trains


def test_the_training_goes_where_hf_trainer_finds_the_gpu(
    tiny_plain: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(jobs: dict[int, Any], devices: list[str], *, stop: StopRequest) -> None:
        assert devices == ["cuda:1"]
        pickle.loads(pickle.dumps(jobs[0]))(device="cpu", stop=stop)  # as in the process that sees this GPU alone

    monkeypatch.setattr(bootstrapping, "resolve_device", lambda device: "cuda:1")
    monkeypatch.setattr(bootstrapping, "run_on_devices", send)
    assert weights(run(tiny_plain, tmp_path / "enc")) == weights(whole)
