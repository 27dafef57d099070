"""The figures of docs/adapt.md, made from docs/results/adapt-*.json alone.

The page is written by hand but for what stands between the two marks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_results import format_table

from transenc.durable import read_json, write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- begin figures -->", "<!-- end figures -->"
SYSTEMS = {"bi": "bi-encoder", "student": "adapted bi-encoder", "hybrid": "bi-encoder and BM25"}
CROSSES = {
    "adapted": "the adapted cross-encoder",
    "baseline": "the cross-encoder as it was",
    "teacher": "the bi-encoder's cosines of sentences",
}


def write_page() -> None:
    """Put what docs/results/adapt-*.json says between the marks of docs/adapt.md."""
    page = DOCS / "adapt.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{page}: expected the lines {BEGIN} and {END}; restore them")
    paths = sorted((DOCS / "results").glob("adapt-*.json"), reverse=True)  # scifact, where all is chosen, first
    write_file(page, "\n\n".join([before + begin, *(describe(read_json(path)) for path in paths), end + after]))


def describe(result: Mapping[str, Any]) -> str:
    """The section of one task."""
    mined, machine = result["mined"], result["machine"]
    sources = ", ".join(
        f"{part['pairs']:,} {name} (mean cosine {part['cosine']:.2f})" for name, part in mined["sources"].items()
    )
    arms = [
        [
            arm["name"] + (" **(chosen)**" if arm["name"] == result["chosen"] else ""),
            result["cross_start"] if arm["warm"] and result["cross_start"] else "the bi-encoder, with a new head",
            describe_changes(arm["changes"]) or "none",
            f"{arm['agreement']:.1f}",
            f"{arm['seconds'] / 60:.1f} min",
        ]
        for arm in result["arms"]
    ]
    parts = [
        f"### {result['task']}",
        f"    {result['command']}",
        f"Bi-encoder: {result['model']}. {result['documents']:,} documents, {mined['documents']:,} of them mined in "
        f"{mined['seconds'] / 60:.1f} min: {mined['pairs']:,} pairs, {sources}. The first {result['depth']} documents "
        f"are reranked, by {result['unit']}s; seed {result['seed']}; threads: {machine['threads']} of "
        f"{machine['cpu']}, {machine['precision']}.",
        format_table(
            ["arm", "the cross-encoder starts from", "settings", "agreement of the labels", "distilled in"], arms
        ),
    ]
    if result["dev"]["rows"]:
        chose = "the arm and the weight" if len(arms) > 1 else "the weight"
        parts += [f"**{result['dev']['queries']} development queries**, which chose {chose}:"]
        parts += [describe_rows(result["dev"]["rows"])]
    parts += [f"**{result['test']['queries']} test queries**:", describe_rows(result["test"]["rows"])]
    return "\n\n".join(parts)


def describe_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table; each row also as the difference to the bi-encoder alone, and the weight best for these queries."""
    names = ("ndcg@10", "recall@100", "mrr@10")
    lines = []
    for row in rows:
        gain = row.get("to bi")
        told = f"{gain['difference']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})" if gain else ""
        best = row.get("best_weight") if row["order"] == "fused" else None
        figures = [f"{row[name]:.2f}" for name in names]
        lines.append([describe_row(row), *figures, told, "" if best is None else f"{best:g}"])
    return format_table(["", *names, "nDCG@10 to the bi-encoder alone (95 %)", "best weight"], lines)


def describe_row(row: Mapping[str, Any]) -> str:
    """What a row measures."""
    system = SYSTEMS[row["system"]]
    if row["cross"] is None:
        return system
    kind, _, arm = row["cross"].partition(":")
    cross = CROSSES[kind] + (f" ({arm})" if arm else "")
    orders = {
        "fused": f"{system}, fused with {cross}",
        "weighted": f"{system}, with {cross} at weight {row['weight']}",
        "alone": f"{system}, the order by {cross} alone",
    }
    return orders[row["order"]]


def describe_changes(changes: Mapping[str, Any]) -> str:
    """Settings as the flag of an arm has them."""
    flat = [
        (f"{name}.{key}" if key else name, value)
        for name, content in changes.items()
        for key, value in (content.items() if isinstance(content, Mapping) else [("", content)])
    ]
    return ", ".join(f"{name}={value}" for name, value in flat)
