"""What a report is made of, before it is HTML or Markdown: sections of paragraphs, tables and figures."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

UNKNOWN = "-"
SHOWN = 240  # characters of a text shown
VALUE = 2000  # of a setting or a path
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # which emoji and scripts need


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `kind` is `text`, `number`, `code` (ids and digests) or `foreign` (a user's sentence)."""

    text: str
    kind: str = "text"
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its header. A page shows a folded one on demand."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing with its title."""

    title: str
    svg: str


@dataclass(frozen=True)
class Figures:
    """Drawings side by side, with what they show."""

    caption: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: paragraphs (text), tables, figures."""

    title: str
    blocks: Sequence[str | Table | Figures]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    lead: str
    mood: str
    sections: Sequence[Section]


def drop_empty(table: Table) -> Table:
    """The table without columns in which nothing is known.

    Example:
        >>> drop_empty(Table("", ("a", "b"), [[Cell("1"), Cell("-")]])).columns
        ('a',)
    """
    kept = [i for i in range(len(table.columns)) if any(row[i].text not in (UNKNOWN, "") for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)


def number(value: float | int | None, *, digits: int = 2, sign: bool = False, strong: bool = False) -> Cell:
    """A number as it is shown everywhere.

    Example:
        >>> number(1234567).text, number(-0.5, sign=True).text, number(None).text
        ('1,234,567', '-0.50', '-')
    """
    if value is None:
        return Cell(UNKNOWN, "number")
    plus = "+" if sign else ""
    text = f"{value:{plus},}" if isinstance(value, int) else f"{value:{plus},.{digits}f}"
    return Cell(text, "number", strong)


def span(low: float | None, high: float | None, *, sign: bool = False) -> Cell:
    """An interval."""
    return (
        number(None)
        if low is None
        else Cell(f"{number(low, sign=sign).text} to {number(high, sign=sign).text}", "number")
    )


def duration(seconds: float | None) -> Cell:
    """Hours, minutes and seconds.

    Example:
        >>> duration(3128.6).text
        '0:52:08.6'
    """
    if seconds is None:
        return Cell(UNKNOWN, "number")
    hours, rest = divmod(round(10 * seconds), 36000)
    minutes, tenths = divmod(rest, 600)
    return Cell(f"{hours}:{minutes:02d}:{tenths / 10:04.1f}", "number")


def show_text(text: str, *, length: int = SHOWN) -> str:
    r"""A text on one line, cut, with what is invisible in it (control characters, overrides of the direction) shown.

    Example:
        >>> show_text("abc\u202edef")
        'abc[U+202E]def'
    """
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return "".join(f"[U+{ord(c):04X}]" if unicodedata.category(c) in INVISIBLE and c not in JOINERS else c for c in cut)


def show_value(value: Any) -> Cell:
    """A setting, a name or a digest, as it stands in run.json.

    Example:
        >>> show_value(True).text, show_value(3e-05).text, show_value(["a", "b"]).text
        ('yes', '3e-05', 'a, b')
    """
    if value is None:
        return Cell("none")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float):
        return Cell(str(value))
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return Cell(show_text(text, length=VALUE), "code")
