"""Settings: ranges, merging, and the documents that show them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from transenc.config import PRESETS, REFERENCE, BootstrapSettings, DistillConfig, merge_config, read_config, to_dict
from transenc.errors import InputError

DOCUMENT = Path(__file__).parents[1] / "docs" / "method.md"


def test_the_reference_preset_is_the_recipe_of_the_paper() -> None:
    bi, cross = REFERENCE.bi, REFERENCE.cross
    assert (bi.epochs, bi.batch_size, bi.learning_rate, bi.max_length, bi.warmup, bi.loss) == (
        10,
        128,
        5e-5,
        32,
        0,
        "mse",
    )
    assert (cross.epochs, cross.batch_size, cross.learning_rate, cross.max_length) == (1, 32, 2e-5, 64)
    assert (cross.warmup, cross.weight_decay, REFERENCE.seed, REFERENCE.cycles) == (0.1, 0.01, 2021, 3)
    assert (REFERENCE.keep_label, REFERENCE.scale, REFERENCE.continue_bi, REFERENCE.continue_cross) == (
        0.0,
        "raw",
        False,
        False,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cycles": 0}, ["cycles", "1 or more", "0"]),
        ({"cycles": "many"}, ["cycles", "auto", "many"]),
        ({"cycles": True}, ["cycles", "True"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"keep_label": 1.5}, ["keep_label", "1.5"]),
        ({"scale": "rank"}, ["scale", "raw, quantile", "rank"]),
        ({"batch_tokens": 0}, ["batch_tokens", "0"]),
        ({"bi": {"loss": "hinge"}}, ["bi", "loss", "hinge"]),
        ({"bi": {"epochs": float("nan")}}, ["epochs", "nan"]),
        ({"cross": {"batch_size": 0}}, ["cross", "batch_size", "0"]),
        ({"cross": {"warmup": 1}}, ["warmup", "1"]),
        ({"cross": 3}, ["cross", "mapping", "3"]),
        ({"epoch": 3}, ["no setting 'epoch'", "cycles"]),
        ({"bi": {"batch_size": "32"}}, ["batch_size", "int", "'32'"]),
        ({"bi": {"loss": "ranknet"}}, ["bi", "loss", "kldiv, marginmse", "ranknet"]),
        ({"bi": {"temperature": 0}}, ["bi", "temperature", "positive", "0"]),
        ({"bi": {"geometry": -0.1}}, ["bi", "geometry", "0 or more", "-0.1"]),
        ({"cross": {"loss": "cosent"}}, ["cross", "loss", "listnet, ranknet", "cosent"]),
        ({"cross": {"temperature": float("inf")}}, ["cross", "temperature", "positive", "inf"]),
        ({"cross": {"symmetry": float("nan")}}, ["cross", "symmetry", "0 or more", "nan"]),
        ({"mine": {"list_size": 1}}, ["list_size", "0, or 2 or more", "1"]),
        ({"bootstrap": {"objective": "clip"}}, ["bootstrap", "objective", "simcse, mirror", "clip"]),
        ({"bootstrap": {"batch_size": 1}}, ["batch_size", "2 or more", "1"]),
        ({"bootstrap": {"temperature": 0.0}}, ["temperature", "positive", "0.0"]),
        ({"bootstrap": {"temperature": "hot"}}, ["temperature", "float", "hot"]),
        ({"bootstrap": {"mini_batch": 0}}, ["mini_batch", "1 or more", "0"]),
        ({"bootstrap": {"mini_batch": 8, "objective": "tsdae"}}, ["mini_batch", "tsdae", "simcse and mirror", "8"]),
        ({"bootstrap": {"mask_span": -1}}, ["mask_span", "-1"]),
        ({"bootstrap": {"queue": -1}}, ["queue", "-1"]),
        ({"bootstrap": {"memory": 1.0}}, ["memory", "below 1", "1.0"]),
        ({"bootstrap": {"template": "no place"}}, ["template", "{} once", "no place"]),
        ({"bootstrap": {"template": "{} and {}"}}, ["template", "{} once"]),
        ({"mine": {"pairs_per_sentence": 0.0}}, ["pairs_per_sentence", "positive"]),
        ({"mine": {"max_pairs": 1}}, ["max_pairs", "2 or more"]),
        ({"mine": {"neighbours": 0}}, ["neighbours", "1 or more"]),
        ({"mine": {"bins": 0}}, ["bins", "1 or more"]),
        ({"mine": {"near_duplicate": 1.5}}, ["near_duplicate", "at most 1", "1.5"]),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        merge_config(DistillConfig(), changes, where="my.yaml")
    assert str(caught.value).startswith("my.yaml")
    assert [word for word in words if word not in str(caught.value)] == []


def test_merging_changes_only_what_is_named() -> None:
    merged = merge_config(REFERENCE, {"cycles": 2, "bi": {"learning_rate": "3e-5", "epochs": 4}})
    bi = dataclasses.replace(REFERENCE.bi, learning_rate=3e-5, epochs=4.0)
    assert merged == dataclasses.replace(REFERENCE, cycles=2, bi=bi)


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        (BootstrapSettings(), 0.05),
        (BootstrapSettings(objective="mirror"), 0.04),
        (BootstrapSettings(objective="mirror", temperature=0.1), 0.1),
    ],
)
def test_the_temperature_is_that_of_the_objective(settings: BootstrapSettings, temperature: float) -> None:
    assert settings.resolved_temperature == temperature


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_config_survives_json(name: str) -> None:
    text = json.dumps(to_dict(PRESETS[name]), allow_nan=False)
    assert merge_config(DistillConfig(), json.loads(text)) == PRESETS[name]


def test_settings_of_losses_survive_json_and_older_files_have_their_defaults() -> None:
    changes = {
        "bi": {"loss": "kldiv", "temperature": 0.1, "geometry": 0.05},
        "cross": {"loss": "listnet", "temperature": 0.2, "symmetry": 1.0},
        "mine": {"list_size": 8},
    }
    config = merge_config(DistillConfig(), changes)
    content = json.loads(json.dumps(to_dict(config)))
    assert merge_config(REFERENCE, content) == config
    assert {form: {name: content[form][name] for name in names} for form, names in changes.items()} == changes
    for form, names in changes.items():  # a run.json of before there were such settings
        for name in names:
            del content[form][name]
    assert merge_config(DistillConfig(), content) == dataclasses.replace(DistillConfig())


def test_yaml_is_read_with_its_exponents(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("cycles: auto\nbi: {learning_rate: 2e-5}\n", encoding="utf-8")
    merged = merge_config(DistillConfig(), read_config(path))
    assert (merged.cycles, merged.bi.learning_rate) == ("auto", 2e-5)


@pytest.mark.parametrize(("text", "word"), [("- 1\n", "mapping"), ("a: [\n", "YAML"), ("\xff", "mapping")])
def test_an_unusable_configuration_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=word) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_the_document_shows_the_presets_as_they_are() -> None:
    lines = []
    for name, value in flatten(to_dict(DistillConfig())).items():
        lines.append(f"| `{name}` | {show(value)} | {show(flatten(to_dict(REFERENCE))[name])} |")
    table = "\n".join(lines)
    assert table in DOCUMENT.read_text(encoding="utf-8"), f"docs/method.md must have this table:\n{table}"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
