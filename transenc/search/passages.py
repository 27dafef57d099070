"""Documents as an encoder reads them: whole, or cut into overlapping passages that fit its window."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from sentence_transformers import SentenceTransformer

from transenc.corpus import Document
from transenc.errors import InputError
from transenc.scoring import encode_texts
from transenc.search.store import Embedded, Passage
from transenc.tables import is_blank, show

# A passage ends after so many characters per token of the window, whatever the tokenizer makes of them (a run of
# letters may be one unknown token). English has 4 to 5; scoring reads at most 16, title and prompt included.
_CHARACTERS_PER_TOKEN = 8
_READ_PER_TOKEN = 16
_TOKENIZED_AT_ONCE = 250_000  # characters; offsets take about 30 bytes a character while they are Python objects
_RULES = 1  # goes into the fingerprint: raise it when the same document would give other passages


class Texts(Protocol):
    """What has a title and a text: a document, or a hit."""

    @property
    def title(self) -> str:
        """May be empty."""

    @property
    def text(self) -> str:
        """The whole text, of which a passage is a part."""


def passage_text(document: Texts, start: int = -1, end: int = -1) -> str:
    """Return a passage as it is read: the title, a space, and the characters from start to end of the text.

    Args:
        document: A document, or anything else with a title and a text.
        start: First character of the passage; -1: the whole text.
        end: The character after the last; -1: the whole text.

    Example:
        >>> passage_text(Document("d1", "It rains. It is mild.", title="Porto"), 10, 21)
        'Porto It is mild.'
    """
    text = document.text if start < 0 or end < 0 else document.text[start:end]
    return f"{document.title.strip()} {text.strip()}".strip()


class PassageEncoder:
    """Turn documents into passages with vectors, and queries into vectors; the `Embed` of a store.

    A document that fits the encoder's window together with its title is one passage. A longer one is cut into
    windows of tokens that overlap by about a quarter, at white space where there is some near the place, and
    each is encoded with the title (at most a quarter of the window) in front. The spans cover the text, but
    for long stretches of which the tokenizer sees nothing.

    Args:
        model: A bi-encoder. Its prompts for documents and queries are used where it has some.
        fingerprint: Names the encoder: weights, tokenizer and settings (`model_folders.encoder_fingerprint`).
        split: False: every document is one passage, and the encoder reads its beginning.
        batch_tokens: As for `encode_texts`.

    Attributes:
        model: The bi-encoder.
        fingerprint: sha256 hex of the encoder's and the way of splitting: equal only where the vectors are.
        dim: Width of the vectors.

    Raises:
        TypeError: Not a bi-encoder.
        InputError: No maximum length, a prompt as long as it, or a tokenizer without offsets and `split`.

    Example:
        >>> embed = PassageEncoder(load_bi_encoder("my/encoder"), fingerprint=digest)  # doctest: +SKIP
        >>> embed([Document("d1", "It is mild.", title="Porto")]).passages  # doctest: +SKIP
        [Passage(document=0, start=0, end=11)]
    """

    def __init__(
        self, model: SentenceTransformer, *, fingerprint: str, split: bool = True, batch_tokens: int | None = None
    ) -> None:
        if not isinstance(model, SentenceTransformer):
            raise TypeError(f"expected a bi-encoder (SentenceTransformer), found {type(model).__name__}")
        if not isinstance(fingerprint, str):
            raise TypeError(f"fingerprint must be a string, found {type(fingerprint).__name__}")
        self.model, self._split, self._batch_tokens = model, split, batch_tokens
        self._window = _Window.measure(model, split=split)
        self.dim: int = model.get_embedding_dimension() or 0
        settings = {"encoder": fingerprint, "split": split, "rules": _RULES, "prompt": self._window.prompt}
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def __call__(self, documents: Sequence[Document]) -> Embedded:
        """Encode a block of documents.

        Returns:
            Their passages, document by document and in the order of the text, at least one each; float32
            vectors as the model gives them, shape [passages, dim]; and the number of documents of which text or
            title is not read whole.

        Raises:
            TypeError: Not documents; the position is named.
            InputError: A document without text or title, or with a lone surrogate; its id is named.
            StateError: The model gave NaN or inf.
        """
        readings = [
            _Reading(_check_document(document, position), self._window) for position, document in enumerate(documents)
        ]
        if self._split:
            _split(readings, self._window)
        else:
            _count_truncated(readings, self._window)
        vectors = encode_texts(
            self.model,
            [text for reading in readings for text in reading.read()],
            role="document",
            batch_tokens=self._batch_tokens,
        )
        passages = [Passage(row, *span) for row, reading in enumerate(readings) for span in reading.spans]
        return Embedded(passages, vectors, sum(reading.cut for reading in readings))

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Encode queries, each cut at the encoder's window.

        Returns:
            float32 of shape [q, dim], as the model gives them.

        Raises:
            TypeError: Not a sequence of strings; the position is named.
            InputError: A query without a visible character, or with a lone surrogate; the position is named.
            StateError: The model gave NaN or inf.
        """
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
            raise TypeError(f"queries must be a sequence such as a list, found {type(texts).__name__}")
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"query {position} must be a string, found {type(text).__name__}")
            if is_blank(text):
                raise InputError(f"empty query (number {position}): expected some words, found {show(text)}")
        return encode_texts(self.model, texts, role="query", batch_tokens=self._batch_tokens)


def _check_document(document: Any, position: int) -> Document:
    if not isinstance(document, Document):
        raise TypeError(f"document {position} must be a Document, found {type(document).__name__}")
    where = f"{document.place}: " * bool(document.place) + f"document {show(document.id)}"
    if is_blank(document.text) and is_blank(document.title):
        raise InputError(f"{where}: expected a text or a title, found none; leave the document out")
    for name, value in (("title", document.title), ("text", document.text)):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: {name} holds a lone surrogate (character {error.start}); remove it") from None
    return document


@dataclass(frozen=True)
class _Window:
    """What the encoder can read at once."""

    tokenizer: Any
    prompt: str
    size: int  # tokens, those of the prompt included, special ones not
    room: int  # tokens for title and text
    characters: int  # of the text
    characters_read: int  # of prompt, title and text

    @staticmethod
    def measure(model: SentenceTransformer, *, split: bool) -> _Window:
        limit, tokenizer, prompt = model.max_seq_length, model.tokenizer, _document_prompt(model)
        if limit is None or limit > 10**6:
            raise InputError("the encoder has no maximum length; set max_seq_length, or load it with --max-length")
        if split and not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{type(tokenizer).__name__} gives no character offsets, which passages need; use --no-passages"
            )
        size = limit - tokenizer.num_special_tokens_to_add(pair=False)
        room = size - len(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        if room < 1:
            raise InputError(f"the prompt {prompt[:40]!r} fills the window of {limit} tokens; raise --max-length")
        return _Window(tokenizer, prompt, size, room, _CHARACTERS_PER_TOKEN * limit, _READ_PER_TOKEN * limit)

    def count(self, texts: Sequence[str]) -> Iterator[int]:
        for part in _portion(texts):
            yield from map(len, self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])

    def locate(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """For each text the start and end of its tokens, int64 of shape [2, tokens], both ascending."""
        for part in _portion(texts):
            tokens = self.tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for offsets in tokens["offset_mapping"]:
                pairs = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
                yield np.maximum.accumulate(pairs, axis=1)  # some tokenizers put a token of no width at 0

    def shorten(self, text: str, tokens: int, characters: int) -> str:
        """The beginning of a text, at most so many tokens and characters of it."""
        text = text[:characters].rstrip()
        while text and (starts := next(self.locate([text]))[0]).size > tokens:
            end = _space_before(text, int(starts[tokens]), int(starts[tokens - tokens // 8]))
            text = text[:end].rstrip()
        return text


def _document_prompt(model: SentenceTransformer) -> str:
    """The prompt that `encode_document` takes."""
    for name in ("document", "passage", "corpus", model.default_prompt_name):
        if name is not None and name in model.prompts:
            return model.prompts[name] or ""
    return ""


def _portion(texts: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > _TOKENIZED_AT_ONCE:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def _count_truncated(readings: list[_Reading], window: _Window) -> None:
    beginnings = [f"{window.prompt}{reading.document.content}" for reading in readings]
    counts = window.count([text[: window.characters_read] for text in beginnings])
    for reading, text, count in zip(readings, beginnings, counts, strict=True):
        reading.spans = [(0, len(reading.document.text))]
        reading.cut = count > window.size or len(text) > window.characters_read


def _split(readings: list[_Reading], window: _Window) -> None:
    """Cut all documents at the same time, so that the tokenizer gets large batches: one window a round."""
    waiting = readings
    while waiting:
        found = window.locate([reading.propose() for reading in waiting])
        waiting = [reading for reading, tokens in zip(waiting, found, strict=True) if not reading.advance(*tokens)]


@dataclass
class _Reading:
    """A document on its way: a passage is proposed, tokenised as the encoder will, and accepted or shortened."""

    document: Document
    window: _Window
    spans: list[tuple[int, int]] = field(default_factory=list)
    cut: bool = False

    def __post_init__(self) -> None:
        self.title = self.document.title.strip()
        self.start, self.stop = 0, len(self.document.text.rstrip())
        self.end = self.stop
        # until it is known that title and text do not fit together
        self.whole = len(self._head()) + self.stop <= self.window.characters_read
        if not self.whole:
            self._begin_windows()

    def read(self) -> list[str]:
        """What the encoder reads of each span."""
        return [f"{self.title} {self.document.text[start:end].strip()}".strip() for start, end in self.spans]

    def propose(self) -> str:
        return f"{self._head()}{self.document.text[self.start : self.end].strip()}"

    def advance(self, starts: np.ndarray, ends: np.ndarray) -> bool:
        """Take the offsets of the proposed tokens; True when the document is done."""
        text, head = self.document.text, len(self._head())
        first = int(np.searchsorted(ends, head, side="right"))  # the first token of the text
        if self.whole:
            if len(starts) <= self.window.size:
                self.spans = [(0, len(text))]
                return True
            self.whole = False
            if first > self.window.size - self.window.room + self.window.room // 4:
                self._begin_windows()  # with a shorter title
                return False
        part = text[self.start : self.end]
        # where each token of the text begins in the document
        places = self.start + len(part) - len(part.lstrip()) + np.maximum(starts[first:] - head, 0)
        room = max(0, self.window.size - first)
        if len(places) > room:
            end = _space_before(text, int(places[room]), int(places[room - room // 8]))
            if places[0] < end < self.end:
                self.end = end
                return False
            self.end, self.cut = int(places[0]) + 1, True  # one character is more tokens than there is room
        if len(places):
            self.spans.append((self.start, self.end))
        return self._move_on(places)

    def _head(self) -> str:
        return f"{self.window.prompt}{self.title} " if self.title else self.window.prompt

    def _begin_windows(self) -> None:
        window = self.window
        tokens, characters = window.room, window.characters
        if self.stop:
            tokens, characters = tokens // 4, characters // 4
        title = window.shorten(self.title, tokens, characters)
        self.whole, self.cut, self.title = False, title != self.title, title
        self._look_ahead()

    def _move_on(self, places: np.ndarray) -> bool:
        """Go to the next window; True when there is none."""
        if self.end >= self.stop:
            text = self.document.text
            if not self.spans:  # no text, or none that the tokenizer sees
                self.spans = [(0, min(len(text), self.window.characters))]
            elif self.spans[-1][1] == self.end:
                self.spans[-1] = (self.spans[-1][0], len(text))
            return True
        following, overlap = self.end, len(places) // 4
        if overlap:
            following = _space_after(self.document.text, int(places[-overlap]), int(places[-(overlap // 2 or 1)]))
        self.start = following if self.start < following < self.end else self.end
        self._look_ahead()
        return False

    def _look_ahead(self) -> None:
        characters = self.window.characters
        self.end = min(self.start + characters, self.stop)
        if self.end < self.stop:
            self.end = _space_before(self.document.text, self.end, self.end - characters // 8)


def _space_before(text: str, end: int, lowest: int) -> int:
    """The last place not after `end` and after `lowest` where a word begins or ends; `end` when there is none."""
    for place in range(end, lowest, -1):
        if text[place - 1].isspace() or (place < len(text) and text[place].isspace()):
            return place
    return end


def _space_after(text: str, start: int, highest: int) -> int:
    """The first place not before `start` and before `highest` where a word begins; `start` when there is none."""
    for place in range(start, highest):
        if text[place - 1].isspace():
            return place
    return start
