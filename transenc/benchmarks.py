"""The STS and pair-classification benchmarks and the pair pools made of them: names, splits, places.

A split is looked for as a file in the `data` folder, then in the folder ``$TRANSENC_DATA``, then on the Hub.
Files are ``sts/<task>.<split>.tsv`` and ``pairs/<task>.<split>.tsv``: a header, tabs, no quoting.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from transenc.errors import InputError
from transenc.pairs import SENTENCES, Field, fold_sentence, make_dataset, read_table
from transenc.tables import load_hub_dataset

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

DATA_VARIABLE = "TRANSENC_DATA"
INDUCTIVE = "-inductive"

STS_TASKS = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr")
PAIR_TASKS = ("mrpc", "qnli", "qqp")
RETRIEVAL_TASKS = ("scifact", "cranfield")  # loaded by retrieval_sets


@dataclass(frozen=True)
class _Hub:
    """Where the Hub has a task, and what its columns are called there."""

    dataset: str
    splits: Mapping[str, str]
    config: str | None = None
    sentences: tuple[str, str] = SENTENCES
    gold: str = "score"


@dataclass(frozen=True)
class _Task:
    folder: str
    rows: Mapping[str, int | None]  # split -> published number of rows, None where none is published
    hub: _Hub
    gold: Field = field(default=Field("score", "score", 0, 5))
    unscored: tuple[str, ...] = ("unscored",)
    subset: bool = True
    symmetric: bool = True


_BINARY = Field("label", "label", 0, 1)

# The Hub copies as their cards and file lists show them: mteb's STS12 to STS16 hold scored pairs only, and
# its SICK-R is one undivided split, which serves the pools but not an evaluation on the 4,927 test pairs.
# GLUE codes QNLI the other way round (0 = entailment) and releases its test split without labels, so dev and
# test are cut out of the validation split as in the Trans-Encoder code. QQP takes that code's sizes.
_TASKS: dict[str, _Task] = {
    "sts12": _Task("sts", {"train": 2234, "test": 3108}, _Hub("mteb/sts12-sts", {"train": "train", "test": "test"})),
    "sts13": _Task("sts", {"test": 1500}, _Hub("mteb/sts13-sts", {"test": "test"})),
    "sts14": _Task("sts", {"test": 3750}, _Hub("mteb/sts14-sts", {"test": "test"})),
    "sts15": _Task("sts", {"test": 3000, "unscored": 5500}, _Hub("mteb/sts15-sts", {"test": "test"})),
    "sts16": _Task("sts", {"test": 1186, "unscored": 7997}, _Hub("mteb/sts16-sts", {"test": "test"})),
    "stsb": _Task(
        "sts",
        {"train": 5749, "dev": 1500, "test": 1379},
        _Hub("mteb/stsbenchmark-sts", {"train": "train", "dev": "validation", "test": "test"}),
    ),
    "sickr": _Task(
        "sts",
        {"train": 4500, "trial": 500, "test": 4927, "all": 9927},
        _Hub("mteb/sickr-sts", {"all": "test"}),
        subset=False,
    ),
    "mrpc": _Task(
        "pairs",
        {"train": 3668, "dev": 408, "test": 1725},
        _Hub("nyu-mll/glue", {"train": "train", "dev": "validation", "test": "test"}, "mrpc", gold="label"),
        gold=_BINARY,
        subset=False,
    ),
    "qnli": _Task(
        "pairs",
        {"dev": 1000, "test": 4463, "unlabeled": 5463},
        _Hub(
            "nyu-mll/glue",
            {"dev": "validation[:1000]", "test": "validation[1000:]", "unlabeled": "test"},
            "qnli",
            ("question", "sentence"),
            "label",
        ),
        gold=_BINARY,
        unscored=("unlabeled",),
        subset=False,
        symmetric=False,
    ),
    "qqp": _Task(
        "pairs",
        {"train": None, "dev": None, "test": None},
        _Hub(
            "nyu-mll/glue",
            {"train": "train[:10000]", "dev": "validation[:1000]", "test": "validation[1000:11000]"},
            "qqp",
            ("question1", "question2"),
            "label",
        ),
        gold=_BINARY,
        subset=False,
    ),
    "snli": _Task(
        "pairs",
        {"train": 549367, "dev": 9842, "test": 9824},
        _Hub(
            "stanfordnlp/snli",
            {"train": "train", "dev": "validation", "test": "test"},
            None,
            ("premise", "hypothesis"),
            "label",
        ),
        gold=Field("nli_label", "label", 0, 2),
        subset=False,
        symmetric=False,
    ),
}

_Parts = tuple[tuple[str, str], ...]
_STS: _Parts = (
    *((task, split) for task in STS_TASKS[:5] for split in ("test", "unscored") if split in _TASKS[task].rows),
    *(("stsb", split) for split in ("train", "dev", "test")),
)
_SICKR: _Parts = tuple(("sickr", split) for split in ("train", "trial", "test"))

# As in the Trans-Encoder code (src/data.py), whose pools hold every split, the test pairs too, without gold.
# Its QNLI pool has the first 10,000 GLUE training pairs where this one has the unlabelled GLUE test pairs.
_POOLS: dict[str, _Parts] = {
    "sts": _STS,
    "sickr": _SICKR,
    "sts_sickr": _STS + _SICKR,
    "mrpc": tuple(("mrpc", split) for split in ("train", "dev", "test")),
    "qnli": tuple(("qnli", split) for split in ("unlabeled", "dev", "test")),
    "qqp": tuple(("qqp", split) for split in ("train", "dev", "test")),
}
POOLS = (*_POOLS, *(f"{name}{INDUCTIVE}" for name in _POOLS))


def load_benchmark(task: str, *, split: str = "test", data: str | os.PathLike[str] | None = None) -> Dataset:
    """Load one split of a benchmark task.

    Args:
        task: One of `STS_TASKS`, `PAIR_TASKS`, or "snli".
        split: "test", or another split of the task: "train", "dev" ("trial" for sickr), "unscored" (sts15,
            sts16) or "unlabeled" (qnli). The Hub has sickr only undivided, as "all".
        data: A folder with ``sts/`` and ``pairs/``; ``$TRANSENC_DATA`` and the Hub are tried after it.

    Returns:
        A dataset with sentence1, sentence2 and, by task, score (float64: 0 to 5, SICK-R 1 to 5) or label
        (int64: 1 = paraphrase, duplicate, answered; SNLI 0 = entailment, 1 = neutral, 2 = contradiction), and
        the string column subset where the file has one. Unscored splits have no gold column.

    Raises:
        InputError: No such task or split, the split is in none of the three places, or a file is damaged.

    Example:
        >>> load_benchmark("stsb", split="dev").num_rows  # doctest: +SKIP
        1500
    """
    splits = _find_task(task).rows
    if split not in splits:
        raise InputError(f"{task}: expected a split out of {', '.join(splits)}, found {split!r}")
    folders = find_folders(data)
    path = _find_file(task, split, folders)
    dataset = _load_file(task, split, path) if path else _load_from_hub(task, split, folders)
    published = splits[split]
    if published is not None and dataset.num_rows != published:
        logger.warning("%s.%s has %d rows, published are %d", task, split, dataset.num_rows, published)
    return dataset


def load_pool(name: str, *, data: str | os.PathLike[str] | None = None, snli: bool = False) -> Dataset:
    """Load a pool of unlabelled pairs: splits of the benchmarks, without gold, each pair once.

    The plain pools are those of the Trans-Encoder code, test pairs included (transductive). An inductive pool
    starts from all other splits, STS12 train too, and keeps a pair only if neither sentence (stripped,
    case-folded) occurs in the task's test split: for the STS pools, in any of the seven.

    Args:
        name: One of `POOLS`: "sts", "sickr", "sts_sickr", "mrpc", "qnli", "qqp", or one of these with
            "-inductive" after it.
        data: As for `load_benchmark`.
        snli: Add the SNLI pairs (dev and test, and train where it can be had).

    Returns:
        A dataset with sentence1 and sentence2, in the order of the splits.

    Raises:
        InputError: No such pool, or a split that it needs is in none of the three places.

    Example:
        >>> load_pool("sts_sickr").num_rows  # doctest: +SKIP
        37075
    """
    if name not in POOLS:
        raise InputError(f"{name}: expected a pool out of {', '.join(POOLS)}")
    base = name.removesuffix(INDUCTIVE)
    tests = _list_tests(base) if name != base else ()
    parts = _POOLS[base]
    if tests:
        added: _Parts = (("sts12", "train"),) if base.startswith("sts") else ()
        parts = tuple(part for part in added + parts if part not in tests)
    folders = find_folders(data)
    parts = tuple(dict.fromkeys(_replace_part(part, folders) for part in parts))
    pairs = [pair for part in parts for pair in _iterate_part(*part, data, folders)]
    if snli:
        for split in ("dev", "test", "train"):
            pairs.extend(_iterate_part("snli", split, data, folders, optional=split == "train"))
    seen = {
        fold_sentence(sentence)
        for task, split in tests
        for pair in _iterate_pairs(load_benchmark(task, split=split, data=data))
        for sentence in pair
    }
    kept = [pair for pair in dict.fromkeys(pairs) if not any(fold_sentence(s) in seen for s in pair)]
    if not kept:
        raise InputError(f"{name}: no pair is left after leaving out test sentences; use another pool")
    return make_dataset({column: [pair[i] for pair in kept] for i, column in enumerate(SENTENCES)})


def is_symmetric(name: str) -> bool:
    """Say whether the order of a pair is without meaning in a task or pool (not so in QNLI and SNLI).

    Raises:
        InputError: No such task or pool.

    Example:
        >>> is_symmetric("stsb"), is_symmetric("qnli-inductive")
        (True, False)
    """
    return all(
        _find_task(task).symmetric
        for task in {task for task, _ in _POOLS.get(name.removesuffix(INDUCTIVE), ((name, ""),))}
    )


def find_folders(data: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the folders that may hold benchmarks: `data`, then ``$TRANSENC_DATA``, where these are given.

    Raises:
        InputError: One of them is no folder.

    Example:
        >>> find_folders("data/sample")  # doctest: +SKIP
        [PosixPath('data/sample')]
    """
    folders = []
    for name, value in (("data", data), (f"${DATA_VARIABLE}", os.environ.get(DATA_VARIABLE))):
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                found = f"no such folder {os.fspath(value)!r}"
                raise InputError(f"{name}: {found}; name the one with sts/, pairs/ and retrieval/")
            folders.append(folder)
    return folders


# ---- the splits of a pool


def _list_tests(pool: str) -> _Parts:
    return tuple((task, "test") for task in ((pool,) if pool in PAIR_TASKS else STS_TASKS))


def _replace_part(part: tuple[str, str], folders: Sequence[Path]) -> tuple[str, str]:
    """Return the undivided SICK of the Hub, the union of its splits, where no file of SICK is at hand."""
    files = (_find_file("sickr", split, folders) for split in _TASKS["sickr"].rows)
    return ("sickr", "all") if part[0] == "sickr" and not any(files) else part


def _iterate_part(
    task: str,
    split: str,
    data: str | os.PathLike[str] | None,
    folders: Sequence[Path],
    *,
    optional: bool = False,
) -> Iterator[tuple[str, str]]:
    local = _find_file(task, split, folders)
    known = _TASKS[task]
    if local is None and split not in known.hub.splits and split in known.unscored:
        missing = f"{task}.{split}: {known.rows[split]} pairs are missing from the pool"
        logger.warning("%s; no local file, and the Hub copy %s lacks them", missing, known.hub.dataset)
        return
    try:
        dataset = load_benchmark(task, split=split, data=data)
    except InputError as error:
        if not optional or local is not None:
            raise
        logger.warning("%s.%s: %s pairs are left out: %s", task, split, known.rows[split], error)
        return
    yield from _iterate_pairs(dataset)


def _iterate_pairs(dataset: Dataset) -> Iterator[tuple[str, str]]:
    return zip(*(dataset[column][:] for column in SENTENCES), strict=True)


# ---- finding and reading a split


def _find_task(task: str) -> _Task:
    if task not in _TASKS:
        raise InputError(f"{task}: expected a task out of {', '.join(_TASKS)}")
    return _TASKS[task]


def _find_file(task: str, split: str, folders: Sequence[Path]) -> Path | None:
    paths = (folder / _TASKS[task].folder / f"{task}.{split}.tsv" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _load_file(task: str, split: str, path: Path) -> Dataset:
    known = _TASKS[task]
    fields = {column: Field(column, "sentence") for column in SENTENCES}
    if split not in known.unscored:
        fields[known.gold.kind] = known.gold
    if known.subset:
        fields["subset"] = Field("subset", "text")
    return read_table(path, fields)


def _load_from_hub(task: str, split: str, folders: Sequence[Path]) -> Dataset:
    known = _TASKS[task]
    hub = known.hub
    relative = f"{known.folder}/{task}.{split}.tsv"
    places = ", ".join(str(folder) for folder in folders) or "no folder given"
    tried = f"{task}.{split}: no file {relative} in the `data` folder (--data) or ${DATA_VARIABLE} ({places}), and "
    if split not in hub.splits:
        raise InputError(f"{tried}the Hub copy {hub.dataset!r} has no such split; get the file")
    try:
        dataset = load_hub_dataset(hub.dataset, config=hub.config, split=hub.splits[split])
    except InputError as error:
        raise InputError(f"{tried}{error}") from error
    fields = {out: Field(name, "sentence") for out, name in zip(SENTENCES, hub.sentences, strict=True)}
    gold = known.gold
    if split not in known.unscored:
        fields[gold.kind] = Field(hub.gold, gold.kind, gold.low, gold.high)
    if task == "snli":
        # -1 marks the pairs on which the annotators did not agree; the published counts are without them.
        dataset = dataset.filter(lambda label: label >= 0, input_columns=hub.gold)
    table = read_table(dataset, fields)
    if task == "qnli" and "label" in fields:
        table = make_dataset({**{c: table[c][:] for c in SENTENCES}, "label": [1 - x for x in table["label"]]})
    return table
