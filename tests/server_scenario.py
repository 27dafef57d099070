"""Engines for the tests of the server: one that counts colours and does as it is told, and a real tiny one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_scenario import COLOURS, FACTS, CountColours, count_colours

from transenc.corpus import Document
from transenc.search.engine import SemanticSearch
from transenc.search.faiss_store import FaissStore


class TextOnly:
    """What the server looks at of a model."""

    modalities = ("text",)


class Encoder:
    """Counts colours; `on_call` is called with the queries of each call before it answers."""

    dim, model = len(COLOURS), TextOnly()
    fingerprint = CountColours.fingerprint

    def __init__(self, on_call: Callable[[list[str]], None] = lambda queries: None) -> None:
        self.on_call = on_call
        self.calls: list[list[str]] = []

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(list(texts))
        self.on_call(list(texts))
        return count_colours(*texts)


class Hold:
    """An `on_call` that waits inside the first call until it is let go."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def __call__(self, queries: list[str]) -> None:
        self.entered.set()
        assert self.release.wait(30)


def wait_until(condition: Callable[[], bool]) -> None:
    """Come back when something has happened in another thread; fail when it does not."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make_documents(count: int, *, word: str = "number") -> list[Document]:
    """For each a vector of its own, so that the query `ask(i)` finds document i first, with the cosine 1."""
    return [Document(f"d{i}", f"{ask(i)} {word} {i}", metadata={"even": i % 2 == 0, "number": i}) for i in range(count)]


def ask(i: int) -> str:
    """Colours counted by the digits of i + 1 in base 6; different directions for i < 250."""
    number, counts = i + 1, []
    for _ in COLOURS[1:]:
        counts.append(number % 6)
        number //= 6
    words = [COLOURS[0]] * 7  # the same count for all: no direction occurs twice
    for colour, count in zip(COLOURS[1:], counts, strict=True):
        words += [colour] * count
    return " ".join(words)


def build_colours(path: Path, documents: Sequence[Document], *, lexical: bool = False, **facts: Any) -> FaissStore:
    return FaissStore.build(path, iter(documents), CountColours(), encoder={**FACTS, **facts}, lexical=lexical)


def make_engine(
    path: Path, *, documents: int = 20, on_call: Callable[[list[str]], None] = lambda queries: None
) -> SemanticSearch:
    store = build_colours(path, make_documents(documents))
    return SemanticSearch(store, Encoder(on_call))  # type: ignore[arg-type]
