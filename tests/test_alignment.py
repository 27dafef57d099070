"""Token alignment: cosines and scores worked out by hand, special tokens left out, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from transenc.alignment import align_tokens, score_alignment
from transenc.encoders import load_bi_encoder
from transenc.errors import InputError, StateError


@pytest.fixture(scope="module")
def model(tiny_bi: Path) -> SentenceTransformer:
    return load_bi_encoder(tiny_bi)


def test_the_score_is_the_mean_of_the_best_matches_in_both_directions() -> None:
    # rows: best 0.9, 0.4 -> 0.65; columns: best 0.9, 0.2, 0.4 -> 0.5; their mean 0.575
    assert score_alignment(np.array([[0.9, 0.2, 0.1], [0.3, -0.5, 0.4]])) == pytest.approx(0.575)
    assert score_alignment(np.array([[-0.25]])) == -0.25


def test_cosines_are_those_of_the_last_layer_without_special_tokens(model: SentenceTransformer) -> None:
    found = align_tokens(model, "the small cat", "the Dog")
    assert (found.tokens1, found.tokens2) == (["the", "small", "cat"], ["the", "Dog"])
    assert (found.cosines.shape, found.cosines.dtype) == ((3, 2), np.float32)
    layers = model[0].auto_model
    with torch.inference_mode():
        first, second = (
            layers(**model.tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1].double()
            for text in ("the small cat", "the dog")
        )
    for i in range(3):
        for j in range(2):
            expected = float(first[i] @ second[j] / (first[i].norm() * second[j].norm()))
            assert found.cosines[i, j] == pytest.approx(expected, abs=1e-5)
    assert found.score == pytest.approx(score_alignment(found.cosines), abs=1e-12)
    assert not found.truncated


def test_the_same_sentence_and_the_other_order(model: SentenceTransformer) -> None:
    same = align_tokens(model, "a bird sings", "a bird sings")
    assert same.score == pytest.approx(1.0, abs=1e-6)
    assert np.diag(same.cosines) == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    one, other = (align_tokens(model, *pair) for pair in (("a bird", "the big cat"), ("the big cat", "a bird")))
    assert np.array_equal(one.cosines, other.cosines.T)
    assert one.score == other.score


def test_words_that_the_vocabulary_lacks_are_shown_as_they_are_written(model: SentenceTransformer) -> None:
    found = align_tokens(model, "zo ☃ cat", "[SEP] cat")
    assert found.tokens1 == ["z", "o", "☃", "cat"]  # spelled, unknown, known
    assert found.tokens2 == ["cat"]


def test_at_most_so_many_tokens_a_side(model: SentenceTransformer) -> None:
    found = align_tokens(model, "cat dog bird fish", "cat dog", max_tokens=2)
    assert (found.tokens1, found.tokens2, found.truncated) == (["cat", "dog"], ["cat", "dog"], True)
    assert found.cosines.shape == (2, 2)
    assert not align_tokens(model, "cat dog", "cat", max_tokens=2).truncated
    # 62 words and two special tokens fill the window of 64
    assert not align_tokens(model, "cat " * 62, "cat").truncated
    full = align_tokens(model, "cat " * 63, "cat")
    assert (len(full.tokens1), full.truncated) == (62, True)


@pytest.mark.parametrize(
    ("sentence", "problem"), [("", "sentence2: expected some words"), (" \n", "sentence2"), ("a\ud800", "surrogate")]
)
def test_what_cannot_be_aligned(model: SentenceTransformer, sentence: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        align_tokens(model, "a cat", sentence)


def test_wrong_arguments(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="SentenceTransformer"):
        align_tokens(None, "a", "b")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sentence1"):
        align_tokens(model, 1, "b")  # type: ignore[arg-type]
    for value in (0, True, 1.5):
        with pytest.raises(InputError, match="max_tokens"):
            align_tokens(model, "a", "b", max_tokens=value)  # type: ignore[arg-type]


def test_a_model_that_gives_nan_is_refused(tiny_bi: Path) -> None:
    broken = load_bi_encoder(tiny_bi)
    with torch.no_grad():
        broken[0].auto_model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(StateError, match="NaN"):
        align_tokens(broken, "a cat", "a dog")
