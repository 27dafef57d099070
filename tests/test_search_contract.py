"""What every store promises, on a folder, on milvus-lite in this process and as a server, and on a real cluster.

The cluster is the one of $TRANSENC_MILVUS_URI, such as milvus://localhost:19530.
"""

from __future__ import annotations

import doctest
import fcntl
import importlib.util
import math
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_server import start_server
from search_scenario import FACTS, CountColours, HashText, count_colours, make_corpus

from transenc.corpus import Document
from transenc.errors import BusyError, InputError, StateError
from transenc.search import chunks, stores
from transenc.search.faiss_store import FaissStore
from transenc.search.milvus import client as milvus_client
from transenc.search.milvus import expressions as milvus_expressions
from transenc.search.milvus import hits as milvus_hits
from transenc.search.milvus import lock as milvus_lock
from transenc.search.milvus import milvus_store
from transenc.search.milvus import rows as milvus_rows
from transenc.search.milvus import staging as milvus_staging
from transenc.search.milvus import state as milvus_state
from transenc.search.milvus import view as milvus_view
from transenc.search.milvus.client import parse_place
from transenc.search.milvus.milvus_store import MilvusStore
from transenc.search.store import Condition, Embedded, Match, Passage, parse_condition
from transenc.search.stores import build_store, open_store

Store = FaissStore | MilvusStore

CORPUS = [
    Document("a", "red", metadata={"year": 2019, "lang": "en", "tags": ["x"]}),
    Document("b", "red red blue", metadata={"year": 2020, "lang": "de", "old": True}),
    Document("c", "green\nred blue", title="", metadata={"year": 2021, "lang": "en"}),
    Document("d", "gold", title="green", metadata={"year": 2022.5}),
    Document("e", "nothing"),
]

HAS_MILVUS = all(importlib.util.find_spec(name) for name in ("pymilvus", "milvus_lite"))
NEEDS_MILVUS = pytest.mark.skipif(not HAS_MILVUS, reason="pymilvus and milvus-lite (extra: milvus) are not installed")
CLUSTER = os.environ.get("TRANSENC_MILVUS_URI", "").rstrip("/")
NEEDS_CLUSTER = pytest.mark.skipif(not CLUSTER, reason="TRANSENC_MILVUS_URI names no cluster")
MILVUS = [
    pytest.param("embedded", marks=NEEDS_MILVUS),
    pytest.param("server", marks=NEEDS_MILVUS),
    pytest.param("cluster", marks=[NEEDS_MILVUS, NEEDS_CLUSTER]),
]


@dataclass
class Backend:
    """A place for one index of one test."""

    kind: str
    location: str

    def build(self, documents: Sequence[Document], embed: Any = None, **options: Any) -> Store:
        return build_store(self.location, iter(documents), embed or CountColours(), encoder=FACTS, **options)

    def open(self) -> Store:
        return open_store(self.location)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_server(tmp_path_factory.mktemp("milvus") / "data") as (address, _):
        yield address


@pytest.fixture(params=["faiss", *MILVUS])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    yield from make_backend(request, tmp_path, monkeypatch)


@pytest.fixture(params=MILVUS)
def milvus(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    yield from make_backend(request, tmp_path, monkeypatch)


def make_backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setattr(os, "fsync", os.fstat)  # spare the disk: no test here cuts the power
    if request.param == "faiss":
        yield Backend("faiss", str(tmp_path / "idx"))
        return
    if request.param == "embedded":
        yield Backend("embedded", str(tmp_path / "idx.db/papers"))
        return
    address = CLUSTER if request.param == "cluster" else request.getfixturevalue("server")
    backend = Backend(request.param, f"{address}/contract_{secrets.token_hex(6)}")
    yield backend
    drop_collections(backend)


def connect(backend: Backend) -> milvus_client.Connection:
    place = parse_place(backend.location)
    assert place is not None
    return milvus_client.Connection.open(place)


def list_names(backend: Backend) -> list[str]:
    """The collections of an index, without its name in front."""
    connection = connect(backend)
    name = connection.place.name
    found = sorted(one.removeprefix(name) for one in connection.call("list_collections") if one.startswith(name))
    connection.close()
    return found


def drop_collections(backend: Backend) -> None:
    connection = connect(backend)
    with suppress(StateError):
        connection.call("drop_alias", connection.place.name)
    for name in list_names(backend):
        connection.call("drop_collection", connection.place.name + name)
    connection.close()


@pytest.fixture
def index(backend: Backend) -> Iterator[Store]:
    with backend.build(CORPUS) as store:
        yield store


def find(store: Store, query: str, top_k: int = 10, **options: Any) -> list[tuple[str, float]]:
    [matches] = store.search(count_colours(query), top_k, **options)
    return [(match.id, match.score) for match in matches]


def find_ids(store: Store, query: str, top_k: int = 10, **options: Any) -> str:
    return " ".join(name for name, _ in find(store, query, top_k, **options))


# ---- searching


def test_best_passage_of_each_document(index: Store) -> None:
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
    # c's first line is green alone; d is (0, 1, 0, 1)
    assert find(index, "green", 2) == [("c", 1.0), ("d", 0.707107)]


def test_queries_of_any_length(index: Store) -> None:
    long = count_colours("red") * np.float32(1e30)
    assert index.search(long, 10) == index.search(count_colours("red"), 10)
    assert index.search(-count_colours("red"), 1)[0] == [Match("c", 0.0, 0, 5)]  # its green line
    assert index.search(count_colours("nothing"), 2)[0] == [Match("a", 0.0, 0, 3), Match("b", 0.0, 0, 12)]
    assert index.search(count_colours()[:0].reshape(0, 4), 10) == []


def test_top_k(index: Store) -> None:
    for top_k in (1, 2, 4, 5, 6, 1000, 16_384):
        assert find_ids(index, "red", top_k) == " ".join("abcde"[: min(top_k, 5)])
    refused: list[Any] = [0, -1, 1.5, "8", True, None, float("nan")]
    for wrong in refused:
        with pytest.raises(InputError, match="top_k: expected a whole number of 1 or more, found"):
            index.search(count_colours("red"), wrong)
    if isinstance(index, MilvusStore):
        for large in (16_385, 2**63):
            with pytest.raises(InputError, match=f"top_k: Milvus returns at most 16384 documents, found {large}"):
                index.search(count_colours("red"), large)


def test_queries_refused(index: Store) -> None:
    refused: list[tuple[Any, type[Exception]]] = [
        (np.ones((1, 3), np.float32), InputError),
        (np.ones((1, 4)), InputError),
        (np.full((1, 4), np.nan, np.float32), InputError),
        (np.ones(4, np.float32), InputError),
        ("red", TypeError),
        ([[1, 0, 0, 0]], TypeError),
    ]
    for queries, error in refused:
        with pytest.raises(error, match="queries"):
            index.search(queries, 1)


def test_where(index: Store) -> None:
    for where, expected in (
        (["year>=2020"], "b c d"),
        (["year>=2020", "lang=en"], "c"),
        (["year<2022.5"], "a b c"),
        (["year!=2020"], "a c d"),
        (["year = 2022.50"], "d"),
        (["lang!=en"], "b"),
        (["lang>de"], "a c"),
        (["old=true"], "b"),
        (["old!=true"], ""),
        (["year>3000"], ""),
    ):
        assert find_ids(index, "red", where=[parse_condition(text) for text in where]) == expected, where
    with pytest.raises(
        InputError, match="no document has a number or text as 'tags'; in their metadata are: 'lang', 'old', 'year'"
    ):
        find(index, "red", where=[parse_condition("tags=x")])  # a list cannot be filtered
    with pytest.raises(InputError, match="where: 'year' holds numbers, so expected one to compare with, found 'old'"):
        find(index, "red", where=[parse_condition("year=old")])
    for wrong in ("lang=en", ["lang=en"], parse_condition("lang=en")):
        with pytest.raises(TypeError, match="where: expected a sequence of Condition"):
            find(index, "red", where=wrong)


VALUES: list[Any] = [
    -(10**400), -1e300, -(2**63), -2.5, -1, -0.0, 0, 5e-324, 0.1, 1, 2**53, 2**53 + 1, float(2**53 + 2), 2**62 + 1,
    2**63 - 1, 2**64, 1e300, 10**400, "", "-1", "1", "10", "2", "abc", "ABC", "é", "\U0001f600", "a\0b",
    'x" or doc >= 0 or "',
]  # fmt: skip


def test_conditions_are_exact(backend: Backend) -> None:
    corpus = [Document(f"{i:02}", "red", metadata={"v": value, "w": i}) for i, value in enumerate(VALUES)]
    numbers = [i for i, value in enumerate(VALUES) if not isinstance(value, str)]

    def expect(test: Callable[[Any], bool], *, text: bool) -> str:
        return " ".join(f"{i:02}" for i, value in enumerate(VALUES) if isinstance(value, str) == text and test(value))

    with backend.build(corpus) as store:

        def ask(operator: str, value: str) -> str:
            return find_ids(store, "red", 100, where=[Condition("v", operator, value)])

        assert ask("=", "9007199254740993") == "11"  # 2**53 + 1, which is no float
        assert ask("=", "9007199254740992") == "10"
        assert ask("=", "0") == "05 06"
        assert ask("=", "x") == ""
        assert ask(">", "4611686018427387904").split()[:4] == ["13", "14", "15", "16"]  # 2**62
        assert ask("<", "abc") == expect(lambda value: value < "abc", text=True)
        assert ask(">=", "abc") == expect(lambda value: value >= "abc", text=True)
        assert ask("!=", "abc") == " ".join(f"{i:02}" for i in range(len(VALUES)) if VALUES[i] != "abc")
        assert ask(">=", "1e300").split()[:2] == ["16", "17"]
        for hostile in ('x" or doc >= 0 or "', "a\0b", "\U0001f600", ""):
            assert ask("=", hostile) == f"{VALUES.index(hostile):02}"
        assert ask("<", "1") == " ".join(
            f"{i:02}" for i, value in enumerate(VALUES) if (i in numbers and value < 1) or value in ("", "-1")
        )
        assert ask("=", "\ud800") == ""


def test_hostile_names_of_metadata(backend: Backend) -> None:
    keys = ['"] or doc >= 0 or fields["', "a b", "fields", "born", "é", "k" * 1000, "'", "\\", "\n", "1"]
    corpus = [Document(f"{i:02}", "red", metadata={key: i}) for i, key in enumerate(keys)]
    with backend.build(corpus) as store:
        for i, key in enumerate(keys):
            assert find_ids(store, "red", where=[Condition(key, "=", str(i))]) == f"{i:02}"
            assert find_ids(store, "red", where=[Condition(key, "!=", str(i))]) == ""
        with pytest.raises(InputError, match="no document has"):
            find(store, "red", where=[Condition('x" or doc >= 0 or "', "=", "1")])


def test_within(index: Store) -> None:
    assert find_ids(index, "red", within=["e", "c", "c"]) == "c e"
    assert find_ids(index, "red", within=[]) == ""
    assert find_ids(index, "red", within=["a", "d"], where=[parse_condition("year>2020")]) == "d"
    with pytest.raises(InputError, match="no document has the id 'z'"):
        find(index, "red", within=["a", "z"])
    with pytest.raises(TypeError, match="ids: expected a sequence of str, found str"):
        find(index, "red", within="a")


def test_ties_by_id(backend: Backend) -> None:
    ids = [f"{i:03}" for i in np.random.default_rng(0).permutation(120)]
    with backend.build([Document(name, "red\n" * (1 + int(name) % 3)) for name in ids]) as store:
        for top_k in (1, 7, 119, 120):
            assert find_ids(store, "red", top_k) == " ".join(sorted(ids)[:top_k])
            assert find_ids(store, "nothing", top_k) == " ".join(sorted(ids)[:top_k])


class Nearly:
    """Cosines to (1, 0) of 1 / sqrt(1 + x^2)."""

    fingerprint, dim = "nearly", 2

    def __call__(self, documents: Sequence[Document]) -> Embedded:
        vectors = [[1.0, float(document.text)] for document in documents]
        return Embedded([Passage(i, 0, 1) for i in range(len(documents))], np.array(vectors, np.float32))


def test_scores_that_differ_in_the_seventh_decimal_tie(backend: Backend) -> None:
    # 1, 1 - 1.25e-7, 1 - 5e-5
    corpus = [Document("z", "0.0"), Document("a", "0.0005"), Document("m", "0.01")]
    with backend.build(corpus, Nearly()) as store:
        query = np.array([[1, 0]], np.float32)
        assert store.search(query, 1) == [[Match("a", 1.0, 0, 1)]]
        found = [(match.id, match.score) for match in store.search(query, 3)[0]]
        assert found == [("a", 1.0), ("z", 1.0), ("m", 0.99995)]


def test_batches_do_not_matter_and_all_stores_agree(backend: Backend, tmp_path: Path) -> None:
    embed = HashText(32)
    corpus = [Document(f"d{i:04}", f"text {i % 250}", metadata={"n": i}) for i in range(300)]  # 50 repeated texts
    queries = np.array([embed.draw(f"query {i}") for i in range(15)] + [embed.draw("text 7")])
    with (
        backend.build(corpus, embed) as store,
        FaissStore.build(tmp_path / "exact", corpus, embed, encoder={}, kind="exact") as exact,
    ):
        every: list[dict[str, Any]] = [{}, {"where": [parse_condition("n<280")]}, {"within": ["d0001", "d0251"]}]
        for options in every:
            together = store.search(queries, 10, **options)
            assert together == exact.search(queries, 10, **options)
            for size in (1, 7):
                batches = (store.search(queries[i : i + size], 10, **options) for i in range(0, 16, size))
                assert [matches for batch in batches for matches in batch] == together
        assert [match.id for match in store.search(queries, 2)[15]] == ["d0007", "d0257"]


def test_many_passages_of_one_document(backend: Backend) -> None:
    corpus = [Document("long", "red\n" * 300 + "gold"), Document("a", "red gold"), Document("b", "gold")]
    with backend.build(corpus) as store:
        assert find(store, "red", 2) == [("long", 1.0), ("a", 0.707107)]
        assert find(store, "red", 3)[2] == ("b", 0.0)
        assert store.info()["passages"] == 303
        [matches] = store.search(count_colours("gold"), 1)
        assert matches == [Match("b", 1.0, 0, 4)]  # before "long", which ties


# ---- documents


def test_get(index: Store) -> None:
    assert index.get(["c", "a", "c"]) == [CORPUS[2], CORPUS[0], CORPUS[2]]
    assert index.get([]) == []
    with pytest.raises(InputError, match="no document has the id 'A'"):
        index.get(["a", "A"])
    with pytest.raises(InputError, match="no document has the id"):
        index.get(["\ud800"])
    with pytest.raises(TypeError, match=r"ids\[1\]: expected a str, found int"):
        index.get(["a", 1])  # type: ignore[list-item]
    assert index.count() == 5


def test_content_is_kept_exactly(backend: Backend) -> None:
    ids = ["1", "01", "1 ", "../x", "a\nb", "a\0b", "a", "x" * 10_000, "é", "e\u0301", "-1", "\x1b[31m", '"', "'", "\\"]
    ids += ["1] or doc in [0", "\U0001f600", "null", "%"]
    metadata = {"list": [1, {"x": None}], "nothing": None, "float": 1e-9, "big": 2**70, "text": "\0\n\"'\\", "é": True}
    text = "red \0\x1b \U0001f600 e\u0301 \u202e ' \" \\ " + "many words " * 20_000 + "x" * 200_000
    corpus = [Document(name, "red") for name in ids] + [Document("all", text, title="\0", metadata=metadata)]
    with backend.build(corpus, lexical=importlib.util.find_spec("bm25s") is not None) as store:
        assert [name for name, _ in find(store, "red", 100)] == sorted([*ids, "all"])
        assert store.get([*ids, "all"]) == corpus
        store.delete(["a\0b", "1"])
        assert {name for name, _ in find(store, "red", 100)} == {*ids, "all"} - {"a\0b", "1"}


# ---- changes


def test_build_replaces_all_content(backend: Backend) -> None:
    with backend.build(CORPUS) as first:
        with backend.build(CORPUS[:2]) as second:
            assert (second.generation, second.count(), find_ids(second, "red")) == (2, 2, "a b")
            assert (first.generation, find_ids(first, "red")) == (1, "a b c d e")  # pinned
            assert first.get(["e"]) == CORPUS[4:]
        with backend.build(CORPUS[1:3]) as third:
            assert (third.generation, find_ids(third, "red")) == (3, "b c")
    with backend.open() as store:
        assert (store.generation, find_ids(store, "red"), store.facts["encoder"]) == (3, "b c", FACTS)
    if backend.kind != "faiss":
        assert list_names(backend) == ["__gen000002", "__gen000002_documents", "__gen000003", "__gen000003_documents"]


def test_failed_build_changes_nothing(backend: Backend) -> None:
    class Broken(CountColours):
        def __call__(self, documents: Sequence[Document]) -> Embedded:
            raise RuntimeError("out of memory")

    with pytest.raises(InputError, match=r"expected .*index, found nothing"):
        backend.open()
    with backend.build(CORPUS) as store:
        with pytest.raises(RuntimeError, match="out of memory"):
            backend.build(CORPUS[:1], Broken())
        twice = [Document("x", "red", place="n.tsv:1"), Document("x", "red", place="n.tsv:2")]
        with pytest.raises(InputError, match=r"n.tsv:2: the id 'x' is that of document 1 of this input too"):
            backend.build(twice, Broken())
        with pytest.raises(InputError, match="expected at least one document, found none"):
            backend.build([], Broken())
        with pytest.raises(InputError, match=r"kind: expected auto.*found 'flat'"):
            backend.build(CORPUS, kind="flat")
        assert find_ids(store, "red") == "a b c d e"
    with backend.open() as store:
        assert (store.generation, store.get(list("abcde"))) == (1, CORPUS)
    if backend.kind != "faiss":
        assert list_names(backend) == ["__gen000001", "__gen000001_documents"]


def test_add(backend: Backend, index: Store) -> None:
    embed = CountColours()
    index.add([Document("A", "red gold"), Document("f", "blue\nred red blue", metadata={"year": 2020})], embed)
    assert embed.blocks == [["A", "f"]]
    assert (index.generation, index.count(), index.info()["passages"]) == (2, 7, 9)
    assert find(index, "red") == [
        ("a", 1.0), ("b", 0.894427), ("f", 0.894427), ("A", 0.707107), ("c", 0.707107), ("d", 0.0), ("e", 0.0),
    ]  # fmt: skip
    assert find_ids(index, "red", where=[parse_condition("year=2020")]) == "b f"


def test_add_refuses_before_encoding(index: Store) -> None:
    embed = CountColours()
    twice = [Document("x", "red", place="new.tsv:1"), Document("x", "blue", place="new.tsv:2")]
    known = [Document("x", "red", place="new.tsv:1"), Document("a", "blue", place="new.tsv:2")]
    for upsert in (False, True):
        with pytest.raises(InputError, match=r"new.tsv:2: the id 'x' is that of document 1 of this input too"):
            index.add(twice, embed, upsert=upsert)
        with pytest.raises(InputError, match="expected at least one document, found none"):
            index.add([], embed, upsert=upsert)
    with pytest.raises(InputError, match=r"new.tsv:2: the id 'a' is in the index already; upsert replaces"):
        index.add(known, embed)
    with pytest.raises(InputError, match="expected Unicode text, found the lone surrogate"):
        index.add([Document("y", "\ud800")], embed)
    with pytest.raises(InputError, match="metadata must be JSON"):
        index.add([Document("y", "red", metadata={"x": math.nan})], embed)
    with pytest.raises(TypeError, match="expected a Document, found str"):
        index.add(["y"], embed)  # type: ignore[list-item]
    assert embed.blocks == []
    assert (index.generation, index.count(), find_ids(index, "red")) == (1, 5, "a b c d e")


def test_upsert(backend: Backend, index: Store) -> None:
    embed = CountColours()
    index.add([Document("c", "gold"), Document("g", "gold gold")], embed, upsert=True)
    assert embed.blocks == [["c", "g"]]
    assert find(index, "gold", 4) == [("c", 1.0), ("g", 1.0), ("d", 0.707107), ("a", 0.0)]
    assert find_ids(index, "red", 3) == "a b c"
    assert (index.count(), index.info()["passages"]) == (6, 6)
    assert find_ids(index, "red", where=[parse_condition("lang=en")]) == "a"
    assert index.get(["c"]) == [Document("c", "gold")]
    with backend.open() as store:
        assert store.get(["c", "g"]) == [Document("c", "gold"), Document("g", "gold gold")]


def test_delete(index: Store) -> None:
    assert index.delete(["c", "a", "c"]) == 2
    assert (index.generation, index.count(), index.info()["passages"]) == (2, 3, 3)
    assert find(index, "red") == [("b", 0.894427), ("d", 0.0), ("e", 0.0)]
    for use in (index.get, index.delete):
        with pytest.raises(InputError, match="no document has the id 'a'; name one that is in the index"):
            use(["b", "a"])
    with pytest.raises(TypeError):
        index.delete("b")
    assert index.delete([]) == 0
    assert (index.generation, index.count()) == (2, 3)
    with pytest.raises(InputError, match="no document has a number or text as 'lang'"):
        index.delete(["b"])
        find(index, "red", where=[parse_condition("lang=en")])
    index.add([Document("a", "gold red")], CountColours())  # the id is free again
    assert find_ids(index, "gold", 3) == "a d e"


def test_everything_deleted(index: Store) -> None:
    index.delete(list("abcde"))
    assert index.search(count_colours("red", "blue"), 10) == [[], []]
    assert (index.count(), index.info()["passages"]) == (0, 0)
    index.add(CORPUS[:1], CountColours())
    assert find(index, "red") == [("a", 1.0)]


def test_change_starts_from_what_serves(backend: Backend, index: Store) -> None:
    with backend.open() as other:
        other.delete(["a"])
        index.add([Document("f", "red")], CountColours())
        assert find_ids(index, "red") == "f b c d e"
    with backend.build(CORPUS[:2]) as other:
        index.add([Document("f", "red")], CountColours())
        assert find_ids(index, "red") == "a f b"


def test_another_encoder_is_refused(index: Store) -> None:
    embed = CountColours()
    embed.fingerprint = "shades"
    with pytest.raises(StateError, match=r"fingerprint colours, 4 wide\), found shades, 4 wide"):
        index.add([Document("f", "red")], embed)
    with pytest.raises(StateError, match=r"4 wide\), found hash, 8 wide"):
        index.add([Document("f", "red")], HashText(8))
    assert embed.blocks == []
    assert index.count() == 5


def test_vectors_refused(index: Store) -> None:
    class Wrong(CountColours):
        vectors: Any = None

        def __call__(self, documents: Sequence[Document]) -> Embedded:
            return Embedded([Passage(0, 0, 1), Passage(1, 0, 1)], self.vectors)

    embed, nan = Wrong(), np.array([[1, 0, 0, 0], [math.nan, 0, 0, 0]], np.float32)
    for vectors, error, message in (
        (nan, StateError, "document 'y': .* NaN or infinity"),
        (np.ones((2, 3), np.float32), InputError, r"document 'x': expected vectors of float32 \[passages, 4\]"),
        (np.ones((2, 4)), InputError, r"document 'x': expected vectors of float32 \[passages, 4\], found float64"),
        (np.ones((1, 4), np.float32), InputError, "document 'x': expected one vector for each passage"),
    ):
        embed.vectors = vectors
        with pytest.raises(error, match=message):
            index.add([Document("x", "red"), Document("y", "red")], embed)
    assert (index.generation, index.count(), find_ids(index, "red")) == (1, 5, "a b c d e")


def test_closed(index: Store) -> None:
    index.close()
    index.close()
    for use in (lambda: index.search(count_colours("red"), 1), index.count, index.info, lambda: index.get(["a"])):
        with pytest.raises(InputError, match="the index was closed; open it again"):
            use()


def test_info(backend: Backend) -> None:
    with backend.build([*CORPUS, Document("f", "red blue ...")]) as store:
        info = store.info()
        assert list(info) == [
            "documents", "passages", "generation", "kind", "recall@10", "bytes", "deleted", "dim", "encoder", "lexical",
            "truncated",
        ]  # fmt: skip
        shown = (
            info["documents"],
            info["passages"],
            info["generation"],
            info["dim"],
            info["encoder"],
            info["truncated"],
        )
        assert shown == (6, 7, 1, 4, FACTS, 1)
        assert info["kind"] == ("exact" if backend.kind == "faiss" else "autoindex")
        assert (store.facts["metric"], store.facts["embedding"]) == ("cosine", "colours")


def test_documents_are_encoded_in_blocks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BLOCK_DOCUMENTS", 10)
    embed = CountColours()
    with backend.build(make_corpus(35), embed) as store:
        assert [len(block) for block in embed.blocks] == [10, 10, 10, 5]
        store.add(make_corpus(12, start=35), embed)
        assert [len(block) for block in embed.blocks[4:]] == [10, 2]
        assert len(find(store, "red blue", 100)) == store.count() == 47
        assert store.get(["d40"]) == make_corpus(1, start=40)


def test_every_answer_is_of_one_state(index: Store) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                found = find_ids(index, "red", where=[parse_condition("year>=2019")])
                assert found in {"a b c d", "b a c d", "b c d", "b c d f"}, found
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        index.delete(["a"])
        index.add([Document("f", "gold", metadata={"year": 2023})], CountColours())
        index.delete(["f"])
        index.add(CORPUS[:1], CountColours())
        index.add([Document("a", "red gold", metadata={"year": 2023})], CountColours(), upsert=True)
        index.add(CORPUS[:1], CountColours(), upsert=True)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert index.generation == 7


# ---- words


def test_words(backend: Backend) -> None:
    pytest.importorskip("bm25s")
    corpus = [Document("b", "a cat"), Document("a", "a cat"), Document("c", "two dogs", title="Cat", metadata={"n": 1})]
    corpus += [Document(f"x{i}", f"number {i}") for i in range(40)]
    with backend.build(corpus, lexical=True) as store:
        [cats, nothing, empty] = store.search_text(["cat", "bird", " ."], 10)
        assert [match.id for match in cats] == ["a", "b", "c"]  # c is longer
        assert cats[0].score == cats[1].score > cats[2].score > 0
        assert (cats[0].start, cats[0].end) == (-1, -1)
        assert nothing == empty == []
        assert [match.id for match in store.search_text(["CAT"], 1)[0]] == ["a"]
        assert [match.id for match in store.search_text(["number"], 3)[0]] == ["x0", "x1", "x10"]
        assert [match.id for match in store.search_text(["cat"], 9, where=[parse_condition("n=1")])[0]] == ["c"]
        assert store.search_text(["\ud800 \0"], 1) == [[]]
        store.delete(["a"])
        assert [match.id for match in store.search_text(["cat"], 9)[0]] == ["b", "c"]
        store.add([Document("b", "fish"), Document("d", "cat")], CountColours(), upsert=True)
        assert [match.id for match in store.search_text(["cat"], 9)[0]] == ["d", "c"]
        assert {match.id for match in store.search_text(["cat fish"], 9)[0]} == {"b", "d", "c"}
        with pytest.raises(InputError, match="top_k"):
            store.search_text(["cat"], 0)
        with pytest.raises(TypeError, match="queries: expected a sequence of str"):
            store.search_text("cat", 1)
        store.delete(["b", "c", "d", *(f"x{i}" for i in range(40))])
        assert store.search_text(["cat"], 9) == [[]]


def test_no_words(index: Store) -> None:
    with pytest.raises(InputError, match="the index has no words to search; build it again with --hybrid"):
        index.search_text(["red"], 1)


# ---- Milvus alone


def test_more_rows_than_the_server_returns(milvus: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_hits, "MOST_ROWS", 8)
    corpus = [Document("long", "red\n" * 30 + "gold"), *(Document(f"{i:02}", "red gold\n" * 2) for i in range(20))]
    with milvus.build([*corpus, Document("z", "gold")]) as store:
        for top_k in (1, 2, 5, 21, 22, 23):
            ids = ["long", *(f"{i:02}" for i in range(20)), "z"]
            assert find_ids(store, "red", top_k).split() == ids[:top_k]


@pytest.mark.parametrize("kind", ["auto", "hnsw"])
def test_kinds_once_rows_are_flushed(kind: str, milvus: Backend) -> None:
    embed = HashText()
    corpus = [Document(f"d{i}", f"text {i}") for i in range(200)]
    with milvus.build(corpus, embed, kind=kind) as store:
        assert isinstance(store, MilvusStore)
        connection = connect(milvus)
        for name in ("__gen000001", "__gen000001_documents"):
            connection.call("flush", connection.place.name + name, seconds=60)
            connection.call("load_collection", connection.place.name + name, seconds=60)
        connection.close()
        store.add([Document(f"e{i}", f"other {i}") for i in range(20)], embed)
        store.delete(["d7", "e8"])
        for name, text in (("d8", "text 8"), ("e9", "other 9")):
            assert store.search(embed.draw(text)[None], 1) == [[Match(name, 1.0, 0, len(text))]]
        assert len(store.search(embed.draw("x")[None], 1000)[0]) == store.count() == 218
        assert store.get(["d9"]) == [corpus[9]]
    with milvus.open() as store:
        assert store.search(embed.draw("text 8")[None], 1) == [[Match("d8", 1.0, 0, 6)]]
        with pytest.raises(InputError, match="no document has the id 'd7'"):
            store.get(["d7"])


def test_what_does_not_fit_is_refused_before_encoding(milvus: Backend) -> None:
    embed = CountColours()
    with pytest.raises(InputError, match=r"n.tsv:7: Milvus stores ids of at most 49149 bytes, found 80000"):
        milvus.build([Document("é" * 40_000, "red", place="n.tsv:7")], embed)
    with pytest.raises(InputError, match=r"documents\[1\]: the names and values of the metadata .* at most 65000"):
        milvus.build([CORPUS[0], Document("y", "red", metadata={"x": "y" * 40_000})], embed)
    with pytest.raises(InputError, match="Milvus stores vectors of 2 to 32768 numbers, found dim 1"):
        milvus.build(CORPUS, HashText(1))
    with pytest.raises(InputError, match="kind: expected auto or hnsw for an index in Milvus, found 'ivfpq'"):
        milvus.build(CORPUS, kind="ivfpq")
    for encoder, error in (({"x": math.nan}, InputError), ("name", TypeError)):
        with pytest.raises(error, match="encoder: expected"):
            MilvusStore.build(milvus.location, CORPUS, embed, encoder=encoder)  # type: ignore[arg-type]
    assert embed.blocks == []
    assert list_names(milvus) == []


DIE = """
import os, sys
sys.path.insert(0, sys.argv[3])
from search_scenario import CountColours, make_corpus
from transenc.search import chunks
from transenc.search.milvus import changes as milvus_changes
from transenc.search.stores import build_store, open_store
chunks.BLOCK_DOCUMENTS = 10

class Dies(CountColours):
    def __call__(self, documents):
        if len(self.blocks) == 2:
            os._exit(9)
        return super().__call__(documents)

place, step = sys.argv[1:3]
if step == "build":
    build_store(place, make_corpus(50), Dies(), encoder={})
store = open_store(place)
if step == "add":
    store.add(make_corpus(50), Dies())
milvus_changes._remove = lambda *_: os._exit(9)
store.add(make_corpus(20) + store.get(["a"]), CountColours(), upsert=True)
"""


@NEEDS_MILVUS
def test_killed_writers_change_nothing_that_is_seen(server: str) -> None:
    steps = ("build", "add", "remove")
    places = {step: Backend("server", f"{server}/killed_{step}") for step in steps}
    for backend in places.values():
        backend.build(CORPUS).close()
    arguments = [sys.executable, "-c", DIE]
    children = [
        subprocess.Popen([*arguments, places[step].location, step, os.path.dirname(__file__)]) for step in steps
    ]
    assert [child.wait(120) for child in children] == [9, 9, 9]
    for step in ("build", "add"):
        with places[step].open() as store:
            assert (store.generation, store.count(), find_ids(store, "red")) == (1, 5, "a b c d e")
            assert store.get(list("abcde")) == CORPUS
    assert list_names(places["build"]) == [
        "__gen000001", "__gen000001_documents", "__gen000002", "__gen000002_documents", "__writer",
    ]  # fmt: skip
    with places["remove"].open() as store:  # it was told that all is done, but for the old rows of a
        assert (store.generation, store.count(), len(find(store, "red gold", 100))) == (2, 25, 25)
        assert store.facts["removing"] is True
        store.delete(["a"])
        assert (store.facts["removing"], store.count(), len(find(store, "red gold", 100))) == (False, 24, 24)
        with pytest.raises(InputError, match="no document has the id 'a'"):
            store.get(["a"])
    with places["add"].open() as store:
        store.add([Document("d3", "red")], CountColours())  # its number is taken by a row that is left
        assert (store.generation, store.count(), find_ids(store, "red", 3)) == (2, 6, "a d3 b")
    with places["build"].build(CORPUS[:2]) as store:
        assert find_ids(store, "red") == "a b"
    assert list_names(places["build"]) == [
        "__gen000001", "__gen000001_documents", "__gen000003", "__gen000003_documents",
    ]  # fmt: skip
    for backend in places.values():
        drop_collections(backend)


def test_one_writer_at_a_time(milvus: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meddles(CountColours):
        def __call__(self, documents: Sequence[Document]) -> Embedded:
            with milvus.open() as other, pytest.raises(BusyError, match=rf"process {os.getpid()} on .* is changing"):
                other.delete(["a"])
            return super().__call__(documents)

    with milvus.build(CORPUS) as store:
        store.add([Document("f", "red")], Meddles())
        assert find_ids(store, "red") == "a f b c d e"

        class TakesOver(CountColours):
            def __call__(self, documents: Sequence[Document]) -> Embedded:
                monkeypatch.setattr(milvus_lock, "_STALE_AFTER", -1.0)
                with milvus.open() as other:
                    other.delete(["f"])
                monkeypatch.undo()
                return super().__call__(documents)

        with pytest.raises(StateError, match="another process took over changing this index; start again"):
            store.add([Document("g", "red")], TakesOver())
        assert find_ids(store, "red") == "a b c d e"
        store.add([Document("h", "red")], CountColours())
        assert find_ids(store, "red") == "a h b c d e"


def test_name_that_is_taken(milvus: Backend) -> None:
    connection = connect_to_new(milvus)
    name = connection.place.name
    connection.call("create_collection", f"{name}_other", dimension=4)
    connection.call("create_alias", f"{name}_other", name)
    for use in (milvus.open, lambda: milvus.build(CORPUS)):
        with pytest.raises(InputError, match=r"an alias of this name leads to .*_other, which is no index"):
            use()
    connection.call("drop_alias", name)
    connection.call("create_collection", name, dimension=4)
    for use in (milvus.open, lambda: milvus.build(CORPUS)):
        with pytest.raises(InputError, match="there is a collection of this name that is no index"):
            use()
    connection.close()


def connect_to_new(backend: Backend) -> milvus_client.Connection:
    place = parse_place(backend.location)
    assert place is not None
    return milvus_client.Connection.open(place, create=True)


def test_removed_under_a_reader(milvus: Backend) -> None:
    with milvus.build(CORPUS) as first:
        assert isinstance(first, MilvusStore)
        assert first.is_current()
        milvus.build(CORPUS).close()
        assert not first.is_current()
        assert find_ids(first, "red") == "a b c d e"
        milvus.build(CORPUS).close()
        with pytest.raises(StateError, match="newer builds have replaced what was opened; open it again"):
            find(first, "red")
        first.add([Document("f", "red")], CountColours())
        assert (first.generation, find_ids(first, "red")) == (4, "a f b c d e")


# ---- places


@pytest.mark.parametrize(
    ("text", "name", "address", "folder"),
    [
        ("milvus://localhost:19530/papers", "papers", "http://localhost:19530", None),
        ("milvus://host-1.example.org/a_b", "a_b", "http://host-1.example.org:19530", None),
        ("milvus+tls://10.0.0.1:443/p", "p", "https://10.0.0.1:443", None),
        ("data/x.db", "transenc", "", Path("data/x.db")),
        ("data/x.db/papers", "papers", "", Path("data/x.db")),
        ("/x.db/", "transenc", "", Path("/x.db")),
    ],
)
def test_places(text: str, name: str, address: str, folder: Path | None) -> None:
    place = parse_place(text)
    assert place is not None
    assert (place.name, place.address, place.folder, str(place)) == (name, address, folder, text)


@pytest.mark.parametrize("text", ["idx", "./idx", "/a/b", "x.db.idx", "x.database", "a.db/b/c", ".db", Path("idx")])
def test_folders_are_no_milvus(text: str | Path) -> None:
    assert parse_place(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "milvus://", "milvus://host:19530", "milvus://host:19530/", "milvus://:19530/x", "milvus://host:x/x",
        "milvus://host:99999/x", "milvus://host/a/b", "milvus://host/a-b", "milvus://host/1", "milvus://host/a__b",
        "milvus://host/x?y=1", "milvus://host/x#y", "milvus:host", "Milvus://host/x", "http://host:19530/x",
        "tcp://host/x", "x.db/a b", "x.db/a__gen000001", f"x.db/{'n' * 201}", "milvus://ho st/x", "milvus:/host/x",
        "x.db/n\n",
    ],
)  # fmt: skip
def test_malformed_places(text: str) -> None:
    for use in (open_store, lambda place: build_store(place, CORPUS, CountColours(), encoder={})):
        with pytest.raises(InputError, match=r"milvus://localhost:19530/name of a server, or folder.db"):
            use(text)


def test_credentials_do_not_belong_in_the_address() -> None:
    with pytest.raises(InputError, match="put them into the variable TRANSENC_MILVUS_TOKEN") as caught:
        open_store("milvus://root:secret@host:19530/x")
    assert "secret" not in str(caught.value)


@NEEDS_MILVUS
def test_places_without_an_index(tmp_path: Path, server: str) -> None:
    with pytest.raises(InputError, match=r"x.db: expected an embedded index, found nothing; build one there first"):
        open_store(tmp_path / "x.db")
    assert not (tmp_path / "x.db").exists()
    (tmp_path / "file.db").write_text("SQLite format 3")
    (tmp_path / "other.db").mkdir()
    (tmp_path / "other.db/notes.txt").touch()
    for name in ("file.db", "other.db"):
        for use in (open_store, lambda place: build_store(place, CORPUS, CountColours(), encoder={})):
            with pytest.raises(InputError, match=r"expected the folder of|not empty and not an index of milvus-lite"):
                use(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file.db", "notes.txt", "other.db"]
    with pytest.raises(InputError, match="expected an index, found nothing; build one there first"):
        open_store(f"{server}/unknown")
    with pytest.raises(InputError, match="'idx': not an index in Milvus; expected milvus://"):
        MilvusStore.open("idx")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InputError, match=r"needs the extra `milvus`: pip install 'transenc\[milvus\]'"):
        open_store("milvus://127.0.0.1:1/x")


def test_modules_load_no_pymilvus() -> None:
    code = "import sys, transenc.search.stores, transenc.search.milvus.milvus_store; print('pymilvus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# ---- the connection


@NEEDS_MILVUS
def test_embedded_folder_is_one_process_s(tmp_path: Path) -> None:
    with start_server(tmp_path / "x.db") as (address, process):
        build_store(f"{address}/transenc", CORPUS, CountColours(), encoder={}).close()
        with pytest.raises(BusyError, match=r"x.db: another process has this embedded index open"):
            open_store(tmp_path / "x.db")
        process.kill()
        process.wait()
    with open_store(tmp_path / "x.db") as store, open_store(tmp_path / "x.db/transenc") as other:
        assert find_ids(store, "red") == find_ids(other, "red") == "a b c d e"
        store.close()
        assert other.count() == 5
    with open(tmp_path / "x.db/LOCK") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was let go


@NEEDS_MILVUS
def test_nothing_answers(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"no Milvus server answers at 127.0.0.1:1; check the address, and that it"):
        open_store("milvus://127.0.0.1:1/x")
    with pytest.raises(InputError, match=r"no Milvus server answers at no-such-host.invalid:19530"):
        open_store("milvus://no-such-host.invalid/x")
    assert capfd.readouterr() == ("", "")


@NEEDS_MILVUS
def test_server_that_hangs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(milvus_client, "CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no Milvus server answers at {address}"):
            open_store(f"milvus://{address}/x")
    assert capfd.readouterr() == ("", "")


@NEEDS_MILVUS
def test_lost_connection(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_server(tmp_path / "data") as (address, process):
        store = build_store(f"{address}/x", CORPUS, CountColours(), encoder={})
        capfd.readouterr()
        process.kill()
        process.wait()
        for use in (lambda: find(store, "red"), lambda: store.delete(["a"]), store.count):
            with pytest.raises(
                StateError, match=r"/x: Milvus does not answer \(\w+\); see that it runs, and try again"
            ):
                use()
        store.close()
    assert capfd.readouterr() == ("", "")


@NEEDS_MILVUS
def test_refused_credentials(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import grpc

    seen: list[Any] = []

    class Refuses(grpc.GenericRpcHandler):
        def service(self, call: Any) -> Any:
            seen.append(dict(call.invocation_metadata).get("authorization"))

            def refuse(request: Any, context: Any) -> None:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure for s3cret")

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=(Refuses(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("TRANSENC_MILVUS_TOKEN", "root:s3cret")
    with pytest.raises(InputError, match="refuses the credentials; set TRANSENC_MILVUS_TOKEN to user:pass") as caught:
        open_store(f"milvus://127.0.0.1:{port}/x")
    server.stop(0).wait()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert set(seen) == {"cm9vdDpzM2NyZXQ="}  # root:s3cret
    assert capfd.readouterr() == ("", "")


def test_examples() -> None:
    modules = (
        milvus_client,
        milvus_expressions,
        milvus_rows,
        milvus_staging,
        milvus_state,
        milvus_store,
        milvus_view,
        stores,
    )
    for module in (*modules, milvus_hits, milvus_lock):
        assert doctest.testmod(module).failed == 0
