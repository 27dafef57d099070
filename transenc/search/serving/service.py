"""What serves: the worker with its models, the watch over the index, the figures; without anything of HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from transenc.encoders import Encoder
from transenc.errors import InputError
from transenc.search.engine import SemanticSearch
from transenc.search.serving.description import Description, describe_store
from transenc.search.serving.hot_swap import IndexWatch
from transenc.search.serving.limits import Limits
from transenc.search.serving.telemetry import Telemetry
from transenc.search.serving.worker import ModelWorker

if TYPE_CHECKING:
    from transenc.search.faiss_store import FaissStore
    from transenc.search.milvus.milvus_store import MilvusStore


class SearchService:
    """Everything behind the routes; see `server.create_app` for the arguments.

    Attributes:
        limits: What it takes on.
        worker: Answers questions.
        watch: Looks for newer generations.
        telemetry: Figures.
        stopping: Set it, and requests that come from then on are refused.
        cut_off: Set when the server ended before a request was answered.
    """

    def __init__(
        self, engine: SemanticSearch, *, limits: Limits, reranker_names: Sequence[str], watch_s: float
    ) -> None:
        for model in (engine.encoder.model, *engine.rerankers):
            _check_modalities(model)
        self._engine = engine
        kinds = [type(model).__name__ for model in engine.rerankers]
        if reranker_names and len(reranker_names) != len(kinds):
            raise InputError(
                f"reranker_names: expected one for each of {len(kinds)} rerankers, found {len(reranker_names)}; "
                "name all or none"
            )
        self._reranker_names = [PurePath(name).name for name in reranker_names] or kinds
        self.limits, self.telemetry = limits, Telemetry()
        self.stopping = self.cut_off = False
        description = describe_store(engine.store, dim=engine.encoder.dim)
        self.worker = ModelWorker(engine, description, limits=limits, observe=self.telemetry.count_batch)
        store = cast("FaissStore | MilvusStore", engine.store)
        self.watch = IndexWatch(store, self.worker, interval_s=watch_s)

    @property
    def description(self) -> Description:
        """Of the index that is served."""
        return self.worker.description

    @property
    def problem(self) -> str | None:
        """Why it does not answer questions, or None."""
        return "the server is shutting down" if self.stopping else self.worker.problem

    def start(self) -> None:
        """Start the threads."""
        self.worker.start()
        self.watch.start()

    def stop(self) -> None:
        """Let the worker finish what waits, and close the index."""
        self.stopping = True
        self.watch.stop()
        if self.worker.stop(timeout_s=self.limits.timeout_s):
            self._engine.close()

    def note_cut(self) -> None:
        """Note that a request was cut off."""
        self.cut_off = True

    def describe(self) -> dict[str, Any]:
        """What GET /info answers; names of models without the folders they are in."""
        found = self.description
        return {
            **found.facts,
            "encoder": found.encoder,
            "rerankers": self._reranker_names,
            "hybrid": found.hybrid,
            "fields": found.fields,
            "limits": dataclasses.asdict(self.limits),
            "version": version("transenc"),
        }

    def render_metrics(self) -> bytes:
        """What GET /metrics answers."""
        facts = self.description.facts
        return self.telemetry.render(
            {
                "queue_length": self.worker.waiting,
                "generation": facts["generation"] or 0,
                "documents": facts["documents"],
                "ready": float(self.problem is None),
            }
        )


def _check_modalities(model: Encoder) -> None:
    """Refuse a model for which a text that names a picture is the picture: it would open the file or the address."""
    read = {part for each in model.modalities for part in (each if isinstance(each, tuple) else (each,))}
    if media := sorted(read & {"audio", "image", "video"}):
        raise InputError(
            f"expected models that read text only, found one that reads {', '.join(media)} too: it would open the file "
            "or the address that a text names; serve an index of a text encoder"
        )
