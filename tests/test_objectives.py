"""What each objective trains on, and that its loss is the one meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_pairs
from torch import nn
from transformers import AutoModel, AutoTokenizer

from transenc.config import BootstrapSettings
from transenc.encoders import load_bi_encoder
from transenc.errors import InputError
from transenc.objectives import build_objective, cut_to_window, delete_words, mask_span
from transenc.templates import install_template
from transenc.training import TrainingContext, train_contrastive

SENTENCES = [a for a, _ in make_pairs(24)]
SETTINGS = BootstrapSettings(batch_size=8, max_length=24)


def build(folder: Path, objective: str, **changes: Any) -> Any:
    model = load_bi_encoder(folder, device="cpu")
    return build_objective(
        model, SENTENCES, settings=dataclasses.replace(SETTINGS, objective=objective, **changes), seed=1
    )


# ---- views


@pytest.mark.parametrize("objective", ["simcse", "tension", "decomposed"])
def test_both_views_are_the_sentence(objective: str, tiny_bi: Path) -> None:
    views, _ = build(tiny_bi, objective)
    assert views["sentence1"][:] == views["sentence2"][:] == SENTENCES
    assert ("label" in views.column_names) == (objective == "decomposed")
    if objective == "decomposed":
        assert views["label"][:] == list(range(24))


def test_mirror_masks_a_span_of_the_second_view(tiny_bi: Path) -> None:
    views, _ = build(tiny_bi, "mirror")
    assert views["sentence1"][:] == SENTENCES
    for first, second in zip(SENTENCES, views["sentence2"], strict=True):
        left, mask, right = second.partition("[MASK]")
        assert mask and first.startswith(left.strip()) and first.endswith(right.strip())
        assert 5 <= len(first) - len(left.strip()) - len(right.strip()) <= 7  # with the spaces beside it
    places = {second.index("[MASK]") for second in views["sentence2"]}
    assert len(places) > 8
    assert build(tiny_bi, "mirror", mask_span=0)[0]["sentence2"][:] == SENTENCES


def test_spans_of_short_texts_and_of_texts_without_spaces() -> None:
    assert mask_span("short", length=5, mask="[MASK]", row=0, seed=1) == "short"
    masked = {mask_span("今日は天気がいい", length=5, mask="[MASK]", row=row, seed=1) for row in range(40)}
    assert masked == {"[MASK] がいい", "今 [MASK] いい", "今日 [MASK] い", "今日は [MASK]"}


def test_a_span_depends_on_seed_and_row_alone() -> None:
    first = [mask_span("the cat sees a small boat", length=5, mask="#", row=row, seed=1) for row in range(9)]
    assert first == [mask_span("the cat sees a small boat", length=5, mask="#", row=row, seed=1) for row in range(9)]
    assert first != [mask_span("the cat sees a small boat", length=5, mask="#", row=row, seed=2) for row in range(9)]


def test_words_are_deleted() -> None:
    text = " ".join(str(number) for number in range(2000))
    kept = delete_words(text, row=0, seed=1).split()
    assert kept == sorted(kept, key=int)
    assert len(kept) == pytest.approx(800, abs=4 * (2000 * 0.4 * 0.6) ** 0.5)  # binomial
    assert all(delete_words("one two", row=row, seed=1) in {"one", "two", "one two"} for row in range(50))
    shorter = delete_words("今日は天気がいいから散歩に行きたい", row=3, seed=1)
    assert 0 < len(shorter) < 17 and " " not in shorter
    assert delete_words("", row=0, seed=1) == ""


def test_texts_are_cut_to_the_window(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    texts = [" The cat sees  ", "the cat " * 50, "cat" * 30, ""]
    # 8 tokens, of which [CLS] and [SEP] are two; "catcat..." is one word: cat ##c ##a ##t ##c ##a ...
    expected = [" The cat sees  ", "the cat the cat the cat", "catcatca", ""]
    assert cut_to_window(model, texts, 8) == expected
    install_template(model, "near {} is {mask}")
    assert cut_to_window(model, texts, 10)[1:3] == ["the cat the cat the cat", "catcatca"]  # beside the prompt's 4
    model.tokenizer.truncation_side = "left"
    assert cut_to_window(model, texts[1:2], 8) == ["the cat the cat"]


@pytest.mark.parametrize("objective", ["mirror", "tsdae"])
def test_views_of_long_texts_are_drawn_inside_the_window(objective: str, tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    long = [" ".join([text] * 8) for text in SENTENCES]
    settings = dataclasses.replace(SETTINGS, objective=objective, mask_span=3)
    views, _ = build_objective(model, long, settings=settings, seed=1)
    read = cut_to_window(model, long, 24)
    assert all(len(text.split()) == 22 for text in read)
    if objective == "tsdae":
        assert views["sentence2"][:] == read
        for some, text in zip(views["sentence1"], read, strict=True):
            assert len(some.split()) < 22 and set(some.split()) <= set(text.split())
        return
    assert views["sentence1"][:] == long
    for text, view in zip(read, views["sentence2"], strict=True):
        left, mask, right = view.partition("[MASK]")
        assert mask and text.startswith(left.strip()) and text.endswith(right.strip())


# ---- losses


@pytest.mark.parametrize(
    ("objective", "changes", "kind", "scale"),
    [
        ("simcse", {}, "MultipleNegativesRankingLoss", 20),
        ("mirror", {}, "MultipleNegativesRankingLoss", 25),
        ("simcse", {"temperature": 0.1}, "MultipleNegativesRankingLoss", 10),
        ("simcse", {"mini_batch": 4}, "CachedMultipleNegativesRankingLoss", 20),
        ("mirror", {"mini_batch": 4}, "CachedMultipleNegativesRankingLoss", 25),
    ],
)
def test_contrastive_losses_and_their_scale(
    objective: str, changes: dict[str, Any], kind: str, scale: float, tiny_bi: Path
) -> None:
    _, loss = build(tiny_bi, objective, **changes)
    assert type(loss).__name__ == kind
    assert loss.scale == pytest.approx(scale)


def test_settings_reach_the_decomposed_loss_and_tension(tiny_bi: Path) -> None:
    _, loss = build(tiny_bi, "decomposed", memory=0.5, queue=7, sample=True, temperature=0.2)
    assert (loss.rows, loss.memory, loss.queue, loss.sample, loss.temperature) == (24, 0.5, 7, True, 0.2)
    _, loss = build(tiny_bi, "tension", temperature=0.1)
    assert float(loss.logit_scale.detach().exp()) == pytest.approx(10)


def test_the_decoder_is_tied_and_does_not_change_the_encoder(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, loss = build_objective(model, SENTENCES, settings=dataclasses.replace(SETTINGS, objective="tsdae"), seed=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    word = "embeddings.word_embeddings.weight"
    assert dict(loss.decoder.named_parameters())[f"bert.{word}"] is dict(model.named_parameters())[f"0.model.{word}"]


def test_a_decoder_of_half_precision_weights_is_trained_in_float32(tiny_plain: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    AutoModel.from_pretrained(tiny_plain, dtype=torch.float16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_plain).save_pretrained(half)
    model = load_bi_encoder(half, pooling="mean", device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, loss = build_objective(model, SENTENCES, settings=dataclasses.replace(SETTINGS, objective="tsdae"), seed=1)
    assert {value.dtype for value in [*loss.parameters(), *model.parameters()]} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_grad_cache_gives_the_gradient_of_the_whole_batch(tiny_bi: Path, tmp_path: Path) -> None:
    gradients, losses = [], []
    for mini_batch in (None, 3):
        model = load_bi_encoder(tiny_bi, device="cpu")
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        # without dropout simcse has nothing to tell apart; mirror has its spans
        settings = dataclasses.replace(SETTINGS, objective="mirror", mini_batch=mini_batch, learning_rate=1e-3)
        views, loss = build_objective(model, SENTENCES, settings=settings, seed=1)
        loss.train()
        loss([model.preprocess(views[name][:]) for name in ("sentence1", "sentence2")], None).backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
        context = TrainingContext(work=tmp_path / str(mini_batch), seed=1, save_steps=100)
        log = train_contrastive(model, SENTENCES, settings=settings, context=context)
        losses.append([row["loss"] for row in log if "loss" in row])
    largest = max(float(whole.abs().max()) for whole in gradients[0])
    assert largest > 0.1
    for whole, cached in zip(*gradients, strict=True):
        assert (whole - cached).abs().max() < 1e-5 * largest
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# ---- what does not fit


def test_an_objective_says_what_the_model_lacks(tiny_bi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    model.tokenizer.mask_token = None
    with pytest.raises(InputError, match="mirror: the model's tokenizer has no mask token"):
        build_objective(model, SENTENCES, settings=dataclasses.replace(SETTINGS, objective="mirror"), seed=1)


@pytest.mark.parametrize("objective", ["decomposed", "tsdae", "tension"])
def test_grad_cache_is_for_simcse_and_mirror(objective: str) -> None:
    with pytest.raises(InputError, match=f"mini_batch must be left out with objective {objective} .simcse and mirror"):
        BootstrapSettings(objective=objective, mini_batch=8)
