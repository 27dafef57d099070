"""The run directory with small stages: no models, so that every step of every case can be tried."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file
from scenario import die_at, in_child, list_steps, snapshot

from transenc import durable
from transenc.errors import BusyError, InputError, StateError
from transenc.run import Run, check_identity, open_run, verify_run

IDENTITY: dict[str, Any] = {
    "config": {"seed": 1, "bi": {"learning_rate": 2e-5, "epochs": 1.0}},
    "backbones": {"model-0": {"bi": "aa", "cross": None}},
    "pairs": {"rows": 2, "sha256": "11", "symmetric": True},
    "dev": None,
    "machine": {"device": "cpu", "threads": 1, "precision": "float32"},
    "inputs": {"model": ["my/encoder"]},
}
NAMES = ("c00-00-start", "c00-50-evaluate", "c01-10-bi-label", "c01-20-cross-train")


def change(path: str, value: Any) -> dict[str, Any]:
    """The identity with another value at a dotted path."""
    identity = json.loads(json.dumps(IDENTITY))
    *parents, last = path.split(".")
    place = identity
    for parent in parents:
        place = place[parent]
    place[last] = value
    return identity


def build_stage(out: Path, work: Path, *, name: str, before: list[str]) -> None:
    """Write what was there before and what this stage adds, so that a file tells its whole history."""
    (out / "model-0").mkdir()
    (out / "model-0/text").write_text(" ".join([*before, name]))


def walk(run: Run, *, skip: str = "", built: list[str] | None = None) -> None:
    """Four stages, each made from the one before, with the name of `skip` left out as new settings might do."""
    done: list[str] = []
    for name in NAMES:
        if name == skip:
            continue

        def build(out: Path, work: Path, name: str = name) -> None:
            if built is not None:
                built.append(name)
            build_stage(out, work, name=name, before=done[-1:])

        run.stage(name, build, inputs=done[-1:])
        done.append(name)


def make_run(folder: Path, identity: dict[str, Any] = IDENTITY, **options: Any) -> list[str]:
    """Go through the whole run; the names of the stages that were built."""
    built: list[str] = []
    with open_run(folder, identity, **options) as run:
        walk(run, built=built)
    return built


def digests(folder: Path) -> dict[str, str]:
    return {path.name: durable.directory_digest(path) for path in sorted((folder / "stages").iterdir())}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    assert make_run(tmp_path / "finished") == list(NAMES)
    return tmp_path / "finished"


# ---- stages


def test_a_stage_is_built_once(tmp_path: Path) -> None:
    assert make_run(tmp_path / "run") == list(NAMES)
    before = snapshot(tmp_path / "run/stages")
    assert make_run(tmp_path / "run") == []
    assert snapshot(tmp_path / "run/stages") == before
    last = tmp_path / "run/stages/c01-20-cross-train"
    assert (last / "model-0/text").read_text() == "c01-10-bi-label c01-20-cross-train"
    facts = {"stage": last.name, "inputs": {NAMES[2]: digests(tmp_path / "run")[NAMES[2]]}}
    assert durable.verify_directory(last) == facts
    records = durable.read_records(tmp_path / "run/journal.jsonl")
    assert [record.get("name", record["event"]) for record in records] == ["start", *NAMES, "start"]


def test_scratch_survives_a_failure_and_goes_with_the_stage(tmp_path: Path) -> None:
    def fail(out: Path, work: Path) -> None:
        (work / "ckpt").write_text("half way")
        raise RuntimeError("stop")

    def finish(out: Path, work: Path) -> None:
        (out / "result").write_text((work / "ckpt").read_text())

    with open_run(tmp_path / "run", IDENTITY) as run:
        with pytest.raises(RuntimeError):
            run.stage("c00-00-start", fail)
        assert list((tmp_path / "run/stages").iterdir()) == []
        path = run.stage("c00-00-start", finish)
        assert (path / "result").read_text() == "half way"
        assert list((tmp_path / "run/work").iterdir()) == []


def test_leftovers_of_kills_are_removed(finished: Path) -> None:
    (finished / "work/c00-00-start").mkdir()  # killed between publishing and removing the scratch folder
    (finished / "stages/.tmp-12").mkdir()
    (finished / ".tmp-34").write_text("run.json")
    make_run(finished)
    assert list((finished / "work").iterdir()) == []
    assert list(finished.rglob(".tmp-*")) == []


def test_an_edited_stage_is_refused(finished: Path) -> None:
    path = finished / "stages/c01-10-bi-label/model-0/text"
    path.write_text(path.read_text() + "!")
    with pytest.raises(StateError, match=r"c01-10-bi-label/model-0/text: expected 31 bytes, found 32"):
        make_run(finished)


def test_an_input_edited_while_the_run_works_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", IDENTITY) as run:
        walk(run)
        (tmp_path / "run/stages" / NAMES[-1] / "model-0/text").write_text("edited by hand")
        with pytest.raises(StateError, match=r"c01-20-cross-train/model-0/text: expected 34 bytes, found 14"):
            run.stage("c01-30-cross-label", lambda out, work: None, inputs=[NAMES[-1]])
        assert not run.stage_path("c01-30-cross-label").exists()


def test_a_stage_made_from_other_inputs_is_refused(finished: Path) -> None:
    other = finished.with_name("other")
    with open_run(other, change("config.seed", 2)) as run:
        walk(run, skip="c00-50-evaluate")
    place = finished / "stages/c01-10-bi-label"
    shutil.rmtree(place)
    shutil.copytree(other / "stages/c01-10-bi-label", place)
    with pytest.raises(StateError, match="c01-10-bi-label: made from other inputs than the stages now in"):
        make_run(finished)


# ---- A5: what a resume must not change


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("config.seed", 2, "config.seed: 1 -> 2"),
        ("config.bi.learning_rate", 5e-5, "config.bi.learning_rate: 2e-05 -> 5e-05"),
        ("backbones.model-0.bi", "bb", "backbones.model-0.bi: 'aa' -> 'bb'"),
        ("backbones.model-1", {"bi": "cc"}, "backbones.model-1.bi: None -> 'cc'"),
        ("pairs.sha256", "22", "pairs.sha256: '11' -> '22'"),
        ("dev", {"rows": 3}, "dev.rows: None -> 3"),
    ],
)
def test_a_changed_identity_is_refused(path: str, value: Any, shown: str, finished: Path) -> None:
    before = snapshot(finished)
    with pytest.raises(StateError) as error:
        check_identity(finished, change(path, value))
    assert f"started with other settings or data ({shown}); repeat the original command" in str(error.value)
    assert "--fork" in str(error.value)
    assert snapshot(finished) == before
    with pytest.raises(StateError, match="other settings"):
        make_run(finished, change(path, value))


def test_every_change_is_shown(finished: Path) -> None:
    identity = {**change("config.seed", 2), "pairs": {"rows": 3, "sha256": "11", "symmetric": False}}
    with pytest.raises(StateError) as error:
        check_identity(finished, identity)
    assert "(config.seed: 1 -> 2; pairs.rows: 2 -> 3; pairs.symmetric: True -> False)" in str(error.value)


def test_names_may_change_and_another_machine_is_told(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_identity(finished, change("inputs.model", ["moved/encoder"]))
    assert caplog.messages == []
    check_identity(finished, change("machine.threads", 2))
    assert caplog.messages == [
        "this run was started on another machine set-up (machine.threads: 1 -> 2); results need not be equal bit for "
        "bit"
    ]


@pytest.mark.parametrize(("release", "refused"), [("1.13.1", True), ("2.999.0", False)])
def test_a_major_release_is_refused_a_minor_one_told(
    release: str, refused: bool, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((finished / "run.json").read_text())
    now = content["versions"]["torch"]
    content["versions"]["torch"] = release
    (finished / "run.json").write_text(json.dumps(content))
    if refused:
        with pytest.raises(StateError) as error:
            check_identity(finished, IDENTITY)
        assert f"(versions.torch: '{release}' -> '{now}')" in str(error.value)
    else:
        check_identity(finished, IDENTITY)
        assert f"(versions.torch: '{release}' -> '{now}')" in caplog.messages[0]


# ---- A6, A10, A11: what is in the folder


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["notes.txt"], "notes.txt"),
        (["report.md", "best/model"], "best, report.md"),
        (["work/thesis.tex"], "thesis.tex"),
        (["stages/one/act.txt"], "one"),
        (["journal.jsonl"], "journal.jsonl"),
    ],
)
def test_a_folder_of_something_else_is_refused_untouched(files: list[str], shown: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=rf"other: not empty and not a run \(found {shown}\); name a new folder"):
        make_run(tmp_path / "other")
    assert snapshot(tmp_path) == before


def test_a_file_and_a_forbidden_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; the output must be a folder"):
        make_run(tmp_path / "file")
    with pytest.raises(InputError, match=r"file/run: cannot write a run here: Not a directory"):
        make_run(tmp_path / "file/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(InputError, match="run: cannot write a run here: Permission denied"):
        make_run(tmp_path / "run")


def test_a_missing_parent_is_made(tmp_path: Path) -> None:
    assert make_run(tmp_path / "a/b c/ü") == list(NAMES)


@pytest.mark.parametrize("content", [b"", b'{"config": {"se', b"\x00\xff garbage", b"[1, 2]", b'{"name": "theirs"}'])
def test_a_damaged_run_file_is_an_error(content: bytes, finished: Path) -> None:
    (finished / "run.json").write_bytes(content)
    before = snapshot(finished)
    with pytest.raises(StateError, match=r"finished/run\.json: (not valid JSON|not the description of a run)"):
        make_run(finished)
    with pytest.raises(StateError, match=r"run\.json"):
        verify_run(finished)
    assert snapshot(finished) == before


def test_a_deleted_run_file_is_an_error(finished: Path) -> None:
    (finished / "run.json").unlink()
    before = snapshot(finished)
    with pytest.raises(StateError, match=r"run\.json: missing from a run that has begun; restore it, or start anew"):
        make_run(finished)
    assert snapshot(finished) == before


@pytest.mark.parametrize("content", [None, b"", b'{"event": "sta', b"\x00\xff\n\n[1]\n\xfe"])
def test_a_damaged_journal_does_not_matter(content: bytes | None, finished: Path) -> None:
    journal = finished / "journal.jsonl"
    journal.unlink() if content is None else journal.write_bytes(content)
    shutil.rmtree(finished / "stages" / NAMES[-1])
    assert make_run(finished) == [NAMES[-1]]
    assert json.loads(journal.read_bytes().splitlines()[-1])["name"] == NAMES[-1]


def test_the_lock_names_its_holder(finished: Path) -> None:
    with open_run(finished, IDENTITY), pytest.raises(BusyError, match=rf"held by process {os.getpid()} on host"):
        make_run(finished)
    assert make_run(finished) == []


# ---- forks


def test_a_fork_takes_over_the_stages(finished: Path, tmp_path: Path) -> None:
    fork = change("config.seed", 7)
    assert make_run(tmp_path / "fork", fork, fork=finished) == []
    assert digests(tmp_path / "fork") == digests(finished)
    recorded = json.loads((tmp_path / "fork/run.json").read_text())
    assert recorded["forked_from"] == {"run": str(finished), "stages": digests(finished)}
    assert recorded["config"]["seed"] == 7
    shutil.rmtree(finished)  # not needed any more, and the same command goes on working
    assert make_run(tmp_path / "fork", fork, fork=finished) == []
    assert make_run(tmp_path / "fork", fork) == []
    assert verify_run(tmp_path / "fork")["stages"] == 4


def test_a_fork_builds_what_does_not_fit(finished: Path, tmp_path: Path) -> None:
    built: list[str] = []
    with open_run(tmp_path / "fork", change("config.seed", 7), fork=finished) as run:
        walk(run, skip="c00-50-evaluate", built=built)  # now made from another stage than there
    assert built == ["c01-10-bi-label", "c01-20-cross-train"]
    assert digests(tmp_path / "fork")["c00-00-start"] == digests(finished)["c00-00-start"]


def test_a_fork_with_another_dev_set_scores_anew(finished: Path, tmp_path: Path) -> None:
    assert make_run(tmp_path / "fork", change("dev", {"rows": 3, "sha256": "33"}), fork=finished) == ["c00-50-evaluate"]


def test_a_fork_killed_at_any_step_goes_on(finished: Path, tmp_path: Path) -> None:
    identity = change("config.seed", 7)

    def fork(folder: Path) -> None:
        make_run(folder, identity, fork=finished)

    steps = list_steps(lambda: fork(tmp_path / "whole"))
    for number in range(len(steps)):
        folder = tmp_path / f"fork-{number}"
        assert in_child(die_at(number, lambda folder=folder: fork(folder))).status == 137
        fork(folder)
        assert digests(folder) == digests(finished)
    assert len(steps) > 50


def test_a_run_killed_at_any_step_goes_on(finished: Path, tmp_path: Path) -> None:
    steps = list_steps(lambda: make_run(tmp_path / "whole") and None)
    for number in range(len(steps)):
        folder = tmp_path / f"run-{number}"
        assert in_child(die_at(number, lambda folder=folder: make_run(folder))).status == 137
        done = [path.name for path in folder.glob("stages/c*")]
        assert make_run(folder) == [name for name in NAMES if name not in done]
        assert digests(folder) == digests(finished)
    assert len(steps) > 50


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pairs.rows", 3, r"finished: a fork keeps the pairs, found pairs\.rows: 2 -> 3; start a run without --fork"),
        ("backbones.model-0.bi", "bb", r"a fork keeps the backbones, found backbones\.model-0\.bi: 'aa' -> 'bb'"),
    ],
)
def test_a_fork_keeps_pairs_and_models(path: str, value: Any, message: str, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        make_run(tmp_path / "fork", change(path, value), fork=finished)
    assert make_run(tmp_path / "fork") == list(NAMES)  # the folder can still be used


def test_a_fork_needs_a_whole_source_and_a_new_folder(finished: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "other", change("config.seed", 3))
    with pytest.raises(InputError, match=r"other: is a run already, not forked from .*finished; a fork needs a new"):
        make_run(tmp_path / "other", change("config.seed", 3), fork=finished)
    with pytest.raises(InputError, match="nothing: not a run"):
        make_run(tmp_path / "fork", fork=tmp_path / "nothing")
    (finished / "stages/c00-00-start/model-0/text").write_text("c00-00-starT")
    with pytest.raises(StateError, match="c00-00-start/model-0/text: expected sha256"):
        make_run(tmp_path / "fork", fork=finished)


def test_a_fork_whose_source_changed_is_refused(finished: Path, tmp_path: Path) -> None:
    with open_run(tmp_path / "fork", change("config.seed", 7), fork=finished):
        pass
    source = finished / "stages/c00-00-start"
    shutil.rmtree(source)
    with pytest.raises(StateError, match="finished/stages/c00-00-start: not a directory"):
        make_run(tmp_path / "fork", change("config.seed", 7))
    with durable.publish_directory(source, facts={"stage": source.name, "inputs": {}}) as temporary:
        (temporary / "text").write_text("another one")
    with pytest.raises(StateError, match=r"c00-00-start: not the stage that .*fork was forked from"):
        make_run(tmp_path / "fork", change("config.seed", 7))


# ---- verify


def write_labels(path: Path, *, score: list[float], teacher: list[float] | None = None) -> None:
    columns = {"sentence1": ["a"] * len(score), "bi-0": teacher or score, "score": score}
    kinds = pa.schema([("sentence1", pa.string()), ("bi-0", pa.float32()), ("score", pa.float32())])
    pyarrow.parquet.write_table(pa.table(columns, schema=kinds), path)


def add_stage(folder: Path, fill: Callable[[Path], object]) -> None:
    with open_run(folder, IDENTITY) as run:
        run.stage("c01-90-extra", lambda out, work: fill(out) and None)


def test_verify_counts(finished: Path) -> None:
    def fill(out: Path) -> None:
        (out / "model-0").mkdir()
        save_file({"a": np.ones((2, 3), np.float32), "b": np.arange(3)}, out / "model-0/model.safetensors")
        write_labels(out / "labels.parquet", score=[0.0, 1.0])
        durable.write_json(out / "metrics.json", {"score": None})

    add_stage(finished, fill)
    assert verify_run(finished) == {"run": str(finished), "stages": 5, "files": 12, "tensors": 2, "labels": 2}


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (
            lambda out: save_file({"w": np.array([1.0, np.nan], np.float32)}, out / "model.safetensors"),
            r"c01-90-extra/model\.safetensors: weight w holds NaN or inf",
        ),
        (
            lambda out: save_file({"w": np.array([np.inf], np.float16)}, out / "model.safetensors"),
            r"model\.safetensors: weight w holds NaN or inf",
        ),
        (
            lambda out: write_labels(out / "labels.parquet", score=[0.5]),
            r"labels\.parquet: expected a label for each of 2 pairs, found 1",
        ),
        (
            lambda out: write_labels(out / "labels.parquet", score=[0.5, float("nan")]),
            r"labels\.parquet: column bi-0 holds NaN or inf",
        ),
        (
            lambda out: write_labels(out / "labels.parquet", score=[0.5, 1.5]),
            r"labels\.parquet: a score lies outside \[0, 1\]",
        ),
        (lambda out: (out / "metrics.json").write_text('{"score": NaN}'), r"metrics\.json: not valid JSON"),
    ],
)
def test_verify_refuses_numbers(fill: Callable[[Path], object], message: str, finished: Path) -> None:
    add_stage(finished, fill)
    with pytest.raises(StateError, match=message):
        verify_run(finished)


@pytest.mark.parametrize("name", ["MANIFEST.json", "model-0/text"])
@pytest.mark.parametrize("stage", NAMES)
def test_verify_refuses_damage_and_names_it(stage: str, name: str, finished: Path) -> None:
    path = finished / "stages" / stage / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match=f"{stage}/{name}"):
        verify_run(finished)


def test_verify_refuses_a_stage_from_another_run(finished: Path, tmp_path: Path) -> None:
    with open_run(tmp_path / "other", IDENTITY) as run:
        walk(run, skip="c00-50-evaluate")
    shutil.rmtree(finished / "stages/c00-00-start")
    with durable.publish_directory(finished / "stages/c00-00-start", facts={"stage": NAMES[0], "inputs": {}}):
        pass
    with pytest.raises(StateError, match="c00-50-evaluate: made from a stage c00-00-start that is no longer the one"):
        verify_run(finished)


def test_verify_refuses_what_is_no_run_and_a_broken_link(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        verify_run(tmp_path)
    (finished / "best").mkdir()
    (finished / "best/bi-encoder").symlink_to("../stages/no")
    durable.write_json(finished / "best.json", {})
    with pytest.raises(StateError, match="best/bi-encoder: missing, or points nowhere"):
        verify_run(finished)


@pytest.mark.parametrize(
    ("name", "message"), [("model.safetensors", "not a file of weights"), ("labels.parquet", "not a table of labels")]
)
def test_verify_refuses_a_file_that_is_something_else(name: str, message: str, finished: Path) -> None:
    add_stage(finished, lambda out: (out / name).write_bytes(struct.pack("<Q", 9) + b"not json!"))
    with pytest.raises(StateError, match=f"{name}: {message}"):
        verify_run(finished)


def test_the_log_names_stages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="transenc"):
        make_run(tmp_path / "run")
    assert caplog.messages == [f"stage {name}" for name in NAMES]
