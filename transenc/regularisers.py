"""What can be added to a student's loss: one score for both orders of a pair, and another model's geometry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.nn import functional

from transenc.errors import InputError

_EXACT = 2**24  # up to here float32, the type of a label, holds every whole number


def compare_geometry(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of `(cos_A(i, j) - cos_B(i, j))^2` over all i and j that differ, a scalar.

    The geometric consistency of "Understanding and Constructing Latent Modality Structures in Multi-Modal
    Representation Learning" (CVPR 2023), between two models of the same texts.

    Args:
        first: [N, d] vectors of N texts, 2 or more, by model A.
        second: [N, e] vectors of the same texts by model B.

    Example:
        >>> right, same = torch.eye(2), torch.eye(3)[[0, 0]]
        >>> float(compare_geometry(right, same)), float(compare_geometry(right, 3 * right))
        (1.0, 0.0)
    """
    with torch.autocast(first.device.type, enabled=False):
        units = [functional.normalize(vectors.float(), dim=1) for vectors in (first, second)]
        apart = (units[0] @ units[0].T - units[1] @ units[1].T).square()
        count = len(apart)
        return (apart.sum() - apart.diagonal().sum()) / (count * (count - 1))


class GeometryLoss(nn.Module):
    """A bi-encoder's loss plus `weight` times `compare_geometry` of the batch's texts to those of a frozen peer.

    | inputs | labels |
    |---|---|
    | (text 1, ..., text k) | the labels of the loss, then for each of the k texts its row in `peer`: [B, n + k] |

    Args:
        loss: of sentence-transformers, on the model's `sentence_embedding`; its labels [B, n], or [B] for n = 1.
        peer: [rows, dim] the peer's vectors. They are no part of the state: a checkpoint does not hold them.
        weight: positive; above 0.1 it soon outweighs the labels.

    Raises:
        InputError: `peer` has more rows than a label can number.

    Example:
        >>> from sentence_transformers.sentence_transformer.losses import CoSENTLoss
        >>> GeometryLoss(CoSENTLoss(model), torch.eye(4), weight=0.1)  # doctest: +SKIP
    """

    peer: Tensor

    def __init__(self, loss: nn.Module, peer: Tensor, *, weight: float) -> None:
        super().__init__()
        if len(peer) > _EXACT:
            raise InputError(f"geometry: expected at most {_EXACT} different texts, found {len(peer)}; set it to 0")
        self.model, self.loss, self.weight = loss.model, loss, weight
        self.register_buffer("peer", peer, persistent=False)

    def forward(self, sentence_features: Iterable[Mapping[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the batch's loss, a scalar."""
        features = list(sentence_features)
        own, rows = labels[:, : -len(features)], labels[:, -len(features) :].long()
        model: Any = self.loss.model  # not `self.model`: a trainer may wrap one after the other
        with _record(model, "sentence_embedding") as embeddings:
            loss = self.loss(features, own.squeeze(1))
        # column by column, also where the loss has passed several columns at once
        return loss + self.weight * compare_geometry(torch.cat(embeddings), self.peer[rows.T.flatten()])


class SymmetryLoss(nn.Module):
    """A cross-encoder's loss plus `weight` times the mean of `(ce(a, b) - ce(b, a))^2` over the pairs of the batch.

    ce is the score, the sigmoid of the logit. Every pair passes once more, with its texts exchanged.

    | inputs | labels |
    |---|---|
    | those of the loss: (text, text), (query, text 1, ..., text k) or (query, [texts]) | those of the loss |

    Args:
        loss: of sentence-transformers, for a cross-encoder with one output.
        weight: positive.

    Example:
        >>> from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
        >>> SymmetryLoss(BinaryCrossEntropyLoss(model), weight=1.0)  # doctest: +SKIP
    """

    def __init__(self, loss: nn.Module, *, weight: float) -> None:
        super().__init__()
        self.model, self.loss, self.weight = loss.model, loss, weight

    def forward(self, inputs: Sequence[Any], labels: Any, prompt: str | None = None, task: str | None = None) -> Tensor:
        """Return the batch's loss, a scalar."""
        model: Any = self.loss.model
        with _record(model, "scores") as logits:
            loss = self.loss(inputs, labels, prompt=prompt, task=task)
        exchanged = [(text, query) for query, text in pair_up(inputs)]
        features = batch_to_device(model.preprocess(exchanged, prompt=prompt, task=task), model.device)
        there, back = (scores.float().sigmoid().flatten() for scores in (torch.cat(logits), model(features)["scores"]))
        return loss + self.weight * (there - back).square().mean()


def pair_up(inputs: Sequence[Any]) -> list[tuple[str, str]]:
    """The pairs that a cross-encoder's loss scores, in its order: text by text of a list, or column by column.

    Example:
        >>> pair_up([["a", "b"], [["c", "d"], ["e"]]])
        [('a', 'c'), ('a', 'd'), ('b', 'e')]
        >>> pair_up([["a", "b"], ["c", "d"], ["e", "f"]])
        [('a', 'c'), ('b', 'd'), ('a', 'e'), ('b', 'f')]
    """
    queries, *columns = inputs
    if isinstance(columns[0][0], str):
        return [pair for column in columns for pair in zip(queries, column, strict=True)]
    return [(query, text) for query, texts in zip(queries, columns[0], strict=True) for text in texts]


@contextmanager
def _record(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """What the model gives as `name`, call by call: so a loss and what is added to it share one pass."""
    outputs: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, given, output: outputs.append(output[name]))
    try:
        yield outputs
    finally:
        handle.remove()
