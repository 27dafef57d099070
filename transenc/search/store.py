"""The seam between search and what stores documents and vectors: types, and what every store promises.

A document is stored as one or more passages with one vector each, and found by its best passage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from transenc.errors import InputError
from transenc.tables import show

if TYPE_CHECKING:
    from transenc.corpus import Document

SCORE_DECIMALS = 6  # float32 cosines of the same texts differ by up to 5e-7: what is equal to here is a tie
OPERATORS = ("=", "!=", ">", ">=", "<", "<=")

_OPERATOR = re.compile("!=|>=|<=|=|>|<")


@dataclass(frozen=True, slots=True)
class Passage:
    """Which part of a document one vector stands for.

    Args:
        document: Position of the document in its block, from 0.
        start: First character of `Document.text`; the title stands before every passage and is not counted.
        end: Character after the last.

    Example:
        >>> Passage(0, 0, 12).end
        12
    """

    document: int
    start: int
    end: int


@dataclass(frozen=True)
class Embedded:
    """A block of documents, embedded.

    Args:
        passages: At least one for every document of the block.
        vectors: float32 [len(passages), dim]; need not be normalised.
        truncated: How many documents have text that no passage holds.

    Example:
        >>> Embedded([Passage(0, 0, 2)], np.ones((1, 4), np.float32)).vectors.shape
        (1, 4)
    """

    passages: list[Passage]
    vectors: np.ndarray
    truncated: int = 0


class Embed(Protocol):
    """What turns documents into vectors.

    Attributes:
        fingerprint: Stands for the encoder and for how documents are split.
        dim: Width of the vectors.
    """

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    def __call__(self, documents: Sequence[Document]) -> Embedded:
        """Split and embed a block of documents."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """A document that was found.

    Args:
        id: The document's.
        score: Cosine in [-1, 1], or the BM25 score for words; rounded to 6 decimals.
        start: First character of the best passage in `Document.text`; -1: not known.
        end: Character after its last; -1: not known.

    Example:
        >>> Match("d1", 0.5).start
        -1
    """

    id: str
    score: float
    start: int = -1
    end: int = -1


@dataclass(frozen=True, slots=True)
class Condition:
    """What a document's metadata must fulfil to be found.

    A stored number compares as a number, a stored text as text, in the order of its characters, and true and
    false as the texts "true" and "false". Null, lists and objects, like a missing key, fulfil no condition.

    Args:
        key: Name of a metadata field.
        operator: One of = != > >= < <=.
        value: What to compare with, as text.

    Raises:
        InputError: Another operator, or an empty key.

    Example:
        >>> Condition("year", ">=", "2020").operator
        '>='
    """

    key: str
    operator: str
    value: str

    def __post_init__(self) -> None:
        for name, value in (("key", self.key), ("operator", self.operator), ("value", self.value)):
            if not isinstance(value, str):
                raise TypeError(f"condition: expected a str as {name}, found {type(value).__name__}")
        if self.operator not in OPERATORS or not self.key:
            raise InputError(
                f"condition {show(self.key + self.operator + self.value)}: expected a key and one of "
                f"{' '.join(OPERATORS)}, such as year>=2020"
            )


class VectorStore(Protocol):
    """Documents with their vectors. Errors: InputError for what the caller gives, TypeError for its Python type."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the store knows of itself; "embedding" and "dim" are those of the `Embed` that filled it."""
        ...

    def add(self, documents: Iterable[Document], embed: Embed, *, upsert: bool = False, progress: bool = False) -> None:
        """Add documents, all or none. An id that is stored already is refused, or replaced with `upsert`."""
        ...

    def search(
        self,
        queries: np.ndarray,
        top_k: int,
        *,
        where: Sequence[Condition] = (),
        within: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        """Find the documents nearest to each query, best first, ties by id.

        Args:
            queries: float32 [q, dim].
            top_k: Documents a query, 1 or more; all when there are not so many.
            where: All of these must hold.
            within: Only these ids; None: all.
        """
        ...

    def search_text(self, queries: Sequence[str], top_k: int, *, where: Sequence[Condition] = ()) -> list[list[Match]]:
        """Find the documents whose words fit each query best (BM25, scores above 0 only), best first, ties by id."""
        ...

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in this order; an unknown id is an InputError."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents and return how many; an unknown id is an InputError, and nothing is deleted then."""
        ...

    def count(self) -> int:
        """Return the number of documents."""
        ...

    def close(self) -> None:
        """Let go of files and connections; the store cannot be used afterwards."""
        ...


def parse_condition(text: str) -> Condition:
    """Read a condition such as "lang=en" or "year >= 2020"; spaces around key and value do not count.

    The first operator in the text counts, so a value may hold others. A key that holds one needs `Condition`.

    Raises:
        InputError: No operator, or no key before it.

    Example:
        >>> parse_condition("year>=2020")
        Condition(key='year', operator='>=', value='2020')
    """
    if not isinstance(text, str):
        raise TypeError(f"condition: expected a str such as 'year>=2020', found {type(text).__name__}")
    found = _OPERATOR.search(text)
    if found is None or not text[: found.start()].strip():
        expected = f"expected a key, one of {' '.join(OPERATORS)} and a value, such as year>=2020"
        raise InputError(f"condition {show(text)}: {expected}")
    return Condition(text[: found.start()].strip(), found[0], text[found.end() :].strip())


def check_top_k(top_k: Any, name: str = "top_k") -> int:
    """Return `top_k` as an int, or raise InputError when it is no whole number of 1 or more.

    Example:
        >>> check_top_k(10)
        10
    """
    whole = isinstance(top_k, (int, np.integer)) and not isinstance(top_k, bool)
    if not whole or top_k < 1:
        raise InputError(f"{name}: expected a whole number of 1 or more, found {show(top_k)}")
    return int(top_k)


def check_queries(queries: Any, dim: int) -> np.ndarray:
    """Return query vectors at length 1, float32 [q, dim]; a zero vector stays zero.

    Raises:
        TypeError: Not an array.
        InputError: Another type of number, another width, or NaN or infinity at a position that is named.

    Example:
        >>> check_queries(np.array([[3.0, 4.0]], np.float32), 2).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    if not isinstance(queries, np.ndarray):
        raise TypeError(f"queries: expected a float32 array [q, {dim}], found {type(queries).__name__}")
    if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dim:
        found = f"{queries.dtype} {list(queries.shape)}"
        raise InputError(f"queries: expected a float32 array [q, {dim}], found {found}; use the index's own encoder")
    if (row := find_not_finite(queries)) is not None:
        raise InputError(f"queries[{row}]: expected finite numbers, found NaN or infinity")
    return normalize_rows(queries)


def check_ids(ids: Any) -> list[str]:
    """Return ids as a list, or raise TypeError when they are no sequence of str.

    Example:
        >>> check_ids(("a", "b"))
        ['a', 'b']
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise TypeError(f"ids: expected a sequence of str, found {type(ids).__name__}")
    listed = list(ids)
    for i, value in enumerate(listed):
        if not isinstance(value, str):
            raise TypeError(f"ids[{i}]: expected a str, found {type(value).__name__}")
    return listed


def check_embed(embed: Any) -> None:
    """Raise TypeError or InputError for an encoder that does not say what it makes.

    Example:
        >>> check_embed("my/encoder")
        Traceback (most recent call last):
        TypeError: embed: expected a str as fingerprint and an int as dim, found NoneType and NoneType
    """
    fingerprint, dim = getattr(embed, "fingerprint", None), getattr(embed, "dim", None)
    if not isinstance(fingerprint, str) or isinstance(dim, bool) or not isinstance(dim, int):
        found = f"{type(fingerprint).__name__} and {type(dim).__name__}"
        raise TypeError(f"embed: expected a str as fingerprint and an int as dim, found {found}")
    if dim < 1:
        raise InputError(f"embed: expected vectors of at least one number, found dim {dim}")


def copy_facts(encoder: Any) -> dict[str, Any]:
    """Return a copy of an encoder's facts, or raise TypeError or InputError when JSON does not have them.

    Example:
        >>> copy_facts({"name": "my/encoder", "max_length": 256})
        {'name': 'my/encoder', 'max_length': 256}
    """
    if not isinstance(encoder, dict):
        raise TypeError(f"encoder: expected a dict of facts, found {type(encoder).__name__}")
    try:
        return json.loads(json.dumps(encoder, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"encoder: expected facts that JSON has ({error})") from error


def find_not_finite(vectors: np.ndarray) -> int | None:
    """Return the first row of `vectors` that holds NaN or infinity, or None.

    Example:
        >>> find_not_finite(np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32))
        1
    """
    bad = ~np.isfinite(vectors).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


def normalize_rows(vectors: np.ndarray) -> np.ndarray:
    """Return float32 vectors at length 1; a zero vector stays zero.

    Example:
        >>> normalize_rows(np.array([[0.0, 2.0], [0.0, 0.0]], np.float32)).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    wide = vectors.astype(np.float64)  # the squares of float32 numbers can leave its range
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return (wide / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
