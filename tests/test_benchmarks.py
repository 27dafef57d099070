"""The benchmarks and pools: on a small folder made here, on a stand-in for the Hub, and on the real files."""

from __future__ import annotations

import doctest
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from transenc import benchmarks
from transenc.benchmarks import PAIR_TASKS, POOLS, STS_TASKS, is_symmetric, load_benchmark, load_pool
from transenc.errors import InputError

FILES = os.environ.get("TRANSENC_DATA")
needs_real_files = pytest.mark.skipif(not FILES, reason="needs the benchmark files: set TRANSENC_DATA to their folder")

# Two rows a split: the first is the split's own, the second repeats a pair of STS12 test in another case.
OWN = {
    "sts": {
        "sts12": ("train", "test"),
        "sts13": ("test",),
        "sts14": ("test",),
        "sts15": ("test", "unscored"),
        "sts16": ("test", "unscored"),
        "stsb": ("train", "dev", "test"),
        "sickr": ("train", "trial", "test"),
    },
    "pairs": {
        "mrpc": ("train", "dev", "test"),
        "qnli": ("unlabeled", "dev", "test"),
        "qqp": ("train", "dev", "test"),
        "snli": ("dev", "test"),
    },
}
TEST_PAIR = ("Sts12.test a.", "sts12.test b.")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSENC_DATA", raising=False)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dataset_id: str, **_: object) -> Dataset:
        raise InputError(f"Hub dataset {dataset_id!r}: the Hub cannot be reached")

    monkeypatch.setattr(benchmarks, "load_hub_dataset", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, tasks in OWN.items():
        (tmp_path / kind).mkdir()
        for task, splits in tasks.items():
            for split in splits:
                write_split(tmp_path / kind / f"{task}.{split}.tsv", task, split)
    return tmp_path


def write_split(path: Path, task: str, split: str) -> None:
    own = (f"{task}.{split} a.", f"{task}.{split} b.")
    first, second = TEST_PAIR
    borrowed = (f" {first.upper()}", f"{task}.{split} c.") if split != "test" else (second, f"{task} c.")
    if split in ("unscored", "unlabeled"):
        gold = None
    else:
        gold = ("score", "4.5") if path.parent.name == "sts" else ("label", "1")
    if task == "snli":
        gold = ("nli_label", "2")
    columns = [*([gold[0]] if gold else []), "sentence1", "sentence2"]
    end = path.parent.name == "sts" and task != "sickr"
    rows = [[*([gold[1]] if gold else []), *pair, *(["part"] if end else [])] for pair in (own, borrowed)]
    lines = [columns + (["subset"] if end else []), *rows]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def pairs_of(dataset: Dataset) -> list[tuple[str, str]]:
    return list(zip(dataset["sentence1"][:], dataset["sentence2"][:], strict=True))


# ---- the logic, on the small folder


def test_columns_of_each_kind_of_split(folder: Path) -> None:
    assert load_benchmark("sts12", data=folder)[0] == {
        "sentence1": "sts12.test a.",
        "sentence2": "sts12.test b.",
        "score": 4.5,
        "subset": "part",
    }
    assert load_benchmark("sickr", split="trial", data=folder).column_names == ["sentence1", "sentence2", "score"]
    assert load_benchmark("sts15", split="unscored", data=folder).column_names == [
        "sentence1",
        "sentence2",
        "subset",
    ]
    assert load_benchmark("qnli", split="unlabeled", data=folder).column_names == ["sentence1", "sentence2"]
    assert load_benchmark("mrpc", data=folder)["label"][:] == [1, 1]
    assert load_benchmark("snli", split="dev", data=folder)["label"][:] == [2, 2]
    assert load_benchmark("mrpc", data=folder).features["label"].dtype == "int64"


def test_pools_hold_every_pair_of_their_splits_once(folder: Path) -> None:
    # Own and borrowed pair of each split: 10 splits of STS, 3 of SICK, 3 of each pair task.
    assert load_pool("sts", data=folder).num_rows == 20
    assert load_pool("sickr", data=folder).num_rows == 6
    pool = load_pool("sts_sickr", data=folder)
    assert pool.num_rows == 26
    assert pool.column_names == ["sentence1", "sentence2"]
    assert pairs_of(pool)[0] == ("sts12.test a.", "sts12.test b.")
    assert ("sts12.train a.", "sts12.train b.") not in pairs_of(pool)
    for task in PAIR_TASKS:
        assert load_pool(task, data=folder).num_rows == 6


def test_pairs_that_join_to_the_same_text_are_two_pairs(folder: Path) -> None:
    (folder / "sts" / "sickr.train.tsv").write_text(
        "score\tsentence1\tsentence2\n1\tab\tc\n2\ta\tbc\n3\tab\tc\n", encoding="utf-8"
    )
    assert pairs_of(load_pool("sickr", data=folder))[:2] == [("ab", "c"), ("a", "bc")]
    assert load_pool("sickr", data=folder).num_rows == 2 + 4


def test_inductive_pools_leave_out_pairs_with_a_test_sentence(folder: Path) -> None:
    splits = ["sts12.train", "sts15.unscored", "sts16.unscored", "stsb.train", "stsb.dev", "sickr.train"]
    expected = [(f"{split} a.", f"{split} b.") for split in [*splits, "sickr.trial"]]
    assert pairs_of(load_pool("sts_sickr-inductive", data=folder)) == expected
    assert pairs_of(load_pool("sts-inductive", data=folder)) == expected[:5]
    assert pairs_of(load_pool("sickr-inductive", data=folder)) == expected[5:]
    # The pair tasks leave out the sentences of their own test split only, so the borrowed pairs stay.
    assert pairs_of(load_pool("qnli-inductive", data=folder)) == [
        ("qnli.unlabeled a.", "qnli.unlabeled b."),
        (" STS12.TEST A.", "qnli.unlabeled c."),
        ("qnli.dev a.", "qnli.dev b."),
        (" STS12.TEST A.", "qnli.dev c."),
    ]


def test_snli_pairs_are_added_and_filtered_too(folder: Path, no_hub: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pool = pairs_of(load_pool("sickr", data=folder, snli=True))
    assert len(pool) == 6 + 4
    assert pool[6] == ("snli.dev a.", "snli.dev b.")
    assert any(text.startswith("snli.train: 549367 pairs are left out: ") for text in caplog.messages)
    inductive = pairs_of(load_pool("sickr-inductive", data=folder, snli=True))
    assert inductive[2:] == [("snli.dev a.", "snli.dev b."), ("snli.test a.", "snli.test b.")]


def test_row_counts_other_than_published_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_benchmark("sts12", data=folder)
        load_benchmark("qqp", data=folder)
    assert caplog.messages == ["sts12.test has 2 rows, published are 3108"]


def test_data_folder_comes_before_the_environment(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "sts").mkdir()
    (other / "sts" / "sts13.test.tsv").write_text("score\tsentence1\tsentence2\tsubset\n1\tx\ty\tz\n")
    monkeypatch.setenv("TRANSENC_DATA", str(other))
    assert load_benchmark("sts13").num_rows == 1
    assert load_benchmark("sts13", data=folder).num_rows == 2
    monkeypatch.setenv("TRANSENC_DATA", str(folder))
    assert load_benchmark("sts13", data=other).num_rows == 1
    assert load_benchmark("sts14", data=other).num_rows == 2


# ---- refusals


def test_unknown_names_are_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(InputError, match=r"sts17: expected a task out of sts12, .*, snli"):
        load_benchmark("sts17", data=folder)
    with pytest.raises(InputError, match="sts13: expected a split out of test, found 'train'"):
        load_benchmark("sts13", split="train", data=folder)
    with pytest.raises(InputError, match=r"all: expected a pool out of sts, sickr, .*, qqp-inductive"):
        load_pool("all", data=folder)
    with pytest.raises(InputError, match="all: expected a task out of"):
        is_symmetric("all")


def test_missing_everywhere_names_all_three_places(tmp_path: Path, no_hub: None) -> None:
    with pytest.raises(InputError) as caught:
        load_benchmark("stsb", data=tmp_path)
    assert str(caught.value) == (
        f"stsb.test: no file sts/stsb.test.tsv in the `data` folder (--data) or $TRANSENC_DATA ({tmp_path}), "
        "and Hub dataset 'mteb/stsbenchmark-sts': the Hub cannot be reached"
    )


def test_missing_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^data: no such folder '.*nowhere'"):
        load_benchmark("stsb", data=tmp_path / "nowhere")
    monkeypatch.setenv("TRANSENC_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"^\$TRANSENC_DATA: no such folder"):
        load_pool("sts")


def test_damaged_file_is_refused_with_its_row(folder: Path) -> None:
    path = folder / "sts" / "stsb.dev.tsv"
    path.write_text(path.read_text().replace("4.5", "5.5"))
    with pytest.raises(InputError, match=f"^{path}:2: expected a score in .0, 5. in 'score', found '5.5'"):
        load_benchmark("stsb", split="dev", data=folder)


def test_symmetry() -> None:
    assert [name for name in (*STS_TASKS, *PAIR_TASKS, "snli") if not is_symmetric(name)] == ["qnli", "snli"]
    assert [name for name in POOLS if not is_symmetric(name)] == ["qnli", "qnli-inductive"]


# ---- the mapping of the Hub's columns, on a stand-in


def fake_hub(answers: dict[tuple[str, str | None, str], Dataset]) -> Callable[..., Dataset]:
    def load(dataset_id: str, *, config: str | None = None, split: str = "train") -> Dataset:
        return answers[dataset_id, config, split]

    return load


def test_hub_splits_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Features({"question": Value("string"), "sentence": Value("string"), "label": ClassLabel(2)})
    qnli = Dataset.from_dict({"question": ["q?", "r?"], "sentence": ["s", "t"], "label": [0, 1]}, labels)
    hidden = Dataset.from_dict({"question": ["q?"], "sentence": ["s"], "label": [-1]})
    stsb = Dataset.from_dict({"genre": ["g"], "score": [2.4], "sentence1": ["a"], "sentence2": ["b"]})
    snli = Dataset.from_dict({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [-1, 2]})
    qqp = Dataset.from_dict({"question1": ["a"], "question2": ["b"], "label": [1]})
    answers = {
        ("nyu-mll/glue", "qnli", "validation[1000:]"): qnli,
        ("nyu-mll/glue", "qnli", "test"): hidden,
        ("nyu-mll/glue", "qqp", "train[:10000]"): qqp,
        ("mteb/stsbenchmark-sts", None, "validation"): stsb,
        ("stanfordnlp/snli", None, "train"): snli,
    }
    monkeypatch.setattr(benchmarks, "load_hub_dataset", fake_hub(answers))
    # GLUE has 0 = entailment; here 1 is the positive label of every pair task.
    assert load_benchmark("qnli")[:] == {"sentence1": ["q?", "r?"], "sentence2": ["s", "t"], "label": [1, 0]}
    assert load_benchmark("qnli", split="unlabeled")[:] == {"sentence1": ["q?"], "sentence2": ["s"]}
    assert load_benchmark("qqp", split="train")[:] == {"sentence1": ["a"], "sentence2": ["b"], "label": [1]}
    assert load_benchmark("stsb", split="dev")[:] == {"sentence1": ["a"], "sentence2": ["b"], "score": [2.4]}
    assert load_benchmark("snli", split="train")[:] == {"sentence1": ["b"], "sentence2": ["d"], "label": [2]}


def test_hub_copy_of_sick_serves_the_pool_but_not_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    sick = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [1.0, 5.0]})
    ids = ("mteb/sickr-sts", "mteb/stsbenchmark-sts", *(f"mteb/{task}-sts" for task in STS_TASKS[:5]))
    monkeypatch.setattr(benchmarks, "load_hub_dataset", fake_hub({(name, None, "test"): sick for name in ids}))
    assert pairs_of(load_pool("sickr")) == [("a", "c"), ("b", "d")]
    for load in (lambda: load_benchmark("sickr"), lambda: load_pool("sickr-inductive")):
        with pytest.raises(InputError, match=r"^sickr.test: .*'mteb/sickr-sts' has no such split; get the file"):
            load()


def test_pool_without_unscored_files_says_how_many_pairs_are_missing(
    folder: Path, no_hub: None, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "sts" / "sts15.unscored.tsv").unlink()
    with caplog.at_level(logging.WARNING):
        assert load_pool("sts", data=folder).num_rows == 18
    assert (
        "sts15.unscored: 5500 pairs are missing from the pool; no local file, and the Hub copy mteb/sts15-sts "
        "lacks them"
    ) in caplog.messages
    with pytest.raises(InputError, match="'mteb/sts15-sts' has no such split"):
        load_benchmark("sts15", split="unscored", data=folder)
    (folder / "sts" / "stsb.dev.tsv").unlink()
    with pytest.raises(InputError, match=r"no file sts/stsb.dev.tsv"):
        load_pool("sts", data=folder)


# ---- the real files


@pytest.fixture
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
    assert caplog.messages == []


@needs_real_files
@pytest.mark.parametrize(
    ("task", "splits"),
    [
        ("sts12", {"train": 2234, "test": 3108}),
        ("sts13", {"test": 1500}),
        ("sts14", {"test": 3750}),
        ("sts15", {"test": 3000, "unscored": 5500}),
        ("sts16", {"test": 1186, "unscored": 7997}),
        ("stsb", {"train": 5749, "dev": 1500, "test": 1379}),
        ("sickr", {"train": 4500, "trial": 500, "test": 4927}),
        ("mrpc", {"train": 3668, "dev": 408, "test": 1725}),
        ("qnli", {"dev": 1000, "test": 4463, "unlabeled": 5463}),
        ("qqp", {"train": 8915, "dev": 1000, "test": 9928}),
        ("snli", {"dev": 9842, "test": 9824}),
    ],
)
def test_real_counts(task: str, splits: dict[str, int], no_warnings: None) -> None:
    assert {split: load_benchmark(task, split=split, data=FILES).num_rows for split in splits} == splits


@needs_real_files
@pytest.mark.parametrize(
    ("task", "subsets"),
    [
        ("sts12", {"MSRpar": 750, "MSRvid": 750, "SMTeuroparl": 459, "OnWN": 750, "SMTnews": 399}),
        ("sts13", {"FNWN": 189, "headlines": 750, "OnWN": 561}),
    ],
)
def test_real_subsets(task: str, subsets: dict[str, int]) -> None:
    names = load_benchmark(task, data=FILES)["subset"][:]
    assert {name: names.count(name) for name in dict.fromkeys(names)} == subsets


@needs_real_files
@pytest.mark.parametrize(
    ("pool", "count"),
    [
        ("sts", 27233),
        ("sickr", 9842),
        ("sts_sickr", 37075),
        ("mrpc", 5801),
        ("qnli", 10926),
        ("qqp", 19843),
        ("sts-inductive", 11115),
        ("sickr-inductive", 78),
        ("sts_sickr-inductive", 11193),
        ("mrpc-inductive", 3792),
        ("qnli-inductive", 2211),
        ("qqp-inductive", 8512),
    ],
)
def test_real_pools(pool: str, count: int, no_warnings: None) -> None:
    pairs = pairs_of(load_pool(pool, data=FILES))
    assert len(pairs) == len(set(pairs)) == count


@needs_real_files
@pytest.mark.parametrize("pool", ["sts", "sickr", "sts_sickr", *PAIR_TASKS])
def test_real_inductive_pools_share_no_sentence_with_the_tests(pool: str) -> None:
    tests = (pool,) if pool in PAIR_TASKS else STS_TASKS
    seen = sentences_of(*(load_benchmark(task, data=FILES) for task in tests))
    assert sentences_of(load_pool(f"{pool}-inductive", data=FILES)) & seen == set()
    assert sentences_of(load_pool(pool, data=FILES)) & seen != set()


def sentences_of(*datasets: Dataset) -> set[str]:
    return {
        sentence.strip().casefold()
        for dataset in datasets
        for column in ("sentence1", "sentence2")
        for sentence in dataset[column][:]
    }


def test_examples_run() -> None:
    result = doctest.testmod(benchmarks)
    assert result.attempted > 0
    assert result.failed == 0
