"""The durable run: a directory of stages, each published exactly once, resumable after any interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transenc import durable
from transenc.errors import InputError, StateError
from transenc.locks import lock

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
JOURNAL = "journal.jsonl"
FREE_TO_CHANGE = ("forked_from", "machine.", "inputs.")  # told, warned of, or covered by a digest
KEPT_BY_FORK = ("backbones", "pairs")
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

    def __init__(self, folder: Path, identity: Mapping[str, Any], forked_from: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.identity = identity
        self._forked_from = forked_from or {}

    def stage_path(self, name: str) -> Path:
        """Where stage `name` is, or will be, published."""
        return self.folder / "stages" / name

    def stage(self, name: str, build: Callable[[Path, Path], None], *, inputs: Sequence[str] = ()) -> Path:
        """Return the folder of stage `name`, building it first if it is not there.

        Args:
            name: for instance `c01-10-bi-label`.
            build: called with an empty folder to fill and a scratch folder that survives interruptions.
            inputs: names of the stages that `build` reads; their digests are recorded and checked.

        Raises:
            StateError: the stage or one of its inputs was changed after it had been published.
        """
        path, work = self.stage_path(name), self.folder / "work" / name
        facts = {"stage": name, "inputs": {i: durable.directory_digest(self.stage_path(i)) for i in inputs}}
        if durable.is_published(path):
            found = durable.verify_directory(path)
            if found != facts:
                raise StateError(
                    f"{path}: made from other inputs than the stages now in {self.folder}: expected {facts['inputs']}, "
                    f"found {found.get('inputs')}; restore the run, or start another with a new output folder"
                )
            shutil.rmtree(work, ignore_errors=True)  # a kill may have come between publishing and this
            return path
        for i in inputs:
            durable.verify_directory(self.stage_path(i))
        logger.info("stage %s", name)
        work.mkdir(parents=True, exist_ok=True)
        started = time.time()
        with durable.publish_directory(path, facts=facts) as temporary:
            if not self._take_over(name, facts, temporary):
                build(temporary, work)
        shutil.rmtree(work, ignore_errors=True)
        self.record("stage", name=name, seconds=round(time.time() - started, 1))
        return path

    def record(self, event: str, **facts: Any) -> None:
        """Append one event to the journal, which is read by people and never by a run."""
        durable.append_record(self.folder / JOURNAL, {"time": round(time.time(), 1), "event": event, **facts})

    def _take_over(self, name: str, facts: dict[str, Any], target: Path) -> bool:
        """Copy stage `name` from the run this one was forked from, if it had it and it fits here."""
        digest = self._forked_from.get("stages", {}).get(name)
        if digest is None:
            return False
        source = Path(self._forked_from["run"]) / "stages" / name
        found = durable.verify_directory(source)
        if durable.directory_digest(source) != digest:
            raise StateError(f"{source}: not the stage that {self.folder} was forked from; restore it, or fork anew")
        if found != facts:  # under the new settings the run goes another way
            return False
        logger.info("stage %s: taken over from %s", name, self._forked_from["run"])
        shutil.copytree(source, target, dirs_exist_ok=True)
        (target / durable.MANIFEST).unlink()  # publishing writes the same one again
        return True


@contextlib.contextmanager
def open_run(folder: str | Path, identity: Mapping[str, Any], *, fork: str | Path | None = None) -> Iterator[Run]:
    """Open or create a run directory and hold its lock.

    Args:
        folder: the run directory; new, empty, or a run with the same identity.
        identity: what must not change between starts: config, seed, digests of data and models (plain JSON);
            the keys `machine` and `inputs` (names as the user gave them) are recorded but may change.
        fork: another run with the same backbones and pairs, whose finished stages are taken over. They are copied
            one by one as this run comes to them, so that run has to stay until then.

    Raises:
        InputError: the folder belongs to something else or cannot be written; the fork does not fit.
        StateError: the identity differs (each key, old -> new); `run.json` is damaged or missing although there
            are results.
        BusyError: another process works on it.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    _make_folders(folder)
    with lock(folder / "lock"):
        for place in (folder, folder / "stages", folder / "best"):
            durable.remove_temporaries(place)
        if (folder / RUN_FILE).exists():
            forked_from = check_identity(folder, identity).get("forked_from")
            if fork is not None and (forked_from or {}).get("run") != str(Path(fork).resolve()):
                raise InputError(
                    f"{folder}: is a run already, not forked from {fork}; a fork needs a new output folder"
                )
        else:
            forked_from = None if fork is None else _describe_fork(Path(fork).resolve(), identity)
            content = {**identity, "forked_from": forked_from} if forked_from else identity
            durable.write_json(folder / RUN_FILE, {**content, "versions": library_versions()})
        run = Run(folder, identity, forked_from)
        run.record("start", machine=identity.get("machine"))
        yield run


def check_identity(folder: str | Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse a start that differs from what `run.json` recorded, without touching the run.

    Returns:
        What was recorded.

    Raises:
        StateError: each differing key, old -> new; or `run.json` is damaged.
    """
    recorded = _read_run_file(Path(folder))
    compare_identity(recorded, identity, folder=folder)
    return recorded


def compare_identity(recorded: Mapping[str, Any], identity: Mapping[str, Any], *, folder: str | Path) -> None:
    """Refuse a start that differs from what `folder` recorded, versions of the libraries included; warn of the rest.

    Raises:
        StateError: each differing key, old -> new.
    """
    old, new = _flatten(recorded), _flatten({**identity, "versions": library_versions()})
    changed = {key: f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted(old.keys() | new.keys())
               if old.get(key) != new.get(key)}  # fmt: skip
    # a minor release may resume a run, a major one may not
    small = [key for key in changed if key.startswith("versions.") and _major(old.get(key)) == _major(new.get(key))]
    told = [key for key in changed if key in small or key.startswith("machine.")]
    refused = [key for key in changed if key not in small and not key.startswith(FREE_TO_CHANGE)]
    if refused:
        raise StateError(
            f"{folder}: this run was started with other settings or data ({'; '.join(changed[k] for k in refused)}); "
            "repeat the original command, or name a new folder (`distill --fork` goes on from a run)"
        )
    if told:
        logger.warning("this run was started on another machine set-up (%s); results need not be equal bit for bit",
                       ", ".join(changed[key] for key in told))  # fmt: skip


def digest_rows(rows: Iterable[Any]) -> str:
    """The sha256 of texts, or of rows of them and numbers, in their order: what a run's data is recognised by.

    Example:
        >>> digest_rows(["a cat", "a dog"])[:8]
        'b188c3df'
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def verify_run(folder: str | Path) -> dict[str, Any]:
    """Check every digest of a run's published stages, and that every weight, label and figure is finite.

    Returns:
        `{"run", "stages", "files", "tensors", "labels"}`: how many stages, files, weight tensors and pairs' labels
        were checked.

    Raises:
        InputError: not a run.
        StateError: names the first file that is damaged or holds NaN or inf, or the label table with too few rows.
    """
    folder = Path(folder)
    if not (folder / "stages").is_dir():
        raise InputError(f"{folder}: not a run: no stages/ in it")
    rows = _flatten(_read_run_file(folder)).get("pairs.rows")
    stages = sorted(p for p in (folder / "stages").iterdir() if not p.name.startswith(durable.TEMPORARY_PREFIX))
    counts = {"stages": len(stages), "files": 0, "tensors": 0, "labels": 0}
    digests = {stage.name: durable.directory_digest(stage) for stage in stages}
    for stage in stages:
        facts = durable.verify_directory(stage)
        for name, digest in facts.get("inputs", {}).items():
            if digests.get(name) != digest:
                raise StateError(f"{stage}: made from a stage {name} that is no longer the one in this run")
        for name, count in _check_files(stage, rows).items():
            counts[name] += count
    if (folder / "best.json").exists():
        durable.read_json(folder / "best.json")
        for link in ("bi-encoder", "cross-encoder"):
            if not (folder / "best" / link).is_dir():
                raise StateError(f"{folder}/best/{link}: missing, or points nowhere; repeat the run's command")
    return {"run": str(folder), **counts}


def verify_published(folder: str | Path) -> dict[str, Any]:
    """Check every digest of a published folder, such as an encoder from `bootstrap`, and that its numbers are finite.

    Returns:
        `{"folder", "files", "tensors", "labels"}`, as for `verify_run`.

    Raises:
        StateError: names the first file that is damaged or holds NaN or inf.
    """
    durable.verify_directory(folder)
    return {"folder": str(folder), **_check_files(Path(folder), None)}


def _check_files(folder: Path, rows: int | None) -> dict[str, int]:
    counts = {"files": 0, "tensors": 0, "labels": 0}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        counts["files"] += 1
        if path.suffix == ".safetensors":
            counts["tensors"] += _check_weights(path)
        elif path.suffix == ".parquet":
            counts["labels"] += _check_labels(path, rows)
        elif path.suffix == ".json" and path.parent == folder:
            durable.read_json(path)  # refuses NaN
    return counts


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that is neither new, nor empty, nor a run, before anything is written into it."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise InputError(f"{folder}: is a file; the output must be a folder")
        names = {p.name for p in folder.iterdir() if not p.name.startswith(durable.TEMPORARY_PREFIX)}
        if (folder / RUN_FILE).exists():
            _read_run_file(folder)
            return
        # a start that was killed before it wrote run.json left at most these, empty
        inside = [p for name in ("stages", "work") if (folder / name).is_dir() for p in (folder / name).iterdir()]
        if any(durable.is_published(path) for path in inside) or {"stages", JOURNAL} <= names:
            raise StateError(
                f"{folder / RUN_FILE}: missing from a run that has begun; restore it, or start anew elsewhere"
            )
        if foreign := sorted(names - {"stages", "work", "lock"}) + [path.name for path in inside]:
            raise InputError(f"{folder}: not empty and not a run (found {', '.join(foreign[:3])}); name a new folder")
    except OSError as error:
        raise InputError(f"{folder}: cannot read it: {error.strerror or error}") from None


def _make_folders(folder: Path) -> None:
    try:
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        (folder / "work").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write a run here: {error.strerror or error}") from None


def _read_run_file(folder: Path) -> dict[str, Any]:
    recorded = durable.read_json(folder / RUN_FILE)
    if not isinstance(recorded, dict) or not isinstance(recorded.get("versions"), dict):
        raise StateError(f"{folder / RUN_FILE}: not the description of a run; restore it, or name another folder")
    return recorded


def library_versions() -> dict[str, str]:
    """The releases that a run depends on, by name."""
    return {name: version(name) for name in LIBRARIES}


def _major(release: Any) -> str:
    return str(release).split(".")[0]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(item) if isinstance(item, tuple) else item
    return flat


def _describe_fork(source: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    verify_run(source)
    recorded = _read_run_file(source)
    for key in KEPT_BY_FORK:
        old, new = (
            # what a backbone's scores count among others is a setting of the labels
            {name: value for name, value in _flatten({key: content.get(key)}).items() if not name.endswith(".weight")}
            for content in (recorded, identity)
        )
        if changes := [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted(old.keys() | new.keys())
                       if old.get(k) != new.get(k)]:  # fmt: skip
            raise InputError(
                f"{source}: a fork keeps the {key}, found {'; '.join(changes)}; start a run without --fork"
            )
    old, new = recorded.get("config", {}), identity.get("config", {})
    same_choice = recorded.get("dev") == identity.get("dev") and old.get("select") == new.get("select")
    stages = {}
    for stage in sorted((source / "stages").glob("c*")):
        section = stage.name.rpartition("-")[2]  # a stage that is named like a section of the settings depends on it
        trains_bi = stage.name.endswith("bi-train")
        if trains_bi and old.get("student") != new.get("student"):  # it holds other backbones' models
            break
        if old.get(section) == new.get(section) and (same_choice or section != "evaluate"):
            stages[stage.name] = durable.directory_digest(stage)
    return {"run": str(source), "stages": stages}


def _check_weights(path: Path) -> int:
    """Number of tensors in a safetensors file, all finite."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as tensors:
            values = {name: np.isfinite(tensors.get_tensor(name)).all() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StateError(f"{path}: not a file of weights ({error})") from None
    if bad := [name for name, finite in values.items() if not finite]:
        raise StateError(f"{path}: weight {bad[0]} holds NaN or inf")
    return len(values)


def _check_labels(path: Path, rows: int | None) -> int:
    """Number of rows of a table of labels, all finite, `score` in [0, 1]."""
    import numpy as np
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise StateError(f"{path}: not a table of labels ({str(error).splitlines()[0]})") from None
    if rows is not None and table.num_rows != rows:
        raise StateError(f"{path}: expected a label for each of {rows} pairs, found {table.num_rows}")
    for field in table.schema:
        if pyarrow.types.is_floating(field.type):
            values = table[field.name].to_numpy()
            if not np.isfinite(values).all():
                raise StateError(f"{path}: column {field.name} holds NaN or inf")
            if field.name == "score" and not ((values >= 0) & (values <= 1)).all():
                raise StateError(f"{path}: a score lies outside [0, 1]")
    return table.num_rows
