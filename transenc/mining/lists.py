"""Candidate lists, for losses that compare the scores of one query: neighbours, middle ranks and random texts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from sentence_transformers import SentenceTransformer

from transenc.config import MiningSettings
from transenc.corpus import Document
from transenc.errors import InputError
from transenc.mining.candidates import draw_ranks, encode_sentences, open_scratch
from transenc.mining.cleaning import find_neighbours
from transenc.mining.library import Library
from transenc.mining.sentences import clean_sentences
from transenc.pairs import make_dataset
from transenc.search.vector_index import VectorIndex, choose_kind

logger = logging.getLogger(__name__)


def mine_lists(
    model: SentenceTransformer,
    texts: Sequence[str] | Iterable[Document],
    *,
    size: int,
    settings: MiningSettings | None = None,
    seed: int = 2021,
    batch_tokens: int | None = None,
    progress: bool = False,
    work: str | Path | None = None,
) -> Dataset:
    """Mine lists of candidates: a query and `size` texts, in turn near, at a middle rank, and at random.

    Of sentences, query and texts are sentences as for `mine_pairs`. Of documents, the query is a title or a sentence as
    for `mine_corpus`, and the texts are the sentences that share the most words with it, one of each document, first of
    the query's own (where it has more text). The ranks are those of `mine_pairs`; `settings.bins` and
    `settings.lexical` are not used.

    Args:
        model: A bi-encoder.
        texts: Sentences, or documents.
        size: Texts in a list, 2 or more.
        settings: How much to keep: as many lists as hold the pairs that `mine_pairs` would keep, at least one.
        seed: Decides what is drawn.
        batch_tokens: As for `encode_texts`.
        progress: Show progress bars on stderr.
        work: As for `mine_pairs`.

    Returns:
        Rows in random order: query, and texts, a list of `size` different strings, none of them the query. Queries
        for which fewer are found are left out, and counted in a warning.

    Raises:
        TypeError: Not a bi-encoder, or neither sentences nor documents; the position is named.
        InputError: `size` below 2, or too few texts for one list.
        StateError: The encoder gave NaN or inf.

    Example:
        >>> mine_lists(load_bi_encoder("enc"), read_sentences("corpus.txt"), size=8)[0]["query"]  # doctest: +SKIP
        'It rains.'
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size: expected a whole number, found {size!r}")
    if size < 2:
        raise InputError(f"size: expected lists of at least 2 texts, found {size}")
    settings = settings or MiningSettings()
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be sentences or documents, found {type(texts).__name__}")
    given: list[Any] = list(texts)
    rng = np.random.default_rng(seed)
    mine = _list_documents if given and isinstance(given[0], Document) else _list_sentences
    lists: list[tuple[str, list[str]]] = []
    short = 0
    with open_scratch(None if work is None else Path(work)) as folder:
        for query, groups in mine(model, given, folder, size, settings, rng, batch_tokens, progress):
            in_turn = (text for texts in zip_longest(*groups) for text in texts if text is not None)
            chosen = [text for text in dict.fromkeys(in_turn) if text != query][:size]
            if len(chosen) == size:
                lists.append((query, chosen))
            else:
                short += 1
    if not lists:
        raise InputError(f"texts: expected enough for lists of {size} and their queries; add texts, or ask for fewer")
    if short:
        logger.warning("%d of %d lists left out: fewer than %d different texts were found for the query; more text, "
                       "more neighbours, or shorter lists give more", short, short + len(lists), size)  # fmt: skip
    order = rng.permutation(len(lists))
    features = Features({"query": Value("string"), "texts": List(Value("string"))})
    columns = {"query": [lists[row][0] for row in order], "texts": [lists[row][1] for row in order]}
    return Dataset.from_dict(columns, features)


def flatten_lists(lists: Dataset) -> Dataset:
    """Lists as pairs, to be labelled: a row for each text of a list.

    Args:
        lists: What `mine_lists` gives: query, and texts, a list of strings.

    Returns:
        Rows with sentence1 (the query), sentence2 (the text) and list (int64, the number of the list).

    Example:
        >>> lists = Dataset.from_dict({"query": ["a", "d"], "texts": [["b", "c"], ["e"]]})
        >>> flatten_lists(lists).to_dict()
        {'sentence1': ['a', 'a', 'd'], 'sentence2': ['b', 'c', 'e'], 'list': [0, 0, 1]}
    """
    rows = [(query, text, i) for i, (query, texts) in enumerate(zip(lists["query"], lists["texts"], strict=True))
            for text in texts]  # fmt: skip
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return make_dataset(dict(zip(("sentence1", "sentence2", "list"), columns, strict=True)))


def _list_sentences(
    model: SentenceTransformer, given: list[str], folder: Path, size: int, settings: MiningSettings,
    rng: np.random.Generator, batch_tokens: int | None, progress: bool,
) -> Iterator[tuple[str, list[list[str]]]]:  # fmt: skip
    texts = clean_sentences(given)
    vectors = encode_sentences(model, texts, folder / "vectors", batch_tokens=batch_tokens, progress=progress)
    index = VectorIndex.build(vectors, choose_kind(len(vectors)), progress=progress)
    kept, near = find_neighbours(index, settings.neighbours, near_duplicate=settings.near_duplicate, progress=progress)
    allowed = np.flatnonzero(kept)
    rows = _draw(allowed, size, len(allowed), settings, rng)
    drawn = draw_ranks(vectors, allowed, vectors, rows, beyond=settings.neighbours, count=2 * size, rng=rng)
    for row, middle, anywhere in zip(rows, *drawn, strict=True):
        groups = (near[row][near[row] >= 0], middle[middle != row], anywhere[anywhere != row])
        yield texts[row], [[texts[place] for place in group] for group in groups]


def _list_documents(
    model: SentenceTransformer, given: list[Document], folder: Path, size: int, settings: MiningSettings,
    rng: np.random.Generator, batch_tokens: int | None, progress: bool,
) -> Iterator[tuple[str, list[list[str]]]]:  # fmt: skip
    library = Library.build(model, given, folder, settings=settings, batch_tokens=batch_tokens, progress=progress)
    queries = library.list_queries(max(2, math.ceil(settings.pairs_per_sentence)), rng)
    queries = [queries[row] for row in _draw(np.arange(len(queries)), size, len(library), settings, rng)]
    others = dict.fromkeys(("near", "middle", "random"), size)
    for query, readings in library.read(queries, others, rng, progress=progress):
        own = [reading.texts[0] for reading in readings if reading.document == query.document][:1]
        groups = [[reading.texts[0] for reading in readings if reading.source == source] for source in others]
        yield query.text, [own, *groups]


def _draw(rows: np.ndarray, size: int, texts: int, settings: MiningSettings, rng: np.random.Generator) -> np.ndarray:
    """Draw rows for as many lists as the settings pay for."""
    count = max(1, settings.count_pairs(texts) // size)
    return np.sort(rng.choice(rows, size=min(len(rows), count), replace=False))
