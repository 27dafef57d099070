"""Symmetric pairs of sentences: neighbours, pairs at every rank, random pairs, and pairs that share words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, Value
from sentence_transformers import SentenceTransformer

from transenc.config import MiningSettings
from transenc.errors import InputError
from transenc.mining.candidates import (
    Candidates,
    draw_ranks,
    encode_sentences,
    keep_balanced,
    merge_pairs,
    open_scratch,
    pair_up,
    take_cosines,
)
from transenc.mining.cleaning import find_distinct, find_neighbours
from transenc.search.assembly import check_words
from transenc.search.vector_index import VectorIndex, choose_kind

if TYPE_CHECKING:
    from transenc.search.lexical import LexicalIndex

logger = logging.getLogger(__name__)

SOURCES = ("neighbour", "lexical", "middle", "random")  # a pair found twice has the first of them

_LEXICAL_QUERIES = 20_000  # BM25 looks at every sentence for every query
_LEXICAL_CHARACTERS = 2000  # of a query


def mine_pairs(
    model: SentenceTransformer,
    sentences: Sequence[str],
    *,
    settings: MiningSettings | None = None,
    seed: int = 2021,
    batch_tokens: int | None = None,
    progress: bool = False,
    work: str | Path | None = None,
) -> Dataset:
    """Mine pairs of sentences, to be labelled and distilled, that cover the whole range of the cosine.

    Boilerplate goes first: sentences without a letter, and those that differ from an earlier one in digits,
    punctuation and case only. Then near-duplicates: of two sentences with a cosine of `settings.near_duplicate` the
    later. Candidates of every sentence are its nearest neighbours; half as many at ranks drawn log-uniformly beyond
    them, and as many at random, both from random samples of 4096; with `settings.lexical` also the nearest by BM25
    (of 20,000 sentences at most, drawn at random). Of each bin of the cosine, equally wide from the lowest candidate to
    the highest, equally many are kept.

    The same call gives the same pairs on one thread, whatever `batch_tokens` is but for the rounding of the encoder;
    with several threads the graph over 50,000 sentences and more may differ, and so a few neighbours.

    Args:
        model: A bi-encoder.
        sentences: 3 or more different ones. They stay in memory, their vectors do not.
        settings: What to look for, and how much to keep.
        seed: Decides what is drawn.
        batch_tokens: As for `encode_texts`.
        progress: Show progress bars on stderr.
        work: A folder in which a temporary one holds the vectors (4 bytes a number); None: that of the system.

    Returns:
        min(max_pairs, pairs_per_sentence * sentences left) rows, or as many as there are, in random order: sentence1
        and sentence2 (each pair in one order only), source ("neighbour", "lexical", "middle" or "random"), and the
        cosine, float32.

    Raises:
        TypeError: Not a bi-encoder, or not a sequence of strings; the position is named.
        InputError: Fewer than 2 pairs are left, a lone surrogate, or `lexical` without the extra `hybrid`.
        StateError: The encoder gave NaN or inf.

    Example:
        >>> mine_pairs(load_bi_encoder("enc"), read_sentences("corpus.txt"))[0]  # doctest: +SKIP
        {'sentence1': 'It rains.', 'sentence2': 'It is wet.', 'source': 'neighbour', 'cosine': 0.71}
    """
    settings = settings or MiningSettings()
    if settings.lexical:
        check_words()
    texts = clean_sentences(sentences)
    with open_scratch(None if work is None else Path(work)) as folder:
        vectors = encode_sentences(model, texts, folder / "vectors", batch_tokens=batch_tokens, progress=progress)
        pairs = choose_pairs(texts, vectors, settings=settings, seed=seed, progress=progress)
    if len(pairs) < 2:
        below = f"below the cosine of near-duplicates, {settings.near_duplicate:g}"
        raise InputError(
            f"sentences: expected at least 2 pairs {below}, found {len(pairs)}; add different sentences, "
            "or train the encoder longer"
        )
    return make_pairs(texts, pairs, SOURCES)


def choose_pairs(
    texts: Sequence[str],
    vectors: np.ndarray,
    *,
    settings: MiningSettings,
    seed: int,
    progress: bool = False,
) -> Candidates:
    """Choose pairs as `mine_pairs` does, of texts whose vectors are there.

    Args:
        texts: n texts; read only with `settings.lexical`.
        vectors: float32 [n, dim] at length 1, perhaps a memory map.
        settings: What to look for, and how much to keep.
        seed: Decides what is drawn.
        progress: Show progress bars on stderr.

    Returns:
        The rows of each pair in `texts`, `left` before `right`, its source, a position in SOURCES, and cosine.
    """
    rng = np.random.default_rng(seed)
    index = VectorIndex.build(vectors, choose_kind(len(vectors)), progress=progress)
    near_duplicate = settings.near_duplicate
    kept, near = find_neighbours(index, settings.neighbours, near_duplicate=near_duplicate, progress=progress)
    rows = np.flatnonzero(kept)
    if len(rows) < len(vectors):
        logger.info("near-duplicates left out: %d of %d sentences", len(vectors) - len(rows), len(vectors))
    parts = [pair_up(rows, near[rows], SOURCES.index("neighbour"))]
    if settings.lexical:
        parts.append(_pair_by_words(texts, rows, count=settings.neighbours, rng=rng))
    drawn = draw_ranks(vectors, rows, vectors, rows, beyond=settings.neighbours, count=-(-settings.neighbours // 2),
                       rng=rng, progress=progress)  # fmt: skip
    parts += [pair_up(rows, found, SOURCES.index(name)) for name, found in zip(SOURCES[2:], drawn, strict=True)]
    pairs = merge_pairs(parts, symmetric=True)
    take_cosines(vectors, pairs)
    # an approximate index may have missed some near-duplicates
    return keep_balanced(pairs[pairs["cosine"] < near_duplicate], texts=len(rows), settings=settings, rng=rng)


def clean_sentences(sentences: Sequence[str]) -> list[str]:
    """Return the sentences that are no boilerplate, and say in the log how many are.

    Raises:
        TypeError: Not a sequence of strings; the position is named.
        InputError: Fewer than 2 are left, or a lone surrogate.
    """
    if isinstance(sentences, str | bytes) or not isinstance(sentences, Sequence):
        raise TypeError(f"sentences must be a sequence such as a list, found {type(sentences).__name__}")
    for position, text in enumerate(sentences):
        if not isinstance(text, str):
            raise TypeError(f"sentence {position} must be a string, found {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            at = f"sentence {position} holds a lone surrogate (character {error.start})"
            raise InputError(f"{at}, which no tokenizer reads; remove it") from None
    texts = [sentences[row] for row in find_distinct(sentences)]
    if len(texts) < len(sentences):
        logger.info("boilerplate left out: %d of %d sentences (no letter, or the letters of an earlier one)",
                    len(sentences) - len(texts), len(sentences))  # fmt: skip
    if len(texts) < 2:
        raise InputError(f"sentences: expected at least 2 that differ in their words, found {len(texts)}; add some")
    return texts


def make_pairs(texts: Sequence[str], pairs: Candidates, sources: Sequence[str], **columns: Sequence[str]) -> Dataset:
    """Return candidates as a dataset: sentence1, sentence2, source, cosine (float32), and further text columns."""
    content: dict[str, Any] = {
        "sentence1": [texts[row] for row in pairs["left"]],
        "sentence2": [texts[row] for row in pairs["right"]],
        "source": [sources[row] for row in pairs["source"]],
        "cosine": pairs["cosine"],
        **columns,
    }
    features = Features({name: Value("float32" if name == "cosine" else "string") for name in content})
    return Dataset.from_dict(content, features)


def _pair_by_words(texts: Sequence[str], rows: np.ndarray, *, count: int, rng: np.random.Generator) -> Candidates:
    from transenc.search.lexical import LexicalIndex

    index: LexicalIndex = LexicalIndex.build(texts[row] for row in rows)
    asked = np.sort(rng.choice(len(rows), size=min(len(rows), _LEXICAL_QUERIES), replace=False))
    found = np.full((len(asked), count + 1), -1, dtype=np.int64)
    for line, place in enumerate(asked):
        [(positions, _)] = index.search([texts[rows[place]][:_LEXICAL_CHARACTERS]], count + 1)
        found[line, : len(positions)] = rows[positions]
    return pair_up(rows[asked], found, SOURCES.index("lexical"))
