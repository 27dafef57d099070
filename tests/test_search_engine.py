"""Retrieval, filters, hybrid and reranking equal plain sentence-transformers; the doors refuse what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny import build_plain

from transenc import durable
from transenc.errors import InputError, StateError
from transenc.search.engine import SemanticSearch
from transenc.search.reranking import Hit, rerank

TEXTS = [
    "the small cat sees the dog today",
    "the old farmer sells the bread again",
    "a bird sings in the garden",
    "the young teacher reads the book alone",
    "the clever fox finds the river soon",
    "the red boat moves under the bridge",
]
QUERY = "the big cat hears the dog"


def write_corpus(path: Path, texts: list[str] = TEXTS) -> Path:
    """Documents d0, d1, ... with a topic and a year."""
    rows = [
        {"_id": f"d{i}", "text": t, "topic": "odd" if i % 2 else "even", "year": 2000 + i} for i, t in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, tiny_bi: Path) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    corpus = write_corpus(folder / "docs.jsonl")
    SemanticSearch.build(folder / "idx", corpus=corpus, bi_encoder=tiny_bi, precision="float32", lexical=True).close()
    return folder / "idx"


@pytest.fixture
def engine(index: Path) -> Iterator[SemanticSearch]:
    with SemanticSearch.open(index, precision="float32") as opened:
        yield opened


@pytest.fixture
def reranking(index: Path, tiny_cross: Path) -> Iterator[SemanticSearch]:
    with SemanticSearch.open(index, precision="float32", cross_encoder=tiny_cross) as opened:
        yield opened


@pytest.fixture(scope="module")
def cosines(tiny_bi: Path) -> dict[str, float]:
    """What plain sentence-transformers gives for the query and each document."""
    model = SentenceTransformer(str(tiny_bi), device="cpu")
    vectors = model.encode(TEXTS, normalize_embeddings=True)
    query = model.encode([QUERY], normalize_embeddings=True)[0]
    return {f"d{i}": float(v @ query) for i, v in enumerate(vectors)}


# ---- the answers


def test_hits_are_the_nearest_documents_by_plain_cosine(engine: SemanticSearch, cosines: dict[str, float]) -> None:
    hits = engine.search(QUERY, top_k=4)
    order = sorted(cosines, key=lambda key: -cosines[key])
    assert [hit.id for hit in hits] == order[:4]
    np.testing.assert_allclose([hit.score for hit in hits], [cosines[key] for key in order[:4]], atol=1e-5)
    first = hits[0]
    assert (first.rank, first.retrieved_rank, first.rerank_score) == (1, 1, None)
    assert first.retrieval_score == first.score
    number = int(first.id[1:])
    assert (first.text, first.metadata["year"]) == (TEXTS[number], 2000 + number)
    assert first.text[first.start : first.end] == first.text


def test_many_queries_are_answered_like_each_alone(engine: SemanticSearch) -> None:
    queries = [QUERY, *TEXTS, "a bird"] * 10  # more than one block
    alone = {query: [hit.id for hit in engine.search(query, top_k=3)] for query in set(queries)}
    found = engine.search_many(queries, top_k=3)
    assert [[hit.id for hit in hits] for hits in found] == [alone[query] for query in queries]
    assert engine.search_many([]) == []


def test_filters_choose_before_the_ranking(engine: SemanticSearch, cosines: dict[str, float]) -> None:
    odd = sorted(("d1", "d3", "d5"), key=lambda key: -cosines[key])
    assert [hit.id for hit in engine.search(QUERY, where=["topic=odd"])] == odd
    late = [key for key in odd if key != "d1"]
    assert [hit.id for hit in engine.search(QUERY, top_k=2, where=["topic=odd", "year>=2002"])] == late
    assert engine.search(QUERY, where=["year>3000"]) == []
    with pytest.raises(InputError, match="toppic"):
        engine.search(QUERY, where=["toppic=odd"])


def test_hybrid_fuses_the_ranks_of_both(engine: SemanticSearch, cosines: dict[str, float]) -> None:
    query = "garden bridge"  # d2 and d5 alone have one of these words each
    dense = [hit.id for hit in engine.search(query, top_k=6)]
    hits = engine.search(query, top_k=6, hybrid=True)
    words = {key: rank for rank, key in enumerate(_rank_by_words(engine, query), start=1)}
    assert set(words) == {"d2", "d5"}
    expected = {key: 1 / (60 + dense.index(key) + 1) + (1 / (60 + words[key]) if key in words else 0) for key in dense}
    assert [hit.id for hit in hits] == sorted(expected, key=lambda key: (-expected[key], key))
    np.testing.assert_allclose([hit.score for hit in hits], sorted(expected.values(), reverse=True), atol=1e-9)


def test_hybrid_finds_the_passage_of_what_only_the_words_found(
    engine: SemanticSearch, tiny_bi: Path, cosines: dict[str, float]
) -> None:
    query = "the small cat sees the dog garden"
    assert [hit.id for hit in engine.search(query, top_k=1)] == ["d0"]
    words = _rank_by_words(engine, "garden")
    assert words == ["d2"]
    hits = engine.search("garden", top_k=2, candidates=1, hybrid=True)
    assert "d2" in [hit.id for hit in hits]
    assert all(hit.text[hit.start : hit.end] == hit.text for hit in hits)


def _rank_by_words(engine: SemanticSearch, query: str) -> list[str]:
    return [match.id for match in engine.store.search_text([query], 6)[0]]


def test_weight_1_is_the_order_of_the_plain_cross_encoder(reranking: SemanticSearch, tiny_cross: Path) -> None:
    hits = reranking.search(QUERY, top_k=6, rerank_weight=1.0)
    plain = CrossEncoder(str(tiny_cross), device="cpu").predict([(QUERY, text) for text in TEXTS])
    assert [hit.id for hit in hits] == [f"d{i}" for i in np.argsort(-plain)]
    np.testing.assert_allclose([hit.rerank_score for hit in hits], np.sort(plain)[::-1], atol=1e-5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert sorted(hit.retrieved_rank for hit in hits) == [1, 2, 3, 4, 5, 6]


def test_weight_0_is_the_retrieved_order(engine: SemanticSearch, reranking: SemanticSearch) -> None:
    hits = reranking.search(QUERY, top_k=6, rerank_weight=0.0)
    assert [hit.id for hit in hits] == [hit.id for hit in engine.search(QUERY, top_k=6)]
    assert [hit.retrieved_rank for hit in hits] == [1, 2, 3, 4, 5, 6]


def test_only_the_candidates_are_reranked(engine: SemanticSearch, reranking: SemanticSearch) -> None:
    best = {hit.id for hit in engine.search(QUERY, top_k=3)}
    assert {hit.id for hit in reranking.search(QUERY, top_k=2, candidates=3, rerank_weight=1.0)} <= best
    assert len(reranking.search(QUERY, top_k=5, candidates=3)) == 5  # never fewer than asked for


# ---- long documents


def test_a_long_document_is_found_by_its_best_passage(tiny_bi: Path, tmp_path: Path) -> None:
    long = " ".join([*TEXTS[1:5] * 12, TEXTS[0], *TEXTS[1:5] * 12])
    corpus = write_corpus(tmp_path / "docs.jsonl", [long, TEXTS[5], TEXTS[2]])
    options: dict[str, Any] = {"corpus": corpus, "bi_encoder": tiny_bi, "precision": "float32"}
    with SemanticSearch.build(tmp_path / "split", **options) as engine:
        [hit] = engine.search(TEXTS[0], where=["year=2000"])
        assert TEXTS[0] in hit.text[hit.start : hit.end]
        assert hit.end - hit.start < len(long) / 4
        assert engine.store.count() == 3
    with SemanticSearch.build(tmp_path / "cut", passages=False, **options) as engine:
        [hit] = engine.search(TEXTS[0], where=["year=2000"])
        assert (hit.start, hit.end) == (0, len(long))
        assert engine.store.facts["truncated"] == 1  # type: ignore[attr-defined]


# ---- the doors


def test_adding_and_deleting_serve_at_once(tiny_bi: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "docs.jsonl", TEXTS[:2])
    with SemanticSearch.build(tmp_path / "idx", corpus=corpus, bi_encoder=tiny_bi) as engine:
        with pytest.raises(InputError, match=r"d0.*upsert"):
            engine.add(corpus)
        engine.add([{"_id": "new", "text": TEXTS[4]}])
        assert engine.search(TEXTS[4], top_k=1)[0].id == "new"
        engine.add([{"_id": "new", "text": TEXTS[5]}], upsert=True)
        assert engine.search(TEXTS[5], top_k=1)[0].id == "new"
        assert engine.delete(["new"]) == 1
        assert {hit.id for hit in engine.search(TEXTS[5])} == {"d0", "d1"}
    with SemanticSearch.open(tmp_path / "idx") as engine:
        assert engine.store.count() == 2


def test_another_encoder_of_the_same_width_is_refused(index: Path, tmp_path: Path) -> None:
    from tiny import build_bi, build_plain

    other = build_bi(tmp_path / "other", build_plain(tmp_path / "plain", seed=5))
    with pytest.raises(StateError, match="built with another encoder"):
        SemanticSearch.open(index, bi_encoder=other)


def test_an_encoder_that_moved_is_named(tiny_bi: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_bi, first)
    corpus = write_corpus(tmp_path / "docs.jsonl")
    SemanticSearch.build(tmp_path / "idx", corpus=corpus, bi_encoder=first).close()
    first.rename(second)
    with pytest.raises(InputError, match=r"was built with .*first.*--model"):
        SemanticSearch.open(tmp_path / "idx")
    with SemanticSearch.open(tmp_path / "idx", bi_encoder=second) as engine:
        assert engine.search(TEXTS[3], top_k=1)[0].id == "d3"


def test_an_opened_engine_keeps_its_generation(tiny_bi: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "docs.jsonl")
    options: dict[str, Any] = {"bi_encoder": tiny_bi}
    SemanticSearch.build(tmp_path / "idx", corpus=corpus, **options).close()
    with SemanticSearch.open(tmp_path / "idx") as pinned:
        for texts in (TEXTS[:1], TEXTS[1:3], TEXTS[:2]):  # three generations later its files are gone
            SemanticSearch.build(tmp_path / "idx", corpus=write_corpus(corpus, texts), **options).close()
        assert len(pinned.search(QUERY)) == 6
        assert [hit.text for hit in pinned.search(TEXTS[5], top_k=1)] == [TEXTS[5]]
    with SemanticSearch.open(tmp_path / "idx") as engine:
        assert len(engine.search(QUERY)) == 2


@pytest.mark.parametrize("query", ["", "  ", "\x00\x1f"])
def test_an_empty_query_is_refused(engine: SemanticSearch, query: str) -> None:
    with pytest.raises(InputError, match="empty query"):
        engine.search(query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": "8"}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"candidates": 0}, "candidates"),
        ({"where": ["year"]}, "year"),
        ({"where": ["year>=soon"]}, "soon"),
    ],
)
def test_options_out_of_range_are_refused(engine: SemanticSearch, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.search(QUERY, **options)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "1"])
def test_weights_out_of_range_are_refused(reranking: SemanticSearch, weight: Any) -> None:
    with pytest.raises(InputError, match="weight"):
        reranking.search(QUERY, rerank_weight=weight)


@pytest.mark.parametrize("top_k", [7, 10**9, 2**31])
def test_more_than_there_is_gives_all(engine: SemanticSearch, top_k: int) -> None:
    assert len(engine.search(QUERY, top_k=top_k)) == 6


@pytest.mark.parametrize("query", [None, 3, b"cat", ["cat"]])
def test_what_is_no_query_is_refused(engine: SemanticSearch, query: Any) -> None:
    with pytest.raises(TypeError, match="str"):
        engine.search(query)


@pytest.mark.parametrize("queries", ["cat", b"cat", {"cat"}, None, [["cat"]], ["cat", 3]])
def test_what_are_no_queries_is_refused(engine: SemanticSearch, queries: Any) -> None:
    with pytest.raises(TypeError):
        engine.search_many(queries)


def test_a_lone_surrogate_is_refused(engine: SemanticSearch) -> None:
    with pytest.raises(InputError, match="surrogate"):
        engine.search("a \ud800 cat")


def test_a_bi_encoder_and_several_models_rerank(index: Path, tiny_bi_b: Path, tiny_cross: Path) -> None:
    found = {}
    for name, given in {"bi": tiny_bi_b, "cross": tiny_cross, "both": [tiny_bi_b, tiny_cross]}.items():
        with SemanticSearch.open(index, precision="float32", cross_encoder=given) as engine:
            found[name] = engine.search(QUERY, top_k=3, rerank_weight=1.0)
            assert found[name] == rerank_hits(engine)
    assert len({hit.rerank_score for hits in found.values() for hit in hits}) == 9


def rerank_hits(engine: SemanticSearch) -> list[Hit]:
    """By hand, with the functions of the core."""
    retrieved = engine.retrieve([QUERY], engine.encoder.encode_queries([QUERY]), 100)[0]
    return rerank(QUERY, retrieved, engine.rerankers, weight=1.0)[:3]


def test_a_reranker_named_twice_is_told(index: Path, tiny_cross: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SemanticSearch.open(index, cross_encoder=[tiny_cross, tiny_cross]) as engine:
        assert len(engine.rerankers) == 2
    assert "named more than once to rerank" in caplog.text


def test_what_cannot_rerank_is_refused(index: Path, tiny_plain: Path, tiny_bi: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot rerank: it is neither a trained cross-encoder nor a bi-encoder"):
        SemanticSearch.open(index, cross_encoder=tiny_plain)
    with pytest.raises(InputError, match="no such model folder"):
        SemanticSearch.open(index, cross_encoder=[tiny_bi, tmp_path / "none"])
    with pytest.raises(InputError, match="3 outputs"):
        SemanticSearch.open(index, cross_encoder=build_plain(tmp_path / "three", labels=3))


def test_an_index_has_one_bi_encoder(index: Path, tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "docs.jsonl")
    with pytest.raises(InputError, match=r"vectors of one bi-encoder; .* distil them into one student"):
        SemanticSearch.build(tmp_path / "idx", corpus=corpus, bi_encoder=[tiny_bi, tiny_bi_b])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="vectors of one bi-encoder"):
        SemanticSearch.open(index, bi_encoder=[tiny_bi, tiny_bi_b])  # type: ignore[arg-type]
    assert not (tmp_path / "idx").exists()


def test_very_long_queries_and_documents_are_survived(tiny_bi: Path, tiny_cross: Path, tmp_path: Path) -> None:
    long = "cat " * 25_000
    corpus = write_corpus(tmp_path / "docs.jsonl", [long, TEXTS[1]])
    options: dict[str, Any] = {"bi_encoder": tiny_bi, "cross_encoder": tiny_cross}
    with SemanticSearch.build(tmp_path / "idx", corpus=corpus, **options) as engine:
        assert {hit.id for hit in engine.search(long)} == {"d0", "d1"}


def test_a_damaged_index_is_refused_by_file(tiny_bi: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "docs.jsonl")
    SemanticSearch.build(tmp_path / "idx", corpus=corpus, bi_encoder=tiny_bi).close()
    current = (tmp_path / "idx" / "CURRENT").read_text().split()[0]
    target = tmp_path / "idx" / current / "vectors.npy"
    data = bytearray(target.read_bytes())
    data[-3] ^= 4
    target.write_bytes(data)
    with pytest.raises(StateError, match=r"vectors\.npy"):
        SemanticSearch.open(tmp_path / "idx")
    assert durable.is_published(target.parent)
