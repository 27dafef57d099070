"""The retrieval benchmarks: on small folders made here, on a stand-in for the Hub, on the sample and the real files."""

from __future__ import annotations

import doctest
import gzip
import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset

from transenc import retrieval_sets
from transenc.corpus import Document
from transenc.errors import InputError
from transenc.retrieval_sets import load_retrieval

SAMPLE = Path(__file__).parents[1] / "data" / "sample"

DOCUMENTS = [
    {"_id": "d1", "title": "Title", "text": "One.", "year": 2020},
    {"_id": "d2", "title": "", "text": "Two."},
    {"_id": "empty", "title": "", "text": " "},
]
QUERIES = [{"_id": "q2", "text": "two?"}, {"_id": "q1", "text": "one?"}, {"_id": "other", "text": "not judged"}]
QRELS = ["q1\td1\t2", "q1\td2\t0", "q2\td2\t1"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSENC_DATA", raising=False)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dataset_id: str, **_: object) -> Dataset:
        raise InputError(f"Hub dataset {dataset_id!r}: the Hub cannot be reached")

    monkeypatch.setattr(retrieval_sets, "load_hub_dataset", refuse)


def write_set(
    folder: Path, documents: list[dict] = DOCUMENTS, queries: list[dict] = QUERIES, qrels: list[str] = QRELS
) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    return folder


def test_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_set(tmp_path / "mine")
    with caplog.at_level(logging.WARNING):
        loaded = load_retrieval(folder)
    assert loaded.name == "mine"
    assert loaded.documents == [Document("d1", "One.", "Title", {"year": 2020}), Document("d2", "Two.")]
    assert list(loaded.queries.items()) == [("q2", "two?"), ("q1", "one?")]
    assert loaded.qrels == {"q2": {"d2": 1}, "q1": {"d1": 2, "d2": 0}}
    path = folder / "corpus.jsonl"
    assert caplog.messages == [f"{path}: documents without text left out: 1, the first at {path}:3"]
    assert load_retrieval(str(folder)) == loaded


def test_a_compressed_corpus(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "mine")
    plain = folder / "corpus.jsonl"
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert [document.id for document in load_retrieval(folder).documents] == ["d1", "d2"]


def test_where_a_name_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    places = {name: tmp_path / name / "retrieval" / "scifact" for name in ("data", "environment")}
    for name, place in places.items():
        write_set(place, [{"_id": name, "text": "x"}], QUERIES, [f"q1\t{name}\t1"])
    here = write_set(tmp_path / "here" / "scifact", [{"_id": "here", "text": "x"}], QUERIES, ["q1\there\t1"])
    monkeypatch.chdir(here.parent)

    def found(name: str = "scifact", **options: object) -> str:
        return load_retrieval(name, **options).documents[0].id  # type: ignore[arg-type]

    assert found() == "here"
    monkeypatch.setenv("TRANSENC_DATA", str(tmp_path / "environment"))
    assert found() == "environment"
    assert found(data=tmp_path / "data") == "data"
    assert found("./scifact", data=tmp_path / "data") == "here"
    (places["data"] / "qrels" / "test.tsv").rename(places["data"] / "qrels" / "train.tsv")
    assert found(data=tmp_path / "data") == "environment"  # the one that has the split
    assert found(data=tmp_path / "data", split="train") == "data"


def test_counts_other_than_published_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_set(tmp_path / "retrieval" / "scifact", DOCUMENTS[:2])
    with caplog.at_level(logging.WARNING):
        load_retrieval("scifact", data=tmp_path)
    assert caplog.messages == ["scifact has 2 documents, 2 queries and 3 judgements; published are 5183, 300 and 339"]


def test_judgements_of_unknown_queries_and_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_set(tmp_path / "a", DOCUMENTS[:2], QUERIES, ["q1\td1\t1", "q1\tgone\t1", "q2\tgone\t1"])
    with caplog.at_level(logging.WARNING):
        assert load_retrieval(folder).qrels["q1"] == {"d1": 1, "gone": 1}
    place = folder / "qrels" / "test.tsv"
    assert caplog.messages == [f"{place}: judgements of documents that the corpus lacks: 2; they count as not found"]
    folder = write_set(tmp_path / "b", DOCUMENTS, QUERIES, ["q1\td1\t1", "q9\td1\t1", "q8\td1\t1"])
    with pytest.raises(InputError, match=r"test\.tsv: expected judgements of known queries, found query 'q9' \(2 such"):
        load_retrieval(folder)


def test_an_id_that_occurs_twice(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0]])
    path = folder / "corpus.jsonl"
    expected = rf"^{path}:3: the document id 'd1' occurs a second time \(first at {path}:1\)"
    with pytest.raises(InputError, match=expected):
        load_retrieval(folder)


def test_what_is_missing_is_named(tmp_path: Path, no_hub: None) -> None:
    tried = (
        f"no folder retrieval/{{0}} in the `data` folder (--data) or $TRANSENC_DATA ({tmp_path}), "
        "no folder of that path, and "
    )
    with pytest.raises(InputError) as caught:
        load_retrieval("scifact", data=tmp_path)
    hub = "Hub dataset 'mteb/scifact': the Hub cannot be reached"
    assert str(caught.value) == f"scifact: {tried.format('scifact')}{hub}"
    with pytest.raises(InputError) as caught:
        load_retrieval("cranfield", data=tmp_path)
    assert str(caught.value).startswith(f"cranfield: {tried.format('cranfield')}no Hub copy is known")
    with pytest.raises(InputError, match=r"^../none: no folder .*benchmark out of scifact, cranfield$"):
        load_retrieval("../none", data=tmp_path)
    folder = write_set(tmp_path / "mine")
    with pytest.raises(InputError, match=r"dev\.tsv: no such file; .* split 'dev', found splits: test$"):
        load_retrieval(folder, split="dev")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"mine: expected queries\.jsonl, found none"):
        load_retrieval(folder)
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match=r"mine: expected corpus\.jsonl or corpus\.jsonl\.gz, found neither"):
        load_retrieval(folder)
    with pytest.raises(InputError, match=r"^data: no such folder"):
        load_retrieval("scifact", data=tmp_path / "nowhere")


def test_a_corpus_without_documents(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "mine", DOCUMENTS[2:])
    with pytest.raises(InputError, match=r"corpus\.jsonl: expected documents, found none"):
        load_retrieval(folder)


def test_the_hub_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    # As its card shows it: judgements in the default configuration, their scores floats.
    answers = {
        ("corpus", "corpus"): Dataset.from_list([{k: d[k] for k in ("_id", "title", "text")} for d in DOCUMENTS]),
        ("queries", "queries"): Dataset.from_list(QUERIES),
        ("default", "test"): Dataset.from_dict(
            {"query-id": ["q1", "q2"], "corpus-id": ["d1", "d2"], "score": [1.0, 2.0]}
        ),
    }

    def load(dataset_id: str, *, config: str | None = None, split: str = "train") -> Dataset:
        assert dataset_id == "mteb/scifact"
        return answers[str(config), split]

    monkeypatch.setattr(retrieval_sets, "load_hub_dataset", load)
    loaded = load_retrieval("scifact")
    assert loaded.name == "scifact"
    assert loaded.documents == [Document("d1", "One.", "Title"), Document("d2", "Two.")]
    assert loaded.queries == {"q2": "two?", "q1": "one?"}
    assert loaded.qrels == {"q2": {"d2": 2}, "q1": {"d1": 1}}


def test_the_sample() -> None:
    loaded = load_retrieval("sample", data=SAMPLE)
    assert (loaded.name, len(loaded.documents), len(loaded.queries)) == ("sample", 110, 66)
    assert sum(map(len, loaded.qrels.values())) == 76
    assert loaded.documents[0].metadata == {"topic": "cooking", "year": 2019}


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("scifact", "test", (5183, 300, 339)),
        ("scifact", "train", (5183, 809, 919)),
        ("cranfield", "test", (1398, 225, 1612)),
    ],
)
def test_real_counts(shared_data: Path, name: str, split: str, counts: tuple[int, ...]) -> None:
    loaded = load_retrieval(name, split=split, data=shared_data)
    assert (len(loaded.documents), len(loaded.queries), sum(map(len, loaded.qrels.values()))) == counts


def test_examples_run() -> None:
    assert doctest.testmod(retrieval_sets).failed == 0
