"""The contrastive loss in a form that small batches estimate without bias.

InfoNCE, `-s+ + log Z` with scores s = cosine / temperature and `Z = e^{s+} + sum over the M negatives of e^s`, is not a
sum over the negatives: a batch gives an unbiased estimate of Z, but not of log Z, and the fewer negatives, the worse
("Why do we need large batch sizes in contrastive learning? A gradient-bias perspective", NeurIPS 2022). Since `1/Z` is
the integral of `e^{-uZ}` over u > 0, a variable `u ~ Gamma(1, rate Z)` per sentence makes it one: for fixed u,

    -s+ + u Z - log u - 1  >=  -s+ + log Z,  equal at u = 1/Z, the mean of u,

and `u Z` is linear in the negatives, so that a batch's share, times M / (negatives in the batch), is unbiased. In
turns, u follows the encoder, by a moving average of each sentence's Z, and the encoder the loss with u held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from transenc.errors import InputError, StateError


def decomposed_loss(positives: Tensor, negatives: Tensor, log_u: Tensor, *, population: float | None = None) -> Tensor:
    """Return `-s+ + u (e^{s+} + (M / N) sum of e^s over the negatives) - log u - 1` for each anchor.

    Args:
        positives: [A] score of each anchor with its positive, cosine / temperature.
        negatives: [A, N] scores with negatives; -inf marks a cell that is none.
        log_u: [A] the auxiliary variables, held fixed: no gradient flows through them.
        population: M, the negatives that the N stand for; none: as many as there are.

    Returns:
        [A], an upper bound of `-s+ + log Z` that is tight at `log_u = -log Z`; the gradient is then InfoNCE's.

    Example:
        >>> scores = torch.tensor([[2.0, 1.0, 0.0]])
        >>> log_u = -scores.logsumexp(1)
        >>> round(float(decomposed_loss(scores[:, 0], scores[:, 1:], log_u)), 4)  # as cross_entropy(scores, [0])
        0.4076
    """
    log_u = log_u.detach()
    share = (log_u + positives).exp() + (log_u[:, None] + _spread(negatives, population)).exp().sum(1)
    return share - positives - log_u - 1


def estimate_log_z(positives: Tensor, negatives: Tensor, *, population: float | None = None) -> Tensor:
    """Return `log Z`, [A], as estimated from the negatives given; arguments as for `decomposed_loss`.

    Example:
        >>> zeros = torch.zeros(1, 2)
        >>> round(float(estimate_log_z(zeros[:, 0], zeros, population=9).exp()), 4)
        10.0
    """
    return torch.logaddexp(positives, _spread(negatives, population).logsumexp(1))


def average_log_z(old: Tensor, new: Tensor, *, memory: float) -> Tensor:
    """Return the logarithm of `memory * e^old + (1 - memory) * e^new`; where `old` is -inf (nothing yet), `new`.

    On a frozen encoder the average's variance settles at g / (2 - g) times that of one estimate, g = 1 - memory.

    Example:
        >>> average_log_z(torch.tensor([0.0, -torch.inf]), torch.tensor([1.0, 3.0]), memory=0.5).exp().round(decimals=2)
        tensor([ 1.8600, 20.0900])
    """
    kept = old + (math.log(memory) if memory else -math.inf)
    return torch.where(old.isneginf(), new, torch.logaddexp(kept, new + math.log1p(-memory)))


def _spread(negatives: Tensor, population: float | None) -> Tensor:
    """The scores plus log(M / N), so that their exponentials sum up over the population."""
    if population is None:
        return negatives
    count = (~negatives.isneginf()).sum(1, keepdim=True)
    return negatives + math.log(population) - count.to(negatives.dtype).log()


class DecomposedContrastiveLoss(nn.Module):
    """InfoNCE over all sentences of the training set, from small batches: see the module and `decomposed_loss`.

    The other sentences' second views are an anchor's negatives. Each sentence keeps log S, the moving average of its
    Z as its batches estimate it, `S <- memory S + (1 - memory) Z_batch`, which starts at the first estimate; `u = 1/S`.
    A run of one epoch sees each sentence once, so its first estimate is all there is: `queue` then takes S from the
    batch and the embeddings of past batches instead, and no sentence keeps anything.

    `clip` holds u within that factor of the batch's own 1/Z, so that the weights of an anchor's scores, which sum to 1
    in InfoNCE, sum to between 1/clip and clip. What is kept of S is not clipped: a mean of clipped estimates would be
    biased for good. Infinity leaves u as it is: the less bias, the longer the memory, but a rare hard negative has a
    large gradient, and sentences last seen by a much younger encoder, whose Z was larger, hardly push their negatives
    away until S has come down. 1 is InfoNCE with the population factor: the least variance, the most bias.

    Everything is computed in float32, also under autocast. The state is that of one process. In evaluation mode u is
    from the batch alone and the state stays as it is. A batch of one sentence has no negatives: loss and gradient 0.

    | inputs | labels |
    |---|---|
    | (first view, second view) | row of the sentence in the training set, int64 |

    Args:
        model: a bi-encoder: features in, `sentence_embedding` [B, dim] out.
        rows: sentences of the training set, 2 or more; labels are in [0, rows).
        temperature: of the cosine, positive.
        memory: share of the old S that a visit keeps, 0 to below 1.
        queue: embeddings of past batches that S is estimated from; 0: a table of S instead.
        sample: draw u from Gamma(1, rate S), S clipped, instead of taking its mean 1/S; adds variance, no bias.
        population: negatives that Z stands for; none: all other rows.
        clip: 1 or more; infinity: none.

    Raises:
        InputError: an argument, or in `forward` a label, is out of its range, or a row is twice in a batch.

    Example:
        >>> class Encoder(nn.Module):
        ...     def forward(self, features):
        ...         return {"sentence_embedding": features["x"]}
        >>> loss = DecomposedContrastiveLoss(Encoder(), rows=4)
        >>> views = {"x": torch.eye(4)}
        >>> round(float(loss([views, views], torch.arange(4))), 4)
        0.0
    """

    log_s: Tensor
    queued: Tensor
    queued_rows: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: int,
        temperature: float = 0.05,
        memory: float = 0.9,
        queue: int = 0,
        sample: bool = False,
        population: float | None = None,
        clip: float = 3.0,
    ) -> None:
        super().__init__()
        population = rows - 1 if population is None else population
        for name, value, fits, expected in (
            ("rows", rows, rows >= 2, "2 or more (the other rows are the negatives)"),
            ("temperature", temperature, 0 < temperature < math.inf, "a positive number"),
            ("memory", memory, 0 <= memory < 1, "at least 0 and below 1"),
            ("queue", queue, queue >= 0, "0 or more"),
            ("population", population, 0 < population < math.inf, "a positive number"),
            ("clip", clip, clip >= 1, "1 or more"),
        ):
            if not fits:
                raise InputError(f"{name}: expected {expected}, found {value!r}")
        self.model = model
        self.rows, self.temperature, self.memory, self.queue = rows, temperature, memory, queue
        self.sample, self.population, self.clip = sample, population, clip
        self.register_buffer("log_s", torch.full((0 if queue else rows,), -torch.inf))  # -inf: never visited
        self.register_buffer("queued", torch.empty(0, 0))  # newest first
        self.register_buffer("queued_rows", torch.empty(0, dtype=torch.int64))

    def forward(self, sentence_features: Iterable[Mapping[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the batch's mean loss, a scalar, and in training mode take the batch into the state."""
        views = [self.model(features)["sentence_embedding"] for features in sentence_features]
        if len(views) != 2:
            raise InputError(f"inputs of the loss: expected two views of each sentence, found {len(views)} columns")
        with torch.autocast(views[0].device.type, enabled=False):
            anchors, others = (functional.normalize(view.float(), dim=1) for view in views)
            scores = anchors @ others.T / self.temperature
            if len(scores) < 2:
                return scores.sum() * 0
            positives = scores.diagonal()
            negatives = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), -torch.inf)
            with torch.no_grad():
                log_s = estimate_log_z(positives, negatives, population=self.population)
                if self.training and self.model.training:
                    log_s = self._visit(self._check(labels, len(scores)), anchors, others, scores, log_s)
                log_u = -log_s
                if self.sample:
                    log_u += torch.empty_like(log_u).exponential_().log()
            return decomposed_loss(positives, negatives, log_u, population=self.population).mean()

    def _visit(self, rows: Tensor, anchors: Tensor, others: Tensor, scores: Tensor, log_z: Tensor) -> Tensor:
        """Take a batch into the state and return log S of its rows."""
        if self.queue:
            keys = torch.cat([others, self.queued.view(-1, others.shape[1])])
            key_rows = torch.cat([rows, self.queued_rows])
            every = torch.cat([scores, anchors @ keys[len(rows) :].T / self.temperature], 1)
            every = every.masked_fill(rows[:, None] == key_rows, -torch.inf)
            log_s = estimate_log_z(scores.diagonal(), every, population=self.population)
            self.queued, self.queued_rows = keys[: self.queue].clone(), key_rows[: self.queue].clone()
        else:
            log_s = average_log_z(self.log_s[rows], log_z, memory=self.memory)
            self.log_s[rows] = log_s
        return log_s.clamp(log_z - math.log(self.clip), log_z + math.log(self.clip))

    def _check(self, labels: Tensor, batch: int) -> Tensor:
        if labels is None or labels.shape != (batch,) or labels.dtype != torch.int64:
            found = None if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
            raise InputError(
                f"labels: expected the row of each of the {batch} sentences, int64 [{batch}], found {found}"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= self.rows:
            raise InputError(
                f"labels: expected rows in [0, {self.rows}), found {int(labels.min())} to {int(labels.max())}"
            )
        if len(labels.unique()) < batch:
            raise InputError("labels: expected each row once in a batch, found one twice")
        return labels

    def state(self) -> dict[str, Tensor]:
        """Return what training has gathered, without the model's weights: copies, on the CPU.

        `log_s` [rows] (-inf: never visited), or with a queue `queued` [up to queue, dim] and `queued_rows`.

        Example:
            >>> sorted(DecomposedContrastiveLoss(nn.Identity(), rows=3, queue=8).state())
            ['queued', 'queued_rows']
        """
        names = ("queued", "queued_rows") if self.queue else ("log_s",)
        return {name: getattr(self, name).detach().cpu().clone() for name in names}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave.

        Raises:
            StateError: it is of another kind or size of loss, or holds NaN.

        Example:
            >>> loss = DecomposedContrastiveLoss(nn.Identity(), rows=3)
            >>> loss.load_state({"log_s": torch.zeros(3)})
            >>> loss.log_s.tolist()
            [0.0, 0.0, 0.0]
        """
        own = self.state()
        if set(state) != set(own):
            raise StateError(f"state of the loss: expected {sorted(own)}, found {sorted(state)}")
        if not self.queue and state["log_s"].shape != (self.rows,):
            raise StateError(f"state of the loss: expected {self.rows} rows, found {tuple(state['log_s'].shape)}")
        for name, value in state.items():
            if value.isnan().any():
                raise StateError(f"state of the loss: {name} holds NaN")
            setattr(self, name, value.to(getattr(self, name).device, own[name].dtype).clone())
