"""What a Milvus server says of an index: which generations there are, which one serves, and what it is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from transenc.errors import InputError, StateError
from transenc.search.milvus.client import WRITE, Connection, MissingCollectionError
from transenc.search.milvus.rows import name_documents
from transenc.search.milvus.view import View

FORMAT = 1

_FACTS = "transenc.facts"  # property of the collection of passages


@dataclass(frozen=True)
class Catalogue:
    """Which generations there are.

    Args:
        generations: Number -> names of its collections.
        serving: Collection of passages of the one that serves, or None.
    """

    generations: dict[int, list[str]]
    serving: str | None


def read_catalogue(connection: Connection) -> Catalogue:
    """Return which generations of the index there are.

    Raises:
        InputError: The name is taken by something that is no index.
    """
    place = connection.place
    listed = connection.call("list_collections")
    if place.name in listed:
        raise InputError(f"{place}: there is a collection of this name that is no index; name another")
    generations: dict[int, list[str]] = {}
    for name in listed:
        if found := re.fullmatch(rf"{place.name}__gen([0-9]{{6,}})(_documents)?", name):
            generations.setdefault(int(found[1]), []).append(name)
    if not connection.call("has_collection", place.name):  # it follows aliases
        return Catalogue(generations, None)
    serving = connection.call("describe_alias", place.name)["collection_name"]
    if not any(serving in names for names in generations.values()):
        raise InputError(f"{place}: an alias of this name leads to {serving}, which is no index; name another")
    return Catalogue(generations, serving)


def read_facts(connection: Connection, collection: str) -> dict[str, Any]:
    """Return what a generation says of itself now.

    Raises:
        StateError: It has been removed, is damaged, or is of another format.
    """
    try:
        properties = connection.call("describe_collection", collection)["properties"]
    except MissingCollectionError:
        raise StateError(f"{connection.place}: newer builds have replaced what was opened; open it again") from None
    try:
        facts = json.loads(properties[_FACTS])
        found = facts["format"]
    except (KeyError, TypeError, ValueError):
        raise StateError(f"{connection.place}: {collection} does not say what it is; build the index again") from None
    if found != FORMAT:
        raise StateError(f"{connection.place}: expected an index of format {FORMAT}, found {found}; build it again")
    return facts


def make_properties(facts: dict[str, Any]) -> dict[str, str]:
    """Return facts as properties of a collection."""
    return {_FACTS: json.dumps(facts)}


def write_facts(connection: Connection, collection: str, facts: dict[str, Any]) -> None:
    """Replace what a generation says of itself, in one step."""
    connection.call("alter_collection_properties", collection, make_properties(facts), seconds=WRITE)


def read_view(connection: Connection, collection: str) -> View:
    """Return the state of a generation now."""
    facts = read_facts(connection, collection)
    view = View(connection, collection, name_documents(collection), facts)
    return view.without_gone() if facts["removing"] else view
