"""A connection to Milvus, a server or milvus-lite in this process; what goes wrong there, in one line.

pymilvus is imported when the first connection is made (extra `milvus`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from transenc.errors import InputError, StateError
from transenc.search.milvus.embedded import start_server, stop_server
from transenc.tables import show

TOKEN = "TRANSENC_MILVUS_TOKEN"  # variable of the environment: "user:password" or an API key
EXAMPLES = "milvus://localhost:19530/name of a server, or folder.db or folder.db/name embedded"

# Seconds a call may take, retries within it. Loading waits for the cluster to read what it has stored.
CONNECT, READ, WRITE, LOAD = 5.0, 10.0, 30.0, 300.0

_EMBEDDED_NAME = "transenc"
_PORT = 19530
_NAME = re.compile(r"(?!.*__)[A-Za-z_][A-Za-z0-9_]{0,199}", re.ASCII)  # "__" is in the names that are derived from it
_SCHEMES = {"milvus": "http", "milvus+tls": "https"}
_COLLECTION_NOT_FOUND = 100


class MissingCollectionError(StateError):
    """The server has no collection, or alias, of this name."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an index in Milvus is.

    Args:
        text: As the user gave it, for messages.
        name: Of the index.
        address: Of the server, as pymilvus takes it; empty when embedded.
        folder: Of milvus-lite; None for a server.
    """

    text: str
    name: str
    address: str = ""
    folder: Path | None = None

    def __str__(self) -> str:
        return self.text


def parse_place(location: str | os.PathLike[str]) -> Place | None:
    """Read where an index is: milvus://host:port/name, folder.db, folder.db/name; None for any other folder.

    Args:
        location: The port may be left out (19530), and the name of an embedded index ("transenc"). milvus+tls://
            encrypts. Credentials come from the environment, TRANSENC_MILVUS_TOKEN.

    Raises:
        InputError: An address that is none.

    Example:
        >>> parse_place("milvus://localhost/papers").address
        'http://localhost:19530'
        >>> parse_place("data/papers.db").name
        'transenc'
        >>> parse_place("data/papers") is None
        True
    """
    text = os.fspath(location)
    if not isinstance(text, str):
        raise TypeError(f"location: expected a str or a path, found {type(text).__name__}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text) or text.lower().startswith("milvus:"):
        return _parse_address(text)
    path = Path(text)
    if path.suffix == ".db":
        return Place(text, _EMBEDDED_NAME, folder=path)
    if path.parent.suffix == ".db":
        return Place(text, _check_name(path.name, text), folder=path.parent)
    return None


class Connection:
    """An open connection; made by `open`. Safe to use from several threads.

    Attributes:
        place: Where to.
    """

    def __init__(self, place: Place, client: Any) -> None:
        self.place = place
        self._client: Any = client

    @classmethod
    def open(cls, place: Place, *, create: bool = False) -> Self:
        """Connect, and for an embedded index start milvus-lite in this process.

        Args:
            place: Where to.
            create: Make the folder of an embedded index when there is none.

        Raises:
            InputError: The extra `milvus` is missing, nothing answers, or the credentials are wrong.
            BusyError: Another process has the embedded index open.
        """
        pymilvus = _import_pymilvus()
        options: dict[str, Any] = {}
        address = place.address
        if place.folder is not None:
            address = start_server(place.folder, create=create)
        elif token := os.environ.get(TOKEN, ""):
            options["token"] = token
        if place.folder is not None or urlsplit(address).hostname in ("localhost", "127.0.0.1"):
            options["grpc_options"] = {"grpc.enable_http_proxy": 0}  # grpc would ask a proxy for this machine too
        try:
            with _explain(place, "connect"):
                # shared connections are never closed
                client = pymilvus.MilvusClient(uri=address, timeout=CONNECT, dedicated=True, **options)
        except BaseException:
            if place.folder is not None:
                stop_server(place.folder)
            raise
        return cls(place, client)

    def call(self, method: str, *arguments: Any, seconds: float = READ, **options: Any) -> Any:
        """Call a method of the pymilvus client.

        Args:
            method: Its name.
            arguments: For it.
            seconds: It may take, retries within.
            options: For it.

        Raises:
            MissingCollectionError: No such collection or alias.
            StateError: The connection is lost, or the server refuses.
            InputError: The credentials are wrong, or the connection was closed.
        """
        if self._client is None:
            raise InputError(f"{self.place}: the index was closed; open it again")
        with _explain(self.place, method):
            return getattr(self._client, method)(*arguments, timeout=seconds, **options)

    def read_all(self, collection: str, expression: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        """Yield all rows of a collection for which an expression holds, however many there are."""
        iterator = self.call(
            "query_iterator", collection, filter=expression, output_fields=fields, consistency_level="Strong"
        )
        try:
            while True:
                with _explain(self.place, "query"):
                    rows = iterator.next()
                if not rows:
                    return
                yield from rows
        finally:
            iterator.close()

    @property
    def client(self) -> Any:
        """The pymilvus client, for what it does without asking the server."""
        return self._client

    def close(self) -> None:
        """Close the connection, and stop milvus-lite when no other one uses it."""
        client, self._client = self._client, None
        if client is None:
            return
        with suppress(Exception):  # a lost connection has nothing left to close
            client.close()
        if self.place.folder is not None:
            stop_server(self.place.folder)


# ---- addresses


def _parse_address(text: str) -> Place:
    if "@" in text:  # the text may hold a password: it must not be repeated
        raise InputError(f"an address of Milvus holds no credentials; put them into the variable {TOKEN}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    scheme = _SCHEMES.get(text.partition(":")[0])
    if scheme is None or not host or parts.query or parts.fragment or not re.fullmatch(r"[\w.-]+", host):
        raise InputError(f"{show(text)}: not an address of an index; expected {EXAMPLES}")
    name = _check_name(parts.path.removeprefix("/"), text)
    return Place(text, name, address=f"{scheme}://{host}:{port or _PORT}")


def _check_name(name: str, text: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{show(text)}: expected a name of letters, digits and single underscores, at most 200, found "
            f"{show(name)}; such as {EXAMPLES}"
        )
    return name


# ---- pymilvus


def _import_pymilvus() -> Any:
    before = set(os.environ)
    try:
        import pymilvus
    except ImportError:
        raise InputError("an index in Milvus needs the extra `milvus`: pip install 'transenc[milvus]'") from None
    for name in set(os.environ) - before:  # it reads a .env file above the folder it is installed in
        del os.environ[name]
    # They log with a traceback what they also raise, and here all of it becomes an error of one line.
    for name in ("pymilvus.decorators", "pymilvus.client.connection_manager", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


@contextmanager
def _explain(place: Place, method: str) -> Iterator[None]:
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, ValueError) as error:
        if isinstance(error, ValueError) and "closed channel" not in str(error):
            raise
        raise _translate(error, place, method) from None


def _translate(error: BaseException, place: Place, method: str) -> Exception:
    statuses = [_name_status(one) for one in (error, error.__cause__, error.__context__) if one is not None]
    message = _shorten(error)
    code = getattr(error, "code", None)
    if {"UNAUTHENTICATED", "PERMISSION_DENIED"} & set(statuses) or "auth check failure" in message:
        return InputError(f"{place}: Milvus refuses the credentials; set {TOKEN} to user:password or an API key")
    if code == _COLLECTION_NOT_FOUND or "not found[collection=" in message:
        return MissingCollectionError(f"{place}: {message}; build the index again")
    if method == "connect":
        where = place.address.partition("://")[2] or place
        return InputError(f"{place}: no Milvus server answers at {where}; check the address, and that it runs")
    lost = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"} & set(statuses) or isinstance(error, ValueError)
    if lost or "Retry timeout" in message or "Fail connecting" in message:
        return StateError(f"{place}: Milvus does not answer ({method}); see that it runs, and try again")
    return StateError(f"{place}: Milvus cannot {method.replace('_', ' ')}: {message}")


def _name_status(error: BaseException) -> str:
    """Return the name of a gRPC status, where an error has one."""
    code = getattr(error, "code", None)
    if callable(code):
        code = code()
    return getattr(code, "name", "")


def _shorten(error: BaseException) -> str:
    message = str(getattr(error, "message", "") or error)
    if token := os.environ.get(TOKEN):
        message = message.replace(token, "***")
    return " ".join(message.split())[:300]
