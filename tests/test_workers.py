"""Jobs on several devices: each in its own process, stopped together, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scenario import Child

from transenc.errors import InputError, Interrupted, StateError
from transenc.signals import StopRequest, stop_on_signals
from transenc.workers import _see_alone, run_on_devices

# ---- jobs


def note(path: Path, *, device: str, stop: StopRequest) -> None:
    path.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "device": device,
                "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "threads": torch.get_num_threads(),
                "bar": {name: os.environ.get(name) for name in ("TQDM_POSITION", "TQDM_LEAVE")},
            }
        )
    )


def wait_for_stop(path: Path, *, device: str, stop: StopRequest) -> None:
    path.write_text(str(os.getpid()))
    while stop.signum is None:
        time.sleep(0.01)
    path.with_suffix(".stopped").touch()
    raise Interrupted(stop.signum)


def fail_when(path: Path, *, device: str, stop: StopRequest) -> None:
    wait_until(path.exists)
    raise InputError("the second job cannot be done")


def wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def run_noted(folder: Path, devices: list[str], jobs: int) -> list[dict[str, Any]]:
    run_on_devices({i: partial(note, folder / str(i)) for i in range(jobs)}, devices, stop=StopRequest())
    return [json.loads((folder / str(i)).read_text()) for i in range(jobs)]


# ---- where they run


def test_on_one_device_jobs_run_here(tmp_path: Path) -> None:
    found = run_noted(tmp_path, ["cpu"], 2)
    assert [job["pid"] for job in found] == [os.getpid()] * 2


def test_every_device_has_a_process(tmp_path: Path) -> None:
    first, second, third = run_noted(tmp_path, ["cpu", "cpu"], 3)
    assert first["pid"] == third["pid"] != second["pid"]
    assert os.getpid() not in (first["pid"], second["pid"])
    assert {job["device"] for job in (first, second, third)} == {"cpu"}
    assert [job["bar"] for job in (first, second)] == [{"TQDM_POSITION": line, "TQDM_LEAVE": ""} for line in "01"]
    assert first["threads"] == max(1, torch.get_num_threads() // 2)


def test_a_gpu_among_several_is_alone_in_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,7")
    (found,) = run_noted(tmp_path, ["cuda:1"], 1)
    assert found["pid"] != os.getpid()
    assert (found["device"], found["visible"]) == ("cuda", "5")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4, 5,7"


def test_gpus_without_the_variable_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _see_alone("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1"}
    assert _see_alone("cpu") == {}


# ---- how they end


def test_the_error_of_one_job_stops_the_others(tmp_path: Path) -> None:
    jobs = {0: partial(wait_for_stop, tmp_path / "a"), 1: partial(fail_when, tmp_path / "a")}
    with pytest.raises(InputError, match="the second job cannot be done"):
        run_on_devices(jobs, ["cpu", "cpu"], stop=StopRequest())
    assert (tmp_path / "a.stopped").exists()


def kill_myself(path: Path, *, device: str, stop: StopRequest) -> None:
    wait_until(path.exists)
    os.kill(os.getpid(), signal.SIGKILL)


class Odd(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def raise_odd(*, device: str, stop: StopRequest) -> None:
    raise Odd("this", "that")


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    jobs = {0: partial(wait_for_stop, tmp_path / "a"), 1: partial(kill_myself, tmp_path / "a")}
    with pytest.raises(StateError, match=r"on cpu ended abruptly: killed, or out of memory; the same command resumes"):
        run_on_devices(jobs, ["cpu", "cpu"], stop=StopRequest())
    assert (tmp_path / "a.stopped").exists()


def test_an_exception_that_cannot_be_sent_keeps_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(RuntimeError, match="Odd: this and that"):
        run_on_devices({0: raise_odd}, ["cuda:1"], stop=StopRequest())


@pytest.mark.slow
def test_ctrl_c_while_the_workers_begin(tmp_path: Path) -> None:
    def run() -> None:
        os.setpgid(0, 0)
        with stop_on_signals() as stop:
            threading.Timer(1.0, os.killpg, (os.getpid(), signal.SIGINT)).start()
            jobs = {i: partial(wait_for_stop, tmp_path / name) for i, name in enumerate("ab")}
            run_on_devices(jobs, ["cpu", "cpu"], stop=stop)

    assert Child(run).finish().status == 128 + signal.SIGINT


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from functools import partial\n"
        "from transenc.signals import StopRequest\n"
        "from transenc.workers import refuse_repeated_script, run_on_devices\n"
        "refuse_repeated_script()\n"
        "run_on_devices({0: partial(print, end=''), 1: partial(print, end='')}, ['cpu', 'cpu'], stop=StopRequest())\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "ran the script again: put if __name__ == '__main__': there" in ended.stderr


def start_waiting_jobs(folder: Path) -> Child:
    def run() -> None:
        with stop_on_signals() as stop:
            jobs = {i: partial(wait_for_stop, folder / name) for i, name in enumerate("ab")}
            run_on_devices(jobs, ["cpu", "cpu"], stop=stop)

    child = Child(run)
    assert child.wait_for(lambda: all((folder / name).exists() and (folder / name).read_text() for name in "ab"))
    return child


def test_a_signal_stops_all_and_waits_for_them(tmp_path: Path) -> None:
    child = start_waiting_jobs(tmp_path)
    child.kill(signal.SIGTERM)
    assert child.finish().status == 128 + signal.SIGTERM
    assert all((tmp_path / f"{name}.stopped").exists() for name in "ab")


def test_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    child = start_waiting_jobs(tmp_path)
    workers = [int((tmp_path / name).read_text()) for name in "ab"]
    child.kill(signal.SIGKILL)
    assert child.finish().status == 128 + signal.SIGKILL
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    assert not list(tmp_path.glob("*.stopped"))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # dead, and nobody has asked how it ended
