"""Search over HTTP: `create_app` gives the ASGI application, `listening.serve` and `transenc serve` run it.

By hand, for a page under development::

    from transenc import SemanticSearch
    from transenc.search.serving.listening import serve
    from transenc.search.serving.server import create_app

    engine = SemanticSearch.open("idx", cross_encoder="my/cross-encoder")
    serve(create_app(engine), host="127.0.0.1", port=8000)      # http://127.0.0.1:8000/

The page is the files in the folder ``static`` beside this module, read when the application is made: ``index.html`` is
answered at ``/``, each file at ``/static/<name>``, and no other name reaches the disk.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from transenc.errors import BusyError, InputError
from transenc.search.engine import SemanticSearch
from transenc.search.reranking import describe_hit
from transenc.search.serving.answers import (
    CONDITION,
    Answer,
    Question,
    Search,
    SearchAnswer,
    Similarity,
    SimilarityAnswer,
)
from transenc.search.serving.bodies import Refusal, SearchBody, SimilarityBody, parse_body
from transenc.search.serving.gate import LOCAL_HOSTS, PROBES, Gate, Record
from transenc.search.serving.limits import Limits
from transenc.search.serving.service import SearchService
from transenc.search.serving.worker import QueueFull, WorkerStopped

_Route = TypeVar("_Route", bound=Callable[..., Awaitable[Response]])

_STATIC = Path(__file__).parent / "static"
_NO_WORDS = "hybrid: this index cannot be searched by words; build it with --hybrid"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


def create_app(
    engine: SemanticSearch,
    *,
    limits: Limits = Limits(),  # noqa: B008
    hosts: Collection[str] = (),
    every_address: bool = False,
    reranker_names: Sequence[str] = (),
    watch_s: float = 2.0,
) -> FastAPI:
    """Make the application that answers for an index.

    Args:
        engine: Index and models; the application owns them from now on, and closes the index when it ends.
        limits: What it takes on.
        hosts: Names that a Host header may have beside 127.0.0.1, localhost and [::1].
        every_address: Also any address of this machine, for a server that listens on all of them.
        reranker_names: Of the engine's `rerankers`, for GET /info; only their last parts are shown.
        watch_s: Seconds between two looks for a newer generation of the index.

    Returns:
        An ASGI application; `app.state.service` is its `SearchService`.

    Raises:
        InputError: The encoder reads more than text: it would open the file or address that a text names.

    Example:
        >>> app = create_app(SemanticSearch.open("idx"), limits=Limits(max_top_k=20))  # doctest: +SKIP
    """
    service = SearchService(engine, limits=limits, reranker_names=reranker_names, watch_s=watch_s)

    @asynccontextmanager
    async def run_service(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    # The pages of FastAPI's documentation load scripts from elsewhere; the description itself stays.
    app = FastAPI(
        title="transenc",
        version=version("transenc"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=run_service,
    )
    app.state.service = service
    _add_page(app, read_static(_STATIC))
    _add_questions(app, service)
    _add_reports(app, service)
    app.add_exception_handler(HTTPException, _describe_http_error)
    app.add_middleware(
        Gate,
        limits=limits,
        hosts=(*LOCAL_HOSTS, *hosts),
        every_address=every_address,
        routes=("/", "/search", "/similarity", "/info", "/metrics", "/openapi.json", "/static/", *PROBES),
        telemetry=service.telemetry,
        is_stopping=lambda: service.stopping,
        on_cut=service.note_cut,
    )
    return app


def read_static(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Read the files of the page: name -> content and type. Files of other types are not served."""
    if not folder.is_dir():
        return {}
    return {
        path.name: (path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in _TYPES and path.is_file()
    }


# ---- routes


def _add_page(app: FastAPI, files: Mapping[str, tuple[bytes, str]]) -> None:
    tags = {name: f'"{sha256(content).hexdigest()[:32]}"' for name, (content, _) in files.items()}

    def answer_file(name: str, request: Request) -> Response:
        if name not in files:
            raise Refusal(404, "not found")
        content, kind = files[name]
        headers = {"etag": tags[name], "cache-control": "no-cache", "content-type": kind}
        if tags[name] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    @_answer_get(app, "/")
    async def answer_page(request: Request) -> Response:
        return answer_file("index.html", request)

    @_answer_get(app, "/static/{name:path}")
    async def answer_static(name: str, request: Request) -> Response:
        return answer_file(name, request)


def _add_questions(app: FastAPI, service: SearchService) -> None:
    @app.post("/search", summary="Find the documents that answer a query", **_describe_body(SearchBody))
    async def answer_search(request: Request) -> Response:
        body = parse_body(await _read_json(request), SearchBody)
        conditions = body.check(service.limits)
        if body.hybrid and not service.description.hybrid:
            raise Refusal(400, _NO_WORDS)
        question = Search(
            body.query, body.top_k, body.candidates, conditions, body.hybrid, body.rerank, body.rerank_weight
        )
        answer = await _ask(service, question, request)
        assert isinstance(answer, SearchAnswer)
        content = {
            "hits": [describe_hit(hit) for hit in answer.hits],
            "reranked": answer.reranked,
            "retrieved": answer.retrieved,
            "others": [describe_hit(hit) for hit in answer.others],
            "generation": answer.generation,
            "timings": _finish_timings(service, request, answer),
        }
        return _answer_json(content)

    @app.post("/similarity", summary="Compare two sentences", **_describe_body(SimilarityBody))
    async def answer_similarity(request: Request) -> Response:
        body = parse_body(await _read_json(request), SimilarityBody)
        body.check(service.limits)
        answer = await _ask(service, Similarity(body.sentence1, body.sentence2), request)
        assert isinstance(answer, SimilarityAnswer)
        found = answer.alignment
        content = {
            "bi": answer.bi,
            "cross": answer.cross,
            "tokens1": found.tokens1,
            "tokens2": found.tokens2,
            "alignment": [[round(float(cosine), 6) for cosine in row] for row in found.cosines],
            "aligned": found.score,
            "truncated": found.truncated,
            "timings": _finish_timings(service, request, answer),
        }
        return _answer_json(content)


def _add_reports(app: FastAPI, service: SearchService) -> None:
    @_answer_get(app, "/info", summary="What is served")
    async def answer_info() -> Response:
        return _answer_json(service.describe())

    @_answer_get(app, "/live", summary="Whether the server answers at all")
    async def answer_live() -> Response:
        return _answer_json({"status": "live"})

    @_answer_get(app, "/ready", summary="Whether it answers questions")
    async def answer_ready() -> Response:
        problem = service.problem
        if problem is not None:
            return _answer_json({"status": "not ready", "error": problem}, status=503)
        return _answer_json({"status": "ready"})

    @_answer_get(app, "/metrics", summary="Figures for Prometheus")
    async def answer_metrics() -> Response:
        return Response(service.render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _answer_get(app: FastAPI, path: str, *, summary: str | None = None) -> Callable[[_Route], _Route]:
    """Register a route for GET, described if it has a summary, and for HEAD."""

    def register(route: _Route) -> _Route:
        app.add_api_route(path, route, methods=["GET"], summary=summary, include_in_schema=summary is not None)
        app.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)
        return route

    return register


# ---- between HTTP and the worker


async def _read_json(request: Request) -> bytes:
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if kind.strip() != "application/json" or charset not in ("", "charset=utf-8") or encoding != "identity":
        raise Refusal(415, "expected the content type application/json, in UTF-8 and not compressed")
    return await request.body()


async def _ask(service: SearchService, question: Question, request: Request) -> Answer:
    """Wait for an answer, but not longer than the limit, and only as long as the client does."""
    try:
        answer = asyncio.wrap_future(service.worker.submit(question))
    except QueueFull as error:
        raise Refusal(503, str(error), {"retry-after": "1"}) from None
    except WorkerStopped as error:
        raise Refusal(503, str(error), {"retry-after": "5"}) from None
    leaving: asyncio.Future[None] = asyncio.ensure_future(_wait_until_gone(request))
    waited: set[asyncio.Future[Any]] = {answer, leaving}
    try:
        await asyncio.wait(waited, timeout=service.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientDisconnect if leaving.done() else TimeoutError
    except TimeoutError:
        raise Refusal(
            504, f"no answer within {service.limits.timeout_s:g} s (timeout_s); try again later", {"retry-after": "1"}
        ) from None
    except WorkerStopped as error:
        raise Refusal(503, str(error), {"retry-after": "5"}) from None
    except BusyError:
        raise Refusal(503, "the index is changing too fast to be read", {"retry-after": "1"}) from None
    except InputError as error:
        raise _explain_input(error, service, question) from error
    finally:
        answer.cancel()
        leaving.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _explain_input(error: InputError, service: SearchService, question: Question) -> Exception:
    """What the index says of a condition is for the client; anything else may name a path."""
    message = str(error)
    if message.startswith(CONDITION):
        return Refusal(400, message)
    if message.startswith("empty query"):
        return Refusal(400, "query: expected some words, found an empty text")
    if isinstance(question, Search) and question.hybrid and not service.description.hybrid:
        return Refusal(400, _NO_WORDS)  # another generation has just taken over
    return RuntimeError(f"not foreseen: {message}")


def _finish_timings(service: SearchService, request: Request, answer: Answer) -> dict[str, float]:
    record: Record = request.scope["transenc"]
    timings = {name: round(value, 3) for name, value in answer.timings.items()}
    timings["total_ms"] = round(record.elapsed_ms, 3)
    service.telemetry.time_steps(timings)
    record.facts |= {name: value for name, value in timings.items() if name != "total_ms"}
    record.facts["batch"] = answer.batch
    if isinstance(answer, SearchAnswer):
        record.facts |= {"hits": len(answer.hits), "generation": answer.generation}
    return timings


# ---- forms


def _answer_json(content: Any, *, status: int = 200) -> Response:
    try:
        body = json.dumps(content, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate deep in some metadata
        body = json.dumps(content, allow_nan=False).encode("ascii")
    return Response(body, status_code=status, media_type="application/json", headers={"cache-control": "no-store"})


def _describe_body(model: type[BaseModel]) -> dict[str, Any]:
    """The body for the OpenAPI description; it is read by `parse_body`, which is stricter than FastAPI."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}}


async def _describe_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "not found", 405: f"{request.method} is not what this address answers"}
    message = messages.get(error.status_code, error.detail)
    body = json.dumps({"error": message}).encode("ascii")
    return Response(body, status_code=error.status_code, media_type="application/json", headers=error.headers)
