"""Tables of text from files, lists, datasets and the Hub: opened here, checked by whoever reads the rows.

A table is a place for error messages, column names and rows, which are read as they are asked for. Text files
are UTF-8, with or without a byte order mark, with line feeds or carriage returns and line feeds. A row that does
not fit its format raises InputError at the physical line (the header is line 1; parquet rows count from 1, items
of lists from 0).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transenc.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
HUB_TIMEOUT = 5.0  # seconds, for the one request that decides whether the Hub answers

_ROWS_AT_ONCE = 256  # of a dataset or parquet file, bounds memory
_CSV_FIELD = 131_072  # characters, what the csv module takes unless told otherwise
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.%\[\]:+-]+)?")

Row = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """An opened source, its values not yet checked.

    Args:
        place: What errors call it, usually the path.
        names: Its columns.
        rows: Row number and column -> value, for the columns asked for; errors of the format come up here.
        indexed: Rows are items of a Python object and count from 0.
        header: The names stand in line 1 of a text file, where every value is text.
    """

    place: str
    names: Sequence[str]
    rows: Iterator[Row]
    indexed: bool = False
    header: bool = False

    @property
    def head(self) -> str:
        """Where the names of the columns stand."""
        return f"{self.place}:1" if self.header else self.place

    def at(self, row: int) -> str:
        """Return the place of a row, for an error message."""
        return f"{self.place}[{row}]" if self.indexed else f"{self.place}:{row}"


def open_table(
    source: Any,
    names: Sequence[str],
    *,
    optional: Sequence[str] = (),
    every: bool = False,
    items: tuple[str, str] = ("sentence pair", "sentence pairs"),
) -> Table:
    """Open a path, a Hub dataset id ("owner/name" or "owner/name:split"), a Dataset or a list of tuples.

    Args:
        source: What to open. Something that exists as a path is never looked up on the Hub.
        names: The columns wanted, in the order of the tuples of a list. Whether they exist is not checked. A line
            of a .txt file is one value where a single column is wanted, and else two sentences.
        optional: Further columns, read where there are such.
        every: Read all columns there are.
        items: What errors call a row, and several rows.

    Raises:
        InputError: No such file or dataset, an unknown format, or text that is not UTF-8.
        TypeError: `source` is something else.

    Example:
        >>> next(open_table([("a", "b")], ["sentence1", "sentence2"]).rows)
        (0, {'sentence1': 'a', 'sentence2': 'b'})
    """
    if isinstance(source, (str, os.PathLike)):
        wanted = _Wanted(names, [*names, *optional], every, items)
        return _open_named(os.fspath(source), wanted, path_only=not isinstance(source, str))
    if isinstance(source, (list, tuple)):
        return Table("pairs", names, _read_list(source, names), indexed=True)
    if is_dataset(source):
        return _open_dataset(source, "dataset", _Wanted(names, [*names, *optional], every, items))
    raise TypeError(
        "pairs: expected a path, a Hub dataset id, a datasets.Dataset or a list of (sentence1, sentence2) "
        f"tuples, found {type(source).__name__}"
    )


def is_dataset(source: Any) -> bool:
    """Say whether something is a `datasets.Dataset`, without importing the library, which takes most of a second.

    Example:
        >>> is_dataset([("a", "b")])
        False
    """
    library = sys.modules.get("datasets")
    return library is not None and isinstance(source, library.Dataset)


def load_hub_dataset(dataset_id: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """Load one split of a Hub dataset, or fail at once when the Hub does not answer.

    One short request comes first: without it, the libraries try again for 20 seconds and more.

    Args:
        dataset_id: "owner/name".
        config: The dataset's configuration, where it has several.
        split: A split, or a slice of one such as "validation[:1000]".

    Raises:
        InputError: No network, no such dataset, configuration or split.

    Example:
        >>> load_hub_dataset("nyu-mll/glue", config="mrpc", split="test").num_rows  # doctest: +SKIP
        1725
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    name = f"Hub dataset {dataset_id!r}"
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    # The exceptions of the HTTP library are no part of any public interface here, hence the broad excepts.
    if not offline:
        try:
            HfApi().dataset_info(dataset_id, timeout=HUB_TIMEOUT)
        except RepositoryNotFoundError as error:
            raise InputError(f"{name}: no such dataset, or a private one; check the id or log in") from error
        except Exception as error:
            raise InputError(
                f"{name}: the Hub cannot be reached ({_first_line(error)}); check the network, pass a local "
                "file, or set HF_HUB_OFFLINE=1 to use a copy downloaded earlier"
            ) from error
    try:
        return datasets.load_dataset(dataset_id, config, split=split)
    except Exception as error:
        if offline:
            raise InputError(
                f"{name}: HF_HUB_OFFLINE is set and no copy of {split!r} was downloaded earlier; unset it, "
                "or pass a local file"
            ) from error
        raise InputError(
            f"{name}: cannot load split {split!r} ({_first_line(error)}); check configuration and split"
        ) from error


@dataclass(frozen=True)
class _Wanted:
    names: Sequence[str]
    columns: Sequence[str]  # the names and the optional ones
    every: bool
    items: tuple[str, str]

    def choose(self, header: Sequence[str]) -> list[str]:
        return [name for name in header if self.every or name in self.columns]


def _open_named(name: str, wanted: _Wanted, *, path_only: bool) -> Table:
    path = Path(name).expanduser()
    if path.is_file():
        return _open_file(path, name, wanted)
    if path.exists():
        raise InputError(f"{name}: expected a file, found a folder; name a file in it")
    parent = name.partition("/")[0]
    if path_only or not _HUB_ID.fullmatch(name) or _find_format(path) or Path(parent).exists():
        raise InputError(f"{name}: no such file; check the path")
    dataset_id, _, split = name.partition(":")
    try:
        dataset = load_hub_dataset(dataset_id, split=split or "train")
    except InputError as error:
        raise InputError(f"{name}: no such file, and as {error}") from error
    return _open_dataset(dataset, name, wanted)


def _open_dataset(dataset: Dataset, place: str, wanted: _Wanted) -> Table:
    kept = wanted.choose(dataset.column_names)
    return Table(place, dataset.column_names, _read_dataset(dataset.with_format(None), kept), indexed=True)


def _open_file(path: Path, place: str, wanted: _Wanted) -> Table:
    suffix = _find_format(path)
    if suffix is None:
        raise InputError(f"{place}: expected a file named {', '.join(FORMATS)} (text also with .gz)")
    if suffix == ".parquet":
        return _open_parquet(path, place, wanted)
    lines = _read_lines(path, place)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{place}: expected {wanted.items[1]}, found an empty file")
    if suffix in (".tsv", ".csv"):
        header = _split_line(first, place, 1, suffix)
        return Table(place, header, _split_rows(lines, place, suffix, header, wanted.items[0]), header=True)
    lines = chain([first], lines)
    if suffix == ".txt":
        if len(wanted.names) == 1:
            return Table(place, wanted.names, _name_lines(lines, wanted.names[0]))
        return Table(place, wanted.names[:2], _split_bars(lines, place, wanted))
    _check_blank(first, place, 1, wanted.items[0])
    return Table(place, list(_parse_object(first, f"{place}:1")), _parse_lines(lines, place, wanted.items[0]))


def _find_format(path: Path) -> str | None:
    name = path.name.lower()
    stem = name.removesuffix(".gz")
    suffix = next((s for s in FORMATS if stem.endswith(s)), None)
    return None if suffix == ".parquet" and stem != name else suffix


def _open_parquet(path: Path, place: str, wanted: _Wanted) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # By default the whole file ends up in memory, and with a buffer alone it still does.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        header = file.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _refuse_parquet(place, error) from error
    kept = wanted.choose(header)
    if len(set(kept)) < len(kept):
        raise InputError(f"{place}: a column name occurs twice; rename one")
    return Table(place, header, _read_parquet(file, kept, place))


# ---- rows of each format


def _read_list(items: Sequence[Any], names: Sequence[str]) -> Iterator[Row]:
    for i, item in enumerate(items):
        if not isinstance(item, (tuple, list)):
            raise TypeError(f"pairs[{i}]: expected a tuple ({', '.join(names)}), found {type(item).__name__}")
        if len(item) != len(names):
            raise InputError(f"pairs[{i}]: expected ({', '.join(names)}), found {len(item)} items")
        for name, value in zip(names[:2], item, strict=False):
            if not isinstance(value, str):
                raise TypeError(f"pairs[{i}]: expected a str as {name}, found {type(value).__name__}")
        yield i, dict(zip(names, item, strict=True))


def _read_dataset(dataset: Dataset, kept: list[str]) -> Iterator[Row]:
    batches = dataset.select_columns(kept).iter(batch_size=_ROWS_AT_ONCE) if kept else ()
    rows = chain.from_iterable(zip(*(batch[name] for name in kept), strict=True) for batch in batches)
    yield from ((i, dict(zip(kept, row, strict=True))) for i, row in enumerate(rows))


def _read_parquet(file: Any, kept: list[str], place: str) -> Iterator[Row]:
    import pyarrow as pa

    batches = file.iter_batches(_ROWS_AT_ONCE, columns=kept) if kept else iter(())
    start = 1
    while True:
        try:
            if (batch := next(batches, None)) is None:
                return
            columns = [batch.column(name).to_pylist() for name in kept]
        # The last two: text that is not UTF-8, and dates that Python does not have.
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _refuse_parquet(place, error) from error
        yield from ((i, dict(zip(kept, row, strict=True))) for i, row in enumerate(zip(*columns, strict=True), start))
        start += batch.num_rows


def _refuse_parquet(place: str, error: Exception) -> InputError:
    return InputError(f"{place}: cannot read this parquet file ({_first_line(error)}); write it again")


def _read_lines(path: Path, place: str) -> Iterator[str]:
    compressed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            # Only line feeds end a line: str.splitlines would also break sentences at U+2028 and its like.
            for row, line in enumerate(file, 1):
                data = line.removeprefix(codecs.BOM_UTF8) if row == 1 else line
                if data:
                    yield _decode_line(data, place, row)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{place}: cannot read this file ({_first_line(error)}); check it") from error


def _decode_line(data: bytes, place: str, row: int) -> str:
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        found = f"expected UTF-8 text, found the byte 0x{data[error.start]:02x}"
        raise InputError(f"{place}:{row}: {found}; convert the file to UTF-8") from error


def _split_line(line: str, place: str, row: int, suffix: str) -> list[str]:
    if suffix == ".tsv":
        return line.split("\t")
    limit = csv.field_size_limit(max(_CSV_FIELD, len(line)))
    try:
        # Each line on its own: an unclosed quotation mark is then an error here, and never swallows rows.
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise InputError(
            f"{place}:{row}: expected one CSV record on this line, found bad quoting ({error}); "
            "close or double the quotation mark, and keep line breaks out of fields"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _split_rows(lines: Iterator[str], place: str, suffix: str, header: list[str], item: str) -> Iterator[Row]:
    for row, line in enumerate(lines, 2):
        _check_blank(line, place, row, item)
        fields = _split_line(line, place, row, suffix)
        if len(fields) != len(header):
            raise InputError(
                f"{place}:{row}: expected {len(header)} fields as in the header, found {len(fields)}; "
                f"look for a missing or extra {'tab' if suffix == '.tsv' else 'comma or quotation mark'}"
            )
        yield row, dict(zip(header, fields, strict=True))


def _name_lines(lines: Iterator[str], name: str) -> Iterator[Row]:
    yield from ((row, {name: line}) for row, line in enumerate(lines, 1))


def _split_bars(lines: Iterator[str], place: str, wanted: _Wanted) -> Iterator[Row]:
    for row, line in enumerate(lines, 1):
        _check_blank(line, place, row, wanted.items[0])
        fields = line.split("||")
        if len(fields) != 2:
            found = f"expected sentence1||sentence2, found {len(fields)} field(s) in {show(line)}"
            raise InputError(f"{place}:{row}: {found}; correct the line")
        yield row, {name: field.strip() for name, field in zip(wanted.names, fields, strict=False)}


def _parse_lines(lines: Iterator[str], place: str, item: str) -> Iterator[Row]:
    for row, line in enumerate(lines, 1):
        _check_blank(line, place, row, item)
        yield row, _parse_object(line, f"{place}:{row}")


def _parse_object(line: str, at: str) -> dict[str, Any]:
    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            raise ValueError("a key occurs twice in one object")
        return found

    def refuse(literal: str) -> Any:
        raise ValueError(f"{literal} is not JSON")

    try:
        value = json.loads(line, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{at}: expected one JSON object, found {show(line)} ({error}); correct it") from error
    if not isinstance(value, dict):
        raise InputError(f"{at}: expected one JSON object a line, found {show(line)}; correct it")
    return value


def _check_blank(line: str, place: str, row: int, item: str) -> None:
    if not line.strip():
        raise InputError(f"{place}:{row}: expected a {item}, found a blank line; delete the line")


# ---- values


def is_blank(text: str) -> bool:
    r"""Say whether a text has nothing but white space and control characters.

    Tokenisers drop these, so that all such texts would share one vector.

    Example:
        >>> is_blank(" \u200b\x00"), is_blank(" x ")
        (True, False)
    """
    return not any(c.isprintable() and not c.isspace() for c in text)


# ---- wording


def show(value: Any) -> str:
    """Return a short form of a value for an error message, control characters escaped."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def show_names(names: Sequence[str]) -> str:
    """Return a short list of column names for an error message."""
    return ", ".join(show(name) for name in names[:6]) + (", ..." if len(names) > 6 else "") or "none"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
