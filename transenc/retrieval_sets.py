"""The retrieval benchmarks: documents, queries and judgements from a folder or the Hub.

A set is looked for as ``retrieval/<name>`` in the `data` folder, then in the folder ``$TRANSENC_DATA``, then as a
folder of that path, then on the Hub. A folder has ``corpus.jsonl`` (or ``corpus.jsonl.gz``), ``queries.jsonl`` and
``qrels/<split>.tsv``, as the BEIR benchmarks have.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transenc.benchmarks import DATA_VARIABLE, RETRIEVAL_TASKS, find_folders
from transenc.corpus import Document, read_corpus, read_qrels, read_queries
from transenc.errors import InputError
from transenc.tables import load_hub_dataset, show

logger = logging.getLogger(__name__)

_HUB = {"scifact": "mteb/scifact"}  # its configurations are corpus, queries and, for the judgements, default
# Documents, queries and judgements of the test split. Cranfield has 1,400 documents, two of them without text, and 225
# more judgements, coded -1.
_PUBLISHED = {"scifact": (5183, 300, 339), "cranfield": (1398, 225, 1612)}


@dataclass(frozen=True)
class RetrievalSet:
    """A corpus with queries and judgements.

    Args:
        name: The benchmark's, or the folder's.
        documents: The corpus, without the documents that have no text.
        queries: Query id -> text, for the queries that are judged.
        qrels: Query id -> document id -> score; 1 and more is relevant.
    """

    name: str
    documents: list[Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def load_retrieval(
    name_or_folder: str | os.PathLike[str], *, split: str = "test", data: str | os.PathLike[str] | None = None
) -> RetrievalSet:
    """Load a retrieval benchmark.

    Documents without text are left out and counted in the log; queries without a judgement in the split are left out.
    Judgements of documents that the corpus lacks stay, since trec_eval counts them as not found, and are counted.

    Args:
        name_or_folder: One of `RETRIEVAL_TASKS`, any other name under ``retrieval/`` in the data folder, or a folder.
        split: Whose judgements to use.
        data: A folder with ``retrieval/``; ``$TRANSENC_DATA``, `name_or_folder` as a path and the Hub come after it.

    Raises:
        InputError: Nothing of that name in any of these places, no such split, a file that is missing or damaged, a
            document id that occurs twice, or a judgement of a query that is not there.

    Example:
        >>> loaded = load_retrieval("sample", data="data/sample")  # doctest: +SKIP
        >>> len(loaded.documents), len(loaded.queries)  # doctest: +SKIP
        (110, 66)
    """
    given = os.fspath(name_or_folder)
    folders = find_folders(data)
    if found := list(_find_sets(given, folders)):
        folder = next((path for path in found if _qrels_path(path, split).is_file()), found[0])
        corpus, queries, qrels = _check_files(folder, split)
        place, name = str(qrels), folder.resolve().name
    else:
        corpus, queries, qrels = _load_from_hub(given, split, folders)
        place, name = f"Hub dataset {_HUB[given]!r}, split {split!r}", given
    judged = read_qrels(qrels)
    asked = read_queries(queries)
    if missing := [query for query in judged if query not in asked]:
        raise InputError(
            f"{place}: expected judgements of known queries, found query {show(missing[0])} ({len(missing)} such), "
            "which is not among the queries; get queries and judgements from the same source"
        )
    documents = _read_documents(corpus)
    ids = {document.id for document in documents}
    if absent := sum(document not in ids for scores in judged.values() for document in scores):
        logger.warning("%s: judgements of documents that the corpus lacks: %d; they count as not found", place, absent)
    # In the order of the queries, whatever the order of the judgements.
    kept = {query: text for query, text in asked.items() if query in judged}
    counts = (len(documents), len(kept), sum(map(len, judged.values())))
    if split == "test" and counts != (published := _PUBLISHED.get(name, counts)):
        found_counts = "%s has %d documents, %d queries and %d judgements; published are %d, %d and %d"
        logger.warning(found_counts, name, *counts, *published)
    return RetrievalSet(name, documents, kept, {query: judged[query] for query in kept})


def _find_sets(name: str, folders: list[Path]) -> Iterator[Path]:
    if Path(name).name == name:  # no path
        yield from (path for folder in folders if (path := folder / "retrieval" / name).is_dir())
    if (path := Path(name).expanduser()).is_dir():
        yield path


def _qrels_path(folder: Path, split: str) -> Path:
    return folder / "qrels" / f"{split}.tsv"


def _check_files(folder: Path, split: str) -> tuple[Path, Path, Path]:
    qrels = _qrels_path(folder, split)
    if not qrels.is_file():
        splits = ", ".join(sorted(path.stem for path in qrels.parent.glob("*.tsv"))) or "none"
        raise InputError(f"{qrels}: no such file; expected the judgements of split {split!r}, found splits: {splits}")
    corpus = next((path for end in ("", ".gz") if (path := folder / f"corpus.jsonl{end}").is_file()), None)
    if corpus is None:
        raise InputError(f"{folder}: expected corpus.jsonl or corpus.jsonl.gz, found neither; get the file")
    if not (folder / "queries.jsonl").is_file():
        raise InputError(f"{folder}: expected queries.jsonl, found none; get the file")
    return corpus, folder / "queries.jsonl", qrels


def _load_from_hub(name: str, split: str, folders: list[Path]) -> tuple[Any, Any, Any]:
    places = ", ".join(str(folder) for folder in folders) or "no folder given"
    tried = (
        f"{name}: no folder retrieval/{name} in the `data` folder (--data) or ${DATA_VARIABLE} ({places}), "
        "no folder of that path, and "
    )
    if name not in _HUB:
        known = ", ".join(RETRIEVAL_TASKS)
        raise InputError(f"{tried}no Hub copy is known; get the files, or name a benchmark out of {known}")
    try:
        return (
            load_hub_dataset(_HUB[name], config="corpus", split="corpus"),
            load_hub_dataset(_HUB[name], config="queries", split="queries"),
            load_hub_dataset(_HUB[name], config="default", split=split),
        )
    except InputError as error:
        raise InputError(f"{tried}{error}") from error


def _read_documents(source: Any) -> list[Document]:
    documents: dict[str, Document] = {}
    for document in read_corpus(source, skip_empty=True):
        if first := documents.get(document.id):
            raise InputError(
                f"{document.place}: the document id {show(document.id)} occurs a second time (first at {first.place}); "
                "give each document its own"
            )
        documents[document.id] = document
    if not documents:
        raise InputError(f"{source}: expected documents, found none; get the file again")
    return list(documents.values())
