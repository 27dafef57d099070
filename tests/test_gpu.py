"""What only a GPU shows: mixed precision and device placement.

On a machine with one: `make test-gpu`, one call, no network.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from transenc.config import Backbone, DistillConfig, merge_config
from transenc.devices import resolve_precision
from transenc.distillation import distill
from transenc.encoders import load_bi_encoder, load_cross_encoder, load_encoder
from transenc.pairs import read_pairs
from transenc.scoring import score_pairs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

SMALL = merge_config(
    DistillConfig(), {"cycles": 1, "save_steps": 2, "bi": {"batch_size": 8}, "cross": {"batch_size": 8}}
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scores_equal_those_of_the_cpu(
    dtype: str, tiny_bi: Path, tiny_cross: Path, tiny_pairs: list[tuple[str, str]]
) -> None:
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 3e-3}[dtype]
    for folder, load in ((tiny_bi, load_bi_encoder), (tiny_cross, load_cross_encoder)):
        here = score_pairs(load(folder, device="cpu"), tiny_pairs)
        there = score_pairs(load(folder, device="cuda", dtype=dtype), tiny_pairs)
        np.testing.assert_allclose(there, here, atol=tolerance)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_distillation_runs_in_every_precision(
    precision: str, tiny_bi: Path, tiny_pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL, precision=precision)
    result = distill([Backbone(str(tiny_bi))], read_pairs(tiny_pairs), output_dir=tmp_path, config=config)
    start = load_encoder(str(tiny_bi), device="cpu").state_dict()
    for folder in result.bi_encoders:
        trained = load_encoder(str(folder), device="cpu").state_dict()
        assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in trained.values())
        assert any(not torch.equal(trained[name], start[name]) for name in start)


def test_two_processes_train_side_by_side(
    tiny_bi: Path, tiny_bi_b: Path, tiny_pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    backbones = [Backbone(str(tiny_bi)), Backbone(str(tiny_bi_b))]
    config = dataclasses.replace(SMALL, precision="float32")
    for name, device in (("one", "cuda"), ("two", "cuda:0,cuda:0")):
        distill(backbones, read_pairs(tiny_pairs), output_dir=tmp_path / name, config=config, device=device)
    for i in (0, 1):
        models = [tmp_path / name / f"stages/c01-40-bi-train/model-{i}" for name in ("one", "two")]
        np.testing.assert_allclose(*(score_pairs(load_encoder(m, device="cpu"), tiny_pairs) for m in models), atol=1e-3)


def test_auto_is_a_half_precision_here() -> None:
    assert resolve_precision("auto", device="cuda") in {"bfloat16", "float16"}
