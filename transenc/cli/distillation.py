"""The commands `distill` and `label`; the settings of a run become flags by themselves."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transenc.cli.options import (
    add_model_options,
    add_settings,
    add_verb,
    changed_settings,
    format_number,
    format_table,
    load_encoders,
    quiet_libraries,
    to_json,
)
from transenc.cli.report import write_run_report
from transenc.config import PRESETS, Backbone, DistillConfig, merge_config, read_config
from transenc.errors import InputError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from datasets import Dataset

    from transenc.distillation import DistillResult

INPUTS = ("model", "cross_start", "pairs", "sentences", "dev", "pooling", "data", "snli", "asymmetric", "max_pairs",
          "max_sentences")  # fmt: skip


def add_distill(verbs: Any) -> None:
    """Add the command `distill` to the parser's verbs."""
    verb = add_verb(verbs, "distill", "turn unlabelled pairs into a better bi-encoder and a cross-encoder", _distill)
    verb.add_argument(
        "--model",
        action="append",
        help="bi-encoder to start from: folder or Hub id; several: mutual distillation",
    )
    verb.add_argument(
        "--cross-start",
        action="append",
        metavar="LM",
        help="what the cross-encoder starts from, one for each --model; default: the model itself",
    )
    verb.add_argument(
        "--pairs",
        help="pair file (tsv, csv, jsonl, parquet, `a||b` lines), Hub data set, "
        "or suite:NAME (sts, sickr, sts_sickr, mrpc, qnli, qqp; NAME-inductive)",
    )
    verb.add_argument(
        "--sentences",
        action="append",
        metavar="F",
        help="raw sentences instead of pairs, one a line (also .gz; .tsv, .csv, .jsonl, .parquet: column sentence or "
        "text); a plain language model is bootstrapped first, then pairs are mined",
    )
    verb.add_argument("--output", required=True, help="run directory; the same command again resumes it")
    verb.add_argument("--dev", help="scored pairs that choose cycle and checkpoint: a file, or suite:stsb.dev")
    verb.add_argument("--preset", choices=sorted(PRESETS), help="settings to begin with (default: default)")
    verb.add_argument("--config", metavar="YAML", help="settings file; a run's run.json repeats that run")
    verb.add_argument("--snli", action="store_true", default=None, help="add the SNLI pairs to a suite's pool")
    verb.add_argument("--asymmetric", action="store_true", default=None, help="(a, b) differs from (b, a)")
    verb.add_argument("--max-pairs", type=int, help="train on N pairs, sampled by the seed")
    verb.add_argument("--max-sentences", type=int, help="begin with N of the sentences, sampled by the seed")
    verb.add_argument("--fork", metavar="RUN0", help="take over the finished stages of another run")
    verb.add_argument(
        "--report-to",
        action="append",
        metavar="TRACKER",
        help="HF Trainer integration, e.g. tensorboard",
    )
    verb.add_argument("--dry-run", action="store_true", help="print the stages, their sizes and a rough time")
    verb.add_argument("--max-length", type=int, help="tokens of a sentence; a pair gets twice as many")
    add_model_options(verb, length=False, batch=False)
    settings = verb.add_argument_group("settings (presets differ; `default` shown)")
    add_settings(settings, DistillConfig())


def add_label(verbs: Any) -> None:
    """Add the command `label` to the parser's verbs."""
    verb = add_verb(verbs, "label", "score pairs with one model or the mean of several", _label)
    verb.add_argument("--model", action="append", required=True, help="bi- or cross-encoder; several: their mean")
    verb.add_argument("--pairs", required=True, help="pair file, Hub data set or suite:NAME")
    verb.add_argument("--output", required=True, help="file to write: .tsv, .csv, .jsonl or .parquet")
    verb.add_argument("--scale", choices=("raw", "quantile"), default="raw", help="bring several models to one scale")
    verb.add_argument("--asymmetric", action="store_true", help="(a, b) differs from (b, a)")
    add_model_options(verb, precision="float32")


def _distill(arguments: argparse.Namespace) -> str:
    inputs, config = _distill_settings(arguments)
    if not inputs.get("model"):
        raise InputError("distill needs --model (or `model` in --config)")
    if not inputs.get("pairs") and not inputs.get("sentences"):
        raise InputError("distill needs --pairs or --sentences (or `pairs` or `sentences` in --config)")
    starts = inputs.get("cross_start") or [None] * len(inputs["model"])
    if len(starts) != len(inputs["model"]):
        raise InputError(f"expected one --cross-start for each --model ({len(inputs['model'])}), found {len(starts)}")
    quiet_libraries()
    from transenc.benchmarks import is_symmetric
    from transenc.distillation import describe_plan, distill

    pairs = _read_training_pairs(inputs, seed=config.seed) if inputs.get("pairs") else None
    sentences = _read_sentences(inputs, seed=config.seed) if inputs.get("sentences") else None
    suite = _suite_name(inputs.get("pairs") or "")
    symmetric = not inputs.get("asymmetric") and (suite is None or is_symmetric(suite))
    backbones = [
        Backbone(bi, cross=cross, pooling=_find_pooling(bi, inputs))
        for bi, cross in zip(inputs["model"], starts, strict=True)
    ]
    dev = None if inputs.get("dev") is None else _read_dev(inputs["dev"], inputs.get("data"))
    if arguments.dry_run:
        plan = describe_plan(
            backbones, pairs, sentences=sentences, config=config, dev=dev, symmetric=symmetric, device=arguments.device
        )
        return to_json({"plan": plan}) if arguments.json else format_table(plan)
    result = distill(
        backbones,
        pairs,
        sentences=sentences,
        output_dir=arguments.output,
        config=config,
        dev=dev,
        symmetric=symmetric,
        device=arguments.device,
        fork=arguments.fork,
        report_to=arguments.report_to or (),
        inputs=inputs,
        trust_remote_code=arguments.trust_remote_code,
    )
    write_run_report(result.run, data=inputs.get("data"))
    if arguments.json:
        best = {**result.best}
        for form, chosen in (("bi", result.bi_encoders), ("cross", result.cross_encoders)):
            best[form] = {**best[form], "path": str(chosen[0])}
        return to_json({"run": str(result.run), "best": best, "history": list(result.history)})
    return _describe_result(result)


def _distill_settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], DistillConfig]:
    """Inputs and settings; flags beat the file, the file beats the preset."""
    content = read_config(arguments.config) if arguments.config else {}
    if "config" in content:  # a run.json
        content = {**content["config"], **(content.get("inputs") or {})}
    inputs = {name: content.pop(name) for name in INPUTS if name in content}
    for name in ("model", "cross_start", "sentences"):
        if isinstance(inputs.get(name), str):
            inputs[name] = [inputs[name]]
    for name in INPUTS:
        if getattr(arguments, name, None) is not None:
            inputs[name] = getattr(arguments, name)
    preset = content.pop("preset", "default")
    if preset not in PRESETS:
        raise InputError(f"{arguments.config}: preset must be one of {', '.join(PRESETS)}, found {preset!r}")
    config = merge_config(PRESETS[arguments.preset or preset], content, where=str(arguments.config))
    if arguments.max_length is not None:
        lengths = {form: {"max_length": arguments.max_length} for form in ("bootstrap", "bi")}
        lengths["cross"] = {"max_length": 2 * arguments.max_length}
        config = merge_config(config, lengths, where="command line")
    return inputs, changed_settings(config, arguments)


def _find_pooling(model: str, inputs: Mapping[str, Any]) -> str | None:
    """The one --pooling serves the bare folders among several models; others say themselves how they pool."""
    from transenc.encoders import detect_kind

    pooling = inputs.get("pooling")
    if pooling is None or detect_kind(model) != "bi":
        return pooling
    logger.warning("%s says itself how it pools: --pooling %s is for bare folders and not used", model, pooling)
    return None


def _suite_name(source: str) -> str | None:
    return source.removeprefix("suite:") if source.startswith("suite:") else None


def _read_training_pairs(inputs: Mapping[str, Any], *, seed: int) -> Dataset:
    from transenc.benchmarks import load_pool
    from transenc.pairs import read_pairs

    if inputs.get("max_sentences") is not None:
        raise InputError("--max-sentences samples sentences; for pairs give --max-pairs")
    suite = _suite_name(inputs["pairs"])
    if suite is None and inputs.get("snli"):
        raise InputError("--snli adds to a suite's pool; with a file of your own, append the pairs to the file")
    source = inputs["pairs"]
    if suite is not None:
        source = load_pool(suite, data=inputs.get("data"), snli=bool(inputs.get("snli")))
    return read_pairs(source, max_pairs=inputs.get("max_pairs"), seed=seed)


def _read_sentences(inputs: Mapping[str, Any], *, seed: int) -> list[str]:
    from transenc.corpus import read_sentences

    if inputs.get("max_pairs") is not None:
        raise InputError("--max-pairs samples given pairs; for mined ones give --mine-max-pairs")
    if inputs.get("snli"):
        raise InputError("--snli adds to a suite's pool of pairs; append a file of sentences with another --sentences")
    return read_sentences(*inputs["sentences"], max_sentences=inputs.get("max_sentences"), seed=seed)


def _read_dev(source: str, data: str | None) -> Dataset:
    from transenc.benchmarks import load_benchmark
    from transenc.pairs import read_gold

    suite = _suite_name(source)
    if suite is None:
        return read_gold(source)
    task, _, split = suite.partition(".")
    return load_benchmark(task, split=split or "dev", data=data)


def _label(arguments: argparse.Namespace) -> str:
    quiet_libraries()
    from transenc.labeling import label_pairs
    from transenc.pairs import check_writable, write_pairs

    check_writable(arguments.output)
    pairs = _read_training_pairs({"pairs": arguments.pairs, "data": arguments.data}, seed=0)
    labels = label_pairs(
        load_encoders(arguments, arguments.model),
        pairs,
        symmetric=not arguments.asymmetric,
        scale=arguments.scale,
        batch_tokens=arguments.batch_tokens,
        progress=True,
    )
    write_pairs(arguments.output, labels.select_columns(["sentence1", "sentence2", "score"]))
    result = {"output": arguments.output, "pairs": len(labels)}
    return to_json(result) if arguments.json else f"{len(labels)} labelled pairs in {arguments.output}"


def _describe_result(result: DistillResult) -> str:
    start = [entry["score"] for entry in result.history[0]["bi"]]
    rows = []
    for cycle in result.history:
        for entry in [*cycle["bi"], *cycle["cross"]]:
            score, before = entry["score"], start[entry["backbone"]]
            gain = "-" if score is None or before is None or not cycle["cycle"] else f"{score - before:+.2f}"
            rows.append(
                {
                    "cycle": cycle["cycle"] or "start",
                    "model": entry["path"],
                    "dev": format_number(score),
                    "to start": gain,
                    "agreement": format_number(cycle["agreement"]),
                }
            )
    best = result.best
    if best["criterion"] == "last":
        verdict = "No dev set: the last cycle was taken; whether it helped, `transenc evaluate --compare` can tell."
    elif best["start_won"]:
        verdict = "By the dev set it did not help: the start is the best bi-encoder."
    else:
        before = max((score for score in start if score is not None), default=None)
        change = "" if before is None else f" ({best['bi']['score'] - before:+.2f})"
        after = format_number(best["bi"]["score"])
        verdict = f"By the dev set it helped: Spearman {format_number(before)} -> {after}{change}."
    lines = [format_table(rows), "", verdict]
    lines += [f"bi-encoder:    {result.run}/best/bi-encoder", f"cross-encoder: {result.run}/best/cross-encoder"]
    return "\n".join(lines)
