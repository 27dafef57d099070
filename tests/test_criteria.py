"""Criteria without labels: hand-computed figures, what is undefined, and what a run makes of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from scenario import CONFIG, make_dataset

from transenc.config import CRITERIA, Backbone, DistillConfig
from transenc.criteria import (
    Judges,
    Views,
    be_cautious,
    compare_ranks,
    drop_words,
    judge_encoder,
    judge_students,
    look_at,
    order_symmetry,
    sample_rows,
    score_teachers,
)
from transenc.distillation import DistillResult, distill
from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import StateError
from transenc.outcome import choose_best, explain_choice, wants_cycle
from transenc.scoring import score_pairs
from transenc.views import mean_rank

PAIRS = make_dataset(24)
PLAIN = dataclasses.replace(CONFIG, eval_steps=0)


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """A copy of an encoder with other weights."""
    shutil.copytree(source, target)
    path = next(target.rglob("model.safetensors"))
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return target


# ---- the sample


def test_the_sample_has_each_pair_once_and_no_sentence_with_itself() -> None:
    pairs = Dataset.from_dict({"sentence1": ["a", "b", "a", "c", "d"], "sentence2": ["b", "a", "b", "c", "a"]})
    assert sample_rows(pairs, seed=1) == [0, 4]


def test_the_sample_depends_on_the_seed_alone() -> None:
    rows = sample_rows(PAIRS, seed=3, size=9)
    assert rows == sorted(set(rows)) == sample_rows(PAIRS, seed=3, size=9)
    assert len(rows) == 9
    assert rows != sample_rows(PAIRS, seed=4, size=9)


# ---- figures


def test_ranks_are_compared_by_spearman() -> None:
    assert compare_ranks(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert compare_ranks(np.array([0.5, 0.5, 0.5]), np.array([1.0, 2.0, 3.0])) is None
    with pytest.raises(StateError, match="finite"):
        compare_ranks(np.array([0.5, np.nan, 0.5]), np.array([1.0, 2.0, 3.0]))


def test_a_sentence_keeps_at_least_its_first_word() -> None:
    assert drop_words("one two three", share=1.0, draw=random.Random(0)) == "one"
    assert drop_words("one two three", share=0.0, draw=random.Random(0)) == "one two three"


def test_the_criteria_by_hand() -> None:
    scores = np.array([0.9, 0.1, 0.4, 0.3])
    views = Views(
        scores,
        {"one": scores, "other": np.array([0.9, 0.1, 0.3, 0.4])},
        {"uniformity": -3.0, "effective_rank": 4.0},
        16,
    )
    teachers = {"cosine": np.array([0.8, 0.2, 0.3, 0.5]), "overlap": np.array([1.0, 0.0, 0.2, 0.4])}
    found = judge_encoder(views, Judges(PAIRS.select(range(4)), teachers, previous=-scores))
    assert found == {
        "alignment": None,  # no such teacher
        "agreement": pytest.approx(0.8),  # ranks 4 1 3 2 and 4 1 2 3
        "views": pytest.approx(0.9),
        "uniformity": pytest.approx(3.0 - 0.2),  # the one positive has cosine 0.9, so the squared distance 0.2
        "rank": 0.25,
        "previous": -1.0,
        "cross": None,
    }


def test_equal_cosines_have_no_criterion_by_rank() -> None:
    flat = np.full(4, 0.5)
    views = Views(flat, {"one": flat}, {"uniformity": 0.0, "effective_rank": 1.0}, 16)
    judges = Judges(PAIRS.select(range(4)), {"overlap": np.arange(4.0)}, flat, flat)
    found = judge_encoder(views, judges)
    assert [name for name, figure in found.items() if figure is None] == [
        "alignment",
        "agreement",
        "views",
        "previous",
        "cross",
    ]
    assert judge_encoder(views, dataclasses.replace(judges, teachers={}))["agreement"] is None


def test_the_teachers_are_those_of_all_starts(tiny_bi: Path, tiny_bi_b: Path) -> None:
    models = [load_bi_encoder(folder, device="cpu") for folder in (tiny_bi, tiny_bi_b)]
    teachers = score_teachers(models, PAIRS)
    assert list(teachers) == ["cosine", "alignment", "overlap"]
    assert np.array_equal(teachers["cosine"], mean_rank([score_pairs(model, PAIRS) for model in models]))
    strange = Dataset.from_dict({"sentence1": ["a cat", "a dog"], "sentence2": ["the bird", "the fish"]})
    assert "overlap" not in score_teachers(models, strange)  # 0 for every pair


def test_what_a_model_makes_of_the_pairs(tiny_bi: Path) -> None:
    model = load_bi_encoder(tiny_bi, device="cpu")
    state = torch.random.get_rng_state()
    views = look_at(model, PAIRS, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert views.scores == pytest.approx(score_pairs(model, PAIRS), abs=1e-6)
    assert views.changed["punctuation"] != pytest.approx(views.scores, abs=1e-6)  # a full stop is added
    again = look_at(model, PAIRS, seed=1)
    for name in ("punctuation", "words", "dropout"):
        assert np.array_equal(views.changed[name], again.changed[name])
        assert np.abs(views.changed[name]).max() <= 1 + 1e-6
    other = look_at(model, PAIRS, seed=2)
    for name in ("words", "dropout"):
        assert not np.array_equal(views.changed[name], other.changed[name])


def test_both_orders_of_a_cross_encoder(tiny_cross: Path) -> None:
    model = load_cross_encoder(tiny_cross, device="cpu")
    rows = list(zip(PAIRS["sentence1"], PAIRS["sentence2"], strict=True))
    orders = [model.predict(given, show_progress_bar=False) for given in (rows, [(b, a) for a, b in rows])]
    assert order_symmetry(model, PAIRS) == pytest.approx(compare_ranks(*orders), abs=1e-3)


# ---- students beside their starts


def test_a_student_is_judged_beside_its_own_start(tiny_bi: Path, tiny_bi_b: Path) -> None:
    labels = {"bi-0": np.arange(24, dtype=np.float32), "cross-0": np.arange(24, dtype=np.float32)[::-1]}
    same, other = judge_students(
        [(0, tiny_bi), (0, tiny_bi_b)], [tiny_bi], PAIRS, labels=labels, load=load_on_cpu, seed=0
    )
    assert list(same) == list(other) == list(CRITERIA)
    for name in CRITERIA[1:]:
        first, second = same[name], other[name]
        assert first is not None and second is not None
        assert first["start"] == first["trained"] == second["start"]
        assert second["trained"] != second["start"]
    assert same["previous"]["trained"] == -same["cross"]["trained"]  # type: ignore[index]
    assert same["cautious"] == same["views"]  # as near to its start as can be
    assert other["cautious"]["trained"] == other["alignment"]["trained"]  # type: ignore[index]


def load_on_cpu(folder: Path) -> Any:
    return load_bi_encoder(folder, device="cpu")


def test_a_student_whose_embeddings_are_all_alike_is_undefined(tiny_bi: Path, tmp_path: Path) -> None:
    flat = rewrite(tiny_bi, tmp_path / "flat", torch.zeros_like)
    (found,) = judge_students([(0, flat)], [tiny_bi], PAIRS, labels={}, load=load_on_cpu, seed=0)
    assert {name for name in CRITERIA if found[name]} == {"uniformity", "rank"}
    assert found["rank"]["trained"] == 0.0 < found["rank"]["start"]  # type: ignore[index]


def test_a_start_without_numbers_judges_nobody(tiny_bi: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(folder: Path) -> Any:
        raise StateError("the weights hold NaN")

    with caplog.at_level(logging.WARNING):
        (found,) = judge_students([(0, tiny_bi)], [tiny_bi], PAIRS, labels={}, load=fail, seed=0)
    assert found == dict.fromkeys(CRITERIA)
    assert "a start cannot judge: the weights hold NaN" in caplog.text


@pytest.mark.parametrize(
    ("nearness", "expected"),
    [(1.0, (0.7, 0.8)), (0.98, (0.7, 0.8)), (0.979, (0.905, 0.6)), (None, None)],
)
def test_what_is_asked_depends_on_the_way_from_the_start(
    nearness: float | None, expected: tuple[float, float] | None
) -> None:
    figures = {"views": {"start": 0.7, "trained": 0.8}, "alignment": {"start": 0.9, "trained": 0.6}}
    found = be_cautious(figures, nearness)
    assert found == (None if expected is None else dict(zip(("start", "trained"), expected, strict=True)))
    assert be_cautious({**figures, "views": None, "alignment": None}, nearness) is None


# ---- the choice


BY_ALIGNMENT = DistillConfig(select="alignment")


def candidate(cycle: int, start: float | None, trained: float | None, *, backbone: int = 0) -> dict[str, Any]:
    figures = None if start is None else {"start": start, "trained": trained}
    entry = {"backbone": backbone, "path": f"c{cycle}/model-{backbone}", "score": None}
    return entry | ({"criteria": dict.fromkeys(CRITERIA) | {"alignment": figures}} if cycle else {})


def history(*cycles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    starts = [candidate(0, None, None, backbone=model["backbone"]) for model in cycles[0]]
    entries = [{"cycle": 0, "bi": starts, "cross": [], "agreement": None}]
    for cycle, models in enumerate(cycles, start=1):
        crosses = [
            {"backbone": m["backbone"], "path": f"x{cycle}/model-{m['backbone']}", "score": None} for m in starts
        ]
        entries.append({"cycle": cycle, "bi": models, "cross": crosses, "agreement": 90.0})
    return entries


@pytest.mark.parametrize(
    ("figures", "bi", "cross", "said"),
    [
        ([(0.9, 0.95)], 1, 1, "cycle 1 taken: the agreement with the start's token alignment (alignment) "
         "rose from 0.900 to 0.950 in cycle 1"),
        ([(0.9, 0.95), (0.9, 0.97)], 2, 2, "rose from 0.900 to 0.970 in cycle 2"),
        ([(0.9, 0.97), (0.9, 0.97)], 1, 1, "in cycle 1"),  # the earliest of equals
        ([(0.9, 0.8), (0.9, 0.85)], 0, 2, "fell from 0.900 to 0.850 in cycle 2"),
        ([(0.9, 0.904)], 0, 1, "rose too little, from 0.900 to 0.904 in cycle 1"),
        ([(0.9, 0.9)], 0, 1, "start kept: the agreement with the start's token alignment (alignment) "
         "stayed, from 0.900 to 0.900 in cycle 1"),
        ([(None, None), (0.9, 0.95)], 2, 2, "cycle 2 taken"),  # what is undefined is never the best
        ([(None, None)], 0, 1, "is undefined"),
    ],
)  # fmt: skip
def test_the_start_has_to_be_exceeded(figures: list[tuple[Any, Any]], bi: int, cross: int, said: str) -> None:
    entries = history(*([candidate(cycle, *pair)] for cycle, pair in enumerate(figures, start=1)))
    best = choose_best(entries, BY_ALIGNMENT, has_dev=False)
    assert (best["criterion"], best["bi"]["cycle"], best["cross"]["cycle"]) == ("alignment", bi, cross)
    assert best["start_won"] is (bi == 0)
    assert said in explain_choice(best)


def test_of_several_backbones_the_first_is_handed_on() -> None:
    """However much the second gains: without labels two backbones cannot be compared."""
    weak = candidate(1, 0.7, 0.8, backbone=1)
    for trained, path in ((0.94, "c0/model-0"), (0.96, "c1/model-0")):
        best = choose_best(history([candidate(1, 0.95, trained), weak]), BY_ALIGNMENT, has_dev=False)
        assert (best["bi"]["path"], best["cross"]["path"]) == (path, "x1/model-0")
    for select in ("last", "start"):
        entries = history([candidate(1, 0.95, 0.94), weak])
        best = choose_best(entries, DistillConfig(select=select, student=1), has_dev=False)
        assert (best["bi"]["backbone"], best["cross"]["backbone"]) == (1, 1)


def test_by_default_the_gain_chooses_and_no_margin_is_asked_twice() -> None:
    def cautious(cycle: int, start: float, trained: float) -> list[dict[str, Any]]:
        model = candidate(cycle, None, None)
        model["criteria"]["cautious"] = {"start": start, "trained": trained}
        return [model]

    best = choose_best(history(cautious(1, 0.905, 0.925), cautious(2, 0.95, 0.96)), DistillConfig(), has_dev=False)
    assert (best["criterion"], best["bi"]["cycle"]) == ("cautious", 1)
    assert choose_best(history(cautious(1, 0.95, 0.951)), DistillConfig(), has_dev=False)["bi"]["cycle"] == 1
    kept = choose_best(history(cautious(1, 0.95, 0.95)), DistillConfig(), has_dev=False)
    assert kept["start_won"] and "start kept: the stability near the start" in explain_choice(kept)


def test_only_the_student_is_chosen() -> None:
    entries = history([candidate(1, 0.9, 0.8), candidate(1, 0.7, 0.6, backbone=1)])
    entries[1]["bi"].pop(0)
    best = choose_best(entries, DistillConfig(student=1), has_dev=False)
    assert (best["bi"]["path"], best["cross"]["path"]) == ("c0/model-1", "x1/model-1")


def test_the_start_or_the_last_cycle_as_asked() -> None:
    entries = history([candidate(1, 0.9, 0.8)], [candidate(2, 0.9, 0.7)])
    for select, bi in (("start", 0), ("last", 2)):
        best = choose_best(entries, DistillConfig(select=select), has_dev=True)
        assert (best["criterion"], best["bi"]["cycle"], best["cross"]["cycle"]) == (select, bi, 2)
        assert select in explain_choice(best)


def test_a_criterion_that_was_not_recorded_is_missed() -> None:
    entries = history([candidate(1, 0.9, 0.8)])
    del entries[1]["bi"][0]["criteria"]
    with pytest.raises(StateError, match="recorded no criterion"):
        choose_best(entries, DistillConfig(), has_dev=False)


@pytest.mark.parametrize(
    ("figures", "more"),
    [
        ([(0.9, 0.91)], True),
        ([(0.9, 0.9005)], False),  # by 0.1 (x100) or more
        ([(0.9, 0.8)], False),
        ([(0.9, 0.91), (0.9, 0.92)], True),
        ([(0.9, 0.92), (0.9, 0.91)], False),
        ([(None, None)], False),
    ],
)
def test_auto_goes_on_while_the_gain_rises(figures: list[tuple[Any, Any]], more: bool) -> None:
    entries = history(*([candidate(cycle, *pair)] for cycle, pair in enumerate(figures, start=1)))
    assert wants_cycle(entries, dataclasses.replace(BY_ALIGNMENT, cycles="auto"), has_dev=False) is more


# ---- a whole run


def run(output: Path, model: Path, config: DistillConfig, **options: Any) -> DistillResult:
    return distill([Backbone(str(model))], PAIRS, output_dir=output, config=config, device="cpu", **options)


def read_models(output: Path, cycle: int) -> list[dict[str, Any]]:
    return json.loads((output / f"stages/c{cycle:02d}-50-evaluate/metrics.json").read_text(encoding="utf-8"))["bi"]


def test_a_run_on_poor_labels_keeps_the_start(tiny_bi: Path, tmp_path: Path) -> None:
    """The student learns what a cross-encoder says that has seen a handful of pairs."""
    poor = dataclasses.replace(PLAIN, keep_label=0.0, bi=dataclasses.replace(PLAIN.bi, learning_rate=3e-3))
    result = run(tmp_path / "run", tiny_bi, poor)
    assert result.best["criterion"] == "cautious"
    assert result.best["start_won"] is True
    assert result.bi_encoders == (tmp_path / "run/stages/c00-00-start/model-0",)
    assert result.cross_encoders == (tmp_path / "run/stages/c01-20-cross-train/model-0",)
    figures = read_models(tmp_path / "run", 1)[0]["criteria"]["cautious"]
    assert result.best["compared"] == {**figures, "cycle": 1}
    assert figures["trained"] < figures["start"]
    assert run(tmp_path / "run", tiny_bi, poor) == result
    taken = run(tmp_path / "fork", tiny_bi, dataclasses.replace(poor, select="last"), fork=tmp_path / "run")
    assert taken.best["bi"]["cycle"] == 1
    assert "criteria" not in read_models(tmp_path / "fork", 1)[0]  # nothing is paid for what is not asked


def test_a_student_of_the_teachers_is_taken(tiny_bi: Path, tmp_path: Path) -> None:
    """A plain language model's cosines say little, so what it learns from words in common brings it nearer to all."""
    config = dataclasses.replace(
        PLAIN,
        select="agreement",
        overlap=4.0,
        keep_label=1.0,
        bi=dataclasses.replace(PLAIN.bi, learning_rate=3e-4, epochs=6),
    )
    result = run(tmp_path / "run", tiny_bi, config)
    figures = result.best["bi"]["criteria"]["agreement"]
    assert result.best["compared"] == {**figures, "cycle": 1}
    assert figures["trained"] > figures["start"]
    again = run(tmp_path / "again", tiny_bi, config)
    assert again.history == result.history
