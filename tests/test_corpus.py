"""Reading documents, queries and judgements: every format, every refusal with its place, nothing held in memory."""

from __future__ import annotations

import datetime
import doctest
import gzip
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from transenc import corpus
from transenc.corpus import Document, read_corpus, read_qrels, read_queries, read_sentences
from transenc.errors import InputError

ROWS = [("a", "One", "First text."), ("b", "", 'Second "text", with\u2028more'), (" c\x00/../x", "Three", "NA")]
DOCUMENTS = [Document(key, text, title) for key, title, text in ROWS]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        data = content.encode("utf-8") if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


def refuse(source: Any, **options: Any) -> str:
    """Return the message with which `read_corpus` refuses the source; it must be one line."""
    with pytest.raises(InputError) as caught:
        list(read_corpus(source, **options))
    assert "\n" not in str(caught.value)
    assert "pair" not in str(caught.value)
    return str(caught.value)


def test_content_is_title_and_text() -> None:
    assert Document("1", "b", "a").content == "a b"
    assert Document("1", " b ").content == "b"
    assert Document("1", "", " a").content == "a"
    assert Document("1", "b", place="x:1") == Document("1", "b", place="y:2")


# ---- formats


def to_tsv() -> str:
    return "_id\ttitle\ttext\n" + "".join("\t".join(row) + "\n" for row in ROWS)


def to_csv() -> str:
    quoted = (",".join('"' + value.replace('"', '""') + '"' for value in row) for row in ROWS)
    return "\ufeff_id,title,text\r\n" + "".join(f"{row}\r\n" for row in quoted)


def to_jsonl() -> str:
    return "".join(json.dumps(dict(zip(("_id", "title", "text"), row, strict=True))) + "\n" for row in ROWS)


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize(("suffix", "content"), [(".tsv", to_tsv()), (".csv", to_csv()), (".jsonl", to_jsonl())])
def test_every_text_format_gives_the_same_documents(write, suffix: str, content: str, compressed: str) -> None:
    path = write(f"docs{suffix}{compressed}", content)
    read = list(read_corpus(path))
    assert read == DOCUMENTS
    first = 1 if suffix == ".jsonl" else 2
    assert [document.place for document in read] == [f"{path}:{first + i}" for i in range(3)]


def test_parquet_dataset_and_mappings_give_the_same_documents(tmp_path: Path) -> None:
    columns = dict(zip(("_id", "title", "text"), map(list, zip(*ROWS, strict=True)), strict=True))
    path = tmp_path / "docs.parquet"
    pq.write_table(pa.table(columns), path)
    mappings = [dict(zip(columns, row, strict=True)) for row in ROWS]
    for source, places in (
        (path, [f"{path}:1", f"{path}:2", f"{path}:3"]),
        (str(path), [f"{path}:1", f"{path}:2", f"{path}:3"]),
        (Dataset.from_dict(columns).with_format("numpy"), ["dataset[0]", "dataset[1]", "dataset[2]"]),
        (mappings, ["documents[0]", "documents[1]", "documents[2]"]),
        (iter(DOCUMENTS), ["documents[0]", "documents[1]", "documents[2]"]),
    ):
        read = list(read_corpus(source))
        assert read == DOCUMENTS
        assert [document.place for document in read] == places
    assert [document.place for document in read_corpus([Document("a", "b", place="d.txt:7")])] == ["d.txt:7"]


@pytest.mark.parametrize("name", ["docs.txt", "docs.txt.gz"])
def test_txt_is_one_document_a_line_with_the_line_as_id(write, name: str) -> None:
    path = write(name, b"\xef\xbb\xbfOne || two.\r\n  \xe2\x80\xa8 three \nlast")
    assert list(read_corpus(path)) == [
        Document("1", "One || two."),
        Document("2", "  \u2028 three "),
        Document("3", "last"),
    ]


def test_the_id_is_in_one_of_two_columns_or_the_number_of_the_row(write) -> None:
    both = write("a.tsv", "id\ttext\t_id\n7\tx\tk\n")
    assert list(read_corpus(both)) == [Document("k", "x", metadata={"id": "7"})]
    assert list(read_corpus(write("b.tsv", "text\tid\nx\t007\n"))) == [Document("007", "x")]
    none = write("c.tsv", "text\nx\ny\n")
    assert [(document.id, document.place) for document in read_corpus(none)] == [("2", f"{none}:2"), ("3", f"{none}:3")]
    assert [document.id for document in read_corpus(write("d.jsonl", '{"text": "x"}\n{"text": "y"}\n'))] == ["1", "2"]
    assert [document.id for document in read_corpus([{"text": "x"}, {"text": "y"}])] == ["0", "1"]


def test_repeated_ids_are_for_the_store_to_find() -> None:
    assert len(list(read_corpus([Document("a", "x"), Document("a", "x")]))) == 2


# ---- metadata


def test_other_columns_are_metadata_with_the_types_they_have(write, tmp_path: Path) -> None:
    assert list(read_corpus(write("a.tsv", "text\t_id\tyear\tx\nT\tk\t2020\t\n"))) == [
        Document("k", "T", metadata={"year": "2020", "x": ""})
    ]
    values = {"year": 2020, "price": 1.5, "new": True, "tags": ["a", {"b": None}], "none": None, "big": 10**30}
    line = json.dumps({"_id": "k", "text": "T", "title": None, **values})
    assert list(read_corpus(write("a.jsonl", line))) == [Document("k", "T", metadata=values)]
    read = next(read_corpus([{"_id": "k", "text": "T", **values}]))
    assert read.metadata == values
    assert read.metadata["new"] is True

    path = tmp_path / "a.parquet"
    moment = datetime.datetime(2020, 5, 17, 8, 30)
    row = {"_id": "k", "text": "T", "day": moment.date(), "at": moment, "n": 3, "parts": [{"a": 1}]}
    pq.write_table(pa.Table.from_pylist([row, row | {"_id": "l", "day": None}]), path)
    first, second = read_corpus(path)
    assert first.metadata == {"day": "2020-05-17", "at": "2020-05-17T08:30:00", "n": 3, "parts": [{"a": 1}]}
    assert second.metadata["day"] is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (float("nan"), "float nan"),
        (float("inf"), "float inf"),
        ([{"a": -float("inf")}], "float -inf"),
        (b"x", "bytes b'x'"),
        (Decimal("1.5"), r"Decimal Decimal\('1.5'\)"),
        ({1, 2}, "set"),
        (object, "type"),
    ],
)
def test_metadata_that_json_lacks_is_refused(value: object, found: str) -> None:
    expected = rf"^documents\[0\]: document 'k': expected in 'm' a value that JSON has.*, found {found}"
    with pytest.raises(InputError, match=expected):
        list(read_corpus([{"_id": "k", "text": "T", "m": value}]))


def test_odd_metadata_is_refused(write, tmp_path: Path) -> None:
    deep = json.dumps({"_id": "k", "text": "T", "m": None}).replace("null", "[" * 100 + "]" * 100)
    assert "nested at most 64 deep, found list" in refuse(write("a.jsonl", deep))
    path = write("b.jsonl", '{"_id": "k", "text": "T", "m": 1e999}\n')
    assert refuse(path).startswith(f"{path}:1: document 'k': expected in 'm' a value that JSON has")
    path = write("c.jsonl", '{"_id": "k", "text": "T", "m": {"\\ud800": 1}}\n')
    assert "expected valid Unicode text in 'm', found a lone surrogate (character 0)" in refuse(path)
    assert "expected a mapping as metadata, found list" in refuse([Document("k", "T", metadata=[])])  # type: ignore[arg-type]
    assert "expected text in 'metadata names', found 1" in refuse([Document("k", "T", metadata={1: 2})])  # type: ignore[dict-item]
    pq.write_table(pa.table({"_id": ["k"], "text": ["T"], "m": [b"\x00"]}), tmp_path / "d.parquet")
    assert refuse(tmp_path / "d.parquet").startswith(f"{tmp_path / 'd.parquet'}:1: document 'k': expected in 'm'")


# ---- refusals, each with file and row

TSV = "_id\ttext\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", TSV + "a\tb\nc\n", ":3: expected 2 fields as in the header, found 1"),
        ("a.tsv", TSV + "a\tb\n\nc\td\n", ":3: expected a document, found a blank line"),
        ("a.tsv", TSV + "a\tb\n\td\n", ":3: expected an id in '_id', found ''"),
        ("a.tsv", "a\tSome text.\n", ":1: expected a column 'text' in a header line, found 'a', 'Some text.'"),
        ("a.tsv", "text\tx\tx\na\tb\tc\n", ":1: a column name occurs twice, 'x'; rename one"),
        ("a.tsv", TSV + "a\t \x00\u200b\n", ":2: document 'a': expected a text, found '.*' and no title"),
        ("a.tsv", (TSV + "a\tb\nc\t").encode() + b"\xe9\n", ":3: expected UTF-8 text, found the byte 0xe9"),
        ("a.tsv", "", ": expected documents, found an empty file"),
        ("a.txt", "a\n\nb\n", ":2: document '2': expected a text, found ''"),
        ("a.csv", '_id,text\na,"b\nc"\n', ":2: expected one CSV record on this line"),
        ("a.jsonl", '{"_id": "a", "text": "b"}\n[1]\n', ":2: expected one JSON object a line"),
        ("a.jsonl", '{"_id": "a", "text": "b"}\n\n', ":2: expected a document, found a blank line"),
        ("a.jsonl", '{"_id": "a"}\n', ": expected a column 'text', found '_id'"),
        ("a.jsonl", '{"_id": "a", "text": "b"}\n{"_id": "c"}\n', ":2: expected 'text', found '_id'; add it"),
        ("a.jsonl", '{"_id": "a", "text": null}\n', ":1: document 'a': expected a text, found ''"),
        ("a.jsonl", '{"_id": "a", "text": "b", "title": 5}\n', ":1: document 'a': expected text in 'title', found 5"),
        ("a.jsonl", '{"_id": 1, "text": "b"}\n', ":1: expected text in '_id', found the number 1; write ids as text"),
        ("a.jsonl", '{"id": 1.5, "text": "b"}\n', ":1: expected text in 'id', found the number 1.5"),
        ("a.jsonl", '{"id": true, "text": "b"}\n', ":1: expected text in 'id', found True"),
        ("a.jsonl", '{"id": null, "text": "b"}\n', ":1: expected text in 'id', found None"),
        ("a.jsonl", '{"id": "", "text": "b"}\n', ":1: expected an id in 'id', found ''"),
        ("a.jsonl", '{"id": "\\ud800", "text": "b"}\n', ":1: expected valid Unicode text in 'id', found a lone surr"),
        ("a.jsonl", '{"id": "k", "text": "b\\udfff"}\n', r":1: document 'k': .* surrogate \(character 1\)"),
        (
            "a.jsonl",
            '{"_id": "a", "text": "b"}\n{"id": "c", "text": "d"}\n',
            ":2: expected the id in '_id' as in the first document, found 'id', 'text'",
        ),
        ("a.jsonl", '{"text": "b"}\n{"id": "c", "text": "d"}\n', ":2: expected no id as in the first document"),
        ("a.parquet", "x", ": cannot read this parquet file"),
        ("a.doc", "x", ": expected a file named .csv, .tsv"),
    ],
)
def test_refused_with_file_and_row(write, name: str, content: str | bytes, expected: str) -> None:
    path = write(name, content)
    with pytest.raises(InputError, match=f"^{path}{expected}") as caught:
        list(read_corpus(path))
    assert "\n" not in str(caught.value)
    assert "pair" not in str(caught.value)


def test_a_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"docs.jsonl: no such file; check the path$"):
        read_corpus(tmp_path / "docs.jsonl")
    with pytest.raises(InputError, match=r"found a folder; name a file in it$"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "^corpus: expected a path, a Hub dataset id, .* found NoneType$"),
        (3, "found int$"),
        (b"a.txt", "found bytes$"),
        ({"a": "b"}, "found dict$"),
        (["a text"], r"^documents\[0\]: expected a Document or a mapping, found str$"),
        ([Document("a", "b"), None], r"^documents\[1\]: expected a Document or a mapping, found NoneType$"),
    ],
)
def test_wrong_python_types(source: Any, expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        list(read_corpus(source))


def test_documents_given_as_objects_are_checked_too() -> None:
    assert refuse([Document(1, "b")]).startswith("documents[0]: expected text in 'id', found the number 1")  # type: ignore[arg-type]
    assert refuse([Document("a", "b"), Document("c", None)]).startswith("documents[1]: document 'c': expected text")  # type: ignore[arg-type]
    assert refuse([Document("a", " ", place="d.txt:7")]).startswith("d.txt:7: document 'a': expected a text")


def test_a_column_twice_in_parquet(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert refuse(tmp_path / "a.parquet").endswith("a.parquet: a column name occurs twice; rename one")


# ---- documents without text


def test_empty_documents_are_left_out_when_asked(write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("a.txt", "one\n\n \x07\nfour\n")
    with caplog.at_level(logging.WARNING):
        assert [document.id for document in read_corpus(path, skip_empty=True)] == ["1", "4"]
    assert caplog.messages == [f"{path}: documents without text left out: 2, the first at {path}:2"]


def test_a_title_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read = list(read_corpus([Document("a", "", "Title"), Document("b", " ", "\x00x")], skip_empty=True))
    assert [document.content for document in read] == ["Title", "\x00x"]
    assert caplog.messages == []


# ---- streaming


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".txt"])
def test_a_document_comes_before_the_next_is_read(write, suffix: str) -> None:
    lines = {".tsv": ["text", "a", "b"], ".csv": ["text", "a", "b"], ".txt": ["a", "b"]}
    jsonl = ['{"text": "a"}', '{"text": "b"}']
    path = write(f"docs{suffix}", "\n".join(lines.get(suffix, jsonl)).encode() + b"\xff\n")
    documents = read_corpus(path)
    assert next(documents).text == "a"
    with pytest.raises(InputError, match="expected UTF-8 text, found the byte 0xff"):
        next(documents)


def test_an_endless_source_is_read_as_far_as_needed() -> None:
    endless: Iterator[Document] = (Document(str(i), "x") for i in itertools.count())
    assert [document.id for document in itertools.islice(read_corpus(endless), 3)] == ["0", "1", "2"]


def test_parquet_and_datasets_keep_their_rows_over_batches(tmp_path: Path) -> None:
    count = 1000  # several batches and, below, row groups
    texts = [f"text {i}" for i in range(count)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=300)
    assert [(d.id, d.text) for d in read_corpus(path)] == [(str(i + 1), text) for i, text in enumerate(texts)]
    dataset = Dataset.from_dict({"text": texts})
    assert [(d.id, d.text) for d in read_corpus(dataset)] == [(str(i), text) for i, text in enumerate(texts)]
    pq.write_table(pa.table({"text": [*texts, None]}), path)
    documents = read_corpus(path)
    assert len(list(itertools.islice(documents, count))) == count
    with pytest.raises(InputError, match=f"^{path}:1001: document '1001': expected a text, found ''"):
        next(documents)


def test_parquet_is_not_held_in_memory(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [rng.randbytes(2500).hex() for _ in range(8000)]}), path)  # 40 MB, one row group
    before = pa.total_allocated_bytes()
    documents = read_corpus(path)
    held = max(pa.total_allocated_bytes() for _ in documents) - before
    assert 0 < held < 20_000_000


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".txt"])
def test_a_very_long_document(write, suffix: str) -> None:
    text = "word " * 1_000_000
    content = {".jsonl": json.dumps({"text": text}), ".txt": text}.get(suffix, f"text\n{text}")
    assert [document.text for document in read_corpus(write(f"docs{suffix}", content))] == [text]


# ---- queries and judgements


def test_queries_keep_their_order(write) -> None:
    path = write(
        "queries.jsonl",
        '{"_id": "q2", "text": "two", "metadata": {"a": 1}}\n{"_id": "1", "text": "one"}\n',
    )
    assert list(read_queries(path).items()) == [("q2", "two"), ("1", "one")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"_id": "q", "text": "a"}\n{"_id": "q", "text": "b"}\n', ":2: the query id 'q' occurs a second time"),
        ('{"_id": "q", "text": "a", "titel": ""}\n', ":1: expected only '_id', 'text', .*, found also 'titel'"),
        ('{"_id": "q", "text": "a"}\n{"text": "b"}\n', ":2: expected '_id', found 'text'; add it"),
        ('{"id": "q", "text": "a"}\n', ": expected a column '_id', found 'id', 'text'"),
        ('{"_id": 1, "text": "a"}\n', ":1: expected text in '_id', found the number 1"),
        ('{"_id": "q", "text": " "}\n', ":1: query 'q': expected a text, found ' '"),
        ('{"_id": "q", "text": 3}\n', ":1: query 'q': expected text in 'text', found 3"),
        ('{"_id": "q", "text": "\\ud800"}\n', ":1: query 'q': expected valid Unicode text in 'text'"),
        ("\n", ":1: expected a query, found a blank line"),
        ("", ": expected queries, found an empty file"),
    ],
)
def test_bad_queries(write, content: str, expected: str) -> None:
    path = write("queries.jsonl", content)
    with pytest.raises(InputError, match=f"^{path}{expected}"):
        read_queries(path)


HEADER = "query-id\tcorpus-id\tscore\n"


def test_judgements_by_query(write) -> None:
    path = write("test.tsv", HEADER + "q1\td1\t2\nq2\td1\t0\nq1\td2\t-1\n")
    assert read_qrels(path) == {"q1": {"d1": 2, "d2": -1}, "q2": {"d1": 0}}
    moved = write("moved.tsv", "score\tquery-id\tcorpus-id\n1\tq\td\n")
    assert read_qrels(moved) == {"q": {"d": 1}}
    hub = Dataset.from_dict({"query-id": ["q"], "corpus-id": ["d"], "score": [2.0]})
    assert read_qrels(hub) == {"q": {"d": 2}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HEADER + "q\td\t1\nq\td\t1\n", ":3: query 'q' and document 'd' occur together a second time"),
        (HEADER + "q\td\t1.5\n", ":2: expected a whole number in 'score', found '1.5'"),
        (HEADER + "q\td\t\n", ":2: expected a whole number in 'score', found ''"),
        (HEADER + "q\td\tnan\n", ":2: expected a whole number in 'score', found 'nan'"),
        (HEADER + "q\td\t٣\n", ":2: expected a whole number in 'score', found '٣'"),
        (HEADER + "\td\t1\n", ":2: expected an id in 'query-id', found ''"),
        (HEADER + "q\td\n", ":2: expected 3 fields as in the header, found 2"),
        (HEADER + "\n", ":2: expected a judgement, found a blank line"),
        (HEADER, ": expected judgements, found none"),
        ("q\t0\td\t1\n", ":1: expected a column 'query-id' in a header line, found 'q', '0', 'd', '1'"),
        (HEADER.replace("\n", "\tnote\n") + "q\td\t1\tx\n", ":2: expected only 'query-id', .* found also 'note'"),
    ],
)
def test_bad_judgements(write, content: str, expected: str) -> None:
    path = write("test.tsv", content)
    with pytest.raises(InputError, match=f"^{path}{expected}"):
        read_qrels(path)


@pytest.mark.parametrize("score", [0.5, float("nan"), float("inf"), 1e300, None, True])
def test_bad_scores_that_are_no_text(score: object) -> None:
    dataset = Dataset.from_dict({"query-id": ["q"], "corpus-id": ["d"], "score": [score]})
    with pytest.raises(InputError, match=r"^dataset\[0\]: expected a whole number in 'score'"):
        read_qrels(dataset)


def test_examples_run() -> None:
    result = doctest.testmod(corpus)
    assert result.attempted > 0
    assert result.failed == 0


# ---- sentences

LINES = ["It rains.", " It snows. ", "雨が降る。"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.txt", "\ufeffIt rains.\r\n\n It snows. \n \t\n雨が降る。"),
        ("s.txt.gz", "It rains.\n It snows. \n雨が降る。\n"),
        ("s.tsv", "id\tsentence\ttext\n1\tIt rains.\ta\n2\t It snows. \tb\n3\t雨が降る。\tc\n"),
        ("s.csv", 'text,n\n"It rains.",1\n It snows. ,2\n雨が降る。,3\n'),
        ("s.jsonl", "".join(json.dumps({"n": 1, "sentence": line}) + "\n" for line in LINES)),
        ("s.jsonl.gz", "".join(json.dumps({"text": line}) + "\n" for line in LINES)),
    ],
)
def test_sentences_of_every_format(write, name: str, content: str) -> None:
    assert read_sentences(write(name, content)) == LINES


def test_sentences_of_parquet_datasets_and_strings(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3], "text": LINES}), path)
    for source in (path, Dataset.from_dict({"sentence": LINES}), LINES, iter(LINES), tuple(LINES)):
        assert read_sentences(source) == LINES


def test_repeated_sentences_and_blank_lines_are_left_out_and_counted(write, caplog: pytest.LogCaptureFixture) -> None:
    first, second = write("a.txt", "b\n\na\n\u200b\nb\nB\n"), write("b.txt", "c\na\n")
    with caplog.at_level(logging.WARNING, "transenc"):
        assert read_sentences(first, second) == ["b", "a", "B", "c"]
    assert f"{first}: blank lines left out: 2" in caplog.text
    assert f"{first}, {second}: repeated sentences left out: 2 of 6" in caplog.text


def test_a_sample_of_sentences_keeps_their_order() -> None:
    lines = [f"number {i}" for i in range(100)]
    sample = read_sentences(lines, max_sentences=10, seed=3)
    assert len(sample) == 10 and sample == sorted(sample, key=lines.index)
    assert sample == read_sentences(iter(lines), max_sentences=10, seed=3)
    assert sample != read_sentences(lines, max_sentences=10, seed=4)
    assert read_sentences(lines, max_sentences=100) == lines


def test_a_line_of_a_million_characters_stays_whole(write) -> None:
    long = "x" * 1_000_000
    assert read_sentences(write("a.txt", f"{long}\na\n")) == [long, "a"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "", ": expected sentences, found an empty file"),
        ("a.txt", "\n\n", ": expected at least 2 different sentences, found 0; add sentences"),
        ("a.txt", "one\n", ": expected at least 2 different sentences, found 1; add sentences"),
        ("a.txt", "one\none\n", ": expected at least 2 different sentences, all 2 are the same"),
        ("a.txt", b"one\ntw\xff\n", ":2: expected UTF-8 text, found the byte 0xff"),
        ("a.tsv", "a\tb\n1\t2\n", ":1: expected a column 'sentence' in a header line, found 'a', 'b'"),
        ("a.tsv", "text\none\n \u200b\n", ":3: expected a sentence"),
        ("a.tsv", "text\none\n\n", ":3: expected a sentence, found a blank line"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', ":2: expected text in 'sentence', found 3"),
        ("a.jsonl", '{"text": "a"}\n{"sentence": "b"}\n', ":2: expected 'text', found 'sentence'; add it"),
    ],
)
def test_unusable_sentences_are_refused(write, name: str, content: str | bytes, expected: str) -> None:
    path = write(name, content)
    with pytest.raises(InputError) as caught:
        read_sentences(path)
    assert str(caught.value).startswith(f"{path}{expected}")


def test_wrong_types_of_sentences_are_named() -> None:
    for source, expected in (
        (b"x", "expected a path, .* or an iterable of strings, found bytes"),
        ({"a": 1}, "found dict"),
        (3, "found int"),
        (["a", 3], r"sentences\[1\]: expected a str, found int"),
    ):
        with pytest.raises(TypeError, match=expected):
            read_sentences(source)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"sentences\[1\]: expected a sentence, found ' '"):
        read_sentences(["a", " "])
    with pytest.raises(InputError, match=r"sentences\[0\]: expected valid Unicode text .* lone surrogate"):
        read_sentences(["\ud800", "b"])
    with pytest.raises(InputError, match="max_sentences: expected at least 2, found 1"):
        read_sentences(["a", "b"], max_sentences=1)
    with pytest.raises(TypeError, match="max_sentences: expected a whole number, found True"):
        read_sentences(["a", "b"], max_sentences=True)
    with pytest.raises(InputError, match="expected at least 2 different sentences, found 0"):
        read_sentences()
