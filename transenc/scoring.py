"""The one inference path: labelling, evaluation, ensembles and reranking all score pairs here.

Each unique text (bi-encoder) or pair (cross-encoder) goes through the model once, in batches of similar length that
hold a fixed number of tokens. Scores equal those of plain sentence-transformers to 1e-5 in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from tqdm import tqdm

from transenc.encoders import Encoder
from transenc.errors import InputError, StateError

_LOG = logging.getLogger(__name__)

# Characters kept per token of the model's length, before the tokenizer sees the text: tokenising a pair takes memory
# quadratic in its length. English has 4 to 5 characters to a token, so a text that this changes is no ordinary text.
_CHARACTERS_PER_TOKEN = 16
_TOKENIZED_AT_ONCE = 1_000_000  # characters, bounds the memory of the length count
_ROWS_AT_ONCE = 8192  # pairs whose cosines are taken at once
# Measured on one CPU core with a 6-layer encoder: 1024 to 2048 tokens stay in the cache, 16384 take 1.5 times as long.
# A GPU needs far more to be busy; the number for it is an estimate.
_BATCH_TOKENS_CPU, _BATCH_TOKENS_GPU = 2048, 32768


def score_pairs(
    encoders: Encoder | Sequence[Encoder],
    pairs: Dataset | Sequence[tuple[str, str]],
    *,
    symmetric: bool = True,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Score sentence pairs with a bi-encoder, a cross-encoder, or the mean of several.

    A bi-encoder's score is the cosine, in [-1, 1]; 0 when one of the vectors is zero. A cross-encoder's score is
    what its own `predict` gives, for one label the sigmoid, in [0, 1].

    Args:
        encoders: One encoder, or a sequence of them (an ensemble: the mean of the scores).
        pairs: A dataset with the columns sentence1 and sentence2, or a sequence of (str, str).
        symmetric: The order of a pair means nothing: a cross-encoder reads both orders, and the score is their mean.
        batch_tokens: Tokens in a batch, padding included; decides speed and memory, not the scores. None: a
            measured value for the encoder's device.
        progress: Show a progress bar on stderr.

    Returns:
        float32 scores of shape [n], in the order of `pairs`.

    Raises:
        TypeError: Not pairs of strings; the position is named.
        InputError: No encoder, a missing column, a lone surrogate, a cross-encoder with several outputs.
        StateError: An encoder gave NaN or inf.

    Example:
        >>> from transenc import load_encoder, score_pairs  # doctest: +SKIP
        >>> score_pairs(load_encoder("my/encoder"), [("a cat", "a kitten")]).shape  # doctest: +SKIP
        (1,)
    """
    scores = score_each(encoders, pairs, symmetric=symmetric, batch_tokens=batch_tokens, progress=progress)
    return scores.mean(axis=0).astype(np.float32)


def score_each(
    encoders: Encoder | Sequence[Encoder],
    pairs: Dataset | Sequence[tuple[str, str]],
    *,
    symmetric: bool = True,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Score sentence pairs with each of several encoders; arguments and errors are those of `score_pairs`.

    Returns:
        float64 scores of shape [encoders, n].

    Example:
        >>> score_each([bi, cross], [("a cat", "a kitten")]).shape  # doctest: +SKIP
        (2, 1)
    """
    group = list_encoders(encoders)
    _check_batch_tokens(batch_tokens)
    texts, left, right = _index_pairs(pairs)
    scores = np.zeros((len(group), len(left)), dtype=np.float64)
    for number, encoder in enumerate(group if len(left) else ()):
        try:
            if isinstance(encoder, SentenceTransformer):
                row = _score_bi(encoder, texts, left, right, batch_tokens=batch_tokens, progress=progress)
            else:
                row = _score_cross(
                    encoder, texts, left, right, symmetric=symmetric, batch_tokens=batch_tokens, progress=progress
                )
        except StateError as error:
            if len(group) == 1:
                raise
            raise StateError(f"encoder {number}: {error}") from error
        scores[number] = row
    return scores


def encode_texts(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    role: Literal["query", "document"] | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Encode texts with a bi-encoder, each unique one once.

    Args:
        model: A bi-encoder.
        texts: Strings.
        role: What the texts are in a search: the model's own prompt or module for it is used, where it has one.
            None: sentences, as for similarity.
        batch_tokens: Tokens in a batch, padding included; decides speed and memory, not the vectors. None: a
            measured value for the model's device.
        progress: Show a progress bar on stderr.

    Returns:
        float32 vectors of shape [n, dim] as the model gives them, (0, dim) for no texts.

    Raises:
        TypeError: Not a sequence of strings; the position is named.
        InputError: A lone surrogate (the position is named), or another role.
        StateError: The model gave NaN or inf.

    Example:
        >>> from transenc import encode_texts, load_bi_encoder  # doctest: +SKIP
        >>> encode_texts(load_bi_encoder("my/encoder"), []).shape  # doctest: +SKIP
        (0, 384)
    """
    if not isinstance(model, SentenceTransformer):
        raise TypeError(f"expected a bi-encoder (SentenceTransformer), found {type(model).__name__}")
    if role not in (None, "query", "document"):
        raise InputError(f"role must be query, document or None, found {role!r}")
    _check_batch_tokens(batch_tokens)
    values = _check_sequence(texts, "texts")
    for position, text in enumerate(values):
        _check_text(text, f"text {position}")
    unique: dict[str, int] = {}
    rows = [unique.setdefault(text, len(unique)) for text in values]
    return _encode_unique(model, list(unique), role=role, batch_tokens=batch_tokens, progress=progress)[rows]


def cut_texts(texts: Sequence[str], limit: int) -> list[str]:
    """Cut very long texts by characters, before a tokenizer sees them: its memory grows with the length.

    Args:
        texts: Strings.
        limit: Tokens that the model reads, 1 or more.

    Returns:
        The texts, no longer than 16 characters a token.

    Example:
        >>> cut_texts(["a" * 10**6], 32) == ["a" * 512]
        True
    """
    return [text[: limit * _CHARACTERS_PER_TOKEN] for text in texts]


def list_encoders(encoders: Encoder | Sequence[Encoder]) -> list[Encoder]:
    """Return one encoder or several as a list of such as can score pairs.

    Raises:
        TypeError: Something else than an encoder.
        InputError: No encoder, or a cross-encoder with several outputs.

    Example:
        >>> list_encoders([])
        Traceback (most recent call last):
        transenc.errors.InputError: no encoder given; expected one or more
    """
    group: list[Any] = list(encoders) if isinstance(encoders, list | tuple) else [encoders]
    if not group:
        raise InputError("no encoder given; expected one or more")
    for encoder in group:
        if not isinstance(encoder, SentenceTransformer | CrossEncoder):
            raise TypeError(
                "expected a SentenceTransformer or a CrossEncoder (load_encoder gives one from a folder), "
                f"found {type(encoder).__name__}"
            )
        if isinstance(encoder, CrossEncoder) and encoder.num_labels != 1:
            raise InputError(f"expected a cross-encoder with one score, found {encoder.num_labels} outputs")
    return group


def _check_batch_tokens(batch_tokens: Any) -> None:
    if batch_tokens is None:
        return
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise InputError(f"batch_tokens must be a whole number of 1 or more, found {batch_tokens!r}")


def _check_sequence(values: Any, name: str) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence such as a list, found {type(values).__name__}")
    return list(values)


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{where} must be a string, found {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds a lone surrogate (character {error.start}), which no tokenizer reads; remove it"
        ) from None


def _index_pairs(pairs: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Unique texts, and for each pair the positions of its two sentences among them."""
    if isinstance(pairs, Dataset):
        for column in ("sentence1", "sentence2"):
            if column not in pairs.column_names:
                raise InputError(f"the pairs lack the column {column}; found {', '.join(pairs.column_names)}")
        columns = [list(pairs["sentence1"]), list(pairs["sentence2"])]  # lazy columns, read once
        rows: Iterable[Any] = zip(*columns, strict=True)
    else:
        rows = _check_sequence(pairs, "pairs")
    unique: dict[str, int] = {}
    index: tuple[list[int], list[int]] = ([], [])
    for position, row in enumerate(rows):
        if not isinstance(row, tuple | list) or len(row) != 2:
            found = f"{len(row)} items" if isinstance(row, tuple | list) else type(row).__name__
            raise TypeError(f"pair {position} must be two strings, found {found}")
        for side, text in enumerate(row):
            if not isinstance(text, str) or text not in unique:  # each unique text is checked once
                _check_text(text, f"pair {position}, sentence{side + 1}")
            index[side].append(unique.setdefault(text, len(unique)))
    return list(unique), np.array(index[0], dtype=np.int64), np.array(index[1], dtype=np.int64)


def _score_bi(
    model: SentenceTransformer,
    texts: list[str],
    left: np.ndarray,
    right: np.ndarray,
    *,
    batch_tokens: int | None,
    progress: bool,
) -> np.ndarray:
    vectors = _encode_unique(model, texts, batch_tokens=batch_tokens, progress=progress)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    scores = np.empty(len(left), dtype=np.float64)
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        dots = np.einsum("ij,ij->i", vectors[left[rows]], vectors[right[rows]], dtype=np.float64)
        lengths = norms[left[rows]] * norms[right[rows]]
        # A zero vector has no direction: 0, not NaN.
        scores[rows] = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    return np.clip(scores, -1.0, 1.0)  # rounding takes the cosine of identical vectors past 1


def _score_cross(
    model: CrossEncoder,
    texts: list[str],
    left: np.ndarray,
    right: np.ndarray,
    *,
    symmetric: bool,
    batch_tokens: int | None,
    progress: bool,
) -> np.ndarray:
    limit = _length_limit(model)
    texts, lengths = _measure(model, texts, limit)
    if symmetric:
        left, right = np.minimum(left, right), np.maximum(left, right)
    unique, rows = np.unique(np.stack([left, right], axis=1), axis=0, return_inverse=True)
    rows = rows.reshape(-1)
    asked = np.concatenate([unique, unique[unique[:, 0] != unique[:, 1], ::-1]]) if symmetric else unique
    special = model.tokenizer.num_special_tokens_to_add(pair=True)
    sizes = _truncate(lengths[asked[:, 0]] + lengths[asked[:, 1]] + special, limit, "pair")

    def predict(chosen: np.ndarray) -> torch.Tensor:
        batch = [(texts[a], texts[b]) for a, b in asked[chosen]]
        return model.predict(batch, batch_size=len(batch), show_progress_bar=False, convert_to_tensor=True)

    scores = _run_batches(model, predict, sizes, batch_tokens=batch_tokens, progress=progress).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        a, b = (texts[k][:60] for k in asked[bad[0]])
        raise StateError(f"the cross-encoder gave {scores[bad[0]]} for {len(bad)} pairs (first: {a!r}, {b!r})")
    if symmetric:
        other_order = scores[: len(unique)].copy()  # of a text with itself: the same
        other_order[unique[:, 0] != unique[:, 1]] = scores[len(unique) :]
        scores = (scores[: len(unique)] + other_order) / 2
    return scores[rows]


def _encode_unique(
    model: SentenceTransformer,
    texts: list[str],
    *,
    role: str | None = None,
    batch_tokens: int | None,
    progress: bool,
) -> np.ndarray:
    if not texts:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    limit = _length_limit(model)
    texts, lengths = _measure(model, texts, limit)
    sizes = _truncate(lengths + model.tokenizer.num_special_tokens_to_add(pair=False), limit, "text")

    # A model without prompts for a role encodes a query like any text.
    run: Callable[..., Any] = model.encode
    if role is not None:
        run = model.encode_query if role == "query" else model.encode_document

    def encode(chosen: np.ndarray) -> torch.Tensor:
        batch = [texts[k] for k in chosen]
        return run(batch, batch_size=len(batch), show_progress_bar=False, convert_to_tensor=True)

    vectors = _run_batches(model, encode, sizes, batch_tokens=batch_tokens, progress=progress)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise StateError(f"the bi-encoder gave NaN or inf for {len(bad)} texts (first: {texts[bad[0]][:60]!r})")
    return vectors


def _length_limit(model: Encoder) -> int:
    limit = model.max_seq_length
    if limit is None or limit > 10**6:
        raise InputError("the encoder has no maximum length; set max_seq_length, or load it with load_encoder")
    return limit


def _measure(model: Encoder, texts: list[str], limit: int) -> tuple[list[str], np.ndarray]:
    """Cut very long texts by characters; return them with their lengths in tokens, special tokens not counted."""
    cut = cut_texts(texts, limit)
    lengths: list[int] = []
    start, characters = 0, 0
    for position, text in enumerate(cut):
        characters += len(text)
        if characters >= _TOKENIZED_AT_ONCE or position == len(cut) - 1:
            tokens = model.tokenizer(
                cut[start : position + 1], add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            lengths.extend(len(ids) for ids in tokens["input_ids"])
            start, characters = position + 1, 0
    return cut, np.array(lengths, dtype=np.int64)


def _truncate(sizes: np.ndarray, limit: int, unit: str) -> np.ndarray:
    """Lengths as the model will read them; says how many are cut."""
    truncated = int((sizes > limit).sum())
    if truncated:
        _LOG.warning("%d of %d %ss are longer than %d tokens; the rest is not read", truncated, len(sizes), unit, limit)
    return np.minimum(sizes, limit)


def _run_batches(
    model: Encoder,
    run: Callable[[np.ndarray], torch.Tensor],
    sizes: np.ndarray,
    *,
    batch_tokens: int | None,
    progress: bool,
) -> np.ndarray:
    """Run over rows sorted by length in batches of at most `batch_tokens` tokens; rows come back in order."""
    if batch_tokens is None:
        batch_tokens = _BATCH_TOKENS_CPU if model.device.type == "cpu" else _BATCH_TOKENS_GPU
    unit = "pair" if isinstance(model, CrossEncoder) else "text"
    # Longest first: too little memory shows in the first batch. Stable, so that nothing depends on chance.
    order = np.argsort(-sizes, kind="stable")
    results: np.ndarray | None = None
    with tqdm(total=len(order), unit=unit, disable=not progress) as bar:
        start = 0
        while start < len(order):
            chosen = order[start : start + max(1, batch_tokens // max(1, int(sizes[order[start]])))]
            output = run(chosen).float().cpu().numpy()
            if results is None:
                results = np.empty((len(order), *output.shape[1:]), dtype=np.float32)
            results[chosen] = output
            start += len(chosen)
            bar.update(len(chosen))
    assert results is not None  # callers pass at least one row
    return results
