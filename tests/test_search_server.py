"""The server over real sockets: the API, the limits, hostile and slow clients, answers under load, and its end."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from processes import run_child, start_child
from search_scenario import FACTS, CountColours
from server_scenario import Encoder, Hold, ask, build_colours, make_documents, make_engine, wait_until

from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.scoring import score_pairs
from transenc.search.engine import SemanticSearch
from transenc.search.serving.limits import Limits
from transenc.search.stores import build_store, open_store

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from transenc.search.serving.answers import limit_candidates
from transenc.search.serving.listening import _Server, bind, serve
from transenc.search.serving.server import create_app, read_static


class Client:
    """One server's address."""

    def __init__(self, port: int, service: Any) -> None:
        self.port, self.service = port, service

    def call(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            if body is not None:
                named.setdefault("content-type", "application/json")
            connection.request(method, path, body.encode() if isinstance(body, str) else body, named)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, _, body = self.call("GET", path, **headers)
        return status, read_json(body)

    def post(self, path: str, content: Any, **headers: str) -> tuple[int, Any]:
        status, _, body = self.call("POST", path, json.dumps(content), **headers)
        return status, read_json(body)

    def search(self, query: str, **fields: Any) -> Any:
        status, answer = self.post("/search", {"query": query, **fields})
        assert status == 200, answer
        return answer

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def read_json(body: bytes) -> Any:
    return json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@contextmanager
def serving(engine: SemanticSearch, *, limits: Limits = Limits(), **options: Any) -> Iterator[Client]:  # noqa: B008
    """A server in a thread of this process, on a free port."""
    app = create_app(engine, limits=limits, **options)
    listener = bind("127.0.0.1", 0)
    ready, problems = threading.Event(), []

    def run() -> None:
        try:
            serve(app, listener=listener, on_ready=lambda url: ready.set())
        except Exception as error:
            problems.append(error)
            ready.set()

    servers = list[_Server]()
    thread = threading.Thread(target=run)
    with pytest.MonkeyPatch.context() as patch:  # to end a server without a signal
        start = _Server.startup

        async def startup(self: _Server, sockets: list[socket.socket] | None = None) -> None:
            servers.append(self)
            await start(self, sockets)

        patch.setattr(_Server, "startup", startup)
        thread.start()
        assert ready.wait(30)
        client = Client(listener.getsockname()[1], app.state.service)
        client.problems = problems  # type: ignore[attr-defined]
        client.thread = thread  # type: ignore[attr-defined]
        try:
            yield client
        finally:
            for server in servers:
                server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


HOSTILE = Document(
    "<img src=x onerror=alert(1)>",
    "gold </script><script>alert(1)</script> \u202etxet",
    "javascript:alert(1)",
    {"link": "javascript:alert(1)", "deep": {"half": "\ud800"}},
)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Twenty documents, found by counting colours."""
    path = tmp_path_factory.mktemp("server") / "idx"
    store = build_colours(path, [*make_documents(20), HOSTILE], name="/models/private/counter")
    engine = SemanticSearch(store, Encoder())  # type: ignore[arg-type]
    with serving(engine, hosts=["search.example.org"]) as client:
        yield client


@pytest.fixture(scope="module")
def real_index(tmp_path_factory: pytest.TempPathFactory, tiny_bi: Path) -> Path:
    folder = tmp_path_factory.mktemp("real")
    rows = [
        {"_id": f"r{i}", "title": title, "text": f"{text} number {i}", "topic": title, "year": 2000 + i}
        for i, (title, text) in enumerate(
            [
                ("pets", "the small cat sees the dog"),
                ("food", "the old farmer sells the bread"),
                ("birds", "a bird sings"),
            ]
            * 4
        )
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with SemanticSearch.build(folder / "idx", corpus=folder / "docs.jsonl", bi_encoder=tiny_bi, lexical=True):
        return folder / "idx"


@pytest.fixture(scope="module")
def real(real_index: Path, tiny_cross: Path) -> Iterator[Client]:
    engine = SemanticSearch.open(real_index, cross_encoder=tiny_cross, precision="float32")
    with serving(engine, reranker_names=[str(tiny_cross)]) as client:
        yield client


def test_rerankers_are_all_named_or_none(real_index: Path, tiny_bi_b: Path, tiny_cross: Path) -> None:
    with SemanticSearch.open(real_index, cross_encoder=[tiny_bi_b, tiny_cross], precision="float32") as engine:
        with pytest.raises(InputError, match="expected one for each of 2 rerankers, found 1; name all or none"):
            create_app(engine, reranker_names=[str(tiny_cross)])
        assert limit_candidates(engine) == 100  # both read each of them
        engine.rerankers = engine.rerankers[:1]
        assert limit_candidates(engine) == 200


@pytest.fixture
def own_logging() -> Iterator[None]:
    """What the command line sets up for a process ends with the test."""
    root, package = logging.getLogger(), logging.getLogger("transenc")
    handlers, levels = list(root.handlers), (root.level, package.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])


# ---- the API


def test_info_names_what_reranks(real_index: Path, tiny_bi_b: Path, tiny_cross: Path) -> None:
    engine = SemanticSearch.open(real_index, cross_encoder=[tiny_bi_b, tiny_cross], precision="float32")
    with serving(engine, reranker_names=[f"{tiny_bi_b}/", str(tiny_cross)]) as client:
        assert client.get("/info")[1]["rerankers"] == [tiny_bi_b.name, tiny_cross.name]
        answer = client.search("a cat sees a bird", top_k=3)
        assert [hit["rerank_score"] is None for hit in answer["hits"]] == [False] * 3
        pair = {"sentence1": "a cat", "sentence2": "a dog"}
        mean = float(score_pairs(engine.rerankers, [("a cat", "a dog")])[0])
        assert client.post("/similarity", pair)[1]["cross"] == pytest.approx(mean, abs=1e-6)


def test_probes_and_info(colours: Client) -> None:
    assert colours.get("/live") == (200, {"status": "live"})
    assert colours.get("/ready") == (200, {"status": "ready"})
    status, info = colours.get("/info")
    assert status == 200
    assert info.pop("version")
    assert info.pop("limits") == {
        "max_query_characters": 2000, "max_top_k": 100, "max_candidates": 200, "max_where": 10,
        "max_body_bytes": 65536, "queue_size": 64, "timeout_s": 30.0, "max_batch": 32, "max_connections": 512,
        "header_timeout_s": 10.0, "body_timeout_s": 10.0, "keep_alive_s": 15.0,
    }  # fmt: skip
    assert info == {
        "documents": 21, "passages": 21, "generation": 1, "kind": "exact", "recall@10": 1.0, "encoder": "counter",
        "rerankers": [], "hybrid": False, "fields": [
            {"key": "even", "examples": ["true", "false"], "numeric": False},
            {"key": "link", "examples": ["javascript:alert(1)"], "numeric": False},
            {"key": "number", "examples": info["fields"][2]["examples"], "numeric": True},
        ],
    }  # fmt: skip
    assert len(info["fields"][2]["examples"]) == 5


def test_a_search_has_both_orders_and_timings(real: Client) -> None:
    answer = real.search("a cat sees a bird", top_k=3)
    assert set(answer) == {"hits", "reranked", "retrieved", "others", "generation", "timings"}
    assert (answer["reranked"], answer["generation"], len(answer["hits"]), len(answer["retrieved"])) == (True, 1, 3, 3)
    assert set(answer["timings"]) == {"queue_ms", "encode_ms", "retrieve_ms", "rerank_ms", "total_ms"}
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    shown = {hit["id"] for hit in answer["hits"]}
    assert {hit["id"] for hit in answer["others"]} == set(answer["retrieved"]) - shown
    first = next(hit for hit in [*answer["hits"], *answer["others"]] if hit["id"] == answer["retrieved"][0])
    assert first["retrieved_rank"] == 1
    plain = real.search("a cat sees a bird", top_k=3, rerank=False)
    assert (plain["reranked"], plain["others"]) == (False, [])
    assert [hit["id"] for hit in plain["hits"]] == plain["retrieved"] == answer["retrieved"]


def test_a_similarity_has_both_scores_and_the_alignment(real: Client) -> None:
    status, answer = real.post("/similarity", {"sentence1": "the small cat", "sentence2": "a dog"})
    assert status == 200
    assert (answer["tokens1"], answer["tokens2"], answer["truncated"]) == (["the", "small", "cat"], ["a", "dog"], False)
    best = [max(row) for row in answer["alignment"]]
    other = [max(column) for column in zip(*answer["alignment"], strict=True)]
    assert answer["aligned"] == pytest.approx((sum(best) / 3 + sum(other) / 2) / 2, abs=1e-5)
    assert -1 <= answer["bi"] <= 1 and 0 <= answer["cross"] <= 1
    status, long = real.post("/similarity", {"sentence1": "cat " * 100, "sentence2": "dog"})
    assert (status, long["truncated"], len(long["tokens1"])) == (200, True, 62)


def test_answers_are_those_of_the_command_line(
    real: Client, real_index: Path, tiny_cross: Path, capsys: pytest.CaptureFixture[str], own_logging: None
) -> None:
    from transenc.cli import main

    for fields, flags in [
        ({"top_k": 4}, ["--top-k", "4"]),
        ({"where": ["topic=food", "year>=2004"]}, ["--where", "topic=food", "--where", "year>=2004"]),
        ({"candidates": 5}, ["--candidates", "5"]),
        ({"hybrid": True, "rerank_weight": 0.25}, ["--hybrid", "--rerank-weight", "0.25"]),
        ({"rerank_weight": 1}, ["--rerank-weight", "1"]),
    ]:  # fmt: skip
        command = ["search", str(real_index), "the farmer buys bread", "--rerank", str(tiny_cross), *flags]
        capsys.readouterr()
        assert main([*command, "--precision", "float32", "--json"]) == 0
        expected = json.loads(capsys.readouterr().out)
        # one request alone: bit for bit
        assert real.search("the farmer buys bread", **fields)["hits"] == expected["hits"]


def test_metrics_count_what_happened(colours: Client) -> None:
    colours.search("red")
    colours.get("/nothing/here")
    status, headers, body = colours.call("GET", "/metrics")
    text = body.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'transenc_requests_total{route="/search",status="200"}' in text
    assert 'transenc_requests_total{route="other",status="404"}' in text
    assert "nothing" not in text  # no labels that a client chooses
    for line in (
        "transenc_generation 1.0",
        "transenc_ready 1.0",
        "transenc_queue_length 0.0",
        "transenc_documents 21.0",
    ):
        assert f"\n{line}\n" in text
    for step in ("queue", "encode", "retrieve", "rerank", "total"):
        assert f'transenc_step_seconds_count{{step="{step}"}}' in text
    assert "transenc_batch_size_count" in text


def test_the_access_log_has_a_line_of_json_and_no_query(colours: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="transenc.access")
    colours.search("red secret", top_k=2)

    def find_lines() -> list[str]:
        messages = [record.getMessage() for record in caplog.records if record.name == "transenc.access"]
        return [message for message in messages if '"hits": 2' in message]

    wait_until(lambda: bool(find_lines()))
    [line] = find_lines()
    facts = json.loads(line)
    found = [facts[name] for name in ("status", "method", "path", "client", "hits", "batch", "generation")]
    assert found == [200, "POST", "/search", "127.0.0.1", 2, 1, 1]
    assert facts["bytes"] > 100 and facts["total_ms"] >= facts["encode_ms"]
    assert "secret" not in line


def test_openapi_describes_the_questions_and_the_pages_that_load_from_elsewhere_are_off(colours: Client) -> None:
    status, found = colours.get("/openapi.json")
    assert status == 200
    assert set(found["paths"]) == {"/search", "/similarity", "/info", "/live", "/ready", "/metrics"}
    body = found["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert (body["required"], body["additionalProperties"]) == (["query"], False)
    assert (colours.get("/docs")[0], colours.get("/redoc")[0]) == (404, 404)


# ---- E1: what is no proper request


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ("", 400, "found none"),
        ("{", 400, "expected JSON"),
        ("[1]", 400, "found an array"),
        ('"red"', 400, "found a string"),
        ("null", 400, "found null"),
        ("1", 400, "found a number"),
        ('{"query": "red", "rerank_weight": NaN}', 400, "NaN"),
        ('{"query": "red", "rerank_weight": -Infinity}', 400, "-Infinity"),
        ('{"query": "red", "rerank_weight": 1e999}', 422, "rerank_weight"),
        ('{"query": "red", "query": "blue"}', 400, "'query' twice"),
        ('{"query": "red", "where": [{"a": 1, "a": 2}]}', 400, "'a' twice"),
        ('{"query": "red"} x', 400, "expected JSON"),
        ('{"query": 1}', 422, "query"),
        ('{"query": null}', 422, "query"),
        ("{}", 422, "query"),
        ('{"query": "red", "top_k": "10"}', 422, "top_k"),
        ('{"query": "red", "top_k": 10.0}', 422, "top_k"),
        ('{"query": "red", "top_k": true}', 422, "top_k"),
        ('{"query": "red", "top_k": ' + "9" * 5000 + "}", 400, "too long"),
        ('{"query": "red", "hybrid": 1}', 422, "hybrid"),
        ('{"query": "red", "rerank": "yes"}', 422, "rerank"),
        ('{"query": "red", "rerank_weight": true}', 422, "rerank_weight"),
        ('{"query": "red", "where": "number=1"}', 422, "where"),
        ('{"query": "red", "where": [1]}', 422, "where.0"),
        ('{"query": "red", "topk": 3}', 422, "unknown field 'topk'"),
        ("[" * 60000, 400, "expected JSON"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b'\xef\xbb\xbf{"query": "red"}', 400, "expected JSON"),
        ('{"query": ""}', 400, "query: expected some words"),
        ('{"query": " \\u200b\\n"}', 400, "query: expected some words"),
        ('{"query": "a \\ud800"}', 400, "surrogate"),
        ('{"query": "red", "where": ["number"]}', 400, "where[0]"),
        ('{"query": "red", "where": ["colour=red"]}', 400, "no document has a number or text as 'colour'"),
        ('{"query": "red", "where": ["number>a"]}', 400, "holds numbers"),
        ('{"query": "red", "hybrid": true}', 400, "cannot be searched by words"),
    ],
)
def test_bodies_that_are_refused(colours: Client, body: str | bytes, status: int, problem: str) -> None:
    found, headers, answer = colours.call("POST", "/search", body)
    assert found == status, answer
    assert headers["content-type"] == "application/json"
    content = read_json(answer)
    assert set(content) == {"error"}
    assert problem in content["error"] and "\n" not in content["error"] and "Traceback" not in content["error"]
    assert colours.get("/ready")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "application/json; charset=utf-16"},
        {"content_type": "application/jsonx"},
        {"content_type": ""},
        {"content_encoding": "gzip"},
    ],
)
def test_other_content_types_are_refused(colours: Client, headers: dict[str, str]) -> None:
    status, answer = colours.post("/search", {"query": "red"}, **headers)
    assert (status, "application/json" in answer["error"]) == (415, True)
    status, _ = colours.post("/search", {"query": "red"}, content_type='application/json; charset="UTF-8"')
    assert status == 200


def test_other_methods_and_paths_get_json_too(colours: Client) -> None:
    for method, path, status in [
        ("GET", "/search", 405), ("DELETE", "/info", 405), ("OPTIONS", "/search", 405), ("PUT", "/", 405),
        ("GET", "/search/", 404), ("POST", "/nothing", 404), ("TRACE", "/live", 405),
    ]:  # fmt: skip
        found, headers, body = colours.call(method, path)
        assert (found, headers["content-type"]) == (status, "application/json")
        assert set(read_json(body)) == {"error"}
    status, _, body = colours.call("HEAD", "/live")
    assert (status, body) == (200, b"")


def test_a_request_without_a_body_and_one_that_is_no_http(colours: Client) -> None:
    status, _, body = colours.call("POST", "/search", content_type="application/json")
    assert (status, "found none" in read_json(body)["error"]) == (400, True)
    for said in (b"\x16\x03\x01 this is no HTTP\r\n\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"G" * 40_000):
        with colours.open() as raw:
            raw.sendall(said)
            answer = read_all(raw)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b'{"error": "this is no HTTP request"}')


# ---- E2: too much, too slow


def read_all(raw: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    try:
        while part := raw.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


HEAD = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server that waits for nobody."""
    limits = Limits(header_timeout_s=0.5, body_timeout_s=0.5, keep_alive_s=1, max_body_bytes=1000, max_connections=20)
    with serving(make_engine(tmp_path_factory.mktemp("hasty") / "idx"), limits=limits) as client:
        yield client


def test_a_body_beyond_the_limit(hasty: Client) -> None:
    for body in (b" " * 1001, b" " * 50_000):
        status, headers, answer = hasty.call("POST", "/search", body)
        assert (status, headers["connection"]) == (413, "close")
        assert "max_body_bytes" in read_json(answer)["error"]
    exact = json.dumps({"query": "red"}).ljust(1000).encode()
    assert hasty.call("POST", "/search", exact)[0] == 200
    for length in ("9" * 14, "9" * 40):
        with hasty.open() as raw:
            raw.sendall(HEAD + f"Content-Length: {length}\r\n\r\n".encode())
            assert read_all(raw).startswith(b"HTTP/1.1 4")


def test_an_endless_chunked_body(hasty: Client) -> None:
    with hasty.open() as raw:
        raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((ConnectionError, TimeoutError)):
            while True:
                raw.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert read_all(raw)[:12] in (b"HTTP/1.1 413", b"")  # the answer may be lost when the connection is reset


def test_a_chunked_body_just_beyond_the_limit_reads_the_refusal(hasty: Client) -> None:
    with hasty.open() as raw:
        chunks = b"".join(b"64\r\n" + b" " * 100 + b"\r\n" for _ in range(11))
        raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        answer = read_all(raw)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"max_body_bytes" in answer


def test_an_endless_body_that_nobody_wants(hasty: Client) -> None:
    for path in (b"/nothing", b"/live"):
        with hasty.open() as raw:
            raw.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            with pytest.raises((ConnectionError, TimeoutError)):
                while True:
                    raw.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"POST /search HT",
        HEAD,
        HEAD + b"Content-Length: 15\r\n\r\n",
        HEAD + b'Content-Length: 15\r\n\r\n{"query":',
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
)
def test_who_falls_silent_is_cut_off_while_others_are_served(hasty: Client, said: bytes) -> None:
    with hasty.open() as raw:
        raw.sendall(said)
        assert hasty.search(ask(3))["hits"][0]["id"] == "d3"
        answer = read_all(raw)  # ends: the server closes
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
    assert answer.startswith(b"HTTP/1.1 408") == (b"\r\n\r\n" in said and said.startswith(b"POST"))


@pytest.mark.parametrize("said", [HEAD + b"X-Slow: ", HEAD + b"Content-Length: 900\r\n\r\n"])
def test_one_byte_at_a_time(hasty: Client, said: bytes) -> None:
    with hasty.open() as raw:
        raw.sendall(said)
        raw.settimeout(0.05)
        sent, answer = 0, b""
        while sent < 800:
            try:
                raw.sendall(b" ")
                sent += 1
                answer = raw.recv(1000)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert hasty.search(ask(3))["hits"][0]["id"] == "d3"
    assert sent < 800
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_an_idle_connection_is_closed_and_a_second_request_must_be_whole_too(hasty: Client) -> None:
    for more in (b"", b"GET /li"):
        with hasty.open() as raw:
            raw.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 200")
            raw.sendall(more)
            assert read_all(raw) in (b"", b'{"status": "live"}')


def test_who_does_not_read_the_answer_is_cut_off(tmp_path: Path) -> None:
    store = build_colours(tmp_path / "idx", [Document("big", "red " + "x" * 8_000_000)])
    engine = SemanticSearch(store, Encoder())  # type: ignore[arg-type]
    with serving(engine, limits=Limits(body_timeout_s=0.5)) as client, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(30)
        raw.connect(("127.0.0.1", client.port))
        raw.sendall(HEAD + b'Content-Length: 16\r\n\r\n{"query": "red"}')
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        # the server lets go of what it could not send: its end of the connection is gone
        wait_until(lambda: not count_connections(client.port))
        assert client.get("/live")[0] == 200


def count_connections(port: int) -> int:
    """Established connections at the server's end."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(one[1].endswith(f":{port:04X}") and one[3] == "01" for one in fields)


def test_connections_beyond_the_limit_are_closed_at_once(hasty: Client) -> None:
    opened = [hasty.open() for _ in range(25)]
    try:
        for raw in opened:
            raw.setblocking(True)
            raw.settimeout(30)
        assert [read_all(raw) for raw in opened] == [b""] * 25  # at once, or when they have said nothing for too long
    finally:
        for raw in opened:
            raw.close()
    assert hasty.get("/live")[0] == 200


# ---- E3: beyond a limit


@pytest.mark.parametrize(
    ("path", "fields", "problem"),
    [
        ("/search", {"query": "r" * 2001}, "max_query_characters"),
        ("/search", {"query": "red", "top_k": 101}, "1 to 100 (max_top_k)"),
        ("/search", {"query": "red", "top_k": 0}, "max_top_k"),
        ("/search", {"query": "red", "top_k": 10**30}, "max_top_k"),
        ("/search", {"query": "red", "candidates": 201}, "1 to 200 (max_candidates)"),
        ("/search", {"query": "red", "candidates": -1}, "max_candidates"),
        ("/search", {"query": "red", "where": ["number=1"] * 11}, "max_where"),
        ("/search", {"query": "red", "where": ["number=" + "1" * 2000]}, "max_query_characters"),
        ("/search", {"query": "red", "rerank_weight": 1.5}, "0 to 1"),
        ("/similarity", {"sentence1": "r" * 2001, "sentence2": "b"}, "max_query_characters"),
        ("/similarity", {"sentence1": "a", "sentence2": "r" * 2001}, "max_query_characters"),
    ],
)
def test_limits_are_named(colours: Client, path: str, fields: dict[str, Any], problem: str) -> None:
    status, answer = colours.post(path, fields)
    assert (status, problem in answer["error"]) == (422, True), answer


# ---- E4: many at once


def test_200_at_once_get_their_own_answers_or_are_sent_away(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "idx", documents=200, on_call=lambda queries: time.sleep(0.02))
    limits = Limits(queue_size=16, max_batch=8)
    longest = []
    with serving(engine, limits=limits) as client:

        def ask_one(i: int) -> tuple[int, int, dict[str, str], Any]:
            status, headers, body = client.call("POST", "/search", json.dumps({"query": ask(i), "top_k": 1}))
            longest.append(client.service.worker.waiting)
            return i, status, headers, read_json(body)

        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(ask_one, range(200)))
    assert {status for _, status, _, _ in answers} <= {200, 503}
    assert max(longest) <= 16
    for i, status, headers, content in answers:
        if status == 200:
            assert [hit["id"] for hit in content["hits"]] == [f"d{i}"]
        else:
            assert headers["retry-after"] == "1"
            assert "queue_size" in content["error"]
    assert sum(status == 200 for _, status, _, _ in answers) >= 16


def test_answers_under_load_are_the_engines(real: Client, real_index: Path, tiny_cross: Path) -> None:
    words = ("cat", "dog", "farmer", "bird", "bread")
    queries = [f"the {one} {verb} the {other}" for one in words for verb in ("sees", "sells") for other in words]
    with SemanticSearch.open(real_index, cross_encoder=tiny_cross, precision="float32") as engine:
        expected = {query: engine.search(query, top_k=5) for query in queries}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda query: real.search(query, top_k=5), queries))
    for query, answer in zip(queries, answers, strict=True):
        assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected[query]]
        for hit, other in zip(answer["hits"], expected[query], strict=True):
            assert hit["retrieval_score"] == pytest.approx(other.retrieval_score, abs=1e-5)
            assert hit["rerank_score"] == pytest.approx(other.rerank_score, abs=1e-5)
            assert hit["score"] == pytest.approx(other.score, abs=1e-4)  # of standardised scores


def test_without_batching_every_answer_is_bit_for_bit_the_engines(real_index: Path, tiny_cross: Path) -> None:
    queries = [f"the {one} sees the {other}" for one in ("cat", "dog", "bird") for other in ("farmer", "bread")]
    with SemanticSearch.open(real_index, cross_encoder=tiny_cross) as engine:
        expected = [[(hit.id, hit.score) for hit in engine.search(query, top_k=5)] for query in queries]
    engine = SemanticSearch.open(real_index, cross_encoder=tiny_cross)
    with serving(engine, limits=Limits(max_batch=1)) as client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda query: client.search(query, top_k=5), queries))
    assert [[(hit["id"], hit["score"]) for hit in answer["hits"]] for answer in answers] == expected


def test_who_waits_too_long_is_told_and_who_leaves_is_forgotten(tmp_path: Path) -> None:
    hold = Hold()
    engine = make_engine(tmp_path / "idx", on_call=hold)
    encoder: Encoder = engine.encoder  # type: ignore[assignment]
    with serving(engine, limits=Limits(timeout_s=1)) as client:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/search", {"query": ask(1)})
            assert hold.entered.wait(10)
            with client.open() as raw:
                body = json.dumps({"query": ask(2)}).encode()
                raw.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
                wait_until(lambda: client.service.worker.waiting == 1)
            status, answer = client.post("/search", {"query": ask(3)})
            assert (status, "timeout_s" in answer["error"]) == (504, True)
            assert first.result()[0] == 504
        hold.release.set()
        assert client.search(ask(4))["hits"][0]["id"] == "d4"
    assert encoder.calls == [[ask(1)], [ask(4)]]


# ---- E5: paths


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/static/../../../../etc/passwd", "/static/../server.py", "/static/..%2fserver.py",
        "/static/%2e%2e/server.py", "/static/%2e%2e%2fserver.py", "/static/..%5cserver.py", "/static/..\\server.py",
        "/static/%252e%252e%252fserver.py", "/static//etc/passwd", "/static/%2fetc%2fpasswd", "//etc/passwd",
        "/static/index.html%00.js", "/static/%00", "/static/", "/static", "/static/.", "/static/./index.html",
        "/static/INDEX.HTML", "/static/index.html/", "/index.html", "/static/" + "a" * 5000,
        "/static/~root/.ssh/id_rsa", "/static/page.js;a", "/static/C:/windows/win.ini", "/gen-000001/docs.sqlite",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(colours: Client, path: str) -> None:
    status, headers, body = colours.call("GET", path)
    assert (status, read_json(body)) == (404, {"error": "not found"})
    assert headers["content-type"] == "application/json"


def test_only_what_was_there_at_the_start_is_served(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(b"<p>hello")
    (tmp_path / "page.js").write_bytes(b"1")
    (tmp_path / "notes.txt").write_bytes(b"no")
    (tmp_path / ".env").write_bytes(b"no")
    (tmp_path / "folder.js").mkdir()
    assert read_static(tmp_path) == {
        "index.html": (b"<p>hello", "text/html; charset=utf-8"),
        "page.js": (b"1", "text/javascript; charset=utf-8"),
    }
    assert read_static(tmp_path / "none") == {}


def test_the_page_and_its_files(colours: Client) -> None:
    files = read_static(Path(create_app.__code__.co_filename).parent / "static")
    assert "index.html" in files
    for name, (content, kind) in files.items():
        status, headers, body = colours.call("GET", f"/static/{name}")
        assert (status, headers["content-type"], body) == (200, kind, content)
        status, _, body = colours.call("GET", f"/static/{name}", if_none_match=headers["etag"])
        assert (status, body) == (304, b"")
    status, headers, body = colours.call("GET", "/")
    assert (status, body) == (200, files["index.html"][0])
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert colours.call("HEAD", "/")[0] == 200


# ---- E6, E7: hostile texts


def test_hostile_texts_come_as_data(colours: Client) -> None:
    query = "gold <img src=x onerror=alert(1)>"
    status, headers, body = colours.call("POST", "/search", json.dumps({"query": query, "top_k": 1}))
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert "script-src" not in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    [hit] = read_json(body)["hits"]
    assert (hit["id"], hit["title"], hit["text"]) == (HOSTILE.id, HOSTILE.title, HOSTILE.text)
    assert hit["metadata"] == {"link": "javascript:alert(1)", "deep": {"half": "\ud800"}}


def test_every_answer_has_the_headers_that_protect_the_page(colours: Client) -> None:
    for method, path in [("GET", "/"), ("GET", "/info"), ("GET", "/nothing"), ("POST", "/search"), ("GET", "/search")]:
        _, headers, _ = colours.call(method, path)
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert (headers["x-frame-options"], headers["cross-origin-resource-policy"]) == ("DENY", "same-origin")
        assert not any(name.startswith("access-control-") for name in headers)
        assert "server" not in headers


def test_a_text_that_names_a_picture_stays_a_text(real: Client, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    os.mkfifo(picture)  # who opened it would wait for ever
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
        for text in (address, str(picture), f"file://{picture}", "data:image/png;base64,AAAA"):
            assert len(real.search(text)["hits"]) == 10
            assert real.post("/similarity", {"sentence1": text, "sentence2": address})[0] == 200
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("modalities", [("text", "image"), ("text", ("image", "text")), ["audio", "text"], ["video"]])
def test_a_model_that_would_open_what_a_text_names_is_refused(tmp_path: Path, modalities: Any) -> None:
    class Reader:
        pass

    Reader.modalities = modalities  # type: ignore[attr-defined]
    engine = make_engine(tmp_path / "idx")
    engine.encoder.model = Reader()  # type: ignore[assignment]
    with pytest.raises(InputError, match="expected models that read text only"):
        create_app(engine)
    engine.close()


def test_no_answer_names_a_path(colours: Client, real: Client, tmp_path: Path) -> None:
    answers = []
    for client in (colours, real):
        for path in ("/", "/info", "/ready", "/metrics", "/openapi.json", "/nothing", "/static/x"):
            answers.append(client.call("GET", path)[2])
        for fields in ({"query": "red"}, {"query": "red", "hybrid": True}, {"query": "red", "where": ["a=1"]}):
            answers.append(client.call("POST", "/search", json.dumps(fields))[2])
    # the sentences are beyond what a counter of colours can do: an error inside
    status, _, body = colours.call("POST", "/similarity", json.dumps({"sentence1": "a", "sentence2": "b"}))
    assert (status, read_json(body)) == (500, {"error": "internal error; the server's log says more"})
    for text in (b"/models/private", str(tmp_path.parents[1]).encode(), b"site-packages", b"Traceback", b".py"):
        assert not any(text in answer for answer in answers)


# ---- E8: other names, other origins


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("127.0.0.1", 200), ("127.0.0.1:9", 200), ("[::1]:8000", 200), ("LOCALHOST.", 200),
        ("search.example.org", 200), ("Search.Example.ORG:443", 200), ("example.org", 421), ("", 421),
        ("search.example.org.evil.com", 421), ("evil.com", 421), ("127.0.0.1.evil.com", 421), ("[::2]", 421),
        ("localhost@evil.com", 421), ("localhost/x", 421), ("127.0.0.2", 421), ("0.0.0.0", 421),
    ],
)  # fmt: skip
def test_the_host_header_must_be_known(colours: Client, host: str, status: int) -> None:
    assert colours.get("/info", host=host)[0] == status
    assert colours.post("/search", {"query": "red"}, host=host)[0] == status
    assert colours.call("GET", "/", host=host)[0] == status
    assert colours.get("/ready", host=host)[0] == 200  # probes come by address


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, 200),
        ({"origin": "https://search.example.org", "host": "search.example.org"}, 200),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "http://evil.com"}, 403),
        ({"origin": "http://127.0.0.1:8001", "host": "127.0.0.1:8000"}, 403),
        ({"origin": "http://localhost:8000", "host": "127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[", "host": "localhost"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "same-origin", "origin": "http://evil.com"}, 403),
    ],
)
def test_pages_of_other_origins_may_not_ask(colours: Client, headers: dict[str, str], status: int) -> None:
    assert colours.post("/search", {"query": "red"}, **headers)[0] == status


def test_a_server_on_every_address_answers_to_the_one_that_was_called(tmp_path: Path) -> None:
    with serving(make_engine(tmp_path / "idx"), every_address=True) as client:
        assert client.get("/info", host="127.0.0.1:1")[0] == 200
        assert client.get("/info", host="127.0.0.2")[0] == 421
        assert client.get("/info", host="evil.com")[0] == 421


# ---- E9, E11: another generation, a dead worker, the end


def test_every_answer_under_a_swap_is_of_one_generation(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    engine = make_engine(path, documents=10, on_call=lambda queries: time.sleep(0.002))
    with serving(engine, watch_s=0.05) as client:
        seen: list[Any] = []
        stop = threading.Event()

        def ask_on(i: int) -> None:
            while not stop.is_set():
                seen.append(client.search(ask(i), top_k=10))

        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask_on, i) for i in range(6)]
            for generation, word in ((2, "second"), (3, "third")):
                build_colours(path, make_documents(10, word=word)).close()
                wait_until(lambda number=generation: client.get("/info")[1]["generation"] == number)  # type: ignore[misc]
                count = len(seen)
                wait_until(lambda more=count: len(seen) > more + 20)  # type: ignore[misc]
            stop.set()
            for each in asking:
                each.result()
    words = {1: "number", 2: "second", 3: "third"}
    assert {answer["generation"] for answer in seen} == {1, 2, 3}
    for answer in seen:
        assert {hit["text"].split()[-2] for hit in answer["hits"]} == {words[answer["generation"]]}


def test_a_dead_worker_makes_the_server_unready_and_end(tmp_path: Path) -> None:
    def die(queries: list[str]) -> None:
        raise SystemExit

    with serving(make_engine(tmp_path / "idx", on_call=die)) as client:
        status, answer = client.post("/search", {"query": "red"})
        assert (status, answer) == (503, {"error": "the model worker has died"})
        assert client.get("/ready") == (503, {"status": "not ready", "error": "the model worker has died"})
        assert client.get("/live")[0] == 200
        status, headers, _ = client.call("POST", "/search", '{"query": "red"}')
        assert (status, headers["retry-after"]) == (503, "5")
        client.thread.join(30)
        assert not client.thread.is_alive()
    [problem] = client.problems
    assert isinstance(problem, StateError) and "the model worker died" in str(problem)


@contextmanager
def child(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """A forked process that does `work(tell)` and has written its port to `tell`: its pid and the port."""
    come, tell = os.pipe()
    pid = start_child(lambda: work(tell))
    os.close(tell)
    try:
        yield pid, int(os.read(come, 100))
    finally:
        os.close(come)
        with suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def serve_colours(path: Path, limits: Limits, seconds: float) -> Callable[[int], None]:
    def work(tell: int) -> None:
        engine = make_engine(path, on_call=lambda queries: time.sleep(seconds))
        app = create_app(engine, limits=limits, watch_s=600)
        listener = bind("127.0.0.1", 0)
        serve(app, listener=listener, on_ready=lambda url: os.write(tell, url.rpartition(":")[2].encode()))  # type: ignore[func-returns-value]

    return work


def count_waiting(client: Client) -> float:
    lines = client.call("GET", "/metrics")[2].decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("transenc_queue_length "))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_lets_what_is_in_flight_finish(tmp_path: Path, signum: int) -> None:
    with child(serve_colours(tmp_path / "idx", Limits(max_batch=2), 0.3)) as (pid, port):
        client = Client(port, None)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(client.post, "/search", {"query": ask(i), "top_k": 1}) for i in range(8)]
            wait_until(lambda: count_waiting(client) >= 4)  # of 8, two at a time
            os.kill(pid, signum)
            answers = [each.result() for each in asked]
        assert [(status, answer["hits"][0]["id"]) for status, answer in answers] == [(200, f"d{i}") for i in range(8)]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with pytest.raises(ConnectionError):
            client.get("/live")


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with child(serve_colours(tmp_path / "idx", Limits(), 60)) as (pid, port):
        client = Client(port, None)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.post, "/search", {"query": "red"})
            time.sleep(0.3)
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.3)
            os.kill(pid, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
            with pytest.raises((ConnectionError, HTTPException)):
                asked.result()


def test_what_takes_longer_than_its_time_does_not_hold_the_end_up(tmp_path: Path) -> None:
    with child(serve_colours(tmp_path / "idx", Limits(timeout_s=0.5), 60)) as (pid, port):
        client = Client(port, None)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.post, "/search", {"query": "red"})
            time.sleep(0.2)
            os.kill(pid, signal.SIGTERM)
            assert asked.result()[0] == 504
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_sighup_looks_for_a_newer_generation(tmp_path: Path) -> None:
    with child(serve_colours(tmp_path / "idx", Limits(), 0)) as (pid, port):
        client = Client(port, None)
        build_colours(tmp_path / "idx", make_documents(3)).close()
        assert client.get("/info")[1]["generation"] == 1
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: client.get("/info")[1]["generation"] == 2)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- the command


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    from transenc.cli import main

    capsys.readouterr()
    return main(list(arguments)), capsys.readouterr().err


def test_mistakes_are_found_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_logging: None
) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run_main(capsys, "serve", str(tmp_path), "--port", port) == (
            2,
            f"transenc: cannot listen at 127.0.0.1:{port}: Address already in use; name another --host or --port\n",
        )
    code, error = run_main(capsys, "serve", str(tmp_path / "none"), "--port", "0")
    assert (code, "expected the folder of an index" in error) == (2, True)
    for flags, problem in [
        (["--max-top-k", "0"], "limit max_top_k: expected a whole number"),
        (["--timeout-s", "nan"], "limit timeout_s: expected a number above 0"),
        (["--port", "65536"], "port"),
        (["--host", "256.0.0.1"], "cannot listen at 256.0.0.1"),
    ]:
        code, error = run_main(capsys, "serve", str(tmp_path), *flags)
        assert (code, problem in error) == (2, True), error
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "transenc.search.serving.listening")
    code, error = run_main(capsys, "serve", str(tmp_path))
    assert (code, "pip install 'transenc[serve]'" in error) == (2, True)


def test_flags_are_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    from transenc.cli import build_parser

    arguments = build_parser().parse_args(["serve", "idx", "--max-batch", "1", "--timeout-s", "2.5"])
    found = Limits(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)})
    assert found == Limits(max_batch=1, timeout_s=2.5)
    assert (arguments.host, arguments.port, arguments.allow_host) == ("127.0.0.1", 8000, [])
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "idx", "--trust-remote-code"])


def test_the_command_serves_and_ends_with_0(real_index: Path, tiny_cross: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def work(tell: int) -> None:
        from transenc.cli import main

        with log.open("w", encoding="utf-8") as stream, redirect_stderr(stream):
            code = main(["serve", str(real_index), "--rerank", str(tiny_cross), "--port", "0", "--max-top-k", "3"])
        os._exit(code)

    pid = start_child(lambda: work(0))
    try:
        wait_until(lambda: log.exists() and " at http://127.0.0.1:" in log.read_text(encoding="utf-8"))
        [line] = log.read_text(encoding="utf-8").splitlines()
        assert line.startswith(f"serving {real_index} (12 documents) at http://127.0.0.1:")
        client = Client(int(line.rpartition(":")[2]), None)
        assert client.get("/info")[1]["rerankers"] == [tiny_cross.name]
        assert client.post("/search", {"query": "a cat", "top_k": 4})[0] == 422
        assert len(client.search("a cat", top_k=3)["hits"]) == 3
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]]
    assert [(line["path"], line["status"]) for line in lines] == [("/info", 200), ("/search", 422), ("/search", 200)]


def test_a_signal_while_it_loads_ends_it(real_index: Path, tmp_path: Path) -> None:
    def work() -> None:
        from transenc.cli import main
        from transenc.search import models

        def load(*arguments: Any, **options: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

        models.load_bi_encoder = load  # type: ignore[assignment]
        with (tmp_path / "log").open("w", encoding="utf-8") as stream, redirect_stderr(stream):
            os._exit(main(["serve", str(real_index), "--port", "0"]))

    assert run_child(work) == 143


# ---- the same over Milvus


def test_an_index_in_milvus_is_served_and_swapped(tmp_path: Path) -> None:
    for name in ("pymilvus", "milvus_lite"):
        pytest.importorskip(name, reason=f"needs {name} (extra: milvus)")
    location = str(tmp_path / "idx.db/papers")
    build_store(location, make_documents(10), CountColours(), encoder=FACTS).close()  # type: ignore[arg-type]
    engine = SemanticSearch(open_store(location), Encoder())  # type: ignore[arg-type]
    with serving(engine, watch_s=0.05) as client:
        assert [hit["id"] for hit in client.search(ask(3), top_k=1)["hits"]] == ["d3"]
        assert client.get("/info")[1]["documents"] == 10
        with open_store(location) as other:
            other.add([Document("new", "gold gold")], CountColours())  # type: ignore[arg-type]
        assert client.search("gold", top_k=1)["hits"][0]["id"] == "new"
        wait_until(lambda: client.get("/info")[1]["documents"] == 11)
        build_store(location, make_documents(4, word="second"), CountColours(), encoder=FACTS).close()  # type: ignore[arg-type]
        wait_until(lambda: client.get("/info")[1]["documents"] == 4)
        assert client.search(ask(3), top_k=1)["hits"][0]["text"].endswith("second 3")
        changed = {**FACTS, "fingerprint": "other"}
        build_store(location, make_documents(5), CountColours(), encoder=changed).close()  # type: ignore[arg-type]
        client.service.watch.look()
        assert client.get("/info")[1]["documents"] == 4
        assert client.get("/ready")[0] == 200
