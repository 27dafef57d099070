"""Documents and their passages as a search has them: queries made of their text, and what is read of them for one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from transenc.config import MiningSettings
from transenc.corpus import Document
from transenc.errors import InputError
from transenc.mining.candidates import draw_ranks, store_vectors
from transenc.mining.cleaning import find_distinct, find_neighbours, keep_letters
from transenc.search.chunks import split_blocks
from transenc.search.passages import PassageEncoder
from transenc.search.reranking import Hit, list_readings
from transenc.search.sentences import split_sentences
from transenc.search.store import normalize_rows
from transenc.search.vector_index import VectorIndex, choose_kind

logger = logging.getLogger(__name__)

_QUERIES_AT_ONCE = 4096
_LONG = 25  # characters; no sentence is shorter, but a title may be, and what answers it may well name it


class Reading(NamedTuple):
    """What a cross-encoder reads of one document for one query: its best sentences, best first."""

    source: str
    document: int
    texts: list[str]


@dataclass(frozen=True)
class Query:
    """A text of a document that stands for a query.

    Args:
        text: On one line.
        document: Position of its document.
        place: Which sentence of the document's text it is; -1: its title.
        width: Characters of the document's longest passage.
    """

    text: str
    document: int
    place: int
    width: int


@dataclass(frozen=True)
class Library:
    """Documents and their passages, searched by an index.

    Args:
        documents: All that are no boilerplate.
        spans: int32 [p, 3]: position of the document, first character of a passage, character after the last.
        index: Over the p passages.
        kept: bool [p], passages that are no near-duplicates of earlier ones.
        embed: What encoded them.
        neighbours: Documents that count as near.
    """

    documents: list[Document]
    spans: np.ndarray
    index: VectorIndex
    kept: np.ndarray
    embed: PassageEncoder
    neighbours: int

    def __len__(self) -> int:
        """How many documents are no near-duplicates."""
        return len(np.unique(self.spans[self.kept, 0]))

    @classmethod
    def build(
        cls,
        model: SentenceTransformer,
        documents: Iterable[Document],
        folder: Path,
        *,
        settings: MiningSettings,
        batch_tokens: int | None,
        progress: bool,
    ) -> Library:
        """Encode documents and find those that are left out."""
        given = list(documents)
        for position, document in enumerate(given):
            if not isinstance(document, Document):
                raise TypeError(f"document {position} must be a Document, found {type(document).__name__}")
        chosen = [given[row] for row in find_distinct(document.content for document in given)]
        if len(chosen) < 2:
            raise InputError(
                f"documents: expected at least 2 that differ in their words, found {len(chosen)}; add some"
            )
        embed = PassageEncoder(model, fingerprint="", batch_tokens=batch_tokens)
        spans: list[tuple[int, int, int]] = []

        def encode() -> Iterator[np.ndarray]:
            done = 0
            with tqdm(total=len(chosen), desc="encode", unit="document", disable=not progress) as bar:
                for block in split_blocks(chosen):
                    embedded = embed(block)
                    spans.extend((done + part.document, part.start, part.end) for part in embedded.passages)
                    yield embedded.vectors
                    done += len(block)
                    bar.update(len(block))

        index_vectors = store_vectors(folder / "passages", encode())
        index = VectorIndex.build(index_vectors, choose_kind(len(spans)), progress=progress)
        kept, _ = find_neighbours(index, settings.neighbours, near_duplicate=settings.near_duplicate, progress=progress)
        library = cls(chosen, np.array(spans, dtype=np.int32), index, kept, embed, settings.neighbours)
        if len(library) < len(given):
            logger.info("boilerplate and near-duplicates left out: %d of %d documents",
                        len(given) - len(library), len(given))  # fmt: skip
        if len(library) < 2:
            raise InputError("documents: all are near-duplicates of the first; add others, or train the encoder longer")
        return library

    def list_queries(self, count: int, rng: np.random.Generator) -> list[Query]:
        """List the title and `count` random sentences of each document, each text once."""
        queries = [
            query
            for passages in np.split(np.flatnonzero(self.kept), self._starts())
            for query in self._query_document(self.spans[passages], count, rng)
        ]
        return [queries[row] for row in find_distinct(query.text for query in queries)]

    def read(
        self, queries: list[Query], others: dict[str, int], rng: np.random.Generator, *, progress: bool = False
    ) -> Iterator[tuple[Query, list[Reading]]]:
        """Yield each query with what is read of its own document and of `others`, source -> documents; no query twice.

        What begins with the query is left out, and what holds one of 25 characters or more; case and punctuation do
        not count.
        """
        allowed = np.flatnonzero(self.kept)
        for start in tqdm(range(0, len(queries), _QUERIES_AT_ONCE), desc="read", unit="block", disable=not progress):
            block = queries[start : start + _QUERIES_AT_ONCE]
            vectors = normalize_rows(self.embed.encode_queries([query.text for query in block]))
            # some of the passages are of its own document, or of one that was found already
            found = self.index.search(vectors, 3 * self.neighbours, allowed=self.kept)
            middle, anywhere = draw_ranks(
                self.index.vectors, allowed, vectors, np.arange(len(block)), beyond=self.neighbours,
                count=2 * max(others.values()), rng=rng,
            )  # fmt: skip
            for query, (near, _), *drawn in zip(block, found, middle, anywhere, strict=True):
                yield query, self._read_hits(query, [near, *drawn], others, rng)

    def _starts(self) -> np.ndarray:
        return np.flatnonzero(np.diff(self.spans[self.kept, 0])) + 1

    def _query_document(self, spans: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[Query]:
        number, width = int(spans[0, 0]), int((spans[:, 2] - spans[:, 1]).max())
        document = self.documents[number]
        if keep_letters(document.title) and keep_letters(document.text):
            yield Query(_squeeze(document.title), number, -1, width)
        sentences = split_sentences(document.text)
        for row in np.sort(rng.choice(len(sentences), size=min(count, len(sentences)), replace=False)):
            yield Query(_squeeze(sentences[row]), number, int(row), width)

    def _take_own(self, query: Query) -> Iterator[tuple[str, Hit]]:
        """Yield a query's own document without the query, by source."""
        document = self.documents[query.document]
        if query.place < 0:
            yield "title", Hit(document.id, 0, 0, 0, 0, text=document.text)
            return
        sentences, row = split_sentences(document.text), query.place
        around = _take_around(sentences, row, query.width)
        # of a long document also what comes next, or else before
        after, before = range(max(around, default=row) + 1, len(sentences)), range(min(around, default=row))
        for source, title, places in (
            ("sentence", document.title, around),
            ("adjacent", "", [place for place in around if abs(place - row) == 1]),
            ("adjacent", document.title, [*(after or before)][: len(around)]),
        ):
            if places:
                text = " ".join(sentences[place] for place in places)
                yield source, Hit(document.id, 0, 0, 0, 0, title=title, text=text)

    def _read_hits(
        self, query: Query, found: list[np.ndarray], others: dict[str, int], rng: np.random.Generator
    ) -> list[Reading]:
        hits = [(source, query.document, hit) for source, hit in self._take_own(query)]
        used = {query.document}
        for (source, count), passages in zip(others.items(), found, strict=True):
            best: dict[int, int] = {}  # document -> its first passage
            for passage in passages.tolist():
                if (number := int(self.spans[passage, 0])) not in used:
                    best.setdefault(number, passage)
            documents = list(best)[: self.neighbours] if source == "near" else list(best)
            if len(documents) > count:
                documents = [documents[row] for row in np.sort(rng.choice(len(documents), count, replace=False))]
            used.update(documents)
            for number in documents:
                document, (_, start, end) = self.documents[number], self.spans[best[number]].tolist()
                hit = Hit(document.id, 0, 0, 0, 0, title=document.title, text=document.text, start=start, end=end)
                hits.append((source, number, hit))
        readings = []
        for (source, number, _), texts in zip(hits, list_readings(query.text, [hit for *_, hit in hits]), strict=True):
            squeezed = [_squeeze(text) for text in texts if keep_letters(text)]
            if kept := [text for text in squeezed if not _gives_away(text, query.text)]:
                readings.append(Reading(source, number, kept))
        return readings


def _take_around(sentences: list[str], row: int, width: int) -> list[int]:
    """The nearest other sentences that fill so many characters, at least one where there is one, in their order."""
    taken: list[int] = []
    for place in sorted(set(range(len(sentences))) - {row}, key=lambda place: abs(place - row)):
        width -= len(sentences[place]) + 1
        if taken and width < 0:
            break
        taken.append(place)
    return sorted(taken)


def _gives_away(text: str, query: str) -> bool:
    held, asked = keep_letters(text, digits=True), keep_letters(query, digits=True)
    return held.startswith(asked) or (len(query) >= _LONG and asked in held)


def _squeeze(text: str) -> str:
    """Make one line of a text, which any file can hold and every tokenizer reads as the same."""
    return " ".join(text.split())
