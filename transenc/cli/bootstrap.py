"""The command `bootstrap`: a bi-encoder from a plain language model and raw sentences."""

from __future__ import annotations

import argparse
from typing import Any

from transenc.cli.options import (
    add_model_options,
    add_sentences,
    add_settings,
    add_verb,
    changed_settings,
    quiet_libraries,
    to_json,
)
from transenc.config import BootstrapSettings, DistillConfig, merge_config, read_config


def add_bootstrap(verbs: Any) -> None:
    """Add the command `bootstrap` to the parser's verbs."""
    default = DistillConfig()
    verb = add_verb(verbs, "bootstrap", "make a bi-encoder from a language model and raw sentences", _bootstrap)
    verb.add_argument(
        "--model", required=True, metavar="LM", help="language model, or bi-encoder to train on: folder or Hub id"
    )
    add_sentences(verb, sample="begin with", seed=default.seed, seed_meaning="of everything drawn at random")
    verb.add_argument(
        "--output", required=True, help="folder of the encoder; the same command again resumes from OUTPUT.part"
    )
    verb.add_argument(
        "--save-steps", type=int, default=default.save_steps, help=f"steps between checkpoints ({default.save_steps})"
    )
    verb.add_argument("--report-to", action="append", metavar="TRACKER", help="HF Trainer integration")
    add_model_options(verb, length=False, batch=False, data=False, precision="auto")
    settings = verb.add_argument_group("settings")
    settings.add_argument("--config", help="YAML or JSON file with the settings below; flags beat it")
    add_settings(settings, default.bootstrap)


def _bootstrap(arguments: argparse.Namespace) -> str:
    content = read_config(arguments.config) if arguments.config else {}
    settings = changed_settings(merge_config(BootstrapSettings(), content, where=str(arguments.config)), arguments)
    quiet_libraries()
    from transenc.bootstrapping import bootstrap, read_figures
    from transenc.corpus import read_sentences

    sentences = read_sentences(*arguments.sentences, max_sentences=arguments.max_sentences, seed=arguments.seed)
    folder = bootstrap(
        arguments.model,
        sentences,
        output_dir=arguments.output,
        pooling=arguments.pooling,
        settings=settings,
        seed=arguments.seed,
        precision=arguments.precision,
        save_steps=arguments.save_steps,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        report_to=arguments.report_to or (),
    )
    result = {"output": str(folder), "objective": settings.objective, **read_figures(folder)}
    return to_json(result) if arguments.json else _describe(result)


def _describe(result: dict[str, Any]) -> str:
    before, after = result["spread"]["before"], result["spread"]["after"]
    names = {"mean_cosine": "mean cosine", "uniformity": "uniformity", "effective_rank": "effective rank"}
    changes = ", ".join(f"{text} {before[name]:.2f} -> {after[name]:.2f}" for name, text in names.items())
    return (
        f"{result['output']}: {result['objective']}, {result['sentences']} sentences, {result['steps']} steps\n"
        f"embeddings: {changes}"
    )
