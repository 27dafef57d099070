"""Mining: what is found, what is left out, and that every score and rank has its share."""

from __future__ import annotations

import doctest
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from tiny import make_pairs

from transenc.config import MiningSettings
from transenc.corpus import Document
from transenc.encoders import load_bi_encoder
from transenc.errors import InputError
from transenc.mining import candidates, cleaning, mine_corpus, mine_lists, mine_pairs, sentences
from transenc.mining.candidates import draw_ranks, merge_pairs, pair_up, place_in_bins, share_evenly, take_cosines
from transenc.mining.cleaning import find_distinct, find_neighbours, keep_letters
from transenc.mining.sentences import SOURCES, choose_pairs
from transenc.pairs import read_pairs
from transenc.scoring import score_pairs
from transenc.search.sentences import split_sentences
from transenc.search.vector_index import VectorIndex


@pytest.fixture(scope="module")
def model(tiny_bi: Path) -> SentenceTransformer:
    return load_bi_encoder(tiny_bi)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """170 different sentences, none of them a near-duplicate by its words."""
    return list(dict.fromkeys(sentence for pair in make_pairs(90) for sentence in pair))[:170]


@pytest.fixture(scope="module")
def documents(texts: list[str]) -> list[Document]:
    """30 documents of 5 sentences; every other one has a title."""
    lines = [f"{text.capitalize()}." for text in texts]
    return [
        Document(f"d{i}", " ".join(lines[5 * i : 5 * i + 5]), title=f"{lines[-1 - i // 2][:-1]} story" * (i % 2))
        for i in range(30)
    ]


def make_circle(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def index_circle(*degrees: float) -> VectorIndex:
    return VectorIndex.build(make_circle(*degrees), "exact")


@pytest.mark.parametrize("module", [candidates, cleaning, sentences])
def test_examples_run(module: ModuleType) -> None:
    from transenc.mining import documents, library, lists

    for each in (module, documents, library, lists):
        names = {"np": np, "VectorIndex": VectorIndex}
        assert doctest.testmod(each, extraglobs=names).failed == 0


# ---- what is left out


def test_letters_decide_what_is_boilerplate() -> None:
    lines = ["Page 3 of 17", "p. 4", "PAGE 12 of 17!", "...", "12:30", "", "P 5", "Page three of 17"]
    assert find_distinct(lines) == [0, 1, 7]
    assert keep_letters("हिन्दी १२, ไม่มี 7") == "हिन्दी ไม่มี"  # marks belong to their letters
    assert find_distinct(["雨が降る。", "雨が降る", "雪が降る。"]) == [0, 2]


def test_of_near_duplicates_the_earlier_stays() -> None:
    # cosines: 1 degree 0.99985, 2 degrees 0.9994, 3 degrees 0.9986
    kept, near = find_neighbours(index_circle(0, 60, 2, 1, 61, 3.5, 120), 2, near_duplicate=0.9993)
    assert np.flatnonzero(kept).tolist() == [0, 1, 5, 6]
    assert near[0].tolist() == [5, 1]
    assert near[6].tolist() == [1, 5]


def test_a_duplicate_of_a_duplicate_that_went_stays() -> None:
    kept, _ = find_neighbours(index_circle(0, 2, 4), 2, near_duplicate=0.9993)
    assert kept.tolist() == [True, False, True]


def test_near_duplicates_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    degrees = np.random.default_rng(0).uniform(0, 170, 60)
    expected = find_neighbours(index_circle(*degrees), 59, near_duplicate=0.999)[0]
    cosines = make_circle(*degrees) @ make_circle(*degrees).T
    kept: list[int] = []
    for row in range(60):
        if not (cosines[row, kept] >= 0.999).any():
            kept.append(row)
    assert np.flatnonzero(expected).tolist() == kept
    assert len(kept) < 60
    monkeypatch.setattr(cleaning, "_QUERIES_AT_ONCE", 7)
    assert find_neighbours(index_circle(*degrees), 59, near_duplicate=0.999)[0].tolist() == expected.tolist()


def test_more_copies_than_neighbours_all_go() -> None:
    degrees = [0.0] * 50 + [90.0] * 50 + [45.0]
    kept, near = find_neighbours(index_circle(*degrees), 3, near_duplicate=0.98)
    assert np.flatnonzero(kept).tolist() == [0, 50, 100]
    assert near[kept].tolist() == [[100, 50, -1], [100, 0, -1], [0, 50, -1]]


def test_mined_pairs_hold_no_boilerplate_and_no_near_duplicate(
    model: SentenceTransformer, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    copies = [f"{text.upper()} 17 !" for text in texts[:20]] + ["42", "--"]
    with caplog.at_level(logging.INFO, "transenc"):
        mined = mine_pairs(model, [*texts, *copies], settings=MiningSettings(near_duplicate=0.95), seed=1)
    assert "boilerplate left out: 22 of 192 sentences" in caplog.text
    found = {*mined["sentence1"], *mined["sentence2"]}
    assert found <= set(texts)
    assert max(mined["cosine"]) < 0.95
    clean = mine_pairs(model, texts, settings=MiningSettings(near_duplicate=0.95), seed=1)
    assert clean[:] == mined[:]


# ---- ranks and bins


def test_a_middle_rank_is_log_uniform_and_a_random_one_uniform() -> None:
    vectors = make_circle(*np.linspace(0, 170, 2000))  # from the first, rank r is row r
    middle, anywhere = draw_ranks(
        vectors, np.arange(2000), vectors, np.zeros(1, np.int64), beyond=10, count=20_000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    ranks = np.sort(middle[0])
    assert ranks[0] == 10 and ranks[-1] >= 1990
    # half of the ranks lie below the geometric mean of 11 and 2001
    assert np.mean(ranks + 1 < np.sqrt(11 * 2001)) == pytest.approx(0.5, abs=0.02)
    assert anywhere.mean() == pytest.approx(999.5, abs=15)
    assert (anywhere.min(), anywhere.max()) == (0, 1999)


def test_ranks_are_drawn_among_the_allowed_only() -> None:
    vectors = make_circle(*range(0, 180, 3))
    allowed = np.array([3, 20, 41])
    for drawn in draw_ranks(vectors, allowed, vectors, np.arange(60), beyond=10, count=4, rng=np.random.default_rng(0)):
        assert drawn.shape == (60, 4)
        assert set(drawn.ravel().tolist()) <= set(allowed.tolist())


def test_a_pair_is_there_once_from_its_first_source() -> None:
    first = pair_up(np.array([0, 2]), np.array([[1, 2], [0, -1]]), 0)
    second = pair_up(np.array([1, 2]), np.array([[0, 2], [2, 1]]), 3)
    merged = merge_pairs([first, second], symmetric=True)
    assert merged[["left", "right", "source"]].tolist() == [(0, 1, 0), (0, 2, 0), (1, 2, 3)]
    both = merge_pairs([first, second], symmetric=False)
    assert both[["left", "right", "source"]].tolist() == [
        (0, 1, 0), (0, 2, 0), (1, 0, 3), (1, 2, 3), (2, 0, 0), (2, 1, 3),
    ]  # fmt: skip


def test_cosines_are_those_of_the_rows() -> None:
    pairs = pair_up(np.array([0, 1]), np.array([[1, 2], [2, -1]]), 0)
    take_cosines(make_circle(0, 60, 180), pairs)
    assert pairs["cosine"].tolist() == pytest.approx([0.5, -1.0, -0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "total", "shares"),
    [
        ([5, 5, 5], 6, [2, 2, 2]),
        ([5, 5, 5], 8, [2, 3, 3]),
        ([1, 9, 0, 2], 9, [1, 6, 0, 2]),
        ([1, 9, 0, 2], 99, [1, 9, 0, 2]),
        ([3, 4], 1, [0, 1]),
    ],
)
def test_bins_share_a_total(counts: list[int], total: int, shares: list[int]) -> None:
    assert share_evenly(np.array(counts), total).tolist() == shares


def test_equal_scores_are_one_bin() -> None:
    assert place_in_bins(np.full(4, 0.3, np.float32), 10).tolist() == [0, 0, 0, 0]


def test_every_bin_with_candidates_has_its_share() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(400, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    everything = choose_pairs([], vectors, settings=MiningSettings(pairs_per_sentence=99, near_duplicate=1.0), seed=1)
    available = np.bincount(place_in_bins(everything["cosine"], 10), minlength=10)
    assert (available > 0).all()
    kept = choose_pairs([], vectors, settings=MiningSettings(pairs_per_sentence=1, near_duplicate=1.0), seed=1)
    edges = np.linspace(everything["cosine"].min(), everything["cosine"].max(), 11)
    found, _ = np.histogram(kept["cosine"], bins=edges)
    assert found.sum() == 400
    assert sorted(found.tolist()) == sorted(share_evenly(available, 400).tolist())
    assert {SOURCES[source] for source in kept["source"]} == {"neighbour", "middle", "random"}


# ---- pairs of sentences


def test_pairs_are_counted_typed_symmetric_once_and_scored_as_everywhere(
    model: SentenceTransformer, texts: list[str]
) -> None:
    mined = mine_pairs(model, texts, settings=MiningSettings(pairs_per_sentence=1.5), seed=7)
    assert mined.column_names == ["sentence1", "sentence2", "source", "cosine"]
    assert mined.features["cosine"].dtype == "float32"
    pairs = [frozenset(pair) for pair in zip(mined["sentence1"], mined["sentence2"], strict=True)]
    assert len(set(pairs)) == len(pairs)
    assert {len(pair) for pair in pairs} == {2}
    kept = len({*mined["sentence1"], *mined["sentence2"]})
    assert 1.5 * kept <= len(mined) <= 255
    np.testing.assert_allclose(mined["cosine"][:], score_pairs(model, mined), atol=1e-5)
    assert read_pairs(mined).num_rows == len(mined)


def test_the_seed_decides_and_batches_do_not(model: SentenceTransformer, texts: list[str], tmp_path: Path) -> None:
    settings = MiningSettings(max_pairs=60)
    first = mine_pairs(model, texts, settings=settings, seed=5)
    again = mine_pairs(model, texts, settings=settings, seed=5, batch_tokens=64, work=tmp_path)
    other = mine_pairs(model, texts, settings=settings, seed=6)
    assert len(first) == len(again) == len(other) == 60
    for column in ("sentence1", "sentence2", "source"):
        assert first[column][:] == again[column][:]
    np.testing.assert_allclose(first["cosine"][:], again["cosine"][:], atol=1e-6)
    assert first["sentence1"][:] != other["sentence1"][:]
    assert list(tmp_path.iterdir()) == []


def test_words_find_what_the_encoder_does_not() -> None:
    pytest.importorskip("bm25s", reason="BM25 needs the extra hybrid")
    lines = ["a zebra sleeps", "rain and snow", "the zebra eats", *(f"word{chr(97 + i)} alone" for i in range(20))]
    vectors = make_circle(*[0, 5, 179, *range(10, 170, 8)])  # the zebras are as far from each other as any
    settings = MiningSettings(pairs_per_sentence=99, neighbours=1, lexical=True)
    pairs = choose_pairs(lines, vectors, settings=settings, seed=0)
    found = {(row["left"], row["right"]): SOURCES[row["source"]] for row in pairs}
    assert found[0, 2] == "lexical"


def test_three_sentences_give_three_pairs(model: SentenceTransformer, texts: list[str]) -> None:
    mined = mine_pairs(model, texts[:3], settings=MiningSettings(near_duplicate=1.0))
    found = {frozenset(pair) for pair in zip(mined["sentence1"], mined["sentence2"], strict=True)}
    assert found == {frozenset(pair) for pair in ((texts[0], texts[1]), (texts[0], texts[2]), (texts[1], texts[2]))}


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], "expected at least 2 that differ in their words, found 0"),
        (["It rains."], "found 1"),
        (["It rains."] * 9, "found 1"),
        (["1", "2", "3"], "found 0"),
        (["It rains.", "It snows."], "expected at least 2 pairs below the cosine of near-duplicates, 0.98, found"),
        (["It rains.", "It \ud800 snows."], "sentence 1 holds a lone surrogate"),
    ],
)
def test_too_little_text_is_refused(model: SentenceTransformer, lines: list[str], found: str) -> None:
    with pytest.raises(InputError, match=found):
        mine_pairs(model, lines)


def test_wrong_types_are_named(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="sentences must be a sequence such as a list, found str"):
        mine_pairs(model, "It rains.")
    with pytest.raises(TypeError, match="sentence 1 must be a string, found int"):
        mine_pairs(model, ["It rains.", 2])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a bi-encoder"):
        mine_pairs(object(), ["It rains.", "It snows."])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_pairs must be 2 or more, found 1"):
        MiningSettings(max_pairs=1)


def test_a_line_of_a_million_characters_and_languages_without_spaces(model: SentenceTransformer) -> None:
    lines = ["雨が降る。", "ฝนตกหนัก", "一只猫在睡觉", "the cat sleeps " + "x" * 1_000_000, "the dog sleeps alone"]
    mined = mine_pairs(model, lines, settings=MiningSettings(near_duplicate=1.0, neighbours=4))
    assert set(map(len, [*mined["sentence1"], *mined["sentence2"]])) <= set(map(len, lines))
    assert np.isfinite(mined["cosine"][:]).all()


# ---- pairs of documents


def list_parts(document: Document) -> set[str]:
    return {*split_sentences(document.title), *split_sentences(document.text)}


def test_documents_give_queries_and_what_the_cross_encoder_reads(
    model: SentenceTransformer, documents: list[Document]
) -> None:
    mined = mine_corpus(model, documents, settings=MiningSettings(near_duplicate=1.0, pairs_per_sentence=99), seed=1)
    assert mined.column_names == ["sentence1", "sentence2", "source", "cosine", "document1", "document2"]
    by_id = {document.id: document for document in documents}
    rows = mined.to_list()
    assert len({(row["sentence1"], row["sentence2"]) for row in rows}) == len(rows)
    assert {row["source"] for row in rows} == {"title", "sentence", "adjacent", "near", "middle", "random"}
    for row in rows:
        one, two = by_id[row["document1"]], by_id[row["document2"]]
        own = row["source"] in ("title", "sentence", "adjacent")
        assert (one.id == two.id) == own
        query, read = row["sentence1"], row["sentence2"]
        assert (query == one.title) if row["source"] == "title" else query in {one.title, *list_parts(one)}
        assert query.casefold() not in read.casefold()
        assert read in list_parts(two)
    np.testing.assert_allclose(mined["cosine"][:], score_pairs(model, mined, symmetric=False), atol=1e-5)


def test_of_its_own_passage_a_query_meets_the_sentences_that_share_its_words(model: SentenceTransformer) -> None:
    parts = [
        "The cat sees the green river today.",
        "Bread is warm and soft at home.",
        "The river holds a small cold stone.",
        "Two green boats follow the singer.",
    ]
    others = [Document(f"o{i}", f"The {a} {b} sings the story.") for i, (a, b) in enumerate(
        [("old", "singer"), ("young", "baker"), ("loud", "farmer"), ("quiet", "mouse")])]  # fmt: skip
    document = Document("d", " ".join(parts), title="Green river")
    mined = mine_corpus(model, [document, *others], settings=MiningSettings(pairs_per_sentence=50, near_duplicate=1.0))
    rows = mined.to_list()
    assert {row["sentence2"] for row in rows if row["source"] == "title"} == {parts[0], parts[2], parts[3]}
    around = {row["sentence2"] for row in rows if row["sentence1"] == parts[1] and row["source"] == "adjacent"}
    rest = {row["sentence2"] for row in rows if row["sentence1"] == parts[1] and row["source"] == "sentence"}
    assert around | rest == {"Green river", parts[0], parts[2]}  # no shared words: the first three, and the neighbours


def test_corpus_pairs_cover_the_scores_and_are_decided_by_the_seed(
    model: SentenceTransformer, documents: list[Document]
) -> None:
    settings = MiningSettings(near_duplicate=1.0)
    first = mine_corpus(model, documents, settings=settings, seed=1)
    assert len(first) == 60
    counts, _ = np.histogram(first["cosine"][:], bins=10)
    assert (counts > 0).all()
    again = mine_corpus(model, iter(documents), settings=settings, seed=1, batch_tokens=128)
    assert again.remove_columns("cosine").to_list() == first.remove_columns("cosine").to_list()
    assert mine_corpus(model, documents, settings=settings, seed=2).to_list() != first.to_list()
    assert len(mine_corpus(model, documents, settings=MiningSettings(near_duplicate=1.0, max_pairs=7))) == 7


def test_a_long_document_meets_what_comes_next(model: SentenceTransformer, texts: list[str]) -> None:
    long = Document("long", " ".join(f"{text.capitalize()}." for text in texts[:60]))
    short = Document("short", " ".join(f"{text.capitalize()}." for text in texts[60:62]))
    mined = mine_corpus(model, [long, short], settings=MiningSettings(pairs_per_sentence=400, near_duplicate=1.0))
    parts = split_sentences(long.text)
    distances: dict[str, set[int]] = {"sentence": set(), "adjacent": set()}
    for row in mined.to_list():
        if row["source"] in distances and row["document1"] == "long":
            distances[row["source"]].add(parts.index(row["sentence2"]) - parts.index(row["sentence1"]))
    # the window of 64 tokens holds about 7 of the sentences
    assert {-1, 1, 2} <= distances["sentence"] and max(distances["sentence"]) < 9
    assert 5 <= max(distances["adjacent"]) < 20


def test_no_more_queries_are_asked_than_the_pairs_need(
    model: SentenceTransformer, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transenc.mining import documents as mining_documents
    from transenc.mining.library import Library

    asked: list[int] = []
    read = Library.read
    monkeypatch.setattr(Library, "read", lambda self, queries, *a, **k: asked.append(len(queries)) or read(  # type: ignore[func-returns-value]
        self, queries, *a, **k))  # fmt: skip
    monkeypatch.setattr(mining_documents, "_QUERIES_AT_LEAST", 5)
    for settings, count in ((MiningSettings(near_duplicate=1.0), 30), (MiningSettings(max_pairs=4), 5)):
        mined = mine_corpus(model, documents, settings=settings)
        assert len(mined) == settings.count_pairs(30)
        assert asked.pop() == count


@pytest.mark.parametrize(
    ("text", "query", "given_away"),
    [
        ("The bridge was built in 1932, and it stands.", "The bridge was built in 1932.", True),
        ("It stands: the “bridge” WAS built in 1932!", "The bridge was built in 1932.", True),
        ("The bridge was built in 1933, and it stands.", "The bridge was built in 1932.", False),
        ("A river - cold and deep.", "A river.", True),
        ("It is a river.", "A river.", False),  # short
        ("雨が降る、そして", "雨が降る。", True),
    ],
)
def test_a_query_leaks_whatever_its_punctuation(text: str, query: str, given_away: bool) -> None:
    from transenc.mining.library import _gives_away

    assert _gives_away(text, query) is given_away


def test_one_sentence_documents_and_titles_alone(model: SentenceTransformer, texts: list[str]) -> None:
    lines = [Document(str(i), text) for i, text in enumerate(texts[:12])]
    mined = mine_corpus(model, [*lines, Document("t", "", title="the old bridge")], settings=MiningSettings())
    assert set(mined["source"]) <= {"near", "middle", "random"}
    assert all(row["document1"] != row["document2"] for row in mined.to_list())
    assert "t" not in mined["document1"][:]


def test_a_sentence_that_many_documents_have_is_read_of_one_only(
    model: SentenceTransformer, documents: list[Document]
) -> None:
    notice = "The old bridge opens 2019 under the moon."
    noted = [Document(d.id, f"{d.text} {notice.replace('2019', str(2000 + i))}") for i, d in enumerate(documents)]
    mined = mine_corpus(model, noted, settings=MiningSettings(pairs_per_sentence=99, near_duplicate=1.0))
    rows = [row for row in mined.to_list() if row["sentence2"].startswith("The old bridge opens")]
    assert len({row["document2"] for row in rows}) == 1
    assert len({row["sentence1"] for row in mined.to_list() if "bridge opens" in row["sentence1"]}) <= 1


def test_repeated_documents_go(model: SentenceTransformer, documents: list[Document], caplog) -> None:
    copies = [Document(f"copy{i}", d.text.upper(), title=d.title) for i, d in enumerate(documents[:10])]
    with caplog.at_level(logging.INFO, "transenc"):
        mined = mine_corpus(model, [*documents, *copies], settings=MiningSettings(near_duplicate=1.0))
    assert "left out: 10 of 40 documents" in caplog.text
    assert not any(row["document2"].startswith("copy") for row in mined.to_list())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], "expected at least 2 that differ in their words, found 0"),
        ([Document("a", "It rains."), Document("b", "it rains 2")], "found 1"),
        ([Document("a", "", title="It rains"), Document("b", "", title="It snows")], "expected at least 2 pairs"),
    ],
)
def test_too_few_documents_are_refused(model: SentenceTransformer, given: list[Document], found: str) -> None:
    with pytest.raises(InputError, match=found):
        mine_corpus(model, given)


def test_what_is_no_document_is_named(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="document 0 must be a Document, found str"):
        mine_corpus(model, ["It rains."])  # type: ignore[list-item]


# ---- lists


def list_of(kind: str, texts: list[str], documents: list[Document]) -> list[str] | list[Document]:
    return texts if kind == "sentences" else documents


@pytest.mark.parametrize("kind", ["sentences", "documents"])
def test_lists_hold_different_texts_and_never_the_query(
    model: SentenceTransformer, texts: list[str], documents: list[Document], kind: str
) -> None:
    settings = MiningSettings(near_duplicate=1.0)
    given = list_of(kind, texts, documents)
    mined = mine_lists(model, given, size=5, settings=settings, seed=1)
    assert len(mined) == 2 * len(given) // 5
    for row in mined.to_list():
        assert len({row["query"], *row["texts"]}) == 6
    assert len(set(mined["query"])) == len(mined)
    assert mine_lists(model, given, size=5, settings=settings, seed=1).to_list() == mined.to_list()
    assert mine_lists(model, given, size=5, settings=settings, seed=2).to_list() != mined.to_list()


def test_a_list_begins_with_the_nearest_or_with_its_own_document(
    model: SentenceTransformer, texts: list[str], documents: list[Document]
) -> None:
    settings = MiningSettings(near_duplicate=1.0, max_pairs=40)
    near = mine_lists(model, texts, size=4, settings=settings).to_list()
    scores = [score_pairs(model, [(row["query"], text) for text in texts if text != row["query"]]) for row in near]
    for row, others in zip(near, scores, strict=True):
        assert score_pairs(model, [(row["query"], row["texts"][0])])[0] == pytest.approx(others.max(), abs=1e-5)
    for row in mine_lists(model, documents, size=4, settings=settings).to_list():
        owner = next(d for d in documents if row["query"] in {d.title, *list_parts(d)})
        assert row["texts"][0] in list_parts(owner)
        assert not set(row["texts"][1:]) & list_parts(owner)


def test_lists_that_stay_short_are_counted(
    model: SentenceTransformer, documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    lone = [Document(f"lone{i}", f"{word} alone.") for i, word in enumerate(("Rain", "Snow", "Wind"))]
    settings = MiningSettings(near_duplicate=1.0, neighbours=1, pairs_per_sentence=99)
    mined = mine_lists(model, [*documents[:3], *lone], size=6, settings=settings)
    short, total = map(int, re.search(r"(\d+) of (\d+) lists left out: fewer than 6", caplog.text).groups())  # type: ignore[union-attr]
    assert short > 0
    assert total == short + len(mined)


@pytest.mark.parametrize(
    ("size", "error", "found"),
    [
        (1, InputError, "at least 2 texts, found 1"),
        (True, TypeError, "whole number"),
        (300, InputError, "lists of 300"),
    ],
)
def test_impossible_lists_are_refused(
    model: SentenceTransformer, texts: list[str], size: int, error: type[Exception], found: str
) -> None:
    with pytest.raises(error, match=found):
        mine_lists(model, texts, size=size)


def test_lists_of_other_things_are_refused(model: SentenceTransformer) -> None:
    check: Callable[..., Dataset] = mine_lists
    with pytest.raises(TypeError, match="texts must be sentences or documents, found str"):
        check(model, "It rains.", size=2)
    with pytest.raises(InputError, match="found 0"):
        check(model, [], size=2)
