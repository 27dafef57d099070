"""Ask a server that returns so many rows at most for the best documents, and all that tie with the last of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transenc.search.milvus.expressions import express_any

MOST_ROWS = 16_384  # what Milvus returns for one query, at most

# What a server computes in float32 can differ by this much from the score: what is as near is a candidate.
_SLACK = 1e-5


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found.

    Args:
        row: Its number.
        doc: Number of its document.
        start: Of its passage; -1: not known.
        end: Of its passage.
        score: The server's, later the exact one.
    """

    row: int
    doc: int
    start: int
    end: int
    score: float


# ask(positions of queries, rows wanted, further condition) -> for each of them hits, best first
Ask = Callable[[list[int], int, str], list[list[Hit]]]


def collect_hits(ask: Ask, queries: int, top_k: int, *, first: int, most: int | None) -> list[list[Hit]]:
    """Ask for more and more rows, until the best documents and all that tie with the last of them are known.

    Args:
        ask: Finds the best rows of queries, by the server's scores.
        queries: How many there are.
        top_k: Documents wanted.
        first: Rows to ask for at first.
        most: How many documents there are to find, for a server that may miss some and is asked again for those;
            None: what it does not return is not there.

    Returns:
        For each query the rows that can be the best of a document that can be among the best, best first.
    """
    found: list[list[Hit]] = [[] for _ in range(queries)]
    rows, pending = min(first, MOST_ROWS), list(range(queries))
    while pending:
        left = []
        for position, hits in zip(pending, ask(pending, rows, ""), strict=True):
            missed = len(hits) < rows
            if _is_enough(hits, hits, rows, top_k, most):
                found[position] = _keep_best(hits, top_k)
            elif missed or rows == MOST_ROWS:
                found[position] = _keep_best(_collect_beyond(ask, position, hits, top_k, most), top_k)
            else:
                left.append(position)
        pending, rows = left, min(4 * rows, MOST_ROWS)
    return found


def _collect_beyond(ask: Ask, position: int, hits: list[Hit], top_k: int, most: int | None) -> list[Hit]:
    """Ask for documents that are not among those found: the server missed them, or it returns no more rows."""
    collected, last = list(hits), hits
    while last and not _is_enough(collected, last, MOST_ROWS, top_k, most):
        seen = sorted({hit.doc for hit in collected})
        [last] = ask([position], MOST_ROWS, f" and not ({express_any('doc', seen)})")
        collected += last
    return collected


def _is_enough(hits: list[Hit], last: list[Hit], rows: int, top_k: int, most: int | None) -> bool:
    """Whether the best documents are known, of all hits, of which the last ones answered a request for `rows`."""
    best = _find_best(hits)
    if most is not None and len(best) >= most:
        return True
    if len(best) < top_k:
        return most is None and len(last) < rows
    lowest = sorted(best.values(), reverse=True)[top_k - 1]
    return len(last) < rows or last[-1].score < lowest - _SLACK


def _keep_best(hits: list[Hit], top_k: int) -> list[Hit]:
    best = _find_best(hits)
    scores = sorted(best.values(), reverse=True)
    last = scores[min(top_k, len(scores)) - 1] - _SLACK if scores else 0.0
    return [hit for hit in hits if best[hit.doc] >= last and hit.score >= best[hit.doc] - _SLACK]


def _find_best(hits: list[Hit]) -> dict[int, float]:
    """Return the best score of each document; hits of one document are best first."""
    best: dict[int, float] = {}
    for hit in hits:
        best.setdefault(hit.doc, hit.score)
    return best
