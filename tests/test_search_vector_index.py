"""Every kind of index scores exactly, pads nothing, and refuses what is not its own; exact misses no row."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transenc.errors import InputError, StateError
from transenc.search import vector_index
from transenc.search.vector_index import KINDS, VectorIndex, choose_kind, measure_recall

APPROXIMATE = ("hnsw", "ivfpq")


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_vectors(count: int, dim: int = 32, *, seed: int = 0) -> np.ndarray:
    """Unit vectors around a twentieth as many centres, as sentences are around topics."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 20), dim))
    return unit(centres[random.integers(len(centres), size=count)] + 0.7 * random.standard_normal((count, dim)))


def brute_force(vectors: np.ndarray, query: np.ndarray, top_k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    rows = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    return np.array(sorted(rows, key=lambda row: (-scores[row], row))[:top_k])


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return make_vectors(3000)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return make_vectors(64, seed=1)


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest, vectors: np.ndarray) -> VectorIndex:
    return VectorIndex.build(vectors, request.param)


# ---- what is found


def test_scores_and_order_by_hand() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    [(rows, scores)] = VectorIndex.build(vectors, "exact").search(np.array([[0, 1]], dtype=np.float32), 4)
    assert rows.tolist() == [1, 3, 2, 0]  # the tie by row
    assert scores.tolist() == [1.0, 1.0, np.float32(0.8), 0.0]
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("top_k", [1, 10, 600])
def test_exact_is_brute_force(vectors: np.ndarray, queries: np.ndarray, top_k: int) -> None:
    found = VectorIndex.build(vectors, "exact").search(queries[:8], top_k)
    for query, (rows, _) in zip(queries, found, strict=False):
        assert rows.tolist() == brute_force(vectors, query, top_k).tolist()


def test_exact_completes_a_tie_wider_than_what_it_scans_at_first() -> None:
    # 301 rows are one vector or differ from it by less than float32 sums can tell; the lowest rows must win.
    vectors = make_vectors(1000, 96)
    vectors[700:] = vectors[5]
    vectors[700:, 0] += np.random.default_rng(0).choice([0, 6e-8], size=300)
    for top_k in (1, 10, 100):
        [(rows, scores)] = VectorIndex.build(vectors, "exact").search(vectors[5:6], top_k)
        assert rows.tolist() == brute_force(vectors, vectors[5], top_k).tolist()
        assert (np.diff(scores) <= 0).all()


def test_an_approximate_kind_finds_nearly_all(index: VectorIndex) -> None:
    assert measure_recall(index) >= (1.0 if index.kind == "exact" else 0.98)  # type: ignore[operator]


def test_a_score_depends_on_query_and_row_alone(index: VectorIndex, vectors: np.ndarray, queries: np.ndarray) -> None:
    whole = index.search(queries, 10)
    for size in (1, 7, 64):
        parts = [found for start in range(0, 64, size) for found in index.search(queries[start : start + size], 10)]
        for (rows, scores), (rows_again, scores_again) in zip(whole, parts, strict=True):
            assert rows.tolist() == rows_again.tolist() and scores.tolist() == scores_again.tolist()
    for query, (rows, scores) in zip(queries, whole, strict=True):
        alone = [float(np.float32(np.dot(vectors[row].astype(float), query.astype(float)))) for row in rows]
        assert scores.tolist() == alone
        assert all((-a, r) < (-b, s) for a, b, r, s in zip(scores, scores[1:], rows, rows[1:], strict=False))


@pytest.mark.parametrize("top_k", [3000, 3001, 10**9, 2**31, 2**70])
def test_more_than_there_are_gives_all_and_no_padding(index: VectorIndex, queries: np.ndarray, top_k: int) -> None:
    [(rows, scores)] = index.search(queries[:1], top_k)
    assert sorted(rows.tolist()) == list(range(3000))
    assert scores.min() >= -1


@pytest.mark.parametrize("count", [1, 2, 3, 50, 255, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_few_vectors_are_found_without_a_word(kind: str, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    vectors = make_vectors(count)
    index = VectorIndex.build(vectors, kind)
    for query, (rows, _) in zip(vectors, index.search(vectors, 5), strict=True):
        assert rows.tolist() == brute_force(vectors, query, 5).tolist()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("dim", [1, 7, 48, 384])
def test_any_dimension(kind: str, dim: int) -> None:
    vectors = make_vectors(400, dim)
    [(rows, scores)] = VectorIndex.build(vectors, kind).search(vectors[:1], 3)
    assert scores[0] == pytest.approx(1, abs=1e-6) and len(rows) == 3


def test_no_queries_and_no_vectors() -> None:
    none = np.zeros((0, 4), dtype=np.float32)
    assert VectorIndex.build(np.eye(4, dtype=np.float32), "exact").search(none, 3) == []
    [(rows, scores)] = VectorIndex.build(none, "exact").search(np.eye(4, dtype=np.float32)[:1], 3)
    assert rows.tolist() == [] and scores.tolist() == []
    for kind in APPROXIMATE:
        with pytest.raises(InputError, match="at least one vector"):
            VectorIndex.build(none, kind)


def test_many_copies_of_one_vector(queries: np.ndarray) -> None:
    vectors = np.repeat(queries[:1], 500, axis=0)
    for kind in KINDS:
        [(rows, scores)] = VectorIndex.build(vectors, kind).search(queries[:1], 10)
        assert len(set(rows.tolist())) == 10 and set(scores.tolist()) == {scores[0]}


# ---- allowed rows


@pytest.mark.parametrize("share", [0.001, 0.03, 0.3, 0.7, 0.99, 1.0])
def test_only_allowed_rows_are_found(
    index: VectorIndex, vectors: np.ndarray, queries: np.ndarray, share: float
) -> None:
    allowed = np.random.default_rng(2).permutation(3000) < round(share * 3000)
    hits = 0
    for query, (rows, _) in zip(queries, index.search(queries, 10, allowed=allowed), strict=True):
        assert allowed[rows].all()
        expected = brute_force(vectors, query, 10, allowed)
        assert len(rows) == len(expected)
        hits += len(set(rows.tolist()) & set(expected.tolist()))
    wanted = 64 * min(10, int(allowed.sum()))
    assert hits >= (wanted if index.kind == "exact" or share < 0.01 else 0.97 * wanted)


def test_allowed_rows_far_from_the_query_are_found_all_the_same(index: VectorIndex, vectors: np.ndarray) -> None:
    order = np.argsort(vectors @ vectors[0])
    allowed = np.zeros(3000, dtype=bool)
    allowed[order[:1500]] = True  # the graph's walk and the probed cells are on the other side
    [(rows, _)] = index.search(vectors[:1], 10, allowed=allowed)
    assert len(rows) == 10 and allowed[rows].all()


def test_nothing_allowed_gives_nothing(index: VectorIndex, queries: np.ndarray) -> None:
    found = index.search(queries[:2], 5, allowed=np.zeros(3000, dtype=bool))
    assert [(rows.tolist(), scores.tolist()) for rows, scores in found] == [([], []), ([], [])]


# ---- on disk


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_index_answers_as_before(kind: str, vectors: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    built = VectorIndex.build(mapped, kind)
    path = tmp_path / "index.faiss"
    built.write(path)
    assert path.exists() == (kind != "exact")
    opened = VectorIndex.open(path if path.exists() else None, mapped, kind)
    for (rows, scores), (rows_again, scores_again) in zip(
        built.search(queries, 10), opened.search(queries, 10), strict=True
    ):
        assert rows.tolist() == rows_again.tolist() and scores.tolist() == scores_again.tolist()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_another_index_is_refused(kind: str, vectors: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    VectorIndex.build(vectors[:300], kind).write(path)
    other = APPROXIMATE[1 - APPROXIMATE.index(kind)]
    for rows, asked, reason in [
        (vectors[:299], kind, "with 299 rows of dimension 32, found"),
        (make_vectors(300, 48), kind, "dimension 48, found .* dimension 32"),
        (vectors[:300], other, f"of kind {other} .* found {kind}"),
    ]:
        with pytest.raises(StateError, match=reason):
            VectorIndex.open(path, rows, asked)
    with pytest.raises(TypeError, match="path must be a file"):
        VectorIndex.open(None, vectors, kind)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\x80\x04garbage" * 99, None], ids=["empty", "text", "pickle", "absent"]
)
def test_what_is_no_index_is_refused(content: bytes | None, vectors: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StateError, match=r"index\.faiss: not a faiss index") as caught:
        VectorIndex.open(path, vectors, "hnsw")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_truncated_index_is_refused(kind: str, vectors: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    VectorIndex.build(vectors[:300], kind).write(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:size])
        with pytest.raises(StateError, match="not a faiss index"):
            VectorIndex.open(path, vectors[:300], kind)


@pytest.mark.parametrize("missing", [1, 4000, 20000])
def test_a_file_that_does_not_fit_raises(vectors: np.ndarray, tmp_path: Path, missing: int) -> None:
    index = VectorIndex.build(vectors[:300], "hnsw")
    index.write(tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (tmp_path.joinpath("whole").stat().st_size - missing, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            index.write(tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---- growing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [1, 40, 2900])
def test_a_grown_index_finds_old_and_new_rows(kind: str, before: int, vectors: np.ndarray, queries: np.ndarray) -> None:
    index = VectorIndex.build(vectors[:before], kind)
    index.extend(vectors)
    assert index.vectors is vectors
    assert measure_recall(index) >= (1.0 if kind == "exact" else 0.97)  # type: ignore[operator]
    assert {int(index.search(vectors[row : row + 1], 1)[0][0][0]) for row in (0, 2999)} == {0, 2999}
    index.extend(vectors)  # nothing new
    assert len(index.search(queries[:1], 5000)[0][0]) == 3000


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_new_rows_join_an_opened_index_that_was_trained_well(
    kind: str, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "_WELL_TRAINED_FROM", 1000)
    VectorIndex.build(vectors[:2000], kind).write(tmp_path / "index.faiss")
    index = VectorIndex.open(tmp_path / "index.faiss", vectors[:2000], kind)
    opened = index._proposer
    index.extend(vectors)
    assert index._proposer is opened and opened.ntotal == 3000
    assert measure_recall(index) >= 0.97  # type: ignore[operator]
    index.write(tmp_path / "grown.faiss")
    VectorIndex.open(tmp_path / "grown.faiss", vectors, kind)


def test_codes_are_trained_again_when_there_are_far_too_few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_index, "_WELL_TRAINED_FROM", 1000)
    vectors = make_vectors(20_000, 8)
    index = VectorIndex.build(vectors[:1000], "ivfpq")
    assert index._proposer.nlist == 32  # a power of two near the root of 1000, with 25 rows or more to a cell
    index.extend(vectors[:4000])
    assert (index._proposer.nlist, index._proposer.ntotal) == (32, 4000)
    index.extend(vectors)
    assert (index._proposer.nlist, index._proposer.ntotal) == (128, 20_000)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_follow_is_refused_and_changes_nothing(kind: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    index = VectorIndex.build(vectors[:400], kind)
    answer = index.search(queries[:1], 10)[0][0].tolist()
    bad = vectors[:500].copy()
    bad[450, 3] = np.nan
    for grown, reason in [
        (vectors[:399], "expected 400 or more"),
        (make_vectors(500, 48), "dimension 32, found 500 of dimension 48"),
        (bad, "vector 450: "),
    ]:
        with pytest.raises(InputError, match=reason):
            index.extend(grown)
    assert index.search(queries[:1], 10)[0][0].tolist() == answer and len(index.vectors) == 400


# ---- recall


class FixedProposals:
    """In place of a faiss index: proposes the same rows for every query."""

    nlist = 1

    def __init__(self, rows: list[int]) -> None:
        self.rows = np.array(rows, dtype=np.int64)

    def search(self, queries: np.ndarray, wanted: int, params: Any) -> tuple[None, np.ndarray]:
        return None, np.tile(self.rows, (len(queries), 1))


def test_recall_by_hand() -> None:
    # On a quarter circle the two nearest of a row are its neighbours. Offered are rows 0 to 99 of 2000: the queries
    # 0 to 98 find both of theirs, 99 and 100 one each, the rest none.
    angles = np.linspace(0, np.pi / 2, 2000)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    index = VectorIndex(vectors, "ivfpq", FixedProposals([*range(100), -1]))
    assert measure_recall(index, sample=2000, top_k=2) == (2 * 99 + 1 + 1) / 4000
    assert measure_recall(VectorIndex.build(vectors, "exact"), sample=50, top_k=2) == 1.0


def test_recall_takes_a_tie_for_a_hit_and_knows_its_seed(vectors: np.ndarray) -> None:
    same = np.repeat(vectors[:1], 2000, axis=0)
    assert measure_recall(VectorIndex(same, "ivfpq", FixedProposals([*range(20)])), sample=8) == 1.0
    index = VectorIndex(vectors, "ivfpq", FixedProposals([*range(1500)]))
    assert measure_recall(index, sample=20, seed=1) == measure_recall(index, sample=20, seed=1)
    assert measure_recall(index, sample=20, seed=1) != measure_recall(index, sample=20, seed=2)


@pytest.mark.parametrize("count", [0, 1, 10, 11])
def test_recall_needs_more_rows_than_neighbours(count: int) -> None:
    found = measure_recall(VectorIndex.build(make_vectors(11)[:count], "exact"))
    assert found == (1.0 if count == 11 else None)


# ---- the kind


@pytest.mark.parametrize(
    ("count", "kind"),
    [(0, "exact"), (49_999, "exact"), (50_000, "hnsw"), (299_999, "hnsw"), (300_000, "ivfpq")],
)
def test_the_kind_follows_from_the_count(count: int, kind: str) -> None:
    assert choose_kind(count) == kind


# ---- arguments


GOOD = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda: VectorIndex.build(GOOD.tolist(), "exact"), TypeError, "float32 array, found list"),
        (lambda: VectorIndex.build(GOOD.astype(np.float64), "exact"), TypeError, "float32 array, found float64"),
        (lambda: VectorIndex.build(GOOD[0], "exact"), InputError, r"\[n, dim\], found shape \(4,\)"),
        (lambda: VectorIndex.build(GOOD[:, ::2], "exact"), InputError, "C-contiguous"),
        (lambda: VectorIndex.build(GOOD, "flat"), InputError, "one of exact, hnsw, ivfpq, found 'flat'"),
        (lambda: VectorIndex.build(2 * GOOD, "exact"), InputError, "vector 0: .* at most 1, found 2.0; normalise"),
        (lambda: VectorIndex.build(np.full((2, 4), np.nan, np.float32), "hnsw"), InputError, "vector 0: .* found nan"),
        (lambda: VectorIndex.build(np.full((2, 4), np.inf, np.float32), "ivfpq"), InputError, "vector 0: .* found inf"),
        (lambda: search(GOOD.tolist()), TypeError, "queries must be a float32 array, found list"),
        (lambda: search(GOOD.astype(np.float64)), TypeError, "found float64"),
        (lambda: search(GOOD[0]), InputError, r"shape \[q, 4\], found \(4,\)"),
        (lambda: search(GOOD[:, :3]), InputError, r"shape \[q, 4\], found \(4, 3\)"),
        (lambda: search(np.array([[0, 0, 0, 1], [0, np.nan, 0, 0]], np.float32)), InputError, "query 1 holds NaN"),
        (lambda: search(np.full((1, 4), 3e38, np.float32)), InputError, "query 0 holds .* too large"),
        (lambda: search(GOOD, 0), InputError, "top_k must be 1 or more, found 0"),
        (lambda: search(GOOD, -1), InputError, "found -1"),
        (lambda: search(GOOD, 1.5), TypeError, "whole number, found 1.5"),
        (lambda: search(GOOD, True), TypeError, "whole number, found True"),
        (lambda: search(GOOD, "8"), TypeError, "whole number, found '8'"),
        (lambda: search(GOOD, 1, np.ones(3, bool)), InputError, r"shape \(4,\), found \(3,\)"),
        (lambda: search(GOOD, 1, np.ones(4, int)), TypeError, "allowed must be a bool array, found int64"),
        (lambda: search(GOOD, 1, [True] * 4), TypeError, "allowed must be a bool array, found list"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Callable[[], object], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        call()


def search(queries: Any, top_k: Any = 1, allowed: Any = None) -> object:
    return VectorIndex.build(GOOD, "exact").search(queries, top_k, allowed=allowed)


def test_zero_and_fortran_ordered_queries_are_answered() -> None:
    index = VectorIndex.build(GOOD, "exact")
    [(rows, scores)] = index.search(np.zeros((1, 4), dtype=np.float32), 3)
    assert (rows.tolist(), scores.tolist()) == ([0, 1, 2], [0, 0, 0])
    queries = np.asfortranarray(np.array([[0, 1, 0, 0], [0, 0, 1, 0]], dtype=np.float32))
    assert [int(rows[0]) for rows, _ in index.search(queries, 1)] == [1, 2]


# ---- the figures


def test_copies_have_the_cosine_that_the_figures_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import bench_search

    source = 1.003 * make_vectors(300, 384)
    cosine = bench_search.write_copies(tmp_path / "scale.npy", source, np.arange(100, 300), 1000)
    written = np.load(tmp_path / "scale.npy")
    assert written.shape == (1000, 384)
    assert written[:200] == pytest.approx(unit(source[100:]), abs=1e-6)
    assert np.linalg.norm(written, axis=1) == pytest.approx(np.ones(1000), abs=1e-6)
    assert cosine == pytest.approx(0.8, abs=0.005)
    assert (written[200:] @ written[:200].T).max(axis=1).mean() == pytest.approx(cosine, abs=0.01)


@pytest.mark.slow
def test_the_bench_writes_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import bench_search

    np.save(tmp_path / "sentences.npy", make_vectors(1100))
    sizes = ["--real", "1000", "--scale", "1500", "--queries", "100", "--timed", "20"]
    files = ["--embeddings", str(tmp_path / "sentences.npy"), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["bench_search.py", *files, *sizes])
    assert bench_search.main() == 0
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (figures["sentences"], figures["real"]["vectors"], figures["scale"]["vectors"]) == (1100, 1000, 1500)
    assert list(figures["real"]["kinds"]) == ["exact", "hnsw", "ivfpq"]
    for kind in figures["real"]["kinds"].values():
        assert kind["recall@10"] > 0.9 and kind["p50_ms"] > 0 and kind["build_peak_mib"] > 10
    assert figures["real"]["kinds"]["exact"]["recall@10"] == 1.0
    assert str(tmp_path) not in json.dumps(figures)
