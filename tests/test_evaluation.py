"""Evaluation figures, checked against scipy and scikit-learn on plain scores, and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import CrossEncoder, SentenceTransformer
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny import count_common, make_pairs

from transenc.encoders import load_encoder
from transenc.errors import InputError
from transenc.evaluation import compare, evaluate_file, evaluate_pairs, evaluate_sts, score_tasks
from transenc.resampling import auc, spearman

Pairs = list[tuple[str, str]]
STS13, STSB, LABELLED = make_pairs(60, seed=1), make_pairs(40, seed=2), make_pairs(50, seed=3)


def write_table(path: Path, rows: list[tuple[Any, ...]], header: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Small benchmarks; a quarter of the STS-B pairs stand in STS13 too."""
    scored = [(5 * count_common(pair), *pair) for pair in STS13]
    subsets = ["FNWN"] * 20 + ["OnWN"] * 40
    rows = [(*row, subset) for row, subset in zip(scored, subsets, strict=True)]
    write_table(tmp_path / "sts" / "sts13.test.tsv", rows, "score\tsentence1\tsentence2\tsubset")
    pairs = [*STSB[:30], *STS13[:10]]
    rows = [(round(5 * count_common(pair)), *pair, "news") for pair in pairs]
    write_table(tmp_path / "sts" / "stsb.test.tsv", rows, "score\tsentence1\tsentence2\tsubset")
    for task in ("mrpc", "qnli"):
        rows = [(int(count_common(pair) > 0.5), *pair, k) for k, pair in enumerate(LABELLED)]
        write_table(tmp_path / "pairs" / f"{task}.test.tsv", rows, "label\tsentence1\tsentence2\tid")
    return tmp_path


def gold(pairs: Pairs) -> list[float]:
    return [count_common(pair) for pair in pairs]


def plain_cosines(folder: Path, pairs: Pairs) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu")
    a, b = (model.encode([pair[side] for pair in pairs], normalize_embeddings=True) for side in (0, 1))
    return (a * b).sum(1)


# ---- STS


def test_sts_figures(tiny_bi: Path, data: Path) -> None:
    found = evaluate_sts(tiny_bi, tasks=["sts13", "stsb"], data=data)
    first = spearmanr(plain_cosines(tiny_bi, STS13), gold(STS13))[0]
    pairs = [*STSB[:30], *STS13[:10]]
    cosines = plain_cosines(tiny_bi, pairs)
    rounded = [round(5 * value) for value in gold(pairs)]
    second = spearmanr(cosines, rounded)[0]
    assert list(found) == ["sts13", "stsb", "average", "pearson"]
    assert found["sts13"] == pytest.approx(100 * first, abs=1e-3)
    assert found["stsb"] == pytest.approx(100 * second, abs=1e-3)
    assert found["average"] == pytest.approx(50 * (first + second), abs=1e-3)
    assert found["pearson"]["stsb"] == pytest.approx(100 * pearsonr(cosines, rounded)[0], abs=1e-3)
    assert 20 < found["sts13"] < 90  # the tiny model follows common words


def test_a_year_is_one_ranking_and_subsets_are_extra(tiny_bi: Path, data: Path) -> None:
    found = evaluate_sts(tiny_bi, tasks=["sts13"], data=data, subsets=True)
    cosines, scores = plain_cosines(tiny_bi, STS13), np.array(gold(STS13))
    by_hand = [100 * spearmanr(cosines[rows], scores[rows])[0] for rows in (slice(0, 20), slice(20, 60))]
    assert found["subsets"] == {"sts13": pytest.approx({"FNWN": by_hand[0], "OnWN": by_hand[1]}, abs=1e-3)}
    assert found["sts13"] == pytest.approx(100 * spearmanr(cosines, scores)[0], abs=1e-3)
    assert abs(found["sts13"] - (20 * by_hand[0] + 40 * by_hand[1]) / 60) > 0.1  # not a mean over subsets


def test_sentences_of_several_tasks_are_encoded_once(tiny_bi: Path, data: Path) -> None:
    model = load_encoder(tiny_bi)
    seen: list[str] = []
    original: Callable[..., Any] = model.encode

    def encode(texts: list[str], **options: Any) -> Any:
        seen.extend(texts)
        return original(texts, **options)

    object.__setattr__(model, "encode", encode)
    evaluate_sts(model, tasks=["sts13", "stsb"], data=data)
    assert sorted(seen) == sorted({text for pair in [*STS13, *STSB[:30]] for text in pair})


def test_several_models_are_an_ensemble(tiny_bi: Path, tiny_bi_b: Path, tiny_cross: Path, data: Path) -> None:
    plain = CrossEncoder(str(tiny_cross), device="cpu")
    both = (plain.predict(STS13) + plain.predict([(b, a) for a, b in STS13])) / 2
    mean = (plain_cosines(tiny_bi, STS13) + plain_cosines(tiny_bi_b, STS13) + both) / 3
    expected = pytest.approx(100 * spearmanr(mean, gold(STS13))[0], abs=1e-3)
    folders = (tiny_bi, str(tiny_bi_b), tiny_cross)
    assert evaluate_sts(folders, tasks=["sts13"], data=data)["sts13"] == expected
    assert evaluate_sts([load_encoder(f) for f in folders], tasks=["sts13"], data=data)["sts13"] == expected


def test_a_bare_folder_needs_its_pooling(tiny_plain: Path, tiny_bi: Path, data: Path) -> None:
    with pytest.raises(InputError, match="--pooling"):
        evaluate_sts(tiny_plain, tasks=["sts13"], data=data)
    found = evaluate_sts(tiny_plain, tasks=["sts13"], data=data, pooling="mean")
    assert found == evaluate_sts(tiny_bi, tasks=["sts13"], data=data)


def test_undefined_figures_are_none_with_a_reason(tiny_bi: Path, data: Path) -> None:
    rows = [(2.5, *pair, "news") for pair in STSB]
    write_table(data / "sts" / "stsb.test.tsv", rows, "score\tsentence1\tsentence2\tsubset")
    found = evaluate_sts(tiny_bi, tasks=["sts13", "stsb"], data=data)
    assert found["stsb"] is None
    assert found["average"] is None
    assert found["pearson"]["average"] is None
    assert found["reasons"] == {"stsb": "all gold scores are equal"}
    assert isinstance(found["sts13"], float)
    json.dumps(found, allow_nan=False)


def test_scores_computed_before_give_the_same_figures(tiny_bi: Path, tiny_bi_b: Path, data: Path) -> None:
    scores = score_tasks(tiny_bi, tasks=["sts13", "stsb", "qnli"], data=data)
    assert {task: found.shape for task, found in scores.items()} == {"sts13": (60,), "stsb": (40,), "qnli": (50,)}
    sts: dict[str, Any] = {"tasks": ["sts13", "stsb"], "data": data}
    assert evaluate_sts(scores, **sts, subsets=True) == evaluate_sts(tiny_bi, **sts, subsets=True)
    assert evaluate_pairs(scores, tasks=["qnli"], data=data) == evaluate_pairs(tiny_bi, tasks=["qnli"], data=data)
    assert compare(scores, tiny_bi_b, **sts) == compare(tiny_bi, tiny_bi_b, **sts)
    with pytest.raises(InputError, match=r"expected 60 scores for sts13, found \(40,\)"):
        evaluate_sts({"sts13": scores["stsb"]}, tasks=["sts13"], data=data)
    with pytest.raises(InputError, match="expected 40 scores for stsb, found none"):
        evaluate_sts({}, tasks=["stsb"], data=data)


@pytest.mark.parametrize("tasks", [[], "stsb", ["stsb", "stsb"], ["sts11"], ["mrpc"]])
def test_unknown_tasks_are_refused(tasks: Any, tiny_bi: Path, data: Path) -> None:
    with pytest.raises(InputError, match="tasks must be a list of different names out of sts12"):
        evaluate_sts(tiny_bi, tasks=tasks, data=data)


# ---- pair classification and files


def test_pair_figures(tiny_bi: Path, data: Path) -> None:
    found = evaluate_pairs(tiny_bi, tasks=["mrpc", "qnli"], data=data)
    labels, cosines = [value > 0.5 for value in gold(LABELLED)], plain_cosines(tiny_bi, LABELLED)
    expected = {"auc": 100 * roc_auc_score(labels, cosines), "ap": 100 * average_precision_score(labels, cosines)}
    assert found["mrpc"] == pytest.approx(expected, abs=1e-3)
    assert found["qnli"] == found["mrpc"]  # the same rows here, and a cosine has no order
    assert found["average"] == pytest.approx(expected["auc"], abs=1e-3)


def test_a_cross_encoder_reads_questions_in_one_order(tiny_cross: Path, data: Path) -> None:
    found = evaluate_pairs(tiny_cross, tasks=["mrpc", "qnli"], data=data)
    labels, plain = [value > 0.5 for value in gold(LABELLED)], CrossEncoder(str(tiny_cross), device="cpu")
    there, back = plain.predict(LABELLED), plain.predict([(b, a) for a, b in LABELLED])
    assert found["qnli"]["auc"] == pytest.approx(100 * roc_auc_score(labels, there), abs=1e-3)
    assert found["mrpc"]["auc"] == pytest.approx(100 * roc_auc_score(labels, there + back), abs=1e-3)
    assert found["qnli"] != found["mrpc"]


def test_one_class_is_undefined(tiny_bi: Path, data: Path) -> None:
    rows = [(1, *pair, k) for k, pair in enumerate(LABELLED)]
    write_table(data / "pairs" / "mrpc.test.tsv", rows, "label\tsentence1\tsentence2\tid")
    found = evaluate_pairs(tiny_bi, tasks=["mrpc", "qnli"], data=data)
    assert found["mrpc"] == {"auc": None, "ap": None}
    assert found["average"] is None
    assert found["reasons"] == {"mrpc": "all labels are 1"}


def test_a_file_of_ones_own(tiny_bi: Path, tmp_path: Path) -> None:
    cosines = plain_cosines(tiny_bi, STSB)
    write_table(tmp_path / "a.tsv", [(value - 7, *pair) for value, pair in zip(gold(STSB), STSB, strict=True)],
                "score\tsentence1\tsentence2")  # fmt: skip
    found = evaluate_file(tiny_bi, tmp_path / "a.tsv")
    expected = {"spearman": 100 * spearmanr(cosines, gold(STSB))[0], "pearson": 100 * pearsonr(cosines, gold(STSB))[0]}
    assert found == pytest.approx(expected, abs=1e-3)
    labels = [int(value > 0.5) for value in gold(STSB)]
    write_table(tmp_path / "b.tsv", [(label, *pair) for label, pair in zip(labels, STSB, strict=True)],
                "label\tsentence1\tsentence2")  # fmt: skip
    assert evaluate_file(tiny_bi, tmp_path / "b.tsv")["auc"] == pytest.approx(
        100 * roc_auc_score(labels, cosines), abs=1e-3
    )


def test_a_file_with_one_row_is_undefined(tiny_bi: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "a.tsv", [(1, *STSB[0])], "score\tsentence1\tsentence2")
    found = evaluate_file(tiny_bi, tmp_path / "a.tsv")
    assert found == {"spearman": None, "pearson": None, "reason": "a correlation needs at least 2 pairs, found 1"}


def test_the_order_matters_only_if_asked(tiny_cross: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "a.tsv", [(count_common(pair), *pair) for pair in STSB], "score\tsentence1\tsentence2")
    there = CrossEncoder(str(tiny_cross), device="cpu").predict(STSB)
    found = evaluate_file(tiny_cross, tmp_path / "a.tsv", symmetric=False)
    assert found["spearman"] == pytest.approx(100 * spearmanr(there, gold(STSB))[0], abs=1e-3)
    assert found != evaluate_file(tiny_cross, tmp_path / "a.tsv")


# ---- comparison


def test_resampled_figures_are_those_of_the_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    scores, truth = rng.integers(0, 9, 40) / 8, rng.integers(0, 6, 40).astype(float)  # many ties
    labels = (truth > 2).astype(float)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=20)
    for found, k in zip(spearman(scores, truth, counts), range(20), strict=True):
        assert found == pytest.approx(spearmanr(np.repeat(scores, counts[k]), np.repeat(truth, counts[k]))[0])
    for found, k in zip(auc(scores, labels, counts), range(20), strict=True):
        assert found == pytest.approx(roc_auc_score(np.repeat(labels, counts[k]), np.repeat(scores, counts[k])))


def test_resampled_figures_by_hand() -> None:
    scores, truth = np.array([0.1, 0.2, 0.9]), np.array([1.0, 3.0, 2.0])
    # Rows 1, 2, 3: ranks 1 2 3 against 1 3 2, so 1 - 6 (0 + 1 + 1) / (3 x 8) = 0.5. Rows 1, 1, 3: ranks 1.5 1.5 3
    # against 1.5 1.5 3, so 1. Rows 2, 2, 2: no ranking.
    found = spearman(scores, truth, np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0]]))
    assert found[:2].tolist() == pytest.approx([0.5, 1.0])
    assert np.isnan(found[2])
    # One positive (0.2) and two negatives (0.1, 0.9): half of the pairs are right; then 0.2 against 0.1 twice.
    found = auc(scores, np.array([0.0, 1.0, 0.0]), np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0]]))
    assert found[:2].tolist() == pytest.approx([0.5, 1.0])
    assert np.isnan(found[2])


def test_a_system_does_not_differ_from_itself(tiny_bi: Path, data: Path) -> None:
    nothing = {"difference": 0.0, "low": 0.0, "high": 0.0}
    found = compare(tiny_bi, load_encoder(tiny_bi), tasks=["sts13", "mrpc"], data=data, resamples=100)
    assert found == {"sts13": nothing, "mrpc": nothing, "average": nothing}


def test_a_difference_and_its_interval(tiny_bi: Path, tiny_bi_b: Path, data: Path) -> None:
    options: dict[str, Any] = {"tasks": ["sts13", "stsb"], "data": data}
    found = compare(tiny_bi, tiny_bi_b, **options)
    first, second = (evaluate_sts(folder, **options) for folder in (tiny_bi, tiny_bi_b))
    for task in ("sts13", "stsb", "average"):
        assert found[task]["difference"] == pytest.approx(first[task] - second[task], abs=1e-6)
        assert found[task]["low"] < found[task]["difference"] < found[task]["high"]  # type: ignore[operator]
    assert compare(tiny_bi, tiny_bi_b, **options) == found
    assert compare(tiny_bi, tiny_bi_b, **options, seed=1)["sts13"] != found["sts13"]
    back = compare(tiny_bi_b, tiny_bi, **options)["sts13"]
    values = found["sts13"]
    assert [back[k] for k in ("low", "high")] == pytest.approx([-values["high"], -values["low"]])  # type: ignore[operator]


def test_the_interval_has_the_width_of_the_plain_bootstrap(tiny_bi: Path, tiny_bi_b: Path, data: Path) -> None:
    found = compare(tiny_bi, tiny_bi_b, tasks=["sts13"], data=data, resamples=2000)["sts13"]
    a, b, truth = plain_cosines(tiny_bi, STS13), plain_cosines(tiny_bi_b, STS13), np.array(gold(STS13))
    rng = np.random.default_rng(9)
    draws = [rng.integers(0, 60, 60) for _ in range(2000)]
    differences = [100 * (spearmanr(a[rows], truth[rows])[0] - spearmanr(b[rows], truth[rows])[0]) for rows in draws]
    low, high = np.percentile(differences, [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_compare_on_a_file(tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "a.tsv", [(count_common(pair), *pair) for pair in STSB], "score\tsentence1\tsentence2")
    found = compare(tiny_bi, tiny_bi_b, path=tmp_path / "a.tsv", resamples=200)
    a, b = (evaluate_file(folder, tmp_path / "a.tsv")["spearman"] for folder in (tiny_bi, tiny_bi_b))
    assert list(found) == ["spearman"]
    assert found["spearman"]["difference"] == pytest.approx(a - b, abs=1e-6)
    with pytest.raises(InputError, match="not on both at once"):
        compare(tiny_bi, tiny_bi_b, path=tmp_path / "a.tsv", tasks=["stsb"])
    with pytest.raises(InputError, match="100 or more, found 10"):
        compare(tiny_bi, tiny_bi_b, path=tmp_path / "a.tsv", resamples=10)


def test_an_undefined_difference_is_none(tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "a.tsv", [(1, *pair) for pair in STSB], "score\tsentence1\tsentence2")
    found = compare(tiny_bi, tiny_bi_b, path=tmp_path / "a.tsv")
    assert found == {"spearman": {"difference": None, "low": None, "high": None}}


# ---- the real model on the real data


def test_the_known_figure_of_minilm_on_one_task(minilm: Path, shared_data: Path) -> None:
    assert evaluate_sts(minilm, tasks=["stsb"], data=shared_data)["stsb"] == pytest.approx(82.0, abs=0.1)


@pytest.mark.slow
def test_the_known_figures_of_minilm(minilm: Path, shared_data: Path) -> None:
    found = evaluate_sts(minilm, data=shared_data)
    known = {"sts12": 72.4, "sts13": 80.6, "sts14": 75.6, "sts15": 85.4, "sts16": 79.0, "stsb": 82.0, "sickr": 77.1}
    assert {task: found[task] for task in known} == pytest.approx(known, abs=0.1)
    assert found["average"] == pytest.approx(78.9, abs=0.1)
