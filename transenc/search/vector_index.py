"""Nearest rows of a matrix of vectors: exactly, by a graph (HNSW), or by short codes (IVF-PQ). faiss underneath.

The stored vectors are the truth: an approximate kind only proposes rows, and the inner product with the stored
vectors, taken in float64, scores and orders them. A score depends on nothing but the query and the row.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from transenc.errors import InputError, StateError

if TYPE_CHECKING:
    faiss: Any  # its stubs know neither the selectors nor half of the indexes used here
else:
    import faiss

KINDS = ("exact", "hnsw", "ivfpq")

_LOG = logging.getLogger(__name__)

# Exact search takes 3 ms at the first number of rows. At the second a graph takes 200 MB and minutes to build, codes a
# tenth of both.
_HNSW_FROM, _IVFPQ_FROM = 50_000, 300_000
_WELL_TRAINED_FROM = 10_000  # rows; an index of fewer is trained again when it grows
_ROWS_AT_ONCE = 16384
_QUERIES_AT_ONCE, _FOUND_AT_ONCE = 256, 2**20

# What follows was chosen by recall and time on 384-wide sentence embeddings (scripts/bench_search.py).
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 200, 80  # HNSW: M, efConstruction, efSearch
_TRAINING_ROWS, _TRAINING_ROWS_PER_CELL = 65536, 64
_LEAST_PROBES, _CELLS_PER_PROBE = 64, 8
_PROPOSALS = {"hnsw": 2, "ivfpq": 5}  # rows scored from the stored vectors, per row asked for
_LEAST_PROPOSALS = {"hnsw": 20, "ivfpq": 200}
# Scoring one of few allowed rows exactly costs as much as 1/8 of a step in the graph, or as looking at 40 codes.
_STEPS_PER_ROW, _CODES_PER_ROW = 8, 40


def choose_kind(count: int) -> str:
    """Choose the kind of index for a number of vectors.

    Example:
        >>> [choose_kind(count) for count in (1_000, 100_000, 1_000_000)]
        ['exact', 'hnsw', 'ivfpq']
    """
    return "exact" if count < _HNSW_FROM else "hnsw" if count < _IVFPQ_FROM else "ivfpq"


class VectorIndex:
    """Rows of a matrix of vectors, searched by inner product; made by `build` or `open`.

    Attributes:
        kind: "exact", "hnsw" or "ivfpq".
        vectors: float32 [n, dim], the stored vectors, perhaps a memory map.

    Example:
        >>> vectors = np.eye(3, dtype=np.float32)
        >>> index = VectorIndex.build(vectors, "exact")
        >>> [(rows.tolist(), scores.tolist()) for rows, scores in index.search(vectors[:1], 2)]
        [([0, 1], [1.0, 0.0])]
    """

    def __init__(self, vectors: np.ndarray, kind: str, proposer: Any) -> None:
        self.vectors, self.kind, self._proposer = vectors, kind, proposer

    @classmethod
    def build(cls, vectors: np.ndarray, kind: str, *, progress: bool = False) -> VectorIndex:
        """Build an index; of a memory map only a bounded part is held at a time.

        On several threads two builds of a graph may differ.

        Args:
            vectors: float32 [n, dim], C-contiguous, no row longer than 1 (L2-normalised).
            kind: One of KINDS.
            progress: Show a progress bar on stderr.

        Raises:
            TypeError: `vectors` is no float32 array.
            InputError: An unknown kind, a wrong shape, a row that is not finite or longer than 1, no row at all for an
                approximate kind.
        """
        _check_vectors(vectors)
        _check_kind(kind)
        _check_rows(vectors, 0)
        if kind == "exact":
            return cls(vectors, kind, None)
        if len(vectors) == 0:
            raise InputError(f"kind {kind} needs at least one vector, found none; take kind exact")
        return cls(vectors, kind, _build_proposer(vectors, kind, progress=progress))

    @classmethod
    def open(cls, path: Path | None, vectors: np.ndarray, kind: str) -> VectorIndex:
        """Open what `write` wrote. The caller has checked the file's digest: faiss reads damaged files silently.

        Args:
            path: The file; None for kind exact, which has none.
            vectors: The vectors it was built from.
            kind: One of KINDS.

        Raises:
            StateError: The file cannot be read, or is not an index of this kind over these vectors.
        """
        _check_vectors(vectors)
        _check_kind(kind)
        if kind == "exact":
            return cls(vectors, kind, None)
        if path is None:
            raise TypeError(f"path must be a file for kind {kind}, found None")
        try:
            proposer = faiss.read_index(str(path))
        except RuntimeError as error:
            raise StateError(f"{path}: not a faiss index ({str(error).splitlines()[0]}); build it again") from error
        found = (_name_kind(proposer), proposer.ntotal, proposer.d)
        expected = (kind, *vectors.shape)
        if found != expected or not proposer.is_trained or proposer.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise StateError(
                f"{path}: expected an index of kind {kind} with {expected[1]} rows of dimension {expected[2]}, "
                f"found {found[0]}, {found[1]} rows of dimension {found[2]}; build it again"
            )
        return cls(vectors, kind, proposer)

    def write(self, path: Path) -> None:
        """Write the index, without the vectors, to a new file; kind exact writes nothing.

        Raises:
            OSError: The file cannot be written whole, such as on a full disk.
        """
        if self._proposer is None:
            return
        # faiss's own writer says nothing when the last bytes do not fit on the disk; Python's file raises.
        with open(path, "wb") as file:
            faiss.write_index(self._proposer, faiss.PyCallbackIOWriter(file.write))

    def extend(self, vectors: np.ndarray, *, progress: bool = False) -> None:
        """Take the grown vectors in place of the old: the same rows, then new ones, which are added.

        An approximate kind that was trained on far fewer vectors is built anew. Not to be used after an interruption.

        Raises:
            TypeError: `vectors` is no float32 array.
            InputError: Fewer rows than before, another dimension, or a new row that `build` would refuse.
        """
        _check_vectors(vectors)
        before = len(self.vectors)
        if vectors.shape[1] != self.vectors.shape[1] or len(vectors) < before:
            raise InputError(
                f"expected {before} or more vectors of dimension {self.vectors.shape[1]}, "
                f"found {len(vectors)} of dimension {vectors.shape[1]}"
            )
        _check_rows(vectors, before)
        if self._proposer is not None and len(vectors) > before:
            if _is_outgrown(self._proposer, before, len(vectors)):
                self._proposer = _build_proposer(vectors, self.kind, progress=progress)
            else:
                _add_rows(self._proposer, vectors, progress=progress)
        self.vectors = vectors

    def search(
        self, queries: np.ndarray, top_k: int, *, allowed: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the rows with the largest inner products.

        Args:
            queries: float32 [q, dim].
            top_k: Rows wanted for each query, 1 or more.
            allowed: bool [n], the rows to search; None: all.

        Returns:
            For each query rows, int64 [m], and scores, float32 [m], largest first and then by row; m is `top_k`, or
            the number of allowed rows where that is smaller. Kind exact misses no row; an approximate kind may.

        Raises:
            TypeError: An argument of the wrong type.
            InputError: A `top_k` below 1, a wrong shape, a query that is not finite.
        """
        count, dim = self.vectors.shape
        queries = _check_queries(queries, dim)
        _check_top_k(top_k)
        present = count if allowed is None else _count_allowed(allowed, count)
        top_k = min(top_k, present)
        if top_k == 0:
            return [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)) for _ in queries]
        if present == count:
            allowed = None
        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        found = []
        size = max(1, min(_QUERIES_AT_ONCE, _FOUND_AT_ONCE // top_k))
        for start in range(0, len(queries), size):
            block = queries[start : start + size]
            if self._proposer is None:
                found += _search_exactly(self.vectors, block, top_k, present, selector)
            else:
                found += self._search_proposed(block, top_k, present, selector)
        return found

    def _search_proposed(
        self, queries: np.ndarray, top_k: int, present: int, selector: Any
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        count = len(self.vectors)
        wanted = min(present, max(_LEAST_PROPOSALS[self.kind], _PROPOSALS[self.kind] * top_k))
        # Where few rows are allowed, more of the graph or more cells must be looked at to meet as many of them.
        if self.kind == "hnsw":
            width = max(_SEARCH_WIDTH, wanted)
            few = math.isqrt(_STEPS_PER_ROW * width * count)
            parameters = faiss.SearchParametersHNSW(efSearch=width * count // present, sel=selector)
        else:
            probes = max(_LEAST_PROBES, self._proposer.nlist // _CELLS_PER_PROBE)
            few = count // _CODES_PER_ROW
            parameters = faiss.SearchParametersIVF(nprobe=probes * count // present, sel=selector)
        if present <= max(few, 4 * wanted):
            return _search_exactly(self.vectors, queries, top_k, present, selector)
        _, proposed = self._proposer.search(queries, wanted, params=parameters)
        found = []
        for query, rows in zip(queries, proposed, strict=True):
            rows = rows[rows >= 0]  # faiss pads with -1
            if len(rows) < top_k:
                found += _search_exactly(self.vectors, query[None], top_k, present, selector)
            else:
                found.append(_rank(self.vectors, query, rows, top_k))
        return found


def measure_recall(index: VectorIndex, *, sample: int = 256, seed: int = 0, top_k: int = 10) -> float | None:
    """Measure the share of the exact nearest rows that an index finds, with stored rows as queries.

    A query's own row is left out. A row that ties with the last of the exact ones counts as found.

    Args:
        index: The index.
        sample: Rows to take as queries.
        seed: Of their choice.
        top_k: Neighbours of each.

    Returns:
        Recall in [0, 1]; None when there are not more than `top_k` rows.
    """
    count = len(index.vectors)
    if count <= top_k:
        return None
    rows = np.sort(np.random.default_rng(seed).choice(count, size=min(sample, count), replace=False))
    queries = index.vectors[rows]
    exact = VectorIndex(index.vectors, "exact", None).search(queries, top_k + 1)
    shares = []
    for row, (truth, best), (found, scores) in zip(rows, exact, index.search(queries, top_k + 1), strict=True):
        last = best[truth != row][top_k - 1]
        shares.append(min(top_k, int((scores[found != row] >= last).sum())) / top_k)
    return float(np.mean(shares))


def _check_vectors(vectors: Any) -> None:
    _check_array(vectors, "vectors", np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or not vectors.flags.c_contiguous:
        raise InputError(f"vectors must be C-contiguous of shape [n, dim], found shape {vectors.shape}")


def _check_array(array: Any, name: str, dtype: type[np.generic]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be a {np.dtype(dtype)} array, found {found}")


def _check_kind(kind: Any) -> None:
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, found {kind!r}")


def _check_rows(vectors: np.ndarray, first: int) -> None:
    """Refuse what the bound on rounding does not hold for."""
    for start in range(first, len(vectors), _ROWS_AT_ONCE):
        block = vectors[start : start + _ROWS_AT_ONCE]
        squares = np.einsum("ij,ij->i", block, block)
        bad = np.flatnonzero(~(squares <= 1.001))
        if len(bad):
            raise InputError(
                f"vector {start + bad[0]}: expected a finite length of at most 1, "
                f"found {math.sqrt(squares[bad[0]])}; normalise the vectors"
            )


def _check_queries(queries: Any, dim: int) -> np.ndarray:
    _check_array(queries, "queries", np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise InputError(f"queries must have the shape [q, {dim}], found {queries.shape}")
    bad = np.flatnonzero(~(np.linalg.norm(queries.astype(np.float64), axis=1) < 1e18))
    if len(bad):
        raise InputError(f"query {bad[0]} holds NaN, inf, or numbers too large to multiply")
    return np.ascontiguousarray(queries)


def _check_top_k(top_k: Any) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer):
        raise TypeError(f"top_k must be a whole number, found {top_k!r}")
    if top_k < 1:
        raise InputError(f"top_k must be 1 or more, found {top_k}")


def _count_allowed(allowed: Any, count: int) -> int:
    _check_array(allowed, "allowed", np.bool_)
    if allowed.shape != (count,):
        raise InputError(f"allowed must have the shape ({count},), found {allowed.shape}")
    return int(np.count_nonzero(allowed))


def _is_outgrown(proposer: Any, before: int, count: int) -> bool:
    if before < _WELL_TRAINED_FROM:
        return True
    return isinstance(proposer, faiss.IndexIVFPQFastScan) and _plan_cells(count) >= 4 * proposer.nlist


def _build_proposer(vectors: np.ndarray, kind: str, *, progress: bool) -> Any:
    proposer = _train_graph(vectors) if kind == "hnsw" else _train_codes(vectors)
    _add_rows(proposer, vectors, progress=progress)
    return proposer


def _train_graph(vectors: np.ndarray) -> Any:
    dim = vectors.shape[1]
    graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, _LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _BUILD_WIDTH
    graph.train(_sample_rows(vectors, _TRAINING_ROWS))  # the range of each dimension
    return graph


def _train_codes(vectors: np.ndarray) -> Any:
    count, dim = vectors.shape
    cells = _plan_cells(count)
    # Codes of 4 bits for 3 dimensions: 64 bytes for 384. Searched many at a time in registers ("fs").
    width = next(width for width in (3, 2, 1) if dim % width == 0)
    codes = faiss.index_factory(dim, f"IVF{cells},PQ{dim // width}x4fs", faiss.METRIC_INNER_PRODUCT)
    # A small set is trained on what there is; without this faiss says so on stderr.
    codes.cp.min_points_per_centroid = codes.pq.cp.min_points_per_centroid = 1
    sample = _sample_rows(vectors, max(_TRAINING_ROWS, cells * _TRAINING_ROWS_PER_CELL))
    _LOG.info("training the index on %d of %d vectors", min(len(sample), count), count)
    codes.train(sample)
    return codes


def _plan_cells(count: int) -> int:
    """Cells of the coarse quantizer for a number of rows: about its root, a power of two."""
    enough_to_train = max(1, count // 39)
    return 1 << round(math.log2(min(math.sqrt(count), enough_to_train)))


def _sample_rows(vectors: np.ndarray, size: int) -> np.ndarray:
    if len(vectors) > size:
        return vectors[np.sort(np.random.default_rng(0).choice(len(vectors), size=size, replace=False))]
    return np.tile(vectors, (-(-16 // len(vectors)), 1))  # a code of 4 bits is trained on no fewer than 16 rows


def _add_rows(proposer: Any, vectors: np.ndarray, *, progress: bool) -> None:
    with tqdm(total=len(vectors), initial=proposer.ntotal, unit="vector", disable=not progress) as bar:
        while proposer.ntotal < len(vectors):
            block = vectors[proposer.ntotal : proposer.ntotal + _ROWS_AT_ONCE]
            proposer.add(block)
            bar.update(len(block))


def _name_kind(proposer: Any) -> str:
    if isinstance(proposer, faiss.IndexHNSWSQ):
        return "hnsw"
    return "ivfpq" if isinstance(proposer, faiss.IndexIVFPQFastScan) else type(proposer).__name__


def _search_exactly(
    vectors: np.ndarray, queries: np.ndarray, top_k: int, present: int, selector: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Brute force in float32, then the float64 score of every row that rounding could have kept out."""
    wanted = min(present, top_k + 16)
    scores, rows = _scan(vectors, queries, wanted, selector)
    # Twice the bound on the rounding of a float32 inner product, and that of the score itself, to float32.
    slack = (2 * vectors.shape[1] + 4) * 2.0**-24 * np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    found = []
    for query, near, these, margin in zip(queries, scores, rows, slack, strict=True):
        while len(these) < present and near[-1] >= near[top_k - 1] - margin:  # the tie may go on
            [near], [these] = _scan(vectors, query[None], min(present, 8 * len(these)), selector)
        found.append(_rank(vectors, query, these[near >= near[top_k - 1] - margin], top_k))
    return found


def _scan(vectors: np.ndarray, queries: np.ndarray, wanted: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
    scores = np.empty((len(queries), wanted), dtype=np.float32)
    rows = np.empty((len(queries), wanted), dtype=np.int64)
    count, dim = vectors.shape
    # faiss.knn takes no selector.
    faiss.knn_inner_product(
        faiss.swig_ptr(queries), faiss.swig_ptr(vectors), dim, len(queries), count, wanted,
        faiss.swig_ptr(scores), faiss.swig_ptr(rows), selector,
    )  # fmt: skip
    return scores, rows


def _rank(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of `rows` with their scores; each score is one sum in a fixed order, whatever else is asked."""
    rows = np.sort(rows)
    vectors, query = np.asarray(vectors), query.astype(np.float64)
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        scores[block] = np.vecdot(vectors[rows[block]].astype(np.float64), query)
    order = np.argsort(-scores, kind="stable")[:top_k]
    return rows[order], scores[order]
