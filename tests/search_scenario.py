"""Small corpora and an encoder that counts words, for the tests of search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transenc.corpus import Document
from transenc.search.faiss_store import FaissStore
from transenc.search.store import Embedded, Passage

COLOURS = ("red", "green", "blue", "gold")
FACTS = {"name": "counter", "fingerprint": "c0"}


class CountColours:
    """Each line of a text is a passage, and its vector counts the words of COLOURS in it and in the title."""

    fingerprint = "colours"
    dim = len(COLOURS)

    def __init__(self) -> None:
        self.blocks: list[list[str]] = []  # ids of the documents of each call

    def __call__(self, documents: Sequence[Document]) -> Embedded:
        self.blocks.append([document.id for document in documents])
        passages = []
        for number, document in enumerate(documents):
            start = 0
            for line in document.text.split("\n"):
                passages.append(Passage(number, start, start + len(line)))
                start += len(line) + 1
        words = [f"{documents[p.document].title} {documents[p.document].text[p.start : p.end]}" for p in passages]
        vectors = np.array([[text.split().count(colour) for colour in COLOURS] for text in words], dtype=np.float32)
        return Embedded(passages, vectors, truncated=sum(document.text.endswith("...") for document in documents))


class HashText:
    """One passage a document, its vector drawn from a generator that is seeded with the text."""

    fingerprint = "hash"

    def __init__(self, dim: int = 16) -> None:
        self.dim = dim

    def __call__(self, documents: Sequence[Document]) -> Embedded:
        passages = [Passage(i, 0, len(document.text)) for i, document in enumerate(documents)]
        return Embedded(passages, np.array([self.draw(document.text) for document in documents]))

    def draw(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(self.dim, dtype=np.float32)


def count_colours(*texts: str) -> np.ndarray:
    """Query vectors, float32 [len(texts), 4]."""
    return np.array([[text.split().count(colour) for colour in COLOURS] for text in texts], dtype=np.float32)


def make_corpus(count: int, *, start: int = 0) -> list[Document]:
    """Documents of one to three colours, each with its number in the text."""
    return [
        Document(f"d{i}", " ".join([COLOURS[i % 4]] * (1 + i % 3) + [COLOURS[(i + 1) % 4], f"number {i}"]))
        for i in range(start, start + count)
    ]


def build(path: Path, documents: Sequence[Document], **options: Any) -> FaissStore:
    return FaissStore.build(path, iter(documents), CountColours(), encoder=FACTS, **options)


def read_content(path: Path) -> dict[str, str]:
    """Id and text of every document that is found from outside, by a search for all of them."""
    with FaissStore.open(path) as store:
        [matches] = store.search(count_colours("red green blue gold"), 10**9)
        documents = store.get([match.id for match in matches])
        assert len(documents) == store.count()
    return {document.id: document.text for document in documents}


def as_content(documents: Sequence[Document]) -> dict[str, str]:
    return {document.id: document.text for document in documents}


def snapshot_tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, mtime and bytes of every file below a folder but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in files
    }
