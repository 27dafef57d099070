"""One writer at a time, over all machines: who changes an index in Milvus holds a small collection beside it.

Milvus refuses to create a collection of a name that is there with other fields, and that is what locks: every writer
names a field after itself.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from transenc.errors import BusyError, StateError, TransencError
from transenc.search.milvus.client import WRITE, Connection, MissingCollectionError

_PROPERTY = "transenc.writer"
_RENEWED_EVERY = 60.0  # seconds
_STALE_AFTER = 3600.0  # seconds; a block of documents can take a large encoder many minutes


class Writer:
    """Who holds the right to change an index.

    Args:
        connection: To the server.
        collection: The one that locks.
    """

    def __init__(self, connection: Connection, collection: str) -> None:
        self._connection, self._collection = connection, collection
        self._id, self._renewed = secrets.randbits(62), time.time()

    def renew(self, *, at_once: bool = False) -> None:
        """Say that this writer is alive, if it has not for a minute.

        Args:
            at_once: Say it now; before a change is made visible.

        Raises:
            StateError: Another writer took over.
        """
        if not at_once and time.time() - self._renewed < _RENEWED_EVERY:
            return
        if not self.holds():
            raise StateError(f"{self._connection.place}: another process took over changing this index; start again")
        self._renewed = time.time()
        self._connection.call("alter_collection_properties", self._collection, self._describe(), seconds=WRITE)

    def take(self) -> bool:
        """Take the right to change the index; False when another writer has it."""
        from pymilvus import DataType

        schema = self._connection.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field(f"writer_{self._id}", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
        try:
            self._connection.call(
                "create_collection", self._collection, schema=schema, properties=self._describe(), seconds=WRITE
            )
        except StateError:
            if _read(self._connection, self._collection) is None:
                raise  # it is something else
        return self.holds()

    def holds(self) -> bool:
        """Whether this is the writer that may change the index."""
        holder = _read(self._connection, self._collection)
        return holder is not None and holder.get("id") == self._id

    def release(self) -> None:
        """Give the right up."""
        if self.holds():
            self._connection.call("drop_collection", self._collection, seconds=WRITE)

    def _describe(self) -> dict[str, str]:
        facts = {"id": self._id, "pid": os.getpid(), "host": socket.gethostname(), "time": self._renewed}
        return {_PROPERTY: json.dumps(facts)}


@contextmanager
def hold_writer(connection: Connection) -> Iterator[Writer]:
    """Hold the right to change the index of a connection for the block.

    A writer of this machine that is dead, or of another that was silent for an hour, is replaced.

    Raises:
        BusyError: Another process is changing it; names it.
    """
    name = f"{connection.place.name}__writer"
    writer = Writer(connection, name)
    if not writer.take():
        holder = _read(connection, name)
        if holder is not None and not _is_gone(holder):
            raise BusyError(
                f"{connection.place}: process {holder.get('pid')} on {holder.get('host')} is changing this index; wait "
                f"for it, or if it is gone, drop the collection {name}"
            )
        connection.call("drop_collection", name)
        if not writer.take():
            raise BusyError(f"{connection.place}: another process is changing this index; wait for it")
    try:
        yield writer
    except BaseException:
        with suppress(TransencError):  # what went wrong in the block counts
            writer.release()
        raise
    writer.release()


def _read(connection: Connection, name: str) -> dict[str, Any] | None:
    """Return what the holder wrote, None when nobody holds."""
    try:
        properties = connection.call("describe_collection", name)["properties"]
    except MissingCollectionError:
        return None
    try:
        return dict(json.loads(properties[_PROPERTY]))
    except (KeyError, TypeError, ValueError):
        raise StateError(f"{connection.place}: the collection {name} is in the way; drop it") from None


def _is_gone(holder: dict[str, Any]) -> bool:
    seen = holder.get("time")
    if not isinstance(seen, (int, float)) or abs(time.time() - seen) > _STALE_AFTER:
        return True
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
