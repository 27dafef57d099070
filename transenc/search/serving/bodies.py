"""The bodies of requests: strict JSON, checked against the limits before anything else looks at it."""

from __future__ import annotations

import json
import unicodedata
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from transenc.errors import InputError
from transenc.search.serving.limits import Limits
from transenc.search.store import Condition, parse_condition
from transenc.tables import show

_Body = TypeVar("_Body", bound=BaseModel)


class Refusal(Exception):
    """A request that gets an error as its answer.

    Args:
        status: HTTP status, 400 to 599.
        message: One line for the client; never a path of the server.
        headers: More headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class SearchBody(BaseModel):
    """The body of POST /search."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    query: str
    top_k: int = 10
    candidates: int = 100
    where: list[str] = []
    hybrid: bool = False
    rerank: bool = True
    rerank_weight: float | None = None

    def check(self, limits: Limits) -> tuple[Condition, ...]:
        """Return the conditions, or raise Refusal naming what is wrong or which limit is passed."""
        check_text("query", self.query, limits)
        _check_range("top_k", self.top_k, limits.max_top_k, "max_top_k")
        _check_range("candidates", self.candidates, limits.max_candidates, "max_candidates")
        if self.rerank_weight is not None and not 0.0 <= self.rerank_weight <= 1.0:
            raise Refusal(422, "rerank_weight: expected a number from 0 to 1, or null")
        if len(self.where) > limits.max_where:
            raise Refusal(
                422, f"where: expected at most {limits.max_where} conditions (max_where), found {len(self.where)}"
            )
        conditions = []
        for position, text in enumerate(self.where):
            if len(text) > limits.max_query_characters:
                _refuse_length(f"where[{position}]", text, limits)
            try:
                conditions.append(parse_condition(text))
            except InputError as error:
                raise Refusal(400, f"where[{position}]: {error}") from None
        return tuple(conditions)


class SimilarityBody(BaseModel):
    """The body of POST /similarity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    sentence1: str
    sentence2: str

    def check(self, limits: Limits) -> None:
        """Raise Refusal naming what is wrong or which limit is passed."""
        check_text("sentence1", self.sentence1, limits)
        check_text("sentence2", self.sentence2, limits)


def parse_body(body: bytes, model: type[_Body]) -> _Body:
    """Read a body as one JSON object with the fields of `model` and no others.

    Raises:
        Refusal: 400 for what is no strict JSON object, 422 for wrong fields and types.

    Example:
        >>> parse_body(b'{"query": "rain"}', SearchBody).top_k
        10
    """
    if not body:
        raise Refusal(400, "expected a JSON object as body, found none")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except Refusal:
        raise
    except UnicodeDecodeError:
        raise Refusal(400, "expected JSON in UTF-8, found other bytes") from None
    except json.JSONDecodeError as error:
        raise Refusal(400, f"expected JSON, found a mistake at character {error.pos}: {error.msg}") from None
    except (ValueError, RecursionError):
        raise Refusal(400, "expected JSON, found a number too long or a nesting too deep") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"expected a JSON object, found {_name_type(value)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise Refusal(422, f"unknown field {show(first['loc'][0])}; there are: {known}") from None
        place = ".".join(str(part) for part in first["loc"])
        raise Refusal(422, f"{place}: {first['msg']}") from None


def check_text(name: str, text: str, limits: Limits) -> None:
    """Raise Refusal for a text that is empty, too long, or no Unicode text."""
    if len(text) > limits.max_query_characters:
        _refuse_length(name, text, limits)
    # an encoder sees nothing in such a text
    if all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text):
        raise Refusal(400, f"{name}: expected some words, found an empty text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(400, f"{name}: a lone surrogate at character {error.start}; remove it") from None


def _check_range(name: str, value: int, highest: int, limit: str) -> None:
    if not 1 <= value <= highest:
        found = value if -(10**9) < value < 10**9 else "a larger number"
        raise Refusal(422, f"{name}: expected 1 to {highest} ({limit}), found {found}")


def _refuse_length(name: str, text: str, limits: Limits) -> NoReturn:
    raise Refusal(
        422,
        f"{name}: expected at most {limits.max_query_characters} characters (max_query_characters), found {len(text)}",
    )


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Refusal(400, f"expected each key once, found {show(name)} twice")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise Refusal(400, f"expected JSON, found {name}, which is not JSON")


def _name_type(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
