"""BM25 as in the papers, the same bytes for the same texts, and ranks fused by hand."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transenc.errors import InputError, StateError
from transenc.search.lexical import LexicalIndex, fuse_ranks

TEXTS = ["A cat, a dog", "the dog sees a dog", "The bird", "", "!?"]


def found(index: LexicalIndex, query: str, top_k: int = 10, **options: Any) -> list[tuple[int, float]]:
    positions, scores = index.search([query], top_k, **options)[0]
    assert (positions.dtype, scores.dtype) == (np.int64, np.float32)
    return [(int(position), float(score)) for position, score in zip(positions, scores, strict=True)]


def bm25(count: int, *, length: int, containing: int) -> float:
    """The score of one word in one of TEXTS: 5 texts, 11 words."""
    idf = math.log(1 + (5 - containing + 0.5) / (containing + 0.5))
    return idf * count / (count + 1.2 * (1 - 0.75 + 0.75 * length / (11 / 5)))


# ---- scores and order


def test_scores_are_those_of_the_formula() -> None:
    index = LexicalIndex.build(TEXTS)
    assert len(index) == 5
    dog = [(1, bm25(2, length=5, containing=2)), (0, bm25(1, length=4, containing=2))]
    assert found(index, "dog") == [(position, pytest.approx(score, rel=1e-6)) for position, score in dog]
    both = bm25(1, length=4, containing=1) + bm25(1, length=4, containing=2)
    assert found(index, "Cat DOG")[0] == (0, pytest.approx(both, rel=1e-6))
    twice = 2 * bm25(1, length=2, containing=1)  # a word of the query counts as often as it stands there
    assert found(index, "bird, bird!") == [(2, pytest.approx(twice, rel=1e-6))]


def test_words_are_lower_case_runs_of_letters_and_digits() -> None:
    index = LexicalIndex.build(["Café-Bar 24h", "snake_case", "x" * 300])
    assert [position for position, _ in found(index, "CAFÉ")] == [0]
    assert [position for position, _ in found(index, "bar")] == [0]
    assert found(index, "cafe") == found(index, "snake") == found(index, "24") == []
    assert [position for position, _ in found(index, "x" * 255)] == [2]  # longer runs are cut


@pytest.mark.parametrize("query", ["", "  ", "fish", "?!", "\ud800"])
def test_a_query_without_a_known_word_finds_nothing(query: str) -> None:
    assert found(LexicalIndex.build(TEXTS), query) == []


def test_ties_are_in_order_of_position_also_at_the_cut() -> None:
    index = LexicalIndex.build(["cat", "dog", "cat", "cat cat", "cat"])
    assert [position for position, _ in found(index, "cat")] == [3, 0, 2, 4]
    for top_k, expected in [(1, [3]), (2, [3, 0]), (3, [3, 0, 2]), (4, [3, 0, 2, 4]), (10**9, [3, 0, 2, 4])]:
        assert [position for position, _ in found(index, "cat", top_k)] == expected


def test_only_what_is_allowed_is_found_and_it_is_chosen_before_the_cut() -> None:
    index = LexicalIndex.build(["cat cat", "cat", "dog", "cat"])
    everything = dict(found(index, "cat"))
    allowed = np.array([False, True, True, True])
    assert found(index, "cat", 2, allowed=allowed) == [(1, everything[1]), (3, everything[3])]
    assert found(index, "cat", allowed=np.zeros(4, dtype=bool)) == []


def test_queries_are_answered_one_by_one() -> None:
    index = LexicalIndex.build(TEXTS)
    answers = index.search(["dog", "fish", "bird"], 1)
    assert [positions.tolist() for positions, _ in answers] == [[1], [], [2]]
    assert index.search([], 5) == []


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "8", True, None])
def test_top_k_is_checked(top_k: Any) -> None:
    with pytest.raises(InputError, match="top_k"):
        LexicalIndex.build(TEXTS).search(["dog"], top_k)


@pytest.mark.parametrize(
    ("queries", "message"), [("dog", "found str"), (["dog", 1], "query 1 must be a string, found int")]
)
def test_queries_of_another_type_are_refused(queries: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LexicalIndex.build(TEXTS).search(queries, 5)


@pytest.mark.parametrize("allowed", [np.ones(4, dtype=bool), np.ones(5, dtype=np.int64), np.ones((5, 1), dtype=bool)])
def test_a_mask_that_does_not_fit_is_refused(allowed: np.ndarray) -> None:
    with pytest.raises(InputError, match="a bool for each of 5 texts"):
        LexicalIndex.build(TEXTS).search(["dog"], 5, allowed=allowed)


# ---- building and keeping


@pytest.mark.parametrize("texts", [[], [""], ["?!", " ", ""]])
def test_texts_without_words_can_be_indexed(texts: list[str], tmp_path: Path) -> None:
    LexicalIndex.build(texts).save(tmp_path)
    index = LexicalIndex.open(tmp_path)
    assert (len(index), found(index, "dog")) == (len(texts), [])


@pytest.mark.parametrize(("texts", "message"), [("dog", "found one str"), (["dog", None], "text 1 .* found NoneType")])
def test_texts_of_another_type_are_refused(texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LexicalIndex.build(texts)


def test_texts_are_read_once_as_a_stream() -> None:
    index = LexicalIndex.build(text for text in TEXTS)
    assert found(index, "dog") == found(LexicalIndex.build(TEXTS), "dog")


def test_an_index_is_kept_without_pickle_and_mapped_when_opened(tmp_path: Path) -> None:
    index = LexicalIndex.build(TEXTS)
    index.save(tmp_path)
    assert sorted({path.suffix for path in tmp_path.iterdir()}) == [".json", ".npy"]
    for path in tmp_path.iterdir():
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        else:
            json.loads(path.read_bytes())
    opened = LexicalIndex.open(tmp_path)
    assert isinstance(opened._bm25.scores["data"], np.memmap)
    for query in ("dog", "a cat", "bird the", "fish"):
        assert found(opened, query) == found(index, query)


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    code = (
        f"import sys; from transenc.search.lexical import LexicalIndex\nLexicalIndex.build({TEXTS!r}).save(sys.argv[1])"
    )
    digests = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 5


@pytest.mark.parametrize("damage", ["missing", "cut", "no JSON", "of another index", "not a folder"])
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, damage: str) -> None:
    LexicalIndex.build(TEXTS).save(tmp_path / "a")
    LexicalIndex.build(["cat"]).save(tmp_path / "b")
    data, vocabulary = tmp_path / "a/data.csc.index.npy", tmp_path / "a/vocab.index.json"
    if damage == "missing":
        data.unlink()
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-4])
    elif damage == "no JSON":
        vocabulary.write_text("{", encoding="utf-8")
    elif damage == "of another index":
        vocabulary.write_bytes((tmp_path / "b/vocab.index.json").read_bytes())
    with pytest.raises(StateError, match="build the index again"):
        LexicalIndex.open(tmp_path / ("a" if damage != "not a folder" else "c"))


def test_pickled_arrays_are_never_opened(tmp_path: Path) -> None:
    LexicalIndex.build(TEXTS).save(tmp_path)
    np.save(tmp_path / "data.csc.index.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StateError, match="cannot be read"):
        LexicalIndex.open(tmp_path)


def test_nothing_is_shown_unless_asked(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        LexicalIndex.build(TEXTS).search(["dog", ""], 3)
    assert (capfd.readouterr(), caplog.messages) == (("", ""), [])
    LexicalIndex.build(TEXTS, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "BM25" in err


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    for call in (lambda: LexicalIndex.build(TEXTS), lambda: LexicalIndex.open(tmp_path)):
        with pytest.raises(InputError, match=r"extra `hybrid`: pip install 'transenc\[hybrid\]'"):
            call()


# ---- fusion


def test_reciprocal_ranks_are_added() -> None:
    fused = dict(fuse_ranks([["a", "b", "c"], ["c", "a"]]))
    assert fused == {
        "a": pytest.approx(1 / 61 + 1 / 62),
        "b": pytest.approx(1 / 62),
        "c": pytest.approx(1 / 63 + 1 / 61),
    }
    assert fuse_ranks([["b"]], constant=0) == [("b", 1.0)]


def test_ties_of_a_fusion_are_in_order_of_id() -> None:
    rankings = [["b", "a", "z"], ["a", "b", "y"]]
    assert [key for key, _ in fuse_ranks(rankings)] == ["a", "b", "y", "z"]
    rotated = [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]  # the sums differ in order only
    assert len({score for _, score in fuse_ranks(rotated)}) == 1


def test_a_fusion_of_nothing_is_empty() -> None:
    assert fuse_ranks([]) == fuse_ranks([[], []]) == []


def test_what_cannot_be_fused_is_refused() -> None:
    with pytest.raises(InputError, match="ranking 1 has an id twice"):
        fuse_ranks([["a"], ["b", "c", "b"]])
    with pytest.raises(TypeError, match="ranking 0 must be a sequence of ids, found a string"):
        fuse_ranks(["abc"])
    for constant in (-1, float("nan")):
        with pytest.raises(InputError, match="constant"):
            fuse_ranks([["a"]], constant=constant)


# ---- real texts


@pytest.mark.parametrize(("name", "expected"), [("scifact", 0.663), ("cranfield", 0.349)])
def test_bm25_reaches_the_known_quality(shared_data: Path, name: str, expected: float) -> None:
    folder = shared_data / "retrieval" / name
    documents = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    relevant: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels/test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        relevant.setdefault(query, {})[document] = int(grade)
    texts = {query["_id"]: query["text"] for query in queries}
    index = LexicalIndex.build(f"{document.get('title', '')} {document['text']}" for document in documents)
    figures = []
    for key, grades in relevant.items():
        positions, _ = index.search([texts[key]], 10)[0]
        gains = [max(0, grades.get(documents[position]["_id"], 0)) for position in positions]
        ideal = sorted((max(0, grade) for grade in grades.values()), reverse=True)[:10]
        best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal))
        figures.append(sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains)) / best if best else 0.0)
    assert np.mean(figures) == pytest.approx(expected, abs=0.001)
