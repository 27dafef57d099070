"""What every request passes before a route sees it: who may ask, how much and how slowly; and what every answer has."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transenc.search.serving.bodies import Refusal
from transenc.search.serving.limits import Limits
from transenc.search.serving.telemetry import Telemetry

_LOG = logging.getLogger(__name__)

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
PROBES = ("/live", "/ready")

# Corpus and queries are not to be trusted: no script runs but ours, and nothing is loaded from elsewhere.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
_GONE = 499  # what the access log says when the client left; no such answer is ever sent
_STOPPING = "the server is shutting down"
_LINGER_S = 1.0  # a client that is still sending reads the refusal only if it is not reset


@dataclass
class Record:
    """One request on its way, in `scope["transenc"]`; routes add facts for the access log."""

    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return 1000 * (time.perf_counter() - self.started)


class Gate:
    """ASGI middleware around all routes.

    Args:
        app: What it guards.
        limits: Of these `max_body_bytes` and `body_timeout_s`.
        hosts: Names that a Host header may have, without port, an IPv6 address in brackets.
        every_address: Also the address that the connection came to: the server listens on all of this machine's.
        routes: Known paths, for the figures; a folder ends with "/".
        telemetry: Counts and logs.
        is_stopping: Whether the server is shutting down.
        on_cut: Called when a request is cut off because the server cannot wait for it any longer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        hosts: Collection[str],
        every_address: bool,
        routes: Collection[str],
        telemetry: Telemetry,
        is_stopping: Callable[[], bool],
        on_cut: Callable[[], None],
    ) -> None:
        self._app, self._limits, self._telemetry = app, limits, telemetry
        self._is_stopping, self._on_cut = is_stopping, on_cut
        self._hosts = frozenset(_normalize_host(host) for host in hosts)
        self._every_address, self._routes = every_address, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        record = scope["transenc"] = Record()
        body = _Body(scope, receive, self._limits)
        answer = _Answer(send, record, body)
        try:
            try:
                self._check_sender(scope)
                body.check_length()
                await self._app(scope, body.receive, answer.send)
            except ClientDisconnect:
                record.status = _GONE
            except asyncio.CancelledError:
                self._on_cut()
                await answer.refuse(Refusal(503, _STOPPING))
            except Refusal as refusal:
                await answer.refuse(refusal)
            except Exception as error:
                _LOG.error("%s %s failed", scope["method"], self._name_route(scope["path"]), exc_info=error)
                await answer.refuse(Refusal(500, "internal error; the server's log says more"))
        finally:
            self._finish(scope, record)

    def _check_sender(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        # probes come by address, and give nothing away
        if scope["path"] not in PROBES and not self._is_allowed(_normalize_host(host), scope):
            raise Refusal(421, "this server does not answer for the host in the Host header (--allow-host)")
        if scope["method"] not in ("GET", "HEAD"):
            site = headers.get(b"sec-fetch-site", b"none").decode("latin-1")
            origin = headers.get(b"origin", b"").decode("latin-1")
            if site not in ("same-origin", "none") or (origin and not _is_same(origin, host)):
                raise Refusal(403, "requests from pages of another origin are refused")
        if self._is_stopping() and scope["path"] not in (*PROBES, "/metrics"):
            raise Refusal(503, _STOPPING, {"retry-after": "5"})

    def _is_allowed(self, host: str, scope: Scope) -> bool:
        server = scope.get("server")
        mine = self._every_address and server is not None and host == _normalize_host(server[0])
        return host in self._hosts or mine

    def _name_route(self, path: str) -> str:
        folder = path[: path.find("/", 1) + 1]
        return path if path in self._routes else folder if folder in self._routes else "other"

    def _finish(self, scope: Scope, record: Record) -> None:
        client = scope.get("client")
        facts = {
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"][:200],
            "bytes": record.bytes,
            "total_ms": round(record.elapsed_ms, 3),
            **record.facts,
        }
        self._telemetry.log_request(route=self._name_route(scope["path"]), status=record.status, facts=facts)


class _Body:
    """The body of a request: never more than the limit, never slower."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._length, chunked = headers.get(b"content-length", b"0"), b"transfer-encoding" in headers
        self._receive, self._limits = receive, limits
        self._deadline = time.monotonic() + limits.body_timeout_s
        self._count = 0
        self.unread = chunked or self._length.strip(b"0") != b""
        self.slow = False

    def check_length(self) -> None:
        if len(self._length) > 15 or int(self._length) > self._limits.max_body_bytes:
            self._refuse()

    async def receive(self) -> Message:
        if not self.unread:
            return await self._receive()  # only tells when the client leaves
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            self.slow = True
            seconds = self._limits.body_timeout_s
            raise Refusal(408, f"the body did not arrive within {seconds:g} s (body_timeout_s)") from None
        self._count += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.unread = False
        if self._count > self._limits.max_body_bytes:
            self._refuse()
        return message

    async def drain(self) -> None:
        """Throw away what comes, for a moment."""
        try:
            async with asyncio.timeout(_LINGER_S):
                while self.unread:
                    message = await self._receive()
                    self.unread = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            pass

    def _refuse(self) -> None:
        raise Refusal(413, f"expected a body of at most {self._limits.max_body_bytes} bytes (max_body_bytes)")


class _Answer:
    """The answer to a request, with the headers that every answer has."""

    def __init__(self, send: Send, record: Record, body: _Body) -> None:
        self._send, self._record, self._body = send, record, body

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            headers = [*message.get("headers", []), *_HEADERS]
            if self._body.unread:  # what is left of it must not be read as the next request
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self._record.bytes += len(message.get("body", b""))
            if self._body.unread and not self._body.slow and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                await self._body.drain()
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        if self._record.status:
            raise refusal  # the answer is half sent: the connection is closed
        body = json.dumps({"error": refusal.message}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


def _normalize_host(host: str) -> str:
    """The name in a Host header or of an address, without port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    if host.count(":") > 1:
        return f"[{host}]"
    return host.partition(":")[0].removesuffix(".")


def _is_same(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.strip().lower() != ""
    except ValueError:
        return False
