"""The command line: stdout carries the result, stderr the log; exit 0, 2 (input), 3 (state), 4 (busy), 130/143."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transenc.benchmarks import PAIR_TASKS, STS_TASKS
from transenc.config import (
    PRECISIONS,
    PRESETS,
    Backbone,
    DistillConfig,
    field_types,
    merge_config,
    read_config,
)
from transenc.errors import InputError, Interrupted, TransencError

if TYPE_CHECKING:
    from datasets import Dataset

    from transenc.distillation import DistillResult

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Example:
        >>> main(["evaluate", "--model", "no/such/folder", "--file", "x.tsv"])
        2
    """
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("transenc").setLevel(logging.INFO)
    try:
        print(arguments.run(arguments))
        sys.stdout.flush()
    except (Exception, Interrupted, KeyboardInterrupt) as error:
        if arguments.debug:
            traceback.print_exc()
        code, message = _explain(error)
        print(f"transenc: {message}", file=sys.stderr)
        return code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; settings of `distill` become flags by themselves.

    Example:
        >>> build_parser().parse_args(["verify", "runs/mine"]).path
        'runs/mine'
    """
    parser = argparse.ArgumentParser(
        prog="transenc", description="Sentence-pair models without labels: distil, label, evaluate."
    )
    from importlib.metadata import version

    parser.add_argument("--version", action="version", version=f"transenc {version('transenc')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_distill(verbs)
    _add_label(verbs)
    _add_evaluate(verbs)
    verify = _add_verb(
        verbs, "verify", "check every digest of a run, and that every weight and label is finite", _verify
    )
    verify.add_argument("path", help="a run directory")
    return parser


def _add_distill(verbs: Any) -> None:
    verb = _add_verb(verbs, "distill", "turn unlabelled pairs into a better bi-encoder and a cross-encoder", _distill)
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
    verb.add_argument("--output", required=True, help="run directory; the same command again resumes it")
    verb.add_argument("--dev", help="scored pairs that choose cycle and checkpoint: a file, or suite:stsb.dev")
    verb.add_argument("--preset", choices=sorted(PRESETS), help="settings to begin with (default: default)")
    verb.add_argument("--config", metavar="YAML", help="settings file; a run's run.json repeats that run")
    verb.add_argument("--snli", action="store_true", default=None, help="add the SNLI pairs to a suite's pool")
    verb.add_argument("--asymmetric", action="store_true", default=None, help="(a, b) differs from (b, a)")
    verb.add_argument("--max-pairs", type=int, help="train on N pairs, sampled by the seed")
    verb.add_argument("--fork", metavar="RUN0", help="take over the finished stages of another run")
    verb.add_argument(
        "--report-to",
        action="append",
        metavar="TRACKER",
        help="HF Trainer integration, e.g. tensorboard",
    )
    verb.add_argument("--dry-run", action="store_true", help="print the stages, their sizes and a rough time")
    verb.add_argument("--max-length", type=int, help="tokens of a sentence; a pair gets twice as many")
    _add_model_options(verb, length=False, batch=False)
    settings = verb.add_argument_group("settings (presets differ; `default` shown)")
    _add_settings(settings, DistillConfig(), "")


def _add_label(verbs: Any) -> None:
    verb = _add_verb(verbs, "label", "score pairs with one model or the mean of several", _label)
    verb.add_argument("--model", action="append", required=True, help="bi- or cross-encoder; several: their mean")
    verb.add_argument("--pairs", required=True, help="pair file, Hub data set or suite:NAME")
    verb.add_argument("--output", required=True, help="file to write: .tsv, .csv, .jsonl or .parquet")
    verb.add_argument("--scale", choices=("raw", "quantile"), default="raw", help="bring several models to one scale")
    verb.add_argument("--asymmetric", action="store_true", help="(a, b) differs from (b, a)")
    verb.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: float32, exact")
    _add_model_options(verb)


def _add_evaluate(verbs: Any) -> None:
    verb = _add_verb(verbs, "evaluate", "score a model, or an ensemble, on benchmarks or a file of your own", _evaluate)
    verb.add_argument("--model", action="append", required=True, help="bi- or cross-encoder; several: their ensemble")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", choices=("sts", "pairs"), help="STS12-16, STS-B, SICK-R; or MRPC, QNLI, QQP")
    what.add_argument("--file", help="your own pairs with `score` (Spearman) or `label` 0/1 (AUC)")
    verb.add_argument("--task", action="append", choices=STS_TASKS + PAIR_TASKS, help="only these tasks of the suite")
    verb.add_argument("--subsets", action="store_true", help="also each subset of an STS year")
    verb.add_argument(
        "--compare",
        action="append",
        metavar="MODEL",
        help="difference to this model, with a 95 %% paired bootstrap interval",
    )
    verb.add_argument("--asymmetric", action="store_true", help="with --file: (a, b) differs from (b, a)")
    verb.add_argument("--precision", choices=PRECISIONS, default="auto", help="default: auto, what is fast here")
    _add_model_options(verb)


def _add_verb(verbs: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")
    verb.add_argument("--debug", action="store_true", help="show a traceback on errors")
    verb.set_defaults(run=run)
    return verb


def _add_model_options(verb: argparse.ArgumentParser, *, length: bool = True, batch: bool = True) -> None:
    verb.add_argument("--pooling", help="for bare Hugging Face folders: cls, mean, max, lasttoken")
    verb.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    verb.add_argument("--data", help="folder of the benchmarks; default: $TRANSENC_DATA, else the Hub")
    verb.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run model code from the Hub: only if you read it",
    )
    if length:
        verb.add_argument("--max-length", type=int, help="tokens kept; default: what the model says")
    if batch:
        verb.add_argument("--batch-tokens", type=int, help="token budget of one batch; default: by the device")


def _add_settings(group: Any, default: Any, prefix: str) -> None:
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            _add_settings(group, value, f"{field.name}-")
            continue
        flag = "--" + (prefix + field.name).replace("_", "-")
        options: dict[str, Any] = {"dest": "set_" + flag[2:], "default": None}
        if isinstance(value, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            kind = field_types(type(default))[field.name]
            options["type"] = _number_or_text if kind == int | str else int if kind == int | None else kind
            options["metavar"] = "NAME" if kind is str else "N"
            options["choices"] = field.metadata["choices"]
        group.add_argument(flag, help=f"{field.metadata['help']} ({value})".replace("%", "%%"), **options)


def _number_or_text(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _distill(arguments: argparse.Namespace) -> str:
    inputs, config = _distill_settings(arguments)
    if not inputs.get("model") or not inputs.get("pairs"):
        missing = "--model" if not inputs.get("model") else "--pairs"
        raise InputError(f"distill needs {missing} (or `{missing[2:]}` in --config)")
    starts = inputs.get("cross_start") or [None] * len(inputs["model"])
    if len(starts) != len(inputs["model"]):
        raise InputError(f"expected one --cross-start for each --model ({len(inputs['model'])}), found {len(starts)}")
    _quiet_libraries()
    from transenc.benchmarks import is_symmetric
    from transenc.distillation import describe_plan, distill

    pairs = _read_training_pairs(inputs, seed=config.seed)
    suite = _suite_name(inputs["pairs"])
    symmetric = not inputs.get("asymmetric") and (suite is None or is_symmetric(suite))
    backbones = [
        Backbone(bi, cross=cross, pooling=inputs.get("pooling"))
        for bi, cross in zip(inputs["model"], starts, strict=True)
    ]
    dev = None if inputs.get("dev") is None else _read_dev(inputs["dev"], inputs.get("data"))
    if arguments.dry_run:
        plan = describe_plan(backbones, pairs, config=config, dev=dev, symmetric=symmetric, device=arguments.device)
        return _to_json({"plan": plan}) if arguments.json else _table(plan)
    result = distill(
        backbones,
        pairs,
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
    if arguments.json:
        best = {**result.best}
        for form, chosen in (("bi", result.bi_encoders), ("cross", result.cross_encoders)):
            best[form] = {**best[form], "path": str(chosen[0])}
        return _to_json({"run": str(result.run), "best": best, "history": list(result.history)})
    return _describe_result(result)


INPUTS = ("model", "cross_start", "pairs", "dev", "pooling", "data", "snli", "asymmetric", "max_pairs")


def _distill_settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], DistillConfig]:
    """Inputs and settings; flags beat the file, the file beats the preset."""
    content = read_config(arguments.config) if arguments.config else {}
    if "config" in content:  # a run.json
        content = {**content["config"], **(content.get("inputs") or {})}
    inputs = {name: content.pop(name) for name in INPUTS if name in content}
    for name in ("model", "cross_start"):
        if isinstance(inputs.get(name), str):
            inputs[name] = [inputs[name]]
    for name in INPUTS:
        if getattr(arguments, name, None) is not None:
            inputs[name] = getattr(arguments, name)
    preset = content.pop("preset", "default")
    if preset not in PRESETS:
        raise InputError(f"{arguments.config}: preset must be one of {', '.join(PRESETS)}, found {preset!r}")
    config = merge_config(PRESETS[arguments.preset or preset], content, where=str(arguments.config))
    changes: dict[str, Any] = {}
    if arguments.max_length is not None:
        changes = {
            "bi": {"max_length": arguments.max_length},
            "cross": {"max_length": 2 * arguments.max_length},
        }
    for name, value in vars(arguments).items():
        if name.startswith("set_") and value is not None:
            form, _, rest = name[4:].partition("-")
            if form in ("bi", "cross"):
                changes.setdefault(form, {})[rest.replace("-", "_")] = value
            else:
                changes[name[4:].replace("-", "_")] = value
    return inputs, merge_config(config, changes, where="command line")


def _suite_name(source: str) -> str | None:
    return source.removeprefix("suite:") if source.startswith("suite:") else None


def _read_training_pairs(inputs: Mapping[str, Any], *, seed: int) -> Dataset:
    from transenc.benchmarks import load_pool
    from transenc.pairs import read_pairs

    suite = _suite_name(inputs["pairs"])
    if suite is None and inputs.get("snli"):
        raise InputError("--snli adds to a suite's pool; with a file of your own, append the pairs to the file")
    source = inputs["pairs"]
    if suite is not None:
        source = load_pool(suite, data=inputs.get("data"), snli=bool(inputs.get("snli")))
    return read_pairs(source, max_pairs=inputs.get("max_pairs"), seed=seed)


def _read_dev(source: str, data: str | None) -> Dataset:
    from transenc.benchmarks import load_benchmark
    from transenc.pairs import read_gold

    suite = _suite_name(source)
    if suite is None:
        return read_gold(source)
    task, _, split = suite.partition(".")
    return load_benchmark(task, split=split or "dev", data=data)


def _label(arguments: argparse.Namespace) -> str:
    _quiet_libraries()
    from transenc.labeling import label_pairs
    from transenc.pairs import check_writable, write_pairs

    check_writable(arguments.output)
    pairs = _read_training_pairs({"pairs": arguments.pairs, "data": arguments.data}, seed=0)
    labels = label_pairs(
        _load(arguments, arguments.model),
        pairs,
        symmetric=not arguments.asymmetric,
        scale=arguments.scale,
        batch_tokens=arguments.batch_tokens,
        progress=True,
    )
    write_pairs(arguments.output, labels.select_columns(["sentence1", "sentence2", "score"]))
    result = {"output": arguments.output, "pairs": len(labels)}
    return _to_json(result) if arguments.json else f"{len(labels)} labelled pairs in {arguments.output}"


def _evaluate(arguments: argparse.Namespace) -> str:
    _check_tasks(arguments)
    _quiet_libraries()
    from transenc.evaluation import compare, evaluate_file, evaluate_pairs, evaluate_sts, score_tasks

    encoders: Any = _load(arguments, arguments.model)
    tasks, symmetric, data = None, not arguments.asymmetric, arguments.data
    options: dict[str, Any] = {"batch_tokens": arguments.batch_tokens, "progress": True}
    if arguments.suite is None:
        result = evaluate_file(encoders, arguments.file, symmetric=symmetric, **options)
    else:
        tasks = arguments.task or (STS_TASKS if arguments.suite == "sts" else PAIR_TASKS)
        encoders = score_tasks(encoders, tasks=tasks, data=data, **options)
        if arguments.suite == "sts":
            result = evaluate_sts(encoders, tasks=tasks, data=data, subsets=arguments.subsets)
        else:
            result = evaluate_pairs(encoders, tasks=tasks, data=data)
    if arguments.compare:
        others = _load(arguments, arguments.compare)
        result["difference"] = compare(
            encoders, others, tasks=tasks, path=arguments.file, data=data, symmetric=symmetric, **options
        )
    return _to_json(result) if arguments.json else _describe_scores(result)


def _check_tasks(arguments: argparse.Namespace) -> None:
    known = {"sts": STS_TASKS, "pairs": PAIR_TASKS, None: ()}[arguments.suite]
    for task in arguments.task or ():
        if task not in known:
            raise InputError(f"--task {task} is not in the suite {arguments.suite}; expected one of {', '.join(known)}")


def _verify(arguments: argparse.Namespace) -> str:
    from transenc.run import verify_run

    result = verify_run(arguments.path)
    text = (
        f"{result['run']}: {result['stages']} stages, {result['files']} files: all digests fit; "
        f"{result['tensors']} tensors and {result['labels']} labels: all finite"
    )
    return _to_json(result) if arguments.json else text


def _load(arguments: argparse.Namespace, names: Sequence[str]) -> list[Any]:
    from transenc.encoders import load_encoder, resolve_device, resolve_precision

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


def _quiet_libraries() -> None:
    """The libraries' bars for loading weights would drown our own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    import datasets

    datasets.disable_progress_bars()


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
                    "dev": _number(score),
                    "to start": gain,
                    "agreement": _number(cycle["agreement"]),
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
        verdict = f"By the dev set it helped: Spearman {_number(before)} -> {_number(best['bi']['score'])}{change}."
    lines = [_table(rows), "", verdict]
    lines += [f"bi-encoder:    {result.run}/best/bi-encoder", f"cross-encoder: {result.run}/best/cross-encoder"]
    return "\n".join(lines)


def _describe_scores(result: Mapping[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}", _describe_scores(value, indent + "  ")]
        elif isinstance(value, int | float) or value is None:
            lines.append(f"{indent}{key:<{28 - len(indent)}} {_number(value):>8}")
        else:
            lines.append(f"{indent}{key:<{28 - len(indent)}} {value}")
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    cells = [names, *[[str(row[name]) for name in names] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not a JSON value: {value!r}")


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, TransencError | Interrupted):
        return error.exit_code, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return 3, f"{error.filename or 'output'}: no space left; free some and repeat the command"
    return 1, f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
