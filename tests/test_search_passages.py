"""Long documents become passages that fit the encoder's window and lose nothing."""

from __future__ import annotations

import logging
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import WORDS

from transenc.corpus import Document
from transenc.encoders import load_bi_encoder
from transenc.errors import InputError
from transenc.search.passages import PassageEncoder, passage_text
from transenc.search.store import Passage

WINDOW = 62  # tokens of the tiny model without its two special ones
KNOWN = [word for words in WORDS.values() for word in words]  # one token each


@pytest.fixture(scope="module")
def model(tiny_bi: Path) -> SentenceTransformer:
    return load_bi_encoder(tiny_bi)


@pytest.fixture(scope="module")
def embed(model: SentenceTransformer) -> PassageEncoder:
    return PassageEncoder(model, fingerprint="encoder")


def write_words(count: int, *, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(KNOWN) for _ in range(count))


def place(text: str, word: int) -> int:
    """Where the word of that number, from 0, begins."""
    return len(" ".join(text.split(" ")[:word])) + 1 if word else 0


def spans(embed: PassageEncoder, document: Document) -> list[tuple[int, int]]:
    return [(passage.start, passage.end) for passage in embed([document]).passages]


def record_tokenized(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Keep what reaches the tokenizer, call by call."""
    calls: list[list[str]] = []
    kind: Any = type(model.tokenizer)
    original = kind.__call__

    def wrapper(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        calls.append([text] if isinstance(text, str) else list(text))
        return original(self, text, *args, **options)

    monkeypatch.setattr(kind, "__call__", wrapper)
    return calls


# ---- where passages begin and end


def test_a_document_that_fits_is_one_passage_with_its_title(model: SentenceTransformer, embed: PassageEncoder) -> None:
    found = embed([Document("d1", "the cat sees the dog ", title=" home "), Document("d2", "a bird")])
    assert found.passages == [Passage(0, 0, 21), Passage(1, 0, 6)]
    assert found.truncated == 0
    np.testing.assert_allclose(found.vectors, model.encode(["home the cat sees the dog", "a bird"]), atol=1e-5)
    assert (found.vectors.dtype, found.vectors.shape, embed.dim) == (np.float32, (2, 32), 32)


@pytest.mark.parametrize(("title", "longest"), [("", 62), ("the cat", 60)])
def test_the_window_counts_the_title(embed: PassageEncoder, title: str, longest: int) -> None:
    assert len(spans(embed, Document("d", write_words(longest), title=title))) == 1
    assert len(spans(embed, Document("d", write_words(longest + 1), title=title))) == 2


def test_windows_overlap_by_a_quarter(embed: PassageEncoder) -> None:
    text = write_words(150)
    # 62 words; 15 of them again (62 // 4) and 47 more; the same once more; from word 94 to the end
    ends = [place(text, 62), place(text, 109), len(text)]
    assert spans(embed, Document("d", text)) == list(zip([0, place(text, 47), place(text, 94)], ends, strict=True))


def test_every_passage_is_encoded_with_the_title(model: SentenceTransformer, embed: PassageEncoder) -> None:
    text = write_words(100)
    found = embed([Document("d", text, title="the old bridge")])
    # 3 tokens of title leave 59, of which 14 come again
    assert [(p.start, p.end) for p in found.passages] == [(0, place(text, 59)), (place(text, 45), len(text))]
    expected = ["the old bridge " + " ".join(text.split()[first:last]) for first, last in [(0, 59), (45, 100)]]
    np.testing.assert_allclose(found.vectors, model.encode(expected), atol=1e-5)


def test_a_long_title_takes_a_quarter_of_the_window(model: SentenceTransformer, embed: PassageEncoder) -> None:
    text, title = write_words(100), write_words(40, seed=1)
    found = embed([Document("d", text, title=title)])
    expected = " ".join([*title.split()[:15], *text.split()[:47]])
    assert (found.passages[0].end, found.truncated) == (place(text, 47), 1)
    np.testing.assert_allclose(found.vectors[:1], model.encode([expected]), atol=1e-5)


def test_a_title_alone_fills_the_window(model: SentenceTransformer, embed: PassageEncoder) -> None:
    title = write_words(80)
    found = embed([Document("d", "", title=title), Document("e", " \n", title="a cat")])
    assert (found.passages, found.truncated) == ([Passage(0, 0, 0), Passage(1, 0, 2)], 1)
    expected = model.encode([" ".join(title.split()[:WINDOW]), "a cat"])
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)


def test_a_boundary_within_a_word_moves_to_white_space_when_it_is_near(embed: PassageEncoder) -> None:
    # "zzzz" is 4 tokens: 60 + 4 > 62, and the space before it is 2 tokens away
    text = f"{write_words(60)} zzzz {write_words(20)}"
    assert spans(embed, Document("d", text))[0] == (0, place(text, 60))
    # 30 tokens in one word: the nearest space is more than 62 // 8 tokens away
    text = f"{write_words(40)} {'z' * 30} {write_words(20)}"
    assert spans(embed, Document("d", text))[0] == (0, place(text, 40) + 22)


NASTY = {
    "words": write_words(2000),
    "one run of unknown letters": "z" * 3000,
    "words of 90 letters": " ".join("abcdefghi" * 10 for _ in range(40)),
    "emoji": "😀" * 700 + " cat",
    "combining marks": "e\u0301\u0301 " * 700,
    "right to left, joiners and NUL": "\u202eabc\u200d\x00\x1b " * 400,
    "lines": "\n".join(write_words(7, seed=k) for k in range(80)),
    "punctuation": "?!" * 500,
    "white space within": f"\t {write_words(100)}{' ' * 300}{write_words(100, seed=1)} \n",
    "letters of other scripts": "日本語の文章" * 200,
}


@pytest.mark.parametrize("title", ["", "the cat", write_words(200, seed=3)], ids=["no title", "title", "long title"])
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_passages_cover_the_text_and_fit_the_window(
    model: SentenceTransformer,
    text: str,
    title: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(model.prompts, "document", "the cat sees ")
    with caplog.at_level(logging.WARNING, logger="transenc"):
        found = PassageEncoder(model, fingerprint="encoder")([Document("d", text, title=title)])
    assert caplog.messages == []  # scoring says so when it cuts
    assert found.truncated == (len(title) > 100)
    places = [(passage.start, passage.end) for passage in found.passages]
    assert (places[0][0], places[-1][1]) == (0, len(text))
    for (start, end), (following, last) in pairwise(places):
        assert start < following <= end < last
    assert all(text[start:end].strip() for start, end in places)
    short_title = " ".join(title.split()[:14])  # a quarter of 59: three tokens are the prompt's
    read = [f"{model.prompts['document']}{short_title} {text[start:end].strip()}" for start, end in places]
    assert max(len(ids) for ids in model.tokenizer(read, add_special_tokens=False)["input_ids"]) <= WINDOW


def test_what_the_tokenizer_does_not_see_is_no_passage(embed: PassageEncoder) -> None:
    text = "a cat" + " " * 5000 + "a dog"
    assert [text[start:end].strip() for start, end in spans(embed, Document("d", text))] == ["a cat", "a dog"]
    assert spans(embed, Document("d", "e" + "\u0301" * 5000)) == [(0, 512)]  # marks, which the tokenizer strips
    assert spans(embed, Document("d", "\u0301" * 5000, title="a cat")) == [(0, 512)]


def test_a_block_is_split_like_its_documents_one_by_one(embed: PassageEncoder) -> None:
    documents = [
        Document(f"d{number}", write_words(size, seed=number), title=write_words(number, seed=9))
        for number, size in enumerate([1, 300, 62, 63, 1000, 5])
    ]
    together = embed(documents)
    alone = [embed([document]) for document in documents]
    assert [p.document for p in together.passages] == sorted(p.document for p in together.passages)
    assert [(p.start, p.end) for p in together.passages] == [(p.start, p.end) for one in alone for p in one.passages]
    np.testing.assert_allclose(together.vectors, np.concatenate([one.vectors for one in alone]), atol=1e-5)


# ---- size


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("text", ["z" * 5_000_000, write_words(1000) * 10], ids=["a run", "words"])
def test_huge_texts_reach_the_tokenizer_in_pieces(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, text: str, split: bool
) -> None:
    if split:
        text = text[:300_000]  # the splitting is the same, and 10,000 passages take a while
    embed = PassageEncoder(model, fingerprint="encoder", split=split)
    calls = record_tokenized(model, monkeypatch)
    found = embed([Document("d", text), Document("e", text)])
    assert found.passages[-1].end == len(text)
    assert max(len(piece) for call in calls for piece in call) <= 64 * 16
    assert max(sum(map(len, call)) for call in calls) < 1_100_000


# ---- one passage a document


def test_without_splitting_the_beginning_is_read_and_cuts_are_counted(model: SentenceTransformer) -> None:
    embed = PassageEncoder(model, fingerprint="encoder", split=False)
    text = write_words(63)
    found = embed([Document("a", text), Document("b", "the cat"), Document("c", write_words(61), title="big dog")])
    assert found.passages == [Passage(0, 0, len(text)), Passage(1, 0, 7), Passage(2, 0, len(write_words(61)))]
    assert found.truncated == 2
    expected = model.encode([text, "the cat", f"big dog {write_words(61)}"])
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)


def test_without_splitting_text_beyond_the_characters_read_counts_as_cut(model: SentenceTransformer) -> None:
    embed = PassageEncoder(model, fingerprint="encoder", split=False)
    assert embed([Document("a", "cat" + " " * 2000 + "dog")]).truncated == 1


# ---- prompts


def test_the_prompts_of_the_model_are_used(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.prompts, "query", "who what ")
    monkeypatch.setitem(model.prompts, "document", "the cat sees ")
    embed = PassageEncoder(model, fingerprint="encoder")
    text = write_words(70)
    found = embed([Document("d", text)])
    assert found.passages[0].end == place(text, 59)
    np.testing.assert_allclose(found.vectors[:1], model.encode(["the cat sees " + text[: place(text, 59)]]), atol=1e-5)
    np.testing.assert_allclose(embed.encode_queries(["a cat"]), model.encode(["who what a cat"]), atol=1e-5)


def test_a_prompt_as_long_as_the_window_is_refused(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.prompts, "document", write_words(62))
    with pytest.raises(InputError, match="fills the window of 64 tokens; raise --max-length"):
        PassageEncoder(model, fingerprint="encoder")


# ---- queries


def test_queries_are_encoded(model: SentenceTransformer, embed: PassageEncoder) -> None:
    vectors = embed.encode_queries(["a cat", "the dog", "a cat"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model.encode(["a cat", "the dog", "a cat"]), atol=1e-5)
    assert embed.encode_queries([]).shape == (0, 32)


@pytest.mark.parametrize("query", ["", "  ", "\n\t", "\x00\x1b", "\u200b\u202e", " \x00 "])
def test_an_empty_query_is_refused(embed: PassageEncoder, query: str) -> None:
    with pytest.raises(InputError, match=r"empty query \(number 1\)"):
        embed.encode_queries(["a cat", query])


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("a cat", "queries must be a sequence such as a list, found str"),
        ({"a cat"}, "found set"),
        (None, "found NoneType"),
        (["a cat", None], "query 1 must be a string, found NoneType"),
        ([["a cat"]], "query 0 must be a string, found list"),
        ([b"a cat"], "query 0 must be a string, found bytes"),
    ],
)
def test_queries_of_another_type_are_refused(embed: PassageEncoder, queries: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        embed.encode_queries(queries)


def test_a_query_with_a_lone_surrogate_is_refused(embed: PassageEncoder) -> None:
    with pytest.raises(InputError, match="text 1 holds a lone surrogate"):
        embed.encode_queries(["a cat", "a \ud800"])


# ---- documents that cannot be encoded


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("d7", " \x00\n"), "document 'd7': expected a text or a title, found none; leave the document out"),
        (Document("d7", "", place="docs.jsonl:7"), "^docs.jsonl:7: document 'd7': expected a text or a title"),
        (Document("d7", "cat \udfff"), r"document 'd7': text holds a lone surrogate \(character 4\)"),
        (Document("d7", "cat", title="\udfff"), "document 'd7': title holds a lone surrogate"),
    ],
)
@pytest.mark.parametrize("split", [True, False])
def test_a_document_that_cannot_be_read_is_named(
    model: SentenceTransformer, document: Document, message: str, split: bool
) -> None:
    with pytest.raises(InputError, match=message):
        PassageEncoder(model, fingerprint="encoder", split=split)([Document("d1", "a cat"), document])


def test_what_is_no_document_is_refused(embed: PassageEncoder) -> None:
    with pytest.raises(TypeError, match="document 1 must be a Document, found str"):
        embed([Document("d1", "a cat"), "a dog"])  # type: ignore[list-item]


def test_no_documents_give_no_passages(embed: PassageEncoder) -> None:
    found = embed([])
    assert (found.passages, found.vectors.shape, found.truncated) == ([], (0, 32), 0)


# ---- the encoder itself


def test_what_is_no_bi_encoder_is_refused() -> None:
    with pytest.raises(TypeError, match="found str"):
        PassageEncoder("my/encoder", fingerprint="x")  # type: ignore[arg-type]


def test_a_tokenizer_without_offsets_can_only_truncate(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.tokenizer), "is_fast", property(lambda _: False))
    with pytest.raises(InputError, match="gives no character offsets, which passages need; use --no-passages"):
        PassageEncoder(model, fingerprint="x")
    assert PassageEncoder(model, fingerprint="x", split=False)([Document("d", "a cat")]).truncated == 0


def test_the_fingerprint_names_encoder_and_splitting(model: SentenceTransformer) -> None:
    def fingerprint(name: str, *, split: bool = True) -> str:
        return PassageEncoder(model, fingerprint=name, split=split).fingerprint

    assert fingerprint("a") == fingerprint("a")
    assert len({fingerprint("a"), fingerprint("b"), fingerprint("a", split=False)}) == 3
    assert len(fingerprint("a")) == 64


# ---- what is read


@pytest.mark.parametrize(
    ("document", "span", "expected"),
    [
        (Document("d", "It rains. It is mild.", title="Porto"), (10, 21), "Porto It is mild."),
        (Document("d", "It rains. It is mild."), (0, 10), "It rains."),
        (Document("d", "It rains.", title="Porto"), (-1, -1), "Porto It rains."),
        (Document("d", "", title=" Porto "), (0, 0), "Porto"),
    ],
)
def test_passage_text(document: Document, span: tuple[int, int], expected: str) -> None:
    assert passage_text(document, *span) == expected
