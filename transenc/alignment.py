"""Which words of two sentences mean the same: the cosines of a bi-encoder's token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from transenc.errors import InputError, StateError
from transenc.scoring import cut_texts


@dataclass(frozen=True, eq=False, slots=True)
class Alignment:
    """The tokens of two sentences and how similar they are.

    Args:
        tokens1: The n1 tokens of the first sentence, as they stand in it, special tokens left out.
        tokens2: The n2 tokens of the second.
        cosines: float32 [n1, n2], in [-1, 1].
        score: Mean over both directions of the mean cosine of each token to its best match, in [-1, 1].
        truncated: A sentence has more tokens than were kept.

    Example:
        >>> Alignment(["a", "cat"], ["cat"], np.float32([[0.1], [0.9]]), 0.7, False).score
        0.7
    """

    tokens1: list[str]
    tokens2: list[str]
    cosines: np.ndarray
    score: float
    truncated: bool


def align_tokens(model: SentenceTransformer, sentence1: str, sentence2: str, *, max_tokens: int = 64) -> Alignment:
    """Compare every token of one sentence with every token of the other, in context.

    A token is what the model's tokenizer makes, its vector is that of the model's last layer. The score is a
    similarity of its own, a third view beside the cosine of the sentences and the cross-encoder; compare
    BERTScore (Zhang et al., 2020), whose precision and recall are the two directions.

    Args:
        model: A bi-encoder on a transformer. Its prompts are not used.
        sentence1: Text.
        sentence2: Text; with the sentences exchanged the cosines are transposed and the score is the same.
        max_tokens: Tokens of a sentence that are compared, 1 or more, from its beginning.

    Returns:
        The tokens, their cosines and the score.

    Raises:
        TypeError: Not a bi-encoder, or not strings.
        InputError: A sentence without a token, a lone surrogate, `max_tokens` below 1, or a model without
            token embeddings.
        StateError: The model gave NaN or infinity.

    Example:
        >>> align_tokens(load_bi_encoder("my/encoder"), "a cat sleeps", "the cat")  # doctest: +SKIP
    """
    if not isinstance(model, SentenceTransformer):
        raise TypeError(f"expected a bi-encoder (SentenceTransformer), found {type(model).__name__}")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise InputError(f"max_tokens: expected a whole number of 1 or more, found {max_tokens!r}")
    tokens1, vectors1, cut1 = _encode_tokens(model, sentence1, "sentence1", max_tokens)
    tokens2, vectors2, cut2 = _encode_tokens(model, sentence2, "sentence2", max_tokens)
    # not a matrix product: its sums may depend on the shape, and so on the order of the sentences
    cosines = np.clip(np.einsum("id,jd->ij", vectors1, vectors2), -1.0, 1.0).astype(np.float32)
    return Alignment(tokens1, tokens2, cosines, score_alignment(cosines), cut1 or cut2)


def score_alignment(cosines: np.ndarray) -> float:
    """Return the mean over both directions of the mean best match.

    Args:
        cosines: [n1, n2], n1 and n2 at least 1.

    Example:
        >>> score_alignment(np.array([[1.0, 0.0], [0.5, 0.25]]))  # ((1 + 0.5) / 2 + (1 + 0.25) / 2) / 2
        0.6875
    """
    wide = np.asarray(cosines, dtype=np.float64)
    return float((wide.max(axis=1).mean() + wide.max(axis=0).mean()) / 2)


def encode_tokens(
    model: SentenceTransformer, texts: Sequence[str], *, max_tokens: int = 64, batch_size: int = 32
) -> list[np.ndarray]:
    """The vectors of each text's tokens in the model's last layer, at length 1; special tokens left out.

    Args:
        model: A bi-encoder on a transformer. Its prompts are not used.
        texts: Strings.
        max_tokens: Tokens of a text that are kept, from its beginning.
        batch_size: Texts that go through the model at once.

    Returns:
        A float32 array [n, dim] a text; n is 0 for one without a token.

    Raises:
        TypeError: Not a bi-encoder. InputError: A model without token embeddings. StateError: NaN or infinity.

    Example:
        >>> encode_tokens(load_bi_encoder("my/encoder"), ["a cat"])[0].shape  # doctest: +SKIP
        (2, 384)
    """
    if not isinstance(model, SentenceTransformer):
        raise TypeError(f"expected a bi-encoder (SentenceTransformer), found {type(model).__name__}")
    return [vectors[:max_tokens].astype(np.float32) for _, _, vectors in _embed_tokens(model, texts, batch_size)]


def _embed_tokens(
    model: SentenceTransformer, texts: Sequence[str], batch_size: int
) -> list[tuple[list[int], list[int], np.ndarray]]:
    """Of each text the ids as batched, the places of its n words' tokens, and their vectors, float64 [n, dim]."""
    special = set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}  # an unknown word is a word
    cut = cut_texts(texts, model.max_seq_length or 10**6)
    found = []
    # prompt="": none, also where the model has one by default
    encoded: Any = model.encode(cut, prompt="", batch_size=batch_size, output_value=None, show_progress_bar=False)
    for features in encoded:
        if "token_embeddings" not in features or "input_ids" not in features:
            raise InputError("the encoder gives no token embeddings to align; take one on a transformer")
        attended = features["attention_mask"].tolist()
        ids = features["input_ids"].tolist()[: len(attended)]
        kept = [
            row for row, (token, seen) in enumerate(zip(ids, attended, strict=True)) if seen and token not in special
        ]
        vectors = features["token_embeddings"].float().cpu().numpy().astype(np.float64)[kept]
        if not np.isfinite(vectors).all():
            raise StateError("the bi-encoder gave NaN or infinity for a token")
        lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        vectors /= np.where(lengths > 0, lengths, 1.0)  # a zero vector has no direction: cosine 0
        found.append((ids, kept, vectors))
    return found


def _encode_tokens(
    model: SentenceTransformer, sentence: Any, name: str, max_tokens: int
) -> tuple[list[str], np.ndarray, bool]:
    """Tokens, their vectors at length 1, float64 [n, dim], and whether some are left out."""
    if not isinstance(sentence, str):
        raise TypeError(f"{name} must be a string, found {type(sentence).__name__}")
    try:
        sentence.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds a lone surrogate (character {error.start}); remove it") from None
    (text,) = cut_texts([sentence], model.max_seq_length or 10**6)
    ((ids, kept, vectors),) = _embed_tokens(model, [sentence], 1)
    if not kept:
        raise InputError(f"{name}: expected some words, found none that the tokenizer sees")
    tokenizer = model.tokenizer
    whole = tokenizer(text, return_offsets_mapping=getattr(tokenizer, "is_fast", False), verbose=False)
    cut = len(kept) > max_tokens or len(whole["input_ids"]) > len(ids) or len(text) < len(sentence)
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
    spans = whole.get("offset_mapping", [])
    for row in kept[:max_tokens]:
        # as it stands in the text, where the tokenizer can say and the model read the text as it is
        if row < len(spans) and whole["input_ids"][row] == ids[row]:
            names[row] = text[slice(*spans[row])].strip() or names[row]
    return [names[row] for row in kept[:max_tokens]], vectors[:max_tokens], cut
