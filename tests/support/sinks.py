"""What the tests of durable sinks share: both kinds with their files, published events, and what a log must hold."""

from __future__ import annotations

import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptside.events import Event, EventBus
from promptside.events.log.read import read
from promptside.events.sinks import JSONLSink, SQLiteSink

Durable = type[SQLiteSink] | type[JSONLSink]
BOTH: list[Durable] = [SQLiteSink, JSONLSink]
QUICK: dict[str, Any] = {"interval": 0.01}
KEYS: dict[str, Any] = {
    "trace_id": "trace",
    "span_id": "span",
    "parent_id": "parent",
    "run_id": "run",
    "call_id": "call",
    "session_id": "session",
}


def publish(bus: EventBus, count: int, type: str = "lm.call.stopped") -> None:
    for number in range(count):
        bus.publish(type, "lm/worker-1", {"number": number})


def rows(path: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def accounted(events: list[Event]) -> list[int]:
    """Return every `seq` that the log holds, or says to be lost, in the order of the log."""
    seqs: list[int] = []
    for event in events:
        if event.type == "sink.gap":
            lost = range(event.data["first_seq"], event.data["last_seq"] + 1)
            assert len(lost) == event.data["count"]
            seqs += lost
        else:
            seqs.append(event.seq)
    return seqs


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def descriptors() -> set[str]:
    return {file.name for file in Path("/proc/self/fd").iterdir()}


def writers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("promptside-sink/")]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: writing fails, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock of a SQLite file."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def log(path: Path) -> list[Event]:
    return list(read(path))
