"""What a student learns of its labels: which rows a loss sees, pairs or lists, and the loss itself.

All losses are those of sentence-transformers, on a bi-encoder's cosine or on a cross-encoder's score, the sigmoid of
its logit. Losses on lists compare the scores that one query has with its texts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Features, List, Value
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import losses as cross_losses
from sentence_transformers.sentence_transformer import losses as bi_losses
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor, nn

from transenc.config import LIST_LOSSES, BiTrainingSettings, CrossTrainingSettings
from transenc.errors import InputError
from transenc.regularisers import GeometryLoss, SymmetryLoss
from transenc.scoring import encode_texts

logger = logging.getLogger(__name__)

_ENOUGH = 0.5  # of the pairs must be in lists
_NEARLY_ALL = 0.75  # of the pairs in lists are kept when the lists are cut to one length
_IN_COLUMNS = ("kldiv", "marginmse")  # their losses take a column a text, so all lists have one length


class Target(NamedTuple):
    """Rows to train on, the loss for them, and how many rows make a batch."""

    rows: Dataset
    loss: nn.Module
    batch_size: int


def build_bi_target(
    model: SentenceTransformer,
    pairs: Dataset,
    *,
    settings: BiTrainingSettings,
    peer: SentenceTransformer | None = None,
) -> Target:
    """Return what a bi-encoder learns from labelled pairs.

    `mse`: the label is the cosine (the reference). `cosent`, `angle`: of any two pairs in the batch the one with the
    higher label has the higher cosine (Su, 2022; Li and Li, 2023). `kldiv`: over the texts of a list, softmax(cosine /
    temperature) is softmax(label / temperature) (Lin et al., 2020). `marginmse`: the cosine of a list's first text less
    that of another is the difference of their labels (Hofstätter et al., 2020).

    Args:
        model: the bi-encoder to train, as it is when training begins.
        pairs: columns sentence1, sentence2, score, and perhaps list, see `group_rows`.
        settings: loss, temperature, geometry; `batch_size` counts pairs, so a batch holds that many pairs in lists.
        peer: whose geometry is kept, if `settings.geometry` asks for it; None: the model's own before training. It
            may be of another kind: only its vectors are used.

    Returns:
        Rows: sentence1, sentence2, score; for lists sentence1 (the query), sentence2, sentence3, ... and score, a
        number for each text. With geometry the number of each text among the peer's vectors follows in score.

    Raises:
        InputError: a loss on lists, but hardly any pairs that share a query.

    Example:
        >>> build_bi_target(model, labels, settings=BiTrainingSettings(loss="kldiv")).loss  # doctest: +SKIP
        DistillKLDivLoss(...)
    """
    rows, batch_size = _arrange(pairs, settings)
    loss = _BI_LOSSES[settings.loss](model, settings.temperature)
    if settings.geometry:
        rows, texts = _number_texts(rows)
        vectors = torch.from_numpy(encode_texts(model if peer is None else peer, texts, progress=True))
        loss = GeometryLoss(loss, vectors, weight=settings.geometry)
    return Target(rows, loss, batch_size)


def build_cross_target(
    model: CrossEncoder, pairs: Dataset, *, settings: CrossTrainingSettings, symmetric: bool = True
) -> Target:
    """Return what a cross-encoder learns from labelled pairs; arguments and errors as for `build_bi_target`.

    `bce`: binary cross-entropy of the score with the label (the reference). `mse`: the label is the score. `marginmse`:
    as for a bi-encoder. `listnet`: over the texts of a list, softmax(score / temperature) is softmax(label /
    temperature) (Cao et al., 2007). `ranknet`: of any two texts of a list the one with the higher label has the higher
    score (Burges et al., 2005); `lambda`: likewise, weighted by what an exchange costs in nDCG (Wang et al., 2018).

    Symmetric pairs are seen in both orders. Lists keep theirs, query first.

    Returns:
        Rows: sentence1, sentence2, score; for marginmse as for a bi-encoder; for other lists sentence1, sentences (a
        list of texts), score (of numbers).

    Example:
        >>> build_cross_target(model, labels, settings=CrossTrainingSettings(symmetry=1.0)).batch_size  # doctest: +SKIP
        32
    """
    if settings.symmetry and not symmetric:
        raise InputError("symmetry: the order of asymmetric pairs matters; leave it out")
    if symmetric and settings.loss not in LIST_LOSSES:
        pairs = both_orders(pairs)
    rows, batch_size = _arrange(pairs, settings)
    loss = _CROSS_LOSSES[settings.loss](model, settings.temperature)
    return Target(rows, SymmetryLoss(loss, weight=settings.symmetry) if settings.symmetry else loss, batch_size)


def both_orders(pairs: Dataset) -> Dataset:
    """The pairs followed by the same pairs with their sentences exchanged."""
    first, second, score = (list(pairs[name]) for name in ("sentence1", "sentence2", "score"))
    return Dataset.from_dict({"sentence1": first + second, "sentence2": second + first, "score": score + score})


def group_rows(pairs: Dataset) -> list[list[int]]:
    """Find the lists among pairs: the rows of one number in the column `list`, or without it of one sentence1.

    Args:
        pairs: columns sentence1, sentence2, and perhaps list.

    Returns:
        The row numbers of each list, 2 or more, in the order of the rows.

    Raises:
        InputError: a list with two queries, or less than half of the pairs in lists.

    Example:
        >>> columns = {"sentence1": ["a", "b", "a"], "sentence2": ["c", "d", "e"]}
        >>> group_rows(Dataset.from_dict(columns)), group_rows(Dataset.from_dict({**columns, "list": [1, 2, 1]}))
        ([[0, 2]], [[0, 2]])
    """
    queries = list(pairs["sentence1"])
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(list(pairs["list"]) if "list" in pairs.column_names else queries):
        first = groups.setdefault(key, [row])[0]
        if queries[row] != queries[first]:
            raise InputError(
                f"list {key}: expected one sentence1, its query, found {queries[first]!r} and {queries[row]!r}; give "
                "each list a number of its own"
            )
        if row != first:
            groups[key].append(row)
    lists = [rows for rows in groups.values() if len(rows) > 1]
    found = sum(map(len, lists))
    if found < _ENOUGH * len(queries):
        raise InputError(
            f"a loss on lists needs pairs that share their sentence1: {found} of {len(queries)} do; mine lists "
            "(transenc mine --lists 8, or distill --sentences with --mine-list-size 8), or take a loss on pairs"
        )
    return lists


def cut_lists(lists: Sequence[list[int]], *, longest: int, equal: bool) -> list[list[int]]:
    """Cut lists into pieces of 2 up to `longest` rows, or of equal length; rows left over go.

    The equal length is the greatest that keeps three quarters of the rows, or else 2.

    Example:
        >>> cut_lists([[0, 1, 2, 3, 4], [5, 6]], longest=3, equal=False)
        [[0, 1, 2], [3, 4], [5, 6]]
        >>> cut_lists([[0, 1, 2], [3, 4, 5, 6]], longest=8, equal=True)
        [[0, 1, 2], [3, 4, 5]]
    """
    size, least = max(2, longest), 2
    if equal:
        lengths = [len(rows) for rows in lists]
        total = sum(lengths)
        sizes = range(min(size, max(lengths)), 2, -1)
        size = next((s for s in sizes if sum(n // s * s for n in lengths) >= _NEARLY_ALL * total), 2)
        least = size
    pieces = [rows[start : start + size] for rows in lists for start in range(0, len(rows), size)]
    return [piece for piece in pieces if len(piece) >= least]


def _arrange(pairs: Dataset, settings: BiTrainingSettings | CrossTrainingSettings) -> tuple[Dataset, int]:
    """The rows as the loss takes them, and how many of them hold `batch_size` pairs."""
    if settings.loss not in LIST_LOSSES:
        return pairs.select_columns(["sentence1", "sentence2", "score"]), settings.batch_size
    equal = settings.loss in _IN_COLUMNS
    lists = cut_lists(group_rows(pairs), longest=settings.batch_size, equal=equal)
    used = sum(map(len, lists))
    logger.info("%d lists of %.1f texts from %d of %d pairs", len(lists), used / len(lists), used, len(pairs))
    queries, texts, scores = (list(pairs[name]) for name in ("sentence1", "sentence2", "score"))
    columns: dict[str, Any] = {"sentence1": [queries[rows[0]] for rows in lists]}
    kinds: dict[str, Any] = {"sentence1": Value("string"), "score": List(Value("float32"))}
    if equal:
        for place in range(len(lists[0])):
            columns[f"sentence{place + 2}"] = [texts[rows[place]] for rows in lists]
            kinds[f"sentence{place + 2}"] = Value("string")
    else:
        columns["sentences"] = [[texts[row] for row in rows] for rows in lists]
        kinds["sentences"] = List(Value("string"))
    unit = settings.temperature if settings.loss == "listnet" else 1.0  # the loss takes the labels' softmax as they are
    columns["score"] = [[scores[row] / unit for row in rows] for rows in lists]
    rows = Dataset.from_dict(columns, Features({name: kinds[name] for name in columns}))
    return rows, max(1, round(settings.batch_size * len(lists) / used))


def _number_texts(rows: Dataset) -> tuple[Dataset, list[str]]:
    """The rows, in `score` also each text's number among the different texts, and these."""
    names = [name for name in rows.column_names if name != "score"]
    columns = {name: list(rows[name]) for name in names}
    numbers: dict[str, int] = {}
    places = [[numbers.setdefault(text, len(numbers)) for text in columns[name]] for name in names]
    scores = [score if isinstance(score, list) else [score] for score in rows["score"]]
    columns["score"] = [[*score, *own] for score, own in zip(scores, zip(*places, strict=True), strict=True)]
    kinds = {name: List(Value("float32")) if name == "score" else Value("string") for name in columns}
    return Dataset.from_dict(columns, Features(kinds)), list(numbers)


def scale_cosine(first: Tensor, second: Tensor, *, scale: float = 1.0) -> Tensor:
    """The cosine of each row of [B, d] with its counterpart, times `scale`: [B], float32 also under autocast.

    Example:
        >>> scale_cosine(torch.eye(2), torch.ones(2, 2), scale=2.0)
        tensor([1.4142, 1.4142])
    """
    return pairwise_cos_sim(first.float(), second.float()) * scale


class ScaledSigmoid(nn.Module):
    """The sigmoid of a logit over a temperature, float32 also under autocast.

    Example:
        >>> ScaledSigmoid(0.5)(torch.zeros(1))
        tensor([1.])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return logits.float().sigmoid() / self.temperature


def _build_kldiv(model: SentenceTransformer, temperature: float) -> nn.Module:
    # the loss multiplies by the square of the student's temperature: scaled cosines leave it at 1
    return bi_losses.DistillKLDivLoss(
        model, partial(scale_cosine, scale=1 / temperature), student_temperature=1.0, teacher_temperature=temperature
    )


def _build_list_loss(name: str, model: CrossEncoder, temperature: float) -> nn.Module:
    # mini_batch_size: by default a batch of 4 lists would pass in 4 pairs at a time
    return getattr(cross_losses, name)(model, activation_fn=ScaledSigmoid(temperature), mini_batch_size=-1)


_BI_LOSSES: dict[str, Callable[[Any, float], nn.Module]] = {
    "mse": lambda model, _: bi_losses.CosineSimilarityLoss(model),
    "cosent": lambda model, temperature: bi_losses.CoSENTLoss(model, scale=1 / temperature),
    "angle": lambda model, temperature: bi_losses.AnglELoss(model, scale=1 / temperature),
    "kldiv": _build_kldiv,
    "marginmse": lambda model, _: bi_losses.MarginMSELoss(model, scale_cosine),
}
_CROSS_LOSSES: dict[str, Callable[[Any, float], nn.Module]] = {
    "bce": lambda model, _: cross_losses.BinaryCrossEntropyLoss(model),
    "mse": lambda model, _: cross_losses.MSELoss(model, ScaledSigmoid()),
    "marginmse": lambda model, _: cross_losses.MarginMSELoss(model, ScaledSigmoid()),
    "listnet": partial(_build_list_loss, "ListNetLoss"),
    "ranknet": partial(_build_list_loss, "RankNetLoss"),
    "lambda": partial(_build_list_loss, "LambdaLoss"),
}
