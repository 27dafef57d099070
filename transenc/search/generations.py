r"""The folder of an index: one generation serves, the next one is written beside it and takes its place.

::

    INDEX/CURRENT        "gen-000007 b27cee85\n", replaced in one step; the second word is a checksum of the first
          lock           held by the one process that changes the index; readers never take it
          gen-000007/    published by `durable`, never changed; the generation before it stays for slow readers
          work/chunks/   what an unfinished change has encoded so far
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from transenc import durable
from transenc.errors import InputError, StateError, TransencError
from transenc.locks import lock
from transenc.tables import show

CURRENT = "CURRENT"
LOCK = "lock"

_NAME = re.compile(r"gen-([0-9]{6}|[1-9][0-9]{6,11})")
_CHECKED = 8  # hexadecimal digits: without them a flipped bit could name the generation before
_Opened = TypeVar("_Opened")


def open_current(root: Path, open_generation: Callable[[Path], _Opened]) -> _Opened:
    """Open the generation that serves, again when another process publishes a newer one meanwhile.

    Args:
        root: The folder of the index.
        open_generation: Verifies and opens the folder of a generation.

    Raises:
        InputError: There is no index.
        StateError: It is damaged.
    """
    number = read_current(root)
    while True:
        try:
            return open_generation(name_generation(root, number))
        except (TransencError, OSError) as error:
            newer = read_current(root)
            if newer != number:
                number = newer
                continue
            if isinstance(error, OSError) and not isinstance(error, TransencError):
                raise StateError(f"cannot read {error.filename or root}: {error.strerror or error}") from error
            raise


def read_current(root: Path) -> int:
    """Return the number of the generation that serves.

    Raises:
        InputError: `root` is missing or no index.
        StateError: Its CURRENT names no generation.
    """
    try:
        text = (root / CURRENT).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        found = "a file" if root.is_file() else "a folder without CURRENT" if root.is_dir() else "nothing"
        raise InputError(f"{root}: expected the folder of an index, found {found}; build one there first") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{show(str(root))}: cannot read the index here: {error}") from error
    number = _parse_current(text.decode("utf-8", "replace"))
    if number is None or not name_generation(root, number).is_dir():
        known = ", ".join(render_current(root, number) for number in _list_generations(root)) or "none"
        raise StateError(
            f"{root / CURRENT}: expected the name of a generation (there are: {known}), found "
            f"{show(text.decode('utf-8', 'replace'))}; write one of them there, or build the index again"
        )
    return number


def name_generation(root: Path, number: int) -> Path:
    """Return the folder of a generation.

    Example:
        >>> name_generation(Path("idx"), 7).name
        'gen-000007'
    """
    return root / f"gen-{number:06d}"


def render_current(root: Path, number: int) -> str:
    """Return what CURRENT says when a generation serves, without the line feed.

    Example:
        >>> render_current(Path("idx"), 7)
        'gen-000007 b27cee85'
    """
    name = name_generation(root, number).name
    return f"{name} {hashlib.sha256(name.encode()).hexdigest()[:_CHECKED]}"


def prepare_folder(root: Path) -> None:
    """Make the folder of an index, or refuse one that holds something else, before anything is written there.

    Raises:
        InputError: A file, a folder with anything else in it, or no permission.
    """
    if not str(root).strip() or root == Path():
        raise InputError("no place for the index given: expected a folder or an address, found an empty one")
    try:
        if root.is_dir():
            names = {path.name for path in root.iterdir() if not path.name.startswith(durable.TEMPORARY_PREFIX)}
            ours = {name for name in names if name in {CURRENT, LOCK, "work"} or _NAME.fullmatch(name)}
            # a first build that is under way, or was killed, has no CURRENT yet
            if not names or (names == ours and LOCK in names) or _names_generation(root / CURRENT):
                return
            foreign = show(min(names - ours or names))
            raise InputError(f"{root}: not empty and not an index (found {foreign}); name a new folder")
        if root.exists():
            raise InputError(f"{root}: expected a folder for the index, found a file; name a new folder")
        root.mkdir(parents=True)
    except (OSError, ValueError) as error:
        if isinstance(error, TransencError):
            raise
        raise InputError(f"{show(str(root))}: cannot write an index here: {error}") from error


@contextmanager
def change_index(root: Path) -> Iterator[None]:
    """Hold the lock of an index for the block, and clear away what killed writers left.

    Raises:
        BusyError: Another process is changing it.
        InputError: There is no such folder, or it cannot be written.
    """
    with lock(root / LOCK):
        durable.remove_temporaries(root)
        if (root / "work/chunks").is_dir():
            durable.remove_temporaries(root / "work/chunks")
        yield


@contextmanager
def publish_generation(root: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Fill the folder of the next generation, and let it serve when the block ends; the caller holds the lock.

    Args:
        root: The folder of the index.
        facts: Facts for the manifest, read when the block ends; "generation" is added.

    Yields:
        The temporary folder to fill.
    """
    numbers = _list_generations(root)
    number = max(numbers, default=0) + 1
    try:
        kept = read_current(root)
    except InputError:  # none has served yet
        kept = 0
    except StateError:  # CURRENT is damaged, and the newest may be what served
        kept = number - 1
    facts["generation"] = number
    with durable.publish_directory(name_generation(root, number), facts=facts) as temporary:
        yield temporary
    durable.write_file(root / CURRENT, f"{render_current(root, number)}\n")
    for old in numbers:
        if old != kept:
            _remove(name_generation(root, old))
    _remove(root / "work")


def make_chunk_folder(root: Path) -> Path:
    """Return the folder for what is encoded so far, made if it is missing."""
    folder = root / "work/chunks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def link_file(source: Path, target: Path) -> None:
    """Give a published file, which never changes, to another generation too; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _names_generation(current: Path) -> bool:
    """Whether this is a CURRENT of ours: other programs have files of that name."""
    return current.is_file() and _parse_current(current.read_text("utf-8", "replace")) is not None


def _parse_current(text: str) -> int | None:
    named = _NAME.match(text)
    if named is None or text.removesuffix("\n") != render_current(Path(), int(named[1])):
        return None
    return int(named[1])


def _list_generations(root: Path) -> list[int]:
    return sorted(int(found[1]) for path in root.iterdir() if (found := _NAME.fullmatch(path.name)))


def _remove(folder: Path) -> None:
    durable.on_step(f"index:remove {folder}")
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"cannot delete {folder}: {error.strerror or error}; delete it by hand") from error
