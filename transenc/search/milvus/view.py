"""One state of an index in Milvus, read and searched: what was born by then and has not gone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any, Self

import numpy as np

from transenc.corpus import Document
from transenc.errors import InputError
from transenc.search.documents import is_text, parse_number
from transenc.search.milvus.client import Connection
from transenc.search.milvus.expressions import (
    IDS_AT_ONCE,
    decode_id,
    digest_id,
    express_any,
    express_condition,
    express_known,
    express_text,
)
from transenc.search.milvus.hits import Hit, collect_hits
from transenc.search.milvus.rows import join_pieces
from transenc.search.store import SCORE_DECIMALS, Condition, Match
from transenc.tables import show, show_names

_QUERIES_AT_ONCE = 64
_HITS_AT_ONCE = 200_000  # rows of all queries in one answer
_DOCUMENTS_AT_ONCE = 100
_NUMBERS_AT_ONCE = 1_000_000  # of vectors in one answer, each 40 bytes here
_SEARCH_WIDTH = 128  # of HNSW, as for FaissStore; milvus-lite widens no search by itself, for no kind


@dataclass(frozen=True)
class View:
    """A state of an index.

    Args:
        connection: To the server.
        passages: Name of the collection of passages.
        documents: Name of the collection of documents.
        facts: Of the index.
        gone: Numbers of the documents that go with the last change, as long as their rows are there.
    """

    connection: Connection
    passages: str
    documents: str
    facts: dict[str, Any]
    gone: list[int] = field(default_factory=list)

    def without_gone(self) -> Self:
        """Return the same state, knowing which documents go with the last change."""
        expression = f"piece == -1 and born == {self.facts['generation']}"
        rows = self.connection.read_all(self.documents, expression, ["row", "doc"])
        return replace(self, gone=sorted({int(row["doc"]) for row in rows}))

    # ---- documents

    def find(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of the documents with these ids, in this order; an unknown id is an InputError."""
        known = self.find_known(ids)
        for name in ids:
            if name not in known:
                raise InputError(f"no document has the id {show(name)}; name one that is in the index")
        return [known[name] for name in ids]

    def find_known(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of those documents with these ids that there are."""
        names = {digest_id(name): name for name in ids}
        known = {}
        for keys in _slice(list(names), IDS_AT_ONCE):
            for row in self._query(f"{express_any('key', keys)} and piece == 0", ["key", "doc"]):
                known[names[row["key"]]] = int(row["doc"])
        return known

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in this order; an unknown id is an InputError."""
        numbers = self.find(ids)
        rows: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
        for some in _slice(list(rows), _DOCUMENTS_AT_ONCE):
            for row in self._fetch("doc", some, ["doc", "piece", "data"], "piece >= 0"):
                rows[int(row["doc"])].append(row)
        documents = {number: join_pieces(pieces, self.connection.place) for number, pieces in rows.items()}
        return [documents[number] for number in numbers]

    def count_passages(self, numbers: Sequence[int]) -> int:
        """Return how many passages the documents with these numbers have."""
        total = 0
        for some in _slice(numbers, IDS_AT_ONCE):
            [row] = self._query(express_any("doc", some), ["count(*)"], passages=True)
            total += int(row["count(*)"])
        return total

    # ---- searching

    def search(
        self, queries: np.ndarray, top_k: int, *, where: Sequence[Condition], within: Sequence[str] | None
    ) -> list[list[Match]]:
        """As `VectorStore.search`, of queries at length 1."""
        expression = self._express(where, within)

        def ask(positions: list[int], rows: int, more: str) -> list[list[Hit]]:
            return self._ask(
                self.passages, "vector", [queries[i] for i in positions], rows, f"{expression}{more}",
                fields=["doc", "start", "end"], metric="COSINE", parameters={"ef": max(rows, _SEARCH_WIDTH)},
            )  # fmt: skip

        per_document = -(-self.facts["passages"] // max(1, self.facts["documents"]))
        most = self._count(expression) if where or within is not None else self.facts["documents"]
        found = collect_hits(ask, len(queries), top_k, first=top_k * per_document + 16, most=most)
        return self._rank(self._score(queries, found), top_k)

    def search_text(self, queries: Sequence[str], top_k: int, *, where: Sequence[Condition]) -> list[list[Match]]:
        """As `VectorStore.search_text`."""
        expression = f"{self._express(where, None)} and piece >= 0"
        texts = [query.replace("\0", " ").encode("utf-8", "replace").decode() for query in queries]
        asked = [i for i, text in enumerate(texts) if re.search(r"\w", text)]  # no words, no question

        def ask(positions: list[int], rows: int, more: str) -> list[list[Hit]]:
            found = self._ask(
                self.documents, "words", [texts[asked[i]] for i in positions], rows, f"{expression}{more}",
                fields=["doc"], metric="BM25", parameters={},
            )  # fmt: skip
            # a server says 2.5, milvus-lite -2.5
            return [[Hit(hit.row, hit.doc, -1, -1, abs(hit.score)) for hit in hits if hit.score] for hits in found]

        collected = iter(collect_hits(ask, len(asked), top_k, first=top_k + 16, most=None))
        wanted = set(asked)
        return self._rank([next(collected) if i in wanted else [] for i in range(len(queries))], top_k)

    def _ask(
        self,
        collection: str,
        field: str,
        data: list[Any],
        rows: int,
        expression: str,
        *,
        fields: list[str],
        metric: str,
        parameters: dict[str, Any],
    ) -> list[list[Hit]]:
        found = []
        for some in _slice(data, max(1, min(_QUERIES_AT_ONCE, _HITS_AT_ONCE // rows))):
            answer = self.connection.call(
                "search", collection, data=some, anns_field=field, filter=expression, limit=rows, output_fields=fields,
                search_params={"metric_type": metric, "params": parameters}, consistency_level="Strong",
            )  # fmt: skip
            for hits in answer:
                found.append([_make_hit(hit) for hit in hits])
        return found

    def _score(self, queries: np.ndarray, found: list[list[Hit]]) -> list[list[Hit]]:
        """Score rows by the vectors that are stored, as FaissStore does, and put them in order."""
        most = max(1, _NUMBERS_AT_ONCE // queries.shape[1])
        scored: list[list[Hit]] = [[] for _ in found]
        wanted = [(position, hit) for position, hits in enumerate(found) for hit in hits]
        for some in _slice(wanted, most):
            rows = sorted({hit.row for _, hit in some})
            vectors = {int(row["row"]): row["vector"] for row in self._fetch("row", rows, ["row", "vector"])}
            for position, group in groupby(some, key=lambda entry: entry[0]):
                # a row that is deleted just now is missing, and the search is done again
                hits = [hit for _, hit in group if hit.row in vectors]
                if hits:
                    stored = np.array([vectors[hit.row] for hit in hits], dtype=np.float32)
                    scored[position] += _score_rows(queries[position], stored, hits)
        return [sorted(hits, key=lambda hit: (-hit.score, hit.row)) for hits in scored]

    def _rank(self, found: list[list[Hit]], top_k: int) -> list[list[Match]]:
        """Keep the best row of each document and the best documents, ties by id."""
        kept = []
        for hits in found:
            best: dict[int, tuple[float, Hit]] = {}
            for hit in hits:
                best.setdefault(hit.doc, (round(hit.score, SCORE_DECIMALS) + 0.0, hit))  # no negative zero
            scores = sorted((score for score, _ in best.values()), reverse=True)
            last = scores[min(top_k, len(scores)) - 1] if scores else 0.0
            kept.append([(score, hit) for score, hit in best.values() if score >= last])
        names = self._name(sorted({hit.doc for entries in kept for _, hit in entries}))
        results = []
        for entries in kept:
            # a document that is deleted just now has no name, and the search is done again
            named = [(score, names[hit.doc], hit) for score, hit in entries if hit.doc in names]
            named.sort(key=lambda entry: (-entry[0], entry[1]))
            results.append([_make_match(name, score, hit) for score, name, hit in named[:top_k]])
        return results

    # ---- expressions

    def _express(self, where: Sequence[Condition], within: Sequence[str] | None) -> str:
        """Return the expression for what a search is limited to."""
        parts = [self._express_live()]
        for condition in where:
            self._check_condition(condition)
            parts.append(f"({express_condition(condition)})")
        if within is not None:
            parts.append(express_any("doc", sorted(set(self.find(within)))) if within else "doc < 0")
        return " and ".join(parts)

    def _express_live(self) -> str:
        live = f"born <= {self.facts['generation']}"
        return f"{live} and not ({express_any('doc', self.gone)})" if self.gone else live

    def _check_condition(self, condition: Condition) -> None:
        key = condition.key
        if not is_text(key) or not self._has(express_known(key)):
            known = list(islice((name for name in self.facts["keys"] if self._has(express_known(name))), 7))
            raise InputError(
                f"where: no document has a number or text as {show(key)}; in their metadata are: {show_names(known)}"
            )
        if parse_number(condition.value) is None and not self._has(express_text(key)):
            value = show(condition.value)
            raise InputError(f"where: {show(key)} holds numbers, so expected one to compare with, found {value}")

    def _has(self, expression: str) -> bool:
        return bool(self._query(f"{expression} and piece == 0", ["doc"], limit=1))

    # ---- rows

    def _count(self, expression: str) -> int:
        [row] = self._query(f"{expression} and piece == 0", ["count(*)"])
        return int(row["count(*)"])

    def _name(self, numbers: Sequence[int]) -> dict[int, str]:
        names = {}
        for some in _slice(numbers, IDS_AT_ONCE):
            for row in self._fetch("doc", some, ["doc", "id"], "piece == 0"):
                names[int(row["doc"])] = decode_id(row["id"])
        return names

    def _query(
        self, expression: str, fields: list[str], *, passages: bool = False, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return rows of this state."""
        options: dict[str, Any] = {} if limit is None else {"limit": limit}
        return self._read(passages, f"{expression} and {self._express_live()}", fields, **options)

    def _fetch(self, field: str, numbers: Sequence[int], fields: list[str], more: str = "") -> list[dict[str, Any]]:
        """Return rows by numbers that are known to be of this state."""
        expression = express_any(field, numbers)
        return self._read(field == "row", f"{expression} and {more}" if more else expression, fields)

    def _read(self, passages: bool, expression: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        collection = self.passages if passages else self.documents
        return self.connection.call(
            "query", collection, filter=expression, output_fields=fields, consistency_level="Strong", **options
        )


def _score_rows(query: np.ndarray, vectors: np.ndarray, hits: list[Hit]) -> list[Hit]:
    scores = np.einsum("ij,j->i", vectors.astype(np.float64), query.astype(np.float64)).astype(np.float32)
    return [replace(hit, score=float(score)) for hit, score in zip(hits, scores, strict=True)]


def _make_hit(hit: Any) -> Hit:
    values = hit["entity"]
    score = float(hit["distance"])
    return Hit(
        row=int(hit["row"]),
        doc=int(values["doc"]),
        start=int(values.get("start", -1)),
        end=int(values.get("end", -1)),
        score=score if math.isfinite(score) else 0.0,  # of a zero vector
    )


def _make_match(name: str, score: float, hit: Hit) -> Match:
    if hit.start < 0:  # of words
        return Match(name, score)
    return Match(name, min(1.0, max(-1.0, score)), hit.start, hit.end)


def _slice(values: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
