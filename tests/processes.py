"""Forked children: run, paused and killed, or dead at a step that touches the disk."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transenc import durable


def start_child(work: Callable[[], object]) -> int:
    """Fork a process that does `work` and exits with 0, or with 1 after printing its exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside the threads of some library
        pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(120)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def run_child(work: Callable[[], object]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(start_child(work), 0)[1])


@contextmanager
def paused_child(work: Callable[[Callable[[], None]], object]) -> Iterator[int]:
    """A child that has reached the `pause()` in `work(pause)`, killed with SIGKILL at the end."""
    ready, tell = os.pipe()

    def pause() -> None:
        os.write(tell, b"!")
        signal.pause()

    pid = start_child(lambda: work(pause))
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"!"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def die_at(step: int, work: Callable[[], object]) -> Callable[[], None]:
    """The work, in a process that ends without a word at this step (from 0) that touches the disk."""

    def run() -> None:
        left = iter(range(step))

        def on_step(name: str) -> None:
            if next(left, None) is None:
                os._exit(137)

        durable.on_step = on_step
        work()

    return run
