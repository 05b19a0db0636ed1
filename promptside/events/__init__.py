"""What happens, told to whoever listens: an event bus, its records, hooks and subscriptions.

::

    bus = EventBus()                                    # every actor system has one: `system.events`
    bus.publish("breaker.opened", "/lm/pool", {"endpoint": "a"})

    @bus.on("breaker.*")                                # called inline, or in a task of its own if `async def`
    def warn(event: Event) -> None: ...

    async with bus.subscribe("lm.*", maxsize=1000, overflow="drop_oldest") as stream:
        async for event in stream: ...

- `catalogue`: the types that promptside publishes, each with what it tells.
- `event`: the record. `patterns`: which types a listener matches.
- `subscription`: a bounded queue with an iterator. `hooks`: functions that are called.
- `bus`: publish, and who listens.
"""

from __future__ import annotations

from promptside.events.bus import EventBus
from promptside.events.catalogue import CATALOGUE
from promptside.events.event import Event
from promptside.events.hooks import Hook
from promptside.events.subscription import Overflow, Subscription

__all__ = ["CATALOGUE", "Event", "EventBus", "Hook", "Overflow", "Subscription"]
