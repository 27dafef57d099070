"""What makes two distillations the same: settings, models, data and machine, as run.json records them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from transenc.config import Backbone, DistillConfig, to_dict
from transenc.devices import resolve_devices, resolve_precision
from transenc.encoders import model_digest
from transenc.run import digest_rows


def identify_run(
    backbones: Sequence[Backbone],
    pairs: Dataset | None,
    sentences: Sequence[str] | None,
    *,
    config: DistillConfig,
    dev: Dataset | None,
    symmetric: bool,
    device: str | Sequence[str] | None,
    inputs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that decides what a run makes, by digests; `inputs` are names for people, and not compared.

    Args:
        backbones: as for `distill`, like all that follow.
        pairs: the pairs given, or None.
        sentences: the sentences given, or None.
        config: every setting; those of bootstrap and mining count only where they are used.
        dev: the dev set, with all its columns.
        symmetric: whether the order of a pair means nothing.
        device: recorded as it is resolved here.
        inputs: names for people.

    Raises:
        InputError: a model or device that is not there.

    Example:
        >>> identify_run([Backbone("my/encoder")], pairs, None, config=DistillConfig(), dev=None, symmetric=True,
        ...              device="cpu", inputs=None)["pairs"]["rows"]  # doctest: +SKIP
        1000
    """
    devices = resolve_devices(device)
    return {
        "config": _describe_config(config, mined=pairs is None),
        "backbones": {f"model-{i}": _describe_backbone(backbone) for i, backbone in enumerate(backbones)},
        "pairs": {**_describe_texts(pairs, sentences), "symmetric": symmetric},
        "dev": None if dev is None else {"rows": len(dev), "sha256": _digest_columns(dev, dev.column_names)},
        "machine": {
            "device": ",".join(devices),
            "threads": torch.get_num_threads(),
            "precision": resolve_precision(config.precision, device=devices[0]),
        },
        "inputs": dict(inputs or {}),
    }


def _describe_backbone(backbone: Backbone) -> dict[str, Any]:
    return {
        "bi": model_digest(backbone.bi),
        "cross": None if backbone.cross is None else model_digest(backbone.cross),
        "pooling": backbone.pooling,
        "weight": backbone.weight,
    }


def _describe_config(config: DistillConfig, *, mined: bool) -> dict[str, Any]:
    """The settings that matter: from given pairs nothing is bootstrapped or mined."""
    return {name: value for name, value in to_dict(config).items() if mined or name not in ("bootstrap", "mine")}


def _describe_texts(pairs: Dataset | None, sentences: Sequence[str] | None) -> dict[str, Any]:
    if pairs is not None:
        columns = [name for name in ("sentence1", "sentence2", "list") if name in pairs.column_names]
        return {"rows": len(pairs), "sha256": _digest_columns(pairs, columns)}
    assert sentences is not None
    return {"sentences": len(sentences), "sha256": digest_rows(sentences)}


def _digest_columns(rows: Dataset, columns: Sequence[str]) -> str:
    return digest_rows(zip(*(rows[name] for name in columns), strict=True))
