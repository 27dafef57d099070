"""Dropout of a training: what is set, for how long, and what asks for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from scenario import make_dataset
from torch import nn
from transformers import AutoModel, ModernBertConfig, T5Config

from transenc.config import BiTrainingSettings, BootstrapSettings, CrossTrainingSettings, TrainingSettings
from transenc.dropout import has_dropout, use_dropout
from transenc.encoders import Encoder, load_bi_encoder, load_cross_encoder
from transenc.errors import InputError
from transenc.training import TrainingContext, train_bi_encoder, train_contrastive, train_cross_encoder

PAIRS = make_dataset(16, gold=True)
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 50}


def rates(model: nn.Module) -> list[float]:
    return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


def differs(model: nn.Module) -> bool:
    """Whether two passes of the same tokens differ in training."""
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        first, second = (model.train()(input_ids=ids).last_hidden_state for _ in range(2))
    return not torch.equal(first, second)


def test_all_places_of_a_bert_are_set_and_set_back(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    own = rates(model)
    assert len(own) > 4
    assert min(own) > 0
    with pytest.raises(KeyError), use_dropout(model, 0.0):
        assert set(rates(model)) == {0.0}
        assert not has_dropout(model)
        assert not differs(model.transformers_model)
        raise KeyError
    assert rates(model) == own
    assert differs(model.transformers_model)


def test_attention_that_keeps_a_number_is_set_too() -> None:
    model = AutoModel.from_config(ModernBertConfig(**SMALL, pad_token_id=0, attention_dropout=0.1))
    assert differs(model)
    with use_dropout(model, 0.0):
        assert not differs(model)
    assert differs(model)


def test_a_model_without_dropout_gets_some() -> None:
    model = AutoModel.from_config(ModernBertConfig(**SMALL, pad_token_id=0))
    assert not has_dropout(model)
    assert not differs(model)
    with use_dropout(model, 0.2):
        assert has_dropout(model)
        assert differs(model)
    assert not differs(model)


def test_a_t5_is_set_too() -> None:
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.3)
    model = AutoModel.from_config(config).encoder
    with use_dropout(model, 0.0):
        assert not differs(model)
    assert differs(model)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_other_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="expected at least 0 and below 1"), use_dropout(nn.Dropout(), rate):
        pass
    with pytest.raises(InputError, match="dropout must be at least 0 and below 1, found"):
        BiTrainingSettings(dropout=rate)


# ---- in a training


def train(start: Path, work: Path, settings: TrainingSettings, seen: list[list[float]]) -> Encoder:
    context = TrainingContext(work=work, seed=1)
    model: Encoder
    if isinstance(settings, CrossTrainingSettings):
        model = load_cross_encoder(start, new_head=True, device="cpu")
    else:
        model = load_bi_encoder(start, device="cpu")
    model.register_forward_hook(lambda module, *_: seen.append(rates(module)) if module.training else None)
    if isinstance(settings, CrossTrainingSettings):
        train_cross_encoder(model, PAIRS, settings=settings, context=context)
    elif isinstance(settings, BiTrainingSettings):
        train_bi_encoder(model, PAIRS, settings=settings, context=context)
    else:
        train_contrastive(model, PAIRS["sentence1"], settings=settings, context=context)
    return model


@pytest.mark.parametrize(
    "settings",
    [BiTrainingSettings(), CrossTrainingSettings(), BootstrapSettings(), BootstrapSettings(objective="tension")],
    ids=["bi", "cross", "simcse", "tension"],
)
def test_a_training_uses_what_the_settings_say(settings: TrainingSettings, tiny_bi: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, batch_size=8, max_length=24)
    seen: list[list[float]] = []
    own = rates(train(tiny_bi, tmp_path / "own", settings, seen))
    assert seen
    assert all(entry == own for entry in seen)
    seen.clear()
    model = train(tiny_bi, tmp_path / "set", dataclasses.replace(settings, dropout=0.25), seen)
    assert seen
    assert {rate for entry in seen for rate in entry} == {0.25}
    assert rates(model) == own
    model.save_pretrained(str(tmp_path / "saved"))
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_dropout_prob"] == own[0]


def test_without_dropout_seeds_differ_in_the_order_alone(tiny_bi: Path, tmp_path: Path) -> None:
    """In a single batch all pairs are seen together: what is left of a seed is the dropout."""
    losses = []
    for dropout, seed in ((None, 1), (None, 2), (0.0, 1), (0.0, 2)):
        model = load_bi_encoder(tiny_bi, device="cpu")
        settings = BiTrainingSettings(batch_size=len(PAIRS), max_length=24, dropout=dropout)
        context = TrainingContext(work=tmp_path / f"{dropout}-{seed}", seed=seed)
        losses.append(train_bi_encoder(model, PAIRS, settings=settings, context=context)[0]["loss"])
    assert abs(losses[0] - losses[1]) > 1e-3
    assert losses[2] == pytest.approx(losses[3], abs=1e-5)


@pytest.mark.parametrize("objective", ["simcse", "decomposed"])
def test_an_objective_whose_views_are_dropout_needs_some(objective: str, tiny_bi: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^dropout must be above 0 with objective {objective}"):
        BootstrapSettings(objective=objective, dropout=0.0)
    model = load_bi_encoder(tiny_bi, device="cpu")
    settings = BootstrapSettings(objective=objective, batch_size=8, max_length=24)
    context = TrainingContext(work=tmp_path, seed=1)
    with use_dropout(model, 0.0):
        with pytest.raises(InputError, match=r"the model has no dropout, so .* same; set dropout, for instance 0.1$"):
            train_contrastive(model, PAIRS["sentence1"], settings=settings, context=context)
        train_contrastive(
            model, PAIRS["sentence1"], settings=dataclasses.replace(settings, dropout=0.1), context=context
        )
