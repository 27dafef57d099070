"""Texts are split into sentences without losing a word, and those that share rare words with the query are chosen."""

from __future__ import annotations

import pytest

from transenc.search.sentences import choose_sentences, split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("It rains.", ["It rains."]),
        (
            "The cat sleeps all day long. The dog barks at the postman!",
            ["The cat sleeps all day long.", "The dog barks at the postman!"],
        ),
        ("The cat sleeps all day long. The dog does not!", ["The cat sleeps all day long. The dog does not!"]),
        (
            "Does it rain in Porto again?\nYes, it is raining there.",
            ["Does it rain in Porto again?", "Yes, it is raining there."],
        ),
        ("Dr. Okafor grows tomatoes. They do.", ["Dr. Okafor grows tomatoes. They do."]),  # a short end joins
        ("pH 7.4 is what blood has, more or less.", ["pH 7.4 is what blood has, more or less."]),
        ("\u732b" * 30 + "\u3002" + "\u72ac" * 30 + "\u3002", ["\u732b" * 30 + "\u3002", "\u72ac" * 30 + "\u3002"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_what_has_no_punctuation_is_cut_at_words() -> None:
    text = " ".join(f"word{i}" for i in range(500))
    sentences = split_sentences(text)
    assert " ".join(sentences) == text
    assert max(map(len, sentences)) <= 400
    assert [len(part) for part in split_sentences("x" * 1000)] == [400, 400, 200]


def test_no_word_is_lost() -> None:
    text = "One. Two! Three? Four is a somewhat longer sentence, e.g. this one. Five\n\nsix"
    assert " ".join(split_sentences(text)).split() == text.split()


def test_rare_shared_words_count_more_than_common_ones() -> None:
    # Of 5 sentences 3 have "cat" and 1 has "ginger", which are worth log(1 + 5/3) and log(6).
    passages = [["A cat.", "A cat and the ginger one.", "Another cat."], ["Only soup.", "More soup."]]
    assert choose_sentences("ginger cat", passages, count=2) == [
        ["A cat and the ginger one.", "A cat."],
        ["Only soup.", "More soup."],
    ]
    assert choose_sentences("ginger soup", [["soup", "ginger", "soup", "soup"]], count=2) == [["ginger", "soup"]]


def test_a_passage_with_few_sentences_gives_what_it_has() -> None:
    assert choose_sentences("cat", [["a cat"], []], count=3) == [["a cat"], []]
    assert choose_sentences("cat", [], count=3) == []
