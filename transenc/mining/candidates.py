"""Candidate pairs as an array of rows: drawn at every rank, once each, and kept so that every score has its share."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from transenc.config import MiningSettings
from transenc.scoring import encode_texts
from transenc.search.store import normalize_rows

logger = logging.getLogger(__name__)

Candidates = np.ndarray[Any, np.dtype[np.void]]
CANDIDATE = np.dtype([("left", "i4"), ("right", "i4"), ("source", "i1"), ("cosine", "f4")])

_TEXTS_AT_ONCE = 16_384
_ROWS_AT_ONCE = 8192
_QUERIES_AT_ONCE = 256
# The best of a sample of n stands for a rank of 1 / n of all: reaches rank 250 of a million, and takes no longer to
# score than its neighbours take to find.
_SAMPLE = 4096


@contextmanager
def open_scratch(work: Path | None) -> Iterator[Path]:
    """Give a folder for vectors, in `work` or where temporary files go, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="mining-", dir=work) as folder:
        yield Path(folder)


def store_vectors(path: Path, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Write float32 vectors, part by part and at length 1, and map the file: float32 [n, dim].

    Raises:
        OSError: The disk is full.
    """
    rows, dim = 0, 0
    with open(path, "wb") as file:
        for part in parts:
            file.write(np.ascontiguousarray(normalize_rows(part), dtype="<f4").data)
            rows, dim = rows + len(part), part.shape[1]
    return np.memmap(path, dtype=np.float32, mode="r", shape=(rows, dim))


def encode_sentences(
    model: SentenceTransformer, texts: list[str], path: Path, *, batch_tokens: int | None, progress: bool
) -> np.ndarray:
    """Encode texts block by block into a mapped file: float32 [n, dim] at length 1."""

    def encode() -> Iterator[np.ndarray]:
        with tqdm(total=len(texts), desc="encode", unit="text", disable=not progress) as bar:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                block = texts[start : start + _TEXTS_AT_ONCE]
                yield encode_texts(model, block, batch_tokens=batch_tokens)
                bar.update(len(block))

    return store_vectors(path, encode())


def draw_ranks(
    vectors: np.ndarray,
    allowed: np.ndarray,
    queries: np.ndarray,
    rows: np.ndarray,
    *,
    beyond: int,
    count: int,
    rng: np.random.Generator,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows at ranks that no index reaches: log-uniformly between the neighbours and the last, and at random.

    Each block of queries is scored against a random sample of `allowed`; the r-th of a sample of m has about the
    rank r n / m among all n.

    Args:
        vectors: float32 [v, dim] at length 1.
        allowed: int [n], the rows of it to draw from.
        queries: float32 [q, dim] at length 1.
        rows: int [k], the rows of `queries` to draw for.
        beyond: Ranks below this one are left to the neighbours.
        count: Rows drawn for each query, of either kind.
        rng: Decides.
        progress: Show a progress bar on stderr.

    Returns:
        int32 [k, count] at a rank in between, and int32 [k, count] at random; a query's own row may be among them.
    """
    size = min(len(allowed), _SAMPLE)
    least = min(size - 1.0, beyond * size / len(allowed))
    middle, anywhere = (np.empty((len(rows), count), dtype=np.int32) for _ in range(2))
    for start in tqdm(range(0, len(rows), _QUERIES_AT_ONCE), desc="ranks", unit="block", disable=not progress):
        block = rows[start : start + _QUERIES_AT_ONCE]
        sample = allowed[np.sort(rng.choice(len(allowed), size=size, replace=False, shuffle=False))]
        scores = np.asarray(queries[block]) @ np.asarray(vectors[sample]).T
        ranks = np.exp(rng.uniform(np.log(least + 1), np.log(size + 1), size=(len(block), count))) - 1
        places = np.minimum(ranks.astype(np.int64), size - 1)
        for line, (row, place) in enumerate(zip(-scores, places, strict=True), start):
            middle[line] = sample[np.argpartition(row, place)[place]]
        anywhere[start : start + len(block)] = sample[rng.integers(size, size=(len(block), count))]
    return middle, anywhere


def pair_up(left: np.ndarray, right: np.ndarray, source: int) -> Candidates:
    """Pair each of `left`, int [n], with its line of `right`, int [n, k] and -1 for none; no row with itself.

    Example:
        >>> pair_up(np.array([0, 1]), np.array([[1, -1], [1, 2]]), 0)[["left", "right"]].tolist()
        [(0, 1), (1, 2)]
    """
    pairs = np.zeros(right.size, dtype=CANDIDATE)
    pairs["left"], pairs["right"], pairs["source"] = np.repeat(left, right.shape[1]), right.ravel(), source
    return pairs[(pairs["right"] >= 0) & (pairs["left"] != pairs["right"])]


def merge_pairs(parts: list[Candidates], *, symmetric: bool) -> Candidates:
    """Join candidates, each pair once and from the first source that has it; (a, b) is (b, a) if symmetric."""
    pairs = np.concatenate(parts)
    left, right = pairs["left"].astype(np.int64), pairs["right"].astype(np.int64)
    if symmetric:
        left, right = np.minimum(left, right), np.maximum(left, right)
    keys, first = np.unique(left << 32 | right, return_index=True)
    merged = pairs[first]
    merged["left"], merged["right"] = keys >> 32, keys & 0xFFFFFFFF
    return merged


def take_cosines(vectors: np.ndarray, pairs: Candidates) -> None:
    """Fill in the cosines of candidates, summed in float64, -1 to 1."""
    for start in range(0, len(pairs), _ROWS_AT_ONCE):
        block = pairs[start : start + _ROWS_AT_ONCE]
        sides = (np.asarray(vectors[block[side]], dtype=np.float64) for side in ("left", "right"))
        block["cosine"] = np.clip(np.vecdot(*sides), -1.0, 1.0)


def place_in_bins(cosines: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each score: bins of equal width from the lowest score to the highest.

    Example:
        >>> place_in_bins(np.array([0.0, 0.4, 0.6, 1.0]), 2).tolist()
        [0, 0, 1, 1]
    """
    scores = np.asarray(cosines, dtype=np.float64)
    low, width = scores.min(), np.ptp(scores)
    return np.minimum(((scores - low) / (width or 1.0) * bins).astype(np.int64), bins - 1)


def share_evenly(counts: np.ndarray, total: int) -> np.ndarray:
    """Share a total over bins: equally, as far as each reaches, what remains to the fuller ones.

    Example:
        >>> share_evenly(np.array([9, 1, 0, 4]), 10).tolist()
        [5, 1, 0, 4]
    """
    shares = np.zeros_like(counts)
    left = min(total, int(counts.sum()))
    for place, row in enumerate(np.argsort(counts, kind="stable")):
        shares[row] = min(int(counts[row]), left // (len(counts) - place))
        left -= shares[row]
    return shares


def keep_balanced(pairs: Candidates, *, texts: int, settings: MiningSettings, rng: np.random.Generator) -> Candidates:
    """Keep as many candidates as the settings ask for `texts` texts, from every bin of the score, in random order."""
    if len(pairs) == 0:
        return pairs
    total = settings.count_pairs(texts)
    bins = place_in_bins(pairs["cosine"], settings.bins)
    counts = np.bincount(bins, minlength=settings.bins)
    order = rng.permutation(len(pairs))
    order = order[np.argsort(bins[order], kind="stable")]
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = order[place < np.repeat(share_evenly(counts, total), counts)]
    if len(chosen) < total:
        logger.warning("%d pairs found, %d asked for; more text, or more neighbours, give more", len(chosen), total)
    return pairs[rng.permutation(chosen)]
