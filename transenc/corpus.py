"""Raw text, read strictly: documents to search with the queries and judgements that measure it, and plain sentences.

Nothing is guessed, repaired or skipped in silence. What cannot be used raises InputError with its place
(``docs.jsonl:7``, the physical line), what was expected, what was found and what to do.
"""

from __future__ import annotations

import datetime
import logging
import math
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transenc.errors import InputError
from transenc.tables import Table, is_blank, is_dataset, open_table, show, show_names

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

IDS = ("_id", "id")  # where a document's id is looked for, in this order
QRELS = ("query-id", "corpus-id", "score")
SENTENCE_COLUMNS = ("sentence", "text")  # where a sentence is looked for, in this order

_DEPTH = 64  # of metadata; more would exhaust whoever writes it as JSON
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_PLAIN = re.compile(r"\.txt(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus.

    Args:
        id: Names it in the corpus; any text that is not empty, kept exactly.
        text: What is encoded, searched and shown.
        title: Stands before the text, where there is one.
        metadata: Further columns: name -> a value that JSON has.
        place: Where it was read, for error messages: "docs.jsonl:17".

    Example:
        >>> Document("d1", "It is mild in winter.", title="Porto").content
        'Porto It is mild in winter.'
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    @property
    def content(self) -> str:
        """Title and text joined by one space, or the one of them that is there."""
        return f"{self.title.strip()} {self.text.strip()}".strip()


def read_corpus(
    source: str | os.PathLike[str] | Dataset | Iterable[Document | Mapping[str, Any]], *, skip_empty: bool = False
) -> Iterator[Document]:
    """Read documents one after the other; memory does not grow with the corpus.

    Files: ``.txt`` (one document a line), ``.tsv`` (header, no quoting), ``.csv`` (header, RFC 4180 quoting, one
    record a line) and ``.jsonl`` (one object a line), each also with ``.gz``; and ``.parquet``. The id is in the
    column ``_id`` or else ``id``; where neither is there, it is the number by which errors name the row (of a line
    from 1, of an item of a Python object from 0). ``text`` is required, ``title`` optional (null: no title), and all
    other columns are metadata: of .tsv and .csv text, else what JSON has, dates and times as ISO 8601 text.

    Args:
        source: A path, a Hub dataset id ("owner/name" or "owner/name:split"), a ``datasets.Dataset``, or an iterable
            of `Document` or of mappings.
        skip_empty: Leave out documents without a visible character in title and text, and say in the log how many;
            otherwise the first of them raises.

    Yields:
        The documents in their order. Whether an id occurs twice is for the reader of them all to say.

    Raises:
        InputError: The source cannot be read, or a document is unusable. A path is opened at once; what stands in
            the rows comes up when they are reached.
        TypeError: The source, or an item of it, has the wrong Python type.

    Example:
        >>> [document.id for document in read_corpus([{"_id": "a", "text": "One."}, {"_id": "b", "text": "Two."}])]
        ['a', 'b']
    """
    if isinstance(source, str | os.PathLike) or is_dataset(source):
        table = open_table(source, ["text"], optional=(*IDS, "title"), every=True, items=("document", "documents"))
        _check_header(table, required=("text",))
        return _drop_empty(_read_rows(table), table.place, skip_empty=skip_empty)
    if isinstance(source, bytes | Mapping) or not isinstance(source, Iterable):
        raise TypeError(
            "corpus: expected a path, a Hub dataset id, a datasets.Dataset or an iterable of documents or mappings, "
            f"found {type(source).__name__}"
        )
    return _drop_empty(_read_items(source), "documents", skip_empty=skip_empty)


def read_sentences(
    *sources: str | os.PathLike[str] | Dataset | Iterable[str], max_sentences: int | None = None, seed: int = 2021
) -> list[str]:
    """Read sentences to learn from: each once, in the order of the sources.

    Files and data sets as for `read_corpus`, of which only the column ``sentence``, or else ``text``, is read. Blank
    lines of .txt files and repeated sentences are left out, and the log says how many. A sentence of any length is
    kept whole; who encodes it cuts it.

    Args:
        sources: One or more of: a path, a Hub dataset id ("owner/name" or "owner/name:split"), a
            ``datasets.Dataset``, or an iterable of strings, which are the sentences.
        max_sentences: Keep a random sample of this many, in their order.
        seed: Decides the sample.

    Returns:
        2 or more different sentences.

    Raises:
        InputError: A source cannot be read, a row has no text, or there are fewer than 2 different sentences.
        TypeError: A source, or an item of it, has the wrong Python type.

    Example:
        >>> read_sentences(["It rains.", "It snows.", "It rains."])
        ['It rains.', 'It snows.']
    """
    if max_sentences is not None and (isinstance(max_sentences, bool) or not isinstance(max_sentences, int)):
        raise TypeError(f"max_sentences: expected a whole number, found {max_sentences!r}")
    if max_sentences is not None and max_sentences < 2:
        raise InputError(f"max_sentences: expected at least 2, found {max_sentences}")
    tables = [_open_sentences(source) for source in sources]
    where = ", ".join(dict.fromkeys(place for place, _ in tables)) or "sentences"
    found: dict[str, None] = {}
    read = 0
    for _, rows in tables:
        for text in rows:
            found[text] = None
            read += 1
    if len(found) < 2:
        many = f"all {read} are the same" if read > 1 else f"found {read}"
        raise InputError(f"{where}: expected at least 2 different sentences, {many}; add sentences")
    if len(found) < read:
        logger.warning("%s: repeated sentences left out: %d of %d", where, read - len(found), read)
    sentences = list(found)
    if max_sentences is None or max_sentences >= len(sentences):
        return sentences
    return [sentences[row] for row in sorted(random.Random(seed).sample(range(len(sentences)), max_sentences))]


def read_queries(source: str | os.PathLike[str] | Dataset) -> dict[str, str]:
    """Read the queries of a retrieval benchmark: ``_id`` and ``text``, usually ``queries.jsonl``.

    Args:
        source: As for `read_corpus`. A column ``metadata``, which the BEIR files have, is not read.

    Returns:
        Query id -> text, in the order of the source.

    Raises:
        InputError: An unknown column, an id that occurs twice, an empty query, or no query at all.

    Example:
        >>> read_queries("retrieval/scifact/queries.jsonl")["0"]  # doctest: +SKIP
        '0-dimensional biomaterials lack inductive properties.'
    """
    table = open_table(source, ["_id", "text"], every=True, items=("query", "queries"))
    _check_header(table, required=("_id", "text"))
    queries: dict[str, str] = {}
    for row, record in table.rows:
        at = table.at(row)
        _check_columns(record, ("_id", "text"), at, known=("_id", "text", "metadata"))
        query_id = _check_id(record["_id"], "_id", at)
        text = _check_text(record["text"], "text", f"{at}: query {show(query_id)}")
        if is_blank(text):
            raise InputError(f"{at}: query {show(query_id)}: expected a text, found {show(text)}; fill it in")
        if query_id in queries:
            raise InputError(f"{at}: the query id {show(query_id)} occurs a second time; give each query its own")
        queries[query_id] = text
    if not queries:
        raise InputError(f"{table.place}: expected queries, found none; add some")
    return queries


def read_qrels(source: str | os.PathLike[str] | Dataset) -> dict[str, dict[str, int]]:
    """Read relevance judgements: ``query-id``, ``corpus-id`` and ``score``, usually ``qrels/test.tsv``.

    Args:
        source: As for `read_corpus`.

    Returns:
        Query id -> document id -> score, a whole number; the larger, the more relevant, and below 1 not at all.

    Raises:
        InputError: Other columns than these, a score that is no whole number, a query and document that occur
            together twice, or no judgement at all.

    Example:
        >>> read_qrels("retrieval/scifact/qrels/test.tsv")["1"]  # doctest: +SKIP
        {'31715818': 1}
    """
    table = open_table(source, QRELS, every=True, items=("judgement", "judgements"))
    _check_header(table, required=QRELS)
    qrels: dict[str, dict[str, int]] = {}
    for row, record in table.rows:
        at = table.at(row)
        _check_columns(record, QRELS, at, known=QRELS)
        query_id, document_id = (_check_id(record[name], name, at) for name in QRELS[:2])
        judged = qrels.setdefault(query_id, {})
        if document_id in judged:
            pair = f"query {show(query_id)} and document {show(document_id)}"
            raise InputError(f"{at}: {pair} occur together a second time; keep one judgement")
        judged[document_id] = _check_score(record["score"], at, is_text=table.header)
    if not qrels:
        raise InputError(f"{table.place}: expected judgements, found none; add some")
    return qrels


# ---- rows and items


def _check_header(table: Table, *, required: Iterable[str]) -> None:
    names = list(table.names)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{table.head}: a column name occurs twice, {show_names(repeated)}; rename one")
    for name in required:
        if name not in names:
            raise InputError(
                f"{table.head}: expected a column {name!r}{' in a header line' if table.header else ''}, "
                f"found {show_names(names)}; add or rename columns"
            )


def _check_columns(record: Mapping[str, Any], required: Iterable[str], at: str, *, known: Iterable[str]) -> None:
    for name in required:
        if name not in record:
            raise InputError(f"{at}: expected {name!r}, found {show_names(list(record))}; add it")
    if unknown := [name for name in record if name not in known]:
        raise InputError(f"{at}: expected only {show_names(list(known))}, found also {show_names(unknown)}; remove it")


def _read_rows(table: Table) -> Iterator[Document]:
    id_column = _find_id(table.names)
    for row, record in table.rows:
        yield _read_record(record, table.at(row), row, id_column)


def _read_items(items: Iterable[Any]) -> Iterator[Document]:
    id_column: str | None = None
    first = True
    for number, item in enumerate(items):
        at = f"documents[{number}]"
        if isinstance(item, Document):
            yield _check_document(item.id, "id", item.text, item.title, item.metadata, item.place or at)
        elif isinstance(item, Mapping):
            id_column = _find_id(item) if first else id_column
            first = False
            yield _read_record(item, at, number, id_column)
        else:
            raise TypeError(f"{at}: expected a Document or a mapping, found {type(item).__name__}")


def _open_sentences(source: Any) -> tuple[str, Iterator[str]]:
    if isinstance(source, str | os.PathLike) or is_dataset(source):
        table = open_table(source, ["sentence"], optional=("text",), items=("sentence", "sentences"))
        column = next((name for name in SENTENCE_COLUMNS if name in table.names), SENTENCE_COLUMNS[0])
        _check_header(table, required=(column,))
        plain = isinstance(source, str | os.PathLike) and _PLAIN.search(os.fspath(source)) is not None
        return table.place, _check_sentences(_read_column(table, column), table.place, skip_blank=plain)
    if isinstance(source, bytes | Mapping) or not isinstance(source, Iterable):
        raise TypeError(
            "sentences: expected a path, a Hub dataset id, a datasets.Dataset or an iterable of strings, "
            f"found {type(source).__name__}"
        )
    return "sentences", _check_sentences(_read_strings(source), "sentences", skip_blank=False)


def _read_column(table: Table, column: str) -> Iterator[tuple[str, Any]]:
    for row, record in table.rows:
        at = table.at(row)
        if column not in record:
            raise InputError(f"{at}: expected {column!r}, found {show_names(list(record))}; add it")
        yield at, record[column]


def _read_strings(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"sentences[{number}]: expected a str, found {type(item).__name__}")
        yield f"sentences[{number}]", item


def _check_sentences(rows: Iterator[tuple[str, Any]], place: str, *, skip_blank: bool) -> Iterator[str]:
    blank = 0
    for at, value in rows:
        text = _check_text(value, "sentence", at)
        if not is_blank(text):
            yield text
        elif skip_blank:
            blank += 1
        else:
            raise InputError(f"{at}: expected a sentence, found {show(text)}; fill it in or delete the row")
    if blank:
        logger.warning("%s: blank lines left out: %d", place, blank)


def _find_id(names: Iterable[str]) -> str | None:
    there = set(names)
    return next((name for name in IDS if name in there), None)


def _read_record(record: Mapping[str, Any], at: str, row: int, id_column: str | None) -> Document:
    # A row whose id stands elsewhere would get the number of a row as its id, and its own id lost as metadata.
    if _find_id(record) != id_column:
        expected = f"the id in {id_column!r}" if id_column else "no id"
        raise InputError(
            f"{at}: expected {expected} as in the first document, found {show_names(list(record))}; "
            "give every document its id in the same column"
        )
    if "text" not in record:
        raise InputError(f"{at}: expected 'text', found {show_names(list(record))}; add it")
    text, title = ("" if record.get(name) is None else record[name] for name in ("text", "title"))
    metadata = {name: value for name, value in record.items() if name not in (id_column, "text", "title")}
    document_id = record[id_column] if id_column else str(row)
    return _check_document(document_id, id_column or "id", text, title, metadata, at)


def _drop_empty(documents: Iterator[Document], place: str, *, skip_empty: bool) -> Iterator[Document]:
    skipped, first = 0, ""
    for document in documents:
        if not (is_blank(document.text) and is_blank(document.title)):
            yield document
        elif skip_empty:
            first = first or document.place
            skipped += 1
        else:
            raise InputError(
                f"{document.place}: document {show(document.id)}: expected a text, found {show(document.text)} and "
                f"no title; fill it in, or leave such documents out (--skip-empty)"
            )
    if skipped:
        logger.warning("%s: documents without text left out: %d, the first at %s", place, skipped, first)


# ---- values


def _check_document(document_id: Any, id_column: str, text: Any, title: Any, metadata: Any, at: str) -> Document:
    document_id = _check_id(document_id, id_column, at)
    where = f"{at}: document {show(document_id)}"
    text, title = _check_text(text, "text", where), _check_text(title, "title", where)
    if not isinstance(metadata, Mapping):
        raise InputError(f"{where}: expected a mapping as metadata, found {type(metadata).__name__}")
    for name in metadata:
        _check_text(name, "metadata names", where)
    checked = {name: _check_value(value, name, where, 0) for name, value in metadata.items()}
    return Document(document_id, text, title, checked, at)


def _check_id(value: Any, column: str, at: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise InputError(f"{at}: expected text in {column!r}, found the number {value}; write ids as text")
    text = _check_text(value, column, at)
    if not text:
        raise InputError(f"{at}: expected an id in {column!r}, found ''; fill it in")
    return text


def _check_text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text in {column!r}, found {show(value)}; write it as text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: expected valid Unicode text in {column!r}, found a lone surrogate (character {error.start}); "
            "re-encode the text"
        ) from None
    return value


def _check_value(value: Any, column: str, where: str, depth: int) -> Any:
    """Return a value as JSON has it; bool before int, whose subclass it is."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _check_text(value, column, where)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if depth < _DEPTH and isinstance(value, list | tuple):
        return [_check_value(item, column, where, depth + 1) for item in value]
    if depth < _DEPTH and isinstance(value, Mapping):
        return {_check_text(k, column, where): _check_value(v, column, where, depth + 1) for k, v in value.items()}
    raise InputError(
        f"{where}: expected in {column!r} a value that JSON has, nested at most {_DEPTH} deep, "
        f"found {type(value).__name__} {show(value)}; convert it or leave the column out"
    )


def _check_score(value: Any, at: str, *, is_text: bool) -> int:
    # The Hub has scores as floats.
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and value % 1 == 0
    if _WHOLE.fullmatch(value) if is_text else number:
        return int(value)
    raise InputError(f"{at}: expected a whole number in 'score', found {show(value)}; write it with digits")
