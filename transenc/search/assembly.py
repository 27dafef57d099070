"""Put the files of a generation together, in the temporary folder it is published from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from transenc.search.chunks import PASSAGES, VECTORS, Chunk, encode_chunks, slice_rows, write_vectors
from transenc.search.documents import DocumentTable
from transenc.search.generations import make_chunk_folder
from transenc.search.snapshot import DOCUMENTS, INDEX, WORDS, Snapshot, load_array
from transenc.search.store import Embed
from transenc.search.vector_index import VectorIndex, choose_kind, measure_recall


def encode_generation(
    root: Path,
    folder: Path,
    facts: dict[str, Any],
    embed: Embed,
    *,
    base: Snapshot | None = None,
    replaced: Sequence[int] = (),
    progress: bool = False,
) -> None:
    """Encode the new documents of a generation, of which the documents are written, and write everything else.

    Args:
        root: The folder of the index.
        folder: The temporary folder of the generation.
        facts: For the manifest; the counts, kind and recall are set here.
        embed: The encoder.
        base: The generation that it extends.
        replaced: Numbers of the documents of `base` that are no longer there.
        progress: Show progress bars on stderr.
    """
    first = 0 if base is None else base.table.last + 1
    with closing(DocumentTable.open(folder / DOCUMENTS)) as table:
        documents = (document for _, document in table.read(first=first))
        total = table.last + 1 - first
        chunks = encode_chunks(documents, embed, make_chunk_folder(root), total=total, progress=progress)
    parts = [] if base is None else [mark_deleted(base.passages, replaced)]
    for chunk in chunks:
        parts.append(chunk.read_passages(first))
        first += chunk.documents
    passages = np.concatenate(parts)
    facts["truncated"] += sum(chunk.truncated for chunk in chunks)
    write_passages(folder, facts, passages)
    write_vectors(folder / VECTORS, _join_vectors(base, chunks), rows=len(passages), dim=embed.dim)
    write_index(folder, facts, base=base, progress=progress)
    write_words(folder, facts, progress=progress)


def mark_deleted(passages: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Return passages, int32 [n, 3], with -1 in place of these document numbers.

    Example:
        >>> mark_deleted(np.array([[0, 0, 9], [1, 0, 5]], np.int32), [0]).tolist()
        [[-1, 0, 9], [1, 0, 5]]
    """
    marked = passages.copy()
    marked[np.isin(marked[:, 0], np.asarray(numbers, dtype=np.int64)), 0] = -1
    return marked


def write_passages(folder: Path, facts: dict[str, Any], passages: np.ndarray) -> None:
    """Write the passages, and count them and their documents."""
    np.save(folder / PASSAGES, passages)
    live = passages[passages[:, 0] >= 0, 0]
    facts["passages"], facts["deleted"] = len(live), len(passages) - len(live)
    facts["documents"] = len(np.unique(live))


def write_index(folder: Path, facts: dict[str, Any], *, base: Snapshot | None = None, progress: bool = False) -> None:
    """Write the index over the vectors, grown from that of `base` where it is of the same kind, and its recall."""
    rows = facts["passages"] + facts["deleted"]
    kind = facts["kind_asked"]
    if rows == 0:
        kind = "exact"  # the others need something to learn from
    elif kind == "auto":
        kind = choose_kind(rows)
    vectors = load_array(folder / VECTORS, np.float32, (rows, facts["dim"]))
    if base is not None and base.facts["kind"] == kind:
        index = base.index
        index.extend(vectors, progress=progress)
    else:
        index = VectorIndex.build(vectors, kind, progress=progress)
    if kind != "exact":
        index.write(folder / INDEX)
    facts["kind"], facts["recall@10"] = kind, measure_recall(index)


def write_words(folder: Path, facts: dict[str, Any], *, progress: bool = False) -> None:
    """Write the index of the words, where there is to be one and there are documents."""
    if not facts["lexical"] or not facts["documents"]:
        return
    from transenc.search.lexical import LexicalIndex

    with closing(DocumentTable.open(folder / DOCUMENTS)) as table:
        texts = (document.content for _, document in table.read())
        LexicalIndex.build(texts, progress=progress).save(folder / WORDS)


def check_words() -> None:
    """Raise InputError when words cannot be indexed here: the extra `hybrid` is missing."""
    from transenc.search.lexical import LexicalIndex

    LexicalIndex.build([])


def _join_vectors(base: Snapshot | None, chunks: Sequence[Chunk]) -> Iterator[np.ndarray]:
    if base is not None:
        yield from slice_rows(base.vectors)
    for chunk in chunks:
        yield chunk.read_vectors()
