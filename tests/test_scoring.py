"""Scores equal plain sentence-transformers, each text is read once, bad input is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer

from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import InputError, StateError
from transenc.scoring import encode_texts, score_pairs

Pairs = list[tuple[str, str]]


@pytest.fixture
def bi(tiny_bi: Path) -> SentenceTransformer:
    return load_bi_encoder(tiny_bi)


@pytest.fixture
def cross(tiny_cross: Path) -> CrossEncoder:
    return load_cross_encoder(tiny_cross)


def record(model: Any, method: str) -> list[list[Any]]:
    """Keep what reaches `encode` or `predict`, batch by batch."""
    batches: list[list[Any]] = []
    original: Callable[..., Any] = getattr(model, method)

    def wrapper(batch: Sequence[Any], **options: Any) -> Any:
        batches.append(list(batch))
        return original(batch, **options)

    object.__setattr__(model, method, wrapper)
    return batches


def cosines(model: SentenceTransformer, pairs: Pairs) -> np.ndarray:
    a, b = (model.encode([pair[side] for pair in pairs]).astype(np.float64) for side in (0, 1))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# ---- equal to plain sentence-transformers


def test_bi_encoder_scores_are_the_plain_cosines(bi: SentenceTransformer, tiny_bi: Path, tiny_pairs: Pairs) -> None:
    scores = score_pairs(bi, tiny_pairs)
    assert (scores.dtype, scores.shape) == (np.float32, (64,))
    np.testing.assert_allclose(scores, cosines(SentenceTransformer(str(tiny_bi), device="cpu"), tiny_pairs), atol=1e-5)
    assert scores.std() > 0.1  # the tiny model tells pairs apart, so that the line above means something


def test_cross_encoder_scores_are_the_plain_predictions(
    cross: CrossEncoder, tiny_cross: Path, tiny_pairs: Pairs
) -> None:
    plain = CrossEncoder(str(tiny_cross), device="cpu")
    there, back = plain.predict(tiny_pairs), plain.predict([(b, a) for a, b in tiny_pairs])
    np.testing.assert_allclose(score_pairs(cross, tiny_pairs, symmetric=False), there, atol=1e-5)
    np.testing.assert_allclose(score_pairs(cross, tiny_pairs), (there + back) / 2, atol=1e-5)
    assert np.abs(there - back).max() > 0.01
    assert there.std() > 0.05


def test_a_real_model_gives_the_plain_cosines(minilm: Path) -> None:
    pairs = [
        ("A man is playing a guitar.", "Someone plays an instrument."),
        ("A man is playing a guitar.", "The market fell by two per cent on Monday, its third loss in a row."),
        ("", "😀 مرحبا naïve"),
    ]
    plain = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    np.testing.assert_allclose(score_pairs(load_bi_encoder(minilm), pairs), cosines(plain, pairs), atol=1e-5)


def test_vectors_are_the_plain_ones(bi: SentenceTransformer, tiny_bi: Path, tiny_pairs: Pairs) -> None:
    texts = [text for pair in tiny_pairs for text in pair]
    vectors = encode_texts(bi, texts)
    assert (vectors.dtype, vectors.shape) == (np.float32, (128, 32))
    np.testing.assert_allclose(vectors, SentenceTransformer(str(tiny_bi), device="cpu").encode(texts), atol=1e-5)


def test_a_default_prompt_is_used_as_in_plain_sentence_transformers(tiny_bi: Path, tmp_path: Path) -> None:
    model = load_bi_encoder(tiny_bi)
    model.prompts, model.default_prompt_name = {"ask": "who sees "}, "ask"
    model.save_pretrained(str(tmp_path / "prompted"))
    plain = SentenceTransformer(str(tmp_path / "prompted"), device="cpu")
    texts = ["the cat", "the old dog"]
    found = encode_texts(load_bi_encoder(tmp_path / "prompted"), texts)
    np.testing.assert_allclose(found, plain.encode(texts), atol=1e-5)
    assert np.abs(found - encode_texts(load_bi_encoder(tiny_bi), texts)).max() > 0.01


def test_queries_and_documents_get_the_prompts_of_the_model(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi)
    model.prompts = {"query": "how is ", "document": "this is "}
    plain = load_bi_encoder(tiny_bi)
    text = "the cat"
    np.testing.assert_allclose(
        np.concatenate([encode_texts(model, [text], role=role) for role in (None, "query", "document")]),
        plain.encode([text, "how is the cat", "this is the cat"]),
        atol=1e-5,
    )
    for role in ("query", "document"):  # a model without prompts reads the text as it is
        np.testing.assert_array_equal(encode_texts(plain, [text], role=role), encode_texts(plain, [text]))
    with pytest.raises(InputError, match="role must be query, document or None, found 'passage'"):
        encode_texts(model, [text], role="passage")  # type: ignore[arg-type]


def test_the_activation_of_the_model_is_kept(cross: CrossEncoder, tiny_pairs: Pairs) -> None:
    probabilities = score_pairs(cross, tiny_pairs).astype(np.float64)
    assert probabilities.min() > 0
    assert probabilities.max() < 1
    cross.activation_fn = torch.nn.Identity()
    logits = score_pairs(cross, tiny_pairs, symmetric=False)
    np.testing.assert_allclose(logits, cross.predict(tiny_pairs), atol=1e-5)
    assert logits.min() < 0


def test_half_precision_models_give_float32_scores(tiny_bi: Path, tiny_pairs: Pairs) -> None:
    exact = score_pairs(load_bi_encoder(tiny_bi), tiny_pairs)
    scores = score_pairs(load_bi_encoder(tiny_bi, dtype="bfloat16"), tiny_pairs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, exact, atol=0.03)


# ---- once each, in any order


def test_each_sentence_is_encoded_once(bi: SentenceTransformer, tiny_pairs: Pairs) -> None:
    batches = record(bi, "encode")
    pairs = [*tiny_pairs, *((b, a) for a, b in tiny_pairs), *((a, a) for a, _ in tiny_pairs)]
    scores = score_pairs(bi, pairs)
    seen = [text for batch in batches for text in batch]
    assert sorted(seen) == sorted({text for pair in tiny_pairs for text in pair})
    assert scores[:64].tolist() == scores[64:128].tolist()
    np.testing.assert_allclose(scores[128:], 1.0, atol=1e-6)


def test_each_pair_is_read_once_in_each_order(cross: CrossEncoder, tiny_pairs: Pairs) -> None:
    batches = record(cross, "predict")
    text = tiny_pairs[0][0]
    scores = score_pairs(cross, [*tiny_pairs, *((b, a) for a, b in tiny_pairs), (text, text), (text, text)])
    seen = [pair for batch in batches for pair in batch]
    assert sorted(seen) == sorted([*tiny_pairs, *((b, a) for a, b in tiny_pairs), (text, text)])
    assert scores[:64].tolist() == scores[64:128].tolist()
    batches.clear()
    score_pairs(cross, [*tiny_pairs, *tiny_pairs], symmetric=False)
    assert sorted(pair for batch in batches for pair in batch) == sorted(tiny_pairs)


def test_batches_hold_the_token_budget_and_are_sorted_by_length(bi: SentenceTransformer) -> None:
    texts = ["cat " * n for n in (1, 2, 3, 10, 11, 12, 30, 60, 61)]
    batches = record(bi, "encode")
    encode_texts(bi, texts, batch_tokens=64)
    # With [CLS] and [SEP]: 63, 62, 32, 14, 13, 12, 5, 4 and 3 tokens; 64 // 14 = 4 texts, padded to 14.
    lengths = [[len(text.split()) for text in batch] for batch in batches]
    assert lengths == [[61], [60], [30, 12], [11, 10, 3, 2], [1]]


def test_scores_do_not_depend_on_batches_or_order(
    bi: SentenceTransformer, cross: CrossEncoder, tiny_pairs: Pairs
) -> None:
    order = np.random.default_rng(0).permutation(64)
    for model in (bi, cross):
        expected = score_pairs(model, tiny_pairs)
        for budget in (1, 7, 64, 100_000):
            np.testing.assert_allclose(score_pairs(model, tiny_pairs, batch_tokens=budget), expected, atol=1e-6)
        shuffled = score_pairs(model, [tiny_pairs[k] for k in order])
        np.testing.assert_allclose(shuffled, expected[order], atol=1e-6)
        assert score_pairs(model, tiny_pairs).tolist() == expected.tolist()


def test_an_ensemble_is_the_mean(
    bi: SentenceTransformer, tiny_bi_b: Path, cross: CrossEncoder, tiny_pairs: Pairs
) -> None:
    group = [bi, load_bi_encoder(tiny_bi_b), cross]
    singles = [score_pairs(model, tiny_pairs) for model in group]
    np.testing.assert_allclose(score_pairs(group, tiny_pairs), np.mean(singles, axis=0), atol=1e-6)
    np.testing.assert_allclose(score_pairs(tuple(group[:1]), tiny_pairs), singles[0], atol=1e-6)


def test_a_dataset_is_read_like_a_list(bi: SentenceTransformer, tiny_pairs: Pairs) -> None:
    first, second = zip(*tiny_pairs, strict=True)
    rows = Dataset.from_dict({"sentence1": first, "sentence2": second, "score": [0.5] * 64})
    assert score_pairs(bi, rows).tolist() == score_pairs(bi, tiny_pairs).tolist()
    assert encode_texts(bi, rows["sentence1"]).shape == (64, 32)
    with pytest.raises(InputError, match="lack the column sentence2; found sentence1, score"):
        score_pairs(bi, rows.remove_columns("sentence2"))


def test_nothing_gives_nothing(bi: SentenceTransformer, cross: CrossEncoder) -> None:
    for model in (bi, cross, [bi, cross]):
        scores = score_pairs(model, [])
        assert (scores.shape, scores.dtype) == ((0,), np.float32)
    vectors = encode_texts(bi, [])
    assert (vectors.shape, vectors.dtype) == ((0, 32), np.float32)


def test_the_bar_goes_to_stderr(
    bi: SentenceTransformer, cross: CrossEncoder, tiny_pairs: Pairs, capsys: pytest.CaptureFixture[str]
) -> None:
    score_pairs([bi, cross], tiny_pairs)
    assert capsys.readouterr() == ("", "")
    score_pairs([bi, cross], tiny_pairs, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "128/128" in err


# ---- numbers


def test_the_cosine_of_a_text_with_itself_is_at_most_1(bi: SentenceTransformer, tiny_pairs: Pairs) -> None:
    scores = score_pairs(bi, [(a, a) for a, _ in tiny_pairs])
    assert scores.max() <= 1.0
    assert scores.min() > 1 - 1e-6


def test_a_zero_vector_scores_0(bi: SentenceTransformer) -> None:
    norm = bi[0].auto_model.encoder.layer[1].output.LayerNorm
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()
    assert encode_texts(bi, ["the cat"]).tolist() == [[0.0] * 32]
    assert score_pairs(bi, [("the cat", "the dog"), ("the cat", "the cat")]).tolist() == [0.0, 0.0]


def test_numbers_that_are_not_finite_stop(bi: SentenceTransformer, cross: CrossEncoder) -> None:
    with torch.no_grad():
        bi[0].auto_model.embeddings.word_embeddings.weight[bi.tokenizer.convert_tokens_to_ids("cat")] = float("nan")
        cross.model.classifier.weight.fill_(float("inf"))
    assert score_pairs(bi, [("a dog", "a bird")]).shape == (1,)
    with pytest.raises(StateError, match=r"bi-encoder gave NaN or inf for 1 texts.*'the cat'"):
        score_pairs(bi, [("a dog", "the cat")])
    with pytest.raises(StateError, match="bi-encoder gave NaN or inf"):
        encode_texts(bi, ["the cat"])
    cross.activation_fn = torch.nn.Identity()
    with pytest.raises(StateError, match=r"cross-encoder gave .* 'a dog', 'the cat'"):
        score_pairs(cross, [("a dog", "the cat")])


# ---- texts


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("ab", "pairs must be a sequence such as a list, found str"),
        (["ab", "cd"], "pair 0 must be two strings, found str"),
        ([("a", "b"), ("a", "b", "c")], "pair 1 must be two strings, found 3 items"),
        ([["a"]], "pair 0 must be two strings, found 1 items"),
        ([("a", None)], "pair 0, sentence2 must be a string, found NoneType"),
        ([("a", "b"), (float("nan"), "b")], "pair 1, sentence1 must be a string, found float"),
        ([(3, "b")], "pair 0, sentence1 must be a string, found int"),
        ([(b"a", "b")], "pair 0, sentence1 must be a string, found bytes"),
        ([("a", ["b", "c"])], "pair 0, sentence2 must be a string, found list"),
        ([{"sentence1": "a", "sentence2": "b"}], "pair 0 must be two strings, found dict"),
        ({("a", "b")}, "pairs must be a sequence such as a list, found set"),
        ((pair for pair in [("a", "b")]), "pairs must be a sequence such as a list, found generator"),
        (None, "pairs must be a sequence such as a list, found NoneType"),
    ],
)
def test_what_is_no_pair_is_named(pairs: Any, message: str, bi: SentenceTransformer, cross: CrossEncoder) -> None:
    for model in (bi, cross):
        with pytest.raises(TypeError, match=f"^{message}$"):
            score_pairs(model, pairs)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text", "texts must be a sequence such as a list, found str"),
        ({"a": 1}, "texts must be a sequence such as a list, found dict"),
        (["a", None], "text 1 must be a string, found NoneType"),
        (["a", ("b", "c")], "text 1 must be a string, found tuple"),
    ],
)
def test_what_is_no_text_is_named(texts: Any, message: str, bi: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match=f"^{message}$"):
        encode_texts(bi, texts)


def test_a_lone_surrogate_is_named(bi: SentenceTransformer, cross: CrossEncoder) -> None:
    for model in (bi, cross):
        with pytest.raises(ValueError, match=r"pair 1, sentence2 holds a lone surrogate \(character 2\)"):
            score_pairs(model, [("a", "b"), ("a", "ab\ud800")])
    with pytest.raises(ValueError, match="text 0 holds a lone surrogate"):
        encode_texts(bi, ["\udfff"])


def test_odd_texts_are_scored(bi: SentenceTransformer, cross: CrossEncoder) -> None:
    odd = ["", "   ", "\x00", "\x1b[31m", "👩\u200d👩\u200d👧", "مرحبا", "e" + "\u0301" * 10_000, "\n\t", "NaN"]
    pairs = [(text, "the cat") for text in odd]
    for model in (bi, cross):
        assert np.isfinite(score_pairs(model, pairs)).all()


def test_long_texts_are_cut_before_they_are_tokenized(
    bi: SentenceTransformer, cross: CrossEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    long = "the cat sees a dog " * 250_000  # 5 million characters
    encoded, predicted = record(bi, "encode"), record(cross, "predict")
    for pair in ((long, long), (long, "a bird"), ("a bird", long)):
        score_pairs([bi, cross], [pair])
    longest = 64 * 16  # tokens, characters kept for each
    assert max(len(text) for batch in encoded for text in batch) == longest
    assert max(len(text) for batch in predicted for pair in batch for text in pair) == longest
    assert "1 of 1 texts are longer than 64 tokens" in caplog.text
    assert "2 of 2 pairs are longer than 64 tokens" in caplog.text
    np.testing.assert_allclose(encode_texts(bi, [long])[0], bi.encode(long[:2000]), atol=1e-5)


def test_nothing_is_logged_about_texts_that_fit(
    bi: SentenceTransformer, tiny_pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    score_pairs(bi, tiny_pairs)
    assert caplog.text == ""


# ---- encoders and settings


def test_what_is_no_encoder_is_refused(tiny_bi: Path, tmp_path: Path, cross: CrossEncoder) -> None:
    from tiny import build_plain

    with pytest.raises(TypeError, match=r"load_encoder gives one from a folder\), found str"):
        score_pairs(str(tiny_bi), [("a", "b")])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no encoder given"):
        score_pairs([], [("a", "b")])
    with pytest.raises(TypeError, match=r"expected a bi-encoder .* found CrossEncoder"):
        encode_texts(cross, ["a"])  # type: ignore[arg-type]
    three = CrossEncoder(str(build_plain(tmp_path / "three", labels=3)), device="cpu", local_files_only=True)
    with pytest.raises(InputError, match="one score, found 3 outputs"):
        score_pairs(three, [("a", "b")])


@pytest.mark.parametrize("budget", [0, -1, 1.5, "8", True])
def test_budgets_out_of_range_are_refused(budget: Any, bi: SentenceTransformer) -> None:
    with pytest.raises(InputError, match="batch_tokens must be a whole number of 1 or more"):
        score_pairs(bi, [("a", "b")], batch_tokens=budget)
