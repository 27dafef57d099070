"""The command `evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from transenc.benchmarks import PAIR_TASKS, STS_TASKS
from transenc.cli.options import add_model_options, add_verb, format_number, load_encoders, quiet_libraries, to_json
from transenc.config import PRECISIONS
from transenc.errors import InputError


def add_evaluate(verbs: Any) -> None:
    """Add the command `evaluate` to the parser's verbs."""
    verb = add_verb(verbs, "evaluate", "score a model, or an ensemble, on benchmarks or a file of your own", _evaluate)
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
    add_model_options(verb)


def _evaluate(arguments: argparse.Namespace) -> str:
    _check_tasks(arguments)
    quiet_libraries()
    from transenc.evaluation import compare, evaluate_file, evaluate_pairs, evaluate_sts, score_tasks

    encoders: Any = load_encoders(arguments, arguments.model)
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
        others = load_encoders(arguments, arguments.compare)
        result["difference"] = compare(
            encoders, others, tasks=tasks, path=arguments.file, data=data, symmetric=symmetric, **options
        )
    return to_json(result) if arguments.json else _describe_scores(result)


def _check_tasks(arguments: argparse.Namespace) -> None:
    known = {"sts": STS_TASKS, "pairs": PAIR_TASKS, None: ()}[arguments.suite]
    for task in arguments.task or ():
        if task not in known:
            raise InputError(f"--task {task} is not in the suite {arguments.suite}; expected one of {', '.join(known)}")


def _describe_scores(result: Mapping[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}", _describe_scores(value, indent + "  ")]
        elif isinstance(value, int | float) or value is None:
            lines.append(f"{indent}{key:<{28 - len(indent)}} {format_number(value):>8}")
        else:
            lines.append(f"{indent}{key:<{28 - len(indent)}} {value}")
    return "\n".join(lines)
