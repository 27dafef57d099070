"""Reading pairs: every format, every refusal with its place, the sample, the overlap, the Hub without network."""

from __future__ import annotations

import doctest
import gzip
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, concatenate_datasets

from transenc import pairs as pairs_module
from transenc import tables
from transenc.errors import InputError
from transenc.pairs import check_writable, count_overlap, make_dataset, read_gold, read_pairs, write_pairs

ROWS = [("A dog runs.", "A dog is running."), ("It rains.", "The sun shines."), ("NA", "null")]
HEADER = "sentence1\tsentence2\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        data = content.encode("utf-8") if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


def rows_of(dataset: Dataset) -> list[tuple[str, ...]]:
    return list(zip(*(dataset[name][:] for name in dataset.column_names), strict=True))


def refuse(source: object, **options: object) -> str:
    """Return the message with which `read_pairs` refuses the source; it must be one line."""
    with pytest.raises(InputError) as caught:
        read_pairs(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- formats


def to_tsv(rows: list[tuple[str, str]]) -> str:
    return HEADER + "".join(f"{a}\t{b}\n" for a, b in rows)


def to_csv(rows: list[tuple[str, str]]) -> str:
    return "sentence1,sentence2\n" + "".join(f'"{a}","{b}"\n' for a, b in rows)


def to_jsonl(rows: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"sentence1": a, "sentence2": b}) + "\n" for a, b in rows)


def to_txt(rows: list[tuple[str, str]]) -> str:
    return "".join(f"{a}||{b}\n" for a, b in rows)


FORMATS = {".tsv": to_tsv, ".csv": to_csv, ".jsonl": to_jsonl, ".txt": to_txt}


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_text_format_gives_the_same_rows(write, suffix: str, compressed: str) -> None:
    path = write(f"pairs{suffix}{compressed}", FORMATS[suffix](ROWS))
    assert rows_of(read_pairs(path)) == ROWS


def test_parquet_dataset_and_list_give_the_same_rows(tmp_path: Path) -> None:
    columns = {"sentence1": [a for a, _ in ROWS], "sentence2": [b for _, b in ROWS], "extra": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    assert rows_of(read_pairs(tmp_path / "pairs.parquet")) == ROWS
    assert rows_of(read_pairs(Dataset.from_dict(columns).with_format("numpy"))) == ROWS
    assert rows_of(read_pairs(ROWS)) == ROWS


def test_all_sources_have_plain_types_and_concatenate(write, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"sentence1": pa.array(["a", "b"], pa.large_string()), "sentence2": ["c", "d"]}),
        tmp_path / "large.parquet",
    )
    read = [
        read_pairs(path)
        for path in (tmp_path / "large.parquet", write("a.csv", to_csv(ROWS)), write("a.jsonl", to_jsonl(ROWS)))
    ]
    both = concatenate_datasets(read)
    assert both.num_rows == 2 + 3 + 3
    assert {name: feature.dtype for name, feature in both.features.items()} == {
        "sentence1": "string",
        "sentence2": "string",
    }


def test_tsv_keeps_quotes_and_na_and_odd_spaces(write) -> None:
    rows = [('"Open', 'say "hi"'), ("NA", "nan"), ("null", "None"), ("a\u2028b\x85c", " d ")]
    path = write("pairs.tsv", to_tsv(rows))
    assert rows_of(read_pairs(path)) == rows


def test_tsv_accepts_bom_crlf_and_a_last_line_without_end(write) -> None:
    path = write("pairs.tsv", b"\xef\xbb\xbfsentence1\tsentence2\r\na\tb\r\nc\td")
    assert rows_of(read_pairs(path)) == [("a", "b"), ("c", "d")]


def test_csv_quoting(write) -> None:
    path = write("pairs.csv", 'sentence2,id,sentence1\r\n"a, ""b""",1,c\r\nd "e" f,2,"g"\r\n')
    assert rows_of(read_pairs(path)) == [("c", 'a, "b"'), ("g", 'd "e" f')]


def test_extra_columns_are_ignored_and_columns_can_be_named(write) -> None:
    path = write("pairs.tsv", "score\tq\tr\tid\nbad\tone\ttwo\t1\n\tthree\tfour\t\n")
    read = read_pairs(path, columns=("q", "r"))
    assert read.column_names == ["sentence1", "sentence2"]
    assert rows_of(read) == [("one", "two"), ("three", "four")]


def test_text_round_trips(write) -> None:
    rows = [("👩‍👩‍👧 zwj", "עברית"), ("nul \x00 esc \x1b", "e" + "\u0301" * 10_000)]
    assert rows_of(read_pairs(write("a.tsv", to_tsv(rows)))) == rows


# ---- refusals, each with file and row


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", HEADER + "a\tb\nc\n", ":3: expected 2 fields as in the header, found 1"),
        ("a.tsv", HEADER + "a\tb\nc\td\te\n", ":3: expected 2 fields as in the header, found 3"),
        ("a.tsv", HEADER + "a\tb\n\nc\td\n", ":3: expected a sentence pair, found a blank line"),
        ("a.tsv", HEADER + "a\tb\nc\td\n\n", ":4: expected a sentence pair, found a blank line"),
        ("a.tsv", HEADER + "a\tb\nc\t \n", ":3: expected a sentence in 'sentence2', found ' '"),
        ("a.tsv", HEADER + "a\tb\n\x00\u200b\td\n", ":3: expected a sentence in 'sentence1'"),
        ("a.tsv", "a\tb\nc\td\n", ":1: expected a column 'sentence1' in a header line, found 'a', 'b'"),
        ("a.tsv", "sentence1\tother\na\tb\n", ":1: expected a column 'sentence2' in a header line"),
        ("a.tsv", "sentence1\tsentence1\tsentence2\na\tb\tc\n", ":1: expected one column 'sentence1'"),
        ("a.tsv", (HEADER + "a\tb\nc\t").encode() + b"\xe9\n", ":3: expected UTF-8 text, found the byte 0xe9"),
        ("a.tsv", HEADER.encode("utf-16"), ":1: expected UTF-8 text, found the byte 0xff"),
        ("a.tsv", "", ": expected sentence pairs, found an empty file"),
        ("a.tsv", HEADER, ": expected at least 2 pairs, found 0"),
        ("a.tsv", HEADER + "a\tb\n", ": expected at least 2 pairs, found 1"),
        ("a.tsv", HEADER + "a\tb\na\tb\na\tb\n", ": all 3 pairs are the same pair"),
        ("a.tsv", HEADER + "a\ta\nb\tb\n", ": both sentences are equal in every pair"),
        ("a.csv", 'sentence1,sentence2\na,"b\nc,d\ne,f\n', ":2: expected one CSV record on this line"),
        ("a.csv", 'sentence1,sentence2\n"a,b\nc",d\ne,f\n', ":2: expected one CSV record on this line"),
        ("a.csv", 'sentence1,sentence2\na,"b"c\nd,e\n', ":2: expected one CSV record on this line"),
        ("a.csv", "sentence1;sentence2\na;b\n", ":1: expected a column 'sentence1' in a header line"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b"}\n[1]\n', ":2: expected one JSON object a line"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b"}\n{"sentence1": "a"}\n', ":2: expected 'sentence2'"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": 3}\n', ":1: expected text in 'sentence2', found 3"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": null}\n', ":1: expected text in 'sentence2', found None"),
        ("a.jsonl", '{"sentence1": "a", "sentence1": "b", "sentence2": "c"}\n', ":1: .*a key occurs twice"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "x": NaN}\n', ":1: .*NaN is not JSON"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "\\ud800"}\n', ":1: expected valid Unicode text"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b"\n', ":1: expected one JSON object, found"),
        ("a.jsonl", "[" * 100_000 + "\n", ":1: expected one JSON object, found"),
        ("a.txt", "a||b\nc|d\n", r":2: expected sentence1\|\|sentence2, found 1 field"),
        ("a.txt", "a||b\nc||d||e\n", r":2: expected sentence1\|\|sentence2, found 3 field"),
        ("a.txt", "a||b\n|| \n", ":2: expected a sentence in 'sentence1', found ''"),
        ("a.xlsx", "x", ": expected a file named .csv, .tsv"),
        ("a.parquet", "x", ": cannot read this parquet file"),
    ],
)
def test_refused_with_file_and_row(write, name: str, content: str | bytes, expected: str) -> None:
    path = write(name, content)
    with pytest.raises(InputError, match=f"^{path}{expected}") as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


def test_parquet_null_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"sentence1": ["a", "b"], "sentence2": ["c", None]}), path)
    assert refuse(path) == (
        f"{path}:2: expected text in 'sentence2', found None; every value of this column must be text"
    )


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(to_tsv(ROWS * 50).encode())[:-12])
    assert "cannot read this file" in refuse(path)
    path.write_bytes(b"plain text")
    assert "Not a gzipped file" in refuse(path)


def test_what_looks_like_a_path_is_no_dataset_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("pairs.tsv", "owner/pairs.csv", "./owner/pairs", "a/b/c", "data/pairs", "pairs", "~/x/y"):
        assert refuse(name) == f"{name}: no such file; check the path"
    assert refuse(Path("owner/name")) == "owner/name: no such file; check the path"
    assert "found a folder" in refuse("data")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "found NoneType"),
        (3, "found int"),
        (b"a.tsv", "found bytes"),
        ({"a": "b"}, "found dict"),
        ({("a", "b")}, "found set"),
        (iter(ROWS), "found list_iterator"),
        ([("a", "b"), "cd"], r"^pairs\[1\]: expected a tuple \(sentence1, sentence2\), found str"),
        (("a", "b"), r"^pairs\[0\]: expected a tuple \(sentence1, sentence2\), found str"),
        ([("a", "b"), ("c", None)], r"^pairs\[1\]: expected a str as sentence2, found NoneType"),
        ([("a", "b"), (["c"], "d")], r"^pairs\[1\]: expected a str as sentence1, found list"),
        ([("a", float("nan"))], r"^pairs\[0\]: expected a str as sentence2, found float"),
        ([("a", b"b")], r"^pairs\[0\]: expected a str as sentence2, found bytes"),
        ([None], r"^pairs\[0\]: expected a tuple"),
    ],
)
def test_wrong_python_types(source: object, expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        read_pairs(source)  # type: ignore[arg-type]


def test_wrong_items_of_a_list() -> None:
    assert refuse([("a", "b"), ("a", "b", "c")]).startswith("pairs[1]: expected (sentence1, sentence2), found 3")
    assert refuse([("a", "b"), ("a", "\ud800")]).startswith("pairs[1]: expected valid Unicode text")
    assert refuse([]) == "pairs: expected at least 2 pairs, found 0; add sentence pairs"
    assert refuse(Dataset.from_dict({"sentence1": ["a"]})).startswith("dataset: expected a column 'sentence2'")


# ---- scores and labels


def test_scores_are_read_only_when_asked_for(write) -> None:
    path = write("a.tsv", "sentence1\tsentence2\tscore\na\tb\t0.25\nc\td\t1e-1\ne\tf\t1\n")
    assert read_pairs(path).column_names == ["sentence1", "sentence2"]
    read = read_pairs(path, score=True)
    assert read["score"][:] == [0.25, 0.1, 1.0]
    assert read.features["score"].dtype == "float64"
    assert read_pairs([("a", "b", 1), ("c", "d", 0.5)], score=True)["score"][:] == [1.0, 0.5]


@pytest.mark.parametrize("text", ["4,5", "nan", "NaN", "inf", "-inf", "", "1_0", "0x1", "1e999", "٣", "5.1", "-1"])
def test_bad_scores_are_refused_with_their_row(write, text: str) -> None:
    path = write("a.tsv", f"sentence1\tsentence2\tscore\na\tb\t4.5\nc\td\t{text}\n")
    message = refuse(path, score=True, score_range=(0, 5))
    assert message.startswith(f"{path}:3: expected a ")
    assert f"in [0, 5] in 'score', found {text!r};" in message


def test_default_score_range_is_0_to_1(write) -> None:
    path = write("a.tsv", "sentence1\tsentence2\tscore\na\tb\t1.0\nc\td\t1.2\n")
    assert refuse(path, score=True) == (
        f"{path}:3: expected a score in [0, 1] in 'score', found '1.2'; rescale or correct the column"
    )


@pytest.mark.parametrize("value", ["true", '"0.5"', "null", "[1]", "1e999", "1" + "0" * 400])
def test_bad_json_scores(write, value: str) -> None:
    path = write("a.jsonl", f'{{"sentence1": "a", "sentence2": "b", "score": {value}}}\n')
    assert refuse(path, score=True).startswith(f"{path}:1: expected a finite number such as 0.75 in [0, 1]")


def test_missing_score_column(write) -> None:
    path = write("a.tsv", to_tsv(ROWS))
    assert refuse(path, score=True).startswith(f"{path}:1: expected a column 'score'")
    path = write("a.txt", to_txt(ROWS))
    assert refuse(path, score=True).startswith(f"{path}: expected a column 'score'")


def test_gold_scores_and_labels(write) -> None:
    scored = read_gold(write("a.tsv", "score\tsentence1\tsentence2\n4.5\ta\tb\n-70\tc\td\n"))
    assert rows_of(scored) == [("a", "b", 4.5), ("c", "d", -70.0)]
    labelled = read_gold(write("b.csv", "label,sentence1,sentence2\n1,a,b\n0,a,b\n"))
    assert rows_of(labelled) == [("a", "b", 1), ("a", "b", 0)]
    assert labelled.features["label"].dtype == "int64"
    assert rows_of(read_gold(write("c.jsonl", '{"sentence1": "a", "sentence2": "b", "label": 1}\n'))) == [("a", "b", 1)]
    both = write("d.tsv", "label\tscore\tsentence1\tsentence2\nx\t2\ta\tb\n")
    assert rows_of(read_gold(both)) == [("a", "b", 2.0)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sentence1\tsentence2\na\tb\n", ":1: expected a column 'score' .numbers. or 'label' .0 or 1."),
        ("sentence1\tsentence2\tlabel\na\tb\t2\n", r":2: expected a label in \[0, 1\] in 'label', found '2'"),
        ("sentence1\tsentence2\tlabel\na\tb\t1.0\n", r":2: expected a whole number in \[0, 1\]"),
        ("sentence1\tsentence2\tscore\na\tb\tx\n", ":2: expected a finite number such as 0.75 in 'score'"),
        ("sentence1\tsentence2\tscore\n", ": expected at least 1 pair, found 0"),
    ],
)
def test_bad_gold(write, content: str, expected: str) -> None:
    path = write("a.tsv", content)
    with pytest.raises(InputError, match=f"^{path}{expected}"):
        read_gold(path)


# ---- duplicates, sample, arguments, overlap


def test_duplicates_are_kept_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"a{i}", f"b{i}") for i in range(10)] + [("a1", "b1"), ("a1", "b1"), ("b1", "a1")]
    with caplog.at_level(logging.WARNING):
        assert rows_of(read_pairs(rows)) == rows
    assert caplog.messages == ["pairs: 2 of 13 pairs repeat an earlier one; kept"]


def test_few_pairs_are_said_to_be_few(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_pairs([("a", "b"), ("c", "d")])
    assert caplog.messages == ["pairs: only 2 pairs; training needs thousands"]


def test_sample_is_deterministic_and_keeps_the_order() -> None:
    rows = [(f"a{i:03}", f"b{i:03}") for i in range(200)]
    sample = rows_of(read_pairs(rows, max_pairs=20, seed=1))
    assert len(sample) == 20
    assert sample == sorted(sample)
    assert set(sample) <= set(rows)
    assert sample == rows_of(read_pairs(rows, max_pairs=20, seed=1))
    assert sample != rows_of(read_pairs(rows, max_pairs=20, seed=2))
    assert rows_of(read_pairs(rows, max_pairs=500)) == rows


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"max_pairs": 1}, InputError, "max_pairs: expected at least 2, found 1"),
        ({"max_pairs": 1.5}, TypeError, "max_pairs: expected a whole number, found 1.5"),
        ({"max_pairs": True}, TypeError, "max_pairs: expected a whole number, found True"),
        ({"columns": "ab"}, TypeError, "columns: expected two column names, found 'ab'"),
        ({"columns": ("a", "a")}, InputError, "columns: expected two different column names"),
        ({"score": True, "score_range": (1, 0)}, InputError, "score_range: expected .low, high."),
    ],
)
def test_bad_arguments(options: dict, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected):
        read_pairs(ROWS, **options)


def test_overlap_by_hand() -> None:
    train = make_dataset({"sentence1": ["One.", "Two.", "Four."], "sentence2": ["two.", "Three.", "Five."]})
    dev = make_dataset({"sentence1": [" TWO.", "six.", "two."], "sentence2": ["one.", "FOUR. ", "ONE."]})
    # Shared sentences: one., two., four.; shared pairs: {one., two.} only, though it stands twice in dev.
    assert count_overlap(train, dev) == {"sentences": 3, "pairs": 1}
    assert count_overlap(dev, train) == {"sentences": 3, "pairs": 1}


# ---- writing


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_what_is_written_reads_back(tmp_path: Path, suffix: str) -> None:
    rows = [('"Open, b', "NA", 0.1 + 0.2), ("👩‍👩‍👧 x\u2028y", "null", 1.0), ("a", "b", 1e-7)]
    columns = dict(zip(("sentence1", "sentence2", "score"), zip(*rows, strict=True), strict=True))
    path = tmp_path / f"labels{suffix}"
    write_pairs(path, make_dataset(columns))
    assert rows_of(read_pairs(path, score=True)) == rows


def test_sentences_that_do_not_fit_the_format_are_refused(tmp_path: Path) -> None:
    pairs = make_dataset({"sentence1": ["a", "b\tc"], "sentence2": ["c", "d\ne"]})
    for suffix, shown in ((".tsv", r"'b\tc'"), (".csv", r"'d\ne'")):
        with pytest.raises(InputError) as caught:
            write_pairs(tmp_path / f"a{suffix}", pairs)
        assert f"row 1 has a tab or line break, {shown}; write .jsonl or .parquet" in str(caught.value)
    write_pairs(tmp_path / "a.jsonl", pairs)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert rows_of(read_pairs(tmp_path / "a.jsonl")) == [("a", "c"), ("b\tc", "d\ne")]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.tsv").mkdir()
    for name, expected in (("folder.tsv", "found a folder"), ("no/a.tsv", "no such folder"), ("a.txt", "expected")):
        with pytest.raises(InputError, match=expected):
            check_writable(tmp_path / name)


# ---- the Hub without a network, and the cost of importing


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=inherited | environment
    )


READ_FROM_HUB = (
    "from transenc.pairs import read_pairs\n"
    "from transenc.errors import InputError\n"
    "try:\n    read_pairs('owner/no-such-data:test')\n"
    "except InputError as error:\n    print(error)\n"
)


def test_unreachable_hub_fails_at_once_with_advice(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = run_python(READ_FROM_HUB, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path))
    assert done.stdout.startswith(
        "owner/no-such-data:test: no such file, and as Hub dataset 'owner/no-such-data': the Hub cannot be reached"
    ), done.stderr
    assert "check the network, pass a local file, or set HF_HUB_OFFLINE=1" in done.stdout
    assert "Retry" not in done.stderr


def test_offline_mode_fails_at_once_with_advice(tmp_path: Path) -> None:
    done = run_python(READ_FROM_HUB, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "HF_HUB_OFFLINE is set and no copy of 'test' was downloaded earlier" in done.stdout, done.stderr
    assert "Retry" not in done.stderr


def test_import_brings_neither_torch_nor_datasets() -> None:
    code = "import transenc.pairs, transenc.benchmarks, sys; print({'torch', 'datasets', 'pyarrow'} & {*sys.modules})"
    done = run_python(code)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("module", [pairs_module, tables])
def test_examples_run(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0
