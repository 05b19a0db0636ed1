"""An event bus: records of what happens in a system, and hooks, subscriptions and sinks that receive them.

::

    bus = EventBus()                                    # every actor system has one: `system.events`
    bus.publish("breaker.opened", "/lm/pool", {"endpoint": "a"})

    bus.on("breaker.*", warn)                           # called inline, or in a task of its own if `async def`

    async with bus.subscribe("lm.*", max_queue=1000, overflow="drop_oldest") as stream:
        async for event in stream: ...

    await SQLiteSink("run.db").start(bus)               # writes a log; ends with the bus
    for event in read("run.db", type="lm.*"): ...       # later, or from another process

- `catalogue`: the types that promptside publishes, each with its data.
- `event`: the record. `patterns`: which types a listener matches.
- `subscription`: a bounded queue with an iterator. `hooks`: functions that are called. `listener`: a sink as the bus
  sees it.
- `bus`: publishes to them. `route`: the listeners of one type.
- `span`: an operation, with an event at its start and at its end. `content`: which prompts and answers events carry.
- `log/`: files of events: their formats, `read`, and the command ``python -m promptside events FILE``.
- `sinks/`: SQLite, JSON lines, structlog, OpenTelemetry spans, Prometheus metrics.
"""

from __future__ import annotations

from promptside.events.bus import EventBus
from promptside.events.catalogue import CATALOGUE
from promptside.events.content import Content
from promptside.events.event import Event
from promptside.events.hooks import Hook
from promptside.events.log.read import read
from promptside.events.span import TRACE_PARENT, TraceParent
from promptside.events.subscription import Overflow, Subscription

__all__ = [
    "CATALOGUE",
    "TRACE_PARENT",
    "Content",
    "Event",
    "EventBus",
    "Hook",
    "Overflow",
    "Subscription",
    "TraceParent",
    "read",
]
