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

from importlib import import_module
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


_NEED_EXTRAS = {"OpenTelemetrySpans": "opentelemetry", "PrometheusMetrics": "prometheus"}


def __getattr__(name: str) -> object:
    """Import a sink that needs an extra when its name is first used."""
    if name in _NEED_EXTRAS:
        return getattr(import_module(f"{__name__}.{_NEED_EXTRAS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
