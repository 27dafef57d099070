"""Retrieval figures: by hand, against plain sentence-transformers, and the published ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny import make_pairs

from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import InputError
from transenc.metrics import retrieval_quality
from transenc.retrieval_evaluation import evaluate_retrieval

PAIRS, ASKED = make_pairs(120, seed=5), 40
SAMPLE = Path(__file__).parents[1] / "data" / "sample"
NAMES = ("ndcg@10", "recall@100", "mrr@10", "map")


def write_set(
    folder: Path, documents: dict[str, str], queries: dict[str, str], qrels: list[tuple[str, str, int]]
) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        rows = ({"_id": key, "text": text} for key, text in texts.items())
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Four documents; "b" and "a" are the same text."""
    return write_set(
        tmp_path / "words",
        {"dog": "a small dog", "cat": "the cat sings", "b": "a red boat", "a": "a red boat"},
        {"q1": "dog", "q2": "boat", "q3": "moon"},
        [("q1", "dog", 1), ("q2", "b", 1), ("q3", "cat", 1)],
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents, more than are ranked, and 40 queries; query k asks for document k."""
    return write_set(
        tmp_path_factory.mktemp("sets") / "pairs",
        {f"d{k:03}": second for k, (_, second) in enumerate(PAIRS)},
        {f"q{k:03}": first for k, (first, _) in enumerate(PAIRS[:ASKED])},
        [(f"q{k:03}", f"d{k:03}", 1) for k in range(ASKED)],
    )


def expect(orders: np.ndarray) -> dict[str, Any]:
    """Figures of rankings, given as positions [queries, ranked]."""
    rankings = {f"q{k:03}": [f"d{row:03}" for row in order[:100]] for k, order in enumerate(orders)}
    figures = retrieval_quality(rankings, {f"q{k:03}": {f"d{k:03}": 1} for k in range(len(orders))})
    return {name: pytest.approx(100 * float(figures[name] or 0), abs=1e-9) for name in NAMES}


def plain_cosines(folder: Path) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu")
    texts = [pair[0] for pair in PAIRS[:ASKED]], [pair[1] for pair in PAIRS]
    first, second = (model.encode(side, normalize_embeddings=True) for side in texts)
    return np.round(first @ second.T, 6)


def test_bm25_by_hand(words: Path) -> None:
    # q1 finds its document, q2 finds "a" before "b", which scores the same, q3 has no known word.
    expected = {
        "ndcg@10": pytest.approx(100 * (1 + 1 / math.log2(3)) / 3),
        "recall@100": pytest.approx(200 / 3),
        "mrr@10": pytest.approx(50.0),
        "map": pytest.approx(50.0),
    }
    result = evaluate_retrieval(tasks=[words], system="bm25")
    assert result == {str(words): expected, "average": expected["ndcg@10"]}


def test_equal_cosines_rank_by_id(tiny_bi: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "ties", {"b": "a red boat", "a": "a red boat"}, {"q": "a dog"}, [("q", "b", 1)])
    assert evaluate_retrieval(tiny_bi, tasks=[folder])[str(folder)]["mrr@10"] == 50.0


def test_bi_encoder_equals_plain_sentence_transformers(tiny_bi: Path, pairs: Path) -> None:
    result = evaluate_retrieval(load_bi_encoder(tiny_bi), tasks=[pairs])
    assert result[str(pairs)] == expect(np.argsort(-plain_cosines(tiny_bi), axis=1, kind="stable"))
    assert result["average"] == result[str(pairs)]["ndcg@10"]
    assert 0 < result["average"] < 100


def test_reranking_alone_is_the_order_of_the_cross_encoder(tiny_bi: Path, tiny_cross: Path, pairs: Path) -> None:
    retrieved = np.argsort(-plain_cosines(tiny_bi), axis=1, kind="stable")[:, :20]
    cross = CrossEncoder(str(tiny_cross), device="cpu", max_length=64)
    asked = [(PAIRS[k][0], PAIRS[row][1]) for k, order in enumerate(retrieved) for row in order]
    scores = cross.predict(asked, show_progress_bar=False).reshape(retrieved.shape)
    best = np.argsort(-np.round(scores, 6), axis=1, kind="stable")
    result = evaluate_retrieval(tiny_bi, tasks=[pairs], rerank=tiny_cross, rerank_weight=1.0, candidates=20)
    expected = expect(np.take_along_axis(retrieved, best, axis=1))
    assert {name: result[str(pairs)][name] for name in expected} == expected
    assert result[str(pairs)]["reranked"] == expected
    assert result[str(pairs)]["retrieved"] == expect(retrieved)


@pytest.mark.parametrize("system", ["bi", "bm25", "hybrid"])
def test_weight_0_is_the_retrieved_order(system: str, tiny_bi: Path, tiny_cross: Path, pairs: Path) -> None:
    model = None if system == "bm25" else tiny_bi
    cross = load_cross_encoder(tiny_cross)
    plain = evaluate_retrieval(model, tasks=[pairs], system=system)
    kept = evaluate_retrieval(model, tasks=[pairs], system=system, rerank=cross, rerank_weight=0.0)
    other = evaluate_retrieval(model, tasks=[pairs], system=system, rerank=cross, rerank_weight=1.0)
    figures = plain[str(pairs)]
    fused = {name: value for name, value in kept[str(pairs)].items() if name in figures}
    assert fused == kept[str(pairs)]["retrieved"] == other[str(pairs)]["retrieved"] == figures
    assert kept[str(pairs)]["reranked"] == other[str(pairs)]["reranked"] != figures
    assert other[str(pairs)]["recall@100"] == figures["recall@100"]  # the same documents
    best = evaluate_retrieval(
        model, tasks=[pairs], system=system, rerank=cross, rerank_weight=kept[str(pairs)]["best_weight"]
    )
    assert best["average"] >= max(kept["average"], other["average"])


def test_each_order_shows_its_own_first_hundred(tiny_bi: Path, tiny_cross: Path, tmp_path: Path) -> None:
    documents = {f"d{k}": f"{a} {b}" for k, (a, b) in enumerate(make_pairs(150, seed=3))}
    judged = [("q", f"d{k}", 1) for k in range(0, 150, 3)]
    folder = write_set(tmp_path / "many", documents, {"q": "the small cat sees the dog"}, judged)
    model, cross = load_bi_encoder(tiny_bi), load_cross_encoder(tiny_cross)
    plain = evaluate_retrieval(model, tasks=[folder])[str(folder)]
    found = [
        evaluate_retrieval(model, tasks=[folder], rerank=cross, rerank_weight=weight, candidates=150)[str(folder)]
        for weight in (0.0, 1.0)
    ]
    assert [each["retrieved"] for each in found] == [plain, plain]
    assert {name: found[1][name] for name in plain} == found[0]["reranked"] == found[1]["reranked"] != plain


@pytest.mark.parametrize("system", ["bi", "bm25"])
def test_several_rerank_together(system: str, tiny_bi: Path, tiny_bi_b: Path, tiny_cross: Path, pairs: Path) -> None:
    model = None if system == "bm25" else tiny_bi
    options: dict[str, Any] = {"tasks": [pairs], "system": system, "candidates": 20, "rerank_weight": 1.0}
    bi, cross, both = (
        evaluate_retrieval(model, rerank=rerank, **options)[str(pairs)]
        for rerank in (tiny_bi_b, tiny_cross, [tiny_bi_b, load_cross_encoder(tiny_cross)])
    )
    assert bi["retrieved"] == cross["retrieved"] == both["retrieved"]
    assert len({str(each["reranked"]) for each in (bi, cross, both)}) == 3


def test_hybrid_is_neither_of_its_parts(tiny_bi: Path, pairs: Path) -> None:
    bi, words, both = (
        evaluate_retrieval(None if system == "bm25" else tiny_bi, tasks=[pairs], system=system)["average"]
        for system in ("bi", "bm25", "hybrid")
    )
    assert len({bi, words, both}) == 3


def test_passages_find_what_is_cut_off(tiny_bi: Path, tmp_path: Path) -> None:
    # The window is 64 tokens: without passages, both documents are the same.
    begin = "the sun " * 40
    query = "a small green frog swims in the deep lake"
    folder = write_set(
        tmp_path / "long", {"a": begin + "moon " * 60, "b": begin + f"{query} " * 6}, {"q": query}, [("q", "b", 1)]
    )
    assert evaluate_retrieval(tiny_bi, tasks=[folder])["average"] == pytest.approx(100 / math.log2(3))
    assert evaluate_retrieval(tiny_bi, tasks=[folder], passages=True)["average"] == 100.0


def test_the_average_of_several_and_undefined_ones(tiny_bi: Path, words: Path, tmp_path: Path) -> None:
    sample = evaluate_retrieval(tiny_bi, tasks=["sample"], data=SAMPLE)
    both = evaluate_retrieval(tiny_bi, tasks=["sample", words], data=SAMPLE)
    assert both["sample"] == sample["sample"]
    assert both["average"] == (both["sample"]["ndcg@10"] + both[str(words)]["ndcg@10"]) / 2
    folder = write_set(tmp_path / "none", {"a": "a dog"}, {"q": "dog"}, [("q", "a", 0)])
    undefined = evaluate_retrieval(tasks=["sample", folder], data=SAMPLE, system="bm25")
    assert undefined[str(folder)] == dict.fromkeys(NAMES)
    assert undefined["average"] is None
    assert undefined["reasons"] == {str(folder): "no query has a relevant document"}


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (None, {}, "the system bi takes a bi-encoder, found none"),
        (None, {"system": "hybrid"}, "the system hybrid takes a bi-encoder, found none"),
        ("x", {"system": "bm25"}, "the system bm25 takes no bi-encoder, found one"),
        (None, {"system": "bm25", "passages": True}, "bm25 reads whole documents"),
        ("x", {"system": "dense"}, "system must be one of bi, bm25, hybrid, found 'dense'"),
        ("x", {"rerank_weight": 0.5}, "rerank_weight is the weight of what reranks"),
        ("x", {"rerank": "y", "rerank_weight": 1.5}, "the rerank weight must be a number from 0 to 1, found 1.5"),
        ("x", {"candidates": 0}, "candidates must be a whole number of 1 or more, found 0"),
        ("x", {"candidates": 2.0}, "candidates must be a whole number of 1 or more, found 2.0"),
        ("x", {"tasks": "scifact"}, "tasks must be a list of different names or folders, found 'scifact'"),
        ("x", {"tasks": []}, "tasks must be a list"),
        ("x", {"tasks": ["sample", "sample"]}, "tasks must be a list"),
        ("x", {"tasks": ["nothing"]}, "nothing: no folder retrieval/nothing in the `data` folder"),
        ("x", {"tasks": ["sample"], "split": "dev"}, r".*dev\.tsv: no such file; expected the judgements"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_loaded(model: Any, options: dict, expected: str) -> None:
    with pytest.raises(InputError, match=f"^{expected}"):
        evaluate_retrieval(model, data=SAMPLE, **{"tasks": ["sample"], **options})


def test_wrong_kinds_of_model(tiny_bi: Path, tiny_cross: Path, tiny_plain: Path) -> None:
    with pytest.raises(TypeError, match="rerank must be an encoder, the name of one, or a list, found int"):
        evaluate_retrieval(tiny_bi, tasks=["sample"], data=SAMPLE, rerank=[tiny_cross, 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="cannot rerank: it is neither a trained cross-encoder nor a bi-encoder"):
        evaluate_retrieval(tiny_bi, tasks=["sample"], data=SAMPLE, rerank=tiny_plain)
    with pytest.raises(TypeError, match=r"expected a bi-encoder .*, found CrossEncoder"):
        evaluate_retrieval(load_cross_encoder(tiny_cross), tasks=["sample"], data=SAMPLE)  # type: ignore[arg-type]


# ---- figures that are known


def test_known_figures_of_bm25(shared_data: Path) -> None:
    # Another BM25 with the same k1, b and words: 0.663 and 0.349.
    result = evaluate_retrieval(system="bm25", data=shared_data)
    assert result["scifact"]["ndcg@10"] == pytest.approx(66.3, abs=1.0)
    assert result["cranfield"]["ndcg@10"] == pytest.approx(34.9, abs=1.0)


@pytest.mark.slow
def test_known_figure_of_minilm(minilm: Path, shared_data: Path) -> None:
    # A supervised encoder; the published nDCG@10 is 0.645.
    result = evaluate_retrieval(minilm, tasks=["scifact"], data=shared_data)
    assert result["scifact"]["ndcg@10"] == pytest.approx(64.5, abs=0.2)
