"""One process at a time: locks that the system frees when their holder ends, however it ends."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from transenc.durable import Location, explain_errors
from transenc.errors import BusyError

_held: set[int] = set()  # descriptors of the locks this process holds


@contextmanager
def lock(path: Location, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for the block; the system frees it when the process ends, however it ends.

    The file stays behind and means nothing by itself. Forked children do not hold the lock.

    Args:
        path: made if it is not there.
        patience: seconds to wait for a holder to end.

    Raises:
        BusyError: it is held already, perhaps by this process; names the holder's pid and host.
        InputError: the file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with lock(f"{folder}/lock"), open(f"{folder}/lock") as file:
        ...         holder = json.load(file)
        >>> holder["pid"] == os.getpid()
        True
    """
    _release_in_children()
    with explain_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            end = time.monotonic() + patience
            while not _try_lock(descriptor):
                if time.monotonic() >= end:
                    raise BusyError(_describe_holder(descriptor, path))
                time.sleep(0.05)
            holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n"
            # padded over what a killed holder left, so that a reader never sees half of each
            os.pwrite(descriptor, holder.ljust(os.fstat(descriptor).st_size), 0)
            os.ftruncate(descriptor, len(holder))
        except BaseException:
            os.close(descriptor)
            raise
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


@functools.cache
def _release_in_children() -> None:
    """Close the locks in forked children: an orphaned worker would hold them after the run was killed."""
    os.register_at_fork(after_in_child=_close_held)


def _close_held() -> None:
    while _held:
        os.close(_held.pop())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _describe_holder(descriptor: int, path: Location) -> str:
    for _ in range(10):
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0))
            who = f"process {holder['pid']} on host {holder['host']}"
            break
        except (ValueError, KeyError, TypeError):
            who = "an unknown process"
            time.sleep(0.02)  # it has the lock but has not yet written who it is
    return f"{path} is held by {who}; wait until it has ended, or stop it"
