"""The durable run: a directory of stages, each published exactly once, resumable after any interruption."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transenc import durable
from transenc.errors import InputError, StateError

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
FREE_TO_CHANGE = ("forked_from", "machine.", "inputs.")  # told, warned of, or covered by a digest
LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "datasets",
    "accelerate",
    "tokenizers",
    "transenc",
)


class Run:
    """One run directory, locked while it is open. Use `open_run`.

    Layout: `run.json` (identity, written once), `journal.jsonl`, `stages/<name>/` (published, immutable),
    `work/<name>/` (scratch), `best/`. A stage is done if and only if its manifest verifies.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = identity

    def stage_path(self, name: str) -> Path:
        """Where stage `name` is, or will be, published."""
        return self.folder / "stages" / name

    def is_done(self, name: str) -> bool:
        """Whether stage `name` has been published."""
        return durable.is_published(self.stage_path(name))

    def stage(self, name: str, build: Callable[[Path, Path], None], *, inputs: Sequence[str] = ()) -> Path:
        """Return the folder of stage `name`, building it first if it is not there.

        Args:
            name: for instance `c01-10-bi-label`.
            build: called with an empty folder to fill and a scratch folder that survives interruptions.
            inputs: names of the stages that `build` reads; their digests are recorded and checked.

        Raises:
            StateError: the stage or one of its inputs was changed after it had been published.
        """
        path = self.stage_path(name)
        facts = {"stage": name, "inputs": {i: durable.directory_digest(self.stage_path(i)) for i in inputs}}
        if durable.is_published(path):
            found = durable.verify_directory(path)
            if found != facts:
                raise StateError(
                    f"{path}: made from other inputs than the stages now in {self.folder}: expected {facts['inputs']}, "
                    f"found {found.get('inputs')}; restore the run, or start another with a new output folder"
                )
            return path
        logger.info("stage %s", name)
        work = self.folder / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        durable.remove_temporaries(path.parent)
        started = time.time()
        with durable.publish_directory(path, facts=facts) as temporary:
            build(temporary, work)
        shutil.rmtree(work, ignore_errors=True)
        self.record("stage", name=name, seconds=round(time.time() - started, 1))
        return path

    def record(self, event: str, **facts: Any) -> None:
        """Append one event to the journal, which is read by people and never by a run."""
        durable.append_record(self.folder / "journal.jsonl", {"time": round(time.time(), 1), "event": event, **facts})


@contextlib.contextmanager
def open_run(folder: str | Path, identity: Mapping[str, Any], *, fork: str | Path | None = None) -> Iterator[Run]:
    """Open or create a run directory and hold its lock.

    Args:
        folder: the run directory; new, empty, or a run with the same identity.
        identity: what must not change between starts: config, seed, digests of data and models (plain JSON);
            the keys `machine` and `inputs` (names as the user gave them) are recorded but may change.
        fork: another run with the same backbones and pairs, whose finished stages are taken over.

    Raises:
        InputError: the folder belongs to something else, or the identity differs (each key, old -> new).
        StateError: `run.json` is damaged or missing although there are stages.
        BusyError: another process works on it.
    """
    folder = Path(folder)
    _prepare(folder)
    with durable.lock(folder / "lock"):
        run_file = folder / RUN_FILE
        if run_file.exists():
            check_identity(folder, identity)
            if fork is not None:
                raise InputError(f"{folder}: is a run already; a fork needs a new output folder")
        else:
            if any((folder / "stages").glob("c*")):
                raise StateError(
                    f"{run_file}: missing although {folder}/stages holds results; restore it, or start anew elsewhere"
                )
            if fork is not None:
                identity = {**identity, "forked_from": _take_over(Path(fork), folder, identity)}
            durable.write_json(run_file, {**identity, "versions": _versions()})
        run = Run(folder, identity)
        run.record("start", machine=identity.get("machine"))
        yield run


def check_identity(folder: str | Path, identity: Mapping[str, Any]) -> None:
    """Refuse a start that differs from what `run.json` recorded, without touching the run.

    Raises:
        StateError: each differing key, old -> new.
    """
    identity = {**identity, "versions": _versions()}
    recorded = durable.read_json(Path(folder) / RUN_FILE)
    if not isinstance(recorded, dict):
        raise StateError(f"{folder}/{RUN_FILE}: expected a run's description, found {type(recorded).__name__}")
    _refuse_changes(Path(folder), recorded, identity)


def verify_run(folder: str | Path) -> dict[str, Any]:
    """Check every digest of a run's published stages.

    Returns:
        `{"run", "stages", "files"}`: the number of stages and files that verified.

    Raises:
        InputError: not a run. StateError: the first damaged file.
    """
    folder = Path(folder)
    if not (folder / "stages").is_dir():
        raise InputError(f"{folder}: not a run: no stages/ in it")
    durable.read_json(folder / RUN_FILE)
    stages = sorted(p for p in (folder / "stages").iterdir() if not p.name.startswith(".tmp-"))
    files = 0
    digests = {stage.name: durable.directory_digest(stage) for stage in stages}
    for stage in stages:
        facts = durable.verify_directory(stage)
        for name, digest in facts["inputs"].items():
            if digests.get(name) != digest:
                raise StateError(f"{stage}: made from a stage {name} that is no longer the one in this run")
        files += sum(1 for path in stage.rglob("*") if path.is_file())
    return {"run": str(folder), "stages": len(stages), "files": files}


def _prepare(folder: Path) -> None:
    ours = {
        RUN_FILE,
        "lock",
        "journal.jsonl",
        "stages",
        "work",
        "best",
        "best.json",
        "report.html",
        "report.md",
    }
    try:
        if folder.is_dir():
            names = {p.name for p in folder.iterdir() if not p.name.startswith(".tmp-")}
            if names and not (RUN_FILE in names or "stages" in names or names <= ours):
                raise InputError(
                    f"{folder}: not empty and not a run (found {', '.join(sorted(names - ours)[:3])}); "
                    "name a new folder"
                )
        elif folder.exists():
            raise InputError(f"{folder}: is a file; the output must be a folder")
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        (folder / "work").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write a run here: {error.strerror or error}") from None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _refuse_changes(folder: Path, recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    old, new = _flatten(recorded), _flatten(identity)
    for side in (old, new):  # a minor release may resume a run, a major one may not
        for name in [key for key in side if key.startswith("versions.")]:
            side[name] = str(side[name]).split(".")[0]
    machine = [key for key in old if key.startswith("machine.") and old[key] != new.get(key)]
    if machine:
        logger.warning("this run was started on another machine set-up (%s); results need not be equal bit for bit",
                       ", ".join(f"{key}: {old[key]} -> {new.get(key)}" for key in machine))  # fmt: skip
    changes = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if changes:
        raise StateError(
            f"{folder}: this run was started with other settings or data ({'; '.join(changes)}); repeat the "
            "original command, or go on from it in a new folder with --fork"
        )


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(item) if isinstance(item, tuple) else item
    return flat


def _take_over(source: Path, folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    verify_run(source)
    recorded = durable.read_json(source / RUN_FILE)
    for key in ("backbones", "pairs"):
        if recorded.get(key) != identity.get(key):
            raise InputError(
                f"{source}: has other {key} ({recorded.get(key)} -> {identity.get(key)}); a fork keeps them"
            )
    for stage in sorted((source / "stages").glob("c*")):
        target = folder / "stages" / stage.name
        if not target.exists():
            temporary = target.with_name(f".tmp-{stage.name}")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(stage, temporary)
            temporary.rename(target)
    return {"run": source.name, "seed": recorded.get("seed")}
