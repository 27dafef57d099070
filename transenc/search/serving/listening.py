"""Run the server: the socket, clients that are too slow, signals, and the end."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from transenc.errors import InputError, Interrupted, StateError
from transenc.search.serving.limits import Limits
from transenc.search.serving.service import SearchService

_HEAD_BYTES = 32768  # of a request; h11 answers 400 to more
_CUT_S = 5  # beyond `timeout_s`, for what is written at the end
_DEAD_S = 2.0  # that GET /ready tells of a dead worker before the server ends


def bind(host: str, port: int) -> socket.socket:
    """Take an address, before anything slow is loaded; connections are refused until `serve` runs.

    Raises:
        InputError: The address is in use, not of this machine, or not allowed.

    Example:
        >>> with bind("127.0.0.1", 0) as listener:  # 0: any free port
        ...     listener.getsockname()[0]
        '127.0.0.1'
    """
    if not 0 <= port <= 65535:
        raise InputError(f"expected a port from 0 to 65535, found {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host}:{port}: {reason}; name another --host or --port") from None
    return listener


def serve(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    listener: socket.socket | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Answer requests until SIGTERM or SIGINT comes, and then finish those that are at work.

    SIGHUP looks for a newer generation of the index at once. A second SIGTERM or SIGINT ends the process at once.

    Args:
        app: Made by `create_app`.
        host: Address to listen at.
        port: Its port; 0: any free one.
        listener: A socket from `bind`, instead of host and port.
        on_ready: Called with the address, "http://127.0.0.1:8000", when requests are answered.

    Raises:
        InputError: The address cannot be taken.
        StateError: The model worker died; a new start is needed.
        Interrupted: By the signal, when requests were cut off because they took longer than `timeout_s`.

    Example:
        >>> serve(create_app(engine), port=8080)  # doctest: +SKIP
    """
    service: SearchService = app.state.service
    listener = bind(host, port) if listener is None else listener
    config = uvicorn.Config(
        app,
        http=_guard_connections(service.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the client of a request is the one that is connected
        server_header=False,
        timeout_keep_alive=math.ceil(service.limits.keep_alive_s),
        timeout_graceful_shutdown=math.ceil(service.limits.timeout_s) + _CUT_S,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # without a line for every request that is no HTTP
    server = _Server(config, service, lambda: on_ready(_name_address(listener)))
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    if service.worker.died:
        raise StateError("the model worker died, see the log above; start the server again")
    if service.cut_off and server.signum is not None:
        raise Interrupted(server.signum)


class _Server(uvicorn.Server):
    """Exits after a clean stop without raising the signal again, and at once on a second signal."""

    def __init__(self, config: uvicorn.Config, service: SearchService, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._on_ready = service, on_ready
        self.signum: int | None = None
        self._dead_since: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._service.watch.look_now)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if self._service.worker.died and self._dead_since is None:
            self._dead_since = time.monotonic()
        dead = self._dead_since is not None and time.monotonic() - self._dead_since > _DEAD_S
        return await super().on_tick(counter) or dead

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping = True
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + sig)
        self.signum, self.should_exit = sig, True


def _guard_connections(limits: Limits) -> type[H11Protocol]:
    """The HTTP of uvicorn, which would wait for ever for a head to end and for an answer to be read."""

    class GuardedConnection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None
        _answers = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.abort()
            else:
                self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._await_head()
            elif self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._timer, self._stalled):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(limits.body_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stalled is not None:
                self._stalled.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._answers += 1
            self.loop.call_later(limits.body_timeout_s, self._abort_unread, self._answers)

        def send_400_response(self, msg: str) -> None:
            body = json.dumps({"error": "this is no HTTP request"}).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()

        def _await_head(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(limits.header_timeout_s, self.transport.close)

        def _abort_unread(self, answers: int) -> None:
            if answers == self._answers and self.transport.get_write_buffer_size():
                self.transport.abort()

    return GuardedConnection


def _name_address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
