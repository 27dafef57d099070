"""How an index is laid out in Milvus: two collections, and their rows.

::

    NAME                         alias of the collection that serves; switched when a build is complete
    NAME__gen000007              a row for each passage: vector, document number, start, end, metadata to filter by
    NAME__gen000007_documents    rows that hold a document in pieces, found by the digest of its id
    NAME__writer                 held by whoever changes the index

What the index is (the facts) is a property of the first collection. Every row says at which change of the index it was
`born`; a reader looks at the rows up to the change that the facts name, so that an unfinished one is not seen.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.search.documents import list_fields
from transenc.search.milvus.client import LOAD, WRITE, Connection
from transenc.search.milvus.expressions import TEXTS, digest_id, encode_id, encode_number, encode_text
from transenc.search.milvus.hits import MOST_ROWS

KINDS = ("auto", "hnsw")

_TEXT_BYTES = 65_535  # of one VARCHAR
_PIECE_BYTES = 60_000
ID_BYTES = _TEXT_BYTES // 4 * 3
FIELDS_BYTES = 65_000  # of one JSON field Milvus takes 65,536
_MESSAGE_BYTES = 8_000_000  # of the 64 MB that a server takes by default
_LEAST_DIM, _MOST_DIM = 2, 32_768


# ---- collections


def create_collections(
    connection: Connection, collection: str, *, dim: int, kind: str, lexical: bool, properties: dict[str, str]
) -> None:
    """Create the collections of a generation, indexed, loaded and empty.

    Args:
        connection: To the server.
        collection: Name of the one of passages.
        dim: Width of the vectors, 2 to 32768.
        kind: One of KINDS.
        lexical: Also index the words.
        properties: Of the collection of passages.
    """
    from pymilvus import DataType, Function, FunctionType

    client = connection.client
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    for name in ("doc", "born"):
        schema.add_field(name, DataType.INT64)
    for name in ("start", "end"):
        schema.add_field(name, DataType.INT32)
    schema.add_field("fields", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    indexes = client.prepare_index_params()
    if kind == "hnsw":
        parameters = {"M": 32, "efConstruction": 200}
        indexes.add_index("vector", index_type="HNSW", metric_type="COSINE", params=parameters)
    else:
        indexes.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
    _create(connection, collection, schema, indexes, ("doc", "born"), properties=properties)

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    for name in ("doc", "born"):
        schema.add_field(name, DataType.INT64)
    schema.add_field("piece", DataType.INT32)
    schema.add_field("key", DataType.VARCHAR, max_length=64)
    for name in ("id", "data"):
        schema.add_field(name, DataType.VARCHAR, max_length=_TEXT_BYTES)
    schema.add_field("fields", DataType.JSON)
    indexes = client.prepare_index_params()
    if lexical:
        schema.add_field("text", DataType.VARCHAR, max_length=_TEXT_BYTES, enable_analyzer=True)
        schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(Function("bm25", FunctionType.BM25, ["text"], ["words"]))
        bm25 = {"bm25_k1": 1.2, "bm25_b": 0.75}  # as for FaissStore
        indexes.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params=bm25)
    else:
        schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # every collection must have a vector
        indexes.add_index("nothing", index_type="AUTOINDEX", metric_type="COSINE")
    _create(connection, name_documents(collection), schema, indexes, ("doc", "born", "key"))


def name_documents(collection: str) -> str:
    """Return the name of the collection of documents beside one of passages."""
    return f"{collection}_documents"


def load_generation(connection: Connection, collection: str) -> None:
    """Make a generation ready for searching, as it may not be after the server was started again."""
    for name in (collection, name_documents(collection)):
        connection.call("load_collection", name, seconds=LOAD)


def check_dim(dim: int) -> None:
    """Raise InputError for a width that Milvus does not store."""
    if not _LEAST_DIM <= dim <= _MOST_DIM:
        raise InputError(f"embed: Milvus stores vectors of {_LEAST_DIM} to {_MOST_DIM} numbers, found dim {dim}")


# ---- rows


def make_passage_rows(
    block: Sequence[Document], passages: np.ndarray, vectors: np.ndarray, *, first: int, document: int, born: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each passage of a block of documents.

    Args:
        block: The documents.
        passages: int [n, 3]: position in the block, start, end.
        vectors: float32 [n, dim], at length 1 or 0.
        first: Number of the first row.
        document: Number of the first document.
        born: Change of the index.
    """
    fields = [encode_fields(one) for one in block]
    for row, ((position, start, end), vector) in enumerate(zip(passages.tolist(), vectors, strict=True), start=first):
        yield {
            "row": row, "doc": document + position, "born": born, "start": start, "end": end,
            "fields": fields[position], "vector": vector,
        }  # fmt: skip


def make_document_rows(
    block: Sequence[Document], *, first: int, document: int, born: int, lexical: bool
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a block of documents, in pieces; arguments as for `make_passage_rows`."""
    row = first
    for number, one in enumerate(block, start=document):
        content = json.dumps([one.id, one.title, one.text, dict(one.metadata)])
        data = _split(base64.b64encode(zlib.compress(content.encode())).decode())
        texts = list(_split_text(one.content)) if lexical else []
        fields, key, name = encode_fields(one), digest_id(one.id), encode_id(one.id)
        for piece in range(max(len(data), len(texts))):
            values = {
                "row": row, "doc": number, "born": born, "piece": piece, "key": key, "fields": fields,
                "id": name if piece == 0 else "", "data": data[piece] if piece < len(data) else "",
            }  # fmt: skip
            yield _fill(values, texts[piece] if piece < len(texts) else "", lexical=lexical)
            row += 1


def make_marker_row(number: int, *, row: int, born: int, lexical: bool) -> dict[str, Any]:
    """Return the row that says that a document goes with a change: the piece -1."""
    marker = {"row": row, "doc": number, "born": born, "piece": -1, "key": "", "fields": {}, "id": "", "data": ""}
    return _fill(marker, "", lexical=lexical)


def join_pieces(rows: Iterable[dict[str, Any]], place: object) -> Document:
    """Put a document together of its rows.

    Raises:
        StateError: A piece is missing or damaged.
    """
    pieces = {row["piece"]: row["data"] for row in rows}  # an insertion that was retried may be there twice
    try:
        data = "".join(pieces[piece] for piece in range(len(pieces)))
        name, title, text, metadata = json.loads(zlib.decompress(base64.b64decode(data, validate=True)))
    except (KeyError, ValueError, zlib.error) as error:
        raise StateError(f"{place}: a document is damaged or lacks a piece ({error}); build the index again") from error
    return Document(name, text, title, metadata)


def write_rows(connection: Connection, collection: str, rows: Iterable[dict[str, Any]]) -> int:
    """Insert rows in messages of bounded size; returns how many.

    Raises:
        StateError: The server took fewer.
    """
    written, weight = 0, 0
    batch: list[dict[str, Any]] = []

    def send() -> None:
        nonlocal written
        taken = connection.call("insert", collection, batch, seconds=WRITE)["insert_count"]
        if taken != len(batch):
            raise StateError(f"{connection.place}: Milvus took {taken} of {len(batch)} rows; start again")
        written += len(batch)

    for row in rows:
        batch.append(row)
        weight += sum(_weigh(value) for value in row.values())
        if weight >= _MESSAGE_BYTES or len(batch) >= MOST_ROWS:
            send()
            batch, weight = [], 0
    if batch:
        send()
    return written


# ---- parts of rows


def _create(
    connection: Connection, name: str, schema: Any, indexes: Any, scalars: Sequence[str], **options: Any
) -> None:
    for scalar in scalars:
        indexes.add_index(scalar, index_type="INVERTED")
    connection.call("create_collection", name, schema=schema, consistency_level="Strong", seconds=WRITE, **options)
    # There is nothing to index yet, and pymilvus would wait half a second for each, and for a broken server forever.
    connection.call("create_index", name, indexes, sync=False, seconds=WRITE)
    connection.call("load_collection", name, seconds=LOAD)


def encode_fields(document: Document) -> dict[str, str]:
    """Return the metadata that can be filtered by, as it is stored."""
    return {
        f"k{encode_text(key)}": encode_number(value) if not isinstance(value, str) else TEXTS + encode_text(value)
        for key, value in list_fields(document)
    }


def _fill(row: dict[str, Any], text: str, *, lexical: bool) -> dict[str, Any]:
    return {**row, "text": text} if lexical else {**row, "nothing": [1.0, 0.0]}


def _split(text: str) -> list[str]:
    return [text[start : start + _PIECE_BYTES] for start in range(0, len(text), _PIECE_BYTES)]


def _split_text(text: str) -> Iterator[str]:
    """Yield text in parts that a field can hold, cut between words where there are any."""
    data = text.replace("\0", " ").encode()
    start = 0
    while start < len(data):
        end = min(len(data), start + _PIECE_BYTES)
        if end < len(data):
            space = data.rfind(b" ", start + 1, end)
            while space < 0 and data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
            end = end if space < 0 else space
        yield data[start:end].decode()
        start = end


def _weigh(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(len(key) + len(text) for key, text in value.items())
    return 16
