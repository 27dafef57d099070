"""The sample data set: derived files match their sources, its README is true, the parts do not leak into each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
RETRIEVAL = SAMPLE / "retrieval" / "sample"
TABLES = ("groups.tsv", "documents.tsv", "queries.tsv", "pairs.tsv", "dev.tsv", "test.tsv")


def read_table(path: Path) -> list[dict[str, str]]:
    header, *lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_build(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "build_sample.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(SAMPLE, tmp_path / "sample")


def sentences_of(part: str) -> set[str]:
    return {row[side].casefold() for row in read_table(SAMPLE / part) for side in ("sentence1", "sentence2")}


def test_files_on_disk_are_what_the_sources_give() -> None:
    done = run_build("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_a_changed_and_a_missing_file_and_writing_repairs_both(copy: Path) -> None:
    before = (copy / "pairs.tsv").read_bytes()
    (copy / "pairs.tsv").write_bytes(before.replace(b"\n", b"\r\n"))
    (copy / "retrieval/sample/queries.jsonl").unlink()
    done = run_build("--check", "--folder", str(copy))
    assert done.returncode == 1
    assert re.findall(r"build_sample: (\S+) is not", done.stderr) == ["pairs.tsv", "retrieval/sample/queries.jsonl"]
    assert run_build("--folder", str(copy)).returncode == 0
    assert (copy / "pairs.tsv").read_bytes() == before
    assert run_build("--check", "--folder", str(copy)).returncode == 0


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("groups.tsv", "It is pouring outside.", "It is thirty degrees in the shade today.", "groups.tsv:"),
        ("groups.tsv", "cook-cake-burned\tcooking\tcook-cake-raw", "cook-cake-burned\tcooking\tnone", "groups.tsv:"),
        ("groups.tsv", "It is pouring outside.", "It is\tpouring outside.", "expected 4 fields"),
        ("queries.tsv", "money-01:2", "money-99:2", "'money-99:2'"),
        ("documents.tsv", "cooking-02\t", "cooking-01\t", "documents.tsv:3"),
    ],
)
def test_a_wrong_source_is_refused_with_its_place(copy: Path, name: str, old: str, new: str, message: str) -> None:
    text = (copy / name).read_text(encoding="utf-8")
    assert old in text
    (copy / name).write_bytes(text.replace(old, new).encode())
    before = (copy / "pairs.tsv").stat().st_mtime_ns
    done = run_build("--folder", str(copy))
    assert done.returncode == 2
    assert message in done.stderr
    assert (copy / "pairs.tsv").stat().st_mtime_ns == before


def test_counts_in_the_readme_are_true() -> None:
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    stated = {name: int(rows) for name, rows in re.findall(r"^\| `([^`]+)` \| (\d+) \|", readme, re.MULTILINE)}
    files = [path for path in SAMPLE.rglob("*") if path.is_file() and path.name != "README.md"]
    lines = {path.relative_to(SAMPLE).as_posix(): path.read_bytes().count(b"\n") for path in files}
    assert stated == {name: count - name.endswith(".tsv") for name, count in lines.items()}

    rows = read_table(SAMPLE / "groups.tsv")
    topics, groups = {row["topic"] for row in rows}, {row["group"] for row in rows}
    assert f"{len(topics)} topics (cooking" in readme
    assert f"and {len(groups)} groups of 3 to 5\n" in readme
    group_of = {row["sentence"].casefold(): row["group"] for row in rows}
    parts = [len({group_of[s] for s in sentences_of(part)}) for part in ("pairs.tsv", "dev.tsv", "test.tsv")]
    assert parts == [60, 30, 40]
    assert "60 groups for training, 30 for `dev.tsv`, 40 for `test.tsv`" in readme
    dev, test = (Counter(row["score"] for row in read_table(SAMPLE / name)) for name in ("dev.tsv", "test.tsv"))
    for score, kind in (("5", "same group"), ("3", "related groups"), ("1", "same topic"), ("0", "different topics")):
        assert f"| {score} | {kind} | {dev[score]} | {test[score]} |" in readme


def test_no_sentence_of_one_part_occurs_in_another() -> None:
    train, dev, test = (sentences_of(part) for part in ("pairs.tsv", "dev.tsv", "test.tsv"))
    assert (train & dev, train & test, dev & test) == (set(), set(), set())
    lines = (SAMPLE / "sentences.txt").read_text(encoding="utf-8").splitlines()
    assert {line.casefold() for line in lines} == train
    related = {row["group"]: row["related"] for row in read_table(SAMPLE / "groups.tsv")}
    group_of = {row["sentence"].casefold(): row["group"] for row in read_table(SAMPLE / "groups.tsv")}
    for part in (train, dev, test):
        groups = {group_of[sentence] for sentence in part}
        assert {related[group] for group in groups} - {""} <= groups


def test_scores_follow_from_the_groups_and_no_pair_repeats() -> None:
    rows = {row["sentence"]: row for row in read_table(SAMPLE / "groups.tsv")}
    for part in ("dev.tsv", "test.tsv"):
        for pair in read_table(SAMPLE / part):
            one, two = rows[pair["sentence1"]], rows[pair["sentence2"]]
            expected = 5 if one["group"] == two["group"] else 3 if one["related"] == two["group"] else None
            assert float(pair["score"]) == (expected if expected else int(one["topic"] == two["topic"]))
    for part in ("pairs.tsv", "dev.tsv", "test.tsv"):
        pairs = [frozenset((row["sentence1"], row["sentence2"])) for row in read_table(SAMPLE / part)]
        assert len(set(pairs)) == len(pairs)
        assert {len(pair) for pair in pairs} == {2}


def test_sentences_are_distinct_and_some_are_hard_to_read_for_a_quoting_reader() -> None:
    sentences = [row["sentence"] for row in read_table(SAMPLE / "groups.tsv")]
    assert len({sentence.casefold() for sentence in sentences}) == len(sentences) == 539
    for part in ("pairs.tsv", "dev.tsv", "test.tsv"):
        assert any(sentence.startswith('"') for sentence in sentences_of(part))
    assert any(not sentence.isascii() for sentence in sentences_of("pairs.tsv"))


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_plain_line_ends_and_no_byte_order_mark(name: str) -> None:
    data = (SAMPLE / name).read_bytes()
    assert (b"\r" in data, data.startswith(b"\xef\xbb\xbf"), data[-1:]) == (False, False, b"\n")


def test_retrieval_ids_are_unique_and_every_judgement_names_known_ids() -> None:
    documents, queries = read_jsonl(RETRIEVAL / "corpus.jsonl"), read_jsonl(RETRIEVAL / "queries.jsonl")
    document_ids, query_ids = ({record["_id"] for record in records} for records in (documents, queries))
    assert (len(document_ids), len(query_ids)) == (len(documents), len(queries)) == (110, 66)
    qrels = read_table(RETRIEVAL / "qrels" / "test.tsv")
    assert list(qrels[0]) == ["query-id", "corpus-id", "score"]
    assert {row["query-id"] for row in qrels} == query_ids
    assert {row["corpus-id"] for row in qrels} <= document_ids
    assert {row["score"] for row in qrels} == {"1", "2"}
    judged = [(row["query-id"], row["corpus-id"]) for row in qrels]
    assert len(set(judged)) == len(judged)


def test_documents_carry_metadata_and_leak_neither_queries_nor_group_sentences() -> None:
    documents = read_jsonl(RETRIEVAL / "corpus.jsonl")
    topics = {row["topic"] for row in read_table(SAMPLE / "groups.tsv")}
    assert {document["topic"] for document in documents} == topics
    assert {type(document["year"]) for document in documents} == {int}
    assert {list(document).index("year") for document in documents} == {4}
    text = "\n".join(f"{document['title']}\n{document['text']}" for document in documents).casefold()
    queries = [record["text"].casefold() for record in read_jsonl(RETRIEVAL / "queries.jsonl")]
    sentences = [row["sentence"].casefold() for row in read_table(SAMPLE / "groups.tsv")]
    assert [phrase for phrase in queries + sentences if phrase in text] == []
