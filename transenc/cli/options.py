"""What the commands share: their common flags, loading models, and the forms of a result."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from transenc.config import PRECISIONS, Settings, field_types, merge_config


def add_verb(verbs: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    """Add a command that `run` answers: with the text for stdout, or an iterator of such texts."""
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")
    verb.add_argument("--debug", action="store_true", help="show a traceback on errors")
    verb.set_defaults(run=run)
    return verb


def add_model_options(
    verb: argparse.ArgumentParser,
    *,
    pooling: bool = True,
    device: bool = True,
    devices: bool = False,
    length: bool = True,
    batch: bool = True,
    data: bool = True,
    trust: bool = True,
    precision: str | None = None,
) -> None:
    """Add the flags of every command that loads a model.

    `devices`: --device may name several; `precision` is the default of that flag, None: no flag.
    """
    if pooling:
        verb.add_argument("--pooling", help="for bare Hugging Face folders: cls, mean, max, lasttoken")
    if device:
        several = "; several, as in cuda:0,cuda:1, train the students of several --model side by side" * devices
        verb.add_argument("--device", help=f"cpu, cuda, cuda:1, ...; default: a GPU if there is one{several}")
    if data:
        verb.add_argument("--data", help="folder of the benchmarks; default: $TRANSENC_DATA, else the Hub")
    if trust:
        verb.add_argument(
            "--trust-remote-code",
            action="store_true",
            help="run model code from the Hub: only if you read it",
        )
    if length:
        verb.add_argument("--max-length", type=int, help="tokens kept; default: what the model says")
    if batch:
        verb.add_argument("--batch-tokens", type=int, help="token budget of one batch; default: by the device")
    if precision:
        meaning = {"auto": "what is fast here", "float32": "exact"}[precision]
        verb.add_argument("--precision", choices=PRECISIONS, default=precision, help=f"default: {precision}, {meaning}")


def add_sentences(verb: argparse.ArgumentParser, *, sample: str, seed: int = 2021, seed_meaning: str) -> None:
    """Add the flags of a command that reads raw sentences and nothing else."""
    verb.add_argument(
        "--sentences",
        action="append",
        required=True,
        metavar="F",
        help="sentences, one a line (also .gz; .tsv, .csv, .jsonl, .parquet: column sentence or text), or a Hub data "
        "set; repeatable",
    )
    verb.add_argument("--max-sentences", type=int, metavar="N", help=f"{sample} N sentences, sampled by the seed")
    verb.add_argument("--seed", type=int, default=seed, help=f"{seed_meaning} ({seed})")


def add_settings(group: Any, default: Any, prefix: str = "") -> None:
    """Add a flag for every setting of a settings class, nested ones with the name of their section before theirs."""
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        name = _flag_name(prefix, field.name)
        if dataclasses.is_dataclass(value):
            add_settings(group, value, name)
            continue
        options: dict[str, Any] = {"dest": f"set_{name}", "default": None}
        if isinstance(value, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            kind = field_types(type(default))[field.name]
            kinds = get_args(kind) or (kind,)
            options["type"] = kinds[0] if kinds[0] is str or str not in kinds else _number_or_text
            options["metavar"] = "NAME" if kind is str else "TEXT" if str in kinds else "N"
            options["choices"] = field.metadata["choices"]
        group.add_argument(f"--{name}", help=f"{field.metadata['help']} ({value})".replace("%", "%%"), **options)


def changed_settings(settings: Settings, arguments: argparse.Namespace) -> Settings:
    """The settings with those that were given as flags of `add_settings`.

    Raises:
        InputError: a value is out of its range.
    """
    return merge_config(settings, _read_flags(settings, arguments, ""), where="command line")


def _read_flags(settings: Any, arguments: argparse.Namespace, prefix: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        name, value = _flag_name(prefix, field.name), getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _read_flags(value, arguments, name)
        elif (given := getattr(arguments, f"set_{name}")) is not None:
            changes[field.name] = given
    return changes


def _flag_name(prefix: str, name: str) -> str:
    return (f"{prefix}-{name}" if prefix else name).replace("_", "-")


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def add_rerank_options(verb: argparse.ArgumentParser) -> None:
    """Add the flags that name what reranks a search, and what it reads."""
    verb.add_argument(
        "--rerank",
        action="append",
        metavar="MODEL",
        help="cross- or bi-encoder: folder or Hub id; several: an ensemble",
    )
    verb.add_argument(
        "--rerank-unit",
        choices=("sentence", "passage"),
        default="sentence",
        help="what reranking reads: default: sentence, for encoders trained on sentence pairs",
    )


class OneBiEncoder(argparse.Action):
    """A flag that names the bi-encoder of an index, and refuses a second one: argparse would take the last."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Keep the first value."""
        if getattr(namespace, self.dest) is not None:
            from transenc.search.models import ONE_BI_ENCODER

            raise argparse.ArgumentError(self, ONE_BI_ENCODER)
        setattr(namespace, self.dest, values)


def add_index_model_options(verb: argparse.ArgumentParser, *, trust: bool = True) -> None:
    """Add the flags of a command that loads the encoder of an index, which itself says pooling and length."""
    verb.add_argument("--model", action=OneBiEncoder, help="where the index's bi-encoder lies now, if it was moved")
    add_model_options(verb, pooling=False, length=False, data=False, trust=trust, precision="auto")


def load_encoders(arguments: argparse.Namespace, names: Sequence[str]) -> list[Any]:
    """Load the named bi- or cross-encoders as the flags say."""
    from transenc.devices import resolve_device, resolve_precision
    from transenc.encoders import load_encoder

    device = resolve_device(arguments.device)
    return [
        load_encoder(
            name,
            pooling=arguments.pooling,
            max_length=arguments.max_length,
            device=device,
            dtype=resolve_precision(arguments.precision, device=device),
            trust_remote_code=arguments.trust_remote_code,
        )
        for name in names
    ]


def quiet_libraries() -> None:
    """Turn off the libraries' bars for loading weights, which would drown our own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    import datasets

    datasets.disable_progress_bars()


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as aligned columns under the names of the first."""
    names = list(rows[0])
    cells = [names, *[[str(row[name]) for name in names] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def format_number(value: float | None) -> str:
    """Return a figure for people, "-" for an undefined one."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"


def to_json(value: Any) -> str:
    """Return strict JSON on one line, in ASCII where stdout has no Unicode."""
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(value, allow_nan=False, ensure_ascii=not unicode, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not a JSON value: {value!r}")
