"""The documents of an index in one SQLite file: their text, and their metadata ready for filtering.

A document has a number; numbers are in the order of adding.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.search.store import Condition
from transenc.tables import show, show_names

# Documents are inserted in order, their metadata beside them; only the two indexes see random access.
_SCHEMA = """
CREATE TABLE documents(
    doc INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL
);
CREATE TABLE fields(
    doc INTEGER NOT NULL, key TEXT NOT NULL, value NOT NULL, PRIMARY KEY(doc, key)
) WITHOUT ROWID;
"""
# The file is a temporary one until it is published, so a journal would guard nothing. What is deleted is zeroed.
_WRITING = """
PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=-65536;
PRAGMA secure_delete=ON; BEGIN;
"""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class DocumentTable:
    """One SQLite file. Opened for reading, it may be used from several threads.

    Args:
        connection: Made by `open`, `create` or `edit`.
        path: The file, for error messages.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = DocumentTable.create(f"{folder}/docs.sqlite")
        ...     _ = table.append([Document("a", "one"), Document("b", "two", metadata={"year": 2020})])
        ...     table.finish()
        ...     table = DocumentTable.open(f"{folder}/docs.sqlite")
        ...     found = table.select([Condition("year", ">=", "2020")]).tolist(), table.get(["b"])[0].text
        ...     table.close()
        >>> found
        ([1], 'two')
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, connection.close)  # a reader that is replaced may still be at work

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a published file, which nobody changes any more, for reading."""
        uri = f"file://{quote(os.path.abspath(path))}?mode=ro&immutable=1"
        with _explain(path, verb="read"):
            return cls(sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False), Path(path))

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """Make a new file, to `append` to and then `finish`."""
        with _explain(path):
            connection = sqlite3.connect(path, isolation_level=None)
            connection.executescript(_WRITING + _SCHEMA)
        return cls(connection, Path(path))

    @classmethod
    def edit(cls, path: str | os.PathLike[str]) -> Self:
        """Open a copy that is not published yet, for changes up to `finish`."""
        with _explain(path):
            connection = sqlite3.connect(path, isolation_level=None)
            connection.executescript(_WRITING)
        return cls(connection, Path(path))

    # ---- writing

    def append(self, documents: Iterable[Document], *, upsert: bool = False, progress: bool = False) -> list[int]:
        """Add documents, one at a time in memory.

        Args:
            documents: What to add.
            upsert: Replace documents that are here already; False: refuse their ids.
            progress: Show a progress bar on stderr.

        Returns:
            The numbers of the documents that were replaced.

        Raises:
            InputError: An id occurs twice in `documents`, or is here already; text that UTF-8 does not have; metadata
                that JSON does not have; no documents at all. Names the place. The file is then of no use any more.
            StateError: The disk is full.
        """
        first = number = self.last + 1
        replaced = []
        for document in tqdm(documents, desc="read", unit=" documents", disable=not progress):
            place = _name_place(document, number - first)
            metadata = _dump_metadata(document, place)
            with _explain(self._path), _explain_text(place):
                found = self._connection.execute("SELECT doc FROM documents WHERE id = ?", (document.id,)).fetchone()
            if found is not None:
                if found[0] >= first:
                    before = f"is that of document {found[0] - first + 1} of this input too"
                    raise InputError(f"{place}: the id {show(document.id)} {before}; give every document its own")
                if not upsert:
                    raise InputError(
                        f"{place}: the id {show(document.id)} is in the index already; upsert replaces such documents"
                    )
                self.remove(found)
                replaced.append(found[0])
            row = (number, document.id, document.title, document.text, metadata)
            fields = [(number, key, value) for key, value in list_fields(document)]
            with _explain(self._path), _explain_text(place):
                self._connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", row)
                self._connection.executemany("INSERT INTO fields VALUES (?, ?, ?)", fields)
            number += 1
        if number == first:
            raise InputError("corpus: expected at least one document, found none")
        return replaced

    def remove(self, numbers: Iterable[int]) -> None:
        """Delete the documents with these numbers."""
        with _explain(self._path):
            for number in numbers:
                self._connection.execute("DELETE FROM documents WHERE doc = ?", (int(number),))
                self._connection.execute("DELETE FROM fields WHERE doc = ?", (int(number),))

    def finish(self) -> None:
        """Write everything out and close the file; `close` instead leaves it unusable."""
        with _explain(self._path):
            self._connection.execute("CREATE INDEX IF NOT EXISTS fields_by_value ON fields(key, value)")
            self._connection.execute("COMMIT")
        self.close()

    def copy(self, path: str | os.PathLike[str]) -> None:
        """Write a copy without the space that deleted documents left."""
        with self._lock, _explain(path):
            self._connection.execute("VACUUM INTO ?", (os.fspath(path),))

    def close(self) -> None:
        """Close the file."""
        self._close()

    # ---- reading

    @property
    def last(self) -> int:
        """The highest document number, -1 when there are no documents."""
        return int(self._fetch("SELECT coalesce(max(doc), -1) FROM documents")[0][0])

    def count(self) -> int:
        """Return the number of documents."""
        return int(self._fetch("SELECT count(*) FROM documents")[0][0])

    def read(self, *, first: int = 0) -> Iterator[tuple[int, Document]]:
        """Yield numbers and documents from the number `first` on, in order, one at a time in memory."""
        with _explain(self._path, verb="read"):
            query = "SELECT doc, id, text, title, metadata FROM documents WHERE doc >= ? ORDER BY doc"
            for number, *row in self._connection.execute(query, (first,)):
                yield number, _make_document(row)

    def find(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of the documents with these ids, in this order; an unknown id is an InputError."""
        numbers = []
        for value in ids:
            # an id with a lone surrogate cannot be bound, and cannot be here
            found = self._fetch("SELECT doc FROM documents WHERE id = ?", value) if is_text(value) else []
            if not found:
                raise InputError(f"no document has the id {show(value)}; name one that is in the index")
            numbers.append(found[0][0])
        return numbers

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in this order; an unknown id is an InputError."""
        query = "SELECT id, text, title, metadata FROM documents WHERE doc = ?"
        return [_make_document(self._fetch(query, number)[0]) for number in self.find(ids)]

    def name(self, number: int) -> str:
        """Return the id of the document with this number."""
        return self._fetch("SELECT id FROM documents WHERE doc = ?", int(number))[0][0]

    def select(self, conditions: Sequence[Condition]) -> np.ndarray:
        """Return the numbers of the documents that fulfil all of one or more conditions, int64, rising.

        Raises:
            InputError: A key that no document has, or a value that is no number where all are numbers.
        """
        chosen: np.ndarray | None = None
        for condition in conditions:
            numbers = self._select_one(condition)
            chosen = numbers if chosen is None else np.intersect1d(chosen, numbers, assume_unique=True)
        if chosen is None:
            raise InputError("where: expected at least one condition, found none")
        return chosen

    def check(self) -> None:
        """Raise StateError when SQLite finds its own structure damaged."""
        found = self._fetch("PRAGMA integrity_check")
        if found != [("ok",)]:
            raise StateError(f"{self._path}: damaged ({found[0][0]}); build the index again")

    def _select_one(self, condition: Condition) -> np.ndarray:
        key, operator, value = condition.key, condition.operator, condition.value
        if not is_text(key) or not self._fetch("SELECT 1 FROM fields WHERE key = ? LIMIT 1", key):
            known = [row[0] for row in self._fetch("SELECT DISTINCT key FROM fields ORDER BY key")]
            raise InputError(
                f"where: no document has a number or text as {show(key)}; in their metadata are: {show_names(known)}"
            )
        number = parse_number(value)
        # every text is at least '', and in SQLite every number is less than that
        has_text = bool(self._fetch("SELECT 1 FROM fields WHERE key = ? AND value >= '' LIMIT 1", key))
        if number is None and not has_text:
            raise InputError(f"where: {show(key)} holds numbers, so expected one to compare with, found {show(value)}")
        rows = []
        if number is not None:
            query = f"SELECT doc FROM fields WHERE key = ? AND value < '' AND value {operator} ?"
            rows += self._fetch(query, key, number)
        elif operator == "!=":
            rows += self._fetch("SELECT doc FROM fields WHERE key = ? AND value < ''", key)
        if has_text and is_text(value):
            query = f"SELECT doc FROM fields WHERE key = ? AND value >= '' AND value {operator} ?"
            rows += self._fetch(query, key, value)
        return np.sort(np.fromiter((row[0] for row in rows), dtype=np.int64, count=len(rows)))

    def _fetch(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, _explain(self._path, verb="read"):
            return self._connection.execute(query, values).fetchall()


def _name_place(document: Document, position: int) -> str:
    """Say where a document comes from, once its parts are known to be text."""
    place = getattr(document, "place", "") or f"documents[{position}]"
    if not isinstance(document, Document):
        raise TypeError(f"{place}: expected a Document, found {type(document).__name__}")
    for name in ("id", "text", "title"):
        if not isinstance(value := getattr(document, name), str):
            raise TypeError(f"{place}: expected a str as {name}, found {type(value).__name__}")
    if not document.id:
        raise InputError(f"{place}: expected an id, found an empty one; give the document a name")
    return place


def _dump_metadata(document: Document, place: str) -> str:
    for key in document.metadata:
        if not isinstance(key, str):
            raise TypeError(f"{place}: expected a str as key of the metadata, found {type(key).__name__}")
    try:
        return json.dumps(dict(document.metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{place}: metadata must be JSON ({error}); leave it out or write it as text") from error


def list_fields(document: Document) -> Iterator[tuple[str, Any]]:
    """Yield the metadata that conditions compare: numbers, texts, and true and false as texts."""
    for key, value in document.metadata.items():
        if isinstance(value, bool):
            yield key, "true" if value else "false"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield key, _widen(value)
        elif isinstance(value, (int, float, str)):
            yield key, value


def parse_number(value: str) -> int | float | None:
    """Return the number that a condition's value is, or None."""
    if not _NUMBER.fullmatch(value):
        return None
    wide = float(value)
    if abs(wide) < 2**62 and re.fullmatch("[+-]?[0-9]{1,19}", value):
        return int(value)  # exact, as SQLite compares whole numbers
    return wide


def _widen(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _make_document(row: Sequence[Any]) -> Document:
    return Document(row[0], row[1], row[2], json.loads(row[3]))


def is_text(value: str) -> bool:
    """Say whether UTF-8 has all of a text: a lone surrogate cannot be stored, nor be there."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _explain_text(place: str) -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: expected Unicode text, found the lone surrogate {error.object[error.start]!a}; remove it"
        ) from error
    except (sqlite3.DataError, OverflowError) as error:
        raise InputError(f"{place}: more than 1,000,000,000 bytes in one document; split it") from error


@contextmanager
def _explain(path: str | os.PathLike[str], *, verb: str = "write") -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        if verb == "write" and (code == "SQLITE_FULL" or code.startswith("SQLITE_IOERR")):
            raise StateError(f"cannot write {path}: no space left, or the disk failed ({error})") from error
        raise StateError(f"cannot {verb} {path}: {error}; build the index again") from error
