"""Dropout of a model, changed for the length of a training.

A student without dropout comes nearer to its labels (docs/study.md has what that gives). Newer language models have
none: then the two views of a sentence that SimCSE compares are the same, unless some is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def use_dropout(model: nn.Module, rate: float | None) -> Iterator[None]:
    """Set the probability of every dropout in a model for the block: of the layers, and of the attention.

    A layer that was built without dropout (some models leave it out where their configuration says 0) stays so. The
    configuration, and with it what is saved, keeps the model's own probabilities.

    Args:
        model: any module.
        rate: 0 to below 1; None: nothing is changed.

    Raises:
        ValueError: another rate.

    Example:
        >>> layer = nn.Dropout(0.1)
        >>> with use_dropout(layer, 0.0):
        ...     layer.p
        0.0
        >>> layer.p
        0.1
    """
    if rate is not None and not 0 <= rate < 1:
        raise ValueError(f"rate: expected at least 0 and below 1, found {rate}")
    places = [] if rate is None else list(_find_places(model))
    own = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, rate)
        yield
    finally:
        for (module, name), value in zip(places, own, strict=True):
            setattr(module, name, value)


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes of one text differ in training.

    Example:
        >>> has_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
        False
    """
    return any(getattr(module, name) > 0 for module, name in _find_places(model))


def _find_places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules and their attributes: `p` of dropout layers, and numbers such as `attention_dropout` of others."""
    for module in model.modules():
        for name, value in vars(module).items():
            dropout = "dropout" in name or (name == "p" and isinstance(module, _DropoutNd))
            if dropout and isinstance(value, float | int) and not isinstance(value, bool):
                yield module, name
