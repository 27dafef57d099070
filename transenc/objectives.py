"""What each objective of a bootstrap trains on, and with which loss: raw sentences in, no labels, no pairs."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    ContrastiveTensionLossInBatchNegatives,
    DenoisingAutoEncoderLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn
from transformers import AutoTokenizer

from transenc.config import DROPOUT_OBJECTIVES, BootstrapSettings
from transenc.dropout import has_dropout, use_dropout
from transenc.encoders import quiet_loading
from transenc.errors import InputError, StateError
from transenc.losses import DecomposedContrastiveLoss
from transenc.scoring import cut_texts

_DELETED = 0.6  # of the words (TSDAE, section 4)
_AT_ONCE = 1000  # texts whose tokens are in memory


def build_objective(
    model: SentenceTransformer, sentences: Sequence[str], *, settings: BootstrapSettings, seed: int
) -> tuple[Dataset, nn.Module]:
    """Return the views of the sentences and the loss of an objective.

    `simcse`: twice the sentence; dropout makes the views differ (Gao et al., EMNLP 2021). `mirror`: the second view
    loses a span of characters (Liu et al., EMNLP 2021). `decomposed`: as `simcse`, under `DecomposedContrastiveLoss`.
    `tsdae`: a decoder, tied to the encoder, restores the sentence from the vector of what is left of it (Wang et al.,
    Findings of EMNLP 2021). `tension`: two encoders that start alike and are to agree (Carlsson et al., ICLR 2021).

    Args:
        model: the bi-encoder to train. `tsdae` draws the decoder's cross-attention from torch's generator.
        sentences: n texts, 2 or more.
        settings: which objective, and its settings.
        seed: of the spans and words that go; each row's are fixed by it.

    Returns:
        A dataset of n rows, sentence1 and sentence2, for `decomposed` also label, the row; and the loss.

    Raises:
        InputError: the model cannot do it: no dropout (`simcse`, `decomposed`), no mask token (`mirror`), no decoder
            with cross-attention (`tsdae`).

    Example:
        >>> build_objective.__name__
        'build_objective'
    """
    first, second = list(sentences), list(sentences)
    scale = 1 / settings.resolved_temperature
    loss: nn.Module
    limit = min(settings.max_length, model.max_seq_length or settings.max_length)
    if settings.objective in DROPOUT_OBJECTIVES:
        _check_dropout(model, settings)
    if settings.objective == "tsdae":
        second = cut_to_window(model, sentences, limit)  # to restore only what its source came from
        first = [delete_words(text, row=row, seed=seed) for row, text in enumerate(second)]
        loss = _build_decoder(model)
    elif settings.objective == "tension":
        loss = ContrastiveTensionLossInBatchNegatives(model, scale=scale)
    elif settings.objective == "decomposed":
        loss = DecomposedContrastiveLoss(
            model,
            rows=len(first),
            temperature=settings.resolved_temperature,
            memory=settings.memory,
            queue=settings.resolved_queue,
            sample=settings.sample,
        )
    elif settings.mini_batch is not None:
        loss = CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=settings.mini_batch)
    else:
        loss = MultipleNegativesRankingLoss(model, scale=scale)
    if settings.objective == "mirror" and settings.mask_span:
        mask = model.tokenizer.mask_token
        if mask is None:
            raise InputError("objective mirror: the model's tokenizer has no mask token; take simcse, or mask_span 0")
        second = [
            mask_span(text, length=settings.mask_span, mask=mask, row=row, seed=seed)
            for row, text in enumerate(cut_to_window(model, sentences, limit))
        ]
    columns: dict[str, list[str] | range] = {"sentence1": first, "sentence2": second}
    if settings.objective == "decomposed":
        columns["label"] = range(len(first))
    return Dataset.from_dict(columns), loss


def _check_dropout(model: SentenceTransformer, settings: BootstrapSettings) -> None:
    with use_dropout(model, settings.dropout):
        if has_dropout(model):
            return
    ways = "take another objective" if settings.dropout else "set dropout, for instance 0.1"
    raise InputError(
        f"objective {settings.objective}: the model has no dropout, so both views of a sentence would be the same; "
        f"{ways}"
    )


def cut_to_window(model: SentenceTransformer, texts: Sequence[str], limit: int) -> list[str]:
    """Cut texts to what the model reads of them; with a slow tokenizer, only as `scoring.cut_texts` does.

    Args:
        model: its tokenizer counts, with the special tokens it adds to a text.
        texts: n strings.
        limit: tokens that the model reads, 1 or more.

    Returns:
        n strings, each a part of its text; the whole of one that fits.

    Example:
        >>> cut_to_window.__name__
        'cut_to_window'
    """
    texts = cut_texts(texts, limit)
    if not getattr(model.tokenizer, "is_fast", False):
        return texts
    cut = []
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        for text, tokens in zip(some, model.tokenizer(some, truncation=True, max_length=limit).encodings, strict=True):
            if tokens.overflowing:
                places = [place for place in tokens.offsets if place[0] < place[1]]  # special tokens have (0, 0)
                text = text[min(places)[0] : max(place[1] for place in places)] if places else ""
            cut.append(text)
    return cut


def mask_span(text: str, *, length: int, mask: str, row: int, seed: int) -> str:
    """Put the mask token in place of `length` characters, anywhere; a text no longer than that stays as it is.

    Example:
        >>> mask_span("a small red boat", length=5, mask="[MASK]", row=0, seed=1)
        'a smal [MASK] boat'
    """
    if len(text) <= length:
        return text
    start = _row_generator(row, seed).randrange(len(text) - length + 1)
    return f"{text[:start].rstrip()} {mask} {text[start + length :].lstrip()}".strip()


def delete_words(text: str, *, row: int, seed: int) -> str:
    """Delete 60 % of the words at random, but not all; of a text without spaces, of the characters.

    Example:
        >>> delete_words("the cat sees a small red boat", row=0, seed=1)
        'cat sees boat'
    """
    rng, words = _row_generator(row, seed), text.split()
    gap = " "
    if len(words) < 2:
        words, gap = list(text), ""
    kept = [word for word in words if rng.random() >= _DELETED]
    return gap.join(kept) if kept else rng.choice(words or [""])


def _row_generator(row: int, seed: int) -> random.Random:
    """A generator of a row's own: neither the order of the rows nor a resume changes what it draws."""
    return random.Random(f"{seed}|{row}")


def _build_decoder(model: SentenceTransformer) -> DenoisingAutoEncoderLoss:
    transformer: Any = model[0]
    network, processor = transformer.model, transformer.processor
    name = type(network).__name__
    problem = f"objective tsdae: {name} has no decoder with cross-attention in transformers; take another objective"
    try:
        with quiet_loading(network.name_or_path):
            # the loss wants both tokenizers of one class, and one with a template may be of another than the folder's
            transformer.processor = AutoTokenizer.from_pretrained(network.name_or_path)
            loss = DenoisingAutoEncoderLoss(model)
            loss.decoder.float()  # it, and what is tied to it, comes in the number type of the file
    except StateError as error:
        if isinstance(error.__cause__, ValueError):
            raise InputError(problem) from error
        raise
    finally:
        transformer.processor = processor
    # without it the decoder would not see the vector, and nothing would say so
    if not any(re.search(r"cross_?att", part) for part, _ in loss.decoder.named_parameters()):
        raise InputError(problem)
    return loss
