"""Which sentences of a passage a cross-encoder reads: the few that share the most words with the query."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from transenc.search.lexical import split_words

# At white space after a full stop, question or exclamation mark, after those of Chinese and Japanese, at line ends.
_END = re.compile("(?<=[.!?])\\s+|(?<=[\u3002\uff01\uff1f])|\\s*\\n+\\s*")
_SHORTEST, _LONGEST = 25, 400  # characters; "Dr." ends no sentence, and a table without full stops is no sentence


def split_sentences(text: str) -> list[str]:
    """Split a text at its punctuation; a piece under 25 characters joins what follows, one over 400 is cut at words.

    Args:
        text: Any text.

    Returns:
        The sentences in their order, none of them empty; together they have every word of the text.

    Example:
        >>> split_sentences("Dr. Okafor grows tomatoes. They need sun, and water every other day.")
        ['Dr. Okafor grows tomatoes.', 'They need sun, and water every other day.']
    """
    sentences: list[str] = []
    waiting = ""
    for piece in _END.split(text):
        waiting = f"{waiting} {piece}".strip()
        if len(waiting) >= _SHORTEST:
            sentences += _cut(waiting)
            waiting = ""
    if waiting and sentences and len(sentences[-1]) + len(waiting) < _LONGEST:
        sentences[-1] += f" {waiting}"
    elif waiting:
        sentences.append(waiting)
    return sentences


def choose_sentences(query: str, passages: Sequence[Sequence[str]], *, count: int) -> list[list[str]]:
    """Choose from each passage the sentences that share the most words with the query.

    A shared word counts by its rarity in all these sentences, log(1 + sentences / sentences with the word).

    Args:
        query: A query.
        passages: The sentences of each candidate of this query.
        count: Sentences wanted of each, 1 or more.

    Returns:
        For each passage at most `count` sentences, those that share the most first, equals by position.

    Example:
        >>> choose_sentences("feeding a cat", [["It rains.", "A cat sleeps.", "The cat likes its feeding."]], count=2)
        [['The cat likes its feeding.', 'A cat sleeps.']]
    """
    asked = set(split_words(query))
    shared = [[asked.intersection(split_words(sentence)) for sentence in sentences] for sentences in passages]
    frequency = Counter(word for row in shared for words in row for word in words)
    total = sum(len(sentences) for sentences in passages)
    rarity = {word: math.log1p(total / frequency[word]) for word in frequency}
    chosen = []
    for sentences, row in zip(passages, shared, strict=True):
        # fsum: the order of a set must not decide a tie
        worth = [math.fsum(rarity[word] for word in words) for words in row]
        order = sorted(range(len(sentences)), key=lambda place: (-worth[place], place))
        chosen.append([sentences[place] for place in order[:count]])
    return chosen


def _cut(sentence: str) -> list[str]:
    parts = []
    while len(sentence) > _LONGEST:
        end = sentence.rfind(" ", _SHORTEST, _LONGEST)
        end = _LONGEST if end < 0 else end
        parts.append(sentence[:end].rstrip())
        sentence = sentence[end:].lstrip()
    return [*parts, sentence] if sentence else parts
