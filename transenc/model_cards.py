"""Save a model with a card that says how it was made, and quotes nobody's texts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from transenc.config import TrainingSettings
from transenc.encoders import Encoder
from transenc.run import library_versions


def save_model(model: Encoder, folder: str | Path, *, card: Mapping[str, Any] | None = None) -> None:
    """Save a model as an ordinary sentence-transformers folder; of what it was trained on, its card quotes nothing.

    Args:
        model: any encoder.
        folder: made if it is not there.
        card: facts for a section "How it was made", name -> value on one line, see `describe_origin`; None: none.

    Example:
        >>> save_model(model, "enc", card={"seed": 2021})  # doctest: +SKIP
    """
    about = model.model_card_data
    about.generate_widget_examples = False
    # no texts of the user's, no line for every step
    about.widget, about.usage_examples, about.train_datasets = [], None, []
    about.training_logs, about.all_hyperparameters = [], {}
    if card is not None:
        about.add_tags(["transenc", "unsupervised"])
    model.save_pretrained(str(folder))
    if card is not None:
        _tell_origin(Path(folder) / "README.md", card)


def describe_origin(
    model: str | Path | None, digest: str, *, settings: TrainingSettings, seed: int, **facts: Any
) -> dict[str, Any]:
    """What the card of a trained model says of its making.

    Args:
        model: where it started from, folder or Hub id. Only the last part is told: where a folder lay is nobody's
            business.
        digest: of that model, see `model_folders.model_digest`; 12 digits are told.
        settings: how it was trained.
        seed: of the run.
        facts: more of it, in this order, after the backbone.

    Example:
        >>> list(describe_origin("my/lm", "0" * 64, settings=TrainingSettings(), seed=1, sentences=20))
        ['made by', 'backbone', 'sentences', 'seed', 'settings']
    """
    name = "" if model is None else f"{PurePath(model).name}, "
    return {
        "made by": f"transenc {library_versions()['transenc']}",
        "backbone": f"{name}sha256 {digest[:12]}",
        **facts,
        "seed": seed,
        "settings": ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(settings).items()),
    }


def _tell_origin(readme: Path, card: Mapping[str, Any]) -> None:
    """Add a section of facts to the card that sentence-transformers wrote."""
    values = {name: re.sub(r"[^\w .,:/+-]", "_", str(value)) for name, value in card.items()}
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    section = "\n".join(["## How it was made", "", "| | |", "|---|---|", *rows, "", ""])
    head, details, rest = readme.read_text("utf-8").partition("## Model Details")
    readme.write_text(head + section + details + rest, "utf-8")
