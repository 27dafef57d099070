"""Scores that need no training: what they measure, their ranges, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from transenc.alignment import align_tokens, encode_tokens
from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.scoring import score_pairs
from transenc.views import mean_rank, score_alignments, score_overlap, score_simplified, simplify_text


def make(*rows: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"sentence1": [a for a, _ in rows], "sentence2": [b for _, b in rows]})


def test_overlap_is_the_share_of_common_words() -> None:
    pairs = make(("A cat sat", "a CAT ran"), ("one", "two"), ("same", "same"), ("...", "!"))
    assert score_overlap(pairs, idf=False).tolist() == pytest.approx([2 / 4, 0, 1, 0])
    assert score_overlap(pairs, idf=False).dtype == np.float32


def test_rare_words_count_more() -> None:
    pairs = make(("the zebra", "the house"), ("a zebra", "the zebra"), ("the cat", "the dog"))
    # five... the different sentences: the zebra, the house, a zebra, the cat, the dog: n = 5
    weight = {word: math.log(6 / (1 + count)) for word, count in {"the": 4, "zebra": 2, "house": 1, "a": 1}.items()}
    first = weight["the"] / (weight["the"] + weight["zebra"] + weight["house"])
    second = weight["zebra"] / (weight["the"] + weight["zebra"] + weight["a"])
    found = score_overlap(pairs)
    assert found[:2].tolist() == pytest.approx([first, second], abs=1e-6)
    assert found[1] > found[0]


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("He said: “It rains!”", "He said It rains."),
        ("It rains.", "It rains."),
        ("It rains", "It rains."),
        ("don't", "don t."),
        ("?!", "?!"),
        ("", ""),
        ("C++ > C", "C++ > C."),
        ("今日は雨。", "今日は雨."),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया."),
    ],
)
def test_simplified_texts(text: str, simple: str) -> None:
    assert simplify_text(text) == simple
    assert simplify_text(simple) == simple


def test_simplified_scores_are_those_of_the_simplified_texts(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    plain = score_pairs(model, [("a cat.", "the dog.")])
    assert score_simplified(model, make(("a, cat!", "the dog"))) == pytest.approx(plain, abs=1e-6)


def test_alignments_are_those_of_single_pairs(tiny_bi: Path, tiny_pairs: list[tuple[str, str]]) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    rows = [*tiny_pairs[:9], (tiny_pairs[0][0], tiny_pairs[0][0])]
    found = score_alignments(model, make(*rows), batch_tokens=200)
    assert found.tolist() == pytest.approx([align_tokens(model, *row).score for row in rows], abs=1e-5)
    assert found[-1] == pytest.approx(1)
    swapped = score_alignments(model, make(*((b, a) for a, b in rows)))
    assert found.tolist() == pytest.approx(swapped.tolist(), abs=1e-6)


def test_a_sentence_without_words_matches_nothing(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    assert score_alignments(model, make(("", "a cat"), ("", ""))).tolist() == [0.0, 0.0]
    assert [len(vectors) for vectors in encode_tokens(model, ["", "a cat"], max_tokens=1)] == [0, 1]


def test_only_bi_encoders_have_token_vectors(tiny_cross: Path) -> None:
    with pytest.raises(TypeError, match="expected a bi-encoder"):
        score_alignments(load_cross_encoder(tiny_cross, device="cpu"), make(("a", "b")))


def test_places_are_averaged_over_columns() -> None:
    assert mean_rank([np.array([5.0, 1.0, 3.0])]).tolist() == [1.0, 0.0, 0.5]
    assert mean_rank([np.array([1.0, 2.0]), np.array([2.0, 1.0])]).tolist() == [0.5, 0.5]
    assert mean_rank([np.array([7.0])]).tolist() == [0.0]
