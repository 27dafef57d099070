"""Encode documents block by block, so that a process that is killed loses one block at most."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from transenc import durable
from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.search.store import Embed, Embedded, find_not_finite, normalize_rows
from transenc.tables import show

# A block ends after so many documents or characters: long enough to fill batches of similar length, short enough to
# lose. A sentence has about 60 characters; one CPU core encodes a million characters in a minute or two.
BLOCK_DOCUMENTS = 4096
BLOCK_CHARACTERS = 1_000_000

VECTORS, PASSAGES = "vectors.npy", "passages.npy"
ROWS_AT_ONCE = 65_536

_RULES = 1  # raise it when the same block would be stored otherwise


@dataclass(frozen=True)
class Chunk:
    """A block of documents, encoded and published.

    Args:
        folder: Holds `vectors.npy`, float32 [rows, dim] at length 1, and `passages.npy`, int32 [rows, 3]: position of
            the document in the block, start, end.
        documents: How many the block has.
        rows: How many passages.
        truncated: How many of the documents were cut.
    """

    folder: Path
    documents: int
    rows: int
    truncated: int

    def read_vectors(self) -> np.ndarray:
        """Return the vectors, float32 [rows, dim]."""
        return np.load(self.folder / VECTORS, allow_pickle=False)

    def read_passages(self, first: int) -> np.ndarray:
        """Return the passages, int32 [rows, 3], of documents that are numbered from `first`."""
        passages = np.load(self.folder / PASSAGES, allow_pickle=False)
        passages[:, 0] += first
        return passages


def encode_chunks(
    documents: Iterable[Document], embed: Embed, folder: Path, *, total: int, progress: bool = False
) -> list[Chunk]:
    """Encode documents in blocks; a block that an earlier process has published is not encoded again.

    Args:
        documents: What to encode.
        embed: The encoder.
        folder: Where chunks are published, each under the digest of its encoder and documents.
        total: How many documents there are, for the progress bar.
        progress: Show a progress bar on stderr.

    Raises:
        StateError: A vector is not finite; names the document. Or the disk is full.
        InputError: `embed` does not keep its promise.
    """
    chunks = []
    with tqdm(total=total, desc="encode", unit=" documents", disable=not progress) as bar:
        for block in split_blocks(documents):
            path = folder / _digest_block(block, embed)
            facts = _find_published(path)
            if facts is None:
                facts = _publish_block(path, block, embed)
            chunks.append(Chunk(path, len(block), facts["rows"], facts["truncated"]))
            bar.update(len(block))
    return chunks


def split_blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in blocks of bounded size.

    Example:
        >>> [len(block) for block in split_blocks([Document("a", "x" * 600_000), Document("b", "y" * 600_000)] * 2)]
        [2, 2]
    """
    block: list[Document] = []
    characters = 0
    for document in documents:
        block.append(document)
        characters += len(document.title) + len(document.text)
        if len(block) >= BLOCK_DOCUMENTS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def write_vectors(path: Path, parts: Iterable[np.ndarray], *, rows: int, dim: int) -> None:
    """Write an `.npy` file of float32 [rows, dim] from parts of it, one in memory at a time."""
    with open(path, "xb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        written = sum(_write_rows(file, part) for part in parts)
    if written != rows:
        raise StateError(f"{path}: expected {rows} vectors, found {written}; run the same command again")


def slice_rows(vectors: np.ndarray, chosen: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield the rows of a memory map in blocks; with `chosen`, bool [n], these only."""
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        block = vectors[start : start + ROWS_AT_ONCE]
        yield block if chosen is None else block[chosen[start : start + ROWS_AT_ONCE]]


def _write_rows(file: BinaryIO, part: np.ndarray) -> int:
    file.write(np.ascontiguousarray(part, dtype="<f4").data)  # not through a memory map, which a full disk kills
    return len(part)


def _digest_block(block: Sequence[Document], embed: Embed) -> str:
    digest = hashlib.sha256(json.dumps([_RULES, embed.fingerprint, embed.dim]).encode())
    for document in block:
        content = [document.id, document.title, document.text, dict(document.metadata)]
        digest.update(b"\n" + json.dumps(content).encode())
    return digest.hexdigest()


def _find_published(path: Path) -> dict[str, int] | None:
    if not path.exists():
        return None
    try:
        return durable.verify_directory(path)
    except StateError:  # damaged, or half deleted by a process that was killed: encoded again
        shutil.rmtree(path)
        return None


def _publish_block(path: Path, block: list[Document], embed: Embed) -> dict[str, int]:
    embedded = embed(block)
    passages = _check_embedded(embedded, block, embed.dim)
    facts = {"rows": len(passages), "truncated": int(embedded.truncated)}
    with durable.publish_directory(path, facts=facts) as temporary:
        np.save(temporary / PASSAGES, passages)
        write_vectors(temporary / VECTORS, [normalize_rows(embedded.vectors)], rows=len(passages), dim=embed.dim)
    return facts


def _check_embedded(embedded: Embedded, block: list[Document], dim: int) -> np.ndarray:
    """Return the passages, int32 [rows, 3], once they and their vectors are what they must be."""
    vectors = embedded.vectors
    if not isinstance(vectors, np.ndarray):
        raise TypeError(f"vectors: expected a float32 array, found {type(vectors).__name__}")
    first = f"document {show(block[0].id)}"
    if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] != dim:
        found = f"{vectors.dtype} {list(vectors.shape)}"
        raise InputError(f"{first}: expected vectors of float32 [passages, {dim}], found {found}; correct the encoder")
    if len(vectors) != len(embedded.passages):
        found = f"{len(vectors)} vectors for {len(embedded.passages)} passages"
        raise InputError(f"{first}: expected one vector for each passage, found {found}; correct the encoder")
    rows = [(passage.document, passage.start, passage.end) for passage in embedded.passages]
    passages = np.array(rows, dtype=np.int32).reshape(-1, 3)
    present = np.zeros(len(block), dtype=bool)
    for number, start, end in rows:
        if not 0 <= number < len(block) or not 0 <= start <= end <= len(block[number].text):
            named = f"document {show(block[number].id)}" if 0 <= number < len(block) else first
            found = f"document {number}, {start} to {end}"
            raise InputError(f"{named}: expected a passage inside its text, found {found}; correct the encoder")
        present[number] = True
    if not present.all():
        missing = show(block[int(present.argmin())].id)
        raise InputError(f"document {missing}: expected at least one passage, found none; correct the encoder")
    if (row := find_not_finite(vectors)) is not None:
        named = f"document {show(block[rows[row][0]].id)}"
        raise StateError(f"{named}: its vector holds NaN or infinity; check the encoder's weights and precision")
    return passages
