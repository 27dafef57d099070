"""What does not become a pair: boilerplate by its letters, near-duplicates by their vectors."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from transenc.search.vector_index import VectorIndex

_QUERIES_AT_ONCE = 4096


class _Kept(dict[int, str]):
    """Character -> itself where its Unicode category begins so, else a space; filled as characters occur."""

    def __init__(self, kinds: str) -> None:
        super().__init__()
        self.kinds = kinds

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = character if unicodedata.category(character)[0] in self.kinds else " "
        return self[code]


_LETTERS, _LETTERS_AND_DIGITS = _Kept("LM"), _Kept("LMN")  # a mark belongs to its letter


def keep_letters(text: str, *, digits: bool = False) -> str:
    """Return the words of a text without punctuation and case, and without digits: what repeated lines have in common.

    Example:
        >>> keep_letters("Page 3 of 17 (2021)."), keep_letters("12:30"), keep_letters("In 1932.", digits=True)
        ('page of', '', 'in 1932')
    """
    return " ".join(text.casefold().translate(_LETTERS_AND_DIGITS if digits else _LETTERS).split())


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
        blocks: list[np.ndarray] = []  # near-duplicates: later << 32 | earlier
        with tqdm(total=len(waiting), desc="neighbours", unit="text", disable=not progress) as bar:
            for start in range(0, len(waiting), _QUERIES_AT_ONCE):
                rows = waiting[start : start + _QUERIES_AT_ONCE]
                found = index.search(np.asarray(index.vectors[rows]), count + 1, allowed=allowed)
                twins = [np.empty(0, dtype=np.int64)]
                for row, (others, cosines) in zip(rows.tolist(), found, strict=True):
                    other = others != row
                    others, cosines = others[other][:count], cosines[other][:count]
                    near[row] = -1
                    near[row, : len(others)] = others
                    if (same := others[cosines >= near_duplicate].astype(np.int64)).size:
                        twins.append(np.maximum(same, row) << 32 | np.minimum(same, row))
                blocks.append(np.unique(np.concatenate(twins)))
                bar.update(len(rows))
        for twin in map(int, np.unique(np.concatenate(blocks))):  # the earlier one's fate is known by then
            kept[twin >> 32] &= not kept[twin & 0xFFFFFFFF]
        # whoever lost a neighbour looks for others, which may be near-duplicates again
        lost = (near >= 0) & ~kept[near]
        waiting = np.flatnonzero(kept & lost.any(axis=1))
    return kept, near
