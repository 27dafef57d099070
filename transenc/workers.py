"""Jobs on several devices at once: a process a device, which sees that GPU alone and never outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import datasets
import torch
from transformers.utils.logging import disable_progress_bar, is_progress_bar_enabled

from transenc.errors import Interrupted
from transenc.signals import SIGNALS, StopRequest

Job = Callable[..., None]
_VISIBLE = "CUDA_VISIBLE_DEVICES"

_stop = StopRequest()  # in a worker: what its parent asked for


def run_on_devices(jobs: Mapping[int, Job], devices: Sequence[str], *, stop: StopRequest) -> None:
    """Call every job as `job(device=..., stop=...)`: here, or, with several devices, in a process a device.

    A device runs its jobs one after another. HF Trainer spreads a training over all GPUs that it sees and knows no
    other way to say which, so whoever has several GPUs gets a process even for one of them. Processes are *spawned*: a
    script that calls this needs `if __name__ == "__main__":`. On CPUs they share the threads evenly.

    Args:
        jobs: by number; they and what they hold can be pickled.
        devices: job i runs on `devices[i % len(devices)]`. The same device twice is two processes.
        stop: when a signal has come, the jobs are asked to stop as well and waited for.

    Raises:
        Interrupted: after all jobs have ended, when a signal came. Whatever the first failing job raised, after the
            others were asked to stop and have ended.

    Example:
        >>> run_on_devices({0: lambda device, stop: print(device)}, ["cpu"], stop=StopRequest())
        cpu
    """
    places = sorted({number % len(devices) for number in jobs})
    if len(places) == 1 and not (devices[places[0]].startswith("cuda") and torch.cuda.device_count() > 1):
        for job in jobs.values():
            job(device=devices[places[0]], stop=stop)
        return
    threads = max(1, torch.get_num_threads() // len(places))
    with stop.deferred(), ExitStack() as stack:
        workers = {place: stack.enter_context(_start_worker(devices[place], threads)) for place in places}
        futures = [workers[number % len(devices)].submit(job) for number, job in jobs.items()]
        waiting, told = set(futures), False
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            failed = any(not future.cancelled() and future.exception() for future in done)
            if not told and (failed or stop.signum is not None):
                told = True
                for future in waiting:
                    future.cancel()  # those that have not begun
                for worker in workers.values():
                    worker.ask_to_stop(stop.signum or signal.SIGTERM)
        for future in futures:
            if not future.cancelled():
                future.result()


@dataclass(frozen=True)
class _Worker:
    executor: ProcessPoolExecutor
    device: str
    writer: Connection

    def submit(self, job: Job) -> Future[None]:
        with _environment(_see_alone(self.device)):  # the first job starts the process, which keeps what it finds there
            return self.executor.submit(_run, job, "cuda" if self.device.startswith("cuda") else self.device)

    def ask_to_stop(self, signum: int) -> None:
        with suppress(BrokenPipeError):  # it is dead; its future says so
            self.writer.send(int(signum))


@contextmanager
def _start_worker(device: str, threads: int) -> Iterator[_Worker]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    reader, writer = context.Pipe(duplex=False)
    given = (reader, threads, is_progress_bar_enabled())
    with reader, writer, ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=given) as executor:
        yield _Worker(executor, device, writer)


def _see_alone(device: str) -> dict[str, str]:
    """The variables under which a new process sees this GPU alone, as `cuda`."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return {}
    listed = os.environ.get(_VISIBLE)
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    return {_VISIBLE: names[int(index or 0)].strip()}


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


# ---- in the worker


def _begin(reader: Connection, threads: int, bars: bool) -> None:
    if not bars:  # the command line has turned off the libraries' own
        disable_progress_bar()
        datasets.disable_progress_bars()
    for signum in SIGNALS:  # Ctrl-C reaches the whole group; the parent passes on what it wants
        signal.signal(signum, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_obey, args=(reader,), daemon=True).start()


def _obey(reader: Connection) -> None:
    while True:
        try:
            _stop.signum = reader.recv()
        except (EOFError, OSError):  # the parent is gone: nobody may write where its successor writes
            os._exit(1)


def _run(job: Job, device: str) -> None:
    with suppress(Interrupted):  # the parent asked for it, and knows
        job(device=device, stop=_stop)
