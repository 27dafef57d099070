"""The command line: stdout carries the result, stderr the log; exit 0, 2 (input), 3 (state), 4 (busy), 130/143."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from transenc.cli.average import add_average
from transenc.cli.bootstrap import add_bootstrap
from transenc.cli.distillation import add_distill, add_label
from transenc.cli.evaluation import add_evaluate
from transenc.cli.mine import add_mine
from transenc.cli.options import add_verb, to_json
from transenc.cli.report import add_report
from transenc.cli.search import add_index, add_search, verify_index
from transenc.cli.serve import add_serve
from transenc.cli.whiten import add_whiten
from transenc.errors import InputError, Interrupted, TransencError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Example:
        >>> main(["evaluate", "--model", "no/such/folder", "--file", "x.tsv"])
        2
    """
    arguments = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("transenc").setLevel(logging.INFO)
    try:
        result = arguments.run(arguments)
        for text in (result,) if isinstance(result, str) else result:
            _print(text)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would complain at its end
    except (Exception, Interrupted, KeyboardInterrupt) as error:
        if arguments.debug:
            traceback.print_exc()
        code, message = _explain(error)
        print(f"transenc: {message}", file=sys.stderr)
        return code
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; before Python 3.12 argparse does not see a query that stands after flags."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, "query", "") is None:
        arguments.query, rest = rest[0], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _print(text: str) -> None:
    """Print a result; a terminal without Unicode shows escapes (JSON is ASCII there, see `to_json`)."""
    if sys.stdout is None:
        raise InputError("stdout is closed; there is nowhere to write the result")
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; settings of `distill` become flags by themselves.

    Example:
        >>> build_parser().parse_args(["verify", "runs/mine"]).path
        'runs/mine'
    """
    parser = argparse.ArgumentParser(
        prog="transenc", description="Sentence-pair models without labels: distil, label, evaluate, search."
    )
    from importlib.metadata import version

    parser.add_argument("--version", action="version", version=f"transenc {version('transenc')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_bootstrap(verbs)
    add_whiten(verbs)
    add_distill(verbs)
    add_mine(verbs)
    add_label(verbs)
    add_average(verbs)
    add_evaluate(verbs)
    add_report(verbs)
    add_index(verbs)
    add_search(verbs)
    add_serve(verbs)
    verify = add_verb(
        verbs, "verify", "check every digest of a run, an encoder or an index, and that its numbers are finite", _verify
    )
    verify.add_argument("path", help="a run directory, an encoder made by bootstrap, or an index")
    return parser


def _verify(arguments: argparse.Namespace) -> str:
    if Path(arguments.path, "CURRENT").exists():
        return verify_index(arguments)
    from transenc.durable import is_published
    from transenc.run import verify_published, verify_run

    if is_published(arguments.path):
        result = verify_published(arguments.path)
        text = f"{result['folder']}: {result['files']} files: all digests fit; {result['tensors']} tensors: all finite"
    else:
        result = verify_run(arguments.path)
        text = (
            f"{result['run']}: {result['stages']} stages, {result['files']} files: all digests fit; "
            f"{result['tensors']} tensors and {result['labels']} labels: all finite"
        )
    return to_json(result) if arguments.json else text


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, TransencError | Interrupted):
        return error.exit_code, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return 3, f"{error.filename or 'output'}: no space left; free some and repeat the command"
    return 1, f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
