"""`Subscription`: a bounded queue of events, read as an async iterator.

Made by `EventBus.subscribe`, and by the bus for every asynchronous hook. The bus writes through `Route.deliver`, one
consumer reads. A subscription belongs to the event loop in which it was opened; any thread writes the queue, so that
its bound and its count of drops hold even while that loop is blocked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import Literal, Self, get_args

from promptside.checks import check, check_count
from promptside.events.event import Event
from promptside.events.patterns import compile_pattern
from promptside.texts import is_word

__all__ = ["Overflow", "Subscription"]

Overflow = Literal["drop_oldest", "drop_newest"]
"""The event that a full queue drops: its oldest, or the new one."""


class Subscription:
    """The events that match a pattern, in the order of their `seq`.

    ::

        async with system.events.subscribe("optimizer.*") as stream:
            async for event in stream:
                ...

    It listens only within the ``async with``. A consumer that is slower than the publishers loses its own events, and
    `dropped` counts them. An event leaves the queue only when the iterator returns it: a consumer cancelled while it
    waits loses none. The iterator does not pause while events are queued (as `asyncio.Queue`), and takes one consumer.

    Attributes:
        pattern: The pattern.
        dropped: Events lost because the queue was full, or because they were still queued at the end of a hook.
    """

    __slots__ = (
        "__weakref__",
        "_attach",
        "_closed",
        "_detach",
        "_drops_oldest",
        "_idle",
        "_lock",
        "_loop",
        "_maxsize",
        "_queue",
        "_waiter",
        "_wakes",
        "dropped",
        "matches",
        "pattern",
    )

    def __init__(
        self,
        pattern: str,
        *,
        max_queue: int,
        overflow: Overflow,
        attach: Callable[[Subscription], None],
        detach: Callable[[Subscription], None],
        lock: AbstractContextManager[object],
        idle: set[Subscription],
    ) -> None:
        check_count("subscribe", "max_queue", max_queue)
        policies = get_args(Overflow)
        check("subscribe", "overflow", overflow, is_word(overflow, *policies), f"give one of {', '.join(policies)}")
        self.pattern = pattern
        self.matches = compile_pattern(pattern)
        self.dropped = 0
        self._attach = attach
        self._detach = detach
        self._lock = lock
        self._idle = idle  # the subscriptions of the bus whose consumers wait
        self._maxsize = max_queue
        self._drops_oldest = overflow == "drop_oldest"
        self._queue: deque[Event] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._wakes = False
        self._closed = False

    def open(self) -> asyncio.AbstractEventLoop:
        """Begin to listen on the running loop, and return that loop. ``async with`` calls this.

        Raises:
            RuntimeError: It was opened before, its bus is closed, or no loop is running.
        """
        if self._loop is not None or self._closed:
            raise RuntimeError(f"this subscription to {self.pattern!r} was opened before; call `subscribe` for another")
        loop = asyncio.get_running_loop()
        self._loop = loop
        try:
            self._attach(self)
        except RuntimeError:
            self._loop = None
            raise
        return loop

    def close(self) -> None:
        """Stop listening, from any thread. The iterator still gives what is queued, and then ends."""
        if self._closed:
            return
        self._detach(self)
        # Only now, when nothing is appended any more: the flag and an empty queue mean the end to the consumer.
        self._closed = True
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                # The loop is closed: there is no consumer to wake.
                self._idle.discard(self)

    def discard(self) -> int:
        """Drop the queued events, and return how many they were."""
        lost = len(self._queue)
        self._queue.clear()
        self.dropped += lost
        return lost

    def wake(self) -> bool:
        """Wake the consumer, from any thread; returns False if its loop is closed."""
        loop = self._loop
        if loop is None or self._closed:
            return True
        if loop.is_closed():
            return False
        # One wake-up at a time: a blocked loop would otherwise collect one callback per event, without a bound.
        if self._waiter is not None and not self._wakes:
            self._wakes = True
            try:
                loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                return False
        return True

    def _wake(self) -> None:
        self._wakes = False
        self._idle.discard(self)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        queue = self._queue
        while True:
            # Checked before popping: an IndexError for each wait would cost more than the wait.
            if queue:
                try:
                    return queue.popleft()
                except IndexError:
                    # A publisher in another thread dropped the only event, and is about to append its successor.
                    pass
            waiter = self._prepare_to_wait()
            if waiter is not None:
                try:
                    await waiter
                finally:
                    if self._waiter is waiter:
                        self._wait_no_more()

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """Read all queued events at a time: under a flood, a quarter of the cost of one event at a time.

        Yields:
            At least one event, in the order of their `seq`.
        """
        queue = self._queue
        async for first in self:
            with self._lock:
                batch = [first, *queue]
                queue.clear()
            yield batch

    def _prepare_to_wait(self) -> asyncio.Future[None] | None:
        """Return the future that the next event sets, or None if the queue has events again."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            raise RuntimeError(
                f"this subscription to {self.pattern!r} is read outside the loop of its `async with`; "
                "enter it where it is read"
            )
        if self._waiter is not None:
            raise RuntimeError(
                f"two tasks read one subscription to {self.pattern!r}; give each task a subscription of its own"
            )
        waiter = self._waiter = loop.create_future()
        self._idle.add(self)
        # Checked again with the waiter in place, else an event that another thread appended just before is missed. The
        # flag first: an empty queue proves the end only once nothing more can be appended.
        closed = self._closed
        if self._queue:
            self._wait_no_more()
            return None
        if closed:
            self._wait_no_more()
            raise StopAsyncIteration
        return waiter

    def _wait_no_more(self) -> None:
        self._waiter = None
        self._idle.discard(self)

    @property
    def room(self) -> int:
        """Events that its queue has room for. It grows by itself, and shrinks by one with each event."""
        return self._maxsize - len(self._queue)

    def _overflow(self, event: Event) -> None:
        """Take an event into the full queue, by its policy."""
        queue = self._queue
        if self._drops_oldest:
            try:
                queue.popleft()
                self.dropped += 1
            except IndexError:
                # The consumer, in its own thread, took the last one in the meantime.
                pass
            queue.append(event)
        else:
            self.dropped += 1
