"""Stopping on SIGTERM and SIGINT: at once, or after the piece of work that must not be cut."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transenc.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """What a signal has asked for so far.

    Attributes:
        signum: The signal that came, or None. Work inside `deferred` looks at it and ends early.

    Example:
        >>> print(StopRequest().signum)
        None
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._depth = 0
        self._owner = os.getpid()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block finish although a signal comes: it then only sets `signum`. May be nested.

        Raises:
            Interrupted: on leaving the outermost block normally, when a signal has come. An exception that
                leaves the block passes unchanged.

        Example:
            >>> with stop_on_signals() as request:
            ...     with request.deferred():
            ...         signal.raise_signal(signal.SIGTERM)
            ...         saved = request.signum == 15  # still at work
            Traceback (most recent call last):
            transenc.errors.Interrupted: stopped by signal 15
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._depth == 0 and self.signum is not None:
            raise Interrupted(self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker
            if signum == signal.SIGINT:  # Ctrl-C reaches the whole group; the parent still needs its workers
                return
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if self.signum is not None:  # no clean-up: whoever asks twice wants out
            os._exit(128 + signum)
        self.signum = signum
        if self._depth == 0:
            raise Interrupted(signum)


_active: StopRequest | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into `Interrupted` for the block; the former handlers come back after it.

    The first signal raises `Interrupted` at once, or at the end of `StopRequest.deferred`; the second ends
    the process at once with exit status 128 + its number. Inside another such block this is that block.
    Outside the main thread, where Python allows no handlers, the request is never set.

    Yields:
        The request, for the work inside to look at and to defer.

    Example:
        >>> with stop_on_signals() as request:
        ...     with stop_on_signals() as inner:
        ...         print(inner is request)
        True
    """
    global _active
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    if _active is not None and _active._owner == os.getpid():
        yield _active
        return
    outer, request = _active, StopRequest()
    former = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        _active = request
        for signum in SIGNALS:
            signal.signal(signum, request._receive)
        yield request
    finally:
        for signum, handler in former.items():
            # None stands for a handler that was not set from Python and cannot be put back
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        _active = outer
