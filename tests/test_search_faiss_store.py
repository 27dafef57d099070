"""A folder as a store, beside the contract (test_search_contract.py): its files, what every change leaves there."""

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
from transenc.search.store import Embedded, Match, parse_condition

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


def find_ids(store: FaissStore, query: str, top_k: int = 10, **options: Any) -> str:
    [matches] = store.search(count_colours(query), top_k, **options)
    return " ".join(match.id for match in matches)


# ---- searching


@pytest.mark.parametrize("top_k", [10**9, 2**31, 2**63])
def test_more_than_there_are(top_k: int, index: FaissStore) -> None:
    assert find_ids(index, "red", top_k) == "a b c d e"


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


def test_the_generation_before_the_last_goes(index: FaissStore, tmp_path: Path) -> None:
    for documents in (CORPUS[:2], CORPUS[1:3]):
        build(tmp_path / "idx", documents).close()
    names = {path.name for path in (tmp_path / "idx").iterdir()}
    assert names == {"CURRENT", "lock", "gen-000002", "gen-000003"}
    assert find_ids(index, "red", where=[parse_condition("year>=2020")]) == "b c d"  # although its folder is deleted
    assert index.get(["e"]) == CORPUS[4:]


def test_a_refused_change_leaves_every_file(index: FaissStore, tmp_path: Path) -> None:
    before = snapshot_tree(tmp_path / "idx")
    for ids in ("xx", "xa"):
        with pytest.raises(InputError, match=r"the id '[xa]' is"):
            index.add([Document(name, "red") for name in ids], CountColours())
    assert snapshot_tree(tmp_path / "idx") == before


def test_replaced_passages_are_counted(index: FaissStore, tmp_path: Path) -> None:
    index.add([Document("c", "gold"), Document("g", "gold gold")], CountColours(), upsert=True)
    assert (index.count(), index.info()["passages"], index.info()["deleted"]) == (6, 6, 2)
    assert verify_index(tmp_path / "idx")["deleted"] == 2


def test_deleted_content_is_gone_and_vectors_are_not_copied(index: FaissStore, tmp_path: Path) -> None:
    index.delete(["c", "a"])
    assert index.info()["deleted"] == 3
    first, second = (tmp_path / f"idx/gen-00000{number}" for number in (1, 2))
    assert (first / "vectors.npy").stat().st_ino == (second / "vectors.npy").stat().st_ino  # a link
    assert b"green\nred blue" not in (second / "docs.sqlite").read_bytes()
    assert verify_index(tmp_path / "idx")["documents"] == 3


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


def test_compact_after_everything_was_deleted(index: FaissStore, tmp_path: Path) -> None:
    index.delete(list("abcde"))
    index.compact()
    assert index.search(count_colours("red", "blue"), 10) == [[], []]
    assert (index.count(), index.info()["passages"]) == (0, 0)
    assert verify_index(tmp_path / "idx")["documents"] == 0
    index.add(CORPUS[:1], CountColours())
    assert find_ids(index, "red") == "a"


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


def test_words_of_a_compacted_index(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    corpus = [Document("b", "a cat"), Document("c", "two dogs", title="Cat"), *make_corpus(40)]
    with build(tmp_path / "idx", corpus, lexical=True) as store:
        store.add([Document("b", "fish"), Document("d", "cat")], CountColours(), upsert=True)
        store.compact()
        assert [match.id for match in store.search_text(["cat fish"], 9)[0]] == ["b", "d", "c"]
        with pytest.raises(InputError, match="top_k"):
            store.search_text(["cat"], "1")  # type: ignore[arg-type]
        store.delete(list(read_content(tmp_path / "idx")))
        assert store.search_text(["cat"], 9) == [[]]


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


# ---- readers beside writers


def test_a_reader_keeps_its_generation(index: FaissStore, tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "idx") as other:
        other.delete(["a"])
        index.add([Document("f", "red")], CountColours())
        assert find_ids(index, "red") == "f b c d e"
        assert find_ids(other, "red") == "b c d e"


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
