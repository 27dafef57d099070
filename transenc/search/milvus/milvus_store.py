"""The store for a corpus that outgrows one machine: a Milvus server, or milvus-lite in this process (extra `milvus`).

See `rows` for what is stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from transenc.corpus import Document
from transenc.errors import BusyError, InputError, StateError
from transenc.search.milvus.changes import (
    build_generation,
    commit_change,
    fill_collections,
    repair_generation,
    start_facts,
)
from transenc.search.milvus.client import EXAMPLES, Connection, Place, parse_place
from transenc.search.milvus.hits import MOST_ROWS
from transenc.search.milvus.lock import Writer, hold_writer
from transenc.search.milvus.rows import load_generation
from transenc.search.milvus.staging import stage_documents
from transenc.search.milvus.state import read_catalogue, read_facts, read_view
from transenc.search.milvus.view import View
from transenc.search.store import Condition, Embed, Match, check_embed, check_ids, check_queries, check_top_k
from transenc.tables import show

_TRIES = 10
_Result = TypeVar("_Result")


class MilvusStore:
    """Documents with their vectors in Milvus; made by `build` or `open`. Safe to use from several threads.

    It reads the generation that served when it was opened, whatever others build, until it changes the index itself;
    what others add to that generation and delete from it is seen at once. An answer is always of one state.

    Args:
        connection: To the server; the store closes it.
        collection: The generation.

    Attributes:
        place: Where it is.

    Example:
        >>> with MilvusStore.open("milvus://localhost:19530/papers") as store:  # doctest: +SKIP
        ...     store.count()
    """

    def __init__(self, connection: Connection, collection: str) -> None:
        self.place = connection.place
        self._connection, self._collection = connection, collection
        self._fixed = read_facts(connection, collection)  # of which some never change: dim, lexical

    @classmethod
    def build(
        cls,
        uri: str | os.PathLike[str],
        documents: Iterable[Document],
        embed: Embed,
        *,
        encoder: dict[str, Any],
        kind: str = "auto",
        lexical: bool = False,
        progress: bool = False,
    ) -> Self:
        """Build an index, or replace all content of the one there; until it is done the old content serves.

        What a build that was killed has left is removed by the next one. The documents lie in a temporary file
        meanwhile.

        Args:
            uri: milvus://host:port/name, or folder.db or folder.db/name for milvus-lite.
            documents: Read once, one at a time; every error in them is found before the first is encoded.
            embed: Encodes blocks of documents; 2 to 32768 numbers a vector.
            encoder: What the index says of the encoder, JSON.
            kind: "auto" (what Milvus chooses) or "hnsw".
            lexical: Also index the words, by the server's own BM25 (Milvus 2.5 or newer).
            progress: Show progress bars on stderr.

        Raises:
            InputError: An unusable document or argument, no documents, or a server that does not answer.
            StateError: A vector is not finite, the connection is lost, or the server refuses.
            BusyError: Another process is changing this index.
        """
        place = _parse(uri)
        facts = start_facts(embed, encoder, kind=kind, lexical=lexical)
        connection = Connection.open(place, create=True)
        try:
            with hold_writer(connection) as writer:
                collection = build_generation(connection, writer, documents, embed, facts, progress=progress)
            return cls(connection, collection)
        except BaseException:
            connection.close()
            raise

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Self:
        """Open an index.

        Raises:
            InputError: There is no index, or no server that answers.
            StateError: It is damaged, or of another format.
            BusyError: Another process has an embedded index open.
        """
        place = _parse(uri)
        connection = Connection.open(place)
        try:
            collection = read_catalogue(connection).serving
            if collection is None:
                raise InputError(f"{place}: expected an index, found nothing; build one there first")
            store = cls(connection, collection)
            load_generation(connection, collection)
            return store
        except BaseException:
            connection.close()
            raise

    def add(self, documents: Iterable[Document], embed: Embed, *, upsert: bool = False, progress: bool = False) -> None:
        """Add documents; they are found when all of them are in.

        Args:
            documents: Read once, one at a time; every error in them is found before the first is encoded.
            embed: The encoder of the index, with the same fingerprint.
            upsert: Replace documents that are in the index already; False: refuse their ids.
            progress: Show progress bars on stderr.

        Raises:
            InputError: An unusable document, no documents, or an id that is not new.
            StateError: Another encoder than that of the index, or a lost connection; nothing has been added then.
            BusyError: Another process is changing this index.
        """
        check_embed(embed)
        with self._change() as (writer, view):
            if (embed.fingerprint, embed.dim) != (view.facts["embedding"], view.facts["dim"]):
                raise StateError(
                    f"{self.place}: expected the encoder and passages it was built with (fingerprint "
                    f"{view.facts['embedding'][:16]}, {view.facts['dim']} wide), found {embed.fingerprint[:16]}, "
                    f"{embed.dim} wide; take that encoder, or build the index again"
                )
            with stage_documents(documents, writer, view=view, upsert=upsert, progress=progress) as staged:
                facts = fill_collections(
                    self._connection, writer, view.passages, staged, embed, view.facts, progress=progress
                )
            commit_change(writer, view, facts, staged.replaced)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents.

        Returns:
            How many documents there were to delete; an id that is named twice counts once.

        Raises:
            InputError: An unknown id; nothing is deleted then.
            StateError: A lost connection.
            BusyError: Another process is changing this index.
        """
        wanted = list(dict.fromkeys(check_ids(ids)))
        with self._change() as (writer, view):
            numbers = view.find(wanted)
            if numbers:
                commit_change(writer, view, {**view.facts, "generation": view.facts["generation"] + 1}, numbers)
        return len(numbers)

    def search(
        self,
        queries: np.ndarray,
        top_k: int,
        *,
        where: Sequence[Condition] = (),
        within: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        """Find the documents nearest to each query by the cosine of their best passage.

        Milvus proposes passages, and the vectors it stores score them: the same vectors give the same scores as in a
        FaissStore. An index of kind auto or hnsw may miss a passage.

        Args:
            queries: float32 [q, dim].
            top_k: Documents a query, 1 to 16384; all when there are not so many.
            where: All of these must hold.
            within: Only these ids; None: all.

        Returns:
            For each query the best documents, best first, ties (scores equal to 6 decimals) by id.

        Raises:
            InputError: Queries that do not fit the index or are not finite, a `top_k` out of range, a metadata key that
                no document has, an unknown id in `within`.
        """
        top_k = _check_top_k(top_k)
        _check_where(where)
        names = None if within is None else check_ids(within)
        normalized = check_queries(queries, self._fixed["dim"])
        return self._read(lambda view: view.search(normalized, top_k, where=where, within=names))

    def search_text(self, queries: Sequence[str], top_k: int, *, where: Sequence[Condition] = ()) -> list[list[Match]]:
        """Find the documents whose words fit each query best, by the server's BM25: best first, ties by id.

        Raises:
            InputError: The index was built without `lexical`, or as for `search`.
        """
        top_k = _check_top_k(top_k)
        if isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
            raise TypeError("queries: expected a sequence of str")
        _check_where(where)
        if not self._fixed["lexical"]:
            raise InputError(f"{self.place}: the index has no words to search; build it again with --hybrid")
        return self._read(lambda view: view.search_text(queries, top_k, where=where))

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in this order; an unknown id is an InputError."""
        wanted = check_ids(ids)
        return self._read(lambda view: view.get(wanted))

    def count(self) -> int:
        """Return the number of documents."""
        return self.facts["documents"]

    @property
    def facts(self) -> dict[str, Any]:
        """What the index says of itself now."""
        return read_facts(self._connection, self._collection)

    @property
    def generation(self) -> int:
        """The number of the last change."""
        return self.facts["generation"]

    def is_current(self) -> bool:
        """Whether what was opened still serves; when another process has built the index again, open it again."""
        return read_catalogue(self._connection).serving == self._collection

    def info(self) -> dict[str, Any]:
        """Return what there is to know of the index without searching it; Milvus tells neither bytes nor recall."""
        facts = {**self.facts, "recall@10": None, "bytes": None, "deleted": 0}
        names = ("documents", "passages", "generation", "kind", "recall@10", "bytes")
        return {name: facts[name] for name in (*names, "deleted", "dim", "encoder", "lexical", "truncated")}

    def close(self) -> None:
        """Close the connection; the store cannot be used afterwards."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _change(self) -> Iterator[tuple[Writer, View]]:
        """Hold the index for a change of what serves now, cleared of what a change that was killed has left."""
        with hold_writer(self._connection) as writer:
            collection = read_catalogue(self._connection).serving
            if collection is None:
                raise StateError(f"{self.place}: the index is gone; build it again")
            if collection != self._collection:
                load_generation(self._connection, collection)
                self._collection, self._fixed = collection, read_facts(self._connection, collection)
            repair_generation(read_view(self._connection, collection))
            yield writer, read_view(self._connection, collection)

    def _read(self, work: Callable[[View], _Result]) -> _Result:
        """Do some reading again when the index changed meanwhile, so that it is of one state."""
        for _ in range(_TRIES):
            view = read_view(self._connection, self._collection)
            try:
                result = work(view)
            except (InputError, StateError):
                if self.generation == view.facts["generation"]:
                    raise
                continue
            if self.generation == view.facts["generation"]:
                return result
        raise BusyError(f"{self.place}: the index changed during each of {_TRIES} tries; try again later")


def _parse(uri: str | os.PathLike[str]) -> Place:
    place = parse_place(uri)
    if place is None:
        raise InputError(f"{show(os.fspath(uri))}: not an index in Milvus; expected {EXAMPLES}")
    return place


def _check_top_k(top_k: Any) -> int:
    count = check_top_k(top_k)
    if count > MOST_ROWS:
        raise InputError(f"top_k: Milvus returns at most {MOST_ROWS} documents, found {count}; ask for fewer")
    return count


def _check_where(where: Any) -> None:
    if isinstance(where, (str, Condition)) or not all(isinstance(one, Condition) for one in where):
        raise TypeError("where: expected a sequence of Condition; parse_condition makes one of a text")
