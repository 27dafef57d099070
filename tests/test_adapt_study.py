"""The study of adapting to a corpus: end to end on a tiny one, and the page says what the figures say."""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from test_readme import ROOT, find_complaint
from tiny import WORDS

from transenc.cli import build_parser
from transenc.durable import read_json
from transenc.errors import InputError
from transenc.labeling import read_labels
from transenc.retrieval_sets import RetrievalSet
from transenc.search.reranking import Hit

SCRIPTS = Path(__file__).parents[1] / "scripts"
FAST = ("--pairs", "40", "--documents", "20", "--epochs", "0.5", "--dev-queries", "4", "--depth", "6")


@pytest.fixture(autouse=True)
def script_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 documents of a title and 4 sentences; a query is half of a sentence of each."""
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("corpus") / "tiny"
    (folder / "qrels").mkdir(parents=True)
    documents, queries, judged = [], [], []
    for number in range(24):
        sentences = [
            " ".join(("the", *(rng.choice(WORDS[kind]) for kind in ("adjective", "noun", "verb", "noun", "place"))))
            for _ in range(4)
        ]
        text = " ".join(f"{sentence}." for sentence in sentences)
        title = " ".join(sentences[0].split()[1:3])
        documents.append({"_id": f"d{number}", "title": title, "text": text})
        queries.append({"_id": f"q{number}", "text": "who " + " ".join(sentences[1].split()[2:5])})
        judged.append(f"q{number}\td{number}\t1\n")
    for name, rows in (("corpus", documents), ("queries", queries)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        folder.joinpath(f"{name}.jsonl").write_text(text, encoding="utf-8")
    for split, rows in (("train", judged[:8]), ("test", judged[8:14])):
        text = "query-id\tcorpus-id\tscore\n" + "".join(rows)
        folder.joinpath("qrels", f"{split}.tsv").write_text(text, encoding="utf-8")
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    import adapt_study

    monkeypatch.setattr(sys, "argv", ["adapt_study.py", *map(str, words)])
    assert adapt_study.main() == 0


def test_the_study_runs_and_resumes(
    corpus: Path, tiny_bi: Path, tiny_cross: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bm25s", reason="hybrid retrieval needs bm25s (extra: hybrid)")
    work, figures = tmp_path / "work", tmp_path / "adapt-tiny.json"
    words = ["run", "--task", corpus, "--work", work, "--model", tiny_bi, "--json", figures, *FAST]
    words += ["--cross-start", tiny_cross, "--cross-title", "a tiny cross-encoder"]
    words += ["--arm", "warm", "--arm", "fresh:warm=false,cross.learning_rate=1e-4"]
    call(monkeypatch, *words)
    result = read_json(figures)

    # every system in every order, on the queries that chose and on the others
    names = [f"adapted:{arm}" for arm in ("warm", "fresh")] + ["baseline"]
    dev = [(row["system"], row["cross"], row["order"]) for row in result["dev"]["rows"]]
    orders = ("fused", "alone")
    assert dev == [("bi", None, None), *(("bi", cross, order) for cross in [*names, "teacher"] for order in orders)]
    fused = {row["cross"]: row["ndcg@10"] for row in result["dev"]["rows"] if row["order"] == "fused"}
    assert result["chosen"] == ("warm" if fused["adapted:warm"] >= fused["adapted:fresh"] else "fresh")
    assert result["dev"]["queries"] == 4 and result["test"]["queries"] == 6
    found = {(row["system"], row["cross"], row["order"]) for row in result["test"]["rows"]}
    orders = ("fused", "alone", "weighted")
    adapted = f"adapted:{result['chosen']}"
    assert found == {
        *((system, None, None) for system in ("bi", "student", "hybrid")),
        *((system, adapted, order) for system in ("bi", "student", "hybrid") for order in orders),
        *(("bi", cross, order) for cross in ("baseline", "teacher") for order in orders),
    }
    rows = {(row["system"], row["cross"], row["order"]): row for row in result["test"]["rows"]}
    for order in orders:
        adapted_row, teacher = rows["bi", adapted, order], rows["bi", "teacher", order]
        gap = adapted_row["ndcg@10"] - teacher["ndcg@10"]
        assert adapted_row["to teacher"]["difference"] == pytest.approx(gap)
        assert "to teacher" not in teacher and "queries" not in adapted_row
    given = ("--model MODEL", "--cross-start CROSS", "--depth 6", "--unit sentence", "--epochs 0.5", "--arm warm")
    assert all(words in result["command"] for words in given) and "--no-" not in result["command"]
    assert sum(part["pairs"] for part in result["mined"]["sources"].values()) == result["mined"]["pairs"]
    assert not str(figures.read_text(encoding="utf-8")).count(str(tmp_path))  # no path of this machine

    # no query has been trained on
    queries = {json.loads(line)["text"] for line in corpus.joinpath("queries.jsonl").read_text("utf-8").splitlines()}
    labels = read_labels(work / "warm" / "stages" / "c01-10-bi-label")
    assert len(labels) == result["mined"]["pairs"]
    assert queries.isdisjoint(labels["sentence1"]) and queries.isdisjoint(labels["sentence2"])

    # again: nothing is done twice; other settings are refused
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    call(monkeypatch, *words)
    after = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if before.get(path) != time} == {}
    assert read_json(figures) == result
    with pytest.raises(SystemExit, match="of other settings"):
        call(monkeypatch, *words, "--seed", "7")
    with pytest.raises(SystemExit, match=r"of other settings \(index\)"):
        call(monkeypatch, *words, "--index", tmp_path / "another")


def test_what_is_wrong_is_one_line(
    corpus: Path, tiny_bi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import adapt_study

    def complain(task: Path, *words: str) -> str:
        given = ["run", "--task", task, "--work", tmp_path / "work", "--model", tiny_bi, *words]
        monkeypatch.setattr(sys, "argv", ["adapt_study.py", *map(str, given)])
        assert adapt_study.main() == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "no folder of that path" in complain(tmp_path / "nowhere")
    found = complain(corpus, "--dev-queries", "0", "--arm", "a", "--arm", "b")
    assert "expected queries of a split dev or train" in found and "arms a, b; give one --arm" in found


def test_only_a_missing_split_is_passed_over(corpus: Path, tmp_path: Path) -> None:
    import adapt_study

    copy = Path(shutil.copytree(corpus, tmp_path / "copy"))
    found = adapt_study.load_dev(str(copy), 3, 0)
    assert found is not None and len(found.queries) == 3  # of train: there is no dev
    copy.joinpath("qrels", "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\tmuch\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"dev\.tsv:2"):
        adapt_study.load_dev(str(copy), 3, 0)
    for name in ("dev", "train"):
        copy.joinpath("qrels", f"{name}.tsv").unlink()
    assert adapt_study.load_dev(str(copy), 3, 0) is None


def test_an_arm_is_read_from_its_flag() -> None:
    import adapt_study

    assert adapt_study.parse_arm("plain") == adapt_study.Arm("plain")
    flag = "mine:warm=false,keep_label=0.2,cross.epochs=2,cross.learning_rate=2e-5"
    changes = {"keep_label": 0.2, "cross": {"epochs": 2, "learning_rate": "2e-5"}}
    assert adapt_study.parse_arm(flag) == adapt_study.Arm(flag, warm=False, changes=changes)
    assert adapt_study.parse_arm(flag).name == "mine"
    for wrong in ("a:cross.rate=1", "a:warm=2", "a:cross.epochs=0"):
        with pytest.raises(argparse.ArgumentTypeError):
            adapt_study.parse_arm(wrong)


def test_the_difference_is_that_of_the_means() -> None:
    import adapt_study

    loaded = RetrievalSet("a set", [], {"q1": "", "q2": ""}, {"q1": {"a": 1}, "q2": {"b": 1}})
    first, second = ([Hit(key, 0, 1, 1, 0) for key in keys] for keys in ("ab", "ba"))
    found = adapt_study.compare(*(adapt_study.judge(hits, loaded) for hits in ([first, second], [second, second])))
    gain = 100 * (1 - 1 / math.log2(3))  # of the first query alone
    assert found == {"difference": pytest.approx(gain / 2), "low": 0.0, "high": pytest.approx(gain)}


def make_result(task: str) -> dict[str, Any]:
    figures = {"ndcg@10": 64.5, "recall@100": 92.25, "mrr@10": 60.0, "map": 59.0}
    gain = {"difference": 2.125, "low": 0.5, "high": 3.75}
    fused = {**figures, "system": "bi", "cross": "adapted:fresh", "order": "fused", "weight": None, "best_weight": 0.4}
    fused |= {"ndcg@10": 66.625, "to bi": gain}
    arm = {"name": "fresh", "flag": "fresh:cross.epochs=2", "warm": False, "changes": {"cross": {"epochs": 2}}}
    mined = {"title": {"pairs": 1250, "cosine": 0.5}, "random": {"pairs": 6750, "cosine": 0.125}}
    return {
        "task": task,
        "command": "python adapt",
        "model": "a model",
        "cross_start": "another cross-encoder",
        "documents": 5183,
        "machine": {"cpu": "a processor", "threads": 1, "precision": "float32"},
        "seed": 3,
        "depth": 50,
        "unit": "sentence",
        "mined": {"pairs": 8000, "documents": 2000, "seconds": 90, "sources": mined},
        "arms": [{**arm, "agreement": 95.25, "seconds": 600}],
        "chosen": "fresh",
        "dev": {"queries": 60, "rows": [{**figures, "system": "bi", "cross": None, "order": None}, fused]},
        "test": {"queries": 300, "rows": [{**fused, "system": "hybrid", "order": "weighted", "weight": 0.4}]},
    }


def test_the_page_says_what_the_json_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import adapt_results

    monkeypatch.setattr(adapt_results, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    page = tmp_path / "adapt.md"
    page.write_text("before\n\n<!-- begin figures -->\nold\n<!-- end figures -->\n\nafter\n", encoding="utf-8")
    for task in ("scifact", "cranfield"):
        tmp_path.joinpath("results", f"adapt-{task}.json").write_text(json.dumps(make_result(task)), encoding="utf-8")
    call(monkeypatch, "write")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.index("### scifact") < text.index("### cranfield")
    assert "5,183 documents, 2,000 of them mined in 1.5 min: 8,000 pairs, 1,250 title (mean cosine 0.50), 6,750" in text
    assert "| fresh **(chosen)** | the bi-encoder, with a new head | cross.epochs=2 | 95.2 | 10.0 min |" in text
    assert "| bi-encoder | 64.50 | 92.25 | 60.00 |  |  |" in text
    fused = "bi-encoder, fused with the adapted cross-encoder (fresh)"
    assert f"| {fused} | 66.62 | 92.25 | 60.00 | +2.12 (+0.50 to +3.75) | 0.4 |" in text
    weighted = "bi-encoder and BM25, with the adapted cross-encoder (fresh) at weight 0.4"
    assert f"| {weighted} | 66.62 | 92.25 | 60.00 | +2.12 (+0.50 to +3.75) |  |" in text
    call(monkeypatch, "write")
    assert page.read_text(encoding="utf-8") == text


def test_the_page_says_what_adapting_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import adapt_results

    monkeypatch.setattr(adapt_results, "DOCS", tmp_path)
    result = make_result("scifact")
    result["arms"][0]["warm"] = True
    fused = result["dev"]["rows"][1]
    alone = {**fused, "order": "alone", "ndcg@10": 67.5, "weight": 1.0}
    teacher = {**alone, "cross": "teacher", "ndcg@10": 67.25}
    result["test"]["rows"] = [fused, alone, {**alone, "order": "weighted", "weight": 0.4}, teacher]
    target, gap = adapt_results.describe_outcome(result)
    assert target == (
        "The fused order, which is the default, meets the target of +2.0 over the bi-encoder alone: +2.12; at the "
        "weight 0.4, which 60 development queries chose, it is +2.12."
    )
    assert gap.endswith("each at its own weight): the order alone +0.25.")
    alone["to teacher"] = {"difference": 0.25, "low": -1.0, "high": 1.5}
    alone["to bi"] = fused["to bi"] = {**fused["to bi"], "difference": 1.75}
    assert adapt_results.describe_outcome(result)[1].endswith("the order alone +0.25 (-1.00 to +1.50).")
    assert "misses the target of +2.0 over the bi-encoder alone: +1.75;" in adapt_results.describe_outcome(result)[0]

    # before: the study's own row, or the one of the search study, of the same model read in the same way
    result["test"]["rows"].append({**alone, "cross": "baseline", "ndcg@10": 61.5})
    assert "the order alone: 61.50 before it was adapted, 67.50 after (+6.00)." in "".join(
        adapt_results.describe_outcome(result)
    )
    result["test"]["rows"].pop()
    searched = {"bi fused": {"ndcg@10": 66.0}, "bi reranked": {"ndcg@10": 62.0}, "bi by weight": {"0.5": 68, "0.9": 64}}
    (tmp_path / "results").mkdir()
    described = {"depth": 50, "unit": "sentence", "scifact": searched}
    tmp_path.joinpath("results", "search-quality.json").write_text(json.dumps(described), encoding="utf-8")
    assert len(adapt_results.describe_outcome(result)) == 2  # another cross-encoder
    result["cross_start"] = adapt_results.SEARCHED
    before = adapt_results.describe_outcome(result)[0]
    assert "the order alone: 62.00 before it was adapted, 67.50 after (+5.50). Before, the weight" in before
    assert "gave 68.00 (at 0.5;" in before
    result["unit"] = "passage"
    assert len(adapt_results.describe_outcome(result)) == 2

    result["dev"] = {"queries": 0, "rows": []}
    assert "No development queries: the weight 0.4 was given." in adapt_results.describe(result)
    assert "the weight 0.4, which was given, it is" in adapt_results.describe(result)


def test_the_published_page_is_made_from_the_published_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import adapt_results

    published = adapt_results.DOCS
    before = published.joinpath("adapt.md").read_text(encoding="utf-8")
    tmp_path.joinpath("adapt.md").write_text(before, encoding="utf-8")
    tmp_path.joinpath("results").symlink_to(published / "results")
    monkeypatch.setattr(adapt_results, "DOCS", tmp_path)
    call(monkeypatch, "write")
    assert tmp_path.joinpath("adapt.md").read_text(encoding="utf-8") == before


def test_the_commands_of_the_page_are_ones_the_program_takes() -> None:
    text = ROOT.joinpath("docs", "adapt.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    transenc ")]
    assert {words[1] for words in commands} == {"mine", "distill", "index", "search", "evaluate"}
    assert [complaint for words in commands if (complaint := find_complaint(build_parser(), words[1:]))] == []
