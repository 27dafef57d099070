"""Real signals in forked children: at once, after the deferred work, or for good."""

from __future__ import annotations

import doctest
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple

import pytest

from transenc import signals
from transenc.errors import Interrupted
from transenc.signals import StopRequest, stop_on_signals

BOTH = pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


class Ended(NamedTuple):
    code: int
    said: str


def run_child(work: Callable[[Callable[[str], None]], object], *send: int) -> Ended:
    """Fork a process doing `work(say)`; each time it says a line ending in "?", it is sent the next signal.

    It exits as the command line does: 0, the code of `Interrupted`, or 1 for any other exception.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside the threads of some library
        pid = os.fork()
    if pid == 0:
        try:
            work(lambda text: os.write(writer, f"{text}\n".encode()) and None)
            os._exit(0)
        except Interrupted as error:
            os._exit(error.exit_code)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    os.close(writer)
    left, said = list(send), ""
    with open(reader) as lines:
        for line in lines:
            said += line
            if line.endswith("?\n"):
                os.kill(pid, left.pop(0))
    assert left == []
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said)


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("no signal within 10 s")


def never() -> bool:
    return False


@BOTH
def test_interrupted_at_once(signum: int, code: int) -> None:
    def work(say: Callable[[str], None]) -> None:
        with stop_on_signals() as request:
            try:
                say("ready?")
                wait_for(never)
            finally:
                say(f"cleaned up after {request.signum}")

    assert run_child(work, signum) == (code, f"ready?\ncleaned up after {int(signum)}\n")


@BOTH
def test_deferred_work_is_finished(signum: int, code: int) -> None:
    def work(say: Callable[[str], None]) -> None:
        with stop_on_signals() as request:
            with request.deferred():
                say("training?")
                wait_for(lambda: request.signum)
                say(f"saved after {request.signum}")
            say("never reached")

    assert run_child(work, signum) == (code, f"training?\nsaved after {int(signum)}\n")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@BOTH
def test_second_signal_exits_at_once(first: int, signum: int, code: int) -> None:
    def work(say: Callable[[str], None]) -> None:
        with stop_on_signals() as request:
            try:
                with request.deferred():
                    say("training?")
                    wait_for(lambda: request.signum)
                    say("saving?")
                    wait_for(never)
            finally:
                say("cleaned up")

    assert run_child(work, first, signum) == (code, "training?\nsaving?\n")


def test_second_signal_during_clean_up() -> None:
    def work(say: Callable[[str], None]) -> None:
        with stop_on_signals():
            try:
                say("working?")
                wait_for(never)
            finally:
                say("cleaning up?")
                wait_for(never)

    assert run_child(work, signal.SIGTERM, signal.SIGINT) == (130, "working?\ncleaning up?\n")


def test_undisturbed_work() -> None:
    with stop_on_signals() as request:
        with request.deferred():
            done = request.signum
        assert done is None
    assert request.signum is None


def test_signal_between_deferred_blocks() -> None:
    def work(say: Callable[[str], None]) -> None:
        with stop_on_signals() as request:
            with request.deferred():
                say("first block")
            say("between?")
            wait_for(never)

    assert run_child(work, signal.SIGINT) == (130, "first block\nbetween?\n")


def test_nested_deferred_blocks() -> None:
    steps = []
    with pytest.raises(Interrupted) as caught, stop_on_signals() as request, request.deferred():
        with request.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append(request.signum)
        steps.append("outer goes on")
    assert steps == [15, "outer goes on"]
    assert caught.value.signum == 15


def test_exception_leaves_a_deferred_block_unchanged() -> None:
    with stop_on_signals() as request:
        with pytest.raises(KeyError), request.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise KeyError("column")
        with pytest.raises(Interrupted), request.deferred():  # and the request is not forgotten
            pass


def test_interrupted_is_not_swallowed() -> None:
    with pytest.raises(Interrupted), stop_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Exception:
            pytest.fail("a library would have gone on")


# ---- handlers


def own_handler(signum: int, frame: FrameType | None) -> None:
    raise AssertionError("not expected here")


@pytest.fixture
def handlers() -> Iterator[Callable[[], list[object]]]:
    """Handlers of the caller's own, so that the test sees exactly these come back."""
    former = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    signal.signal(signal.SIGTERM, own_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield lambda: [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    for signum, handler in former.items():
        signal.signal(signum, handler)


def test_handlers_come_back(handlers: Callable[[], list[object]]) -> None:
    with stop_on_signals():
        assert own_handler not in handlers()
    assert handlers() == [own_handler, signal.SIG_IGN]
    with pytest.raises(KeyError), stop_on_signals():
        raise KeyError
    assert handlers() == [own_handler, signal.SIG_IGN]
    with pytest.raises(Interrupted), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == [own_handler, signal.SIG_IGN]


def test_nested_requests_are_one(handlers: Callable[[], list[object]]) -> None:
    with pytest.raises(Interrupted), stop_on_signals() as outer, outer.deferred():
        during = handlers()
        with stop_on_signals() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGTERM)  # the outer block still defers it
            assert inner.signum == 15
        assert handlers() == during
    assert handlers() == [own_handler, signal.SIG_IGN]
    with stop_on_signals() as later:
        assert later is not outer
        assert later.signum is None


def test_other_threads_get_a_request_that_never_comes(handlers: Callable[[], list[object]]) -> None:
    found: list[object] = []

    def work() -> None:
        with stop_on_signals() as request, request.deferred():
            found.extend([request.signum, *handlers()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, own_handler, signal.SIG_IGN]


def test_request_made_by_hand() -> None:
    request = StopRequest()
    with pytest.raises(Interrupted, match="signal 2"), request.deferred():
        request.signum = 2


# ---- forked workers


def test_forked_worker() -> None:
    """Ctrl-C reaches a worker too, and the parent needs it for the checkpoint; SIGTERM ends it."""

    def work(say: Callable[[str], None]) -> None:
        say("int?")
        time.sleep(0.1)
        say("term?")
        wait_for(never)

    with stop_on_signals() as request, request.deferred():
        assert run_child(work, signal.SIGINT, signal.SIGTERM) == (-signal.SIGTERM, "int?\nterm?\n")
        assert request.signum is None


def test_forked_worker_with_a_request_of_its_own() -> None:
    def work(say: Callable[[str], None]) -> None:
        with stop_on_signals() as own:
            assert own is not request
            say("ready?")
            wait_for(never)

    with stop_on_signals() as request, request.deferred():
        assert run_child(work, signal.SIGTERM) == (143, "ready?\n")


def test_examples() -> None:
    results = doctest.testmod(signals)
    assert results.failed == 0
    assert results.attempted == 3
