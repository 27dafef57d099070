"""What the server takes on: the one source of its limits, from which the flags of `transenc serve` derive."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from transenc.errors import InputError


def _limit(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the server; what goes beyond one is refused with an answer that names it.

    The metadata of each field says what it limits. Bytes, characters and seconds stand in the names; the others count.

    Raises:
        InputError: A limit that is no number above 0, or not a whole number where one is counted.

    Example:
        >>> Limits(max_top_k=20).max_candidates
        200
    """

    max_query_characters: int = _limit(2000, "characters of a query, or of a sentence to compare")
    max_top_k: int = _limit(100, "hits of one search")
    max_candidates: int = _limit(200, "documents that one search retrieves for reranking or hybrid search")
    max_where: int = _limit(10, "conditions of one search")
    max_body_bytes: int = _limit(65536, "bytes of a request's body")
    queue_size: int = _limit(64, "requests that wait for the model; more get 503")
    timeout_s: float = _limit(30.0, "seconds for an answer; later it is 504")
    max_batch: int = _limit(32, "requests answered together; 1: each alone, bit for bit as `transenc search` does")
    max_connections: int = _limit(512, "open connections; more are closed at once")
    header_timeout_s: float = _limit(10.0, "seconds for the head of a request to arrive")
    body_timeout_s: float = _limit(10.0, "seconds for its body to arrive, and for a stalled client to read on")
    keep_alive_s: float = _limit(15.0, "seconds that a connection stays open between requests")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_limit(field.name, getattr(self, field.name), whole=isinstance(field.default, int))


def _check_limit(name: str, value: Any, *, whole: bool) -> None:
    kind = "a whole number of 1 or more" if whole else "a number above 0"
    numeric = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or value <= 0:
        raise InputError(f"limit {name}: expected {kind}, found {value!r}")
