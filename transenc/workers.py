"""Jobs on several devices at once: a process a device, which sees that GPU alone and never outlives its parent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import datasets
import torch
from transformers.utils.logging import disable_progress_bar, get_verbosity, is_progress_bar_enabled, set_verbosity

from transenc.errors import Interrupted, StateError, TransencError
from transenc.signals import SIGNALS, StopRequest

Job = Callable[..., None]
_VISIBLE = "CUDA_VISIBLE_DEVICES"

_stop = StopRequest()  # in a worker: what its parent asked for


def run_on_devices(jobs: Mapping[int, Job], devices: Sequence[str], *, stop: StopRequest) -> None:
    """Call every job as `job(device=..., stop=...)`: here, or, with several devices, in a process a device.

    A device runs its jobs one after another. HF Trainer takes the first GPU that it sees and cannot be told another, so
    `cuda:1` gets a process even alone. Processes are *spawned*: a script that calls this needs
    `if __name__ == "__main__":`. On CPUs they share the threads evenly.

    Args:
        jobs: by number; they and what they hold can be pickled.
        devices: job i runs on `devices[i % len(devices)]`. The same device twice is two processes.
        stop: when a signal has come, the jobs are asked to stop as well and waited for.

    Raises:
        Interrupted: after all jobs have ended, when a signal came. Whatever the first failing job raised, after the
            others were asked to stop and have ended. StateError: a process was killed.

    Example:
        >>> run_on_devices({0: lambda device, stop: print(device)}, ["cpu"], stop=StopRequest())
        cpu
    """
    places = sorted({number % len(devices) for number in jobs})
    if len(places) < 2 and all(_sees_first(devices[place]) for place in places):
        for number, job in jobs.items():
            job(device=devices[number % len(devices)], stop=stop)
        return
    torch.cuda.empty_cache()  # what scoring here has left on the GPUs
    threads = max(1, torch.get_num_threads() // len(places))
    failure: BaseException | None = None
    with stop.deferred():
        with ExitStack() as stack:
            workers = {
                place: stack.enter_context(_start_worker(devices[place], threads, line))
                for line, place in enumerate(places)
            }
            waiting = {workers[n % len(devices)].submit(job): devices[n % len(devices)] for n, job in jobs.items()}
            while waiting and failure is None and stop.signum is None:
                for future in wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    failure = failure or _explain(future, waiting.pop(future))
            if waiting:
                for worker in workers.values():
                    worker.ask_to_stop(stop.signum or signal.SIGTERM)
        if sys.stderr.isatty():
            sys.stderr.write("\r")  # bars that were not on the first line leave the cursor where they ended
        if failure is not None and stop.signum is None:
            raise failure


def _explain(future: Future[None], device: str) -> BaseException | None:
    """What a job raised, if it did."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        return StateError(
            f"the process that trained on {device} ended abruptly: killed, or out of memory; the same command resumes"
        )
    return error


@dataclass(frozen=True)
class _Worker:
    executor: ProcessPoolExecutor
    device: str
    line: int
    writer: Connection

    def submit(self, job: Job) -> Future[None]:
        # the first job starts the process, which keeps what it finds here; until it ignores signals it must not get any
        variables = {**_see_alone(self.device), **_write_on(self.line)}
        with _environment(variables), _blocked_signals():
            return self.executor.submit(_run, job, "cuda" if self.device.startswith("cuda") else self.device)

    def ask_to_stop(self, signum: int) -> None:
        with suppress(BrokenPipeError):  # it is dead; its future says so
            self.writer.send(int(signum))


@contextmanager
def _start_worker(device: str, threads: int, line: int) -> Iterator[_Worker]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    reader, writer = context.Pipe(duplex=False)
    levels = {name: logging.getLogger(name).level for name in (None, "transenc")}
    given = (reader, threads, is_progress_bar_enabled(), get_verbosity(), levels)
    with reader, writer, ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=given) as executor:
        worker = _Worker(executor, device, line, writer)
        try:
            yield worker
        except BaseException:  # nobody waits for hours for what has failed elsewhere
            worker.ask_to_stop(signal.SIGTERM)
            raise


def refuse_repeated_script() -> None:
    """Say so where a spawned process has begun the script of its parent again.

    Raises:
        StateError: the script lacks its guard.

    Example:
        >>> refuse_repeated_script()
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise StateError(
            "this process was started to train, and ran the script again: put if __name__ == '__main__': there"
        )


def _sees_first(device: str) -> bool:
    return device.partition(":")[2] in ("", "0")


def _see_alone(device: str) -> dict[str, str]:
    """The variables under which a new process sees this GPU alone, as `cuda`."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return {}
    listed = os.environ.get(_VISIBLE)
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    return {_VISIBLE: names[int(index or 0)].strip()}


def _write_on(line: int) -> dict[str, str]:
    """The variables under which the progress bars of a new process have that line of the terminal, and give it back."""
    return {"TQDM_POSITION": str(line), "TQDM_LEAVE": ""}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _blocked_signals() -> Iterator[None]:
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


# ---- in the worker


def _begin(reader: Connection, threads: int, bars: bool, verbosity: int, levels: Mapping[str | None, int]) -> None:
    for signum in SIGNALS:  # Ctrl-C reaches the whole group; the parent passes on what it wants
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    logging.basicConfig(format="%(message)s")
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    set_verbosity(verbosity)
    if not bars:  # the command line has turned off the libraries' own
        disable_progress_bar()
        datasets.disable_progress_bars()
    torch.set_num_threads(threads)
    if reader.poll():
        _stop.signum = reader.recv()
    threading.Thread(target=_obey, args=(reader,), daemon=True).start()


def _obey(reader: Connection) -> None:
    while True:
        try:
            _stop.signum = reader.recv()
        except (EOFError, OSError):  # the parent is gone: nobody may write where its successor writes
            os._exit(1)


def _run(job: Job, device: str) -> None:
    if _stop.signum is not None:
        return
    try:
        job(device=device, stop=_stop)
    except Interrupted:
        pass  # the parent asked for it, and knows
    except (TransencError, OSError, MemoryError):
        raise
    except Exception as error:  # one of a library's may not arrive
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
