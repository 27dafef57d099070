"""The command `mine`: what it writes is what `distill` reads, and every mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from transenc.cli import main
from transenc.pairs import read_pairs
from transenc.targets import group_rows


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_pairs: list[tuple[str, str]]) -> Path:
    """A folder with sentences.txt, its two halves, and docs.jsonl."""
    folder = tmp_path_factory.mktemp("mine")
    sentences = list(dict.fromkeys(sentence for pair in tiny_pairs for sentence in pair))
    for name, part in (("sentences", sentences), ("first", sentences[:60]), ("second", sentences[50:])):
        folder.joinpath(f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    documents = [
        {"_id": f"d{i}", "title": sentences[i], "text": " ".join(f"{s}." for s in sentences[4 * i + 20 : 4 * i + 24])}
        for i in range(20)
    ]
    folder.joinpath("docs.jsonl").write_text("".join(f"{json.dumps(d)}\n" for d in documents), encoding="utf-8")
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["mine", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def call_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_the_pairs_are_what_distill_reads(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"pairs{suffix}"
    given = ["--model", tiny_bi, "--sentences", files / "sentences.txt", "--max-pairs", 50, "--bins", 5]
    result = call_json(capsys, *given, "--output", output)
    assert (result["pairs"], result["asymmetric"], result["output"]) == (50, False, str(output))
    assert len(result["bins"]) == 5
    assert sum(row["pairs"] for row in result["bins"]) == sum(result["sources"].values()) == 50
    assert all(row["pairs"] > 0 for row in result["bins"])
    pairs = read_pairs(output)
    assert pairs.num_rows == 50
    known = set(files.joinpath("sentences.txt").read_text(encoding="utf-8").splitlines())
    assert {*pairs["sentence1"], *pairs["sentence2"]} <= known


def test_files_are_pooled_and_sampled_by_the_seed(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / f"{name}.jsonl" for name in ("whole", "halves", "other", "few")]
    whole, halves = [files / "sentences.txt"], [files / "first.txt", files / "second.txt"]
    for given, output, seed in zip((whole, halves, whole), outputs, (7, 7, 8), strict=False):
        call_json(capsys, "--model", tiny_bi, "--sentences", *given, "--output", output, "--seed", seed)
    assert outputs[0].read_bytes() == outputs[1].read_bytes() != outputs[2].read_bytes()
    few = ["--max-sentences", 10, "--neighbours", 3, "--pairs-per-sentence", 50]
    result = call_json(capsys, "--model", tiny_bi, "--sentences", *whole, "--output", outputs[3], *few)
    assert result["pairs"] <= 45
    assert len({s for row in read_pairs(outputs[3]) for s in (row["sentence1"], row["sentence2"])}) <= 10


def test_documents_give_asymmetric_pairs_and_the_text_says_so(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pairs.parquet"
    given = ["--model", tiny_bi, "--corpus", files / "docs.jsonl", "--near-duplicate", 1]
    code, out, err = call(capsys, *given, "--output", output)
    assert code == 0, err
    assert "cosine of the kept pairs" in out.splitlines()[0]
    assert f"40 pairs of a query and a sentence that may answer it in {output}" in out
    assert out.splitlines()[-1] == f"next: transenc distill --pairs {output} --asymmetric ..."
    assert call_json(capsys, *given, "--output", output)["asymmetric"] is True
    mined = Dataset.from_parquet(str(output), cache_dir=str(tmp_path / "cache"))
    assert mined.column_names == ["sentence1", "sentence2", "source", "cosine", "document1", "document2"]
    assert read_pairs(output).num_rows == 40


@pytest.mark.parametrize("given", ["--sentences", "--corpus"])
def test_lists_are_written_as_pairs_of_the_same_list(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path, given: str
) -> None:
    source = files / ("sentences.txt" if given == "--sentences" else "docs.jsonl")
    arguments = ["--model", tiny_bi, given, source, "--near-duplicate", 1]
    outputs = [tmp_path / name for name in ("lists.tsv", "lists.parquet", "lists.jsonl")]
    for flag, output in zip(("--lists", "--lists", "--list-size"), outputs, strict=True):
        result = call_json(capsys, *arguments, flag, 4, "--output", output)
        pairs = read_pairs(output)
        lists = group_rows(pairs)
        asymmetric = given == "--corpus"
        assert result == {"output": str(output), "lists": len(lists), "size": 4, "asymmetric": asymmetric}
        for rows in lists:
            assert len({pairs["sentence1"][rows[0]], *(pairs["sentence2"][row] for row in rows)}) == 5
    assert len({json.dumps(read_pairs(output).to_dict()) for output in outputs}) == 1
    _, out, _ = call(capsys, *arguments, "--lists", 4, "--output", outputs[0])
    assert out.splitlines() == [
        f"{len(lists)} lists of a query and 4 texts, a pair a text, in {outputs[0]}",
        f"next: transenc distill --pairs {outputs[0]}{' --asymmetric' if asymmetric else ''} ...",
    ]


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--output", "pairs.doc"], "pairs.doc: expected a file named .tsv"),
        (["--output", "p.tsv", "--bins", "0"], "bins must be 1 or more, found 0"),
        (["--output", "p.tsv", "--max-pairs", "1"], "max_pairs must be 2 or more, found 1"),
        (["--output", "p.tsv", "--seed", "-1"], "--seed must be 0 or more, found -1"),
        (["--output", "p.tsv", "--skip-empty"], "--skip-empty: only for --corpus"),
        (["--output", "p.jsonl", "--lists", "0"], "--lists must be 2 or more, found 0"),
        (["--output", "p.jsonl", "--list-size", "1"], "list_size must be 0, or 2 or more, found 1"),
        (["--output", "p.jsonl", "--lists", "4", "--list-size", "8"], "--lists 4 and --list-size 8 mean the same"),
        (["--output", "p.jsonl", "--lists", "4", "--list-size", "0"], "--lists 4 and --list-size 0 mean the same"),
        (["--output", "p.jsonl", "--max-sentences", "1"], "max_sentences: expected at least 2, found 1"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    files: Path,
    tiny_bi: Path,
    tmp_path: Path,
    more: list[str],
    found: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "--model", tiny_bi, "--sentences", files / "sentences.txt", *more)
    assert (code, out) == (2, "")
    assert found in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_flags_of_sentences_are_not_for_documents(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_bi: Path, tmp_path: Path
) -> None:
    given = ["--model", tiny_bi, "--corpus", files / "docs.jsonl", "--output", tmp_path / "p.tsv"]
    for flags, name in ((["--lexical"], "--lexical"), (["--max-sentences", 5], "--max-sentences")):
        code, _, err = call(capsys, *given, *flags)
        assert code == 2 and f"{name}: only for --sentences" in err


def test_bad_text_is_refused_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one, tabs, twice, ids = (tmp_path / name for name in ("one.txt", "tabs.txt", "twice.jsonl", "ids.jsonl"))
    ids.write_text('{"_id": "a", "text": "b"}\n{"_id": "b\\tc", "text": "c"}\n', encoding="utf-8")
    one.write_text("It rains.\n\n", encoding="utf-8")
    tabs.write_text("It\train.\nIt snows.\n", encoding="utf-8")
    twice.write_text('{"_id": "a", "text": "b"}\n{"_id": "a", "text": "c"}\n', encoding="utf-8")
    for kind, path, found in (
        ("--sentences", one, f"{one}: expected at least 2 different sentences, found 1"),
        ("--sentences", tabs, "a sentence has a tab or line break, 'It\\train.'; write .jsonl or .parquet"),
        ("--sentences", tmp_path / "no.txt", "no such file"),
        ("--corpus", ids, f"{ids}:2: the id 'b\\tc' has a tab or line break, which {tmp_path / 'p.tsv'} cannot hold"),
        ("--corpus", twice, f"{twice}:2: the id 'a' occurs a second time"),
    ):
        code, out, err = call(capsys, "--model", "no/model", kind, path, "--output", tmp_path / "p.tsv")
        assert (code, out) == (2, "")
        assert found in err.splitlines()[-1]


def test_a_cross_encoder_does_not_mine(
    capsys: pytest.CaptureFixture[str], files: Path, tiny_cross: Path, tmp_path: Path
) -> None:
    given = ["--sentences", files / "sentences.txt", "--output", tmp_path / "p.tsv"]
    code, _, err = call(capsys, "--model", tiny_cross, *given)
    assert code == 2 and "pooling" in err
