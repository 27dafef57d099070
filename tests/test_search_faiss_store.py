"""A folder as a store: what is found, in which order, and what every change leaves."""

from __future__ import annotations

import doctest
import gc
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_scenario import (
    FACTS,
    CountColours,
    HashText,
    as_content,
    build,
    count_colours,
    make_corpus,
    read_content,
    snapshot_tree,
)

from transenc import durable
from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.search import chunks, faiss_store, snapshot
from transenc.search.faiss_store import FaissStore, verify_index
from transenc.search.store import Embedded, Match, Passage, parse_condition

CORPUS = [
    Document("a", "red", metadata={"year": 2019, "lang": "en", "tags": ["x"]}),
    Document("b", "red red blue", metadata={"year": 2020, "lang": "de", "old": True}),
    Document("c", "green\nred blue", title="", metadata={"year": 2021, "lang": "en"}),
    Document("d", "gold", title="green", metadata={"year": 2022.5}),
    Document("e", "nothing"),
]


@pytest.fixture(autouse=True)
def quick_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[FaissStore]:
    with build(tmp_path / "idx", CORPUS) as store:
        yield store


def find(store: FaissStore, query: str, top_k: int = 10, **options: Any) -> list[tuple[str, float]]:
    [matches] = store.search(count_colours(query), top_k, **options)
    return [(match.id, match.score) for match in matches]


def find_ids(store: FaissStore, query: str, top_k: int = 10, **options: Any) -> str:
    return " ".join(name for name, _ in find(store, query, top_k, **options))


# ---- searching


def test_best_passage_of_each_document(index: FaissStore) -> None:
    # b is (2, 0, 1, 0): 2 / sqrt(5); c's second line (1, 0, 1, 0): 1 / sqrt(2)
    assert index.search(count_colours("red", "gold red"), 10) == [
        [
            Match("a", 1.0, 0, 3),
            Match("b", 0.894427, 0, 12),
            Match("c", 0.707107, 6, 14),
            Match("d", 0.0, 0, 4),
            Match("e", 0.0, 0, 7),
        ],
        # against (1, 0, 0, 1) / sqrt(2); d has a green title: (0, 1, 0, 1) / sqrt(2)
        [
            Match("a", 0.707107, 0, 3),
            Match("b", 0.632456, 0, 12),
            Match("c", 0.5, 6, 14),
            Match("d", 0.5, 0, 4),
            Match("e", 0.0, 0, 7),
        ],
    ]


def test_title_stands_before_every_passage(index: FaissStore) -> None:
    # c's first line is green alone; d is (0, 1, 0, 1)
    assert find(index, "green", 2) == [("c", 1.0), ("d", 0.707107)]


@pytest.mark.parametrize("top_k", [1, 2, 4, 5, 6, 10**9, 2**31, 2**63])
def test_top_k(top_k: int, index: FaissStore) -> None:
    assert find_ids(index, "red", top_k) == " ".join("abcde"[: min(top_k, 5)])


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "8", True, None, float("nan")])
def test_top_k_refused(top_k: Any, index: FaissStore) -> None:
    with pytest.raises(InputError, match="top_k: expected a whole number of 1 or more, found"):
        index.search(count_colours("red"), top_k)


@pytest.mark.parametrize(
    ("queries", "error"),
    [
        (np.ones((1, 3), np.float32), InputError),
        (np.ones((1, 4)), InputError),
        (np.full((1, 4), np.nan, np.float32), InputError),
        (np.ones(4, np.float32), InputError),
        ("red", TypeError),
        ([[1, 0, 0, 0]], TypeError),
    ],
)
def test_queries_refused(queries: Any, error: type[Exception], index: FaissStore) -> None:
    with pytest.raises(error, match="queries"):
        index.search(queries, 1)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["year>=2020"], "b c d"),
        (["year>=2020", "lang=en"], "c"),
        (["year<2022.5"], "a b c"),
        (["lang!=en"], "b"),
        (["old=true"], "b"),
        (["year>3000"], ""),
    ],
)
def test_where(where: list[str], expected: str, index: FaissStore) -> None:
    assert find_ids(index, "red", where=[parse_condition(text) for text in where]) == expected


def test_where_refused(index: FaissStore) -> None:
    with pytest.raises(
        InputError, match="no document has a number or text as 'tags'; in their metadata are: 'lang', 'old', 'year'"
    ):
        find(index, "red", where=[parse_condition("tags=x")])  # a list cannot be filtered
    for where in ("lang=en", ["lang=en"], parse_condition("lang=en")):
        with pytest.raises(TypeError, match="where: expected a sequence of Condition"):
            find(index, "red", where=where)


def test_ties_by_id(tmp_path: Path) -> None:
    ids = [f"{i:03}" for i in np.random.default_rng(0).permutation(500)]
    corpus = [Document(name, "red\n" * (1 + int(name) % 3)) for name in ids]
    with build(tmp_path / "idx", corpus) as store:
        for top_k in (1, 7, 499, 500):
            assert find_ids(store, "red", top_k) == " ".join(sorted(ids)[:top_k])
            assert find_ids(store, "nothing", top_k) == " ".join(sorted(ids)[:top_k])


def test_scores_that_differ_in_the_seventh_decimal_tie(tmp_path: Path) -> None:
    class Nearly:
        fingerprint, dim = "nearly", 2

        def __call__(self, documents: Sequence[Document]) -> Embedded:
            vectors = [[1.0, float(document.text)] for document in documents]
            return Embedded([Passage(i, 0, 1) for i in range(len(documents))], np.array(vectors, np.float32))

    # cosines 1 / sqrt(1 + x^2): 1, 1 - 1.25e-7, 1 - 5e-5
    corpus = [Document("z", "0.0"), Document("a", "0.0005"), Document("m", "0.01")]
    with FaissStore.build(tmp_path / "idx", corpus, Nearly(), encoder={}) as store:
        [matches] = store.search(np.array([[1, 0]], np.float32), 1)
        assert matches == [Match("a", 1.0, 0, 1)]
        [matches] = store.search(np.array([[1, 0]], np.float32), 3)
        assert [(match.id, match.score) for match in matches] == [("a", 1.0), ("z", 1.0), ("m", 0.99995)]


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivfpq"])
def test_batches_do_not_matter(kind: str, tmp_path: Path) -> None:
    embed = HashText()
    corpus = [Document(f"d{i:04}", f"text {i % 900}", metadata={"n": i}) for i in range(1000)]  # 100 repeated texts
    queries = np.array([embed.draw(f"query {i}") for i in range(63)] + [embed.draw("text 7")])
    with FaissStore.build(tmp_path / "idx", corpus, embed, encoder={}, kind=kind) as store:
        assert store.info()["kind"] == kind
        for options in ({}, {"where": [parse_condition("n<950")]}, {"within": ["d0001", "d0901"]}):
            together = store.search(queries, 10, **options)  # type: ignore[arg-type]
            for size in (1, 7):
                batches = (store.search(queries[i : i + size], 10, **options) for i in range(0, 64, size))  # type: ignore[arg-type]
                assert [matches for batch in batches for matches in batch] == together
        assert [match.id for match in store.search(queries, 2)[63]] == ["d0007", "d0907"]


# ---- documents


def test_get(index: FaissStore) -> None:
    assert index.get(["c", "a", "c"]) == [CORPUS[2], CORPUS[0], CORPUS[2]]
    assert index.get([]) == []
    with pytest.raises(InputError, match="no document has the id 'A'"):
        index.get(["a", "A"])
    with pytest.raises(TypeError, match=r"ids\[1\]: expected a str, found int"):
        index.get(["a", 1])  # type: ignore[list-item]
    assert index.count() == 5


def test_ids_are_kept_exactly(tmp_path: Path) -> None:
    ids = ["1", "01", "1 ", "../x", "a\nb", "a\0b", "a", "x" * 10_000, "é", "e\u0301", "-1", "\x1b[31m"]
    with build(tmp_path / "idx", [Document(name, "red") for name in ids]) as store:
        assert [name for name, _ in find(store, "red", 100)] == sorted(ids)
        assert [document.id for document in store.get(ids)] == ids
        store.delete(["a\0b", "1"])
        assert [name for name, _ in find(store, "red", 100)] == sorted(set(ids) - {"a\0b", "1"})


# ---- the manifest


def test_info(tmp_path: Path) -> None:
    corpus = [*CORPUS, Document("f", "red blue ...")]
    with build(tmp_path / "idx", corpus) as store:
        folder = tmp_path / "idx/gen-000001"
        assert store.info() == {
            "documents": 6,
            "passages": 7,
            "generation": 1,
            "kind": "exact",
            "recall@10": None,  # too few to measure
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "deleted": 0,
            "dim": 4,
            "encoder": FACTS,
            "lexical": False,
            "truncated": 1,
        }
        assert list(store.info())[:6] == ["documents", "passages", "generation", "kind", "recall@10", "bytes"]
        assert (store.facts["format"], store.facts["metric"], store.facts["embedding"]) == (1, "cosine", "colours")
        assert verify_index(tmp_path / "idx") == {"index": str(tmp_path / "idx"), **store.info()}
    assert {path.name for path in (tmp_path / "idx").iterdir()} == {"CURRENT", "lock", "gen-000001"}
    assert (tmp_path / "idx/CURRENT").read_text() == "gen-000001 8e7b5a4f\n"
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert set(manifest["files"]) == {"vectors.npy", "passages.npy", "docs.sqlite"}
    np.testing.assert_array_equal(
        np.load(folder / "passages.npy"),
        [[0, 0, 3], [1, 0, 12], [2, 0, 5], [2, 6, 14], [3, 0, 4], [4, 0, 7], [5, 0, 12]],
    )
    vectors = np.load(folder / "vectors.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[1], np.array([2, 0, 1, 0]) / np.sqrt(5), atol=1e-7)
    assert not vectors[5].any()  # the zero vector stays zero


@pytest.mark.parametrize(
    ("kind", "chosen"), [("auto", "exact"), ("exact", "exact"), ("hnsw", "hnsw"), ("ivfpq", "ivfpq")]
)
def test_kinds(kind: str, chosen: str, tmp_path: Path) -> None:
    embed = HashText()
    corpus = [Document(f"d{i}", f"text {i}") for i in range(300)]
    with FaissStore.build(tmp_path / "idx", corpus, embed, encoder={}, kind=kind) as store:
        assert (store.info()["kind"], store.info()["recall@10"]) == (chosen, 1.0)  # so few are searched exactly
        assert (tmp_path / "idx/gen-000001/index.faiss").exists() == (chosen != "exact")
        store.add([Document(f"e{i}", f"other {i}") for i in range(20)], embed)
        store.delete(["d7", "e8"])
        for name, text in (("d8", "text 8"), ("e9", "other 9")):
            assert store.search(embed.draw(text)[None], 1) == [[Match(name, 1.0, 0, len(text))]]
        assert len(store.search(embed.draw("x")[None], 1000)[0]) == 318
        assert store.info()["recall@10"] == 1.0
        store.delete([match.id for match in store.search(embed.draw("x")[None], 1000)[0]])
        store.compact()
        assert (store.count(), store.info()["kind"]) == (0, "exact")
        store.add(corpus, embed)
        assert (store.count(), store.info()["kind"]) == (300, chosen)


def test_kind_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind: expected auto, exact, hnsw, ivfpq, found 'flat'"):
        build(tmp_path / "idx", CORPUS, kind="flat")
    assert not (tmp_path / "idx").exists()


@pytest.mark.parametrize(
    ("encoder", "error"), [({"x": float("nan")}, InputError), ({"x": {1}}, InputError), ("name", TypeError)]
)
def test_facts_refused_before_any_work(encoder: Any, error: type[Exception], tmp_path: Path) -> None:
    embed = CountColours()
    with pytest.raises(error, match="encoder: expected"):
        FaissStore.build(tmp_path / "idx", CORPUS, embed, encoder=encoder)
    assert embed.blocks == []
    assert not (tmp_path / "idx").exists()


# ---- changes


def test_build_replaces_all_content(index: FaissStore, tmp_path: Path) -> None:
    with build(tmp_path / "idx", CORPUS[:2]) as second:
        assert (second.generation, second.count(), find_ids(second, "red")) == (2, 2, "a b")
        assert (index.generation, find_ids(index, "red")) == (1, "a b c d e")  # pinned
    with build(tmp_path / "idx", CORPUS[1:3]) as third:
        assert (third.generation, find_ids(third, "red")) == (3, "b c")
    names = {path.name for path in (tmp_path / "idx").iterdir()}
    assert names == {"CURRENT", "lock", "gen-000002", "gen-000003"}
    assert find_ids(index, "red", where=[parse_condition("year>=2020")]) == "b c d"  # although it is deleted
    assert index.get(["e"]) == CORPUS[4:]


@pytest.mark.parametrize("upsert", [False, True])
def test_add_refuses_what_is_repeated_before_encoding(upsert: bool, index: FaissStore, tmp_path: Path) -> None:
    before, embed = snapshot_tree(tmp_path / "idx"), CountColours()
    twice = [Document("x", "red", place="new.tsv:1"), Document("x", "blue", place="new.tsv:2")]
    with pytest.raises(InputError, match=r"new.tsv:2: the id 'x' is that of document 1 of this input too"):
        index.add(twice, embed, upsert=upsert)
    if not upsert:
        known = [Document("x", "red", place="new.tsv:1"), Document("a", "blue", place="new.tsv:2")]
        with pytest.raises(InputError, match=r"new.tsv:2: the id 'a' is in the index already; upsert replaces"):
            index.add(known, embed)
    with pytest.raises(InputError, match="expected at least one document, found none"):
        index.add([], embed, upsert=upsert)
    assert embed.blocks == []
    assert snapshot_tree(tmp_path / "idx") == before
    assert index.generation == 1


def test_upsert(index: FaissStore, tmp_path: Path) -> None:
    embed = CountColours()
    index.add([Document("c", "gold"), Document("g", "gold gold")], embed, upsert=True)
    assert embed.blocks == [["c", "g"]]
    assert find(index, "gold", 4) == [("c", 1.0), ("g", 1.0), ("d", 0.707107), ("a", 0.0)]
    assert find_ids(index, "red", 3) == "a b c"
    assert (index.count(), index.info()["passages"], index.info()["deleted"]) == (6, 6, 2)
    assert find_ids(index, "red", where=[parse_condition("lang=en")]) == "a"
    assert verify_index(tmp_path / "idx")["deleted"] == 2


def test_delete(index: FaissStore, tmp_path: Path) -> None:
    first = tmp_path / "idx/gen-000001"
    assert index.delete(["c", "a", "c"]) == 2
    assert (index.generation, index.count(), index.info()["passages"], index.info()["deleted"]) == (2, 3, 3, 3)
    assert find(index, "red") == [("b", 0.894427), ("d", 0.0), ("e", 0.0)]
    with pytest.raises(InputError, match="no document has the id 'a'"):
        index.get(["a"])
    second = tmp_path / "idx/gen-000002"
    assert (first / "vectors.npy").stat().st_ino == (second / "vectors.npy").stat().st_ino  # a link
    assert b"green\nred blue" not in (second / "docs.sqlite").read_bytes()
    with pytest.raises(InputError, match="no document has the id 'a'"):
        index.delete(["b", "a"])
    with pytest.raises(TypeError):
        index.delete("b")
    assert index.delete([]) == 0
    assert (index.generation, index.count()) == (2, 3)
    assert verify_index(tmp_path / "idx")["documents"] == 3
    index.add([Document("a", "gold red")], CountColours())  # the id is free again
    assert find_ids(index, "gold", 3) == "a d b"


def test_compact(index: FaissStore, tmp_path: Path) -> None:
    index.compact()
    assert index.generation == 1  # nothing to do
    index.delete(["a", "b"])
    index.add([Document("c", "blue")], CountColours(), upsert=True)
    before = index.search(count_colours("red", "blue", "gold green"), 10)
    assert index.info()["deleted"] == 4
    index.compact()
    assert (index.generation, index.info()["deleted"], index.info()["passages"], index.count()) == (4, 0, 3, 3)
    assert index.search(count_colours("red", "blue", "gold green"), 10) == before
    assert index.get(["d", "c"]) == [CORPUS[3], Document("c", "blue")]
    assert np.load(tmp_path / "idx/gen-000004/vectors.npy").shape == (3, 4)
    assert verify_index(tmp_path / "idx")["passages"] == 3
    index.delete(["d"])
    index.add([Document("h", "red")], CountColours())
    assert find_ids(index, "red") == "h c e"


def test_everything_deleted(index: FaissStore, tmp_path: Path) -> None:
    index.delete(list("abcde"))
    for _ in range(2):
        assert index.search(count_colours("red", "blue"), 10) == [[], []]
        assert (index.count(), index.info()["passages"]) == (0, 0)
        assert verify_index(tmp_path / "idx")["documents"] == 0
        index.compact()
    index.add(CORPUS[:1], CountColours())
    assert find(index, "red") == [("a", 1.0)]


def test_change_starts_from_what_serves(index: FaissStore, tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "idx") as other:
        other.delete(["a"])
        index.add([Document("f", "red")], CountColours())
        assert find_ids(index, "red") == "f b c d e"
        assert find_ids(other, "red") == "b c d e"


def test_auto_moves_to_another_kind_as_the_index_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transenc.search import vector_index

    monkeypatch.setattr(vector_index, "_HNSW_FROM", 20)
    with build(tmp_path / "idx", make_corpus(15)) as store:
        assert store.info()["kind"] == "exact"
        store.add(make_corpus(10, start=15), CountColours())
        assert store.info()["kind"] == "hnsw"
        assert as_content(make_corpus(25)) == read_content(tmp_path / "idx")


# ---- streaming


def test_documents_are_encoded_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BLOCK_DOCUMENTS", 10)
    alive: list[int] = []

    class Watch(CountColours):
        def __call__(self, documents: Sequence[Document]) -> Embedded:
            alive.append(sum(type(thing) is Document for thing in gc.get_objects()))
            return super().__call__(documents)

    gc.collect()
    before = sum(type(thing) is Document for thing in gc.get_objects())
    embed = Watch()
    stream = (Document(f"d{i}", f"red {i}") for i in range(95))
    FaissStore.build(tmp_path / "idx", stream, embed, encoder={}).close()
    assert [len(block) for block in embed.blocks] == [10] * 9 + [5]
    assert max(alive) - before <= 21  # this block, and perhaps the last one


def test_blocks_are_bounded_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = [Document(str(i), "x" * size) for i, size in enumerate([5, 5, 30, 1, 1, 1, 9])]
    monkeypatch.setattr(chunks, "BLOCK_CHARACTERS", 10)
    blocks = [[document.id for document in block] for block in chunks.split_blocks(corpus)]
    assert blocks == [["0", "1"], ["2"], ["3", "4", "5", "6"]]


def test_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "quiet", make_corpus(30), kind="hnsw").close()
    assert capsys.readouterr() == ("", "")
    build(tmp_path / "idx", make_corpus(30), kind="hnsw", progress=True).close()
    out, err = capsys.readouterr()
    assert out == ""
    for shown in ("read: 30 documents", "encode: 100%", "30/30"):
        assert shown in err


# ---- words


def test_words(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    corpus = [Document("b", "a cat"), Document("a", "a cat"), Document("c", "two dogs", title="Cat", metadata={"n": 1})]
    corpus += [Document(f"x{i}", f"number {i}") for i in range(40)]
    with build(tmp_path / "idx", corpus, lexical=True) as store:
        [cats, nothing] = store.search_text(["cat", "bird"], 10)
        assert [match.id for match in cats] == ["a", "b", "c"]  # c is longer
        assert cats[0].score == cats[1].score > cats[2].score > 0
        assert (cats[0].start, cats[0].end) == (-1, -1)
        assert nothing == []
        assert [match.id for match in store.search_text(["CAT"], 1)[0]] == ["a"]
        assert [match.id for match in store.search_text(["number"], 3)[0]] == ["x0", "x1", "x10"]
        assert [match.id for match in store.search_text(["cat"], 9, where=[parse_condition("n=1")])[0]] == ["c"]
        store.delete(["a"])
        assert [match.id for match in store.search_text(["cat"], 9)[0]] == ["b", "c"]
        store.add([Document("b", "fish"), Document("d", "cat")], CountColours(), upsert=True)
        assert [match.id for match in store.search_text(["cat"], 9)[0]] == ["d", "c"]
        store.compact()
        assert [match.id for match in store.search_text(["cat fish"], 9)[0]] == ["b", "d", "c"]
        for top_k in (0, "1"):
            with pytest.raises(InputError, match="top_k"):
                store.search_text(["cat"], top_k)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="queries: expected a sequence of str"):
            store.search_text("cat", 1)
        store.delete(list(read_content(tmp_path / "idx")))
        assert store.search_text(["cat"], 9) == [[]]


# ---- several threads


def test_every_answer_comes_from_one_generation(index: FaissStore) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                found = find_ids(index, "red", where=[parse_condition("year>=2019")])
                assert found in {"a b c d", "b c d", "b c d f"}, found
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            index.delete(["a"])
            index.add([Document("f", "gold", metadata={"year": 2023})], CountColours())
            index.delete(["f"])
            index.add(CORPUS[:1], CountColours())
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert index.generation == 21


def test_examples() -> None:
    for module in (faiss_store, snapshot):
        assert doctest.testmod(module).failed == 0


def test_forged_passages_are_found_by_verify(index: FaissStore, tmp_path: Path) -> None:
    folder = tmp_path / "idx/gen-000001"
    passages = np.load(folder / "passages.npy")
    passages[1, 2] = 13  # b has 12 characters
    np.save(folder / "passages.npy", passages)
    durable.seal_directory(folder, tmp_path / "sealed", facts=index.facts)
    (tmp_path / "sealed").rename(folder)
    with pytest.raises(StateError, match=r"passages.npy: row 1: expected a passage inside a document"):
        verify_index(tmp_path / "idx")
