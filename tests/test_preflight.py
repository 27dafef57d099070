"""What speaks against a run: each finding on data made for it, none on ordinary data, and where they are told."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scenario import CONFIG, make_dataset
from tiny import make_pairs

from transenc.cli import main
from transenc.config import Backbone
from transenc.distillation import distill
from transenc.durable import read_json
from transenc.encoders import load_bi_encoder
from transenc.errors import InputError, StateError
from transenc.planning import preview_run
from transenc.preflight import Finding, Inspection, inspect_pairs, inspect_sentences, pair_strangers

MANY = make_pairs(6000)
PAIRS = Dataset.from_dict({"sentence1": [a for a, _ in MANY], "sentence2": [b for _, b in MANY]})
LABELS = np.linspace(0.0, 1.0, len(MANY))[np.random.default_rng(0).permutation(len(MANY))]


def follow_words(noise: float) -> np.ndarray:
    """Labels that are the share of words in common, of 0 to 5, and some noise."""
    rng = np.random.default_rng(1)
    shares = [len((set(a.split()) & set(b.split())) - {"the"}) / 5 for a, b in MANY]
    return np.array(shares) * 0.8 + 0.1 + rng.normal(0, noise, len(MANY)).clip(-0.1, 0.1)


ORDINARY = follow_words(0.2)
QUICK = dataclasses.replace(CONFIG, save_steps=100, eval_steps=0)
SOME = range(0, 6000, 7)


def names(inspection: Inspection) -> list[str]:
    return [finding.name for finding in inspection.findings]


def take(count: int) -> Dataset:
    return PAIRS.select(range(count))


# ---- the texts


def test_nothing_is_found_in_ordinary_pairs() -> None:
    inspection = inspect_pairs(PAIRS, {"bi-0": ORDINARY, "bi-1": ORDINARY**2}, strangers=np.full(9, 0.05), plain=True)
    assert inspection.findings == ()
    assert inspection.verdict == "nothing that was measured speaks against the run"
    figures = inspection.figures
    assert (figures["pairs"], figures["repeated"], figures["alike"], figures["one_word"]) == (6000, 0, 0, 0)
    assert figures["labels"]["agreement"] == {"bi-0, bi-1": 1.0}
    assert figures["labels"]["strangers"] == 0.05
    assert 0.8 < figures["labels"]["words"] < 0.95


@pytest.mark.parametrize(("count", "serious"), [(999, True), (1000, False), (4999, False)])
def test_few_pairs(count: int, serious: bool) -> None:
    inspection = inspect_pairs(take(count))
    (finding,) = inspection.findings
    assert (finding.name, finding.serious, finding.figures) == ("few-pairs", serious, {"pairs": count})
    assert f"{count} pairs" in finding.text
    assert inspection.verdict == (
        "the run will probably not help (few-pairs)" if serious else "the run may help; mind few-pairs"
    )


def test_few_sentences() -> None:
    first, second = zip(*[(f"sentence {i}", f"sentence {j}") for i in range(80) for j in range(i)], strict=True)
    few = Dataset.from_dict({"sentence1": first, "sentence2": second})
    (serious, note) = inspect_pairs(few).findings
    assert (serious.name, serious.serious, serious.figures) == ("few-sentences", True, {"sentences": 80})
    assert (note.name, note.serious) == ("few-pairs", False)  # the serious ones stand first


def test_repeated_pairs_count_in_either_order_where_it_means_nothing() -> None:
    first, second = take(1500)["sentence1"][:], take(1500)["sentence2"][:]
    turned = Dataset.from_dict(
        {"sentence1": first + second, "sentence2": second + [f" {text.upper()}" for text in first]}
    )
    found = inspect_pairs(turned).findings
    assert [(f.name, f.serious) for f in found] == [("few-pairs", False), ("repeated-pairs", False)]
    assert found[1].figures == {"repeated": 1500, "pairs": 3000}
    assert names(inspect_pairs(turned, symmetric=False)) == ["few-pairs"]
    thrice = Dataset.from_dict({"sentence1": first * 4, "sentence2": second * 4})
    assert inspect_pairs(thrice).verdict == "the run will probably not help (repeated-pairs)"


def test_pairs_of_twice_the_same_sentence() -> None:
    first, second = PAIRS["sentence1"][:], PAIRS["sentence2"][:]
    some = Dataset.from_dict({"sentence1": first, "sentence2": [*first[:400], *second[400:]]})
    (finding,) = inspect_pairs(some).findings
    assert (finding.name, finding.serious, finding.figures) == ("same-sentence", False, {"alike": 400, "pairs": 6000})
    most = Dataset.from_dict({"sentence1": first, "sentence2": [*first[:4000], *second[4000:]]})
    assert inspect_pairs(most).findings[0].serious
    few = Dataset.from_dict({"sentence1": first, "sentence2": [*first[:300], *second[300:]]})
    assert inspect_pairs(few).findings == ()


def test_single_words() -> None:
    words = Dataset.from_dict(
        {"sentence1": [f"a{i}" for i in range(6000)], "sentence2": [f"b{i}" for i in range(6000)]}
    )
    (finding,) = inspect_pairs(words).findings
    assert (finding.name, finding.figures) == ("one-word", {"one_word": 12000, "sentences": 12000})


def test_sentences_without_spaces_are_no_words() -> None:
    chinese = [f"{who}在{where}{what}" for who in ("一个女人", "那只小猫", "两个孩子") for where in ("公园里", "桥上")
               for what in ("弹吉他", "看着一只鸟")]  # fmt: skip
    texts = [*chinese, "ผู้หญิงกำลังเล่นกีตาร์", "女の人がギターを弾いている。"]
    rows = Dataset.from_dict({"sentence1": texts, "sentence2": texts[1:] + texts[:1]})
    assert "one-word" not in names(inspect_pairs(rows))
    words = Dataset.from_dict({"sentence1": ["猫", "吉他", "internationalisation"], "sentence2": ["狗", "公园", "桥"]})
    assert inspect_pairs(words).figures["one_word"] == 6


def test_what_is_shared_with_dev_and_tests() -> None:
    other = Dataset.from_dict({"sentence1": ["who is it"], "sentence2": [MANY[0][0].upper()]})
    inspection = inspect_pairs(PAIRS, dev=make_dataset(5), tests={"mine.tsv": other, "fresh": other.select([])})
    dev, test = inspection.findings  # make_dataset takes its pairs in the same order
    assert (dev.name, dev.serious, dev.figures["pairs"], dev.figures["of_pairs"]) == ("shared-dev", False, 5, 5)
    assert test.text.startswith("0 of 1 pairs and 1 of 2 sentences of mine.tsv are also trained on, without labels")
    assert inspection.figures["shared"]["fresh"] == {"sentences": 0, "pairs": 0, "of_pairs": 0, "of_sentences": 0}


def test_sentences_are_inspected_before_they_are_mined() -> None:
    few = inspect_sentences(["a cat", "a dog", "A dog "], pairs=6)
    assert [(f.name, f.serious) for f in few.findings] == [("few-pairs", True), ("few-sentences", True)]
    assert few.figures == {"pairs": 6, "sentences": 2, "shared": {}}
    enough = inspect_sentences([f"sentence {i}" for i in range(3000)], pairs=6000, tests={"t": make_dataset(3)})
    assert enough.findings == ()
    test = Dataset.from_dict({"sentence1": ["Sentence 7"], "sentence2": ["another"]})
    assert names(inspect_sentences([f"sentence {i}" for i in range(3000)], pairs=6000, tests={"t": test})) == [
        "shared-test"
    ]


# ---- the labels


@pytest.mark.parametrize(
    ("labels", "strangers", "expected"),
    [
        (0.5 + ORDINARY * 0.1, 0.0, ["alike-labels"]),
        (0.8 + ORDINARY * 0.2, 0.78, []),  # an encoder whose cosines all lie between 0.75 and 1
        (0.8 + ORDINARY * 0.2, 0.0, ["alike-labels", "one-sided-labels"]),
        (ORDINARY * 0.26, 0.0, ["alike-labels", "one-sided-labels"]),
        (np.where(ORDINARY > 0.5, 0.95, ORDINARY), 0.0, ["tied-labels"]),
        (np.where(ORDINARY > 0.5, ORDINARY, -ORDINARY), 0.0, ["tied-labels"]),  # clipped at 0
        (follow_words(0.0001), 0.0, ["only-words"]),
        (LABELS, 0.0, ["no-words"]),
    ],
)
def test_labels_that_teach_little(labels: np.ndarray, strangers: float, expected: list[str]) -> None:
    inspection = inspect_pairs(PAIRS, {"bi-0": labels[::7]}, rows=SOME, strangers=np.array([strangers]))
    assert names(inspection) == expected
    for finding in inspection.findings:
        assert finding.serious
        assert finding.text.startswith("this will probably not help, because ")


@pytest.mark.parametrize(
    ("mean", "plain", "serious"),
    [(0.3, True, None), (0.45, True, False), (0.65, True, True), (0.65, False, None), (0.9, False, True)],
)
def test_a_plain_language_model_is_known_by_unrelated_sentences(mean: float, plain: bool, serious: bool | None) -> None:
    labels = mean + ORDINARY * (1 - mean)
    inspection = inspect_pairs(PAIRS, {"bi-0": labels[::7]}, rows=SOME, strangers=np.full(3, mean), plain=plain)
    found = {finding.name: finding.serious for finding in inspection.findings}
    assert found == ({} if serious is None else {"plain-start": serious})


def test_teachers_that_disagree() -> None:
    backwards = 1 - ORDINARY
    (finding,) = inspect_pairs(
        PAIRS, {"bi-0": ORDINARY, "bi-1": backwards, "overlap": LABELS, "score": ORDINARY}
    ).findings
    assert (finding.name, finding.figures) == ("disagreement", {"teachers": "bi-0, bi-1", "spearman": -1.0})
    assert "the teachers bi-0 and bi-1 disagree (Spearman -1.00)" in finding.text
    silent = inspect_pairs(PAIRS, {"bi-0": ORDINARY, "bi-1": np.full(len(PAIRS), 0.5), "score": ORDINARY})
    assert silent.findings[0].figures["spearman"] is None


def test_a_sample_of_the_pairs_may_be_scored() -> None:
    rows = range(0, 6000, 21)
    inspection = inspect_pairs(PAIRS, {"bi-0": ORDINARY[::21]}, rows=rows)
    assert inspection.findings == ()
    assert (inspection.figures["pairs"], inspection.figures["labels"]["pairs"]) == (6000, 286)
    with pytest.raises(InputError, match=r"^scores of bi-0: expected one a pair, 6000, found 286$"):
        inspect_pairs(PAIRS, {"bi-0": ORDINARY[::21]})
    with pytest.raises(StateError, match="pair 3 as nan"):
        inspect_pairs(take(5), {"bi-0": np.array([0.1, 0.2, 0.3, np.nan, 0.5])})
    for bad in (np.nan, np.inf):
        with pytest.raises(StateError, match=f"scores of strangers: expected finite numbers, found {bad} for pair 1"):
            inspect_pairs(take(3), {"bi-0": np.array([0.1, 0.2, 0.3])}, strangers=np.array([0.1, bad]))


def test_strangers_are_far_apart_and_never_the_same_sentence() -> None:
    strangers = pair_strangers(PAIRS)
    assert len(strangers) == 250  # every 24th of 6000
    assert strangers[1] == {"sentence1": MANY[24][0], "sentence2": MANY[24 + 2292][1]}
    first, second = take(300)["sentence1"][:], take(300)["sentence2"][:]
    for rows in (
        list(zip(first + second, second + first, strict=True)),  # every pair again in the other order
        [row for pair in zip(first, second, strict=True) for row in (pair, pair[::-1])],
        list(zip(first * 2, second * 2, strict=True)),
        list(zip(first * 3, second * 3, strict=True)),
    ):
        layout = Dataset.from_dict({"sentence1": [a for a, _ in rows], "sentence2": [b for _, b in rows]})
        found = pair_strangers(layout)
        assert len(found) == math.ceil(len(rows) / math.ceil(len(rows) / 256))
        assert not {frozenset(row.values()) for row in found} & {frozenset(row) for row in rows}
    same = Dataset.from_dict({"sentence1": ["a cat", "a dog"], "sentence2": ["A dog", "a bird"]})
    assert pair_strangers(same).to_dict() == {"sentence1": ["a cat"], "sentence2": ["a bird"]}


def test_an_inspection_is_strict_json() -> None:
    found = inspect_pairs(take(50), {"bi-0": np.full(50, 0.5)}, tests={"t": take(3)}).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["figures"]["labels"]["words"] is None
    assert found["findings"][0]["name"] == "few-pairs"
    assert Finding(**found["findings"][0]).serious


# ---- where it is told


def test_the_first_labels_are_inspected_and_each_finding_told_once(
    tiny_bi: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs, dev = make_dataset(16), make_dataset(4, gold=True)
    options: dict[str, Any] = {"output_dir": tmp_path / "run", "config": QUICK, "device": "cpu", "dev": dev}
    distill([Backbone(str(tiny_bi))], pairs, tests={"mine": make_dataset(20)}, **options)
    told = [message for message in caplog.messages if "16 pairs" in message or "are also trained on" in message]
    assert [message.partition(":")[0] for message in told] == [
        "this will probably not help, because there are only 16 pairs",
        told[1].partition(":")[0],
        told[2].partition(":")[0],
    ]
    assert told[1].startswith("4 of 4 pairs and")
    assert "sentences of dev" in told[1]
    assert told[2].startswith("16 of 20 pairs and")
    assert "sentences of mine" in told[2]
    found = read_json(tmp_path / "run/stages/c01-10-bi-label/inspection.json")
    assert [finding["text"] for finding in found["findings"] if finding["text"] in caplog.messages] == [
        finding["text"] for finding in found["findings"]
    ]
    assert found["figures"]["labels"]["pairs"] == 16
    caplog.clear()
    distill([Backbone(str(tiny_bi))], pairs, **options)  # finished: told before
    assert not [message for message in caplog.messages if "16 pairs" in message]


def test_a_preview_scores_every_backbone(tiny_bi: Path, tiny_bi_b: Path) -> None:
    backbones = [Backbone(str(tiny_bi)), Backbone(str(tiny_bi_b))]
    plan, inspection = preview_run(backbones, make_dataset(600), config=CONFIG, device="cpu")
    assert plan[2]["stage"] == "c01-10-bi-label"
    labels = inspection.figures["labels"]
    assert labels["pairs"] == 200  # every third
    assert list(labels["agreement"]) == ["bi-0, bi-1"]
    _, mined = preview_run(backbones[:1], sentences=["a cat", "a dog", "the sun"], config=CONFIG, device="cpu")
    assert mined.figures == {"pairs": 6, "sentences": 3, "shared": {}}


def test_a_preview_leaves_out_a_teacher_that_gives_nan(
    tiny_bi: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = load_bi_encoder(tiny_bi)
    with torch.no_grad():
        broken[0].model.encoder.layer[1].output.dense.bias[:2] = torch.tensor([3e38, -3e38])  # too large to be squared
    broken.save_pretrained(str(tmp_path / "broken"), create_model_card=False)
    bad, good = Backbone(str(tmp_path / "broken")), Backbone(str(tiny_bi))
    plan, inspection = preview_run([bad, good, good], make_dataset(40), config=CONFIG, device="cpu")
    assert list(inspection.figures["labels"]["agreement"]) == ["bi-1, bi-2"]
    assert inspection.figures["labels"]["strangers"] is not None
    assert plan[2]["stage"] == "c01-10-bi-label"
    assert caplog.text.count("teacher bi-0 is left out: the bi-encoder gave NaN or inf") == 1
    with pytest.raises(StateError, match="the bi-encoder gave NaN or inf"):
        preview_run([bad], make_dataset(40), config=CONFIG, device="cpu")


@pytest.fixture
def poor(tmp_path: Path) -> Path:
    """50 pairs: the same one again and again, and one other."""
    rows = ["the small cat\tThe small cat"] * 49 + ["the big dog sees\tthe old tree"]
    path = tmp_path / "poor.tsv"
    path.write_text("\n".join(["sentence1\tsentence2", *rows]) + "\n", encoding="utf-8")
    return path


def test_the_command_line_warns_of_poor_data(
    tiny_bi: Path, poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test.tsv"
    test.write_text("score\tsentence1\tsentence2\n1\tthe small cat\ta cat\n", encoding="utf-8")
    command = ["distill", "--model", str(tiny_bi), "--pairs", str(poor), "--output", str(tmp_path / "run")]
    command += ["--device", "cpu", "--test", str(test), "--bi-epochs", "1"]
    serious = ["few-pairs", "few-sentences", "repeated-pairs", "same-sentence"]
    assert main([*command, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["warnings"]
    assert [finding["name"] for finding in found["findings"]][:4] == serious
    assert "tied-labels" in found["verdict"]
    assert found["findings"][-1]["name"] == "shared-test"
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "\n\nThe run will probably not help (few-pairs, few-sentences, " in out
    assert "\n* few-pairs: this will probably not help, because there are only 50 pairs: " in out
    assert not (tmp_path / "run").exists()
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["run"] == str(tmp_path / "run")
    assert captured.err.count("because there are only 50 pairs") == 1
    assert captured.err.count(f"0 of 1 pairs and 1 of 2 sentences of {test} are also trained on") == 1
    assert json.loads((tmp_path / "run/run.json").read_text())["inputs"]["test"] == [str(test)]


def test_a_test_set_that_is_not_there_is_refused(
    tiny_bi: Path, poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", "--model", str(tiny_bi), "--pairs", str(poor), "--output", str(tmp_path / "run")]
    assert main([*command, "--test", str(tmp_path / "no.tsv"), "--dry-run"]) == 2
    assert "no.tsv" in capsys.readouterr().err
