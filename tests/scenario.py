"""A whole distillation of tiny models in about a second, and child processes to run, stop and kill it in.

The children are forked from a process that has already imported everything, so they start at once. They run on one
thread, and end with `os._exit`, so that nothing of pytest runs twice.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import count_common, make_pairs
from tqdm.std import tqdm

from transenc import durable
from transenc.config import Backbone, BiTrainingSettings, CrossTrainingSettings, DistillConfig
from transenc.distillation import DistillResult, distill
from transenc.errors import Interrupted, TransencError

gc.freeze()  # the trainer collects garbage at every start, and need not look at all that was imported

CONFIG = DistillConfig(
    cycles=1,
    seed=5,
    keep_label=0.5,
    simplified=0.0,
    save_steps=2,
    eval_steps=2,
    precision="float32",
    bi=BiTrainingSettings(epochs=2, batch_size=8, learning_rate=5e-4, max_length=24),
    cross=CrossTrainingSettings(epochs=1, batch_size=8, learning_rate=5e-4, max_length=40, group_by_length=True),
)
STAGES = (
    "c00-00-start",
    "c00-50-evaluate",
    "c01-10-bi-label",
    "c01-20-cross-train",
    "c01-30-cross-label",
    "c01-40-bi-train",
    "c01-50-evaluate",
)


def make_dataset(count: int, *, seed: int = 0, gold: bool = False) -> Dataset:
    """Different tiny pairs, with `gold` scored by the words that both sentences have."""
    pairs = make_pairs(count, seed=seed)
    columns: dict[str, list[Any]] = {"sentence1": [a for a, _ in pairs], "sentence2": [b for _, b in pairs]}
    if gold:
        columns["score"] = [count_common(pair) for pair in pairs]
    return Dataset.from_dict(columns)


@dataclass(frozen=True)
class Scenario:
    """16 pairs, a dev set of 10, one cycle of two trainings of 4 steps; checkpoints and dev scores every 2 steps."""

    models: tuple[Path, ...]
    config: DistillConfig = CONFIG
    pairs: int = 16
    dev: bool = True

    def run(self, output: Path, *, fork: Path | None = None, symmetric: bool = True) -> DistillResult:
        return distill(
            [Backbone(str(model)) for model in self.models],
            make_dataset(self.pairs),
            output_dir=output,
            config=self.config,
            dev=make_dataset(10, seed=1, gold=True) if self.dev else None,
            device="cpu",
            fork=fork,
            symmetric=symmetric,
        )

    def change(self, **changes: Any) -> Scenario:
        """The same with other settings of the run."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))


def fingerprint(run: Path) -> dict[str, str]:
    """The sha256 of every weight, label and figure that the stages hold."""
    files = [path for path in run.glob("stages/c*/**/*") if path.suffix in {".safetensors", ".parquet"}]
    files += run.glob("stages/*/metrics.json")
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and mtime of everything below a folder, the folders too."""
    stats = {path.relative_to(folder).as_posix(): path.lstat() for path in [folder, *folder.rglob("*")]}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


# ---- child processes


@dataclass(frozen=True)
class Ended:
    """How a child ended: `status` as a shell shows it (128 + signal), what the task gave or raised, what was logged."""

    status: int
    value: Any
    error: str
    log: list[str]


class Child:
    """A forked child that runs `task`; its exit status is that of the command line."""

    def __init__(self, task: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _run_and_exit(task, writer)
        os.close(writer)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 60) -> bool:
        """Wait until the condition holds; False if the child ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return condition()
            assert time.monotonic() < end, "the condition never held"
            time.sleep(0.001)
        return True

    def finish(self) -> Ended:
        with os.fdopen(self._reader, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        report = json.loads(data) if data else {"value": None, "error": "", "log": []}
        return Ended(code if code >= 0 else 128 - code, **report)


def in_child(task: Callable[[], Any]) -> Ended:
    """Run `task` in a child and wait for it."""
    return Child(task).finish()


def die_at(count: int, task: Callable[[], Any]) -> Callable[[], Any]:
    """The task, in a process that ends without a word at the `count`-th step (from 0) that touches the disk."""

    def run() -> Any:
        steps = iter(range(count + 1))

        def step(name: str) -> None:
            if next(steps) == count:
                os._exit(137)

        durable.on_step = step
        return task()

    return run


def list_steps(task: Callable[[], Any]) -> list[str]:
    """The names of all steps that touch the disk while `task` runs in a child."""

    def run() -> list[str]:
        steps: list[str] = []
        durable.on_step = steps.append
        task()
        return steps

    ended = in_child(run)
    assert ended.status == 0, ended.error
    return ended.value


def _run_and_exit(task: Callable[[], Any], writer: int) -> None:
    report: dict[str, Any] = {"value": None, "error": "", "log": []}
    status = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(300)  # a child that hangs ends by this, and its test fails
        gc.freeze()  # collecting would copy the parent's memory page by page
        torch.set_num_threads(1)
        # tqdm's own lock is shared between processes: a child that is killed with it would stop all others
        bars: list[type] = [tqdm]
        for bar in bars:
            bar.set_lock(threading.RLock())
            bars += bar.__subclasses__()
        logger = logging.getLogger("transenc")
        logger.setLevel(logging.INFO)
        logger.addHandler(_Collect(report["log"]))
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)
        report["value"] = task()
        json.dumps(report["value"])
        status = 0
    except (TransencError, Interrupted) as error:
        status, report["error"] = error.exit_code, str(error)
    except BaseException:
        report["error"] = traceback.format_exc()
        report["value"] = None
    finally:
        data = json.dumps(report).encode()
        while data:
            data = data[os.write(writer, data) :]
        os._exit(status)


class _Collect(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
