"""The figures of docs/adapt.md, made from docs/results/adapt-*.json alone.

The page is written by hand but for what stands between the two marks. What the cross-encoder had before it was
adapted comes from docs/results/search-quality.json where the figures have no such row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bootstrap_results import fill
from search_results import format_table

from transenc.durable import read_json, write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
TARGET = 2.0  # nDCG@10 that the default order was to gain
SEARCHED = "arm (c) of results.md"  # the cross-encoder of search-quality.json
ORDERS = {"fused": "fused", "alone": "the order alone", "weighted": "at a weight"}
SYSTEMS = {"bi": "bi-encoder", "student": "adapted bi-encoder", "hybrid": "bi-encoder and BM25"}
CROSSES = {
    "adapted": "the adapted cross-encoder",
    "baseline": "the cross-encoder as it was",
    "teacher": "the bi-encoder's cosines of sentences",
}


def write_page() -> None:
    """Put what docs/results/adapt-*.json says between the marks of docs/adapt.md."""
    page = DOCS / "adapt.md"
    paths = sorted((DOCS / "results").glob("adapt-*.json"), reverse=True)  # scifact, where all is chosen, first
    text = "\n\n".join(describe(read_json(path)) for path in paths)
    write_file(page, fill(page.read_text(encoding="utf-8"), {"figures": f"\n{text}\n"}, name=str(page)))


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
    elif given := [row["weight"] for row in result["test"]["rows"] if row["order"] == "weighted"]:
        parts.append(f"No development queries: the weight {given[0]:g} was given.")
    parts += [f"**{result['test']['queries']} test queries**:", describe_rows(result["test"]["rows"])]
    if told := describe_outcome(result):
        parts.append("\n".join(f"* {line}" for line in told))
    return "\n\n".join(parts)


def describe_outcome(result: Mapping[str, Any]) -> list[str]:
    """What adapting gave behind the bi-encoder on the test queries: before and after, the target, and the teacher."""
    reranked = [row for row in result["test"]["rows"] if row["system"] == "bi" and row["cross"]]
    adapted, teacher = (
        {row["order"]: row for row in reranked if row["cross"].partition(":")[0] == kind}
        for kind in ("adapted", "teacher")
    )
    lines = []
    before, best = find_unadapted(result)
    both = [order for order in ORDERS if order in adapted and order in before]
    if both:
        shown = [
            f"{name_order(adapted[order])}: {before[order]:.2f} before it was adapted, {adapted[order]['ndcg@10']:.2f} "
            f"after ({adapted[order]['ndcg@10'] - before[order]:+.2f})"
            for order in both
        ]
        known = f" Before, the weight that is best for these test queries themselves gave {best}." if best else ""
        lines.append(f"nDCG@10 with the cross-encoder, {'; '.join(shown)}.{known}")
    if "fused" in adapted:
        gain = adapted["fused"]["to bi"]["difference"]
        verdict = "meets" if gain >= TARGET else "misses"
        line = (
            f"The fused order, which is the default, {verdict} the target of {TARGET:+.1f} over the bi-encoder alone: "
        )
        line += f"{gain:+.2f}"
        if "weighted" in adapted:
            row = adapted["weighted"]
            chose = f"{result['dev']['queries']} development queries chose" if result["dev"]["rows"] else "was given"
            line += f"; at the weight {row['weight']:g}, which {chose}, it is {row['to bi']['difference']:+.2f}"
        lines.append(f"{line}.")
    shared = [order for order in ORDERS if order in adapted and order in teacher]
    if shared:
        shown = [f"{name_order(adapted[order])} {describe_gap(adapted[order], teacher[order])}" for order in shared]
        lines.append(
            "Adapted minus teacher (the bi-encoder's cosines of the same sentences, each at its own weight): "
            f"{', '.join(shown)}."
        )
    return lines


def find_unadapted(result: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """nDCG@10 of the cross-encoder that the chosen arm started from, by order, and what its best weight gave."""
    arm = next(arm for arm in result["arms"] if arm["name"] == result["chosen"])
    if not (arm["warm"] and result["cross_start"]):
        return {}, ""
    rows = [row for row in result["test"]["rows"] if row["system"] == "bi" and row["cross"] == "baseline"]
    # what was chosen for the one weight is not what was chosen for the other
    if found := {row["order"]: row["ndcg@10"] for row in rows if row["order"] != "weighted"}:
        return found, ""
    path = DOCS / "results" / "search-quality.json"
    searched = read_json(path) if result["cross_start"] == SEARCHED and path.exists() else {}
    if any(searched.get(name) != result[name] for name in ("depth", "unit")) or result["task"] not in searched:
        return {}, ""
    part = searched[result["task"]]
    weight, best = max(part["bi by weight"].items(), key=lambda item: item[1])
    orders = {"fused": part["bi fused"]["ndcg@10"], "alone": part["bi reranked"]["ndcg@10"]}
    return orders, f"{best:.2f} (at {weight}; [results.md](results.md#retrieval-and-reranking))"


def name_order(row: Mapping[str, Any]) -> str:
    """How a row orders, in a few words."""
    return ORDERS[row["order"]] if row["order"] != "weighted" else f"at the weight {row['weight']:g}"


def describe_gap(row: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """The difference of the figures, with the interval over queries where the study has computed it."""
    interval = row.get("to teacher")
    told = f" ({interval['low']:+.2f} to {interval['high']:+.2f})" if interval else ""
    return f"{row['ndcg@10'] - teacher['ndcg@10']:+.2f}{told}"


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
