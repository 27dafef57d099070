"""What the server says of itself: figures for Prometheus, and a line of JSON for every request."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_ACCESS = logging.getLogger("transenc.access")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """Counters of one server; labels take only values that the server knows, so their number is bounded."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "transenc_requests", "Requests by route and HTTP status", ["route", "status"], registry=self._registry
        )
        self._steps = Histogram(
            "transenc_step_seconds", "Time by step", ["step"], buckets=_SECONDS, registry=self._registry
        )
        self._batches = Histogram(
            "transenc_batch_size", "Requests answered together", buckets=_SIZES, registry=self._registry
        )
        self._gauges = {
            name: Gauge(f"transenc_{name}", text, registry=self._registry)
            for name, text in (
                ("queue_length", "Requests that wait for the model"),
                ("generation", "Generation of the index that is served"),
                ("documents", "Documents in it"),
                ("ready", "1: answers; 0: does not"),
            )
        }

    def count_batch(self, size: int) -> None:
        """Note that so many requests were answered together."""
        self._batches.observe(size)

    def time_steps(self, timings: dict[str, float]) -> None:
        """Note the milliseconds of each step, named as in an answer: "encode_ms"."""
        for name, milliseconds in timings.items():
            self._steps.labels(name.removesuffix("_ms")).observe(milliseconds / 1000)

    def log_request(self, *, route: str, status: int, facts: dict[str, Any]) -> None:
        """Count a request, and write its line; `facts` must not hold what a user typed."""
        self._requests.labels(route, str(status)).inc()
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "status": status, **facts}
        _ACCESS.info("%s", json.dumps(line))

    def render(self, gauges: dict[str, float]) -> bytes:
        """Return the text that Prometheus reads, with these values of the gauges."""
        for name, value in gauges.items():
            self._gauges[name].set(value)
        return generate_latest(self._registry)
