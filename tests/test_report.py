"""The report: what it says of a run, that HTML, Markdown and facts agree, and that nobody's text becomes markup."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scenario import CONFIG, snapshot
from scipy.stats import rankdata, spearmanr
from tiny import count_common, make_pairs
from transformers import AutoTokenizer

from transenc import durable
from transenc.cli import main
from transenc.cli.report import write_run_report
from transenc.config import Backbone
from transenc.distillation import distill
from transenc.errors import InputError, StateError
from transenc.report.blocks import duration, show_text
from transenc.report.comparison import build_comparison
from transenc.report.document import build_document
from transenc.report.facts import read_facts
from transenc.report.rendering import render_html, render_markdown
from transenc.report.statistics import interval
from transenc.report.times import sum_stages
from transenc.report.verdict import judge
from transenc.report.writing import write_report

SCRIPT = "<script>alert('pair')</script> the cat sees | the dog"
TURNED = "the \u202edog sees `the` [cat](http://x.example) ~~now~~"
LONG = "<b>the cat</b> " + "sees the dog " * 400
DEV = [*make_pairs(17, seed=1), *make_pairs(12)[9:]]  # three of them are training pairs
GOLD = [count_common(pair) for pair in DEV]
LETTERS = "[...document.querySelectorAll('svg text')]"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def run(tiny_bi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one cycle with a dev set, on pairs of which some are hostile; not to be changed."""
    pairs = make_pairs(12)
    pairs[0], pairs[1], pairs[2] = (SCRIPT, TURNED), (TURNED, LONG), (LONG, SCRIPT)
    folder = tmp_path_factory.mktemp("report") / "run"
    distill(
        [Backbone(str(tiny_bi))],
        Dataset.from_dict({"sentence1": [a for a, _ in pairs], "sentence2": [b for _, b in pairs]}),
        output_dir=folder,
        config=CONFIG,
        dev=Dataset.from_dict({"sentence1": [a for a, _ in DEV], "sentence2": [b for _, b in DEV], "score": GOLD}),
        device="cpu",
        inputs={"model": ["</table><script>alert('input')</script>"]},
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_benchmarks(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRANSENC_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def facts(run: Path) -> dict[str, Any]:
    return read_facts(run)


@pytest.fixture(scope="module")
def page(facts: dict[str, Any]) -> str:
    return render_html(build_document(facts))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run", symlinks=True))


# ---- the facts


def test_the_dev_predictions_are_kept_and_give_the_scores(run: Path, facts: dict[str, Any]) -> None:
    kept = json.loads((run / "stages/c01-50-evaluate/dev.json").read_text())
    gold = GOLD
    assert kept["gold"] == gold
    paths = ("20-cross-train/last-0", "20-cross-train/model-0", "40-bi-train/last-0", "40-bi-train/model-0")
    assert sorted(kept["scores"]) == [f"stages/c01-{path}" for path in paths]
    by_path = {model["path"]: model for model in facts["models"]}
    for path, scores in kept["scores"].items():
        assert by_path[path]["score"] == pytest.approx(100 * spearmanr(scores, gold)[0], abs=0.006)
        assert by_path[path]["low"] < by_path[path]["score"] < by_path[path]["high"]


def test_differences_are_paired_with_the_backbones_own_start(run: Path, facts: dict[str, Any]) -> None:
    start = json.loads((run / "stages/c00-50-evaluate/dev.json").read_text())
    after = json.loads((run / "stages/c01-50-evaluate/dev.json").read_text())
    gold = np.array(start["gold"])
    before, now = (
        np.array(kept["scores"][f"stages/{path}/model-0"])
        for kept, path in ((start, "c00-00-start"), (after, "c01-40-bi-train"))
    )
    rng, changes = np.random.default_rng(3), []
    for _ in range(300):
        rows = rng.integers(0, len(gold), len(gold))
        changes.append(100 * (spearmanr(now[rows], gold[rows])[0] - spearmanr(before[rows], gold[rows])[0]))
    change = next(m for m in facts["models"] if m["path"] == "stages/c01-40-bi-train/model-0")["change"]
    width = np.ptp(np.percentile(changes, [2.5, 97.5]))
    assert change["difference"] == pytest.approx(
        100 * (spearmanr(now, gold)[0] - spearmanr(before, gold)[0]), abs=0.011
    )
    assert [change["low"], change["high"]] == pytest.approx(np.percentile(changes, [2.5, 97.5]), abs=0.25 * width)
    assert facts["models"][0]["change"] == {"difference": None, "low": None, "high": None}  # the start itself


def test_labels_are_described_by_stage_and_column(run: Path, facts: dict[str, Any]) -> None:
    table = Dataset.from_parquet(str(run / "stages/c01-30-cross-label/labels.parquet"), keep_in_memory=True)
    entry = next(e for e in facts["labels"] if (e["stage"], e["column"]) == ("c01-30-cross-label", "score"))
    values = np.array(table["score"][:])
    assert entry["mean"] == pytest.approx(values.mean(), abs=6e-4)
    assert entry["median"] == pytest.approx(np.median(values), abs=6e-4)
    assert entry["histogram"] == np.histogram(values, bins=20, range=(0, 1))[0].tolist()
    assert facts["agreement"] == [
        {"stage": "c01-30-cross-label", "first": "bi-0", "second": "cross-0",
         "spearman": pytest.approx(100 * spearmanr(table["bi-0"][:], table["cross-0"][:])[0], abs=0.006)}
    ]  # fmt: skip


def test_the_pairs_that_moved_are_sorted_by_their_ranks(run: Path, facts: dict[str, Any]) -> None:
    first, last = (
        np.array(
            Dataset.from_parquet(str(run / f"stages/c01-{s}-label/labels.parquet"), keep_in_memory=True)["score"][:]
        )
        for s in ("10-bi", "30-cross")
    )
    moved = 100 * (rankdata(last) - rankdata(first)) / len(first)
    expected = sorted((abs(move) for move in moved if move), reverse=True)
    assert [abs(item["moved"]) for item in facts["moved"]] == pytest.approx(expected, abs=0.06)
    by_labels = {(round(float(a), 3), round(float(b), 3)): move for a, b, move in zip(first, last, moved, strict=True)}
    for item in facts["moved"]:
        assert item["moved"] == pytest.approx(by_labels[item["first"], item["last"]], abs=0.06)


def test_tokens_are_those_that_the_stages_read(run: Path, facts: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "stages/c00-00-start/model-0")
    table = Dataset.from_parquet(str(run / "stages/c01-10-bi-label/labels.parquet"), keep_in_memory=True)
    pairs = list(zip(table["sentence1"][:], table["sentence2"][:], strict=True))
    texts = {text for pair in pairs for text in pair}

    def count(*items: Any, limit: int) -> int:
        return sum(len(tokenizer(*item, truncation=True, max_length=limit)["input_ids"]) for item in items)

    expected = {
        "c01-10-bi-label": count(*((text,) for text in texts), limit=64),
        "c01-20-cross-train": 2 * count(*pairs, limit=40),  # both orders, one epoch
        "c01-30-cross-label": 2 * count(*pairs, limit=64),
        "c01-40-bi-train": 2 * count(*((text,) for pair in pairs for text in pair), limit=24),  # two epochs
    }
    assert {s["stage"]: s["tokens"] for s in facts["stages"] if s["tokens"] is not None} == expected
    assert facts["tokens"] == sum(expected.values())


def test_the_overlap_with_the_dev_set_is_counted(facts: dict[str, Any]) -> None:
    pairs, dev = ({tuple(sorted(pair)) for pair in found} for found in (make_pairs(12)[3:], DEV))
    sentences = [{text for pair in found for text in pair} for found in (pairs, dev)]
    expected = {"sentences": len(sentences[0] & sentences[1]), "pairs": len(pairs & dev)}
    assert expected["pairs"] == 3
    assert facts["overlap"] == [{"set": "dev", "rows": 20, **expected}]


# ---- the sentence


def candidate(cycle: int, score: float | None) -> dict[str, Any]:
    return {"cycle": cycle, "backbone": 0, "form": "bi", "path": f"{cycle}", "score": score, "last": False,
            "reason": "all are equal"}  # fmt: skip


NOTHING = {"stability": 90.0}
HISTORY = [{"agreement": None}, {"agreement": 95.5}]


@pytest.mark.parametrize(
    ("scores", "chosen", "spread", "outcome", "said"),
    [
        ([70.0, 71.0], 1, 0.4, "helped", "It helped: dev Spearman 70.00 to 71.00 (+1.00, 95 % interval"),
        ([70.0, 71.0], 1, 4.0, "unsure", "that includes 0."),
        ([70.0, 69.0], 1, 0.4, "hurt", "It hurt: dev Spearman 70.00 to 69.00 (-1.00"),
        ([70.0, 69.0], 0, 0.4, "start", "It did not help: the start, at dev Spearman 70.00, stays the best bi-encoder"),
        ([70.0, 69.0], 0, 4.0, "start", "That difference is within chance."),
        (
            [70.0, 71.0],
            1,
            None,
            "helped",
            "It seems to have helped: dev Spearman 70.00 to 71.00 (+1.00 over 9 dev pairs).",
        ),
        ([None, None], 1, None, "undefined", "undefined (all are equal)."),
    ],
)
def test_the_verdict(scores: list[float | None], chosen: int, spread: float | None, outcome: str, said: str) -> None:
    models = [candidate(cycle, score) for cycle, score in enumerate(scores)]
    resampled = {}
    if spread is not None:
        noise = np.linspace(-spread, spread, 100)
        resampled = {"0": np.full(101, scores[0]), "1": np.array([scores[1], *(scores[1] + noise)])}  # type: ignore
    best = {"bi": {"cycle": chosen, "path": f"{chosen}"}, "cross": {"cycle": 1}, "criterion": "dev"}
    found = judge(models, best, resampled, NOTHING, dev={"rows": 9}, history=HISTORY)
    assert found["outcome"] == outcome
    assert said in found["sentence"]


def test_the_verdict_without_gold_and_without_an_end() -> None:
    best = {"bi": {"cycle": 1, "path": "1"}, "cross": {"cycle": 1}, "criterion": "last"}
    found = judge([candidate(0, None), candidate(1, None)], best, {}, NOTHING, dev=None, history=HISTORY)
    assert found["outcome"] == "unlabelled"
    assert found["sentence"] == (
        "Whether it helped is unknown: no gold score was there to tell; the last cycle was taken. What is known: both "
        "forms order the pairs alike to a Spearman of 95.50, and the last labels follow the first to 90.00."
    )
    assert judge([], None, {}, NOTHING, dev=None, history=[])["outcome"] == "unfinished"


def test_an_undefined_resample_plays_no_part() -> None:
    assert interval(np.array([1.0, math.nan, 1.0, 1.0])) == {"difference": 1.0, "low": 1.0, "high": 1.0}
    assert interval(np.array([math.nan, 1.0])) == {"difference": None, "low": None, "high": None}
    assert duration(3723.4).text == "1:02:03.4"


# ---- both forms of the document


class Tables(HTMLParser):
    """The cells of every table of a page, and every tag and attribute in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._cell: list[str] | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None


def read_markdown(text: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and all(line.startswith("| ") for line in lines):
            rows = [re.split(r"(?<!\\) \| ", f" {line[1:-1]} ".replace("|  |", "|   |")) for line in lines]
            cells = [[unescape_markdown(cell.strip()) for cell in row] for row in rows]
            tables.append([cells[0], *cells[2:]])
    return tables


def unescape_markdown(text: str) -> str:
    bold = re.fullmatch(r"\*\*(.*)\*\*", text)
    plain = re.sub(r"\\([\\`*_\[\]|~#!])", r"\1", bold[1] if bold else text)
    return plain.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def list_numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from list_numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from list_numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def read_number(text: str) -> float:
    hours, minutes, seconds = text.split(":") if ":" in text else ("0", "0", text)
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds.replace(",", ""))


def test_page_and_markdown_hold_the_same_tables(facts: dict[str, Any], page: str) -> None:
    tables = Tables(page).tables
    assert read_markdown(render_markdown(build_document(facts))) == tables
    assert len(tables) >= 8


def test_every_number_comes_from_the_facts(facts: dict[str, Any], page: str) -> None:
    known = {round(value, 4) for value in list_numbers(facts)}
    numbers = re.findall(r'<t[dh][^>]* class="number">(?:<b>)?([^<]*)', page)
    shown = [part for cell in numbers for part in cell.split(" to ") if part != "-"]
    assert len(shown) > 100
    assert [text for text in shown if round(read_number(text), 4) not in known] == []
    sentence = facts["verdict"]["sentence"]
    assert {float(n) for n in re.findall(r"[-+]?\d+\.\d+", sentence)} <= {
        facts["verdict"][name] for name in ("before", "after", "difference", "low", "high")
    }
    assert f">{sentence}</p>" in page


def test_the_page_stands_alone(page: str) -> None:
    tags = Tables(page).tags
    assert {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "base", "form", "image"} == set()
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"<bdi>.*?</bdi>", "", page))
    policy = {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}
    assert ("meta", policy) in tags
    addresses = [value for _, attributes in tags for name, value in attributes.items() if name == "href"]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address} <= set(ids)
    assert all(address and address.startswith("#") for address in addresses)


def test_the_page_can_be_read_without_seeing_it(page: str) -> None:
    tags = Tables(page).tags
    names = [tag for tag, _ in tags]
    assert names.count("h1") == 1
    assert names.count("h2") == names.count("section")
    assert names.count("caption") + names.count("summary") == names.count("table")
    labels = [attributes.get("aria-label") for tag, attributes in tags if tag == "svg"]
    assert all(labels)
    assert len(set(labels)) == len(labels)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")


def test_figures_take_the_colours_of_the_page(page: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) >= 5
    colours = {colour for svg in svgs for colour in re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)}
    assert colours <= {"none", *(f"var(--{name})" for name in ("bi", "cross", "ink", "soft", "rule"))}


def test_nobodys_text_becomes_markup(facts: dict[str, Any], page: str) -> None:
    assert "alert('pair')" not in page  # every quote is escaped, too
    assert "&lt;script&gt;alert(&#x27;pair&#x27;)" in page
    assert "\u202e" not in page
    assert "[U+202E]" in page
    assert "<b>the cat" not in page
    cut = [cell for cell in re.findall(r"<bdi>(.*?)</bdi>", page) if cell.endswith("…")]
    assert cut
    assert max(map(len, cut)) < 400
    text = render_markdown(build_document(facts))
    assert "<" not in text
    assert "\u202e" not in text
    assert r"\[cat\](http://x.example) \~\~now\~\~" in text


def test_invisible_characters_are_shown() -> None:
    assert show_text("a\tb\x00c\u2066d\u200be") == "a[U+0009]b[U+0000]c[U+2066]d[U+200B]e"
    assert show_text("\U0001f469\u200d\U0001f52c") == "\U0001f469\u200d\U0001f52c"  # one emoji, joined
    assert show_text("abcdef", length=4) == "abc…"
    assert show_text(os.fsdecode(b"a\xff")) == "a[U+DCFF]"  # the name of a file that is not UTF-8


def test_names_with_mathematics_line_breaks_and_turned_text_are_shown(copied: Path, run: Path, tmp_path: Path) -> None:
    odd = copied.rename(tmp_path / "m$x_{$\n\u202ed | e")
    identity = durable.read_json(odd / "run.json")
    identity["inputs"] = {"model": ["a\nb\u202e$c$"]}
    durable.write_json(odd / "run.json", identity)
    for runs, name in (([odd], "report"), ([run, odd], "comparison")):
        write_report(runs, output=tmp_path)
        page, text = ((tmp_path / f"{name}{suffix}").read_text("utf-8") for suffix in (".html", ".md"))
        assert "\u202e" not in page + text
        assert read_markdown(text) == Tables(page).tables
        assert "m$x_{$[U+000A][U+202E]d | e" in page
        assert "a[U+000A]b[U+202E]$c$" in page


def test_the_same_run_gives_the_same_bytes(run: Path, page: str, facts: dict[str, Any]) -> None:
    again = read_facts(run)
    assert again == facts
    assert render_html(build_document(again)) == page


# ---- runs that lack something


def test_a_run_without_dev_predictions_has_scores_but_no_intervals(copied: Path) -> None:
    for path in copied.glob("stages/*/dev.json"):
        path.unlink()
    facts = read_facts(copied)
    assert "it kept no dev predictions" in facts["verdict"]["sentence"]
    assert [model["low"] for model in facts["models"]] == [None] * 5
    assert all(model["change"]["difference"] is not None for model in facts["models"][1:])
    assert "95 %" not in Tables(render_html(build_document(facts))).tables[0][0]


def test_an_unfinished_run_renders(copied: Path) -> None:
    (copied / "best.json").unlink()
    for stage in sorted((copied / "stages").glob("c01-[345]*")):
        shutil.rmtree(stage)
    (copied / "journal.jsonl").unlink()
    result = write_report([copied])
    assert result["facts"]["verdict"]["outcome"] == "unfinished"
    assert result["facts"]["moved"] == []
    assert {stage["seconds"] for stage in result["facts"]["stages"]} == {None}
    assert result["facts"]["seconds"] is None
    assert result["facts"]["tokens"] > 0
    assert Path(result["html"]).read_text().startswith("<!doctype html>")


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="different runs"):
        write_report([run, run])


def test_a_file_where_the_folder_should_be_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="file: expected a folder to write to"):
        write_report([run], output=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("error", [OSError("no such device"), ValueError("no such thing"), StateError("damaged")])
def test_a_report_that_fails_does_not_fail_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("transenc.report.writing.write_report", fail)
    write_run_report(run, data=None)
    assert f"no report was written: {error}" in caplog.text


def test_sums_leave_out_what_was_taken_over_and_admit_what_is_unknown() -> None:
    def stage(name: str, seconds: float | None, tokens: int | None, *, taken_over: bool = False) -> dict[str, Any]:
        return {"stage": name, "seconds": seconds, "tokens": tokens, "taken_over": taken_over}

    start, taken = stage("c00-00-start", 1.0, None), stage("c01-10-bi-label", None, 700, taken_over=True)
    own = [start, taken, stage("c01-20-cross-train", 2.5, 30), stage("c01-50-evaluate", 4.0, None)]
    assert (sum_stages(own, "seconds"), sum_stages(own, "tokens")) == (7.5, 30)
    mined = [*own, stage("c00-20-mine", 8.0, None)]
    assert (sum_stages(mined, "seconds"), sum_stages(mined, "tokens")) == (15.5, None)
    assert sum_stages([start, stage("c01-20-cross-train", None, 30)], "seconds") is None


def test_the_row_of_the_sums_says_what_is_in_it(facts: dict[str, Any]) -> None:
    def last(stages: list[dict[str, Any]]) -> str:
        text = render_markdown(build_document({**facts, "stages": stages}))
        return next(table for table in read_markdown(text) if table[0][:2] == ["stage", "time"])[-1][0]

    assert last(facts["stages"]) == "all"
    assert last([{**stage, "taken_over": True} for stage in facts["stages"]]) == "all but those taken over"


# ---- the command


def test_report_writes_beside_the_run_or_where_told(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(copied), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["html"] == str(copied / "report.html")
    assert found["facts"] == read_facts(copied)
    assert main(["report", str(copied), "--output", str(tmp_path / "new/folder")]) == 0
    assert (tmp_path / "new/folder/report.md").read_bytes() == (copied / "report.md").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((-1.5, -2.0, -1.0), "is that of run (2) (72.00)."),
        ((-1.5, -3.0, 0.25), ", not clearly above run (1) (+1.50, 95 % interval -0.25 to +3.00)."),
        ((0.0, 0.0, 0.0), ", not clearly above run (1) (+0.00, 95 % interval +0.00 to +0.00)."),
        ((None, None, None), "; how sure that is against run (1) is unknown, for want of dev predictions."),
    ],
)
def test_the_highest_of_several_runs_is_not_called_better_than_it_is(
    facts: dict[str, Any], change: tuple[float | None, ...], said: str
) -> None:
    runs = [
        {**facts, "models": [{**m, "score": score} for m in facts["models"] if m["chosen"]]} for score in (70.5, 72.0)
    ]
    found, none = (dict(zip(("difference", "low", "high"), c, strict=True)) for c in (change, (None,) * 3))
    lead = build_comparison(runs, [none, none], [found, none]).lead
    assert lead.startswith("The highest dev score of a bi-encoder is that of run (2) (72.00)")
    assert lead.endswith(said)


def test_several_runs_are_compared(run: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "stages/c01-50-evaluate/dev.json"
    kept = durable.read_json(path)
    kept["scores"] = {name: kept["gold"] for name in kept["scores"]}  # perfect
    durable.write_json(path, kept)
    metrics = durable.read_json(path.with_name("metrics.json"))
    metrics["bi"] = [{**model, "score": 100.0} for model in metrics["bi"]]
    durable.write_json(path.with_name("metrics.json"), metrics)
    best = durable.read_json(copied / "best.json")
    best["best"]["bi"] = {"backbone": 0, "path": "stages/c01-40-bi-train/model-0", "score": 100.0, "cycle": 1}
    durable.write_json(copied / "best.json", best)
    assert main(["report", str(run), str(copied), "--output", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    own = next(model for model in found["facts"]["runs"][0]["models"] if model["chosen"] and model["form"] == "bi")
    first, second = found["facts"]["differences"]
    assert first["difference"] == 0
    assert second["difference"] == pytest.approx(100 - own["score"], abs=0.02)
    assert found["facts"]["highest"] == 1
    assert found["facts"]["to_highest"][0]["difference"] == -second["difference"]
    assert (tmp_path / "comparison.md").is_file()
    tables = Tables((tmp_path / "comparison.html").read_text()).tables
    assert read_markdown((tmp_path / "comparison.md").read_text()) == tables
    assert [row[0] for row in tables[0][1:]] == ["run (1)", "run (2)"]


def test_distill_leaves_a_report_and_a_second_start_touches_nothing(
    tiny_bi: Path,
    tiny_pairs_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    command = ["distill", "--model", str(tiny_bi), "--pairs", str(tiny_pairs_file), "--output", str(output),
               "--max-pairs", "8", "--cycles", "1", "--bi-epochs", "1", "--device", "cpu"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert main(command) == 0
        assert not (output / "report.html").exists()
        assert main(["report", str(output)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "no report was written: a report needs the extra `report`: pip install 'transenc[report]'" in said
    assert said[-1] == "transenc: a report needs the extra `report`: pip install 'transenc[report]'"
    assert main(command) == 0
    assert "no gold score was there" in (output / "report.md").read_text()
    before = snapshot(output)
    assert main(command) == 0
    assert snapshot(output) == before


# ---- model cards


def test_the_cards_say_what_made_the_models(run: Path) -> None:
    for stage in ("c01-20-cross-train", "c01-40-bi-train"):
        card = (run / f"stages/{stage}/model-0/README.md").read_text()
        assert "| cycle | 1 |" in card
        assert "| pairs | 12 |" in card
        assert "| seed | 5 |" in card
        assert "trained without labels" in card
        assert "learning_rate 0.0005" in card
        assert "<script>" not in card  # from the name of the backbone
        assert "widget:" not in card
        assert not any(pair[0] in card for pair in make_pairs(12))
        assert len(card) < 10_000


# ---- in a browser


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_it_fits_a_phone_in_light_and_in_dark(page: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 360, "height": 800})
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("dialog", lambda dialog: problems.append(dialog.message))
        tab.goto((tmp_path / "report.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == 360
        assert (
            tab.evaluate(f"{LETTERS}.map(letter => letter.getBoundingClientRect().height).sort((a, b) => a - b)[0]")
            >= 9
        )
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            paper = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            ink = tab.evaluate(f"getComputedStyle({LETTERS}[0]).fill")
            assert (brightness(paper) > brightness(ink)) is (scheme == "light")
        browser.close()
    assert problems == []


def brightness(colour: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3])


def test_settings_of_the_run_are_shown(run: Path, page: str) -> None:
    cells = {row[0]: row[1:] for table in Tables(page).tables for row in table[1:] if row}
    config = dataclasses.asdict(CONFIG)
    assert cells["learning_rate"][:2] == [str(config["bi"]["learning_rate"]), str(config["cross"]["learning_rate"])]
    assert cells["pairs sha256"] == [durable.read_json(run / "run.json")["pairs"]["sha256"]]
