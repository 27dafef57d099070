"""What can be said of an index to those who search it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from transenc.errors import InputError
from transenc.search.store import VectorStore

_SAMPLE = 1000  # documents that are looked at for the metadata there is
_EXAMPLES, _EXAMPLE_CHARACTERS = 5, 60


@dataclass(frozen=True, slots=True)
class Description:
    """What can be said of an index without searching it, for GET /info.

    Args:
        facts: documents, passages, generation, kind, recall@10; None where the store does not know.
        hybrid: Whether it can be searched by words.
        fields: Metadata keys of the documents, those in a sample of 1,000, each with up to 5 frequent values.
        encoder: Last part of the name of the encoder that made it, never a path.
    """

    facts: dict[str, Any]
    hybrid: bool
    fields: list[dict[str, Any]]
    encoder: str


def describe_store(store: VectorStore, *, dim: int) -> Description:
    """Look at a store.

    Args:
        store: Opened.
        dim: Width of its vectors.
    """
    known: dict[str, Any] = getattr(store, "info", dict)()
    names = ("passages", "generation", "kind", "recall@10")
    facts = {"documents": store.count(), **{name: known.get(name) for name in names}}
    name = str(known.get("encoder", {}).get("name", ""))
    return Description(facts, _has_words(store), _list_fields(store, dim), name.rstrip("/").rpartition("/")[2])


def _has_words(store: VectorStore) -> bool:
    """Whether the words can be searched here: they may be missing from the index, or the extra from this machine."""
    try:
        store.search_text(["a"], 1)
    except InputError:
        return False
    return True


def _list_fields(store: VectorStore, dim: int) -> list[dict[str, Any]]:
    probe = np.zeros((1, dim), dtype=np.float32)
    probe[0, 0] = 1.0
    values: dict[str, Counter[Any]] = {}
    for document in store.get([match.id for match in store.search(probe, _SAMPLE)[0]]):
        for key, value in document.metadata.items():
            if isinstance(value, str | int | float):  # nothing else can be compared with
                values.setdefault(key, Counter())[_show_value(value)] += 1
    return [
        {
            "key": key,
            "examples": [value for value, _ in found.most_common() if len(str(value)) <= _EXAMPLE_CHARACTERS][
                :_EXAMPLES
            ],
            "numeric": all(not isinstance(value, str) for value in found),
        }
        for key, found in sorted(values.items())
    ]


def _show_value(value: str | int | float) -> str | int | float:
    return str(value).lower() if isinstance(value, bool) else value
