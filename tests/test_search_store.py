"""The seam of search: conditions, arguments and vectors; and the table of documents behind it."""

from __future__ import annotations

import doctest
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.search import assembly, chunks, documents, generations, store
from transenc.search.documents import DocumentTable
from transenc.search.store import (
    Condition,
    check_ids,
    check_queries,
    check_top_k,
    find_not_finite,
    normalize_rows,
    parse_condition,
)

# ---- conditions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lang=en", ("lang", "=", "en")),
        ("lang!=en", ("lang", "!=", "en")),
        ("year>2020", ("year", ">", "2020")),
        ("year>=2020", ("year", ">=", "2020")),
        ("year<2020", ("year", "<", "2020")),
        ("year <= 2020 ", ("year", "<=", "2020")),
        ("equation=a>=b", ("equation", "=", "a>=b")),
        ("lang=", ("lang", "=", "")),
        ("a b=c d", ("a b", "=", "c d")),
        ("ключ=значение", ("ключ", "=", "значение")),
        ("a!b=c", ("a!b", "=", "c")),
    ],
)
def test_parse_condition(text: str, expected: tuple[str, str, str]) -> None:
    assert parse_condition(text) == Condition(*expected)


@pytest.mark.parametrize("text", ["", "lang", "=en", "  >= 3", "lang~en", "!"])
def test_parse_condition_refuses(text: str) -> None:
    with pytest.raises(InputError, match="expected a key, one of = != > >= < <= and a value, such as year>=2020"):
        parse_condition(text)


def test_condition_refuses() -> None:
    with pytest.raises(InputError, match="condition 'year~2020': expected a key and one of"):
        Condition("year", "~", "2020")
    with pytest.raises(InputError, match="expected a key"):
        Condition("", "=", "2020")
    with pytest.raises(TypeError, match="expected a str as value, found int"):
        Condition("year", "=", 2020)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="found Condition"):
        parse_condition(Condition("year", "=", "2020"))  # type: ignore[arg-type]


# ---- arguments


@pytest.mark.parametrize("value", [1, 8, 2**31, 10**9, np.int64(3)])
def test_top_k(value: Any) -> None:
    assert check_top_k(value) == value
    assert type(check_top_k(value)) is int


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "8", True, None, [1]])
def test_top_k_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"top_k: expected a whole number of 1 or more, found"):
        check_top_k(value)
    with pytest.raises(InputError, match="candidates: expected"):
        check_top_k(value, "candidates")


def test_ids() -> None:
    assert check_ids(iter(["b", "a"])) == ["b", "a"]
    for value, found in (("a", "found str"), (None, "found NoneType"), (["a", 1], r"ids\[1\]: expected a str")):
        with pytest.raises(TypeError, match=found):
            check_ids(value)


def test_queries() -> None:
    checked = check_queries(np.array([[3, 4, 0], [0, 0, 0]], dtype=np.float32), 3)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked, np.array([[0.6, 0.8, 0], [0, 0, 0]], dtype=np.float32))


@pytest.mark.parametrize(
    ("queries", "error", "found"),
    [
        ([[1.0, 0.0]], TypeError, "found list"),
        (np.ones((1, 2)), InputError, r"found float64 \[1, 2\]"),
        (np.ones((1, 3), dtype=np.float32), InputError, r"found float32 \[1, 3\]"),
        (np.ones(2, dtype=np.float32), InputError, r"found float32 \[2\]"),
        (np.array([[1, 0], [1, np.nan]], dtype=np.float32), InputError, r"queries\[1\]: expected finite"),
        (np.array([[1, 0], [-np.inf, 0]], dtype=np.float32), InputError, r"queries\[1\]: expected finite"),
    ],
)
def test_queries_refused(queries: Any, error: type[Exception], found: str) -> None:
    with pytest.raises(error, match=found):
        check_queries(queries, 2)


def test_vectors_at_the_ends_of_float32() -> None:
    vectors = np.array([[3e38, 3e38], [1e-45, 0], [-1e-30, 0], [0, 0]], dtype=np.float32)
    root = np.float32(np.sqrt(0.5))
    np.testing.assert_array_equal(normalize_rows(vectors), [[root, root], [1, 0], [-1, 0], [0, 0]])
    assert find_not_finite(vectors) is None


def test_length_does_not_depend_on_the_batch() -> None:
    vectors = np.random.default_rng(0).standard_normal((64, 384), dtype=np.float32)
    together = normalize_rows(vectors)
    for row in range(64):
        np.testing.assert_array_equal(normalize_rows(vectors[row : row + 1]), together[row : row + 1])


# ---- documents

TEXTS = ["", "\0", "a\0b", "line\nline\r\n", "\x1b[31m", "\U0001f642", "\U0001f469\u200d\U0001f467", "\u05e9\u05dc"]
TEXTS += ["e" + "\u0301" * 10_000, "\ufeff", "\u2028", "'';--"]
IDS = ["1", "01", " 1", "1 ", "../x", "a\nb", "a\0b", "a", "x" * 10_000, "'; DROP TABLE documents; --", "é", "e\u0301"]


def write_table(path: Path, corpus: list[Document], **options: Any) -> DocumentTable:
    table = DocumentTable.create(path / "docs.sqlite")
    table.append(corpus, **options)
    table.finish()
    return DocumentTable.open(path / "docs.sqlite")


def test_text_is_kept_exactly(tmp_path: Path) -> None:
    metadata = {"name": "a\0b", "nested": {"x": [1, None, 2.5, "é"]}, "none": None, "big": 10**400, "flag": True, "": 0}
    corpus = [Document(f"t{i}", text, title=text, metadata=metadata) for i, text in enumerate(TEXTS)]
    corpus += [Document(value, "text") for value in IDS]
    table = write_table(tmp_path, corpus)
    assert table.count() == len(corpus) == table.last + 1
    assert table.get([document.id for document in corpus]) == corpus
    assert [document for _, document in table.read()] == corpus
    assert [number for number, _ in table.read(first=22)] == [22, 23]
    assert [table.name(number) for number in table.find(IDS)] == IDS
    table.check()
    assert [path.name for path in tmp_path.iterdir()] == ["docs.sqlite"]


def test_unknown_ids(tmp_path: Path) -> None:
    table = write_table(tmp_path, [Document("a\0b", "text")])
    for value in ("a", "a\0", "A\0B", "", "\ud800"):
        with pytest.raises(InputError, match="no document has the id"):
            table.get([value])


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (Document("b", "text", place="docs.tsv:3"), InputError, "docs.tsv:3: the id 'b' is that of document 1 of"),
        (Document("", "text", place="docs.tsv:3"), InputError, "docs.tsv:3: expected an id"),
        (Document("c", "a\ud800", place="docs.tsv:3"), InputError, r"docs.tsv:3: .*lone surrogate '\\ud800'"),
        (Document("c\udfff", "a", place="docs.tsv:3"), InputError, "docs.tsv:3: .*lone surrogate"),
        (Document("c", "a", metadata={"x": "\ud800"}, place="p:3"), InputError, "p:3: .*lone surrogate"),
        (Document("c", "a", metadata={"\ud800": 1}, place="p:3"), InputError, "p:3: .*lone surrogate"),
        (Document("c", "a", metadata={"x": float("nan")}), InputError, r"documents\[1\]: metadata must be JSON"),
        (Document("c", "a", metadata={"x": {1, 2}}), InputError, r"documents\[1\]: metadata must be JSON"),
        (Document("c", "a", metadata={1: 2}), TypeError, r"documents\[1\]: expected a str as key"),  # type: ignore[dict-item]
        (Document(1, "a"), TypeError, r"documents\[1\]: expected a str as id, found int"),  # type: ignore[arg-type]
        (Document("c", None), TypeError, r"documents\[1\]: expected a str as text"),  # type: ignore[arg-type]
        (Document("c", "", title=b"x"), TypeError, r"documents\[1\]: expected a str as title"),  # type: ignore[arg-type]
        (("c", "text"), TypeError, r"documents\[1\]: expected a Document, found tuple"),
    ],
)
def test_documents_refused(document: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    table = DocumentTable.create(tmp_path / "docs.sqlite")
    with pytest.raises(error, match=message) as raised:
        table.append([Document("b", "text"), document])
    assert "\n" not in str(raised.value)
    table.close()


def test_document_too_large_for_the_table(tmp_path: Path) -> None:
    table = DocumentTable.create(tmp_path / "docs.sqlite")
    table._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)  # a gigabyte otherwise
    with pytest.raises(InputError, match=r"p:2: more than 1,000,000,000 bytes in one document; split it"):
        table.append([Document("a", "x" * 900, place="p:1"), Document("b", "x" * 1001, place="p:2")])
    table.close()


def test_upsert(tmp_path: Path) -> None:
    corpus = [Document(name, f"old {name}", metadata={"old": name}) for name in "abc"]
    write_table(tmp_path, corpus).close()
    new = [Document("b", "new b"), Document("d", "new d")]
    table = DocumentTable.edit(tmp_path / "docs.sqlite")
    with pytest.raises(InputError, match=r"documents\[0\]: the id 'b' is in the index already; upsert replaces"):
        table.append(new)
    assert table.append(new, upsert=True) == [1]
    with pytest.raises(InputError, match=r"documents\[1\]: the id 'x' is that of document 1 of this input too"):
        table.append([Document("x", ""), Document("x", "")], upsert=True)
    table.remove([4, 5])
    table.finish()
    table = DocumentTable.open(tmp_path / "docs.sqlite")
    assert [(number, document.text) for number, document in table.read()] == [(0, "old a"), (2, "old c"), (3, "new b")]
    with pytest.raises(InputError):
        table.get(["d"])
    assert table.select([Condition("old", "!=", "")]).tolist() == [0, 2]


def test_deleted_text_is_gone(tmp_path: Path) -> None:
    write_table(tmp_path, [Document("a", "secret " * 2000), Document("b", "kept")]).close()
    table = DocumentTable.edit(tmp_path / "docs.sqlite")
    table.remove([0])
    table.finish()
    assert b"secret" not in (tmp_path / "docs.sqlite").read_bytes()
    table = DocumentTable.open(tmp_path / "docs.sqlite")
    table.copy(tmp_path / "copy.sqlite")
    assert (tmp_path / "copy.sqlite").stat().st_size < (tmp_path / "docs.sqlite").stat().st_size
    assert DocumentTable.open(tmp_path / "copy.sqlite").get(["b"]) == [Document("b", "kept")]


def test_no_documents(tmp_path: Path) -> None:
    table = DocumentTable.create(tmp_path / "docs.sqlite")
    with pytest.raises(InputError, match="corpus: expected at least one document, found none"):
        table.append([])
    table.finish()
    table = DocumentTable.open(tmp_path / "docs.sqlite")
    assert (table.count(), table.last, list(table.read())) == (0, -1, [])


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    alive = []

    def generate() -> Iterator[Document]:
        for i in range(50):
            metadata = Counted(number=i)
            alive.append(Counted.alive)
            yield Document(str(i), "text", metadata=metadata)
            del metadata

    class Counted(dict[str, int]):
        alive = 0

        def __init__(self, **items: int) -> None:
            super().__init__(**items)
            Counted.alive += 1

        def __del__(self) -> None:
            Counted.alive -= 1

    write_table(tmp_path, generate())  # type: ignore[arg-type]
    assert len(alive) == 50
    assert max(alive) <= 3


# ---- filters

VALUES: dict[str, Any] = {
    "n1": 1, "n2": 2, "half": 2.5, "minus": -3, "big": 2**63, "huge": 10**400, "exact": 2**53 + 1,
    "t1": "1", "ta": "a", "tb": "b", "empty": "", "tz": "z\0z", "yes": True, "no": False, "null": None, "list": [1],
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> DocumentTable:
    corpus = [Document(name, "text", metadata={"x": value, "y": i}) for i, (name, value) in enumerate(VALUES.items())]
    return write_table(tmp_path_factory.mktemp("mixed"), [*corpus, Document("bare", "text")])


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("x=1", "n1 t1"),
        ("x=1.0", "n1"),  # as a text it is another one
        ("x=+1", "n1"),
        ("x=01", "n1"),
        ("x=1e0", "n1"),
        ("x>1", "n2 half big huge exact ta tb tz yes no"),  # as texts, letters come after digits
        ("x>=2.5", "half big huge exact ta tb tz yes no"),
        ("x<2", "n1 minus t1 empty"),
        ("x<=-3", "minus empty"),  # every number sign comes after the empty text, '1' after '-'
        ("x=9007199254740993", "exact"),
        ("x=9007199254740992", ""),
        ("x=9223372036854775808", "big"),
        ("x>=1e308", "huge ta tb tz yes no"),
        ("x=a", "ta"),
        ("x!=a", "n1 n2 half minus big huge exact t1 tb empty tz yes no"),
        ("x>=b", "tb tz yes no"),
        ("x<a", "t1 empty"),
        ("x=", "empty"),
        ("x=true", "yes"),
        ("x=false", "no"),
        ("x=True", ""),
        ("x=null", ""),
        ("x=nan", ""),
        ("x=[1]", ""),
        ("y<2", "n1 n2"),
        ("y!=0", " ".join(list(VALUES)[1:])),
    ],
)
def test_select(condition: str, expected: str, mixed: DocumentTable) -> None:
    found = [mixed.name(number) for number in mixed.select([parse_condition(condition)])]
    assert found == expected.split()


def test_select_values_that_a_shell_cannot_pass(mixed: DocumentTable) -> None:
    assert mixed.select([Condition("x", "=", "z\0z")]).tolist() == [list(VALUES).index("tz")]
    assert mixed.select([Condition("x", "=", "z")]).tolist() == []
    assert mixed.select([Condition("x", "=", "\ud800")]).tolist() == []
    assert mixed.select([Condition("x", "=", "' OR 1=1 --")]).tolist() == []


def test_several_conditions(mixed: DocumentTable) -> None:
    conditions = [parse_condition(text) for text in ("x>=1", "x<b", "y<3", "y!=1")]
    assert [mixed.name(number) for number in mixed.select(conditions)] == []  # n1: x<b holds for texts only
    conditions = [parse_condition(text) for text in ("x>=1", "x<3", "y<3", "y!=1")]
    assert [mixed.name(number) for number in mixed.select(conditions)] == ["n1", "half"]
    with pytest.raises(InputError, match="at least one condition"):
        mixed.select([])


@pytest.mark.parametrize("key", ["X", "z", "x ", "\ud800", "' OR ''='"])
def test_unknown_key(key: str, mixed: DocumentTable) -> None:
    expected = r"where: no document has a number or text as .*; in their metadata are: 'x', 'y'$"
    with pytest.raises(InputError, match=expected):
        mixed.select([Condition(key, "=", "1")])


@pytest.mark.parametrize("operator", store.OPERATORS)
def test_value_that_is_no_number(operator: str, mixed: DocumentTable) -> None:
    for value in ("abc", "", "nan", "inf", "1_0", "0x1", "１", "--1", "1e"):  # noqa: RUF001
        with pytest.raises(InputError, match="where: 'y' holds numbers, so expected one to compare with, found"):
            mixed.select([Condition("y", operator, value)])


def test_several_threads(mixed: DocumentTable) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(200):
                assert mixed.get(["n2", "bare"])[0].metadata["x"] == 2
                assert len(mixed.select([parse_condition("y>=5")])) == len(VALUES) - 5
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_published_file_is_never_written(tmp_path: Path) -> None:
    table = write_table(tmp_path, [Document("a", "text")])
    with pytest.raises(StateError, match="readonly"):
        table.remove([0])


def test_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "docs.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(StateError, match=r"cannot read .*docs.sqlite: file is not a database; build the index again"):
        DocumentTable.open(tmp_path / "docs.sqlite").count()
    with pytest.raises(StateError, match=r"cannot read .*missing"):
        DocumentTable.open(tmp_path / "missing").count()


def test_layout_is_plain_sqlite(tmp_path: Path) -> None:
    write_table(tmp_path, [Document("a", "text", title="t", metadata={"k": 1.5, "l": [2]})]).close()
    connection = sqlite3.connect(tmp_path / "docs.sqlite")
    rows = connection.execute("SELECT * FROM documents").fetchall()
    assert rows == [(0, "a", "t", "text", json.dumps({"k": 1.5, "l": [2]}))]
    assert connection.execute("SELECT * FROM fields").fetchall() == [(0, "k", 1.5)]
    connection.close()


@pytest.mark.parametrize("module", [store, documents, chunks, assembly, generations])
def test_examples(module: Any) -> None:
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0
