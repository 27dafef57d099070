"""Open or build a store by where it is: a folder, or Milvus."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transenc.search.milvus.client import parse_place

if TYPE_CHECKING:
    from transenc.corpus import Document
    from transenc.search.faiss_store import FaissStore
    from transenc.search.milvus.milvus_store import MilvusStore
    from transenc.search.store import Embed

Location = str | os.PathLike[str]


def open_store(location: Location) -> FaissStore | MilvusStore:
    """Open the index at a place.

    Args:
        location: milvus://host:port/name (milvus+tls:// encrypts): a Milvus server. A path folder.db or folder.db/name:
            milvus-lite in this process, whose index is named "transenc" or `name`. Any other path: a `FaissStore`.

    Raises:
        InputError: A malformed address, no index, the extra `milvus` is missing, or no server that answers.
        StateError: It is damaged.
        BusyError: Another process has an embedded index open.

    Example:
        >>> open_store("papers.idx")  # doctest: +SKIP
        >>> open_store("milvus://localhost:19530/papers")  # doctest: +SKIP
    """
    if not is_folder(location):
        from transenc.search.milvus.milvus_store import MilvusStore

        return MilvusStore.open(location)
    from transenc.search.faiss_store import FaissStore

    return FaissStore.open(location)


def build_store(
    location: Location,
    documents: Iterable[Document],
    embed: Embed,
    *,
    encoder: dict[str, Any],
    kind: str = "auto",
    lexical: bool = False,
    progress: bool = False,
) -> FaissStore | MilvusStore:
    """Build an index, or replace all content of the one there; until it is done the old content serves.

    Args:
        location: As for `open_store`.
        documents: Read once, one at a time; every error in them is found before the first is encoded.
        embed: Encodes blocks of documents.
        encoder: What the index says of the encoder, JSON.
        kind: "auto", "exact", "hnsw" or "ivfpq"; in Milvus "auto" or "hnsw".
        lexical: Also index the words.
        progress: Show progress bars on stderr.

    Raises:
        InputError: An unusable document, argument or place.
        StateError: A vector is not finite, the disk is full, or the connection is lost.
        BusyError: Another process is changing this index.
    """
    if not is_folder(location):
        from transenc.search.milvus.milvus_store import MilvusStore

        return MilvusStore.build(
            location, documents, embed, encoder=encoder, kind=kind, lexical=lexical, progress=progress
        )
    from transenc.search.faiss_store import FaissStore

    return FaissStore.build(location, documents, embed, encoder=encoder, kind=kind, lexical=lexical, progress=progress)


def is_folder(location: Location) -> bool:
    """Say whether a place is that of a `FaissStore`.

    Raises:
        InputError: A malformed address.

    Example:
        >>> is_folder("papers.idx"), is_folder("milvus://localhost/papers")
        (True, False)
    """
    return parse_place(location) is None
