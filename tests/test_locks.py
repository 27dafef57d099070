"""A lock is held by one process, named to the others, and freed however that process ends."""

from __future__ import annotations

import doctest
import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import paused_child, run_child, start_child

from transenc import locks
from transenc.errors import BusyError
from transenc.locks import lock


def enter(context: Any) -> None:
    with context:
        pytest.fail("it was held")


def test_lock_held_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def work(pause: Callable[[], None]) -> None:
        with lock(path):
            pause()

    with paused_child(work) as pid:
        for _ in range(2):  # the refused attempt leaves the holder's file alone
            with pytest.raises(BusyError, match=rf"lock is held by process {pid} on host {socket.gethostname()};"):
                enter(lock(path))
    assert json.loads(path.read_text())["pid"] == pid  # killed, so it could not tidy up
    with lock(path):
        assert json.loads(path.read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}


def test_lock_waits_for_a_holder_that_ends(tmp_path: Path) -> None:
    path, held = tmp_path / "lock", threading.Event()

    def hold() -> None:
        with lock(path):
            held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with pytest.raises(BusyError), lock(path, patience=0.01):
        raise AssertionError("it was held")
    with lock(path, patience=60):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    holder.join()


def test_lock_twice_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path):
        with pytest.raises(BusyError, match=f"process {os.getpid()} "):
            enter(lock(path))
        with pytest.raises(BusyError):  # still held after the refusal
            enter(lock(path))
        with lock(tmp_path / "other"):
            pass
    with pytest.raises(KeyError), lock(path):
        raise KeyError
    with lock(path):
        pass


@pytest.mark.parametrize("content", ["", "x" * 300, '{"pid": 1, "host": "a"}', "[]"])
def test_lock_file_left_behind(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(content)
    with lock(tmp_path / "lock"):
        text = (tmp_path / "lock").read_text()
        assert text == json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n"


def test_lock_of_an_unknown_holder(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="held by an unknown process"):
            enter(lock(tmp_path / "lock"))


def test_orphaned_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    workers, tell = os.pipe()

    def work(pause: Callable[[], None]) -> None:
        with lock(tmp_path / "lock"):
            start_child(lambda: [os.write(tell, os.getpid().to_bytes(8, "big")), signal.pause()])
            pause()

    with paused_child(work):
        worker = int.from_bytes(os.read(workers, 8), "big")
    os.close(workers)
    os.close(tell)
    try:
        with lock(tmp_path / "lock"):
            os.kill(worker, 0)  # it lives still
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_worker_that_leaves_the_block_keeps_the_parents_lock(tmp_path: Path) -> None:
    with lock(tmp_path / "lock"):

        def work() -> None:
            assert locks._held == set()
            with pytest.raises(BusyError, match=f"process {os.getppid()} "):
                enter(lock(tmp_path / "lock"))

        assert run_child(work) == 0
        with pytest.raises(BusyError):
            enter(lock(tmp_path / "lock"))


def test_examples() -> None:
    assert doctest.testmod(locks).failed == 0
