"""Whitening: a linear layer behind a bi-encoder gives its embeddings the mean 0 and the covariance 1.

Embeddings of one model point mostly the same way, and a few directions decide their cosines. Whitening undoes both, and
nothing is trained (Su et al., 2021, https://arxiv.org/abs/2103.15316; Huang et al., EMNLP Findings 2021). Of all linear
maps that whiten, which differ by a rotation that no cosine sees, the symmetric one is taken (ZCA, Kessy et al., 2018):
it is unique, so that models of one start can still be averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sklearn.covariance import LedoitWolf

from transenc.errors import InputError, StateError
from transenc.model_folders import model_digest
from transenc.run import library_versions
from transenc.scoring import encode_texts

_LOG = logging.getLogger(__name__)

_MOST_SENTENCES = 50_000  # from which the covariance is estimated: a float64 copy of their embeddings is held


def whiten_encoder(
    model: SentenceTransformer,
    sentences: Sequence[str],
    *,
    dimensions: int | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> int:
    """Whiten a bi-encoder in place: its embeddings are normalised, then a `Dense` layer centres, turns and scales them.

    Over the given sentences the new embeddings have the mean 0 and, but for shrinkage, the identity as covariance.
    Weak encoders gain by it, strong ones, trained with labels, lose (docs/bootstrap.md has figures). The layer is an
    ordinary part of the model: it is saved, loaded and trained with it. One that was there before is replaced.

    Args:
        model: A bi-encoder, on its device.
        sentences: 2 or more different ones, of the kind that will be compared; a thousand and more for a few hundred
            dimensions. Of more than 50,000, as many, evenly spaced, are used.
        dimensions: Width of the new embeddings, those directions first in which the old ones vary most; None: all.
        batch_tokens: As for `encode_texts`.
        progress: Show a progress bar on stderr.

    Returns:
        How many sentences were used.

    Raises:
        TypeError: Not a bi-encoder, or not a sequence of texts.
        InputError: Fewer than 2 different sentences, too many dimensions, or a model that cuts its embeddings.
        StateError: The model gave NaN or inf, or the same embedding for all sentences.

    Example:
        >>> from transenc import load_bi_encoder, whiten_encoder  # doctest: +SKIP
        >>> model = load_bi_encoder("my/encoder")  # doctest: +SKIP
        >>> whiten_encoder(model, read_sentences("corpus.txt"))  # doctest: +SKIP
        16000
    """
    if isinstance(sentences, str | bytes):
        raise TypeError("sentences: expected a sequence of texts, found one text; read a file with read_sentences")
    texts = list(dict.fromkeys(sentences))
    if len(texts) < 2:
        raise InputError(f"whitening needs at least 2 different sentences, got {len(texts)}")
    texts = texts[:: -(-len(texts) // _MOST_SENTENCES)]
    if isinstance(model, SentenceTransformer) and model.truncate_dim is not None:
        raise InputError(
            f"the model cuts its embeddings to {model.truncate_dim} numbers; whiten it without truncate_dim"
        )
    remove_whitening(model)
    mean, matrix = fit_whitening(encode_texts(model, texts, batch_tokens=batch_tokens, progress=progress), dimensions)
    if len(texts) < len(mean):
        _LOG.warning("whitened %d dimensions over %d sentences; more of them give more", len(mean), len(texts))
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    layer = Dense(
        len(mean),
        matrix.shape[1],
        activation_function=torch.nn.Identity(),
        init_weight=torch.tensor(matrix.T.copy(), dtype=torch.float32),
        init_bias=torch.tensor(-mean @ matrix, dtype=torch.float32),
    )
    model.append(layer.to(device=model.device, dtype=model.dtype))
    model.eval()
    return len(texts)


def remove_whitening(model: SentenceTransformer) -> bool:
    """Take the layer of `whiten_encoder` off again, in place; what comes before it is as it was.

    Returns:
        Whether there was one: a `Dense` without activation at the end, behind a `Normalize`, which stays.

    Example:
        >>> remove_whitening(load_bi_encoder("my/whitened"))  # doctest: +SKIP
        True
    """
    if not isinstance(model, SentenceTransformer) or len(model) < 3:
        return False
    *_, before, last = model
    found = (
        isinstance(before, Normalize)
        and isinstance(last, Dense)
        and isinstance(last.activation_function, torch.nn.Identity)
    )
    if found:
        model.pop(-1)
    return found


def fit_whitening(vectors: np.ndarray, dimensions: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What whitens the directions of embeddings: `(v / |v| - mean) @ matrix`; with all dimensions it is symmetric.

    Args:
        vectors: Finite numbers of shape [n, dim]. The covariance of their directions is shrunk as Ledoit and Wolf
            (2004) say, so that n below dim is enough.
        dimensions: Columns of the matrix, 1 to dim: the principal axes with the most variance; None: all.

    Returns:
        The mean of shape [dim] and the matrix of shape [dim, dimensions], float64.

    Raises:
        InputError: More dimensions than the vectors have, or none.
        StateError: All vectors point the same way.

    Example:
        >>> mean, matrix = fit_whitening(np.random.default_rng(0).normal(size=(1000, 3)), 2)
        >>> mean.shape, matrix.shape
        ((3,), (3, 2))
    """
    width = vectors.shape[1]
    if dimensions is not None and not 1 <= dimensions <= width:
        raise InputError(f"dimensions must be 1 to {width}, the width of the embeddings, found {dimensions}")
    directions = vectors.astype(np.float64)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    directions = np.divide(directions, lengths, out=directions, where=lengths > 0)
    if len(directions) < 2 or np.ptp(directions, axis=0).max() < np.finfo(np.float32).eps:
        raise StateError("the model gives all sentences the same embedding; there is nothing to whiten")
    found = LedoitWolf(store_precision=False).fit(directions)
    variances, axes = np.linalg.eigh(found.covariance_)  # rising
    matrix = axes / np.sqrt(variances)
    return found.location_, matrix @ axes.T if dimensions is None else matrix[:, ::-1][:, :dimensions]


def describe_whitening(name: str | Path, *, sentences: int, dimensions: int) -> dict[str, Any]:
    """What the card of a whitened model says of its making, for `model_cards.save_model`.

    Args:
        name: Folder or Hub id of the model. Only its last part and its digest are told.
        sentences: How many it was whitened over.
        dimensions: Of its embeddings.

    Example:
        >>> describe_whitening("my/encoder", sentences=1000, dimensions=384)  # doctest: +SKIP
        {'made by': 'transenc 0.1.0', 'whitened': 'encoder sha256 1a2b...', 'over sentences': 1000, 'dimensions': 384}
    """
    return {
        "made by": f"transenc {library_versions()['transenc']}",
        "whitened": f"{PurePath(name).name} sha256 {model_digest(name)[:12]}",
        "over sentences": sentences,
        "dimensions": dimensions,
    }
