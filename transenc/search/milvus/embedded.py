"""milvus-lite in this process: one server for a folder, whatever number of connections."""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transenc.errors import BusyError, InputError


@dataclass
class _Server:
    grpc: Any
    database: Any
    port: int
    connections: int = 0


_servers: dict[Path, _Server] = {}
_servers_lock = threading.Lock()


def start_server(folder: Path, *, create: bool) -> str:
    """Start the server of a folder, or take the one that runs, and return its address.

    Args:
        folder: Of the index.
        create: Make it when there is none.

    Raises:
        InputError: No index there, or milvus-lite is missing.
        BusyError: Another process has it open.
    """
    key = folder.absolute()
    with _servers_lock:
        if key not in _servers:
            _check_folder(folder, create=create)
            _servers[key] = _open_server(folder)
        _servers[key].connections += 1
        return f"http://127.0.0.1:{_servers[key].port}"


def stop_server(folder: Path) -> None:
    """Stop the server of a folder when this was its last connection."""
    with _servers_lock:
        server = _servers[folder.absolute()]
        server.connections -= 1
        if server.connections:
            return
        del _servers[folder.absolute()]
        _shut_down(server)


def _open_server(folder: Path) -> _Server:
    try:
        from milvus_lite.adapter.grpc.server import start_server_in_thread
        from milvus_lite.exceptions import DataDirLockedError
    except ImportError:
        raise InputError(
            f"{folder}: an embedded index needs milvus-lite: pip install 'transenc[milvus]', or name a server"
        ) from None
    try:
        server = _Server(*start_server_in_thread(str(folder), host="127.0.0.1", port=0))
    except DataDirLockedError:
        raise BusyError(
            f"{folder}: another process has this embedded index open, and it serves one at a time; "
            "close it there, or run a Milvus server"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot open an index here: {error.strerror or error}") from error
    if not _servers:
        atexit.register(_stop_all)
    return server


def _check_folder(folder: Path, *, create: bool) -> None:
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if "collections" in names or (create and not names):
            return
        if names:
            raise InputError(f"{folder}: not empty and not an index of milvus-lite; name a new folder")
    elif folder.exists():
        raise InputError(f"{folder}: expected the folder of an embedded index, found a file; name a new folder")
    if not create:
        raise InputError(f"{folder}: expected an embedded index, found nothing; build one there first")


def _stop_all() -> None:
    with _servers_lock:
        while _servers:
            _shut_down(_servers.popitem()[1])


def _shut_down(server: _Server) -> None:
    server.grpc.stop(grace=2).wait()
    server.database.close()
