"""Derive the sample data set from its hand-written sources.

`data/sample/` holds three sources: `groups.tsv` (paraphrase groups), `documents.tsv` and `queries.tsv`. Everything else
there is written by this script, the same bytes on every machine:

    python scripts/build_sample.py            # write the derived files
    python scripts/build_sample.py --check    # write nothing; exit 1 when a file on disk differs

Every choice is made by the SHA-256 of the text it is about, not by a random generator: the result does not depend on
the Python version, and a sentence added to the sources moves few of the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple, TypeVar

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
SEED = "transenc-sample-1"

T = TypeVar("T")

# Per topic: a component is a group with its related group, or a group that stands alone. What is left is for training.
TEST_COMPONENTS, DEV_COMPONENTS, DEV_SINGLES = 2, 1, 1
# How many pairs of each relation a file gets; None takes all there are.
TRAIN_PAIRS = {"same": None, "related": 320, "topic": 260, "other": 260}
DEV_PAIRS = {"same": 50, "related": 30, "topic": 35, "other": 35}
TEST_PAIRS = {"same": 100, "related": 60, "topic": 70, "other": 70}
SCORES = {"same": 5, "related": 3, "topic": 1, "other": 0}


class Group(NamedTuple):
    """Sentences that say the same thing; `related` is the id of a close but different group, or empty."""

    name: str
    topic: str
    related: str
    sentences: tuple[str, ...]


class Pair(NamedTuple):
    """Two sentences, the groups they come from and how these groups are related (a key of SCORES)."""

    relation: str
    groups: tuple[str, str]
    sentences: tuple[str, str]


class SourceError(ValueError):
    """A hand-written source is wrong; the message names the file and the line or id."""


def main() -> int:
    """Run the command line; returns 0, 1 (--check found a difference) or 2 (a source is wrong)."""
    parser = argparse.ArgumentParser(description="Derive the sample data set from its hand-written sources.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file on disk differs")
    parser.add_argument("--folder", type=Path, default=SAMPLE, help="the sample folder (default: data/sample)")
    arguments = parser.parse_args()
    try:
        files = build_files(arguments.folder)
    except (SourceError, OSError) as error:
        print(f"build_sample: {error}", file=sys.stderr)
        return 2
    if arguments.check:
        different = [name for name, data in files.items() if not holds(arguments.folder / name, data)]
        for name in different:
            print(f"build_sample: {name} is not what the sources give; run scripts/build_sample.py", file=sys.stderr)
        return 1 if different else 0
    for name, data in files.items():
        path = arguments.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{name}: {len(data.splitlines())} lines")
    return 0


def build_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every derived file, by its path inside the sample folder.

    Raises:
        SourceError: a source breaks a rule (columns, ids, repeated sentences, unknown or one-sided references).
    """
    groups = read_groups(folder / "groups.tsv")
    parts = split_groups(groups)
    train_pairs = choose_pairs(parts["train"], TRAIN_PAIRS)
    files = {"pairs.tsv": format_rows(("sentence1", "sentence2"), (pair.sentences for pair in train_pairs))}
    for part, amounts in (("dev", DEV_PAIRS), ("test", TEST_PAIRS)):
        pairs = choose_pairs(parts[part], amounts)
        rows = ((str(SCORES[pair.relation]), *pair.sentences) for pair in pairs)
        files[f"{part}.tsv"] = format_rows(("score", "sentence1", "sentence2"), rows)
    files["sentences.txt"] = "".join(f"{s}\n" for group in parts["train"] for s in group.sentences).encode()
    files.update(build_retrieval(folder))
    return files


def holds(path: Path, data: bytes) -> bool:
    """Tell whether the file at `path` exists and holds exactly `data`."""
    return path.is_file() and path.read_bytes() == data


def read_groups(path: Path) -> list[Group]:
    """Read and check the paraphrase groups, in file order."""
    sentences: dict[str, list[str]] = {}
    facts: dict[str, tuple[str, str]] = {}
    seen: dict[str, int] = {}
    for number, (name, topic, related, sentence) in read_rows(path, ("group", "topic", "related", "sentence")):
        if facts.setdefault(name, (topic, related)) != (topic, related):
            raise SourceError(f"{path.name}:{number}: group {name} had another topic or related group before")
        if sentence.casefold() in seen:
            raise SourceError(f"{path.name}:{number}: same sentence as in line {seen[sentence.casefold()]}")
        seen[sentence.casefold()] = number
        sentences.setdefault(name, []).append(sentence)
    groups = {name: Group(name, *facts[name], tuple(sentences[name])) for name in sentences}
    for group in groups.values():
        if not 3 <= len(group.sentences) <= 5:
            raise SourceError(f"{path.name}: group {group.name} needs 3 to 5 sentences, has {len(group.sentences)}")
        if group.related:
            other = groups.get(group.related)
            if other is None or other.related != group.name or other.topic != group.topic:
                raise SourceError(
                    f"{path.name}: {group.name} names {group.related}, which is no group of the same topic that "
                    "names it back"
                )
    return list(groups.values())


def split_groups(groups: list[Group]) -> dict[str, list[Group]]:
    """Divide the groups into train, dev and test, topic by topic; related groups stay together."""
    part_of: dict[str, str] = {}
    for topic in dict.fromkeys(group.topic for group in groups):
        members = [group for group in groups if group.topic == topic]
        singles = order(group.name for group in members if not group.related)
        couples = order({tuple(sorted((group.name, group.related))) for group in members if group.related})
        for position, couple in enumerate(couples):
            is_dev = position < TEST_COMPONENTS + DEV_COMPONENTS
            part = "test" if position < TEST_COMPONENTS else "dev" if is_dev else "train"
            part_of.update(dict.fromkeys(couple, part))
        for position, name in enumerate(singles):
            part_of[name] = "dev" if position < DEV_SINGLES else "train"
    return {part: [group for group in groups if part_of[group.name] == part] for part in ("train", "dev", "test")}


def choose_pairs(groups: list[Group], amounts: Mapping[str, int | None]) -> list[Pair]:
    """Choose `amounts[relation]` pairs of each relation, spread evenly over the groups, in mixed order."""
    candidates: dict[str, list[Pair]] = {relation: [] for relation in amounts}
    for group in groups:
        for one, two in combinations(group.sentences, 2):
            candidates["same"].append(make_pair("same", (group, group), (one, two)))
    for first, second in combinations(groups, 2):
        relation = relate(first, second)
        for one, two in product(first.sentences, second.sentences):
            candidates[relation].append(make_pair(relation, (first, second), (one, two)))
    chosen: list[Pair] = []
    for relation, amount in amounts.items():
        pairs = spread(candidates[relation])
        if amount is not None and len(pairs) < amount:
            raise SourceError(f"the groups give only {len(pairs)} pairs of the relation {relation!r}, not {amount}")
        chosen.extend(pairs[:amount])
    # Not the digest that `spread` chose by: it would put the relation with the most candidates first.
    return sorted(chosen, key=lambda pair: digest(("row", pair.sentences)))


def relate(first: Group, second: Group) -> str:
    """Return how two different groups are related."""
    if second.name == first.related:
        return "related"
    return "topic" if first.topic == second.topic else "other"


def make_pair(relation: str, groups: tuple[Group, Group], sentences: tuple[str, str]) -> Pair:
    """Build a pair; the digest decides which sentence comes first, so that position tells nothing."""
    names = (groups[0].name, groups[1].name)
    is_swapped = int(digest(("side", sentences))[0], 16) % 2 == 1
    return Pair(relation, names, sentences[::-1] if is_swapped else sentences)


def spread(pairs: list[Pair]) -> list[Pair]:
    """Order pairs so that any beginning of the list holds about equally many of every two groups."""
    by_groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in order(pairs):
        by_groups.setdefault(pair.groups, []).append(pair)
    turns = [(turn, digest(pair), pair) for members in by_groups.values() for turn, pair in enumerate(members)]
    return [pair for _, _, pair in sorted(turns)]


def order(items: Iterable[T]) -> list[T]:
    """Return the items in the order of their digests: fixed, and unrelated to their content."""
    return sorted(items, key=digest)


def digest(item: object) -> str:
    """Return the SHA-256 of the seed and the item's JSON text, in hexadecimal."""
    return hashlib.sha256(json.dumps([SEED, item], ensure_ascii=False).encode()).hexdigest()


def build_retrieval(folder: Path) -> dict[str, bytes]:
    """Return the retrieval set: documents with metadata, queries and graded relevance (2 answers, 1 helps)."""
    documents: dict[str, dict[str, str | int]] = {}
    columns = ("document", "topic", "year", "title", "text")
    for number, (name, topic, year, title, text) in read_rows(folder / "documents.tsv", columns):
        if name in documents or not year.isdecimal():
            raise SourceError(f"documents.tsv:{number}: {name} is there twice or its year is not a number")
        documents[name] = {"_id": name, "title": title, "text": text, "topic": topic, "year": int(year)}
    queries: dict[str, dict[str, str]] = {}
    judgements: list[tuple[str, str, str]] = []
    for number, (name, relevant, text) in read_rows(folder / "queries.tsv", ("query", "relevant", "text")):
        if name in queries:
            raise SourceError(f"queries.tsv:{number}: {name} is there twice")
        queries[name] = {"_id": name, "text": text}
        for entry in relevant.split(" "):
            document, _, score = entry.partition(":")
            if document not in documents or score not in ("1", "2"):
                raise SourceError(f"queries.tsv:{number}: {entry!r} is not <document id>:<1 or 2>")
            judgements.append((name, document, score))
    return {
        "retrieval/sample/corpus.jsonl": format_records(documents.values()),
        "retrieval/sample/queries.jsonl": format_records(queries.values()),
        "retrieval/sample/qrels/test.tsv": format_rows(("query-id", "corpus-id", "score"), judgements),
    }


def read_rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """Read an unquoted TSV file: (line number, fields) per row. Only `related` may be empty."""
    lines = path.read_bytes().decode("utf-8").split("\n")
    if lines[0].split("\t") != list(columns) or lines[-1] != "":
        raise SourceError(f"{path.name}: the first line must be {columns} and the last one must end with a newline")
    rows = [(number, line.split("\t")) for number, line in enumerate(lines[1:-1], start=2)]
    for number, fields in rows:
        if len(fields) != len(columns) or any(field != field.strip() for field in fields):
            raise SourceError(f"{path.name}:{number}: expected {len(columns)} fields without outer blanks")
        if any(not field for column, field in zip(columns, fields, strict=True) if column != "related"):
            raise SourceError(f"{path.name}:{number}: a field is empty")
    return rows


def format_rows(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> bytes:
    """Format an unquoted TSV file; the sources hold no tabs, so the fields need no escaping."""
    return "".join("\t".join(row) + "\n" for row in (header, *rows)).encode()


def format_records(records: Iterable[dict[str, str]] | Iterable[dict[str, str | int]]) -> bytes:
    """Format a JSON Lines file."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


if __name__ == "__main__":
    sys.exit(main())
