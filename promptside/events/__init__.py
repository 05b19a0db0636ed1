"""What happens, told to whoever listens: an event bus, its records, hooks and subscriptions.

::

    bus = EventBus()                                    # every actor system has one: `system.events`
    bus.publish("breaker.opened", "/lm/pool", {"endpoint": "a"})

    @bus.on("breaker.*")                                # called inline, or in a task of its own if `async def`
    def warn(event: Event) -> None: ...

    async with bus.subscribe("lm.*", maxsize=1000, overflow="drop_oldest") as stream:
        async for event in stream: ...

    await SQLiteSink("run.db").start(bus)               # keeps them; ends with the bus
    for event in read("run.db", type="lm.*"): ...       # later, or from another process

- `catalogue`: the types that promptside publishes, each with what it tells.
- `event`: the record. `patterns`: which types a listener matches.
- `subscription`: a bounded queue with an iterator. `hooks`: functions that are called.
- `bus`: publish, and who listens.
- `span`: an operation, told by its start and its end. `content`: what may be told of prompts and answers.
- `sinks`: where events are kept or shown. `read`: what was kept. `command`: the same on the command line.
- `opentelemetry`, `prometheus`: the same events as spans and as metrics; imported by name, for they need extras.
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
