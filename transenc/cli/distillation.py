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
from transenc.config import PRESETS, SCALES, Backbone, DistillConfig, merge_config, read_config
from transenc.errors import InputError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from datasets import Dataset

    from transenc.distillation import DistillResult
    from transenc.preflight import Inspection

INPUTS = ("model", "cross_start", "weight", "pairs", "sentences", "dev", "test", "pooling", "data", "snli",
          "asymmetric", "max_pairs", "max_sentences")  # fmt: skip


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
        "--weight",
        action="append",
        type=float,
        metavar="W",
        help="how much a --model counts among the teachers, one for each; default: 1",
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
    verb.add_argument(
        "--test",
        action="append",
        metavar="F",
        help="scored pairs that will measure the result, a file or suite:NAME: say what they share with the pairs",
    )
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
    add_model_options(verb, devices=True, length=False, batch=False)
    settings = verb.add_argument_group("settings (presets differ; `default` shown)")
    add_settings(settings, DistillConfig())


def add_label(verbs: Any) -> None:
    """Add the command `label` to the parser's verbs."""
    verb = add_verb(verbs, "label", "score pairs with one model or the mean of several", _label)
    verb.add_argument("--model", action="append", required=True, help="bi- or cross-encoder; several: their mean")
    verb.add_argument("--pairs", required=True, help="pair file, Hub data set or suite:NAME")
    verb.add_argument("--output", required=True, help="file to write: .tsv, .csv, .jsonl or .parquet")
    verb.add_argument("--scale", choices=SCALES, default="raw", help="bring several models to one scale")
    verb.add_argument("--asymmetric", action="store_true", help="(a, b) differs from (b, a)")
    add_model_options(verb, precision="float32")


def _distill(arguments: argparse.Namespace) -> str:
    inputs, config = _distill_settings(arguments)
    if not inputs.get("model"):
        raise InputError("distill needs --model (or `model` in --config)")
    if not inputs.get("pairs") and not inputs.get("sentences"):
        raise InputError("distill needs --pairs or --sentences (or `pairs` or `sentences` in --config)")
    models = inputs["model"]
    starts, weights = (
        inputs.get(name) or [default] * len(models) for name, default in (("cross_start", None), ("weight", 1.0))
    )
    for flag, given in (("--cross-start", starts), ("--weight", weights)):
        if len(given) != len(models):
            raise InputError(f"expected one {flag} for each --model ({len(models)}), found {len(given)}")
    quiet_libraries()
    from transenc.benchmarks import is_symmetric
    from transenc.distillation import distill
    from transenc.planning import preview_run

    pairs = _read_training_pairs(inputs, seed=config.seed) if inputs.get("pairs") else None
    sentences = _read_sentences(inputs, seed=config.seed) if inputs.get("sentences") else None
    suite = _suite_name(inputs.get("pairs") or "")
    symmetric = not inputs.get("asymmetric") and (suite is None or is_symmetric(suite))
    backbones = [
        Backbone(bi, cross=cross, pooling=_find_pooling(bi, inputs), weight=weight)
        for bi, cross, weight in zip(models, starts, weights, strict=True)
    ]
    dev = None if inputs.get("dev") is None else _read_gold(inputs["dev"], inputs.get("data"))
    tests = {name: _read_gold(name, inputs.get("data"), split="test") for name in inputs.get("test") or ()}
    if arguments.dry_run:
        plan, inspection = preview_run(
            backbones, pairs, sentences=sentences, config=config, dev=dev, tests=tests, symmetric=symmetric,
            device=arguments.device,
        )  # fmt: skip
        if arguments.json:
            return to_json({"plan": plan, "warnings": inspection.to_dict()})
        return "\n".join([format_table(plan), "", *_describe_inspection(inspection)])
    result = distill(
        backbones,
        pairs,
        sentences=sentences,
        output_dir=arguments.output,
        config=config,
        dev=dev,
        tests=tests,
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
    for name in ("model", "cross_start", "sentences", "test", "weight"):
        if isinstance(inputs.get(name), str | int | float):
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


def _read_gold(source: str, data: str | None, *, split: str = "dev") -> Dataset:
    from transenc.benchmarks import load_benchmark
    from transenc.pairs import read_gold

    suite = _suite_name(source)
    if suite is None:
        return read_gold(source)
    task, _, named = suite.partition(".")
    return load_benchmark(task, split=named or split, data=data)


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
    kept = [name for name in ("sentence1", "sentence2", "list", "score") if name in labels.column_names]
    write_pairs(arguments.output, labels.select_columns(kept))
    result = {"output": arguments.output, "pairs": len(labels)}
    return to_json(result) if arguments.json else f"{len(labels)} labelled pairs in {arguments.output}"


def _describe_inspection(inspection: Inspection) -> list[str]:
    findings = [f"* {finding.name}: {finding.text}" for finding in inspection.findings]
    return [f"{inspection.verdict[0].upper()}{inspection.verdict[1:]}.", *findings]


def _describe_result(result: DistillResult) -> str:
    from transenc.outcome import explain_choice

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
    if best["criterion"] != "dev":
        choice = explain_choice(best)
        verdict = f"{choice[0].upper()}{choice[1:]}; whether it helped, `transenc evaluate --compare` can tell."
    elif best["start_won"]:
        verdict = "By the dev set it did not help: the start is the best bi-encoder."
    else:
        students = {entry["backbone"] for entry in result.history[-1]["bi"]}  # others only taught
        before = max((start[i] for i in students if start[i] is not None), default=None)
        change = "" if before is None else f" ({best['bi']['score'] - before:+.2f})"
        after = format_number(best["bi"]["score"])
        verdict = f"By the dev set it helped: Spearman {format_number(before)} -> {after}{change}."
    lines = [format_table(rows), "", verdict]
    lines += [f"bi-encoder:    {result.run}/best/bi-encoder", f"cross-encoder: {result.run}/best/cross-encoder"]
    return "\n".join(lines)
