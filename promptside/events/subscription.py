"""One listener's bounded queue, read as an async iterator.

Made by `EventBus.subscribe`, and by the bus for every asynchronous hook. The bus writes through `deliver`, one consumer
reads. A subscription belongs to the event loop in which it was opened; the queue itself is written by any thread, so
that its bound and its count of drops hold even while that loop is blocked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal, Self, get_args

from promptside.events.event import Event
from promptside.events.patterns import compile_pattern

__all__ = ["Audience", "Overflow", "Subscription", "deliver"]

Overflow = Literal["drop_oldest", "drop_newest"]
"""What a full queue does: forget its oldest event for the new one, or refuse the new one."""


class Subscription:
    """The events that match a pattern, in the order of their `seq`.

    ::

        async with system.events.subscribe("optimizer.*") as stream:
            async for event in stream:
                ...

    Only the body of the ``async with`` listens. A consumer that is slower than the publishers loses its own events, and
    `dropped` counts them. An event leaves the queue only when the iterator hands it over: a consumer cancelled while it
    waits loses none. The iterator does not pause while events are queued (as `asyncio.Queue`), and takes one consumer.

    Attributes:
        pattern: What it listens to.
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
        maxsize: int,
        overflow: Overflow,
        attach: Callable[[Subscription], None],
        detach: Callable[[Subscription], None],
        lock: AbstractContextManager[object],
        idle: set[Subscription],
    ) -> None:
        if maxsize < 1:
            raise ValueError(f"maxsize={maxsize!r} leaves no room; give the number of events that may wait, at least 1")
        if overflow not in get_args(Overflow):
            raise ValueError(f"overflow={overflow!r} is no policy; choose one of {', '.join(get_args(Overflow))}")
        self.pattern = pattern
        self.matches = compile_pattern(pattern)
        self.dropped = 0
        self._attach = attach
        self._detach = detach
        self._lock = lock
        self._idle = idle  # the subscriptions of the bus whose consumers wait
        self._maxsize = maxsize
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
        """Listen no more, from any thread. The iterator still gives what is queued, and then ends."""
        if self._closed:
            return
        self._detach(self)
        # Only now: nothing is appended any more, so a consumer that sees the flag and an empty queue has seen it all.
        self._closed = True
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                # The loop is closed: there is no consumer to tell.
                self._idle.discard(self)

    def discard(self) -> int:
        """Forget what is queued, counted as dropped; returns how many events that were."""
        lost = len(self._queue)
        self._queue.clear()
        self.dropped += lost
        return lost

    def wake(self) -> bool:
        """Let the consumer see its queue, from any thread; returns False if its loop was closed under it."""
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

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        queue = self._queue
        while True:
            # Looked at before popping: raising IndexError for each wait would cost more than the wait.
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
        """Read all that is queued at a time: under a flood, a quarter of the cost of one event at a time.

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
        """Return the future that the next event sets, or None if the queue is to be looked at once more."""
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
        # Looked at again with the waiter in place, else an event that another thread appended just before is slept
        # over. The flag first: an empty queue proves the end only once nothing more can be appended.
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


class Audience:
    """Subscriptions that hear the same type, laid out for `deliver`.

    Attributes:
        members: The subscriptions.
        appends: Of each, its queue's `append`: with a look-up and a check of the bound, a delivery would cost 60 ns and
            not 30.
        queues: Of each, its queue, that queue's `append`, its bound, and what to call when it is full.
        loop: The event loop of all of them; None where they are on several, or there are none.
    """

    __slots__ = ("appends", "loop", "members", "queues")

    def __init__(self, members: Iterable[Subscription]) -> None:
        self.members = frozenset(members)
        self.appends = [each._queue.append for each in self.members]
        self.queues = [(each._queue, each._queue.append, each._maxsize, each._overflow) for each in self.members]
        loops = {each._loop for each in self.members}
        self.loop = loops.pop() if len(loops) == 1 else None


def deliver(
    event: Event,
    audience: Audience,
    here: asyncio.AbstractEventLoop | None,
    idle: set[Subscription],
    *,
    room: bool,
) -> Iterable[Subscription]:
    """Append an event to each queue and wake the consumers whose loop is the running one.

    The caller holds the bus's lock, so every queue is in the order of `seq` and the counts are exact.

    Args:
        event: What happened.
        audience: Who hears it.
        here: The running loop, or None in a thread without one.
        idle: The subscriptions of the bus whose consumers wait.
        room: Whether every queue is known to have room.

    Returns:
        The subscriptions of other loops, on which to call `wake` once the lock is free.
    """
    if room:
        for append in audience.appends:
            append(event)
    else:
        for queue, append, maxsize, overflow in audience.queues:
            if len(queue) < maxsize:
                append(event)
            else:
                overflow(event)
    for subscription in tuple(idle):
        if subscription._loop is here and subscription in audience.members:
            idle.discard(subscription)
            waiter, subscription._waiter = subscription._waiter, None
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
    if here is not None and audience.loop is here:
        return ()
    return [subscription for subscription in audience.members if subscription._loop is not here]
