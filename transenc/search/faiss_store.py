"""The store in a folder: vectors searched with faiss, documents in SQLite, every change a new generation.

See `generations` for the folder and `snapshot` for what a generation holds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.search import generations
from transenc.search.assembly import (
    check_words,
    encode_generation,
    mark_deleted,
    write_index,
    write_passages,
    write_words,
)
from transenc.search.chunks import VECTORS, slice_rows, write_vectors
from transenc.search.documents import DocumentTable
from transenc.search.snapshot import DOCUMENTS, FORMAT, INDEX, Snapshot
from transenc.search.store import Condition, Embed, Match, check_embed, check_ids, copy_facts
from transenc.search.vector_index import KINDS

Location = str | os.PathLike[str]


class FaissStore:
    """Documents with their vectors in a folder; made by `build` or `open`.

    It reads the generation that served when it was opened, whatever other processes publish, until it changes the
    index itself. Every change starts from what then serves, and all of it is published at once.

    Attributes:
        path: The folder.

    Example:
        >>> import tempfile
        >>> from transenc.search.store import Embedded, Passage
        >>> class Lengths:
        ...     fingerprint, dim = "lengths", 2
        ...
        ...     def __call__(self, documents):
        ...         vectors = [[len(document.text), 1] for document in documents]
        ...         passages = [Passage(i, 0, len(document.text)) for i, document in enumerate(documents)]
        ...         return Embedded(passages, np.array(vectors, np.float32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     corpus = [Document("a", ""), Document("b", "word")]
        ...     with FaissStore.build(f"{folder}/idx", corpus, Lengths(), encoder={}) as store:
        ...         found = store.search(np.array([[1, 0]], np.float32), 1)
        >>> found
        [[Match(id='b', score=0.970142, start=0, end=4)]]
    """

    def __init__(self, path: Location, snapshot: Snapshot) -> None:
        self.path = Path(path)
        self._pinned: Snapshot | None = snapshot

    @classmethod
    def build(
        cls,
        path: Location,
        documents: Iterable[Document],
        embed: Embed,
        *,
        encoder: dict[str, Any],
        kind: str = "auto",
        lexical: bool = False,
        progress: bool = False,
    ) -> Self:
        """Build an index, or replace all content of the one at `path`; until it is done the old content serves.

        Killed and started again with the same documents it goes on: nothing is encoded twice but the last block.

        Args:
            path: The folder; made when it is missing.
            documents: Read once, one at a time; every error in them is found before the first is encoded.
            embed: Encodes blocks of documents.
            encoder: What the manifest says of the encoder, JSON.
            kind: "exact", "hnsw", "ivfpq", or "auto": by the number of passages, now and whenever some are added.
            lexical: Also index the words (extra `hybrid`).
            progress: Show progress bars on stderr.

        Raises:
            InputError: An unusable document or argument, no documents, or a folder with something else in it.
            StateError: A vector is not finite, or the disk is full.
            BusyError: Another process is changing this index.
        """
        if kind not in (*KINDS, "auto"):
            raise InputError(f"kind: expected auto, {', '.join(KINDS)}, found {kind!r}")
        check_embed(embed)
        facts = {
            "format": FORMAT,
            "generation": 0,
            "metric": "cosine",
            "dim": embed.dim,
            "kind_asked": kind,
            "encoder": copy_facts(encoder),
            "embedding": embed.fingerprint,
            "lexical": bool(lexical),
            "truncated": 0,
        }
        if lexical:
            check_words()
        root = Path(path)
        generations.prepare_folder(root)
        with generations.change_index(root), generations.publish_generation(root, facts) as folder:
            with closing(DocumentTable.create(folder / DOCUMENTS)) as table:
                table.append(documents, progress=progress)
                table.finish()
            encode_generation(root, folder, facts, embed, progress=progress)
        return cls.open(root)

    @classmethod
    def open(cls, path: Location) -> Self:
        """Open an index: every file of its serving generation is verified, before any is parsed.

        Raises:
            InputError: There is no index.
            StateError: It is damaged; names the file.
        """
        return cls(path, generations.open_current(Path(path), Snapshot))

    def add(self, documents: Iterable[Document], embed: Embed, *, upsert: bool = False, progress: bool = False) -> None:
        """Add documents; they are found when all of them are in.

        Killed and started again with the same documents it goes on, as `build` does.

        Args:
            documents: Read once, one at a time; every error in them is found before the first is encoded.
            embed: The encoder of the index, with the same fingerprint.
            upsert: Replace documents that are in the index already; False: refuse their ids.
            progress: Show progress bars on stderr.

        Raises:
            InputError: An unusable document, no documents, or an id that is not new.
            StateError: Another encoder than that of the index, damage, or a full disk.
            BusyError: Another process is changing this index.
        """
        check_embed(embed)
        with generations.change_index(self.path):
            base = generations.open_current(self.path, Snapshot)
            facts = dict(base.facts)
            if (embed.fingerprint, embed.dim) != (facts["embedding"], facts["dim"]):
                raise StateError(
                    f"{self.path}: expected the encoder and passages it was built with (fingerprint "
                    f"{facts['embedding'][:16]}, {facts['dim']} wide), found {embed.fingerprint[:16]}, {embed.dim} "
                    "wide; take that encoder, or build the index again"
                )
            with generations.publish_generation(self.path, facts) as folder:
                shutil.copyfile(base.folder / DOCUMENTS, folder / DOCUMENTS)
                with closing(DocumentTable.edit(folder / DOCUMENTS)) as table:
                    replaced = table.append(documents, upsert=upsert, progress=progress)
                    table.finish()
                encode_generation(self.path, folder, facts, embed, base=base, replaced=replaced, progress=progress)
            self._pinned = generations.open_current(self.path, Snapshot)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; `compact` gives the room of their vectors back.

        Returns:
            How many documents there were to delete; an id that is named twice counts once.

        Raises:
            InputError: An unknown id; nothing is deleted then.
            StateError: Damage, or a full disk.
            BusyError: Another process is changing this index.
        """
        wanted = list(dict.fromkeys(check_ids(ids)))
        with generations.change_index(self.path):
            base = generations.open_current(self.path, Snapshot)
            numbers = base.table.find(wanted)
            if not numbers:
                return 0
            facts = dict(base.facts)
            with generations.publish_generation(self.path, facts) as folder:
                shutil.copyfile(base.folder / DOCUMENTS, folder / DOCUMENTS)
                with closing(DocumentTable.edit(folder / DOCUMENTS)) as table:
                    table.remove(numbers)
                    table.finish()
                for name in (VECTORS, INDEX):
                    if (base.folder / name).exists():
                        generations.link_file(base.folder / name, folder / name)
                write_passages(folder, facts, mark_deleted(base.passages, numbers))
                write_words(folder, facts)
            self._pinned = generations.open_current(self.path, Snapshot)
        return len(numbers)

    def compact(self, *, progress: bool = False) -> None:
        """Write the index again without what was deleted or replaced; with nothing to drop it does nothing.

        Raises:
            StateError: Damage, or a full disk.
            BusyError: Another process is changing this index.
        """
        with generations.change_index(self.path):
            base = generations.open_current(self.path, Snapshot)
            if not base.facts["deleted"]:
                return
            facts, live = dict(base.facts), base.live
            with generations.publish_generation(self.path, facts) as folder:
                base.table.copy(folder / DOCUMENTS)
                write_passages(folder, facts, base.passages[live])
                parts = slice_rows(base.vectors, live)
                write_vectors(folder / VECTORS, parts, rows=int(live.sum()), dim=facts["dim"])
                write_index(folder, facts, progress=progress)
                write_words(folder, facts)
            self._pinned = generations.open_current(self.path, Snapshot)

    def search(
        self,
        queries: np.ndarray,
        top_k: int,
        *,
        where: Sequence[Condition] = (),
        within: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        """Find the documents nearest to each query by the cosine of their best passage.

        Args:
            queries: float32 [q, dim].
            top_k: Documents a query, 1 or more; all when there are not so many.
            where: All of these must hold.
            within: Only these ids; None: all.

        Returns:
            For each query the best documents, best first, ties (scores equal to 6 decimals) by id.

        Raises:
            InputError: Queries that do not fit the index or are not finite, a `top_k` that is no whole number of 1 or
                more, a metadata key that no document has, an unknown id in `within`.
        """
        return self._snapshot.search(queries, top_k, where=where, within=within)

    def search_text(self, queries: Sequence[str], top_k: int, *, where: Sequence[Condition] = ()) -> list[list[Match]]:
        """Find the documents whose words fit each query best (BM25): scores above 0 only, best first, ties by id.

        Raises:
            InputError: The index was built without `lexical`, the extra `hybrid` is missing, or as for `search`.
        """
        return self._snapshot.search_text(queries, top_k, where=where)

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in this order; an unknown id is an InputError."""
        return self._snapshot.table.get(check_ids(ids))

    def count(self) -> int:
        """Return the number of documents."""
        return self.facts["documents"]

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest of the generation says."""
        return self._snapshot.facts

    @property
    def generation(self) -> int:
        """The number of the generation."""
        return self.facts["generation"]

    def info(self) -> dict[str, Any]:
        """Return what there is to know of the index without searching it; bytes are those of the generation."""
        names = ("documents", "passages", "generation", "kind", "recall@10")
        others = ("deleted", "dim", "encoder", "lexical", "truncated")
        facts, size = self.facts, self._snapshot.bytes
        return {name: facts[name] for name in names} | {"bytes": size} | {name: facts[name] for name in others}

    def close(self) -> None:
        """Close the files; the store cannot be used afterwards."""
        if self._pinned is not None:
            self._pinned.table.close()
            self._pinned = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _snapshot(self) -> Snapshot:
        if self._pinned is None:
            raise InputError(f"{self.path}: the index was closed; open it again")
        return self._pinned


def verify_index(path: Location) -> dict[str, Any]:
    """Check an index as `FaissStore.open` does, and every vector, passage and document in it.

    Returns:
        `FaissStore.info` with the path as "index".

    Raises:
        InputError: There is no index.
        StateError: Names what is damaged.
    """
    with closing(FaissStore.open(path)) as store:
        store._snapshot.check_content()
        return {"index": str(path), **store.info()}
