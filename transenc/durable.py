"""The one way this project publishes a file or a directory.

What is published is written under a temporary name, synced, given a manifest of sizes and digests (a
directory only) and renamed; then its folder is synced. A process killed at any moment leaves the old state
or the new one, and perhaps a leftover named ``.tmp-*``, which no reader looks at.

Errors: ``StateError`` for damage and a full disk, ``InputError`` for a path that cannot be written (missing
folder, no permission, read-only).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from transenc.errors import InputError, StateError, TransencError

MANIFEST = "MANIFEST.json"
TEMPORARY_PREFIX = ".tmp-"
Location = str | os.PathLike[str]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_UNUSABLE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
# safetensors and tokenizers keep the system's words; NumPy, PyTorch and FAISS have their own
_FULL_TEXT = re.compile(
    "file too large|no space left|quota exceeded|disk is full"
    r"|\d+ requested and \d+ written|unexpected pos \d+ vs \d+|PytorchStreamWriter failed|write error in ",
    re.IGNORECASE,
)


def _ignore_step(step: str) -> None:
    pass


# called with a step's name before that step touches the disk: a test replaces it, and dies there
on_step: Callable[[str], None] = _ignore_step


def write_file(path: Location, data: bytes | str) -> None:
    """Write a whole file: afterwards `path` holds all of `data`, or on any failure what it held before.

    A symlink is followed, and a file that is replaced keeps its permissions. Text is written as UTF-8.

    Raises:
        InputError: `path` cannot be written or is not a regular file.
        StateError: the disk is full or failed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(f"{folder}/note.txt", "done")
        ...     read_back = Path(folder, "note.txt").read_text()
        >>> read_back
        'done'
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    with explain_errors(path):
        _replace_file(Path(os.path.realpath(path)), content)


def write_json(path: Location, obj: Any) -> None:
    """Write `obj` as JSON with `write_file`; NaN and infinities are refused, since they are not JSON.

    Raises:
        StateError: a number is not finite (nothing is written); otherwise as `write_file`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/a.json", {"cycle": 1, "score": None})
        ...     obj = read_json(f"{folder}/a.json")
        >>> obj
        {'cycle': 1, 'score': None}
    """
    write_file(path, _dump(obj, path, indent=2) + "\n")


def read_json(path: Location) -> Any:
    """Read what `write_json` wrote.

    Raises:
        StateError: the file is missing, unreadable or not strict JSON.

    Example:
        >>> read_json("no-such.json")
        Traceback (most recent call last):
        transenc.errors.StateError: cannot read no-such.json: No such file or directory
    """
    return _load(_read_bytes(path), str(path))


@contextmanager
def publish_directory(path: Location, *, facts: dict[str, Any] | None = None) -> Iterator[Path]:
    """Fill a new directory and make it appear at `path` only when it is complete.

    Args:
        path: the final name; must not exist. Its parent must.
        facts: JSON kept in the manifest; read when the block ends, so the block may still add to it.

    Yields:
        An empty directory beside `path`. Leaving the block normally publishes it; an exception removes it.

    Raises:
        StateError: `path` exists, the block left something else than regular files and directories, the disk
            is full (also when a library says so in its own words), or a fact is not finite.
        InputError: the parent is missing or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with publish_directory(f"{folder}/labels", facts={"rows": 2}) as temporary:
        ...         size = (temporary / "labels.txt").write_text("0.5 0.7")
        ...     found = verify_directory(f"{folder}/labels")
        >>> found
        {'rows': 2}
    """
    target = Path(path).absolute()
    _refuse_existing(target)
    temporary = target.with_name(_temporary_name())
    try:
        with explain_errors(target):
            on_step(f"publish:make {temporary}")
            temporary.mkdir()
        with explain_full_disk(target):
            yield temporary
        if os.path.lexists(temporary / MANIFEST):
            raise StateError(f"cannot publish {target}: {MANIFEST} is written here; leave it out")
        _seal(temporary, target, facts)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def seal_directory(source: Location, path: Location, *, facts: dict[str, Any] | None = None) -> None:
    """Publish a directory that a library has already written, by moving it to `path`.

    Interrupted, it leaves `source` complete or `path` published, and can be repeated with the same source.

    Args:
        source: the directory, on the file system of `path`; a manifest in it is replaced.
        path: the final name; must not exist. Its parent must.
        facts: JSON kept in the manifest.

    Raises:
        StateError: `source` is no directory or holds a symlink, `path` exists, or the disk is full.
        InputError: the parent of `path` is missing or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "model").mkdir()
        ...     seal_directory(f"{folder}/model", f"{folder}/checkpoint", facts={"step": 8})
        ...     found = verify_directory(f"{folder}/checkpoint")
        >>> found
        {'step': 8}
    """
    folder, target = Path(source).absolute(), Path(path).absolute()
    _refuse_existing(target)
    if folder.is_symlink() or not folder.is_dir():
        raise StateError(f"cannot publish {target}: {source} is not a directory")
    remove_temporaries(folder)
    _seal(folder, target, facts)


def verify_directory(path: Location) -> dict[str, Any]:
    """Check a published directory byte for byte against its manifest and return the manifest's facts.

    Raises:
        StateError: names the folder and the first file that is missing, changed, not listed or no regular
            file, or says that the manifest itself is missing or damaged.

    Example:
        >>> verify_directory("no-such-folder")
        Traceback (most recent call last):
        transenc.errors.StateError: no-such-folder: not a directory; expected a published one
    """
    folder = Path(path)
    with explain_errors(folder, verb="read"):
        if not folder.is_dir():
            raise StateError(f"{folder}: not a directory; expected a published one")
        found = {name for name in _scan(folder)[0] if name != MANIFEST}
        manifest = _read_manifest(folder)
        for name in sorted(found ^ manifest["files"].keys()):
            problem = "is not in the manifest" if name in found else "is missing"
            _refuse(folder / name, f"{problem}, so {folder} was changed after it had been published")
        for name, entry in manifest["files"].items():  # sizes first: they cost nothing
            size = os.path.getsize(folder / name)
            if size != entry["bytes"]:
                _refuse(folder / name, f"expected {entry['bytes']} bytes, found {size}")
        for name, entry in manifest["files"].items():
            digest = sha256_file(folder / name)
            if digest != entry["sha256"]:
                _refuse(folder / name, f"expected sha256 {entry['sha256']}, found {digest}")
    return manifest["facts"]


def is_published(path: Location) -> bool:
    """Whether `path` has a manifest; it says nothing about the files.

    Example:
        >>> is_published("no-such-folder")
        False
    """
    return Path(path, MANIFEST).is_file()


def directory_digest(path: Location) -> str:
    """The manifest's digest (64 hex digits), which stands for every file and fact; files are not read.

    Raises:
        StateError: there is no manifest, or it is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with publish_directory(f"{folder}/empty"):
        ...         pass
        ...     digest = directory_digest(f"{folder}/empty")
        >>> digest[:12]
        'e6d08d7fab9f'
    """
    return _read_manifest(Path(path))["digest"]


def replace_symlink(link: Location, target_relative: Location) -> None:
    """Point the symlink `link` at another target in one step.

    Args:
        link: made if absent; anything there that is not a symlink is refused.
        target_relative: an existing path, relative to the folder of `link`, so that the whole can be moved.

    Raises:
        StateError: the target is absolute or missing, or `link` is something else.
        InputError: the folder of `link` is missing or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(f"{folder}/model", "weights")
        ...     replace_symlink(f"{folder}/best", "model")
        ...     target = os.readlink(f"{folder}/best")
        >>> target
        'model'
    """
    target, link = os.fspath(target_relative), Path(link).absolute()
    if os.path.isabs(target) or not (link.parent / target).exists():
        raise StateError(f"cannot link {link}: expected an existing relative target, found {target!r}")
    if os.path.lexists(link) and not link.is_symlink():
        raise StateError(f"cannot link {link}: it exists and is not a symlink; move it away")
    temporary = link.with_name(_temporary_name())
    with explain_errors(link):
        try:
            on_step(f"symlink:create {temporary}")
            temporary.symlink_to(target)
            on_step(f"symlink:rename {link}")
            os.replace(temporary, link)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _fsync_folder(link.parent)


def append_record(path: Location, record: dict[str, Any]) -> None:
    """Append one JSON line and sync it; a line that an earlier crash tore is cut off first.

    Two processes must not append at once: hold `lock`.

    Raises:
        StateError: a number is not finite, or the disk is full (the file is left as it was).
        InputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     append_record(f"{folder}/journal.jsonl", {"event": "start"})
        ...     append_record(f"{folder}/journal.jsonl", {"event": "stage", "cycle": 1})
        ...     records = read_records(f"{folder}/journal.jsonl")
        >>> records
        [{'event': 'start'}, {'event': 'stage', 'cycle': 1}]
    """
    target = Path(path).absolute()
    line = _dump(record, path).encode() + b"\n"
    with explain_errors(path):
        on_step(f"append:open {target}")
        with open(target, "a+b", buffering=0) as file:
            file.seek(0)
            content = file.read()
            size = len(content)
            tail = content[content.rfind(b"\n") + 1 :]
            if tail and _is_record(tail):  # whole, only its newline is missing
                line = b"\n" + line
            elif tail:
                size -= len(tail)
                on_step(f"append:cut {target}")
                file.truncate(size)
            try:
                on_step(f"append:fill {target}")
                while line:
                    line = line[file.write(line) :]
                on_step(f"append:fsync {target}")
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    file.truncate(size)
                raise
        if size == 0:
            _fsync_folder(target.parent)


def read_records(path: Location) -> list[dict[str, Any]]:
    r"""Read what `append_record` wrote, without a last line that a crash tore.

    Raises:
        StateError: the file is missing, or names file and line (from 1) of what is not a JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(f"{folder}/journal.jsonl", '{"cycle": 1}\n{"cyc')
        ...     records = read_records(f"{folder}/journal.jsonl")
        >>> records
        [{'cycle': 1}]
    """
    *lines, tail = _read_bytes(path).split(b"\n")
    if tail and _is_record(tail):
        lines.append(tail)
    records = []
    for number, line in enumerate(lines, start=1):
        record = _load(line, f"{path}:{number}")
        if not isinstance(record, dict):
            _refuse(f"{path}:{number}", f"expected a JSON object, found {type(record).__name__}")
        records.append(record)
    return records


def remove_temporaries(folder: Location) -> None:
    """Delete what killed writers left in `folder` (`.tmp-*`, its top level only); the caller holds the lock.

    Raises:
        InputError: something cannot be deleted.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, ".tmp-0123").mkdir()
        ...     remove_temporaries(folder)
        ...     left = os.listdir(folder)
        >>> left
        []
    """
    for leftover in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        with explain_errors(leftover, verb="delete"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def sha256_file(path: Location) -> str:
    """The sha256 of a file's bytes, 64 hex digits.

    Raises:
        StateError: the file is missing or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(f"{folder}/a", "abc")
        ...     digest = sha256_file(f"{folder}/a")
        >>> digest[:12]
        'ba7816bf8f01'
    """
    with explain_errors(path, verb="read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explain_full_disk(path: Location) -> Iterator[None]:
    """Turn a library's report of a full disk into one that names `path`; other exceptions pass unchanged.

    Raises:
        StateError: the block failed for want of space.

    Example:
        >>> with explain_full_disk("runs/a"):
        ...     raise RuntimeError("I/O error: File too large")
        Traceback (most recent call last):
        transenc.errors.StateError: cannot write runs/a: no space left (I/O error: File too large)
    """
    try:
        yield
    except TransencError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if getattr(cause, "errno", None) in _FULL or _FULL_TEXT.search(str(cause)):
                raise StateError(f"cannot write {path}: no space left ({_first_line(error)})") from error
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        raise


@contextmanager
def explain_errors(path: Location, *, verb: str = "write") -> Iterator[None]:
    """Turn the system's refusal into an error that names `path` and says what to do.

    Args:
        path: what is written or read.
        verb: "write" or "read".

    Raises:
        StateError: the disk is full, or the system failed. InputError: no permission; for "write" also a folder that
            is missing, or no folder.

    Example:
        >>> with explain_errors("runs/a", verb="read"):
        ...     raise PermissionError(errno.EACCES, "Permission denied")
        Traceback (most recent call last):
        transenc.errors.InputError: cannot read runs/a: Permission denied; get permission or name another path
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        what = f"cannot {verb} {path}"
        if error.errno in _FULL:
            raise StateError(f"{what}: no space left ({reason}); make room and run again") from error
        if error.errno in _DENIED:
            raise InputError(f"{what}: {reason}; get permission or name another path") from error
        if verb == "write" and error.errno in _UNUSABLE:
            raise InputError(f"{what}: {reason}; name a path in an existing folder") from error
        raise StateError(f"{what}: {reason}") from error


def _temporary_name() -> str:
    return TEMPORARY_PREFIX + secrets.token_hex(8)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _replace_file(target: Path, content: bytes) -> None:
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {target}: it is not a regular file; name another path")
    temporary = target.parent / _temporary_name()
    try:
        on_step(f"write:create {temporary}")
        with open(temporary, "xb") as file:
            on_step(f"write:fill {temporary}")
            file.write(content)
            file.flush()
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            on_step(f"write:fsync {temporary}")
            os.fsync(file.fileno())
        on_step(f"write:rename {target}")
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _fsync_folder(target.parent)


def _fsync_folder(folder: Path) -> None:
    on_step(f"fsync {folder}")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _dump(obj: Any, path: Location, *, indent: int | None = None) -> str:
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except ValueError as error:
        raise StateError(f"cannot write {path}: {error}; write null for an undefined number") from error


def _load(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"not valid JSON ({error})")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(where: Location, problem: str) -> NoReturn:
    raise StateError(f"{where}: {problem}; restore it from a copy or have it made again")


def _read_bytes(path: Location) -> bytes:
    with explain_errors(path, verb="read"):
        return Path(path).read_bytes()


def _refuse_existing(target: Path) -> None:
    with explain_errors(target), suppress(FileNotFoundError):
        target.lstat()  # also finds a name that is too long before any work
        raise StateError(f"cannot publish {target}: it exists already and is never overwritten; move it away")


def _seal(folder: Path, target: Path, facts: dict[str, Any] | None) -> None:
    names, folders = _scan(folder)
    files = {}
    with explain_errors(target):
        for name in names:
            if name == MANIFEST:  # left by an interrupted seal
                continue
            on_step(f"publish:fsync {folder / name}")
            with open(folder / name, "rb") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
                files[name] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        for subfolder in folders[:-1]:  # the last is `folder` itself, synced with its manifest
            _fsync_folder(subfolder)
        body = json.loads(_dump({"files": files, "facts": facts or {}}, target))  # so that keys are text
        _replace_file(folder / MANIFEST, _render_manifest(body, target))
        _refuse_existing(target)
        on_step(f"publish:rename {target}")
        os.rename(folder, target)
        _fsync_folder(target.parent)
        if folder.parent != target.parent:
            _fsync_folder(folder.parent)


def _scan(folder: Path) -> tuple[list[str], list[Path]]:
    """Relative names of all files, sorted, and all folders, innermost first."""
    files, folders = [], []
    with explain_errors(folder, verb="read"):
        for root, subfolders, others in os.walk(folder, onerror=_raise):
            folders.append(Path(root))
            for name in subfolders + others:
                entry = Path(root, name)
                mode = entry.lstat().st_mode
                if stat.S_ISREG(mode):
                    files.append(entry.relative_to(folder).as_posix())
                elif not stat.S_ISDIR(mode):
                    _refuse(entry, "is a symlink or a special file; expected regular files only")
    return sorted(files), folders[::-1]


def _raise(error: OSError) -> NoReturn:
    raise error


def _render_manifest(body: dict[str, Any], path: Location) -> bytes:
    canonical = json.dumps(body, allow_nan=False, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return (_dump({**body, "digest": digest}, path, indent=2) + "\n").encode()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not is_published(folder):
        _refuse(path, "is missing, so the folder is damaged or was never published")
    data = _read_bytes(path)
    manifest = _load(data, str(path))
    try:
        body = {"files": dict(manifest["files"]), "facts": dict(manifest["facts"])}
        # every byte counts: whatever was changed by hand or by accident renders differently
        intact = data == _render_manifest(body, path)
        for entry in body["files"].values():
            intact = intact and entry.keys() == {"bytes", "sha256"}
    except (AttributeError, KeyError, TypeError, ValueError):
        intact = False
    if not intact:
        _refuse(path, "does not fit its own digest, so it was changed after it had been written")
    for name in body["files"]:
        if name == MANIFEST or "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            _refuse(path, f"lists {name!r}, which is no name of a file in the folder")
    return manifest


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
