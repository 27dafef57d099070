"""Read and check all documents of a change of an index in Milvus, before anything is encoded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from transenc.corpus import Document
from transenc.errors import InputError
from transenc.search.documents import DocumentTable
from transenc.search.milvus.lock import Writer
from transenc.search.milvus.rows import FIELDS_BYTES, ID_BYTES, encode_fields
from transenc.search.milvus.view import View
from transenc.tables import show

_LOOKED_UP_AT_ONCE = 256  # documents


@dataclass(frozen=True)
class Staged:
    """Documents that have been checked, in a temporary folder.

    Args:
        folder: Holds them.
        replaced: Numbers of the documents of the index whose ids they have.
    """

    folder: Path
    replaced: list[int]

    @property
    def table(self) -> Path:
        """The file with the documents."""
        return self.folder / "docs.sqlite"


@contextmanager
def stage_documents(
    documents: Iterable[Document],
    writer: Writer,
    *,
    view: View | None = None,
    upsert: bool = False,
    progress: bool = False,
) -> Iterator[Staged]:
    """Read and check all documents before the first is encoded; they lie in a temporary file for the block.

    Args:
        documents: Read once.
        writer: Holds the index.
        view: Of the index that they are added to; None: a new one.
        upsert: They may have ids that are in the index already.
        progress: Show a progress bar on stderr.

    Raises:
        InputError: An unusable document, an id that occurs twice or is in the index, no documents.
    """
    with tempfile.TemporaryDirectory(prefix="transenc-") as folder:
        staged = Staged(Path(folder), [])
        watched = _watch(documents, writer, view, staged.replaced, upsert=upsert)
        with closing(DocumentTable.create(staged.table)) as table:
            table.append(watched, progress=progress)
            table.finish()
        yield staged


def _watch(
    documents: Iterable[Document], writer: Writer, view: View | None, replaced: list[int], *, upsert: bool
) -> Iterator[Document]:
    """Yield documents, and check each when whoever asks for the next one has taken it."""
    position = 0
    for block in _batch(documents):
        writer.renew()
        ids = [one.id for one in block if isinstance(one, Document) and isinstance(one.id, str)]
        known = {} if view is None else view.find_known(ids)
        for document in block:
            yield document
            _check_storable(document, position)
            if document.id in known:
                if not upsert:
                    place = document.place or f"documents[{position}]"
                    raise InputError(
                        f"{place}: the id {show(document.id)} is in the index already; upsert replaces such documents"
                    )
                replaced.append(known[document.id])
            position += 1


def _batch(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _LOOKED_UP_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_storable(document: Document, position: int) -> None:
    """Refuse a document of which the id or the metadata do not fit into a field of Milvus."""
    place = document.place or f"documents[{position}]"
    if (size := len(document.id.encode())) > ID_BYTES:
        raise InputError(f"{place}: Milvus stores ids of at most {ID_BYTES} bytes, found {size}; shorten the id")
    if (size := len(json.dumps(encode_fields(document)))) > FIELDS_BYTES:
        raise InputError(
            f"{place}: the names and values of the metadata that can be filtered by take {size} bytes in Milvus, which "
            f"stores at most {FIELDS_BYTES}; shorten them, or leave some out"
        )
