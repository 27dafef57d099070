"""Old or new, never neither: kills, full disks and damage against what `durable` publishes."""

from __future__ import annotations

import doctest
import errno
import hashlib
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import paused_child, run_child

from transenc import durable
from transenc.errors import InputError, Interrupted, StateError
from transenc.locks import lock

CONTENT = {
    "model.bin": bytes(range(1, 251)) * 40,  # three pages, no zero byte
    "twin.bin": bytes(range(250, 0, -1)) * 40,
    "sub/deep/config.json": b'{"dim": 8}',
    "empty.txt": b"",
    "große Datei.txt": "größer".encode(),
}
FACTS = {"step": 8, "dev": 0.71}


def fill(folder: Path) -> None:
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(autouse=True)
def quick_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: what a killed process has written is safe in the kernel, a power cut is not tested."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    with durable.publish_directory(tmp_path / "stage", facts=FACTS) as temporary:
        fill(temporary)
    return tmp_path / "stage"


# ---- the seam: die, or fail, before each step of each operation


class Scenario(NamedTuple):
    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    observe: Callable[[Path], str]  # "old" or "new"; anything else, or an exception, is a failure
    steps: int  # counted by hand


def publish(folder: Path) -> None:
    with durable.publish_directory(folder / "stage", facts=FACTS) as temporary:
        fill(temporary)


def observe_published(folder: Path) -> str:
    if not os.path.lexists(folder / "stage"):
        return "old"
    assert durable.verify_directory(folder / "stage") == FACTS
    assert read_tree(folder / "stage").keys() == {*CONTENT, "MANIFEST.json"}
    return "new"


def prepare_source(folder: Path) -> None:
    (folder / "work").mkdir()
    fill(folder / "work")


def observe_sealed(folder: Path) -> str:
    state = observe_published(folder)
    if state == "old":
        tree = read_tree(folder / "work")
        assert {name: tree[name] for name in CONTENT} == CONTENT
    else:
        assert not (folder / "work").exists()
    return state


def prepare_link(folder: Path) -> None:
    (folder / "c01").mkdir()
    (folder / "c02").mkdir()
    (folder / "best").symlink_to("c01")


SCENARIOS = {
    "write a new file": Scenario(
        lambda folder: None,
        lambda folder: durable.write_file(folder / "a.txt", "new"),
        lambda folder: (folder / "a.txt").read_text() if (folder / "a.txt").exists() else "old",
        5,  # create, fill, fsync, rename, fsync folder
    ),
    "replace a file": Scenario(
        lambda folder: (folder / "a.txt").write_text("old"),
        lambda folder: durable.write_file(folder / "a.txt", "new"),
        lambda folder: (folder / "a.txt").read_text(),
        5,
    ),
    "publish": Scenario(
        lambda folder: None, publish, observe_published, 1 + 5 + 2 + 5 + 2
    ),  # make, files, subfolders, manifest, rename and fsync
    "seal": Scenario(
        prepare_source,
        lambda folder: durable.seal_directory(folder / "work", folder / "stage", facts=FACTS),
        observe_sealed,
        5 + 2 + 5 + 2,
    ),
    "seal from another folder": Scenario(
        lambda folder: [(folder / "runs").mkdir(), prepare_source(folder)],
        lambda folder: durable.seal_directory(folder / "work", folder / "runs/stage", facts=FACTS),
        lambda folder: observe_published(folder / "runs"),
        5 + 2 + 5 + 3,
    ),
    "replace a symlink": Scenario(
        prepare_link,
        lambda folder: durable.replace_symlink(folder / "best", "c02"),
        lambda folder: {"c01": "old", "c02": "new"}[os.readlink(folder / "best")],
        3,
    ),
    "append the first record": Scenario(
        lambda folder: None,
        lambda folder: durable.append_record(folder / "j", {"n": 1}),
        lambda folder: "new" if (folder / "j").exists() and durable.read_records(folder / "j") == [{"n": 1}] else "old",
        4,  # open, fill, fsync, fsync folder
    ),
    "append after a torn line": Scenario(
        lambda folder: (folder / "j").write_text('{"n": 1}\n{"n'),
        lambda folder: durable.append_record(folder / "j", {"n": 2}),
        lambda folder: {"[1]": "old", "[1, 2]": "new"}[
            str([record["n"] for record in durable.read_records(folder / "j")])
        ],
        4,  # open, cut, fill, fsync
    ),
}


def count_steps(scenario: Scenario, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    folder.mkdir()
    scenario.prepare(folder)
    assert scenario.observe(folder) == "old"
    steps: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(durable, "on_step", steps.append)
        scenario.act(folder)
    assert scenario.observe(folder) == "new"
    assert len(steps) == scenario.steps, steps
    return len(steps)


def stop_at(step: int, stop: Callable[[], object]) -> Callable[[str], None]:
    calls = 0

    def on_step(name: str) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            stop()

    return on_step


def find_temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = SCENARIOS[name]
    seen = []
    for step in range(1, count_steps(scenario, tmp_path / "count", monkeypatch) + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        scenario.prepare(folder)

        def die(folder: Path = folder, step: int = step) -> None:
            durable.on_step = stop_at(step, lambda: os._exit(137))
            scenario.act(folder)

        assert run_child(die) == 137
        seen.append(scenario.observe(folder))
        durable.remove_temporaries(folder)
        assert scenario.observe(folder) == seen[-1]
        if seen[-1] == "old":  # the same call again completes it
            scenario.act(folder)
            assert scenario.observe(folder) == "new"
            assert find_temporaries(folder) == []
    assert seen == sorted(seen, key=["old", "new"].index)
    assert seen[0] == "old"
    assert seen[-1] == "new"


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StateError, "no space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StateError, "no space left"),
        (OSError(errno.EIO, "Input/output error"), StateError, "Input/output error"),
        (OSError(errno.EROFS, "Read-only file system"), InputError, "Read-only file system"),
        (OSError(errno.EACCES, "Permission denied"), InputError, "Permission denied"),
        (Interrupted(15), Interrupted, "signal 15"),
    ],
    ids=lambda value: getattr(value, "strerror", None),
)
def test_failure_at_every_step(
    name: str,
    raised: BaseException,
    expected: type[BaseException],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = SCENARIOS[name]

    def fail() -> None:
        raise raised

    for step in range(1, scenario.steps + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        scenario.prepare(folder)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "on_step", stop_at(step, fail))
            with pytest.raises(expected, match=text) as caught:
                scenario.act(folder)
        if expected is not Interrupted:
            assert str(folder) in str(caught.value)
            assert ".tmp-" not in str(caught.value)
            assert "\n" not in str(caught.value)
        assert scenario.observe(folder) in ("old", "new")
        assert find_temporaries(folder) == []


def test_sigkill_while_publishing(tmp_path: Path) -> None:
    def work(pause: Callable[[], None]) -> None:
        with durable.publish_directory(tmp_path / "stage") as temporary:
            (temporary / "half").write_text("x")
            pause()

    with paused_child(work):
        pass
    assert not (tmp_path / "stage").exists()
    (leftover,) = find_temporaries(tmp_path)
    assert leftover.parent == tmp_path
    durable.remove_temporaries(tmp_path)
    publish(tmp_path)
    assert observe_published(tmp_path) == "new"
    assert os.listdir(tmp_path) == ["stage"]


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str | int] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(durable, "on_step", lambda step: events.append(step))
    publish(tmp_path)
    stage = tmp_path / "stage"
    rename = events.index(f"publish:rename {stage}")
    before = {event for event in events[:rename] if isinstance(event, int)}
    entries = [stage, *stage.rglob("*")]
    assert before == {entry.stat().st_ino for entry in entries}
    assert len(entries) == 1 + 2 + 5 + 1  # itself, subfolders, files, manifest
    assert events[rename + 1 :] == [f"fsync {tmp_path}", tmp_path.stat().st_ino]
    assert sum(str(event).startswith("publish:fsync ") for event in events) == 5


# ---- damage


def craft_manifest(folder: Path, body: dict[str, Any]) -> None:
    """Write a manifest whose own digest fits, from the format's description alone."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps({**body, "digest": digest}, indent=2) + "\n")


def test_manifest_format(published: Path) -> None:
    manifest = json.loads((published / "MANIFEST.json").read_text())
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in CONTENT.items()
    }
    assert manifest["facts"] == FACTS
    assert durable.directory_digest(published) == manifest["digest"]
    crafted = published.with_name("crafted")
    shutil.copytree(published, crafted)
    craft_manifest(crafted, {"files": manifest["files"], "facts": FACTS})
    assert durable.verify_directory(crafted) == FACTS
    assert durable.directory_digest(crafted) == manifest["digest"]


LISTED = [name for name, data in CONTENT.items() if data] + ["MANIFEST.json"]


def spread(size: int) -> list[int]:
    return sorted({i * (size - 1) // 19 for i in range(20)})


def assert_refused(folder: Path, name: str) -> None:
    with pytest.raises(StateError) as caught:
        durable.verify_directory(folder)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data, place: data[:place],
        lambda data, place: data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :],
        lambda data, place: (
            data[: (page := place // 4096 * 4096)] + bytes(min(4096, len(data) - page)) + data[page + 4096 :]
        ),
    ],
    ids=["truncated", "bit flipped", "page zeroed"],
)
def test_damaged_bytes(name: str, damage: Callable[[bytes, int], bytes], published: Path) -> None:
    data = (published / name).read_bytes()
    for place in spread(len(data)):
        (published / name).write_bytes(damage(data, place))
        assert_refused(published, name)
    (published / name).write_bytes(data)
    assert durable.verify_directory(published) == FACTS


@pytest.mark.parametrize("name", [*CONTENT, "MANIFEST.json"])
def test_file_removed_grown_or_no_file(name: str, published: Path, tmp_path: Path) -> None:
    data = (published / name).read_bytes()
    (published / name).write_bytes(data + b"\n")
    assert_refused(published, name)
    (published / name).unlink()
    assert_refused(published, name)
    (published / name).mkdir()
    assert_refused(published, name)
    (published / name).rmdir()
    (tmp_path / "copy").write_bytes(data)
    (published / name).symlink_to(tmp_path / "copy")  # the right bytes, but anybody could change them
    assert_refused(published, name)
    (published / name).unlink()
    os.mkfifo(published / name)
    assert_refused(published, name)
    (published / name).unlink()
    os.link(tmp_path / "copy", published / name)
    assert durable.verify_directory(published) == FACTS


@pytest.mark.parametrize("name", ["extra.txt", "sub/extra.txt", "sub/MANIFEST.json", "pytorch_model.bin", ".tmp-1"])
def test_unlisted_file(name: str, published: Path) -> None:
    (published / name).write_text("x")
    assert_refused(published, name)


def test_swapped_files(published: Path) -> None:
    (published / "model.bin").write_bytes(CONTENT["twin.bin"])
    (published / "twin.bin").write_bytes(CONTENT["model.bin"])
    assert_refused(published, "model.bin")


def test_edited_fact(published: Path) -> None:
    path = published / "MANIFEST.json"
    path.write_text(path.read_text().replace("0.71", "0.99"))
    assert_refused(published, "MANIFEST.json")
    with pytest.raises(StateError, match=r"MANIFEST\.json: does not fit its own digest"):
        durable.directory_digest(published)


@pytest.mark.parametrize(
    "name",
    ["../outside.txt", "/outside.txt", "sub/../../outside.txt", "", ".", "a//b", "./a", "a/", "a\0", "MANIFEST.json"],
)
def test_manifest_names_that_escape(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("x")
    (tmp_path / "stage").mkdir()
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    craft_manifest(tmp_path / "stage", {"files": {name: entry}, "facts": {}})
    with pytest.raises(StateError, match=r"MANIFEST\.json: lists .* no name of a file in the folder"):
        durable.verify_directory(tmp_path / "stage")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"files": [], "facts": {}}',
        '{"files": {"a": 1}, "facts": {}, "digest": ""}',
        "[" * 99999,
    ],
)
def test_garbled_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text(text)
    assert durable.is_published(tmp_path)
    assert_refused(tmp_path, "MANIFEST.json")


@pytest.mark.parametrize("kind", ["missing", "file", "empty folder"])
def test_never_published(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "stage"
    if kind == "file":
        path.write_text("x")
    elif kind == "empty folder":
        path.mkdir()
    assert not durable.is_published(path)
    for read in (durable.verify_directory, durable.directory_digest):
        with pytest.raises(StateError, match="stage"):
            read(path)


# ---- publishing and sealing


@pytest.mark.parametrize("kind", ["file", "empty folder", "published", "dangling symlink"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_existing_path_is_never_overwritten(kind: str, late: bool, tmp_path: Path) -> None:
    path = tmp_path / "stage"

    def occupy() -> None:
        if kind == "file":
            path.write_text("mine")
        elif kind == "empty folder":
            path.mkdir()
        elif kind == "published":
            with durable.publish_directory(path, facts={"mine": True}):
                pass
        else:
            path.symlink_to("nowhere")

    if not late:
        occupy()
    with pytest.raises(StateError, match="exists already"), durable.publish_directory(path):
        assert late, "refused before any work"
        occupy()
    if not late:
        (tmp_path / "work").mkdir()
        with pytest.raises(StateError, match="exists already"):
            durable.seal_directory(tmp_path / "work", path)
        (tmp_path / "work").rmdir()
    assert os.listdir(tmp_path) == ["stage"]
    found = {
        "file": lambda: path.read_text() == "mine",
        "empty folder": lambda: os.listdir(path) == [],
        "published": lambda: durable.verify_directory(path) == {"mine": True},
        "dangling symlink": lambda: os.readlink(path) == "nowhere",
    }
    assert found[kind]()


@pytest.mark.parametrize("raised", [KeyError("column"), KeyboardInterrupt(), OSError(errno.ENOENT, "no vocab.txt")])
def test_exception_in_the_block(raised: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(raised)) as caught, durable.publish_directory(tmp_path / "stage") as temporary:
        fill(temporary)
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".tmp-")
        raise raised
    assert caught.value is raised
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        OSError("100000 requested and 24968 written"),
        RuntimeError("Error: 'ret == (size * 4)' failed: write error in f.idx: 25000 != 100000 (File too large)"),
    ],
    ids=["Python", "safetensors", "torch", "numpy", "faiss"],
)
def test_full_disk_in_a_library(raised: Exception, tmp_path: Path) -> None:
    with (
        pytest.raises(StateError, match=r"cannot write .*stage: no space left \(") as caught,
        durable.publish_directory(tmp_path / "stage"),
    ):
        raise raised
    assert caught.value.__cause__ is raised
    assert os.listdir(tmp_path) == []


def test_full_disk_behind_another_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no space left \(saving failed\)"), durable.explain_full_disk(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("saving failed") from error


@pytest.mark.parametrize("kind", ["symlink", "folder symlink", "pipe", "manifest"])
def test_what_cannot_be_published(kind: str, tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        (folder / "sub").mkdir()
        if kind == "symlink":
            (folder / "sub/passwd").symlink_to("/etc/passwd")
        elif kind == "folder symlink":
            (folder / "sub/etc").symlink_to("/etc")
        elif kind == "pipe":
            os.mkfifo(folder / "sub/pipe")
        else:
            (folder / "MANIFEST.json").write_text("{}")

    with pytest.raises(StateError), durable.publish_directory(tmp_path / "stage") as temporary:
        spoil(temporary)
    assert os.listdir(tmp_path) == []
    (tmp_path / "work").mkdir()
    spoil(tmp_path / "work")
    if kind == "manifest":  # left by an interrupted seal, so it is replaced
        durable.seal_directory(tmp_path / "work", tmp_path / "stage")
        assert durable.verify_directory(tmp_path / "stage") == {}
    else:
        with pytest.raises(StateError, match=r"work/sub/.* is a symlink or a special file"):
            durable.seal_directory(tmp_path / "work", tmp_path / "stage")
        assert os.listdir(tmp_path) == ["work"]


@pytest.mark.parametrize("kind", ["missing", "file", "symlink"])
def test_sealing_what_is_no_directory(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        (tmp_path / "work").write_text("x")
    elif kind == "symlink":
        (tmp_path / "real").mkdir()
        (tmp_path / "work").symlink_to("real")
    with pytest.raises(StateError, match=r"stage: .*work is not a directory"):
        durable.seal_directory(tmp_path / "work", tmp_path / "stage")
    assert not (tmp_path / "stage").exists()


def test_facts(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"by step": {10: 0.5, 2: None}, "text": "ü \ud800"}
    with durable.publish_directory(tmp_path / "stage", facts=facts):
        facts["late"] = True  # known only when the work is done
    expected = {"by step": {"10": 0.5, "2": None}, "text": "ü \ud800", "late": True}
    assert durable.verify_directory(tmp_path / "stage") == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(value: float, tmp_path: Path) -> None:
    with (
        pytest.raises(StateError, match="stage: "),
        durable.publish_directory(tmp_path / "stage", facts={"dev": value}),
    ):
        pass
    with pytest.raises(StateError, match=r"a\.json: "):
        durable.write_json(tmp_path / "a.json", [value])
    with pytest.raises(StateError, match="journal: "):
        durable.append_record(tmp_path / "journal", {"dev": value})
    assert os.listdir(tmp_path) == []


# ---- files


def test_write_file_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        durable.write_file(tmp_path / "new", "x")
        (tmp_path / "private").write_text("old")
        (tmp_path / "private").chmod(0o600)
        durable.write_file(tmp_path / "private", "x")
        publish(tmp_path)
    finally:
        os.umask(umask)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "private": 0o600, "stage": 0o750}


def test_write_file_follows_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a").write_text("old")
    (tmp_path / "a").symlink_to("disk/a")
    durable.write_file(tmp_path / "a", b"new")
    assert os.readlink(tmp_path / "a") == "disk/a"
    assert read_tree(tmp_path / "disk") == {"a": b"new"}


def test_write_file_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null"), Path("/")):
        with pytest.raises(InputError, match="not a regular file"):
            durable.write_file(path, "x")
    assert os.listdir(tmp_path) == ["pipe"]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_write_json_text(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "a.json", {"b": [1, None], "a": "ü"})
    text = (tmp_path / "a.json").read_bytes()
    assert text == b'{\n  "b": [\n    1,\n    null\n  ],\n  "a": "\\u00fc"\n}\n'
    assert durable.read_json(tmp_path / "a.json") == {"b": [1, None], "a": "ü"}


@pytest.mark.parametrize(
    "data", [b"", b'{"a": 1', b"garbage", b"\xff{}", b"\xef\xbb\xbf{}", b"[NaN]", b"\0" * 40, b"[" * 99999]
)
def test_read_json_garbled(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(StateError, match=r"run\.json: not valid JSON") as caught:
        durable.read_json(tmp_path / "run.json")
    assert "\n" not in str(caught.value)


def test_read_json_missing_or_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "run.json", tmp_path):
        with pytest.raises(StateError, match=f"cannot read {path}: "):
            durable.read_json(path)


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert durable.sha256_file(tmp_path / "a") == expected
    with pytest.raises(StateError, match=r"cannot read .*missing: No such file"):
        durable.sha256_file(tmp_path / "missing")


def test_remove_temporaries(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/.tmp-inner").write_text("x")
    (tmp_path / ".tmp-dir/sub").mkdir(parents=True)
    (tmp_path / ".tmp-file").write_text("x")
    (tmp_path / ".tmp-link").symlink_to("kept")
    (tmp_path / ".tmp-dangling").symlink_to("nowhere")
    durable.remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".tmp-inner", "kept"]
    durable.remove_temporaries(tmp_path / "no such folder")


def test_replace_symlink_refuses(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("x")
    for link, target in (
        ("best", "missing"),
        ("best", tmp_path / "model"),
        ("file", "model"),
        ("model", "file"),
    ):
        with pytest.raises(StateError, match=f"cannot link {tmp_path / link}"):
            durable.replace_symlink(tmp_path / link, target)
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]
    (tmp_path / "best").mkdir()
    durable.replace_symlink(tmp_path / "best/bi-encoder", "../model")
    assert (tmp_path / "best/bi-encoder").resolve() == (tmp_path / "model").resolve()


# ---- paths and disks


@pytest.mark.parametrize("name", ["with space", "größer ☃", "-dash", "a%20'\"$HOME", "symlinked"])
def test_unusual_folders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    if name == "symlinked":
        (tmp_path / "real").mkdir()
        folder.symlink_to("real")
    else:
        folder.mkdir()
    monkeypatch.chdir(tmp_path)
    for base in (folder, Path(name)):
        with lock(base / "lock"):
            publish(base)
            assert observe_published(base) == "new"
            prepare_source(base)
            durable.seal_directory(base / "work", base / "größe 2", facts=FACTS)
            assert durable.verify_directory(base / "größe 2") == FACTS
            durable.write_json(base / "run.json", {})
            durable.replace_symlink(base / "best", "größe 2")
            assert durable.verify_directory(base / "best") == FACTS
            durable.append_record(base / "journal", {"n": 1})
            assert durable.read_records(base / "journal") == [{"n": 1}]
        assert sorted(os.listdir(folder)) == ["best", "größe 2", "journal", "lock", "run.json", "stage"]
        for entry in list(folder.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def enter(context: Any) -> None:
    with context:
        pytest.fail("refused before any work")


WRITERS: dict[str, Callable[[Path], object]] = {
    "write_file": lambda path: durable.write_file(path, "x"),
    "publish_directory": lambda path: enter(durable.publish_directory(path)),
    "append_record": lambda path: durable.append_record(path, {}),
    "lock": lambda path: enter(lock(path)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_folder_that_cannot_be_used(writer: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing/a", tmp_path / "file/a", tmp_path / ("n" * 300)):
        with pytest.raises(InputError) as caught:
            WRITERS[writer](path)
        assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("writer", WRITERS)
def test_folder_without_permission(writer: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)

    def work() -> None:
        if os.geteuid() == 0:  # permissions do not bind root
            os.setuid(65534)
        with pytest.raises(InputError, match="Permission denied"):
            WRITERS[writer](tmp_path / "a")

    assert run_child(work) == 0
    tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == []


def test_unreadable_is_not_damaged(published: Path) -> None:
    """A reader steps back from damage and deletes it; what it may not read could be whole."""
    (published / "model.bin").chmod(0)

    def work() -> None:
        if os.geteuid() == 0:
            os.chdir(published)  # the folders above belong to root alone
            os.setuid(65534)
        with pytest.raises(InputError, match=r"cannot read .*model\.bin: Permission denied"):
            durable.verify_directory(os.curdir if os.getcwd() == str(published) else published)

    assert run_child(work) == 0


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("name", ["write_file", "publish_directory", "seal_directory", "append_record"])
def test_full_disk(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    prepare_source(tmp_path)
    for number in range(10):
        durable.append_record(tmp_path / "journal", {"n": number})
    before = read_tree(tmp_path)

    def fill_disk(folder: Path) -> None:
        with durable.publish_directory(folder / "stage") as temporary:
            (temporary / "weights").write_bytes(bytes(50_000))

    acts: dict[str, tuple[str, Callable[[], object]]] = {
        "write_file": ("a", lambda: durable.write_file(tmp_path / "a", bytes(50_000))),
        "publish_directory": ("stage", lambda: fill_disk(tmp_path)),
        "seal_directory": ("stage", lambda: durable.seal_directory(tmp_path / "work", tmp_path / "stage")),
        "append_record": ("journal", lambda: durable.append_record(tmp_path / "journal", {"text": "x" * 500})),
    }
    path, act = acts[name]

    def work() -> None:
        limit_file_size(100 if name == "seal_directory" else len(before["journal"]) + 20)
        with pytest.raises(StateError, match=rf"{path}: no space left \(.*File too large"):
            act()

    assert run_child(work) == 0
    assert read_tree(tmp_path) == before
    assert find_temporaries(tmp_path) == []


# ---- records


def test_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, second = b'{"n": 1}\n', '{"text": "größer"}\n'.encode()
    for cut in range(len(second) + 1):
        path.write_bytes(first + second[:cut])
        whole = [{"text": "größer"}] if cut >= len(second) - 1 else []
        assert durable.read_records(path) == [{"n": 1}, *whole]
        durable.append_record(path, {"n": 3})
        assert durable.read_records(path) == [{"n": 1}, *whole, {"n": 3}]


@pytest.mark.parametrize(
    "line", [b"garbage", b'{"n": ', b"", b"3", b"[]", b"null", b'{"n": NaN}', b"\xff", b"\0\0\0", b'{"a": 1}{"b": 2}']
)
def test_garbage_between_records(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 3}\n')
    with pytest.raises(StateError, match=r"journal\.jsonl:2: "):
        durable.read_records(path)
    path.write_bytes(b'{"n": 1}\n' + line + b"\n")  # terminated, so no crash tore it
    with pytest.raises(StateError, match=r"journal\.jsonl:2: "):
        durable.read_records(path)


def test_records_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot read .*journal: No such file"):
        durable.read_records(tmp_path / "journal")
    (tmp_path / "journal").touch()
    assert durable.read_records(tmp_path / "journal") == []


def test_record_with_line_breaks(tmp_path: Path) -> None:
    record = {"text": "a\nb\r\u2028\x00\ud800"}
    durable.append_record(tmp_path / "journal", record)
    durable.append_record(tmp_path / "journal", {})
    assert durable.read_records(tmp_path / "journal") == [record, {}]


def test_examples() -> None:
    results = doctest.testmod(durable)
    assert results.failed == 0
    assert results.attempted > 30
