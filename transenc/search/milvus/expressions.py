"""What is stored in Milvus in place of ids and metadata, and expressions over it, made of digits and field names only.

Keys and values of metadata are stored in hexadecimal, which keeps the order of texts. A number becomes digits that are
in the order of the numbers, exactly. So no text of a user stands in an expression.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterable

from transenc.search.documents import parse_number
from transenc.search.store import Condition

IDS_AT_ONCE = 1000  # numbers or digests in one expression

NUMBERS, TEXTS = "n", "t"  # first characters of what is stored of a value; each kind is below the next letter


def digest_id(name: str) -> str:
    """Return what a document is found by in place of its id.

    Example:
        >>> digest_id("a")[:8]
        'ca978112'
    """
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def encode_id(name: str) -> str:
    """Return the id of a document as a row holds it: plain letters, whatever characters it has."""
    return base64.b64encode(name.encode()).decode()


def decode_id(text: str) -> str:
    """Return the id that a row holds."""
    return base64.b64decode(text).decode()


def encode_text(text: str) -> str:
    """Return text in hexadecimal, which is in the order of the texts; a lone surrogate is a UnicodeEncodeError."""
    return text.encode().hex()


def name_field(key: str) -> str:
    """Return the expression for a metadata field.

    Example:
        >>> name_field("year")
        'fields["k79656172"]'
    """
    return f'fields["k{encode_text(key)}"]'


def express_known(key: str) -> str:
    """Return the expression for documents that have a field to filter by."""
    return f'{name_field(key)} >= "{NUMBERS}"'


def express_text(key: str) -> str:
    """Return the expression for documents whose field holds text."""
    return f'{name_field(key)} >= "{TEXTS}"'


def express_condition(condition: Condition) -> str:
    """Return the expression for a condition, see `Condition`.

    Example:
        >>> express_condition(Condition("a", "=", "b"))
        '(fields["k61"] >= "t" and fields["k61"] < "u" and fields["k61"] == "t62")'
    """
    field, operator = name_field(condition.key), {"=": "=="}.get(condition.operator, condition.operator)
    number = parse_number(condition.value)
    parts = []
    if number is not None:
        parts.append(f'({field} >= "n" and {field} < "o" and {field} {operator} "{encode_number(number)}")')
    elif operator == "!=":
        parts.append(f'({field} >= "n" and {field} < "o")')
    try:
        value = encode_text(condition.value)
    except UnicodeEncodeError:  # a lone surrogate: no stored text can be compared with it
        value = ""
    if value or not condition.value:
        parts.append(f'({field} >= "t" and {field} < "u" and {field} {operator} "{TEXTS}{value}")')
    return " or ".join(parts) if parts else "doc < 0"


def express_any(field: str, values: Iterable[int | str]) -> str:
    """Return the expression for a field with one of these numbers or digests.

    Example:
        >>> express_any("doc", [3, 5])
        'doc in [3,5]'
    """
    return f"{field} in {json.dumps(list(values), separators=(',', ':'))}"


def encode_number(value: int | float) -> str:
    """Return text that is in the order of the numbers: the sortable bits of the nearest float, then what is missing.

    Example:
        >>> sorted([2.5, -1, 2, 2**53 + 1, 2**53, -1e300], key=encode_number)
        [-1e+300, -1, 2, 2.5, 9007199254740992, 9007199254740993]
    """
    try:
        wide = float(value) + 0.0  # no negative zero
    except OverflowError:
        wide = float("inf") if value > 0 else float("-inf")
    exact = isinstance(value, int) and -(2**63) <= value < 2**63  # others are stored as the nearest float
    rest = int(value) - int(wide) if exact else 0
    bits = struct.unpack(">Q", struct.pack(">d", wide))[0]
    bits ^= 2**64 - 1 if bits >> 63 else 2**63
    return f"{NUMBERS}{bits:016x}{rest + 2**15:04x}"
