"""The metrics of the evaluations, as `evaluate.Metric` subclasses that need no network.

A figure that is undefined (all values equal, one class only) is None, never NaN, and the reason stands beside
it. Figures are fractions, not percentages.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
import pytrec_eval
from datasets import Features, List, Value
from scipy.stats import NearConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from transenc.errors import InputError, StateError

Figures = dict[str, float | str | None]

_INPUTS = """
Args:
    predictions: Similarities, one a pair; any scale.
    references: Gold values, one a pair.
"""

_RETRIEVAL_INPUTS = """
Args:
    predictions: Ids of the documents found, best first, one list a query.
    references: {"documents": judged ids, "scores": whole numbers}, one a query.
"""

_RETRIEVAL = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "mrr@10": "recip_rank", "map": "map"}


class Correlation(evaluate.Metric):
    """Spearman's and Pearson's correlation of similarities with gold scores.

    Ties get the mean of their ranks. ``compute`` returns ``{"spearman", "pearson"}``, each in [-1, 1] or None,
    and with None the text "reason".

    Example:
        >>> metric = Correlation(keep_in_memory=True)
        >>> metric.compute(predictions=[0.1, 0.2, 0.4], references=[1.0, 2.0, 3.0])["spearman"]
        1.0
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman's and Pearson's correlation with gold scores.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> Figures:
        x, y = _check_finite("prediction", predictions), _check_finite("gold score", references)
        if reason := _explain_constant(x, y):
            return {"spearman": None, "pearson": None, "reason": reason}
        with warnings.catch_warnings():
            # Only a remark that digits are lost; what comes out is checked below.
            warnings.simplefilter("ignore", NearConstantInputWarning)
            # A huge value can overflow in Pearson's sums, which shows in the result.
            with np.errstate(over="ignore", invalid="ignore"):
                found = {"spearman": float(spearmanr(x, y)[0]), "pearson": float(pearsonr(x, y)[0])}
        figures: Figures = {name: value if math.isfinite(value) else None for name, value in found.items()}
        if None in figures.values():
            figures["reason"] = "the values are too large or too close together for floating point"
        return figures


class RankingQuality(evaluate.Metric):
    """ROC AUC and average precision of similarities against binary labels.

    ``compute`` returns ``{"auc", "ap"}``, each in [0, 1] or None, and with None the text "reason". Equal
    predictions are defined: AUC 0.5, and the share of label 1 as average precision.

    Example:
        >>> metric = RankingQuality(keep_in_memory=True)
        >>> metric.compute(predictions=[0.9, 0.1], references=[1, 0]) == {"auc": 1.0, "ap": 1.0}
        True
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROC AUC and average precision against labels 0 and 1.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> Figures:
        x, y = _check_finite("prediction", predictions), _check_finite("label", references)
        for i, label in enumerate(y):
            if label not in (0.0, 1.0):
                raise StateError(f"label {i}: expected 0 or 1, found {label:g}; correct the labels")
        if len(y) == 0:
            return {"auc": None, "ap": None, "reason": "there are no pairs"}
        if y.min() == y.max():
            return {"auc": None, "ap": None, "reason": f"all labels are {y[0]:g}"}
        return {"auc": float(roc_auc_score(y, x)), "ap": float(average_precision_score(y, x))}


class RetrievalQuality(evaluate.Metric):
    """nDCG@10, recall@100, MRR@10 and mean average precision of rankings, by trec_eval.

    Predictions are the ids of the documents found, best first, one list a query; references have the judged
    documents and their scores (below 1: not relevant) of the same query. What trec_eval does: nDCG divides a
    document's score by log2(rank + 1) and compares with the best order of all judged documents (Järvelin and
    Kekäläinen, 2002); average precision counts relevant documents that were not found as 0.

    ``compute`` returns ``{"ndcg@10", "recall@100", "mrr@10", "map"}``, each in [0, 1] and the mean over the queries
    (0 for one with nothing found), or None, and with None the text "reason".

    Example:
        >>> metric = RetrievalQuality(keep_in_memory=True)
        >>> judged = {"documents": ["a"], "scores": [1]}
        >>> metric.compute(predictions=[["b", "a"]], references=[judged])["mrr@10"]
        0.5
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="nDCG@10, recall@100, MRR@10 and mean average precision.",
            citation="",
            inputs_description=_RETRIEVAL_INPUTS,
            features=Features(
                {
                    "predictions": List(Value("string")),
                    "references": {"documents": List(Value("string")), "scores": List(Value("int64"))},
                }
            ),
        )

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Mapping[str, Any]]) -> Figures:
        judged = [dict(zip(item["documents"], item["scores"], strict=True)) for item in references]
        if not any(score > 0 for scores in judged for score in scores.values()):
            reason = "no query has a relevant document" if judged else "there are no queries"
            return dict.fromkeys(_RETRIEVAL, None) | {"reason": reason}
        qrels: dict[str, dict[str, int]] = {}
        run: dict[str, dict[str, float]] = {}
        for i, (found, scores) in enumerate(zip(predictions, judged, strict=True)):
            # Numbers for the ids, since trec_eval reads no further than a NUL; a position for the score, since
            # it would break ties its own way.
            number: dict[str, str] = {}
            qrels[str(i)] = {number.setdefault(d, str(len(number))): score for d, score in scores.items()}
            run[str(i)] = {number.setdefault(d, str(len(number))): -float(rank) for rank, d in enumerate(found)}
        top = {i: dict(list(found.items())[:10]) for i, found in run.items()}
        figures = _average(qrels, run, {"ndcg_cut.10", "recall.100", "map"}) | _average(qrels, top, {"recip_rank"})
        return {name: figures[measure] for name, measure in _RETRIEVAL.items()}


def correlation(predictions: Sequence[float] | np.ndarray, references: Sequence[float] | np.ndarray) -> Figures:
    """Return Spearman's and Pearson's correlation, see `Correlation`.

    Args:
        predictions: Similarities, shape [n].
        references: Gold scores, shape [n].

    Returns:
        ``{"spearman", "pearson"}`` in [-1, 1], or None for what is undefined, then with "reason".

    Raises:
        StateError: A value is not finite; the message names its position.
        ValueError: The lengths differ.

    Example:
        >>> correlation([0.5, 0.5, 0.5], [1, 2, 3])["reason"]
        'all predictions are equal'
    """
    _check_lengths(predictions, references)
    return Correlation(keep_in_memory=True).compute(predictions=predictions, references=references)


def ranking_quality(predictions: Sequence[float] | np.ndarray, references: Sequence[int] | np.ndarray) -> Figures:
    """Return ROC AUC and average precision, see `RankingQuality`.

    Args:
        predictions: Similarities, shape [n].
        references: Labels 0 and 1, shape [n].

    Returns:
        ``{"auc", "ap"}`` in [0, 1], or None for what is undefined, then with "reason".

    Raises:
        StateError: A value is not finite or a label is neither 0 nor 1; the message names its position.
        ValueError: The lengths differ.

    Example:
        >>> ranking_quality([0.9, 0.8, 0.1], [1, 1, 1])["reason"]
        'all labels are 1'
    """
    _check_lengths(predictions, references)
    return RankingQuality(keep_in_memory=True).compute(predictions=predictions, references=references)


def retrieval_quality(rankings: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]]) -> Figures:
    """Return nDCG@10, recall@100, MRR@10 and mean average precision, see `RetrievalQuality`.

    Args:
        rankings: Query id -> ids of the documents found, best first; a query that is missing found nothing. Queries
            without judgements play no part.
        qrels: Query id -> document id -> score, a whole number; below 1: not relevant.

    Returns:
        ``{"ndcg@10", "recall@100", "mrr@10", "map"}``, means over the queries of `qrels` in [0, 1], or None for what
        is undefined, then with "reason". The mean average precision is that of the documents given.

    Raises:
        StateError: A document stands twice in a ranking; the query is named.
        TypeError: A score is no whole number; query and document are named.

    Example:
        >>> retrieval_quality({"q": ["a", "b", "c"]}, {"q": {"b": 1, "c": 1}})["mrr@10"]
        0.5
    """
    for query, judged in qrels.items():
        for document, score in judged.items():
            if isinstance(score, bool) or not isinstance(score, int | np.integer):
                raise TypeError(f"qrels[{query!r}][{document!r}]: expected a whole number, found {score!r}")
        found = rankings.get(query, ())
        if isinstance(found, str | bytes):
            raise TypeError(f"rankings[{query!r}]: expected a list of ids, found {type(found).__name__}")
        if len(set(found)) < len(found):
            raise StateError(f"rankings[{query!r}]: a document stands in it twice; give each its best rank only")
    return RetrievalQuality(keep_in_memory=True).compute(
        predictions=[list(rankings.get(query, ())) for query in qrels],
        references=[{"documents": list(judged), "scores": list(judged.values())} for judged in qrels.values()],
    )


def embedding_spread(vectors: np.ndarray) -> dict[str, float]:
    """Say how far apart embeddings are: whether a model tells texts apart at all.

    Vectors are brought to length 1 first; one of length 0 stays, and its cosines are 0.

    Args:
        vectors: [n, dim], n of 2 or more.

    Returns:
        ``mean_cosine``: of all pairs, in [-1, 1]; near 1 all are alike. ``uniformity``: log of the pairs' mean
        exp(-2 squared distance), in [-8, 0]; lower is more uniform (Wang and Isola, ICML 2020). ``effective_rank``:
        exp of the entropy of the singular values as shares of their sum, in [1, min(n, dim)], not centred (Roy and
        Vetterli, EUSIPCO 2007); 0 if all vectors are 0.

    Raises:
        InputError: Fewer than 2 vectors. StateError: NaN or inf in them.

    Example:
        >>> round(embedding_spread(np.eye(3))["effective_rank"], 6)
        3.0
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise InputError(f"a spread needs 2 vectors or more, as [n, dim]; found {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise StateError("an embedding holds NaN or inf; check the model's weights")
    rows = vectors.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    pairs = np.triu_indices(len(rows), k=1)
    products = rows @ rows.T
    squares = products.diagonal()[pairs[0]] + products.diagonal()[pairs[1]]
    cosines = products[pairs].clip(-1, 1)
    values = np.linalg.svd(rows, compute_uv=False)
    shares = values[values > 0] / values.sum() if values.sum() > 0 else np.ones(0)
    return {
        "mean_cosine": float(cosines.mean()),
        "uniformity": float(np.log(np.exp(-2 * (squares - 2 * cosines)).mean())),
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
    }


def _check_lengths(predictions: Sequence[float] | np.ndarray, references: Sequence[float] | np.ndarray) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"expected one prediction a pair: {len(references)}, found {len(predictions)}")


def _check_finite(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise StateError(
            f"{name} {bad[0]}: expected a finite number, found {array[bad[0]]} "
            f"({bad.size} of {array.size} are not finite); check the model's weights"
        )
    return array


def _explain_constant(predictions: np.ndarray, references: np.ndarray) -> str | None:
    if len(predictions) < 2:
        return f"a correlation needs at least 2 pairs, found {len(predictions)}"
    for name, values in (("predictions", predictions), ("gold scores", references)):
        if values.min() == values.max():
            return f"all {name} are equal"
    return None


def _average(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], measures: set[str]
) -> dict[str, float]:
    figures = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    names = {measure.replace(".", "_") for measure in measures}
    # A query without results has no figures; it counts as 0.
    return {name: sum(found.get(name, 0.0) for found in figures.values()) / len(qrels) for name in names}
