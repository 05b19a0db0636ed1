"""Where events are kept or shown: each sink is a listener with a thread of its own, so that publishers never wait.

::

    async with ActorSystem() as system:
        await SQLiteSink("run.db").start(system.events)                    # ends with the system, after its last event
        await StructlogSink(pattern="actor.*").start(system.events)
        ...

- `sink`: what all have: the buffer, the thread, batches, retries, the end. `buffer`: what waits, and the gap.
- `sqlite`, `jsonl`: durable logs, read by `promptside.events.log.read`. `structlog`: lines for people and log shippers.
- `file`: what the two logs share. `record`: events as text. `place`: files, and of which kind they are.
"""

from __future__ import annotations

from promptside.events.log.log_file import ForeignFile
from promptside.events.sinks.jsonl import JSONLSink
from promptside.events.sinks.sink import Sink
from promptside.events.sinks.sqlite import SQLiteSink
from promptside.events.sinks.structlog import StructlogSink

__all__ = ["ForeignFile", "JSONLSink", "SQLiteSink", "Sink", "StructlogSink"]
