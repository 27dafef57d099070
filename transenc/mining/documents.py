"""Asymmetric pairs from documents: a query made of their own text, and what a cross-encoder reads of a document."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from transenc.config import MiningSettings
from transenc.corpus import Document
from transenc.errors import InputError
from transenc.mining.candidates import (
    CANDIDATE,
    Candidates,
    encode_sentences,
    keep_balanced,
    merge_pairs,
    open_scratch,
    take_cosines,
)
from transenc.mining.cleaning import keep_letters
from transenc.mining.library import Library, Query
from transenc.mining.sentences import make_pairs

SOURCES = ("title", "sentence", "adjacent", "near", "middle", "random")
OTHER_DOCUMENTS = {"near": 4, "middle": 3, "random": 2}  # read for one query

# A query gives about 20 candidates: with half as many queries as pairs wanted, 10 for each pair.
_QUERIES_PER_PAIR = 0.5
_QUERIES_AT_LEAST = 256


def mine_corpus(
    model: SentenceTransformer,
    documents: Iterable[Document],
    *,
    settings: MiningSettings | None = None,
    seed: int = 2021,
    batch_tokens: int | None = None,
    progress: bool = False,
    work: str | Path | None = None,
) -> Dataset:
    """Mine asymmetric pairs from documents, to adapt a bi- and a cross-encoder to searching them.

    sentence1 stands for a query: the title of a document, or a random sentence of it. sentence2 is what the
    cross-encoder reads when it reranks (`list_readings`): of each of these, the three sentences that share the most
    words with the query, one a pair:

    - title: the text of the title's own document;
    - sentence: the sentences around it, as many as a passage holds, and the title, without the sentence;
    - adjacent: the sentences before and after, and as many that follow those of a long document;
    - near: 4 documents of the `settings.neighbours` that the bi-encoder ranks first, other than its own;
    - middle, random: 3 documents at ranks drawn log-uniformly beyond them, and 2 at random.

    A sentence2 does not begin with its sentence1, nor hold one of 25 characters or more, whatever the case and the
    punctuation. Documents and queries that are
    boilerplate (see `mine_pairs`) go first, and documents all of whose passages are near-duplicates of earlier ones;
    sentences that several documents have are read of one only. The pairs are kept by bins of the cosine as by
    `mine_pairs`, as many as `settings.pairs_per_sentence` for each document; it also decides how many sentences of each
    may be queries. Half as many queries as pairs wanted are asked (at least 256), drawn at random. `settings.lexical`
    is not used.

    In memory are the documents, their possible queries (a title and `pairs_per_sentence` sentences, at least 2, of
    each), and about 10 candidates for each pair wanted, with the texts that these read, each once.

    Args:
        model: A bi-encoder. Documents are split into the passages that it is searched by, and its prompts for queries
            and documents are used to find them; the cosine of a pair is without prompts.
        documents: 2 or more. Their vectors do not stay in memory.
        settings: What to look for, and how much to keep.
        seed: Decides what is drawn.
        batch_tokens: As for `encode_texts`.
        progress: Show progress bars on stderr.
        work: As for `mine_pairs`.

    Returns:
        Rows in random order: sentence1, sentence2, source (see above), cosine (float32), and the ids document1 and
        document2. (a, b) is not (b, a).

    Raises:
        TypeError: Not a bi-encoder, or not documents; the position is named.
        InputError: Fewer than 2 documents or pairs are left, or a document without text and title.
        StateError: The encoder gave NaN or inf.

    Example:
        >>> mine_corpus(load_bi_encoder("enc"), read_corpus("docs.jsonl"))[0]["source"]  # doctest: +SKIP
        'sentence'
    """
    settings = settings or MiningSettings()
    rng = np.random.default_rng(seed)
    with open_scratch(None if work is None else Path(work)) as folder:
        library = Library.build(
            model, documents, folder, settings=settings, batch_tokens=batch_tokens, progress=progress
        )
        queries = library.list_queries(max(2, math.ceil(settings.pairs_per_sentence)), rng)
        asked = max(_QUERIES_AT_LEAST, math.ceil(_QUERIES_PER_PAIR * settings.count_pairs(len(library))))
        if asked < len(queries):
            queries = [queries[row] for row in np.sort(rng.choice(len(queries), asked, replace=False))]
        texts, owners, pairs = _list_candidates(library, queries, rng, progress=progress)
        if len(pairs):
            vectors = encode_sentences(model, texts, folder / "texts", batch_tokens=batch_tokens, progress=progress)
            take_cosines(vectors, pairs)
    pairs = pairs[pairs["cosine"] < settings.near_duplicate]
    pairs = keep_balanced(pairs, texts=len(library), settings=settings, rng=rng)
    if len(pairs) < 2:
        raise InputError(f"documents: expected at least 2 pairs, found {len(pairs)}; add documents, or longer ones")
    askers = {query.text: query.document for query in queries}
    ids = [document.id for document in library.documents]
    return make_pairs(
        texts,
        pairs,
        SOURCES,
        document1=[ids[askers[texts[row]]] for row in pairs["left"]],
        document2=[ids[owners[keep_letters(texts[row])]] for row in pairs["right"]],
    )


def _list_candidates(
    library: Library, queries: list[Query], rng: np.random.Generator, *, progress: bool
) -> tuple[list[str], dict[str, int], Candidates]:
    """Return the texts, the document of each by its letters, and the pairs of their positions, without cosines."""
    texts: dict[str, int] = {}
    owners: dict[str, int] = {}
    found = array("i")  # query, text and source, one after the other
    for query, readings in library.read(queries, OTHER_DOCUMENTS, rng, progress=progress):
        asked = texts.setdefault(query.text, len(texts))
        for source, document, parts in readings:
            for text in parts:
                if owners.setdefault(keep_letters(text), document) == document:
                    found.extend((asked, texts.setdefault(text, len(texts)), SOURCES.index(source)))
    pairs = np.zeros(len(found) // 3, dtype=CANDIDATE)
    pairs["left"], pairs["right"], pairs["source"] = np.array(found, dtype=np.int32).reshape(-1, 3).T
    return list(texts), owners, merge_pairs([pairs], symmetric=False)
