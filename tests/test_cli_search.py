"""`index` and `search`: the engine's results on stdout, one clear line and an exit code for every mistake."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transenc.cli import main
from transenc.search.engine import SemanticSearch

DOCUMENTS = [
    {"_id": "d0", "title": "Pets", "text": "the small cat sees the dog today", "topic": "animals", "year": 2019},
    {"_id": "d1", "text": "the old farmer sells the bread again", "topic": "food", "year": 2020},
    {"_id": "d2", "text": "a bird sings in the garden", "topic": "animals", "year": 2021},
    {"_id": "d3", "text": "the baker buys a \x1b[31mred\x1b[0m apple", "topic": "food", "year": 2022},
]
QUERY = "the dog follows the cat"
SAMPLE = str(Path(__file__).parents[1] / "data" / "sample")


def write_documents(path: Path, rows: list[dict[str, Any]] = DOCUMENTS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_bi: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli-search")
    corpus = write_documents(folder / "docs.jsonl")
    assert main(["index", "build", str(folder / "idx"), "--model", str(tiny_bi), "--corpus", corpus, "--hybrid"]) == 0
    return folder / "idx"


@pytest.fixture
def index(built: Path, tmp_path: Path) -> str:
    """A copy to change."""
    shutil.copytree(built, tmp_path / "idx")
    return str(tmp_path / "idx")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def call_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# ---- index


def test_build_says_what_it_holds(capsys: pytest.CaptureFixture[str], built: Path, tiny_bi: Path) -> None:
    info = call_json(capsys, "index", "info", str(built))
    assert {key: info[key] for key in ("documents", "passages", "generation", "kind", "recall@10")} == {
        "documents": 4,
        "passages": 4,
        "generation": 1,
        "kind": "exact",
        "recall@10": None,  # too few documents to measure
    }
    assert info["encoder"]["name"] == str(tiny_bi.resolve())
    assert info["bytes"] == sum(p.stat().st_size for p in (built / "gen-000001").rglob("*") if p.is_file())
    _, text, _ = call(capsys, "index", "info", str(built))
    assert "documents        4\n" in text


def test_add_delete_and_compact(capsys: pytest.CaptureFixture[str], index: str, tmp_path: Path) -> None:
    more = write_documents(
        tmp_path / "more.jsonl", [{"_id": "d4", "text": "a horse", "topic": "animals", "year": 2023}]
    )
    assert call_json(capsys, "index", "add", index, "--corpus", more)["documents"] == 5
    code, _, error = call(capsys, "index", "add", index, "--corpus", more)
    assert code == 2
    assert "more.jsonl:1" in error and "'d4'" in error and "upsert" in error
    assert call_json(capsys, "index", "add", index, "--corpus", more, "--upsert")["documents"] == 5
    assert call_json(capsys, "index", "delete", index, "--id", "d4", "d0")["documents"] == 3
    found = call_json(capsys, "search", index, QUERY)["hits"]
    assert sorted(hit["id"] for hit in found) == ["d1", "d2", "d3"]
    info = call_json(capsys, "index", "compact", index)
    assert (info["documents"], info["passages"], info["deleted"]) == (3, 3, 0)
    code, text, _ = call(capsys, "index", "verify", index)
    assert code == 0
    assert "3 documents and 3 vectors" in text
    code, _, error = call(capsys, "index", "delete", index, "--id", "d0")
    assert (code, "'d0'" in error) == (2, True)


def test_verify_knows_an_index_from_a_run(capsys: pytest.CaptureFixture[str], index: str, tmp_path: Path) -> None:
    assert call_json(capsys, "verify", index)["documents"] == 4
    target = Path(index, "gen-000001", "docs.sqlite")
    data = bytearray(target.read_bytes())
    data[100] ^= 1
    target.write_bytes(data)
    for verb in (["verify", index], ["index", "verify", index], ["search", index, QUERY]):
        code, out, error = call(capsys, *verb)
        assert (code, out) == (3, "")
        assert "docs.sqlite" in error
    assert call(capsys, "verify", str(tmp_path / "none"))[0] == 2


def test_a_repeated_id_and_an_empty_document_are_refused_before_the_model_runs(
    capsys: pytest.CaptureFixture[str], index: str, tiny_bi: Path, tmp_path: Path
) -> None:
    twice = write_documents(tmp_path / "twice.jsonl", [*DOCUMENTS, DOCUMENTS[1]])
    code, _, error = call(capsys, "index", "build", index, "--model", str(tiny_bi), "--corpus", twice)
    assert code == 2
    assert "twice.jsonl:5" in error and "'d1'" in error
    empty = write_documents(tmp_path / "empty.jsonl", [*DOCUMENTS, {"_id": "e", "text": " "}])
    code, _, error = call(capsys, "index", "build", index, "--model", str(tiny_bi), "--corpus", empty)
    assert code == 2
    assert "empty.jsonl:5" in error and "'e'" in error
    assert call_json(capsys, "index", "info", index)["generation"] == 1  # nothing has changed
    given = ["--model", str(tiny_bi), "--corpus", empty, "--skip-empty"]
    assert call_json(capsys, "index", "build", index, *given)["documents"] == 4


# ---- search


def test_search_gives_what_the_engine_gives(capsys: pytest.CaptureFixture[str], built: Path, tiny_cross: Path) -> None:
    found = call_json(capsys, "search", str(built), QUERY, "--rerank", str(tiny_cross), "--top-k", "3")["hits"]
    with SemanticSearch.open(built, cross_encoder=tiny_cross) as engine:
        hits = engine.search(QUERY, top_k=3)
    keys = ("id", "score", "rank", "retrieved_rank", "retrieval_score", "rerank_score", "text", "title")
    assert [[hit[key] for key in keys] for hit in found] == [[getattr(hit, key) for key in keys] for hit in hits]
    [first] = call_json(capsys, "search", str(built), QUERY, "--where", "year=2019")["hits"]
    assert (first["metadata"], first["passage"]) == ({"topic": "animals", "year": 2019}, [0, 32])


def test_filters_and_hybrid(capsys: pytest.CaptureFixture[str], built: Path) -> None:
    where = ["--where", "topic=animals", "--where", "year>=2020"]
    assert [hit["id"] for hit in call_json(capsys, "search", str(built), QUERY, *where)["hits"]] == ["d2"]
    hits = call_json(capsys, "search", str(built), "garden", "--hybrid", "--top-k", "4")["hits"]
    assert hits[0]["score"] <= 2 / 61
    assert "d2" in [hit["id"] for hit in hits]


def test_queries_come_from_stdin(
    capsys: pytest.CaptureFixture[str], built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUERY}\ngarden\r\n"))
    code, out, _ = call(capsys, "search", str(built), "--top-k", "1", "--json")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["query"] for answer in answers] == [QUERY, "garden"]
    alone = call_json(capsys, "search", str(built), QUERY, "--top-k", "1")["hits"]
    assert answers[0]["hits"] == alone
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUERY}\n\n"))
    code, out, error = call(capsys, "search", str(built), "--json")
    assert (code, len(out.splitlines())) == (2, 1)
    assert "stdin:2: empty query" in error


def test_people_see_no_control_characters(capsys: pytest.CaptureFixture[str], built: Path) -> None:
    code, out, _ = call(capsys, "search", str(built), "the baker buys a red apple", "--top-k", "1")
    assert code == 0
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out
    assert out.startswith("  1  ")


def test_nothing_found_is_said(capsys: pytest.CaptureFixture[str], built: Path) -> None:
    code, out, _ = call(capsys, "search", str(built), QUERY, "--where", "year>3000")
    assert (code, out) == (0, "no document matches\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no/such/index", "cat"], 2, "no/such/index"),
        (["INDEX", " "], 2, "empty query"),
        (["INDEX", "cat", "--top-k", "0"], 2, "top_k"),
        (["INDEX", "cat", "--candidates", "-1"], 2, "candidates"),
        (["INDEX", "cat", "--where", "topic"], 2, "topic"),
        (["INDEX", "cat", "--where", "color=red"], 2, "'topic', 'year'"),
        (["INDEX", "cat", "--where", "year=soon"], 2, "soon"),
        (["INDEX", "cat", "--rerank", "no/such/model"], 2, "no/such/model"),
        (["INDEX", "cat", "--model", "no/such/model"], 2, "--model"),
    ],
)
def test_mistakes_get_one_line(
    capsys: pytest.CaptureFixture[str], built: Path, arguments: list[str], code: int, message: str
) -> None:
    given = [str(built) if each == "INDEX" else each for each in arguments]
    found, out, error = call(capsys, "search", *given)
    assert (found, out) == (code, "")
    assert error.startswith("transenc: ")
    assert error.count("\n") == 1
    assert message in error


def test_another_encoder_is_refused(capsys: pytest.CaptureFixture[str], built: Path, tmp_path: Path) -> None:
    from tiny import build_bi, build_plain

    other = build_bi(tmp_path / "other", build_plain(tmp_path / "plain", seed=5))
    code, _, error = call(capsys, "search", str(built), QUERY, "--model", str(other))
    assert code == 3
    assert "another encoder" in error


def test_an_index_over_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_bi: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    corpus = write_documents(tmp_path / "docs.jsonl")
    code, _, error = call(capsys, "index", "build", str(tmp_path / "mine"), "--model", str(tiny_bi), "--corpus", corpus)
    assert code == 2
    assert "mine" in error
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_output_that_nobody_reads_to_the_end_is_no_error(built: Path) -> None:
    command = [sys.executable, "-m", "transenc", "search", str(built), "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdin and program.stdout and program.stderr
        program.stdout.close()
        program.stdin.write(b"cat\n" * 3)
        program.stdin.close()
        errors = program.stderr.read().decode()
    assert (program.returncode, "transenc:" in errors, "BrokenPipe" in errors) == (0, False, False)


def test_json_is_ascii_where_the_terminal_is(built: Path) -> None:
    command = [sys.executable, "-m", "transenc", "search", str(built), "--json", "--top-k", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([*command, "caf\N{LATIN SMALL LETTER E WITH ACUTE}"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.decode("ascii"))["hits"]) == 1
    piped = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
    assert (piped.returncode, piped.stdout) == (0, b"")


def test_the_query_may_stand_after_the_flags(capsys: pytest.CaptureFixture[str], built: Path) -> None:
    first = call_json(capsys, "search", str(built), QUERY, "--top-k", "2")
    assert call_json(capsys, "search", str(built), "--top-k", "2", QUERY) == first
    assert call_json(capsys, "search", "--top-k", "2", str(built), QUERY) == first
    with pytest.raises(SystemExit) as raised:
        main(["search", str(built), "--top-k", "2", QUERY, "another"])
    assert raised.value.code == 2


def test_rerank_may_be_given_several_times(
    capsys: pytest.CaptureFixture[str], built: Path, tiny_bi: Path, tiny_cross: Path
) -> None:
    flags = ["--rerank", str(tiny_bi), "--rerank", str(tiny_cross)]
    found = call_json(capsys, "search", str(built), QUERY, *flags)["hits"]
    with SemanticSearch.open(built, cross_encoder=[tiny_bi, tiny_cross]) as engine:
        assert [[hit["id"], hit["rerank_score"]] for hit in found] == [
            [hit.id, hit.rerank_score] for hit in engine.search(QUERY)
        ]


@pytest.mark.parametrize("verb", [["index", "build"], ["index", "add"], ["search"], ["serve"]])
def test_an_index_takes_one_bi_encoder(verb: list[str], capsys: pytest.CaptureFixture[str], tiny_bi: Path) -> None:
    corpus = ["--corpus", "docs.jsonl"] if verb[0] == "index" else []
    with pytest.raises(SystemExit) as raised:
        main([*verb, "idx", *corpus, "--model", str(tiny_bi), "--model", "another"])
    assert raised.value.code == 2
    assert "distil them into one student (transenc distill --student)" in capsys.readouterr().err


def test_retrieval_is_evaluated_with_several_rerankers(
    capsys: pytest.CaptureFixture[str], tiny_bi: Path, tiny_cross: Path
) -> None:
    sample = ["evaluate", "--suite", "retrieval", "--task", "sample", "--data", SAMPLE, "--precision", "float32"]
    several = ["--rerank", str(tiny_bi), "--rerank", str(tiny_cross)]
    found = call_json(capsys, *sample, "--model", str(tiny_bi), *several)["sample"]
    assert set(found) >= {"retrieved", "reranked", "best_weight"}
    code, _, error = call(capsys, *sample, "--model", str(tiny_bi), "--model", str(tiny_bi))
    assert (code, "takes 1 --model (a bi-encoder), found 2; several may rerank" in error) == (2, True)


def test_a_weight_without_a_cross_encoder_is_refused(capsys: pytest.CaptureFixture[str], built: Path) -> None:
    code, out, error = call(capsys, "search", str(built), QUERY, "--rerank-weight", "0.5")
    assert (code, out) == (2, "")
    assert "--rerank" in error
