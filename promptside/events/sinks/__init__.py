"""Sinks write events to a file, a stream, a tracer or a registry; each has its own thread, so publishers never wait.

::

    async with ActorSystem() as system:
        await SQLiteSink("run.db").start(system.events)                    # ends with the system, after its last event
        await StructlogSink(pattern="actor.*").start(system.events)
        ...

- `sqlite`, `jsonl`: logs in a file, read by `promptside.events.read`. `file`: their base.
- `structlog`: lines for people and log shippers.
- `opentelemetry`: spans; needs the `otel` extra. `prometheus`: metrics; needs the `prometheus` extra.
- `sink`: base of all, with the thread, batches and retries. `buffer`: its queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptside.events.log.log_file import ForeignFile
from promptside.events.sinks.jsonl import JSONLSink
from promptside.events.sinks.sink import Sink
from promptside.events.sinks.sqlite import SQLiteSink
from promptside.events.sinks.structlog import StructlogSink

if TYPE_CHECKING:
    from promptside.events.sinks.opentelemetry import OpenTelemetrySpans
    from promptside.events.sinks.prometheus import PrometheusMetrics

__all__ = [
    "ForeignFile",
    "JSONLSink",
    "OpenTelemetrySpans",
    "PrometheusMetrics",
    "SQLiteSink",
    "Sink",
    "StructlogSink",
]


def __getattr__(name: str) -> object:
    """Import the sinks that need an extra when their name is first used."""
    if name == "OpenTelemetrySpans":
        from promptside.events.sinks.opentelemetry import OpenTelemetrySpans

        return OpenTelemetrySpans
    if name == "PrometheusMetrics":
        from promptside.events.sinks.prometheus import PrometheusMetrics

        return PrometheusMetrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
