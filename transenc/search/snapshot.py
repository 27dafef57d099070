"""One generation of an index, verified and opened for searching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transenc import durable
from transenc.errors import InputError, StateError
from transenc.search.chunks import PASSAGES, VECTORS, slice_rows
from transenc.search.documents import DocumentTable
from transenc.search.store import SCORE_DECIMALS, Condition, Match, check_ids, check_queries, check_top_k
from transenc.search.vector_index import KINDS, VectorIndex

if TYPE_CHECKING:
    from transenc.search.lexical import LexicalIndex

FORMAT = 1
DOCUMENTS, INDEX, WORDS = "docs.sqlite", "index.faiss", "bm25"

_FACTS: dict[str, type | tuple[type, ...]] = {
    "generation": int, "documents": int, "passages": int, "deleted": int, "truncated": int, "dim": int,
    "metric": str, "kind": str, "kind_asked": str, "recall@10": (float, int, type(None)),
    "encoder": dict, "embedding": str, "lexical": bool,
}  # fmt: skip

# propose(queries, count) -> for each of these positions of queries, items and their scores, best first
_Propose = Callable[[list[int], int], list[tuple[np.ndarray, np.ndarray]]]


class Snapshot:
    """What one generation holds; it stays readable when the generation is deleted. Safe to use from several threads.

    Args:
        folder: The generation.

    Attributes:
        folder: The generation.
        facts: Of its manifest.
        bytes: Size of its files.
        table: The documents.
        passages: int32 [n, 3]: number of the document (-1: deleted), start, end.
        vectors: float32 [n, dim], a memory map.
        index: Over the vectors.

    Raises:
        StateError: A file is damaged, missing or too many, or does not fit the others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = durable.verify_directory(folder)  # before anything is parsed
        self._check_facts()
        self.bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        rows = self.facts["passages"] + self.facts["deleted"]
        self.passages = np.array(load_array(folder / PASSAGES, np.int32, (rows, 3)))  # in memory
        self.vectors = load_array(folder / VECTORS, np.float32, (rows, self.facts["dim"]))
        self.table = DocumentTable.open(folder / DOCUMENTS)
        self._numbers = self._list_numbers()
        self._check_counts()
        path = folder / INDEX if self.facts["kind"] != "exact" else None
        self.index = VectorIndex.open(path, self.vectors, self.facts["kind"])
        self._words, self._no_words = self._open_words()

    @property
    def live(self) -> np.ndarray:
        """Which rows are not deleted, bool [n]."""
        return self.passages[:, 0] >= 0

    def search(
        self, queries: np.ndarray, top_k: int, *, where: Sequence[Condition], within: Sequence[str] | None
    ) -> list[list[Match]]:
        """As `VectorStore.search`."""
        top_k = check_top_k(top_k)
        queries = check_queries(queries, self.facts["dim"])
        chosen = self._choose_documents(where, within)
        owners = self.passages[:, 0]
        allowed = None
        if chosen is not None:
            allowed = chosen[owners]  # a deleted row has the owner -1, and so the last entry, which is False
        elif self.facts["deleted"]:
            allowed = self.live
        total = len(owners) if allowed is None else int(allowed.sum())

        def propose(positions: list[int], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
            return self.index.search(queries[positions], count, allowed=allowed)

        per_document = -(-self.facts["passages"] // max(1, self.facts["documents"]))
        found = _rank_documents(
            propose, len(queries), owners, top_k, total=total, first=top_k * per_document + 16, name=self.table.name
        )
        return [
            [
                Match(name, min(1.0, max(-1.0, score)), int(self.passages[row, 1]), int(self.passages[row, 2]))
                for name, score, row in ranking
            ]
            for ranking in found
        ]

    def search_text(self, queries: Sequence[str], top_k: int, *, where: Sequence[Condition]) -> list[list[Match]]:
        """As `VectorStore.search_text`."""
        top_k = check_top_k(top_k)
        if isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
            raise TypeError("queries: expected a sequence of str")
        chosen = self._choose_documents(where, None)
        allowed = None if chosen is None else chosen[self._numbers]
        total = len(self._numbers) if allowed is None else int(allowed.sum())
        words = self._get_words()

        def propose(positions: list[int], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
            if words is None:  # of an index without documents
                return [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)) for _ in positions]
            return words.search([queries[position] for position in positions], count, allowed=allowed)

        found = _rank_documents(
            propose, len(queries), self._numbers, top_k, total=total, first=top_k + 16, name=self.table.name
        )
        return [[Match(name, score) for name, score, _ in ranking] for ranking in found]

    def check_content(self) -> None:
        """Look at every vector, passage and document.

        Raises:
            StateError: Names the file and row that is not what it must be.
        """
        start = 0
        for block in slice_rows(self.vectors):
            lengths = np.linalg.norm(block.astype(np.float64), axis=1)
            right = (np.abs(lengths - 1) < 1e-5) | (lengths == 0)  # False for NaN
            if not right.all():
                where = f"{self.folder / VECTORS}: row {start + right.argmin()}"
                raise StateError(f"{where}: expected a vector of length 1 or 0; build the index again")
            start += len(block)
        self.table.check()
        characters = np.full(int(self.passages[:, 0].max(initial=-1)) + 2, -1, dtype=np.int64)
        for number, document in self.table.read():
            if number < len(characters):
                characters[number] = len(document.text)
        owners, starts, ends = self.passages.T
        right = (owners < 0) | ((starts >= 0) & (starts <= ends) & (ends <= characters[owners]))
        if not right.all():
            where = f"{self.folder / PASSAGES}: row {right.argmin()}"
            raise StateError(f"{where}: expected a passage inside a document that is here; build the index again")

    # ---- what a search is limited to

    def _choose_documents(self, where: Sequence[Condition], within: Sequence[str] | None) -> np.ndarray | None:
        """Return which document numbers are wanted, bool [highest number + 2], or None for all."""
        if isinstance(where, (str, Condition)) or not all(isinstance(one, Condition) for one in where):
            raise TypeError("where: expected a sequence of Condition; parse_condition makes one of a text")
        chosen = None
        for numbers in (
            self.table.select(where) if where else None,
            None if within is None else self.table.find(check_ids(within)),
        ):
            if numbers is not None:
                mask = np.zeros(int(self.passages[:, 0].max(initial=-1)) + 2, dtype=bool)
                mask[numbers] = True
                chosen = mask if chosen is None else chosen & mask
        return chosen

    def _get_words(self) -> LexicalIndex | None:
        if not self.facts["lexical"]:
            raise InputError(
                f"{self.folder.parent}: the index has no words to search; build it again with --hybrid (lexical=True)"
            )
        if self._no_words is not None:
            raise self._no_words
        return self._words

    # ---- opening

    def _open_words(self) -> tuple[LexicalIndex | None, InputError | None]:
        if not self.facts["lexical"] or not self.facts["documents"]:
            return None, None
        from transenc.search.lexical import LexicalIndex

        try:
            words = LexicalIndex.open(self.folder / WORDS)
        except InputError as error:  # the extra is missing here: the vectors can still be searched
            return None, error
        if len(words) != self.facts["documents"]:
            raise StateError(
                f"{self.folder / WORDS}: expected {self.facts['documents']} documents by the manifest, found "
                f"{len(words)}; build the index again"
            )
        return words, None

    def _check_facts(self) -> None:
        manifest = self.folder / durable.MANIFEST
        if self.facts.get("format") != FORMAT:
            found = self.facts.get("format")
            raise StateError(f"{manifest}: expected an index of format {FORMAT}, found {found}; build it again")
        for name, types in _FACTS.items():
            if not isinstance(self.facts.get(name), types):
                raise StateError(
                    f"{manifest}: expected the fact {name}, found {self.facts.get(name)!r}; build it again"
                )
        if self.facts["metric"] != "cosine" or self.facts["kind"] not in KINDS:
            found = f"{self.facts['metric']}, {self.facts['kind']}"
            raise StateError(f"{manifest}: expected metric cosine and a known kind, found {found}; build it again")
        if self.folder.name != f"gen-{self.facts['generation']:06d}":
            raise StateError(
                f"{self.folder}: expected generation {self.facts['generation']} under this name by its manifest; "
                "the folder was renamed or mixed up: put it back, or build the index again"
            )

    def _list_numbers(self) -> np.ndarray:
        """Return the numbers of the documents that have passages, rising."""
        owners = self.passages[:, 0]
        present = np.zeros(int(owners.max(initial=-1)) + 2, dtype=bool)
        present[owners] = True
        return np.flatnonzero(present[:-1])

    def _check_counts(self) -> None:
        live = int(self.live.sum())
        for what, found, fact in (
            (PASSAGES, live, "passages"),
            (PASSAGES, len(self._numbers), "documents"),
            (DOCUMENTS, self.table.count(), "documents"),
        ):
            if found != self.facts[fact]:
                raise StateError(
                    f"{self.folder / what}: expected {self.facts[fact]} {fact} by the manifest, found {found}; "
                    "build the index again"
                )


def load_array(path: Path, dtype: type, shape: tuple[int, int]) -> np.ndarray:
    """Map an array into memory.

    Raises:
        StateError: It is not of this type and shape.
    """
    try:
        # nothing can be mapped of an empty file
        array = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StateError(f"{path}: not an array ({error}); build the index again") from error
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        expected, found = f"{np.dtype(dtype)} {list(shape)}", f"{array.dtype} {list(array.shape)}"
        raise StateError(f"{path}: expected {expected}, found {found}; build the index again")
    return array


def _rank_documents(
    propose: _Propose,
    queries: int,
    owners: np.ndarray,
    top_k: int,
    *,
    total: int,
    first: int,
    name: Callable[[int], str],
) -> list[list[tuple[str, float, int]]]:
    """Ask for more and more items, until the best documents and all that tie with the last of them are known.

    Args:
        propose: Finds the best items of each query.
        queries: How many there are.
        owners: Document number of each item.
        top_k: Documents wanted.
        total: How many items there are to find.
        first: How many to ask for at first.
        name: Gives the id of a document number.

    Returns:
        For each query id, rounded score and best item of the documents, best first, ties by id.
    """
    found: list[list[tuple[str, float, int]]] = [[] for _ in range(queries)]
    pending, count = list(range(queries)), min(first, total)
    while pending and count:
        left = []
        for position, (items, scores) in zip(pending, propose(pending, count), strict=True):
            rounded = np.round(scores.astype(np.float64), SCORE_DECIMALS) + 0.0  # no negative zero
            documents, best = np.unique(owners[items], return_index=True)
            last = np.sort(rounded[best])[-top_k] if len(best) >= top_k else -np.inf
            if len(items) == count < total and rounded[-1] >= last:
                left.append(position)
                continue
            kept = rounded[best] >= last
            ranking = [
                (name(int(number)), float(rounded[item]), int(items[item]))
                for number, item in zip(documents[kept], best[kept], strict=True)
            ]
            found[position] = sorted(ranking, key=lambda entry: (-entry[1], entry[0]))[:top_k]
        pending, count = left, min(4 * count, total)
    return found
