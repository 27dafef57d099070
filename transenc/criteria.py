"""How good is a bi-encoder, told without a label: what to ask of it on a sample of the unlabelled pairs.

Every criterion exists for the start too, and higher is better; docs/choice.md says which of them can be trusted.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer

from transenc.config import CRITERIA
from transenc.errors import StateError
from transenc.labeling import Scores
from transenc.metrics import correlation, embedding_spread
from transenc.scoring import cut_texts, encode_texts, score_pairs
from transenc.views import mean_rank, score_alignments, score_overlap, simplify_text

logger = logging.getLogger(__name__)

SAMPLE = 1000  # pairs; the Spearman of two sets of scores then has a standard error of about 0.01
NEAR = 0.98  # Spearman of a student's cosines with its start's from which it counts as close to it
MARGIN = 0.005  # by how much a criterion has to rise before it is believed, see docs/choice.md
_DROPPED = 0.15  # share of the words
_POSITIVES = 0.1  # share of the pairs
_BATCH, _TOKENS = 32, 512


Figures = dict[str, float | None]
Comparison = dict[str, dict[str, float] | None]


@dataclass(frozen=True, eq=False)
class Judges:
    """What all candidates are judged by.

    Args:
        pairs: the sample, columns sentence1 and sentence2; n rows.
        teachers: name -> n scores, fixed before the first cycle.
        previous: the labels that the candidate's cycle began with, n scores; None: there are none.
        cross: scores of the same cycle's cross-encoders, n; None: there are none.

    Example:
        >>> Judges(pairs, score_teachers([model], pairs))  # doctest: +SKIP
    """

    pairs: Dataset
    teachers: Mapping[str, Scores]
    previous: Scores | None = None
    cross: Scores | None = None


@dataclass(frozen=True, eq=False)
class Views:
    """What a bi-encoder makes of n pairs.

    Args:
        scores: its cosines, n.
        changed: name of a change -> the cosines of the changed pairs, n.
        spread: of its embeddings, see `embedding_spread`.
        width: dimensions of the embeddings.

    Example:
        >>> Views(np.array([0.1, 0.9]), {}, {"uniformity": -3.0, "effective_rank": 2.0}, 8).width
        8
    """

    scores: np.ndarray
    changed: Mapping[str, np.ndarray]
    spread: Mapping[str, float]
    width: int


def judge_students(
    students: Sequence[tuple[int, Path]],
    starts: Sequence[Path],
    pairs: Dataset,
    *,
    labels: Mapping[str, Scores],
    load: Callable[[Path], SentenceTransformer],
    seed: int,
) -> list[Comparison]:
    """All criteria for the bi-encoders of a cycle, and for the starts under the same judges.

    Args:
        students: of each the position of its start, and its folder.
        starts: the folders of the starts.
        pairs: a sample of the run's pairs; n rows.
        labels: name -> n scores of the cycle's teachers, those of cross-encoders named `cross-...`.
        load: opens a folder.
        seed: as for `look_at`.

    Returns:
        For each student criterion -> `{"start", "trained"}`, or None where one of them is undefined.

    Example:
        >>> judge_students([(0, Path("student"))], [Path("start")], pairs, labels={}, load=load_bi_encoder, seed=0)
        ... # doctest: +SKIP
    """
    seen: dict[Path, Views] = {}
    judged: dict[Path, Figures] = {}
    found: list[Comparison] = []
    try:
        judges = Judges(
            pairs,
            score_teachers([load(start) for start in starts], pairs),
            _merge(labels, cross=False),
            _merge(labels, cross=True),
        )
    except StateError as error:
        logger.warning("no criterion without labels: a start cannot judge: %s", error)
        return [dict.fromkeys(CRITERIA) for _ in students]
    for i, student in students:
        figures: Comparison = dict.fromkeys(CRITERIA)
        try:
            for folder in (starts[i], student):
                if folder not in judged:
                    seen[folder] = look_at(load(folder), pairs, seed=seed)
                    judged[folder] = judge_encoder(seen[folder], judges)
            for name, before in judged[starts[i]].items():
                after = judged[student][name]
                if before is not None and after is not None:
                    figures[name] = {"start": round(before, 5), "trained": round(after, 5)}
            figures["cautious"] = be_cautious(figures, compare_ranks(seen[starts[i]].scores, seen[student].scores))
        except StateError as error:
            logger.warning("%s: no criterion without labels: %s", student, error)
        found.append(figures)
    return found


def sample_rows(pairs: Dataset, *, seed: int, size: int = SAMPLE) -> list[int]:
    """Rows of a random sample of the pairs in their order: each pair once, none of a sentence with itself.

    Args:
        pairs: columns sentence1, sentence2.
        seed: decides the sample.
        size: rows at most.

    Example:
        >>> pairs = Dataset.from_dict({"sentence1": list("abcda"), "sentence2": list("bcded")})
        >>> sample_rows(pairs, seed=0, size=3)
        [0, 3, 4]
    """
    rows: dict[frozenset[str], int] = {}
    for row, pair in enumerate(zip(pairs["sentence1"], pairs["sentence2"], strict=True)):
        if pair[0] != pair[1]:
            rows.setdefault(frozenset(pair), row)
    return sorted(random.Random(seed).sample(list(rows.values()), min(size, len(rows))))


def score_teachers(starts: Sequence[SentenceTransformer], pairs: Dataset) -> dict[str, Scores]:
    """The scores of the teachers that exist before the first cycle; of several starts the mean ranks.

    Args:
        starts: the bi-encoders that a run began with, one or more.
        pairs: columns sentence1, sentence2; n rows.

    Returns:
        `cosine`, `alignment` (of the tokens, see `align_tokens`) and `overlap` (of the words, rare ones counting
        more), n scores each; a teacher that gives all pairs one score is left out.

    Raises:
        StateError: a start gives NaN or infinity.

    Example:
        >>> sorted(score_teachers([load_bi_encoder("my/encoder")], pairs))  # doctest: +SKIP
        ['alignment', 'cosine', 'overlap']
    """
    ways: dict[str, Callable[[SentenceTransformer], Scores]] = {
        "cosine": lambda start: score_pairs(start, pairs),
        "alignment": lambda start: score_alignments(start, pairs),
    }
    scores = {name: mean_rank([way(start) for start in starts]) for name, way in ways.items()}
    scores["overlap"] = score_overlap(pairs)
    return {name: column for name, column in scores.items() if column.min() < column.max()}


def look_at(model: SentenceTransformer, pairs: Dataset, *, seed: int) -> Views:
    """What a bi-encoder makes of the pairs, as they are and changed; the same arguments give the same figures.

    Args:
        model: a bi-encoder.
        pairs: columns sentence1, sentence2; n rows.
        seed: of the words and units that are left out.

    Raises:
        StateError: the model gives NaN or infinity.

    Example:
        >>> look_at(load_bi_encoder("my/encoder"), pairs, seed=0).scores.shape  # doctest: +SKIP
        (1000,)
    """
    texts = [*pairs["sentence1"], *pairs["sentence2"]]
    vectors = encode_texts(model, texts)
    draw = random.Random(seed)
    changed = {
        "punctuation": encode_texts(model, [simplify_text(text) for text in texts]),
        "words": encode_texts(model, [drop_words(text, share=_DROPPED, draw=draw) for text in texts]),
        "dropout": _encode_with_dropout(model, texts, seed=seed),
    }
    cosines = {name: _cosines(other) for name, other in changed.items()}
    return Views(_cosines(vectors), cosines, embedding_spread(vectors), vectors.shape[1])


def judge_encoder(views: Views, judges: Judges) -> Figures:
    """All criteria for one bi-encoder.

    Args:
        views: what the candidate, or a start, makes of the pairs of the judges.
        judges: what it is judged by.

    Returns:
        `alignment`: Spearman of its cosines with the starts' token alignment, in [-1, 1]. `agreement`: with the mean
        rank of all teachers. `views`: mean Spearman of
        its cosines with those of the same pairs without punctuation, without 15 % of their words, and with dropout,
        in [-1, 1]. `uniformity`: minus the sum of alignment and uniformity (Wang and Isola, ICML 2020); its positives
        are the tenth of the pairs that the teachers rank highest; in [-4, 8]. `rank`: the effective rank of the
        embeddings over their dimensions, in [0, 1]. `previous`, `cross`: Spearman with those scores. None where a
        figure is undefined: all its cosines are equal, or there is nothing to compare with.

    Example:
        >>> judge_encoder(look_at(model, pairs, seed=0), judges)["agreement"]  # doctest: +SKIP
        0.957...
    """
    scores = views.scores
    ranks = mean_rank(list(judges.teachers.values()) or [scores])
    positives = np.argsort(-ranks, kind="stable")[: max(1, round(_POSITIVES * len(ranks)))]
    distance = 2 - 2 * float(scores[positives].mean())  # squared, of vectors of length 1
    stable = [compare_ranks(scores, other) for other in views.changed.values()]
    return {
        "alignment": compare_ranks(scores, judges.teachers["alignment"]) if "alignment" in judges.teachers else None,
        "agreement": compare_ranks(scores, ranks) if judges.teachers else None,
        "views": None if None in stable else float(np.mean([value for value in stable if value is not None])),
        "uniformity": -distance - views.spread["uniformity"],
        "rank": views.spread["effective_rank"] / views.width,
        "previous": None if judges.previous is None else compare_ranks(scores, judges.previous),
        "cross": None if judges.cross is None else compare_ranks(scores, judges.cross),
    }


def be_cautious(figures: Mapping[str, dict[str, float] | None], nearness: float | None) -> dict[str, float] | None:
    """The criterion of the default: what to ask of a student depends on how far it has gone from its start.

    One that still ranks the pairs almost as its start does can have lost little: it has to be more stable under changed
    texts (`views`). One that has moved away has to follow the start's token alignment better than the start itself
    (`alignment`), by a margin.

    Args:
        figures: the other criteria, of the start and of the student.
        nearness: Spearman of both encoders' cosines.

    Returns:
        `start` and `trained` of the criterion that applies, the margin added to the start's; None where undefined.

    Example:
        >>> far = {"alignment": {"start": 0.9, "trained": 0.95}, "views": {"start": 0.9, "trained": 0.8}}
        >>> be_cautious(far, 0.9)
        {'start': 0.905, 'trained': 0.95}
    """
    near = nearness is not None and nearness >= NEAR
    figure = figures["views" if near else "alignment"]
    if figure is None or nearness is None:
        return None
    return {**figure, "start": round(figure["start"] + (0.0 if near else MARGIN), 5)}


def compare_ranks(scores: np.ndarray, others: np.ndarray) -> float | None:
    """Spearman of two sets of scores, in [-1, 1]; None where one of them is constant.

    Raises:
        StateError: a score is not finite.

    Example:
        >>> compare_ranks(np.array([0.1, 0.5, 0.9]), np.array([3.0, 2.0, 1.0]))
        -1.0
    """
    value = correlation(scores, others)["spearman"]
    return None if value is None else float(value)


def order_symmetry(cross: CrossEncoder, pairs: Dataset) -> float | None:
    """Spearman of a cross-encoder's scores of (a, b) with those of (b, a), in [-1, 1]; None where one is constant.

    Example:
        >>> order_symmetry(load_cross_encoder("my/cross-encoder"), pairs)  # doctest: +SKIP
        0.98...
    """
    rows = list(zip(pairs["sentence1"], pairs["sentence2"], strict=True))
    scores = score_pairs(cross, rows, symmetric=False)
    return compare_ranks(scores, score_pairs(cross, [(b, a) for a, b in rows], symmetric=False))


def drop_words(text: str, *, share: float, draw: random.Random) -> str:
    """The text without each of its words with this probability; the first word stays if nothing else does.

    Example:
        >>> drop_words("a cat sleeps in the sun", share=0.5, draw=random.Random(0))
        'a cat the'
    """
    words = text.split()
    return " ".join([word for word in words if draw.random() >= share] or words[:1])


def _encode_with_dropout(model: SentenceTransformer, texts: list[str], *, seed: int) -> np.ndarray:
    rows: list[Any] = []
    texts = cut_texts(texts, model.max_seq_length or _TOKENS)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        model.train()
        try:
            for start in range(0, len(texts), _BATCH):
                features = model.preprocess(texts[start : start + _BATCH])
                features = {name: value.to(model.device) if torch.is_tensor(value) else value
                            for name, value in features.items()}  # fmt: skip
                rows.append(model(features)["sentence_embedding"].float().cpu().numpy())
        finally:
            model.eval()
    return np.concatenate(rows)


def _merge(labels: Mapping[str, Scores], *, cross: bool) -> Scores | None:
    columns = [scores for name, scores in labels.items() if name.startswith("cross-") is cross]
    return mean_rank(columns) if columns else None


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Of the first half of the vectors with the second, pair by pair; 0 where one has no length."""
    first, second = np.split(vectors.astype(np.float64), 2)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("ij,ij->i", first, second)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
