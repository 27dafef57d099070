"""Sentence pairs, read strictly: rows in equal rows out, or an error.

Nothing is guessed, repaired or skipped. A row that cannot be used raises InputError with its place
(``pairs.tsv:7``, the physical line), what was expected, what was found and what to do.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transenc.durable import write_file
from transenc.errors import InputError
from transenc.tables import Table, open_table, show, show_names

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SENTENCES = ("sentence1", "sentence2")
LIST = "list"
OUTPUT_FORMATS = (".tsv", ".csv", ".jsonl", ".parquet")
FEW_PAIRS = 10

_WHOLE = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Field:
    """What one column of the source must hold.

    Args:
        name: The column's name in the source.
        kind: "sentence" (text that is not empty), "text" (any text), "score" (a finite number from `low` to
            `high`) or "label" (a whole number from `low` to `high`).
        low: The smallest number allowed.
        high: The largest number allowed.

    Example:
        >>> Field("gold", "score", low=0, high=5).name
        'gold'
    """

    name: str
    kind: Literal["sentence", "text", "score", "label"]
    low: float = -math.inf
    high: float = math.inf


def read_pairs(
    source: str | os.PathLike[str] | Dataset | Sequence[tuple[str, str]],
    *,
    columns: tuple[str, str] = SENTENCES,
    score: bool = False,
    score_range: tuple[float, float] = (0.0, 1.0),
    max_pairs: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read sentence pairs for training or labelling.

    Files: ``.tsv`` (header, no quoting), ``.csv`` (header, RFC 4180 quoting, one record a line), ``.jsonl``
    (one object a line), ``.txt`` (``sentence1||sentence2`` lines without a header, as in the Trans-Encoder
    code; white space around a sentence is dropped), each also with ``.gz``; and ``.parquet``. Further columns
    are ignored, a score column too unless it is asked for; but not "list", the whole number of the list that a
    pair belongs to (`mining.flatten_lists`); one without whole numbers is ignored with a warning. Repeated pairs
    are kept and counted in a warning.

    Args:
        source: A path, a ``datasets.Dataset``, a list of ``(sentence1, sentence2)`` tuples (with `score`:
            ``(sentence1, sentence2, score)``), or a Hub dataset id, "owner/name" or "owner/name:split"
            (split "train" if none is named).
        columns: The names of the two sentence columns in the source.
        score: Also read the column "score".
        score_range: The smallest and the largest score allowed.
        max_pairs: Keep a random sample of this many pairs, in their order in the source; of lists, whole ones.
        seed: Decides the sample.

    Returns:
        A dataset with the string columns sentence1 and sentence2, with `score` the float64 column score, and where
        the source has lists the int64 column list.

    Raises:
        InputError: The source cannot be read, a row is unusable, there are fewer than two pairs, or all are
            the same.
        TypeError: The source, or an item of a list, has the wrong Python type.

    Example:
        >>> pairs = read_pairs([("A dog runs.", "A dog is running."), ("A dog runs.", "It rains.")])
        >>> pairs.num_rows, pairs.column_names
        (2, ['sentence1', 'sentence2'])
    """
    fields = _sentence_fields(columns)
    if score:
        fields["score"] = Field("score", "score", *_check_range(score_range))
    _check_sample(max_pairs)
    table = open_table(source, [field.name for field in fields.values()], optional=(LIST,))
    if LIST in table.names:
        fields[LIST] = Field(LIST, "label")
    values = _collect(table, fields)
    n = len(values["sentence1"])
    if n < 2:
        raise InputError(f"{table.place}: expected at least 2 pairs, found {n}; add sentence pairs")
    _check_variety(table.place, list(zip(values["sentence1"], values["sentence2"], strict=True)))
    if max_pairs is not None and max_pairs < n:
        kept = _sample_rows(values.get(LIST, range(n)), max_pairs, seed)
        values = {name: [column[i] for i in kept] for name, column in values.items()}
    return make_dataset(values)


def read_gold(
    source: str | os.PathLike[str] | Dataset | Sequence[tuple[str, str, float]],
    *,
    columns: tuple[str, str] = SENTENCES,
) -> Dataset:
    """Read pairs with gold values for evaluation, from what `read_pairs` reads and as strictly.

    The gold column is "score" (any finite numbers) or else "label" (0 or 1); with both, "score" is read.

    Args:
        source: As for `read_pairs`; the items of a list are ``(sentence1, sentence2, score)``.
        columns: The names of the two sentence columns in the source.

    Returns:
        A dataset with sentence1, sentence2 and either score (float64) or label (int64). It may have a single
        row or constant gold values, for which a correlation is undefined.

    Raises:
        InputError: The source cannot be read, has no row or neither gold column, or a row is unusable.
        TypeError: The source, or an item of a list, has the wrong Python type.

    Example:
        >>> read_gold([("A dog runs.", "A dog is running.", 4.5)])["score"][0]
        4.5
    """
    fields = _sentence_fields(columns)
    table = open_table(source, [*columns, "score"], optional=("label",))
    if "score" in table.names:
        fields["score"] = Field("score", "score")
    elif "label" in table.names:
        fields["label"] = Field("label", "label", 0, 1)
    else:
        raise InputError(
            f"{table.head}: expected a column 'score' (numbers) or 'label' (0 or 1), "
            f"found {show_names(table.names)}; add the gold column"
        )
    values = _collect(table, fields)
    if not values["sentence1"]:
        raise InputError(f"{table.place}: expected at least 1 pair, found 0; add scored pairs")
    return make_dataset(values)


def read_table(
    source: str | os.PathLike[str] | Dataset | Sequence[tuple[Any, ...]], fields: Mapping[str, Field]
) -> Dataset:
    """Read the named fields of a source, every row checked, any number of rows.

    Args:
        source: As for `read_pairs`.
        fields: Name in the result -> what to read for it.

    Returns:
        A dataset with the columns of `fields`: string, float64 for "score" and int64 for "label".

    Raises:
        InputError: The source cannot be read or a row is unusable.

    Example:
        >>> rows = read_table([("Yes.", "No.")], {"a": Field("q", "sentence"), "b": Field("r", "sentence")})
        >>> rows[0]
        {'a': 'Yes.', 'b': 'No.'}
    """
    table = open_table(source, [field.name for field in fields.values()])
    return make_dataset(_collect(table, fields))


def make_dataset(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """Return a dataset whose columns have plain types: float64 "score", int64 "label" and "list", string otherwise.

    Readers of different formats give different string types, which do not concatenate; these do.

    Example:
        >>> make_dataset({"sentence1": ["a"], "score": [1]}).features["score"].dtype
        'float64'
    """
    from datasets import Dataset, Features, Value

    types = {"score": "float64", "label": "int64", LIST: "int64"}
    features = Features({name: Value(types.get(name, "string")) for name in columns})
    return Dataset.from_dict({name: list(values) for name, values in columns.items()}, features=features)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless `write_pairs` can write `path`; for asking before long work begins.

    Example:
        >>> check_writable("pairs.doc")
        Traceback (most recent call last):
        transenc.errors.InputError: pairs.doc: expected a file named .tsv, .csv, .jsonl, .parquet; rename it
    """
    target = Path(path).expanduser()
    if target.suffix not in OUTPUT_FORMATS:
        raise InputError(f"{path}: expected a file named {', '.join(OUTPUT_FORMATS)}; rename it")
    if target.is_dir():
        raise InputError(f"{path}: expected a file, found a folder; name a file in it")
    if not target.parent.is_dir():
        raise InputError(f"{path}: no such folder {os.fspath(target.parent)!r}; create it first")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{path}: the folder {os.fspath(target.parent)!r} is not writable; choose another")


def write_pairs(path: str | os.PathLike[str], pairs: Dataset) -> None:
    """Write a dataset as .tsv, .csv, .jsonl or .parquet, whole or not at all, so that `read_pairs` reads it.

    Raises:
        InputError: The path cannot be written, or a sentence does not fit the format (a tab in .tsv, a line
            break in .tsv or .csv).

    Example:
        >>> write_pairs("labels.jsonl", read_pairs("pairs.tsv"))  # doctest: +SKIP
    """
    check_writable(path)
    target, names = Path(path).expanduser(), pairs.column_names
    if target.suffix == ".parquet":
        buffer = io.BytesIO()
        pairs.to_parquet(buffer)
        return write_file(target, buffer.getvalue())
    rows = list(zip(*(pairs[name][:] for name in names), strict=True))
    if target.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
        return write_file(target, "".join(f"{line}\n" for line in lines))
    forbidden = "\n\r" if target.suffix == ".csv" else "\n\r\t"
    for i, row in enumerate(rows):
        if bad := next((text for text in map(str, row) if set(text) & set(forbidden)), None):
            raise InputError(f"{path}: row {i} has a tab or line break, {show(bad)}; write .jsonl or .parquet")
    text = io.StringIO()
    if target.suffix == ".csv":
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
    else:
        text.writelines("\t".join(map(str, row)) + "\n" for row in [names, *rows])
    return write_file(target, text.getvalue())


def fold_sentence(sentence: str) -> str:
    """Return the form in which sentences are compared: stripped and case-folded.

    Example:
        >>> fold_sentence(" A Dog runs. ")
        'a dog runs.'
    """
    return sentence.strip().casefold()


def count_overlap(pairs: Dataset, other: Dataset) -> dict[str, int]:
    """Count what two pair datasets share, for instance a training set and the set that scores it.

    Sentences are compared stripped and case-folded, pairs in either order. Both counts are of distinct items.

    Args:
        pairs: A dataset with sentence1 and sentence2.
        other: Another one.

    Returns:
        ``{"sentences": shared sentences, "pairs": shared pairs}``.

    Example:
        >>> a = make_dataset({"sentence1": ["One.", "Two."], "sentence2": ["Two.", "Three."]})
        >>> count_overlap(a, make_dataset({"sentence1": ["two. "], "sentence2": ["ONE."]}))
        {'sentences': 2, 'pairs': 1}
    """
    mine, theirs = _fold_pairs(pairs), _fold_pairs(other)
    return {
        "sentences": len({s for pair in mine for s in pair} & {s for pair in theirs for s in pair}),
        "pairs": len(mine & theirs),
    }


# ---- checking


def _collect(table: Table, fields: Mapping[str, Field]) -> dict[str, list[Any]]:
    for field in fields.values():
        if (count := list(table.names).count(field.name)) != 1:
            raise InputError(
                f"{table.head}: expected {'a' if count == 0 else 'one'} column {field.name!r}"
                f"{' in a header line' if table.header else ''}, found {show_names(table.names)}; "
                "add or rename columns"
            )
    values: dict[str, list[Any]] = {name: [] for name in fields}
    no_list: InputError | None = None
    for row, record in table.rows:
        for name, field in fields.items():
            if field.name not in record and name != LIST:
                raise InputError(f"{table.at(row)}: expected {field.name!r}, found {show_names(list(record))}; add it")
            value = record.get(field.name)
            try:
                values[name].append(_CHECKS[field.kind](value, field, table.header))
            except _Unusable as why:
                found = f"expected {why.expected} in {field.name!r}, found {show(value)}"
                error = InputError(f"{table.at(row)}: {found}; {why.advice}")
                if name != LIST:
                    raise error from None
                values[LIST].append(None)
                no_list = no_list or error
    if no_list is not None:
        if any(number is not None for number in values.pop(LIST)):
            raise no_list
        logger.warning("%s: the column %r holds no whole numbers, so it is ignored", table.place, LIST)
    return values


class _Unusable(Exception):
    def __init__(self, expected: str, advice: str) -> None:
        self.expected = expected
        self.advice = advice


def _check_text(value: Any, field: Field, is_text: bool) -> str:
    if not isinstance(value, str):
        raise _Unusable("text", "every value of this column must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Unusable("valid Unicode text (no lone surrogate)", "re-encode the sentence") from None
    return value


def _check_sentence(value: Any, field: Field, is_text: bool) -> str:
    text = _check_text(value, field, is_text)
    # Tokenisers drop white space and control characters, so that all such texts would share one vector.
    if not any(c.isprintable() and not c.isspace() for c in text):
        raise _Unusable("a sentence", "fill it in or delete the row")
    return text


def _check_number(value: Any, field: Field, is_text: bool) -> float | int:
    whole = field.kind == "label"
    number = _to_float(value, whole, is_text)
    bounds = f" in [{field.low:g}, {field.high:g}]" if math.isfinite(field.high - field.low) else ""
    if not math.isfinite(number):
        expected = "a whole number" if whole else "a finite number such as 0.75"
        raise _Unusable(expected + bounds, "write it with digits and a decimal point, or delete the row")
    if not field.low <= number <= field.high:
        raise _Unusable(f"a {field.kind}{bounds}", "rescale or correct the column")
    return int(number) if whole else number


def _to_float(value: Any, whole: bool, is_text: bool) -> float:
    """Return the number, or NaN for what is none: float() itself takes "1_0", "nan" and Arabic digits."""
    if is_text:
        return float(value) if (_WHOLE if whole else _NUMBER).fullmatch(value) else math.nan
    if whole:
        return float(value) if isinstance(value, int) and abs(value) < 2**53 else math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) <= sys.float_info.max else math.nan


_CHECKS = {"sentence": _check_sentence, "text": _check_text, "score": _check_number, "label": _check_number}


def _sentence_fields(columns: Sequence[str]) -> dict[str, Field]:
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise TypeError(f"columns: expected two column names, found {columns!r}")
    if len(columns) != 2 or columns[0] == columns[1]:
        raise InputError(f"columns: expected two different column names, found {columns!r}")
    return {out: Field(name, "sentence") for out, name in zip(SENTENCES, columns, strict=True)}


def _check_range(score_range: tuple[float, float]) -> tuple[float, float]:
    low, high = score_range
    if not low < high:
        raise InputError(f"score_range: expected (low, high) with low < high, found {score_range!r}")
    return low, high


def _check_sample(max_pairs: int | None) -> None:
    if max_pairs is None:
        return
    if isinstance(max_pairs, bool) or not isinstance(max_pairs, int):
        raise TypeError(f"max_pairs: expected a whole number, found {max_pairs!r}")
    if max_pairs < 2:
        raise InputError(f"max_pairs: expected at least 2, found {max_pairs}")


def _sample_rows(lists: Sequence[int], limit: int, seed: int) -> list[int]:
    """Rows of a random sample of the lists, as many as make up no more than `limit` rows, but at least one."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(lists):
        rows.setdefault(number, []).append(row)
    rng = random.Random(seed)
    if len(rows) == len(lists):  # pairs, each its own list
        return sorted(rng.sample(range(len(lists)), limit))
    kept: list[int] = []
    for number in rng.sample(list(rows), len(rows)):
        if not kept or len(kept) + len(rows[number]) <= limit:
            kept += rows[number]
    return sorted(kept)


def _check_variety(place: str, pairs: list[tuple[str, str]]) -> None:
    distinct = set(pairs)
    if len(distinct) == 1:
        raise InputError(f"{place}: all {len(pairs)} pairs are the same pair; add different pairs")
    if all(first == second for first, second in distinct):
        raise InputError(f"{place}: both sentences are equal in every pair; check the two columns")
    if repeats := len(pairs) - len(distinct):
        logger.warning("%s: %d of %d pairs repeat an earlier one; kept", place, repeats, len(pairs))
    if len(pairs) < FEW_PAIRS:
        logger.warning("%s: only %d pairs; training needs thousands", place, len(pairs))


def _fold_pairs(pairs: Dataset) -> set[tuple[str, ...]]:
    columns = (map(fold_sentence, pairs[name][:]) for name in SENTENCES)
    return {tuple(sorted(pair)) for pair in zip(*columns, strict=True)}
