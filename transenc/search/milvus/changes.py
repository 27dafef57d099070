"""Change an index in Milvus: check the documents, encode and insert them, and make them visible in one step.

Rows are inserted as `born` at the next change, which no reader looks at. One replacement of the facts makes them
visible, and hides the documents that go, of which the rows are then deleted. What a writer that was killed has left is
cleared away by the next one: rows of a change that was not finished are deleted, a deletion that was is completed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Any

from tqdm import tqdm

from transenc.corpus import Document
from transenc.errors import InputError, StateError, TransencError
from transenc.search.chunks import encode_chunks, split_blocks
from transenc.search.documents import DocumentTable, list_fields
from transenc.search.milvus.client import LOAD, WRITE, Connection, MissingCollectionError
from transenc.search.milvus.expressions import IDS_AT_ONCE, express_any
from transenc.search.milvus.lock import Writer
from transenc.search.milvus.rows import (
    KINDS,
    check_dim,
    create_collections,
    make_document_rows,
    make_marker_row,
    make_passage_rows,
    name_documents,
    write_rows,
)
from transenc.search.milvus.staging import Staged, stage_documents
from transenc.search.milvus.state import FORMAT, make_properties, read_catalogue, read_facts, write_facts
from transenc.search.milvus.view import View
from transenc.search.store import Embed, check_embed, copy_facts
from transenc.tables import show

_SEALED_FROM = 1000  # rows; what is not sealed is not indexed, and searched one by one
_MOST_KEYS, _LONGEST_KEY = 100, 100  # names of metadata that are remembered, for error messages
_LOOKED_UP_AT_ONCE = 256  # documents


def start_facts(embed: Embed, encoder: dict[str, Any], *, kind: str, lexical: bool) -> dict[str, Any]:
    """Return the facts of an index without documents.

    Raises:
        InputError: An unknown kind, a width that Milvus does not store, or an encoder that JSON does not have.
        TypeError: An argument of the wrong type.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected {' or '.join(KINDS)} for an index in Milvus, found {show(kind)}")
    check_embed(embed)
    check_dim(embed.dim)
    return {
        "format": FORMAT,
        "generation": 0,
        "complete": False,
        "removing": False,  # rows of documents that went with the last change may still be there
        "metric": "cosine",
        "dim": embed.dim,
        "kind": "hnsw" if kind == "hnsw" else "autoindex",
        "kind_asked": kind,
        "encoder": copy_facts(encoder),
        "embedding": embed.fingerprint,
        "lexical": bool(lexical),
        "truncated": 0,
        "documents": 0,
        "passages": 0,
        "next": {"document": 0, "passage": 0, "piece": 0},  # numbers that were never given
        "keys": [],
    }


def build_generation(
    connection: Connection,
    writer: Writer,
    documents: Iterable[Document],
    embed: Embed,
    facts: dict[str, Any],
    *,
    progress: bool,
) -> str:
    """Build a generation and let it serve; the one before stays for those who read it, older ones go.

    Args:
        connection: To the server.
        writer: Holds the index.
        documents: What to index.
        embed: The encoder.
        facts: Of an index without documents.
        progress: Show progress bars on stderr.

    Returns:
        The collection of passages.
    """
    catalogue = read_catalogue(connection)
    serving = catalogue.serving
    newest = max(catalogue.generations, default=0)
    if serving is not None:
        newest = max(newest, read_facts(connection, serving)["generation"])
    for names in catalogue.generations.values():
        if serving not in names and not _is_complete(connection, names):
            _drop(connection, names)
    collection = f"{connection.place.name}__gen{newest + 1:06d}"
    with stage_documents(documents, writer, progress=progress) as staged:
        try:
            create_collections(
                connection,
                collection,
                dim=facts["dim"],
                kind=facts["kind_asked"],
                lexical=facts["lexical"],
                properties=make_properties(facts),
            )
            empty = {**facts, "generation": newest}
            filled = fill_collections(connection, writer, collection, staged, embed, empty, progress=progress)
            if filled["passages"] >= _SEALED_FROM:
                for name in (collection, name_documents(collection)):
                    connection.call("flush", name, seconds=LOAD)
            writer.renew(at_once=True)
        except BaseException:
            with suppress(TransencError):  # or else by the next build
                _drop(connection, [collection, name_documents(collection)])
            raise
    write_facts(connection, collection, {**filled, "complete": True})
    switch = "create_alias" if serving is None else "alter_alias"
    connection.call(switch, collection, connection.place.name, seconds=WRITE)
    for names in catalogue.generations.values():
        if serving not in names:
            _drop(connection, names)
    return collection


def fill_collections(
    connection: Connection,
    writer: Writer,
    collection: str,
    staged: Staged,
    embed: Embed,
    facts: dict[str, Any],
    *,
    progress: bool,
) -> dict[str, Any]:
    """Encode documents block by block and insert them as born at the next change.

    Args:
        connection: To the server.
        writer: Holds the index.
        collection: Of passages.
        staged: The documents.
        embed: The encoder.
        facts: Of the index as it is.
        progress: Show a progress bar on stderr.

    Returns:
        The facts of the index with them.

    Raises:
        StateError: A vector is not finite, or the server lost rows.
        InputError: `embed` does not keep its promise.
    """
    born, lexical = facts["generation"] + 1, facts["lexical"]
    following, keys, truncated = dict(facts["next"]), set(facts["keys"]), facts["truncated"]
    before = [_count_rows(connection, name) for name in (collection, name_documents(collection))]
    with (
        closing(DocumentTable.open(staged.table)) as table,
        tqdm(total=table.count(), desc="encode", unit=" documents", disable=not progress) as bar,
    ):
        for block in split_blocks(document for _, document in table.read()):
            [chunk] = encode_chunks(block, embed, staged.folder, total=len(block))
            passages, vectors = chunk.read_passages(0), chunk.read_vectors()
            truncated += chunk.truncated
            shutil.rmtree(chunk.folder)
            writer.renew(at_once=True)  # encoding took long: whoever took over must not get these rows
            rows = make_passage_rows(
                block, passages, vectors, first=following["passage"], document=following["document"], born=born
            )
            following["passage"] += write_rows(connection, collection, rows)
            rows = make_document_rows(
                block, first=following["piece"], document=following["document"], born=born, lexical=lexical
            )
            following["piece"] += write_rows(connection, name_documents(collection), rows)
            following["document"] += len(block)
            keys.update(key for document in block for key, _ in list_fields(document))
            bar.update(len(block))
    writer.renew(at_once=True)
    new = {name: following[name] - facts["next"][name] for name in following}
    for name, count, expected in zip(
        (collection, name_documents(collection)), before, (new["passage"], new["piece"]), strict=True
    ):
        if (found := _count_rows(connection, name) - count) != expected:
            raise StateError(f"{connection.place}: expected {expected} new rows in {name}, found {found}; start again")
    return {
        **facts,
        "generation": born,
        "truncated": truncated,
        "documents": facts["documents"] + new["document"],
        "passages": facts["passages"] + new["passage"],
        "next": following,
        "keys": sorted(key for key in keys if len(key) <= _LONGEST_KEY)[:_MOST_KEYS],
    }


def commit_change(writer: Writer, view: View, facts: dict[str, Any], gone: list[int]) -> None:
    """Make a change visible.

    Args:
        writer: Holds the index.
        view: The index before.
        facts: Of it with the rows that were inserted.
        gone: Numbers of the documents that go.
    """
    connection = view.connection
    if gone:
        following = dict(facts["next"])
        markers = (
            make_marker_row(number, row=row, born=facts["generation"], lexical=facts["lexical"])
            for row, number in enumerate(gone, start=following["piece"])
        )
        following["piece"] += write_rows(connection, view.documents, markers)
        facts = {
            **facts,
            "next": following,
            "documents": facts["documents"] - len(gone),
            "passages": facts["passages"] - view.count_passages(gone),
            "removing": True,
        }
    writer.renew(at_once=True)
    write_facts(connection, view.passages, facts)
    if gone:
        _remove(view, facts, gone)


def repair_generation(view: View) -> None:
    """Clear away what a writer that was killed has left in the index."""
    if view.facts["removing"]:
        _remove(view, view.facts, view.gone)
    for name in (view.passages, view.documents):
        view.connection.call("delete", name, filter=f"born > {view.facts['generation']}", seconds=WRITE)


def _remove(view: View, facts: dict[str, Any], gone: list[int]) -> None:
    """Delete the rows of documents that are hidden, and then their markers, which are among the documents'."""
    for start in range(0, len(gone), IDS_AT_ONCE):
        expression = express_any("doc", gone[start : start + IDS_AT_ONCE])
        for name in (view.passages, view.documents):
            view.connection.call("delete", name, filter=expression, seconds=WRITE)
    write_facts(view.connection, view.passages, {**facts, "removing": False})


def _count_rows(connection: Connection, name: str) -> int:
    [row] = connection.call("query", name, filter="", output_fields=["count(*)"], consistency_level="Strong")
    return int(row["count(*)"])


def _is_complete(connection: Connection, names: list[str]) -> bool:
    try:
        return bool(read_facts(connection, min(names, key=len))["complete"])
    except StateError:
        return False


def _drop(connection: Connection, names: list[str]) -> None:
    for name in names:
        with suppress(MissingCollectionError):
            connection.call("drop_collection", name, seconds=WRITE)
