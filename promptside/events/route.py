"""`Route`: the listeners of one event type, laid out so that an event is delivered at little cost.

Built by the bus for each type that is published, again after a listener has come or gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from promptside.events.event import Event
from promptside.events.hooks import SyncHook
from promptside.events.listener import Listener
from promptside.events.subscription import Subscription

__all__ = ["NO_LISTENERS", "Route"]


class Route:
    """The listeners of one event type.

    Args:
        subscriptions: Those whose pattern matches the type, as for the following.
        sinks: The sinks.
        hooks: The plain hooks; an asynchronous one has a subscription.
        log_level: Level at which an event without a listener is logged, or None.

    Attributes:
        hooks: As given.
        log_level: As given.
        size: How many listeners there are.
    """

    __slots__ = ("_appends", "_loop", "_queues", "_sinks", "_subscriptions", "hooks", "log_level", "size")

    def __init__(
        self,
        subscriptions: Iterable[Subscription] = (),
        sinks: tuple[Listener, ...] = (),
        hooks: tuple[SyncHook, ...] = (),
        log_level: int | None = None,
    ) -> None:
        self.hooks = hooks
        self.log_level = log_level
        self._sinks = sinks
        self._subscriptions = frozenset(subscriptions)
        self.size = len(self._subscriptions) + len(sinks) + len(hooks)
        # Looked up once: with a look-up and a check of the bound, a delivery would cost 60 ns and not 30.
        self._appends = [each._queue.append for each in self._subscriptions]
        self._queues = [
            (each._queue, each._queue.append, each._maxsize, each._overflow) for each in self._subscriptions
        ]
        loops = {each._loop for each in self._subscriptions}
        self._loop = loops.pop() if len(loops) == 1 else None

    def deliver(
        self, event: Event, here: asyncio.AbstractEventLoop | None, idle: set[Subscription], *, room: bool
    ) -> Iterable[Subscription]:
        """Put an event into each queue and sink, and wake the consumers whose loop is the running one.

        The caller holds the bus's lock, so every queue is in the order of `seq` and the counts are exact.

        Args:
            event: The event.
            here: The running loop, or None in a thread without one.
            idle: The subscriptions of the bus whose consumers wait.
            room: Whether every queue is known to have room.

        Returns:
            The subscriptions of other loops, on which to call `wake` once the lock is free.
        """
        if room:
            for append in self._appends:
                append(event)
        else:
            for queue, append, max_queue, overflow in self._queues:
                if len(queue) < max_queue:
                    append(event)
                else:
                    overflow(event)
        for sink in self._sinks:
            sink.put(event)
        for subscription in self._subscriptions & idle if idle else ():  # not a look at those of other types
            if subscription._loop is here:
                idle.discard(subscription)
                waiter, subscription._waiter = subscription._waiter, None
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
        if here is not None and self._loop is here:
            return ()
        return [subscription for subscription in self._subscriptions if subscription._loop is not here]


NO_LISTENERS: Final = Route()
"""The route of every type that has no listener and is not logged."""
