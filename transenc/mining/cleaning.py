"""What does not become a pair: boilerplate by its letters, near-duplicates by their vectors."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from transenc.search.vector_index import VectorIndex

_QUERIES_AT_ONCE = 4096


class _Letters(dict[int, str]):
    """Character -> itself where it is a letter or a mark on one, else a space; filled as characters occur."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = character if unicodedata.category(character)[0] in "LM" else " "
        return self[code]


_LETTERS = _Letters()


def keep_letters(text: str) -> str:
    """Return the words of a text without digits, punctuation and case: what repeated lines have in common.

    Example:
        >>> keep_letters("Page 3 of 17 (2021)."), keep_letters("12:30")
        ('page of', '')
    """
    return " ".join(text.casefold().translate(_LETTERS).split())


def find_distinct(texts: Iterable[str]) -> list[int]:
    """Return the positions of texts that are no boilerplate: with a letter, and the first with these letters.

    Lines that differ from an earlier one in digits, punctuation and case only ("Page 3 of 17") are boilerplate.

    Example:
        >>> find_distinct(["Page 3 of 17", "It rains.", "page 4 of 17", "12:30", "it rains!"])
        [0, 1]
    """
    seen: set[bytes] = set()
    distinct = []
    for position, text in enumerate(texts):
        letters = keep_letters(text)
        digest = hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if letters and digest not in seen:
            seen.add(digest)
            distinct.append(position)
    return distinct


def find_neighbours(
    index: VectorIndex, count: int, *, near_duplicate: float, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest other rows of every row, of two near-duplicates only the earlier.

    Args:
        index: Over n vectors.
        count: Neighbours wanted of each row, 1 or more.
        near_duplicate: Cosine from which the later of two rows goes.
        progress: Show a progress bar on stderr.

    Returns:
        bool [n], the rows that stay; and int32 [n, count], nearest first, their neighbours among them, -1 where there
        are no more. The lines of rows that do not stay mean nothing.

    Example:
        >>> vectors = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
        >>> kept, near = find_neighbours(VectorIndex.build(vectors, "exact"), 2, near_duplicate=0.9)
        >>> kept.tolist(), near[0].tolist()
        ([True, True, False], [1, -1])
    """
    size = len(index.vectors)
    kept = np.ones(size, dtype=bool)
    near = np.full((size, count), -1, dtype=np.int32)
    waiting = np.arange(size)
    while waiting.size:
        allowed = None if kept.all() else kept.copy()
        twins: set[tuple[int, int]] = set()
        with tqdm(total=len(waiting), desc="neighbours", unit="text", disable=not progress) as bar:
            for start in range(0, len(waiting), _QUERIES_AT_ONCE):
                rows = waiting[start : start + _QUERIES_AT_ONCE]
                found = index.search(np.asarray(index.vectors[rows]), count + 1, allowed=allowed)
                for row, (others, cosines) in zip(rows.tolist(), found, strict=True):
                    other = others != row
                    others, cosines = others[other][:count], cosines[other][:count]
                    near[row] = -1
                    near[row, : len(others)] = others
                    twins.update(
                        (max(row, twin), min(row, twin)) for twin in others[cosines >= near_duplicate].tolist()
                    )
                bar.update(len(rows))
        for later, earlier in sorted(twins):  # the earlier one's fate is known by then
            kept[later] &= not kept[earlier]
        # whoever lost a neighbour looks for others, which may be near-duplicates again
        lost = (near >= 0) & ~kept[near]
        waiting = np.flatnonzero(kept & lost.any(axis=1))
    return kept, near
