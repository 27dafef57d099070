"""The command `average`: one model of several that were trained from one start."""

from __future__ import annotations

import argparse
from typing import Any

from transenc.cli.options import add_model_options, add_verb, quiet_libraries, to_json
from transenc.signals import stop_on_signals


def add_average(verbs: Any) -> None:
    """Add the command `average` to the parser's verbs."""
    verb = add_verb(verbs, "average", "average the weights of models that were trained from one start", _average)
    verb.add_argument(
        "--model", action="append", required=True, help="bi- or cross-encoder: folder or Hub id; two or more"
    )
    verb.add_argument(
        "--weight", action="append", type=float, metavar="W", help="of each --model, in their order; default: equal"
    )
    verb.add_argument("--output", required=True, help="folder to make; it appears when it is complete")
    add_model_options(verb, device=False, length=False, batch=False, data=False)


def _average(arguments: argparse.Namespace) -> str:
    quiet_libraries()
    from transenc.averaging import average_weights, describe_average
    from transenc.durable import publish_directory
    from transenc.model_cards import save_model

    names = arguments.model
    weights = arguments.weight or [1.0] * len(names)
    with stop_on_signals(), publish_directory(arguments.output) as folder:
        model = average_weights(
            names, weights=weights, pooling=arguments.pooling, trust_remote_code=arguments.trust_remote_code
        )
        save_model(model, folder, card=describe_average(names, weights=weights))
    numbers = sum(tensor.numel() for tensor in model.parameters())
    if arguments.json:
        return to_json({"output": arguments.output, "models": names, "weights": weights, "parameters": numbers})
    return f"{arguments.output}: the average of {len(names)} models, {numbers} parameters"
