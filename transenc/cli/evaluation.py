"""The command `evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from transenc.benchmarks import PAIR_TASKS, RETRIEVAL_TASKS, STS_TASKS
from transenc.cli.options import (
    add_model_options,
    add_verb,
    format_number,
    load_encoders,
    quiet_libraries,
    to_json,
)
from transenc.errors import InputError

_TASKS = {"sts": STS_TASKS, "pairs": PAIR_TASKS, "retrieval": RETRIEVAL_TASKS}
_RETRIEVAL_FLAGS = ("system", "rerank", "rerank_unit", "rerank_weight", "candidates", "passages", "split")


def add_evaluate(verbs: Any) -> None:
    """Add the command `evaluate` to the parser's verbs."""
    verb = add_verb(verbs, "evaluate", "score a model, or an ensemble, on benchmarks or a file of your own", _evaluate)
    verb.add_argument("--model", action="append", help="bi- or cross-encoder; several: their ensemble")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--suite", choices=tuple(_TASKS), help="STS12-16, STS-B, SICK-R; MRPC, QNLI, QQP; SciFact, Cranfield"
    )
    what.add_argument("--file", help="your own pairs with `score` (Spearman) or `label` 0/1 (AUC)")
    verb.add_argument(
        "--task", action="append", help="only these tasks of the suite; for retrieval also a folder of your own"
    )
    verb.add_argument("--subsets", action="store_true", help="also each subset of an STS year")
    verb.add_argument(
        "--compare",
        action="append",
        metavar="MODEL",
        help="difference to this model, with a 95 %% paired bootstrap interval",
    )
    verb.add_argument("--asymmetric", action="store_true", help="with --file: (a, b) differs from (b, a)")
    add_model_options(verb, precision="auto")
    group = verb.add_argument_group("--suite retrieval")
    group.add_argument("--system", choices=("bi", "bm25", "hybrid"), help="what retrieves (bi)")
    group.add_argument("--rerank", action="append", metavar="MODEL", help="cross- or bi-encoder; several: an ensemble")
    group.add_argument("--rerank-unit", choices=("sentence", "passage"), help="as for search (sentence)")
    group.add_argument("--rerank-weight", type=float, metavar="W", help="as for search")
    group.add_argument("--candidates", type=int, help="documents reranked (100)")
    group.add_argument("--passages", action="store_true", default=None, help="split long documents; default: cut them")
    group.add_argument("--split", help="qrels to read (test)")


def _evaluate(arguments: argparse.Namespace) -> str:
    _check_flags(arguments)
    quiet_libraries()
    result = _evaluate_retrieval(arguments) if arguments.suite == "retrieval" else _evaluate_pairs(arguments)
    return to_json(result) if arguments.json else _describe_scores(result)


def _evaluate_pairs(arguments: argparse.Namespace) -> dict[str, Any]:
    from transenc.evaluation import compare, evaluate_file, evaluate_pairs, evaluate_sts, score_tasks

    encoders: Any = load_encoders(arguments, arguments.model)
    tasks, symmetric, data = None, not arguments.asymmetric, arguments.data
    options: dict[str, Any] = {"batch_tokens": arguments.batch_tokens, "progress": True}
    if arguments.suite is None:
        result = evaluate_file(encoders, arguments.file, symmetric=symmetric, **options)
    else:
        tasks = arguments.task or _TASKS[arguments.suite]
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
    return result


def _evaluate_retrieval(arguments: argparse.Namespace) -> dict[str, Any]:
    from transenc.retrieval_evaluation import evaluate_retrieval

    model, rerankers = _load_models(arguments)
    given = {name: getattr(arguments, name) for name in _RETRIEVAL_FLAGS if name != "rerank"}
    return evaluate_retrieval(
        model,
        tasks=arguments.task or RETRIEVAL_TASKS,
        data=arguments.data,
        rerank=rerankers or None,
        batch_tokens=arguments.batch_tokens,
        progress=True,
        **{name: value for name, value in given.items() if value is not None},
    )


def _load_models(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from transenc.search.models import load_models, load_rerankers

    shared = {
        "precision": arguments.precision,
        "device": arguments.device,
        "trust_remote_code": arguments.trust_remote_code,
    }
    if not arguments.model:
        return None, load_rerankers(arguments.rerank, **shared)
    own = {"pooling": arguments.pooling, "max_length": arguments.max_length}
    return load_models(arguments.model[0], arguments.rerank, **own, **shared)


def _check_flags(arguments: argparse.Namespace) -> None:
    if arguments.suite == "retrieval":
        needed = 0 if arguments.system == "bm25" else 1
        found = len(arguments.model or ())
        if found != needed:
            raise InputError(
                f"--system {arguments.system or 'bi'} takes {needed} --model (a bi-encoder), found {found}"
                + ("; several may rerank: --rerank" if found > 1 else "")
            )
        wrong = [name for name in ("subsets", "compare", "asymmetric") if getattr(arguments, name)]
        if arguments.rerank is None:
            wrong += [name for name in ("rerank_unit", "rerank_weight") if getattr(arguments, name) is not None]
    else:
        if not arguments.model:
            raise InputError("evaluate needs --model")
        known = _TASKS.get(arguments.suite, ())
        for task in arguments.task or ():
            if task not in known:
                found_in = f"the suite {arguments.suite}" if arguments.suite else "a file"
                raise InputError(f"--task {task} is not in {found_in}; expected one of {', '.join(known) or 'no task'}")
        wrong = [name for name in _RETRIEVAL_FLAGS if getattr(arguments, name) is not None]
    if wrong:
        flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
        where = f"--suite {arguments.suite}" if arguments.suite else "--file"
        raise InputError(f"{flags}: not for {where}{' without --rerank' if arguments.suite == 'retrieval' else ''}")


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
