"""The command `report`, and the report that `distill` leaves at its end."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from transenc.cli.options import add_verb, to_json
from transenc.errors import TransencError

logger = logging.getLogger(__name__)


def add_report(verbs: Any) -> None:
    """Add the command `report` to the parser's verbs."""
    text = "write report.html and report.md of a run, or a comparison of several (extra `report`)"
    verb = add_verb(verbs, "report", text, _report)
    verb.add_argument("runs", metavar="RUN", nargs="+", help="run directory")
    verb.add_argument(
        "--output", metavar="FOLDER", help="where to write; default: the run, for several the current folder"
    )
    verb.add_argument("--data", help="folder of the STS test files whose overlap is counted; default: $TRANSENC_DATA")


def write_run_report(run: Path, *, data: str | None) -> None:
    """Write the report of a run that `distill` has finished, unless there is one already that is no older.

    Args:
        run: the run.
        data: folder of the benchmarks.
    """
    page, outcome = run / "report.html", run / "best.json"
    if page.is_file() and page.stat().st_mtime_ns >= outcome.stat().st_mtime_ns:
        return
    from transenc.report.writing import write_report

    try:
        logger.info("report: %s", write_report([run], data=data)["html"])
    except (TransencError, OSError, ValueError) as error:  # the models are there all the same
        logger.warning("no report was written: %s", error)


def _report(arguments: argparse.Namespace) -> str:
    from transenc.report.writing import write_report

    result = write_report(arguments.runs, output=arguments.output, data=arguments.data)
    if arguments.json:
        return to_json(result)
    return f"{result['html']}\n{result['markdown']}"
