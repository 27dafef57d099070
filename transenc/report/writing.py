"""The reports as files: `report.html` and `report.md` of a run, or `comparison.html` and `comparison.md` of several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transenc import durable
from transenc.errors import InputError
from transenc.report.comparison import build_comparison, find_highest
from transenc.report.document import build_document
from transenc.report.facts import compare_runs, read_facts
from transenc.report.rendering import render_html, render_markdown


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write the report of one run, or the comparison of several, as a page and as Markdown.

    Args:
        runs: run directories, finished or not.
        output: folder to write to; None: the run itself, for several runs the current folder.
        data: where the STS test files are, see `read_facts`.

    Returns:
        `{"html": path, "markdown": path, "facts": of the run}`; for several runs `"facts": {"runs": [...],
        "differences": [...] (to the first), "highest": position of the run with the highest dev score, or None,
        "to_highest": [...] (differences to that), or None}`.

    Raises:
        InputError: not a run, a run given twice, matplotlib is not installed, or the folder cannot be written.
        StateError: a file of a run is damaged.

    Example:
        >>> write_report(["runs/mine"])["html"]  # doctest: +SKIP
        'runs/mine/report.html'
    """
    if not runs or len({Path(run).resolve() for run in runs}) < len(runs):
        raise InputError(f"expected one or more different runs, found {', '.join(map(str, runs)) or 'none'}")
    each = [read_facts(run, data=data) for run in runs]
    facts: dict[str, Any]
    if len(runs) == 1:
        facts, document, name = each[0], build_document(each[0]), "report"
        folder = Path(runs[0] if output is None else output)
    else:
        differences, highest = compare_runs(list(runs), each), find_highest(each)
        to_highest = None if highest is None else compare_runs(list(runs), each, against=highest)
        facts, document, name = (
            {"runs": each, "differences": differences, "highest": highest, "to_highest": to_highest},
            build_comparison(each, differences, to_highest),
            "comparison",
        )
        folder = Path("." if output is None else output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write to ({error.strerror}); name another") from None
    paths = {"html": folder / f"{name}.html", "markdown": folder / f"{name}.md"}
    durable.write_file(paths["markdown"], render_markdown(document))
    durable.write_file(paths["html"], render_html(document))
    return {**{kind: str(path) for kind, path in paths.items()}, "facts": facts}
