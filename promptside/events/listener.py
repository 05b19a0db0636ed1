"""`Listener`: a sink as the bus sees it. Called by the bus alone."""

from __future__ import annotations

import concurrent.futures
from typing import Protocol, runtime_checkable

from promptside.events.event import Event

__all__ = ["Listener"]


@runtime_checkable
class Listener(Protocol):
    """A listener with a thread of its own: it takes events from any thread, and ends with the bus.

    Attributes:
        ended: Done when its thread has ended.
    """

    ended: concurrent.futures.Future[None]

    def matches(self, type: str, /) -> bool:
        """Whether it takes events of this type."""
        ...

    def put(self, event: Event, /) -> None:
        """Take an event, in the order of `seq`. Called under the bus's lock: it must neither wait nor raise."""
        ...

    def end(self) -> None:
        """Begin to end, without waiting. It calls `EventBus.detach`."""
        ...

    async def stop(self) -> None:
        """End, and wait for the end; for a bounded time."""
        ...
