"""BM25 over the words of the documents, and the fusion of rankings by rank (extra `hybrid`)."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from transenc.errors import InputError, StateError
from transenc.search.store import check_top_k

# The usual values for passages (Robertson and Zaragoza, 2009; the defaults of Lucene).
_K1, _B = 1.2, 0.75
_WORD = re.compile(r"\w{1,255}")  # Lucene, too, cuts longer runs: they are no words, and each would be kept whole


class LexicalIndex:
    """BM25 (Lucene's variant, k1 1.2, b 0.75) over lower-case words; no stop words, no stemming.

    A word is a run of letters, digits and underscores, so text without spaces between words (Chinese, Japanese,
    Thai) is matched by whole runs only.

    Example:
        >>> index = LexicalIndex.build(["a cat", "a dog and a cat", "fish"])
        >>> [positions.tolist() for positions, scores in index.search(["the cat", "bird"], 10)]
        [[0, 1], []]
    """

    def __init__(self, bm25: Any) -> None:
        self._bm25 = bm25

    @classmethod
    def build(cls, texts: Iterable[str], *, progress: bool = False) -> LexicalIndex:
        """Index texts; a text is found by its position, from 0.

        Args:
            texts: Read once, one at a time; 4 bytes a word are held in memory, and 8 more for each different word
                of a text.
            progress: Show a progress bar on stderr.

        Raises:
            InputError: The extra `hybrid` is not installed.
            TypeError: Not an iterable of strings; the position is named.
        """
        bm25s = _import_bm25s()
        if isinstance(texts, str | bytes):
            raise TypeError(f"texts must be strings in a list or a stream, found one {type(texts).__name__}")
        # In order of appearance, so that the same texts give the same bytes.
        vocabulary: dict[str, int] = {}
        rows: list[array[int]] = []
        for position, text in enumerate(tqdm(texts, desc="BM25", unit="doc", disable=not progress)):
            if not isinstance(text, str):
                raise TypeError(f"text {position} must be a string, found {type(text).__name__}")
            rows.append(array("i", (vocabulary.setdefault(word, len(vocabulary)) for word in split_words(text))))
        bm25 = bm25s.BM25(method="lucene", k1=_K1, b=_B)
        bm25.vocab_dict, bm25.nonoccurrence_array = vocabulary, None
        if vocabulary:
            bm25.scores = bm25.build_index_from_ids(list(range(len(vocabulary))), rows, show_progress=False)
        else:  # it would divide by the mean length
            empty = {"data": np.zeros(0, np.float32), "indices": np.zeros(0, np.int32), "indptr": np.zeros(1, np.int64)}
            bm25.scores = {**empty, "num_docs": len(rows)}
        return cls(bm25)

    @classmethod
    def open(cls, folder: str | Path) -> LexicalIndex:
        """Open what `save` wrote; the scores are mapped into memory, not read. Check the digests before.

        Raises:
            InputError: The extra `hybrid` is not installed.
            StateError: Files are missing or do not fit together.
        """
        bm25s = _import_bm25s()
        try:
            bm25 = bm25s.BM25.load(folder, mmap=True, allow_pickle=False, show_progress=False)
            data, indices, indptr = (bm25.scores[name] for name in ("data", "indices", "indptr"))
            fits = len(data) == len(indices) == int(indptr[-1]) and len(indptr) == len(bm25.vocab_dict) + 1
            fits = fits and isinstance(bm25.scores["num_docs"], int)
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StateError(f"{folder}: the BM25 index cannot be read: {reason}; build the index again") from error
        if not fits:
            raise StateError(f"{folder}: the files of the BM25 index do not fit together; build the index again")
        return cls(bm25)

    def __len__(self) -> int:
        """How many texts are indexed."""
        return int(self._bm25.scores["num_docs"])

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, as arrays and JSON; the same texts give the same bytes.

        Raises:
            OSError: The folder cannot be written.
        """
        self._bm25.save(folder, allow_pickle=False, show_progress=False)

    def search(
        self, queries: Sequence[str], top_k: int, *, allowed: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the texts that fit each query best.

        Args:
            queries: Texts. One without a known word finds nothing.
            top_k: Texts wanted for each query, 1 or more.
            allowed: bool [n], the texts that may be found; None: all.

        Returns:
            For each query positions (int64) and scores (float32, above 0), best first, ties by position; at
            most `top_k`, fewer when fewer texts have a word of the query.

        Raises:
            InputError: `top_k` below 1, or not one value of `allowed` for each text.
            TypeError: Not a sequence of strings; the position is named.
        """
        count = check_top_k(top_k)
        if isinstance(queries, str | bytes) or not isinstance(queries, Sequence):
            raise TypeError(f"queries must be a sequence such as a list, found {type(queries).__name__}")
        if allowed is not None and (allowed.shape != (len(self),) or allowed.dtype != np.bool_):
            raise InputError(f"allowed must hold a bool for each of {len(self)} texts, found {allowed.shape}")
        results = []
        for position, query in enumerate(queries):
            if not isinstance(query, str):
                raise TypeError(f"query {position} must be a string, found {type(query).__name__}")
            results.append(self._search(query, count, allowed))
        return results

    def _search(self, query: str, top_k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        words = self._bm25.get_tokens_ids(list(split_words(query)))
        if not words:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        scores = self._bm25.get_scores_from_ids(words)
        found = scores > 0 if allowed is None else (scores > 0) & allowed
        rows = np.flatnonzero(found)
        if len(rows) > top_k:
            # all that tie with the last one, so that their positions decide
            rows = rows[scores[rows] >= np.partition(scores[rows], -top_k)[-top_k]]
        rows = rows[np.argsort(-scores[rows], kind="stable")][:top_k]
        return rows.astype(np.int64), scores[rows].astype(np.float32)


def fuse_ranks(rankings: Sequence[Sequence[str]], *, constant: float = 60) -> list[tuple[str, float]]:
    """Fuse rankings by reciprocal rank (Cormack, Clarke and Buettcher, 2009): score = sum of 1 / (constant + rank).

    Args:
        rankings: Ids, best first; each at most once in a ranking. Ranks count from 1; an id that a ranking does
            not have gets nothing from it.
        constant: The larger, the less the first ranks stand out.

    Returns:
        All ids with their scores, best first, ties by id.

    Raises:
        InputError: An id twice in one ranking, or a negative constant.
        TypeError: A string in place of a ranking.

    Example:
        >>> [key for key, score in fuse_ranks([["a", "b", "c"], ["c", "a"]])]
        ['a', 'c', 'b']
    """
    if not constant >= 0:
        raise InputError(f"the constant of the fusion must be 0 or more, found {constant!r}")
    parts: dict[str, list[float]] = {}
    for number, ranking in enumerate(rankings):
        if isinstance(ranking, str):
            raise TypeError(f"ranking {number} must be a sequence of ids, found a string")
        if len(set(ranking)) != len(ranking):
            raise InputError(f"ranking {number} has an id twice; expected each at most once")
        for rank, key in enumerate(ranking, start=1):
            parts.setdefault(key, []).append(1.0 / (constant + rank))
    # fsum: the order of the rankings must not decide a tie
    fused = {key: math.fsum(values) for key, values in parts.items()}
    return sorted(fused.items(), key=lambda item: (-item[1], item[0]))


def split_words(text: str) -> Iterator[str]:
    """Yield the lower-case words of a text: runs of letters, digits and underscores.

    Example:
        >>> list(split_words("It's E24."))
        ['it', 's', 'e24']
    """
    return (found.group() for found in _WORD.finditer(text.lower()))


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise InputError("searching by words needs the extra `hybrid`: pip install 'transenc[hybrid]'") from None
    return bm25s
