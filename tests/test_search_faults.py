"""Kills, damage, full disks, mixed files and wrong input: an index serves the old content or the new, never neither."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from processes import die_at, paused_child, run_child, start_child
from search_scenario import FACTS, CountColours, as_content, build, make_corpus, read_content, snapshot_tree

from transenc import durable
from transenc.corpus import Document
from transenc.errors import BusyError, InputError, Interrupted, StateError
from transenc.locks import lock
from transenc.search import chunks, generations
from transenc.search.faiss_store import FaissStore, verify_index
from transenc.search.store import Embedded

OLD = make_corpus(3)
NEW = make_corpus(3, start=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: what a killed process has written is safe in the kernel. Blocks of two documents."""
    monkeypatch.setattr(os, "fsync", os.fstat)
    monkeypatch.setattr(chunks, "BLOCK_DOCUMENTS", 2)


# ---- D2: killed at every step


class Change(NamedTuple):
    prepare: Callable[[Path], object]
    act: Callable[[Path, CountColours], object]
    old: dict[str, str]
    new: dict[str, str]
    blocks: int  # calls of the encoder
    again: bool  # the same command fits the changed index too


def build_with(path: Path, embed: CountColours, documents: Sequence[Document], kind: str = "exact") -> None:
    FaissStore.build(path, iter(documents), embed, encoder=FACTS, kind=kind).close()


def add_to(path: Path, embed: CountColours, documents: Sequence[Document], *, upsert: bool = False) -> None:
    with FaissStore.open(path) as store:
        store.add(documents, embed, upsert=upsert)


def delete_from(path: Path, *ids: str) -> None:
    with FaissStore.open(path) as store:
        store.delete(ids)


def compact(path: Path) -> None:
    with FaissStore.open(path) as store:
        store.compact()


def build_old(path: Path, kind: str = "exact") -> None:
    build(path, OLD, kind=kind).close()


CHANGES = {
    "first build": Change(
        lambda path: None, lambda path, embed: build_with(path, embed, NEW), {}, as_content(NEW), 2, True
    ),
    "build over": Change(
        build_old, lambda path, embed: build_with(path, embed, NEW, "hnsw"), as_content(OLD), as_content(NEW), 2, True
    ),
    "add": Change(
        lambda path: build_old(path, "hnsw"),
        lambda path, embed: add_to(path, embed, NEW[1:]),
        as_content(OLD),
        as_content([*OLD, *NEW]),
        1,
        False,
    ),
    "upsert": Change(
        build_old,
        lambda path, embed: add_to(path, embed, [Document("d1", "gold"), NEW[2]], upsert=True),
        as_content(OLD),
        as_content([OLD[0], Document("d1", "gold"), OLD[2], NEW[2]]),
        1,
        True,
    ),
    "delete": Change(
        lambda path: build_old(path, "hnsw"),
        lambda path, embed: delete_from(path, "d0", "d2"),
        as_content(OLD),
        as_content(OLD[1:2]),
        0,
        False,
    ),
    "compact": Change(
        lambda path: [build_old(path, "hnsw"), delete_from(path, "d1")],
        lambda path, embed: compact(path),
        as_content([OLD[0], OLD[2]]),
        as_content([OLD[0], OLD[2]]),
        0,
        True,
    ),
}


def list_steps(path: Path, change: Change, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    steps: list[str] = []
    change.prepare(path)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "on_step", steps.append)
        embed = CountColours()
        change.act(path, embed)
    assert len(embed.blocks) == change.blocks
    assert read_content(path) == change.new
    return steps


def count_chunks(path: Path) -> int:
    return sum(durable.is_published(chunk) for chunk in path.glob("work/chunks/*") if not chunk.name.startswith("."))


def read_state(path: Path) -> tuple[int, dict[str, str]]:
    """Generation and content, 0 and nothing where there is no index yet."""
    try:
        with FaissStore.open(path) as store:
            return store.generation, read_content(path)
    except InputError as error:
        assert "expected the folder of an index, found" in str(error)
        return 0, {}


@pytest.mark.parametrize("name", CHANGES)
def test_killed_at_every_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = CHANGES[name]
    steps = list_steps(tmp_path / "whole", change, monkeypatch)
    change.prepare(tmp_path / "start")
    before = read_state(tmp_path / "start")
    assert before[1] == change.old
    changed = []
    for number, step in enumerate(steps):
        path = tmp_path / f"killed-{number}"
        if before[0]:
            shutil.copytree(tmp_path / "start", path)
        embed = CountColours()
        assert run_child(die_at(number, lambda path=path, embed=embed: change.act(path, embed))) == 137  # type: ignore[misc]
        state, published = read_state(path), count_chunks(path)
        assert state in (before, (before[0] + 1, change.new)), f"neither old nor new at {step}"
        changed.append(state != before)
        if changed[-1] and not change.again:
            continue
        change.act(path, embed)
        assert read_content(path) == change.new
        if not changed[-1]:
            assert len(embed.blocks) == change.blocks - published  # what was published is not encoded again
            assert not (path / "work").exists()
            assert len(list(path.glob("gen-*"))) == (2 if before[0] else 1)
        assert not list(path.rglob(".tmp-*"))
        assert verify_index(path)["documents"] == len(change.new)
    assert changed == sorted(changed)  # first the old, then the new
    assert set(changed) == {False, True}


class StopAt(CountColours):
    """Raises an error when it comes to a document."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__()
        self.name, self.error = name, error

    def __call__(self, documents: Sequence[Document]) -> Embedded:
        if self.name in [document.id for document in documents]:
            raise self.error
        return super().__call__(documents)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(signal.SIGTERM), RuntimeError("out of memory")])
def test_published_chunks_are_not_encoded_again(error: BaseException, tmp_path: Path) -> None:
    """A stop between blocks, or inside one, loses one block at most."""
    path, corpus = tmp_path / "idx", make_corpus(9)
    with pytest.raises(type(error)):
        build_with(path, StopAt("d4", error), corpus)
    assert count_chunks(path) == 2
    assert sorted(entry.name for entry in path.iterdir()) == ["lock", "work"]
    embed = CountColours()
    build_with(path, embed, corpus)
    assert embed.blocks == [["d4", "d5"], ["d6", "d7"], ["d8"]]
    assert read_content(path) == as_content(corpus)


@pytest.mark.parametrize("change", ["text", "title", "id", "encoder", "nothing"])
def test_chunks_of_other_text_or_encoder_are_not_taken(change: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_with(tmp_path / "idx", StopAt("d2", KeyboardInterrupt()), OLD)
    assert count_chunks(tmp_path / "idx") == 1
    embed, first = CountColours(), OLD[0]
    if change == "encoder":
        embed.fingerprint = "shades"
    elif change != "nothing":
        values = {"id": first.id, "text": first.text, "title": first.title}
        first = Document(**{**values, change: values[change] + "x"})
    build_with(tmp_path / "idx", embed, [first, *OLD[1:]])
    assert embed.blocks == ([["d2"]] if change == "nothing" else [[first.id, "d1"], ["d2"]])


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "half deleted"])
def test_damaged_chunk_is_encoded_again(damage: str, tmp_path: Path) -> None:
    path, corpus = tmp_path / "idx", make_corpus(6)
    with pytest.raises(KeyboardInterrupt):
        build_with(path, StopAt("d4", KeyboardInterrupt()), corpus)
    chunk = min(path.glob("work/chunks/*"))
    vectors = bytearray((chunk / "vectors.npy").read_bytes())
    if damage == "flip":
        vectors[-1] ^= 1
        (chunk / "vectors.npy").write_bytes(vectors)
    elif damage == "truncate":
        (chunk / "vectors.npy").write_bytes(vectors[:-4])
    elif damage == "no manifest":
        (chunk / "MANIFEST.json").unlink()
    else:
        (chunk / "passages.npy").unlink()
    embed = CountColours()
    build_with(path, embed, corpus)
    assert len(embed.blocks) == 2  # the third, and that of the damaged chunk
    assert verify_index(path)["documents"] == 6
    assert read_content(path) == as_content(corpus)


def check_storm(count: int, tmp_path: Path) -> None:
    """SIGKILL at random moments of a build over an index."""
    chance = random.Random(0)
    small, large = make_corpus(6), make_corpus(120, start=3)
    build(tmp_path / "start", small).close()
    seen = []

    class Slow(CountColours):
        def __call__(self, documents: Sequence[Document]) -> Embedded:
            time.sleep(0.002)
            return super().__call__(documents)

    started = time.monotonic()
    shutil.copytree(tmp_path / "start", tmp_path / "timed")
    assert run_child(lambda: build_with(tmp_path / "timed", Slow(), large, "hnsw")) == 0
    whole = time.monotonic() - started
    for number in range(count):
        path = tmp_path / f"storm-{number}"
        shutil.copytree(tmp_path / "start", path)
        child = start_child(lambda path=path: build_with(path, Slow(), large, "hnsw"))  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1.1 * whole))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, 0)
        content = read_content(path)
        assert content in (as_content(small), as_content(large))
        seen.append(len(content))
        build_with(path, CountColours(), large, "hnsw")
        assert read_content(path) == as_content(large)
        assert verify_index(path)["documents"] == 120
        shutil.rmtree(path)
    assert len(seen) == count


def test_sigkill(tmp_path: Path) -> None:
    check_storm(2, tmp_path)


@pytest.mark.slow
def test_sigkill_storm(tmp_path: Path) -> None:
    check_storm(20, tmp_path)


# ---- D1: damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that has every kind of file, each of more than a page but the manifest."""
    path = tmp_path_factory.mktemp("whole") / "idx"
    corpus = [
        Document(f"d{i:04}", f"red word{i} word{i * 7 % 50}\ngold number {i}", title="blue", metadata={"n": i})
        for i in range(600)
    ]
    build(path, corpus, kind="hnsw", lexical=has_words()).close()
    return path


def has_words() -> bool:
    from importlib.util import find_spec

    return find_spec("bm25s") is not None


def spread(size: int, places: int) -> list[int]:
    return sorted({round(i * (size - 1) / (places - 1)) for i in range(places)})


def flip_bit(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]


def zero_page(data: bytes, place: int) -> bytes:
    length = min(4096, len(data) - place)
    return data[:place] + bytes(length) + data[place + length :]


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "truncated": lambda data, place: data[:place],
    "bit flipped": flip_bit,
    "page zeroed": zero_page,
}


def check_damage(whole: Path, damage: str, places: int) -> None:
    folder = whole / "gen-000001"
    names = [*json.loads((folder / "MANIFEST.json").read_text())["files"], "MANIFEST.json"]
    assert {"docs.sqlite", "index.faiss", "passages.npy", "vectors.npy", "MANIFEST.json"} <= set(names)
    for name in names:
        data = (folder / name).read_bytes()
        refused = 0
        for place in spread(len(data), places):
            damaged = DAMAGES[damage](data, place)
            if damaged == data:  # zeros already
                continue
            try:
                (folder / name).write_bytes(damaged)
                with pytest.raises(StateError) as raised:
                    FaissStore.open(whole)
                assert str(folder / name) in str(raised.value)
                assert "\n" not in str(raised.value)
                refused += 1
            finally:
                (folder / name).write_bytes(data)
        assert refused >= min(places, len(data)) // 3, name
    assert FaissStore.open(whole).count() == 600


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file(damage: str, whole: Path) -> None:
    check_damage(whole, damage, 4)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_at_20_places(damage: str, whole: Path) -> None:
    check_damage(whole, damage, 20)


def test_missing_and_unlisted_files(whole: Path, tmp_path: Path) -> None:
    folder = whole / "gen-000001"
    for name in [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]:
        (folder / name).rename(tmp_path / "away")
        with pytest.raises(StateError, match=r"is missing") as raised:
            FaissStore.open(whole)
        assert name in str(raised.value)
        (tmp_path / "away").rename(folder / name)
        if (folder / name).parent == folder:
            (folder / f"{name}.bak").write_bytes(b"")
            with pytest.raises(StateError, match=r"\.bak: is not in the manifest"):
                FaissStore.open(whole)
            (folder / f"{name}.bak").unlink()
    assert FaissStore.open(whole).count() == 600


def test_damage_is_refused_by_every_change(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    with build(path, OLD) as store:
        data = (path / "gen-000001/vectors.npy").read_bytes()
        (path / "gen-000001/vectors.npy").write_bytes(flip_bit(data, len(data) - 1))
        before = snapshot_tree(path)
        for change in (
            lambda: store.add(NEW[2:], CountColours()),
            lambda: store.delete(["d1"]),
            store.compact,
            lambda: verify_index(path),
        ):
            with pytest.raises(StateError, match=r"vectors.npy: expected sha256"):
                change()
        assert snapshot_tree(path) == before
    build(path, NEW).close()  # needs nothing of it
    assert read_content(path) == as_content(NEW)


def test_current_damaged_in_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    build(path, NEW).close()
    build(path, OLD).close()  # both are there, so a flipped bit could name the one before
    data = (path / "CURRENT").read_bytes()
    assert data == b"gen-000002 6d62f3bf\n"
    for place in range(len(data)):
        damages = [data[:place]] if place < len(data) - 1 else []  # the line feed may be missing
        damages += [data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :] for bit in range(8)]
        for damaged in damages:
            (path / "CURRENT").write_bytes(damaged)
            with pytest.raises(StateError, match=r"CURRENT: expected the name of a generation .*gen-000002"):
                FaissStore.open(path)
    build(path, NEW).close()
    assert (path / "CURRENT").read_text().startswith("gen-000003 ")
    assert read_content(path) == as_content(NEW)


# ---- D3: disk full


def test_disk_full(tmp_path: Path) -> None:
    """The larger the files may be, the later it fails; whatever fails leaves the old index."""
    path = tmp_path / "idx"
    build(path, OLD).close()
    before = snapshot_tree(path)
    corpus = [Document(f"d{i}", f"red {i} " + "word " * (i % 50) + "\ngold" * 20) for i in range(200)]

    def work(limit: int) -> None:
        chunks.BLOCK_DOCUMENTS = 50
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            build_with(path, CountColours(), corpus, "hnsw")
        except StateError as error:
            assert str(path) in str(error)
            assert "no space left" in str(error)
            assert "\n" not in str(error)
            os._exit(3)

    failed = 0
    for limit in (0, 100, 3000, 5000, 12_000, 20_000, 40_000, 60_000, 80_000, 120_000, 200_000, 10**7):
        status = run_child(lambda limit=limit: work(limit))  # type: ignore[misc]
        if status == 0:
            break
        assert status == 3, limit
        failed += 1
        after = {name: data for name, data in snapshot_tree(path).items() if not name.startswith("work/")}
        assert after == before
        assert not list(path.glob(".tmp-*"))
        assert read_content(path) == as_content(OLD)
    assert status == 0
    assert failed >= 6
    assert read_content(path) == as_content(corpus)
    assert not (path / "work").exists()


# ---- D4: mixed files


def test_files_of_two_generations_mixed(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    with build(path, OLD, kind="hnsw") as store:
        store.add([Document("z", "gold")], CountColours())
    first, second = path / "gen-000001", path / "gen-000002"
    for name in ("vectors.npy", "passages.npy", "docs.sqlite", "index.faiss", "MANIFEST.json"):
        data = (second / name).read_bytes()
        (second / name).write_bytes((first / name).read_bytes())
        with pytest.raises(StateError, match="gen-000002"):
            FaissStore.open(path)
        (second / name).write_bytes(data)
    assert read_content(path) == as_content([*OLD, Document("z", "gold")])
    shutil.rmtree(second)
    first.rename(second)
    with pytest.raises(StateError, match=r"gen-000002: expected generation 1 under this name by its manifest"):
        FaissStore.open(path)


def reseal(folder: Path, facts: dict[str, Any]) -> None:
    """Give a folder a manifest that fits what is in it now."""
    durable.seal_directory(folder, folder.with_name("sealed"), facts=facts)
    folder.with_name("sealed").rename(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vectors.npy", r"vectors.npy: expected float32 \[3, 4\], found float32 \[6, 4\]"),
        ("passages.npy", r"passages.npy: expected int32 \[3, 3\], found int32 \[6, 3\]"),
        ("docs.sqlite", r"docs.sqlite: expected 3 documents by the manifest, found 6"),
        ("index.faiss", r"index.faiss: expected an index of kind hnsw with 3 rows of dimension 4, found hnsw, 6 rows"),
    ],
)
def test_mixed_files_with_a_manifest_that_fits(name: str, message: str, tmp_path: Path) -> None:
    build(tmp_path / "six", make_corpus(6), kind="hnsw").close()
    with build(tmp_path / "idx", OLD, kind="hnsw") as store:
        folder = tmp_path / "idx/gen-000001"
        shutil.copyfile(tmp_path / "six/gen-000001" / name, folder / name)
        reseal(folder, store.facts)
    with pytest.raises(StateError, match=message):
        FaissStore.open(tmp_path / "idx")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2}, {"format": None}, {"documents": "5"}, {"kind": "flat"}, {"metric": "l2"}, {"dim": 5},
        {"documents": 4}, {"passages": 4}, {"deleted": 1}, {"kind": "exact2"}, {"encoder": None}, {"embedding": 3},
    ],
)  # fmt: skip
def test_facts_that_do_not_fit(changes: dict[str, Any], tmp_path: Path) -> None:
    with build(tmp_path / "idx", OLD) as store:
        reseal(tmp_path / "idx/gen-000001", {**store.facts, **changes})
    with pytest.raises(StateError, match=r"expected .*, found .*build"):
        FaissStore.open(tmp_path / "idx")


# ---- D6, D7: documents and vectors


def test_repeated_id_is_refused_before_encoding(tmp_path: Path) -> None:
    build(tmp_path / "idx", OLD).close()
    before, embed = snapshot_tree(tmp_path / "idx"), CountColours()
    corpus = [Document("a", "red", place="docs.jsonl:1"), Document("b", "", place="docs.jsonl:2")]
    corpus.append(Document("a", "blue", place="docs.jsonl:3"))
    with pytest.raises(InputError, match=r"docs.jsonl:3: the id 'a' is that of document 1 of this input too"):
        build_with(tmp_path / "idx", embed, corpus)
    with pytest.raises(TypeError, match=r"documents\[1\]: expected a str as id, found int"):
        build_with(tmp_path / "idx", embed, [Document("1", "red"), Document(1, "red")])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="corpus: expected at least one document, found none"):
        build_with(tmp_path / "idx", embed, [])
    assert embed.blocks == []
    assert snapshot_tree(tmp_path / "idx") == before


class Spoilt(CountColours):
    """Encodes well, and then does something to the result."""

    def __init__(self, spoil: Callable[[Embedded], Embedded]) -> None:
        super().__init__()
        self.spoil = spoil

    def __call__(self, documents: Sequence[Document]) -> Embedded:
        embedded = super().__call__(documents)
        return self.spoil(embedded) if "bad" in {document.id for document in documents} else embedded


def set_number(value: float) -> Callable[[Embedded], Embedded]:
    def spoil(embedded: Embedded) -> Embedded:
        embedded.vectors[1, 2] = value
        return embedded

    return spoil


def replace_passage(**changes: int) -> Callable[[Embedded], Embedded]:
    def spoil(embedded: Embedded) -> Embedded:
        from dataclasses import replace

        return Embedded([embedded.passages[0], replace(embedded.passages[1], **changes)], embedded.vectors)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (set_number(np.nan), StateError, "document 'bad': its vector holds NaN or infinity"),
        (set_number(np.inf), StateError, "document 'bad': its vector holds NaN or infinity"),
        (set_number(-np.inf), StateError, "document 'bad': its vector holds NaN or infinity"),
        (
            lambda e: Embedded(e.passages, e.vectors.astype(np.float64)),
            InputError,
            r"'good': .* found float64 \[2, 4\]",
        ),
        (lambda e: Embedded(e.passages, e.vectors[:, :3]), InputError, r"'good': expected .* found float32 \[2, 3\]"),
        (lambda e: Embedded(e.passages, e.vectors[0]), InputError, r"'good': expected .* found float32 \[4\]"),
        (lambda e: Embedded(e.passages, e.vectors.tolist()), TypeError, "expected a float32 array, found list"),
        (lambda e: Embedded(e.passages, e.vectors[:1]), InputError, "'good': .*found 1 vectors for 2 passages"),
        (lambda e: Embedded(e.passages[:1], e.vectors[:1]), InputError, "'bad': expected at least one passage"),
        (replace_passage(end=4), InputError, "'bad': expected a passage inside its text, found document 1, 0 to 4"),
        (replace_passage(start=-1), InputError, "'bad': expected a passage inside its text"),
        (replace_passage(document=2), InputError, "'good': expected a passage inside its text, found document 2"),
        (replace_passage(document=-1), InputError, "expected a passage inside its text, found document -1"),
    ],
)
def test_vectors_refused(
    spoil: Callable[[Embedded], Embedded], error: type[Exception], message: str, tmp_path: Path
) -> None:
    build(tmp_path / "idx", OLD).close()
    corpus = [*OLD[:2], Document("good", "red"), Document("bad", "red")]
    with pytest.raises(error, match=message):
        build_with(tmp_path / "idx", Spoilt(spoil), corpus)
    with FaissStore.open(tmp_path / "idx") as store, pytest.raises(error, match=message):
        store.add(corpus[2:], Spoilt(spoil))
    assert read_content(tmp_path / "idx") == as_content(OLD)
    assert not list((tmp_path / "idx").rglob(".tmp-*"))


# ---- D8: no index


@pytest.mark.parametrize("place", ["missing", "file", "empty", "text", "file/below", "nul\0", "long" * 100])
def test_not_an_index(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("gen-000001\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/readme.txt").write_text("text")
    for use in (FaissStore.open, verify_index):
        with pytest.raises(InputError) as raised:
            use(tmp_path / place)
        assert "\n" not in str(raised.value)
        assert place[:10].replace("\0", "") in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"garbage", b"../gen-000001", b"gen-1\n", b"gen-000001\n", b"gen-000001 8e7b5a4f\n\n", b"\xff" * 99],
)
def test_garbage_in_current(content: bytes, tmp_path: Path) -> None:
    build(tmp_path / "idx", OLD).close()
    (tmp_path / "idx/CURRENT").write_bytes(content)
    with pytest.raises(
        StateError, match=r"CURRENT: expected the name of a generation \(there are: gen-000001 8e7b5a4f\), found"
    ):
        FaissStore.open(tmp_path / "idx")


def test_current_names_a_generation_that_is_gone(tmp_path: Path) -> None:
    build(tmp_path / "idx", OLD).close()
    shutil.rmtree(tmp_path / "idx/gen-000001")
    with pytest.raises(StateError, match=r"there are: none\), found 'gen-000001"):
        FaissStore.open(tmp_path / "idx")
    (tmp_path / "idx/gen-000001").mkdir()
    with pytest.raises(StateError, match=r"MANIFEST.json: is missing"):
        FaissStore.open(tmp_path / "idx")
    (tmp_path / "idx/CURRENT").unlink()
    with pytest.raises(InputError, match="found a folder without CURRENT; build one there first"):
        FaissStore.open(tmp_path / "idx")
    build(tmp_path / "idx", NEW).close()
    assert read_content(tmp_path / "idx") == as_content(NEW)


@pytest.mark.parametrize("name", ["readme.txt", "run.json", "gen-1", "work.txt", "model.safetensors"])
def test_build_refuses_a_folder_with_something_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "work/chunks").mkdir(parents=True)
    (path / "work/chunks/mine.txt").write_text("mine")
    for _ in range(2):
        embed = CountColours()
        with pytest.raises(InputError, match=r"folder: not empty and not an index \(found '.*'\); name a new folder"):
            build_with(path, embed, OLD)
        (path / name).write_text("mine")
        (path / "lock").write_text("")
    assert embed.blocks == []
    assert (path / "work/chunks/mine.txt").read_text() == (path / name).read_text() == "mine"


def test_build_refuses_what_other_programs_call_current(tmp_path: Path) -> None:
    path = tmp_path / "leveldb"
    path.mkdir()
    for name, text in (("CURRENT", "MANIFEST-000001\n"), ("LOCK", ""), ("lock", ""), ("000005.log", "")):
        (path / name).write_text(text)
    before = snapshot_tree(path)
    with pytest.raises(InputError, match=r"leveldb: not empty and not an index \(found '000005.log'\)"):
        build(path, OLD)
    assert snapshot_tree(path) == before


def test_build_over_an_index_with_a_note_beside(tmp_path: Path) -> None:
    build(tmp_path / "idx", OLD).close()
    (tmp_path / "idx/notes.txt").write_text("mine")
    build(tmp_path / "idx", NEW).close()
    assert read_content(tmp_path / "idx") == as_content(NEW)
    assert (tmp_path / "idx/notes.txt").read_text() == "mine"


def test_build_refuses_what_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below", "nul\0", "long" * 100):
        with pytest.raises(InputError):
            build_with(tmp_path / place, CountColours(), OLD)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["with space", "größe 🙂", "-x", "a/b/c", "per%20cent?mode=rw#x"])
def test_unusual_folders(name: str, tmp_path: Path) -> None:
    build(tmp_path / name, OLD).close()
    assert read_content(tmp_path / name) == as_content(OLD)
    (tmp_path / "link").symlink_to(tmp_path / name)
    with FaissStore.open(tmp_path / "link") as store:
        store.delete(["d0"])
    assert read_content(tmp_path / name) == as_content(OLD[1:])


@pytest.mark.parametrize("relative", [False, True])
def test_moved_index(relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(Path("idx") if relative else tmp_path / "idx", OLD).close()
    (tmp_path / "idx").rename(tmp_path / "moved")
    assert read_content(Path("moved")) == as_content(OLD)


# ---- D9: pickles


class Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("name", ["x.pkl", "docs.pkl", "index.bin", "bm25/params.pkl", "vectors.npy", "passages.npy"])
@pytest.mark.parametrize("sealed", [False, True])
def test_pickles_are_never_opened(name: str, sealed: bool, tmp_path: Path) -> None:
    with build(tmp_path / "idx", OLD) as store:
        folder = tmp_path / "idx/gen-000001"
        (folder / name).parent.mkdir(exist_ok=True)
        bomb = Bomb(tmp_path / "opened")
        if name.endswith(".npy"):
            np.save(folder / name, np.array([bomb], dtype=object), allow_pickle=True)
        else:
            (folder / name).write_bytes(pickle.dumps(bomb))
        if sealed:
            reseal(folder, store.facts)
    if sealed and not name.endswith(".npy"):
        assert FaissStore.open(tmp_path / "idx").count() == 3  # listed, and of no use
    else:
        with pytest.raises(StateError, match=name.replace(".", r"\.")):
            FaissStore.open(tmp_path / "idx")
    assert not (tmp_path / "opened").exists()


# ---- two processes


def test_busy(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    build(path, OLD).close()
    store = FaissStore.open(path)

    def work(pause: Callable[[], None]) -> None:
        with lock(path / "lock"):
            pause()

    with paused_child(work) as pid:
        for change in (
            lambda: build(path, NEW),
            lambda: store.add(NEW[2:], CountColours()),
            lambda: store.delete(["d1"]),
            store.compact,
        ):
            with pytest.raises(BusyError, match=f"lock is held by process {pid} "):
                change()
        assert read_content(path) == as_content(OLD)  # readers do not wait
    assert store.delete(["d1"]) == 1


def test_old_content_serves_while_a_build_is_under_way(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    build(path, OLD).close()

    class Look(CountColours):
        def __call__(self, documents: Sequence[Document]) -> Embedded:
            assert read_content(path) == as_content(OLD)
            return super().__call__(documents)

    build_with(path, Look(), NEW)
    assert read_content(path) == as_content(NEW)


def test_open_goes_on_with_the_newer_generation(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    build(path, OLD).close()
    opened = []

    def open_slowly(folder: Path) -> dict[str, Any]:
        opened.append(folder.name)
        if len(opened) == 1:
            for _ in range(2):
                build(path, NEW).close()
        return durable.verify_directory(folder)

    assert generations.open_current(path, open_slowly)["generation"] == 3
    assert opened == ["gen-000001", "gen-000003"]

    def fail(folder: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(folder / "vectors.npy"))

    with pytest.raises(StateError, match=r"cannot read .*gen-000003/vectors.npy: No such file or directory"):
        generations.open_current(path, fail)


def test_read_only_index(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    build(path, OLD).close()
    (path / "lock").unlink()
    tree = [path, *path.rglob("*")]
    for entry in tree:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    before = snapshot_tree(path)

    def work() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        with FaissStore.open(path) as store:
            assert store.get(["d1"]) == OLD[1:2]
            with pytest.raises(InputError, match="cannot write"):
                store.delete(["d1"])

    # pytest's own folders, which nobody else may enter
    closed = [(folder, folder.stat().st_mode) for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    try:
        for folder, _ in closed:
            folder.chmod(0o711)
        tmp_path.chmod(0o755)
        assert run_child(work) == 0
        assert snapshot_tree(path) == before
    finally:
        for folder, mode in closed:
            folder.chmod(mode)
        for entry in tree:
            entry.chmod(0o755)


def test_sqlite_journal_beside_the_file(tmp_path: Path) -> None:
    """A journal that somebody left there could change what is read."""
    build(tmp_path / "idx", OLD).close()
    for suffix in ("-journal", "-wal", "-shm"):
        stray = tmp_path / f"idx/gen-000001/docs.sqlite{suffix}"
        stray.write_bytes(b"x" * 512)
        with pytest.raises(StateError, match=f"docs.sqlite{suffix}: is not in the manifest"):
            FaissStore.open(tmp_path / "idx")
        stray.unlink()


def iterate_slowly(documents: Sequence[Document], path: Path) -> Iterator[Document]:
    for document in documents:
        assert not (path / "work").exists()  # nothing is encoded before all are read
        yield document


def test_input_is_read_before_encoding(tmp_path: Path) -> None:
    embed = CountColours()
    FaissStore.build(tmp_path / "idx", iterate_slowly(OLD, tmp_path / "idx"), embed, encoder={}).close()
    assert embed.blocks == [["d0", "d1"], ["d2"]]
