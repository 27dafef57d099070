"""A distillation that is killed, stopped, starved or damaged anywhere goes on to the same weights, bit for bit."""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scenario import STAGES, Child, Scenario, die_at, fingerprint, in_child, list_steps, snapshot

from transenc.run import verify_run


@pytest.fixture(scope="module")
def scenario(tiny_bi: Path) -> Scenario:
    return Scenario((tiny_bi,))


@pytest.fixture(scope="module")
def reference(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed."""
    output = tmp_path_factory.mktemp("reference") / "run"
    ended = in_child(lambda: scenario.run(output) and None)
    assert ended.status == 0, ended.error
    assert sorted(path.name for path in (output / "stages").iterdir()) == sorted(STAGES)
    return output


@pytest.fixture(scope="module")
def steps(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the steps of that run that touch the disk."""
    output = tmp_path_factory.mktemp("steps") / "run"
    return [step.replace(str(output), "RUN") for step in list_steps(lambda: scenario.run(output) and None)]


def check_resumed(scenario: Scenario, output: Path, reference: Path) -> list[str]:
    """Start again, compare all weights, labels and figures with the undisturbed run; what was logged."""
    ended = in_child(lambda: scenario.run(output) and None)
    assert ended.status == 0, ended.error
    assert fingerprint(output) == fingerprint(reference)
    counts, expected = verify_run(output), verify_run(reference)
    assert {**counts, "run": None} == {**expected, "run": None}
    assert list(output.rglob(".tmp-*")) == []
    assert list((output / "work").iterdir()) == []
    return ended.log


# ---- A1: killed


PARTS = range(4)  # so that several processes share the work


def count_stages(steps: list[str]) -> list[int]:
    """How many stages are published before each step."""
    published = [step.startswith("publish:rename RUN/stages/") for step in steps]
    return list(itertools.accumulate(published, initial=0))[:-1]


def choose_steps(steps: list[str]) -> list[int]:
    """One step of each kind, in the stage that has the fewest so far."""
    kinds: dict[str, list[int]] = {}
    for number, step in enumerate(steps):
        kind = re.sub(r"^write:(create|fill|fsync)", "write:temporary", step)
        kind = re.sub(r"c\d\d-\d\d-[a-z-]+|\.tmp-\w+|\d+", "*", kind)
        kind = re.sub(r"^(publish:fsync) (.*/(trainer/checkpoint-\*|\*))/.*", r"\1 \2", kind)
        kind = re.sub(r"(/(model|last)-\*)?(/\*_Pooling)?$", "", kind)
        kind = re.sub(r"^append:\w+", "append:*", kind)
        kinds.setdefault(kind, []).append(number)
    stages, taken, chosen = count_stages(steps), Counter[int](), []
    for numbers in kinds.values():
        chosen.append(min(numbers, key=lambda number: taken[stages[number]]))
        taken[stages[chosen[-1]]] += 1
    return chosen


def check_kills(numbers: list[int], scenario: Scenario, folder: Path, reference: Path) -> None:
    for number in numbers:
        output = folder / f"killed-{number}"
        ended = in_child(die_at(number, lambda output=output: scenario.run(output) and None))
        assert ended.status == 137, f"step {number} never came: {ended}"
        check_resumed(scenario, output, reference)
        shutil.rmtree(output)


def test_the_chosen_steps_are_of_every_kind_and_stage(steps: list[str]) -> None:
    chosen = choose_steps(steps)
    assert len(chosen) == len(set(chosen)) <= 40
    # of those that leave the same behind one may stand for all
    kinds = {frozenset(re.sub(r"(create|open|fill|fsync)$", "*", step.split()[0]) for step in some)
             for some in (steps, [steps[number] for number in chosen])}  # fmt: skip
    assert len(kinds) == 1
    stages = count_stages(steps)
    assert {stages[number] for number in chosen} == set(range(len(STAGES) + 1))


@pytest.mark.parametrize("part", PARTS)
def test_killed_at_a_step_of_each_kind(
    part: int, steps: list[str], scenario: Scenario, tmp_path: Path, reference: Path
) -> None:
    check_kills(choose_steps(steps)[part :: len(PARTS)], scenario, tmp_path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_killed_at_every_step(part: int, steps: list[str], scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    check_kills(list(range(len(steps)))[part::16], scenario, tmp_path, reference)


# places where a SIGKILL from outside comes: what has to exist by then
PLACES = {
    "labelling": "work/c01-10-bi-label",
    "between stages": "stages/c01-10-bi-label/MANIFEST.json",
    "training": "work/c01-20-cross-train/model-0/ckpt-00000002",
    "saving a checkpoint": "work/c01-40-bi-train/model-0/trainer/checkpoint-*",
    "publishing": "stages/.tmp-*/model-0",
}


def kill_at(place: str, scenario: Scenario, output: Path, *, delay: float = 0.0) -> None:
    child = Child(lambda: scenario.run(output) and None)
    assert child.wait_for(lambda: any(output.glob(PLACES[place])))
    time.sleep(delay)
    child.kill(signal.SIGKILL)
    assert child.finish().status in ({137, 0} if delay else {137})


@pytest.mark.parametrize("place", PLACES)
def test_sigkill(place: str, scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    kill_at(place, scenario, tmp_path / "run")
    check_resumed(scenario, tmp_path / "run", reference)


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize("place", PLACES)
def test_sigkill_again_and_again(place: str, turn: int, scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    kill_at(place, scenario, tmp_path / "run", delay=turn * 0.013)
    check_resumed(scenario, tmp_path / "run", reference)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"simplified": 1.0, "alignment": 1.0, "overlap": 1.0, "keep_label": "agreement", "down_weight": 0.3},
        {"whiten": True},
    ],
    ids=["plain", "views", "whitened"],
)
def test_several_models_resume(settings: dict[str, Any], tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    scenario = Scenario((tiny_bi, tiny_bi_b), dev=False).change(**settings)
    whole, output = tmp_path / "whole", tmp_path / "killed"
    assert in_child(lambda: scenario.run(whole) and None).status == 0
    for place in ("work/c01-20-cross-train/model-1/ckpt-00000002", "work/c01-40-bi-train/model-1/ckpt-00000002"):
        child = Child(lambda: scenario.run(output) and None)
        assert child.wait_for((output / place).exists)
        child.kill()
        assert child.finish().status == 137
    check_resumed(scenario, output, whole)


# ---- A2, A3: damaged checkpoints


@pytest.fixture(scope="module")
def stopped(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed with two checkpoints of the bi-encoder on disk."""
    output = tmp_path_factory.mktemp("stopped") / "run"
    newest = output / "work/c01-40-bi-train/model-0/ckpt-00000004"

    def run() -> None:
        on_step(lambda step: os._exit(137) if newest.exists() else None)
        scenario.run(output)

    assert in_child(run).status == 137
    assert sorted(path.name for path in newest.parent.glob("ckpt-*")) == ["ckpt-00000002", "ckpt-00000004"]
    return output


def on_step(hook: Callable[[str], object]) -> None:
    """Set the seam, in a child."""
    from transenc import durable

    durable.on_step = lambda step: hook(step) and None


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_stepped_back_from(
    stopped: Path, scenario: Scenario, tmp_path: Path, reference: Path
) -> None:
    output = Path(shutil.copytree(stopped, tmp_path / "run"))
    flip_a_bit(output / "work/c01-40-bi-train/model-0/ckpt-00000004/optimizer.pt")
    log = check_resumed(scenario, output, reference)
    warnings = [line for line in log if "checkpoint" in line]
    assert len(warnings) == 1
    assert "stepping back to an earlier checkpoint" in warnings[0]
    assert "ckpt-00000004/optimizer.pt: expected sha256" in warnings[0]


def test_without_an_intact_checkpoint_the_stage_starts_again(
    stopped: Path, scenario: Scenario, tmp_path: Path, reference: Path
) -> None:
    output = Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in output.glob("work/*/model-0/*-0000000*"):
        flip_a_bit(path / "model.safetensors")
    log = check_resumed(scenario, output, reference)
    assert any(line.endswith("is intact: this training starts again from its inputs") for line in log)
    assert "stage c01-30-cross-label" not in log  # only this stage is made again


# ---- A4: signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_each_stage(signum: signal.Signals, scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    output = tmp_path / "run"
    for stage in STAGES:
        work = output / "work" / stage
        # in a training: while the best weights of step 2 are kept
        place = f"{work}/model-0" if stage.endswith("train") else f"{output}/stages/.tmp-"

        def run(work: Path = work, place: str = place) -> None:
            sent: list[str] = []

            def send(step: str) -> None:
                if work.is_dir() and place in step and not sent:
                    sent.append(step)
                    signal.raise_signal(signum)

            on_step(send)
            scenario.run(output)

        ended = in_child(run)
        assert ended.status == 128 + signum, ended
        assert ended.error == f"stopped by signal {signum.value}"
        assert not (output / "stages" / stage).exists()
        # the training ends with the step after the signal
        saved = sorted(path.name for path in work.glob("model-0/ckpt-*"))
        assert saved == (["ckpt-00000002", "ckpt-00000003"] if stage.endswith("train") else [])
    check_resumed(scenario, output, reference)


# ---- A8: two processes


def test_a_second_process_is_refused_and_a_dead_one_is_no_obstacle(
    scenario: Scenario, tmp_path: Path, reference: Path
) -> None:
    output, reached = tmp_path / "run", tmp_path / "reached"

    def block() -> None:
        def wait(step: str) -> None:
            if "c01-20-cross-train" in step:
                reached.touch()
                time.sleep(60)

        on_step(wait)
        scenario.run(output)

    first = Child(block)
    assert first.wait_for(reached.exists)
    before = snapshot(output)
    second = in_child(lambda: scenario.run(output) and None)
    assert second.status == 4
    assert f"{output / 'lock'} is held by process {first.pid} on host {os.uname().nodename}" in second.error
    assert snapshot(output) == before
    first.kill(signal.SIGKILL)
    assert first.finish().status == 137
    check_resumed(scenario, output, reference)


# ---- A9: no space


@pytest.mark.parametrize(
    ("kept", "share", "named"),
    [
        ("ckpt-00000002", 1.5, "work/c01-40-bi-train/model-0"),  # the state of the optimizer is twice the weights
        ("ckpt-00000004", 0.5, "stages/c01-40-bi-train"),
    ],
    ids=["saving a checkpoint", "publishing the stage"],
)
def test_a_full_disk(kept: str, share: float, named: str, scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    output = tmp_path / "run"
    work = output / "work/c01-40-bi-train/model-0"

    def run() -> None:
        def fill_disk(step: str) -> None:
            if (work / kept).exists():
                limit = int(share * (work / kept / "model.safetensors").stat().st_size)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        on_step(fill_disk)
        scenario.run(output)

    ended = in_child(run)
    assert ended.status == 3, ended
    assert f"cannot write {output / named}: no space left" in ended.error
    assert "\n" not in ended.error
    assert max(path.name for path in work.glob("ckpt-*")) == kept
    assert not (output / "stages/c01-40-bi-train").exists()
    check_resumed(scenario, output, reference)


# ---- A10, B10: places, and what must not matter


def test_a_symlinked_folder_with_spaces_and_umlauts(scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    place = tmp_path / "mit Leerraum" / "läuft 走"
    (tmp_path / "mit Leerraum").mkdir()
    (tmp_path / "real").mkdir()
    place.symlink_to(tmp_path / "real")
    assert in_child(die_at(150, lambda: scenario.run(place) and None)).status == 137
    check_resumed(scenario, place, reference)
    assert (tmp_path / "real/best/bi-encoder/modules.json").is_file()


def test_the_save_interval_does_not_matter(scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    ended = in_child(lambda: scenario.change(save_steps=3).run(tmp_path / "run") and None)
    assert ended.status == 0, ended.error
    assert fingerprint(tmp_path / "run") == fingerprint(reference)


def test_the_hash_seed_does_not_matter(scenario: Scenario, tmp_path: Path, reference: Path) -> None:
    code = (
        "import sys, pathlib, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1)\n"
        "from scenario import Scenario\n"
        "Scenario((pathlib.Path(sys.argv[2]),)).run(pathlib.Path(sys.argv[3]))"
    )
    arguments = [str(Path(__file__).parent), str(scenario.models[0]), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "run") == fingerprint(reference)
