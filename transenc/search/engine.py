"""Search a corpus: the bi-encoder retrieves, words may help it, a cross-encoder or several encoders rerank.

Doors take names and paths (`SemanticSearch.build`, `SemanticSearch.open`), the core takes objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from transenc.corpus import Document, read_corpus
from transenc.encoders import Encoder
from transenc.errors import InputError, StateError
from transenc.model_folders import encoder_fingerprint
from transenc.scoring import list_encoders
from transenc.search.lexical import fuse_ranks
from transenc.search.models import Rerankers, describe_place, load_models, refuse_several
from transenc.search.passages import PassageEncoder
from transenc.search.reranking import UNITS, Hit, rerank_many
from transenc.search.store import Condition, Match, VectorStore, check_top_k, parse_condition
from transenc.search.stores import build_store, open_store

_QUERIES_AT_ONCE = 64  # bounds the documents in memory: 64 queries with 100 candidates are 6,400


class SemanticSearch:
    """A corpus that answers queries; an index on disk, a bi-encoder and perhaps what reranks.

    Args:
        store: The documents and their vectors.
        encoder: The bi-encoder that made the vectors.
        cross_encoder: Reranks what the bi-encoder retrieved: a cross-encoder, another bi-encoder, or several of both,
            see `rerank`; None: no reranking.
        rerank_unit: What reranking reads, "sentence" or "passage", see `rerank`.
        batch_tokens: As for `score_pairs`, for reranking.

    Attributes:
        rerankers: The list of what reranks; empty: nothing does.

    Example:
        >>> from transenc import SemanticSearch  # doctest: +SKIP
        >>> engine = SemanticSearch.build("idx", corpus="docs.jsonl", bi_encoder="my/encoder")  # doctest: +SKIP
        >>> for hit in engine.search("how do I reset my password?", top_k=5):  # doctest: +SKIP
        ...     print(f"{hit.score:.3f}", hit.id, hit.text)
    """

    def __init__(
        self,
        store: VectorStore,
        encoder: PassageEncoder,
        cross_encoder: Encoder | Sequence[Encoder] | None = None,
        *,
        rerank_unit: str = "sentence",
        batch_tokens: int | None = None,
    ) -> None:
        if rerank_unit not in UNITS:
            raise InputError(f"the rerank unit must be one of {', '.join(UNITS)}, found {rerank_unit!r}")
        rerankers = [] if cross_encoder is None else list_encoders(cross_encoder)
        built = store.facts["embedding"], store.facts["dim"]
        if (encoder.fingerprint, encoder.dim) != built:
            raise StateError(
                f"the index was built with another encoder or way of splitting: expected fingerprint {built[0][:12]} "
                f"and {built[1]} numbers, found {encoder.fingerprint[:12]} and {encoder.dim}; take that encoder"
            )
        self.store, self.encoder, self.rerankers = store, encoder, rerankers
        self.rerank_unit, self.batch_tokens = rerank_unit, batch_tokens

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        *,
        corpus: Any,
        bi_encoder: str | Path,
        cross_encoder: Rerankers | None = None,
        rerank_unit: str = "sentence",
        kind: str = "auto",
        passages: bool = True,
        lexical: bool = False,
        skip_empty: bool = False,
        pooling: str | None = None,
        max_length: int | None = None,
        precision: str = "auto",
        device: str | None = None,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        progress: bool = False,
    ) -> Self:
        """Build an index of a corpus, or replace all content of the one at `path`.

        Killed and started again, it goes on where it was; until it is done the old content serves.

        Args:
            path: The folder of the index, or an address as for `open_store` (Milvus).
            corpus: A file, Hub dataset or iterable, as for `read_corpus`.
            bi_encoder: Folder or Hub id of the encoder; queries are encoded by the same one.
            cross_encoder: Folder or Hub id of what reranks, a cross-encoder or a bi-encoder; or a list of several. They
                are no part of the index.
            rerank_unit: What it reads, "sentence" or "passage", see `rerank`.
            kind: "exact", "hnsw", "ivfpq", or "auto": by the number of passages.
            passages: Split documents that are longer than the encoder's window; False: cut them, and count.
            lexical: Also index the words, for hybrid search (extra `hybrid`).
            skip_empty: Leave out documents without text; False: refuse them.
            pooling: For bare Hugging Face folders.
            max_length: The encoder's window in tokens; None: what the model says.
            precision: Number type of the weights: "auto" (what is fast here), "float32", "bfloat16", "float16".
            device: Where to; None: the GPU if there is one.
            batch_tokens: As for `score_pairs`.
            trust_remote_code: Allow the models' own Python code to run.
            progress: Show progress bars on stderr.

        Returns:
            The engine, serving the new content.

        Raises:
            InputError: An unusable corpus, model or argument; nothing has been changed then.
            StateError: The index at `path` is damaged, or the disk is full.
            BusyError: Another process is changing this index.
        """
        model, rerankers = load_models(
            bi_encoder,
            cross_encoder,
            pooling=pooling,
            max_length=max_length,
            precision=precision,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        length = model.max_seq_length
        assert length is not None  # load_bi_encoder sets it
        fingerprint = encoder_fingerprint(bi_encoder, pooling=pooling, max_length=length)
        facts = {
            **describe_place(bi_encoder),
            "fingerprint": fingerprint,
            "pooling": pooling,
            "max_length": length,
            "passages": passages,
        }
        encoder = PassageEncoder(model, fingerprint=fingerprint, split=passages, batch_tokens=batch_tokens)
        documents = read_corpus(corpus, skip_empty=skip_empty)
        store = build_store(path, documents, encoder, encoder=facts, kind=kind, lexical=lexical, progress=progress)
        return cls(store, encoder, rerankers or None, rerank_unit=rerank_unit, batch_tokens=batch_tokens)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        bi_encoder: str | Path | None = None,
        cross_encoder: Rerankers | None = None,
        rerank_unit: str = "sentence",
        precision: str = "auto",
        device: str | None = None,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Open an index, every file of it verified, with the encoder that built it.

        Args:
            path: The folder or address of the index.
            bi_encoder: Where the encoder lies now; None: where it was when the index was built.
            cross_encoder: As for `build`.
            rerank_unit: What it reads, "sentence" or "passage", see `rerank`.
            precision: Number type of the weights.
            device: Where to; None: the GPU if there is one.
            batch_tokens: As for `score_pairs`.
            trust_remote_code: Allow the models' own Python code to run.

        Returns:
            The engine. It serves the generation it opened, also when another process publishes a newer one.

        Raises:
            InputError: No index at `path`, or an unusable model.
            StateError: A damaged index, or another encoder than the one that built it.
        """
        if bi_encoder is not None:
            refuse_several(bi_encoder)
        store = open_store(path)
        facts: Mapping[str, Any] = store.facts["encoder"]
        name, pooling, length = bi_encoder or facts["name"], facts["pooling"], facts["max_length"]
        try:
            found = encoder_fingerprint(name, pooling=pooling, max_length=length)
        except InputError as error:
            raise InputError(
                f"{path} was built with the encoder {facts['name']}: {error}; or name it: --model"
            ) from None
        if found != facts["fingerprint"]:
            raise StateError(
                f"{path} was built with another encoder: expected fingerprint {facts['fingerprint'][:12]} "
                f"({facts['name']}), found {found[:12]} ({name}); name that one, or build the index again"
            )
        model, rerankers = load_models(
            name,
            cross_encoder,
            pooling=pooling,
            max_length=length,
            precision=precision,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        encoder = PassageEncoder(model, fingerprint=found, split=facts["passages"], batch_tokens=batch_tokens)
        return cls(store, encoder, rerankers or None, rerank_unit=rerank_unit, batch_tokens=batch_tokens)

    def add(self, corpus: Any, *, upsert: bool = False, skip_empty: bool = False, progress: bool = False) -> None:
        """Add documents; the new content serves when all of them are in.

        Args:
            corpus: As for `build`.
            upsert: Replace documents whose id is indexed already; False: refuse them.
            skip_empty: Leave out documents without text; False: refuse them.
            progress: Show progress bars on stderr.

        Raises:
            InputError: An unusable document, a repeated id, or an id that is indexed already.
            BusyError: Another process is changing this index.
        """
        self.store.add(read_corpus(corpus, skip_empty=skip_empty), self.encoder, upsert=upsert, progress=progress)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents and return how many; an unknown id is an InputError, and nothing is deleted then."""
        return self.store.delete(ids)

    def search(
        self,
        query: str,
        *,
        top_k: int = 10,
        candidates: int = 100,
        where: Sequence[str | Condition] = (),
        hybrid: bool = False,
        rerank_weight: float | None = None,
    ) -> list[Hit]:
        """Find the documents that answer a query.

        The bi-encoder retrieves by cosine, with `hybrid` together with BM25 by reciprocal rank fusion. What
        reranks then scores the best `candidates`, and the two scores are fused, see `fuse_scores`.

        Args:
            query: Text.
            top_k: Hits wanted, 1 or more; fewer when the index, or the filter, has fewer documents.
            candidates: Documents retrieved for reranking and for hybrid search, 1 or more; at least `top_k`.
            where: Conditions on metadata such as "topic=cooking" or "year>=2020"; all must hold.
            hybrid: Retrieve by words too.
            rerank_weight: Weight of the rerankers' score, 0 (the retrieved order) to 1 (their order alone);
                None: chosen without labels.

        Returns:
            The hits, best first, equal scores ordered by id.

        Raises:
            InputError: An empty query, a number out of range, an unusable condition.
            TypeError: The query is not a string, or `where` no list.
        """
        if not isinstance(query, str):
            raise TypeError(f"expected a query of type str, found {type(query).__name__}; search_many takes several")
        return self.search_many(
            [query], top_k=top_k, candidates=candidates, where=where, hybrid=hybrid, rerank_weight=rerank_weight
        )[0]

    def search_many(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        candidates: int = 100,
        where: Sequence[str | Condition] = (),
        hybrid: bool = False,
        rerank_weight: float | None = None,
        progress: bool = False,
    ) -> list[list[Hit]]:
        """Answer several queries, faster than one after the other; results and arguments are those of `search`.

        Args:
            queries: Texts.
            top_k: As for `search`.
            candidates: As for `search`.
            where: As for `search`.
            hybrid: As for `search`.
            rerank_weight: As for `search`.
            progress: Show a progress bar on stderr.

        Returns:
            For each query, in order, its hits.

        Raises:
            InputError: As for `search`; an empty query is named by its position.
            TypeError: Not a sequence of strings.
        """
        if isinstance(queries, str | bytes) or not isinstance(queries, Sequence):
            raise TypeError(f"queries must be a sequence of str such as a list, found {type(queries).__name__}")
        check_top_k(top_k)
        check_top_k(candidates, name="candidates")
        if isinstance(where, str | Condition) or not isinstance(where, Sequence):
            raise TypeError(f"where must be a list of conditions, found {type(where).__name__}")
        if rerank_weight is not None and not self.rerankers:
            raise InputError("a rerank weight is that of what reranks; name an encoder (--rerank)")
        conditions = [parse_condition(each) if isinstance(each, str) else each for each in where]
        wanted = max(top_k, candidates) if hybrid or self.rerankers else top_k
        results: list[list[Hit]] = []
        with tqdm(total=len(queries), unit="query", disable=not progress) as bar:
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                block = list(queries[start : start + _QUERIES_AT_ONCE])
                vectors = self.encoder.encode_queries(block)
                hits = self.retrieve(block, vectors, wanted, where=conditions, hybrid=hybrid)
                if self.rerankers:
                    hits = self.rerank(block, hits, weight=rerank_weight)
                results += [found[:top_k] for found in hits]
                bar.update(len(block))
        return results

    def retrieve(
        self,
        queries: Sequence[str],
        vectors: np.ndarray,
        count: int,
        *,
        where: Sequence[Condition] = (),
        hybrid: bool = False,
    ) -> list[list[Hit]]:
        """Retrieve without reranking: the first step of `search_many`, for those who batch the steps themselves.

        Args:
            queries: Texts.
            vectors: What the encoder gives for them, float32 [q, dim].
            count: Documents wanted for each query, 1 or more.
            where: Conditions that must all hold.
            hybrid: Retrieve by words too.

        Returns:
            For each query its hits in retrieved order.

        Raises:
            InputError: As for `search`.
        """
        found = self.store.search(vectors, count, where=where)
        scored = [[(match, match.score) for match in matches] for matches in found]
        if hybrid:
            by_words = self.store.search_text(queries, count, where=where)
            scored = [
                self._fuse(vector, dense, words, count)
                for vector, dense, words in zip(vectors, found, by_words, strict=True)
            ]
        ids = list(dict.fromkeys(match.id for matches in scored for match, _ in matches))
        documents = dict(zip(ids, self.store.get(ids), strict=True))
        return [
            [
                _make_hit(documents[match.id], match, score=score, rank=rank)
                for rank, (match, score) in enumerate(matches, start=1)
            ]
            for matches in scored
        ]

    def rerank(
        self, queries: Sequence[str], hits: Sequence[Sequence[Hit]], *, weight: float | None = None
    ) -> list[list[Hit]]:
        """Rerank what was retrieved for several queries: the second step of `search_many`.

        Args:
            queries: Texts.
            hits: For each query its hits.
            weight: As `rerank_weight` of `search`.

        Returns:
            For each query all its hits, best first.

        Raises:
            InputError: There is nothing that reranks, or a weight out of range.
        """
        if not self.rerankers:
            raise InputError("this engine has nothing that reranks; open it with a cross- or bi-encoder")
        return rerank_many(
            queries,
            hits,
            self.rerankers,
            unit=self.rerank_unit,
            weight=weight,
            batch_tokens=self.batch_tokens,
        )

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fuse(
        self, vector: np.ndarray, dense: list[Match], words: list[Match], count: int
    ) -> list[tuple[Match, float]]:
        """Reciprocal rank fusion; what only BM25 found gets its best passage from the bi-encoder."""
        fused = fuse_ranks([[match.id for match in dense], [match.id for match in words]])[:count]
        matches = {match.id: match for match in dense}
        if missing := [key for key, _ in fused if key not in matches]:
            more = self.store.search(vector[None], len(missing), within=missing)[0]
            matches.update((match.id, match) for match in more)
        return [(matches[key], score) for key, score in fused]


def _make_hit(document: Document, match: Match, *, score: float, rank: int) -> Hit:
    return Hit(
        id=document.id,
        score=score,
        rank=rank,
        retrieved_rank=rank,
        retrieval_score=score,
        rerank_score=None,
        title=document.title,
        text=document.text,
        metadata=document.metadata,
        start=match.start,
        end=match.end,
    )
