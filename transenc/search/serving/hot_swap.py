"""A newer generation of the index takes the place of the one that is served, between two batches."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from transenc.errors import StateError, TransencError
from transenc.search.faiss_store import FaissStore
from transenc.search.generations import CURRENT, render_current
from transenc.search.serving.description import describe_store
from transenc.search.serving.worker import ModelWorker
from transenc.search.stores import open_store

if TYPE_CHECKING:
    from transenc.search.milvus.milvus_store import MilvusStore

_LOG = logging.getLogger(__name__)

_END_S = 1.0  # that the end of the server waits for a look
_REFUSED_S = 60.0  # before an index in Milvus that was refused is opened again; opening one loads it there


class IndexWatch:
    """Looks whether another generation serves, opens and verifies it beside the old one, and hands it to the worker.

    A generation that is damaged or of another encoder is logged once and not taken; the old one goes on serving.

    Args:
        store: What is served now, a `FaissStore` or a `MilvusStore`.
        worker: Gets the new store.
        interval_s: Seconds between two looks.
    """

    def __init__(self, store: FaissStore | MilvusStore, worker: ModelWorker, *, interval_s: float = 2.0) -> None:
        self._store, self._worker, self._interval_s = store, worker, interval_s
        self._encoder, self._served = _name_encoder(store), store.generation
        self._news = _FolderNews(store) if isinstance(store, FaissStore) else _MilvusNews(store)
        self._complaint = ""
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="index-watch", daemon=True)

    def start(self) -> None:
        """Start the thread that looks."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a look that is under way comes to nothing."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(_END_S)

    def look_now(self) -> None:
        """Let the thread look at once, also at a generation that was refused before."""
        self._news.forget()
        self._wake.set()

    def look(self) -> bool:
        """Look once; whether another generation was handed to the worker."""
        try:
            if not self._news.arrived():
                self._describe_again()
                return False
            store = open_store(self._news.location)
            try:
                self._check_encoder(store)
                description = describe_store(store, dim=store.facts["dim"])
            except BaseException:
                store.close()
                raise
        except (TransencError, OSError) as error:
            self._news.refuse()
            self._complain(str(error))
            return False
        self._store, self._served, self._complaint = store, description.facts["generation"], ""
        self._news.take(store)
        self._worker.replace_store(store, description)
        _LOG.info("generation %d of the index takes over: %d documents", self._served, description.facts["documents"])
        return True

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            if not self._stopping:
                try:
                    self.look()
                except Exception:  # a thread that ends would never look again
                    _LOG.exception("looking for a newer generation failed")

    def _check_encoder(self, store: FaissStore | MilvusStore) -> None:
        found = _name_encoder(store)
        if found != self._encoder:
            raise StateError(
                f"generation {store.generation} was built with another encoder: expected fingerprint "
                f"{self._encoder[0][:12]}, found {found[0][:12]}; start the server again to serve it"
            )

    def _describe_again(self) -> None:
        """What others add to a generation in Milvus is searched at once; GET /info follows."""
        if not isinstance(self._store, FaissStore) and self._store.generation != self._served:
            self._served = self._store.generation
            self._worker.description = describe_store(self._store, dim=self._store.facts["dim"])

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            _LOG.error("generation %d goes on serving, the newer one is not taken: %s", self._served, text)
        self._complaint = text


class _FolderNews:
    """Whether CURRENT was written, also when an index was made anew under the same name."""

    def __init__(self, store: FaissStore) -> None:
        self.location = str(store.path)
        mark, served = self._read_mark(), render_current(store.path, store.generation)
        self._seen = mark if mark is not None and mark[2] == f"{served}\n".encode() else None

    def arrived(self) -> bool:
        mark = self._read_mark()
        news = mark != self._seen
        self._seen = mark  # before it is opened: a change meanwhile has another mark
        return news

    def take(self, store: FaissStore | MilvusStore) -> None:
        """It was not refused."""

    def refuse(self) -> None:
        """It is damaged or unfit and stays so: what is published never changes."""

    def forget(self) -> None:
        self._seen = None

    def _read_mark(self) -> tuple[int, int, bytes] | None:
        path = Path(self.location, CURRENT)
        try:
            status = path.stat()
            return status.st_ino, status.st_mtime_ns, path.read_bytes()
        except OSError:
            return None


class _MilvusNews:
    """Whether another build of the index serves."""

    def __init__(self, store: MilvusStore) -> None:
        self.location, self._store, self._not_before = str(store.place), store, 0.0

    def arrived(self) -> bool:
        return time.monotonic() >= self._not_before and not self._store.is_current()

    def take(self, store: FaissStore | MilvusStore) -> None:
        assert not isinstance(store, FaissStore)
        self._store = store

    def refuse(self) -> None:
        self._not_before = time.monotonic() + _REFUSED_S

    def forget(self) -> None:
        self._not_before = 0.0


def _name_encoder(store: FaissStore | MilvusStore) -> tuple[str, int]:
    """The fingerprint of the encoder and its width; how it cuts documents does not matter for queries."""
    facts = store.facts
    return facts["encoder"].get("fingerprint", facts["embedding"]), facts["dim"]
