"""The channel of a stream: items from a producing actor to one reader, on the same loop or on another.

Made by `ActorRef.stream`; the actor's side puts items and waits for demand, the reader's side takes them. It is also
the reply of the stream's ask, so that a crash, a stop or a timeout of the actor ends the stream like any ask, after
the items that were produced before.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from threading import RLock
from typing import Any, Generic, TypeVar, cast

__all__ = ["Channel", "producer"]

T = TypeVar("T")

_END: Any = object()


class Channel(Generic[T]):
    """A bounded queue with one producer and one reader, and the outcome at its end.

    Args:
        producer_loop: The actor's event loop.
        window: Items that may wait for the reader, >= 1.
    """

    def __init__(self, producer_loop: asyncio.AbstractEventLoop, window: int) -> None:
        self._lock = RLock()  # reentrant, because a finalizer may end the stream while its thread is here
        self._items: deque[T] = deque()
        self._window = window
        self._producer_loop = producer_loop
        self._reader_loop = asyncio.get_running_loop()
        self._producer: asyncio.Future[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._done = False
        self._given_up = False

    # -- the actor's side ---------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether it has its outcome, or its reader has gone."""
        return self._done or self._given_up

    def set_result(self, result: object) -> None:
        """The producer has ended."""
        self._end(None)

    def set_exception(self, error: BaseException) -> None:
        """The producer has failed, or will not run."""
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            self._done = True
            self._error = error
            reader, self._reader = self._reader, None
        _wake(self._reader_loop, reader)

    async def put(self, item: T) -> None:
        """Hand an item over, and wait while the window is full."""
        with self._lock:
            self._items.append(item)
            reader, self._reader = self._reader, None
            waiter = None
            if len(self._items) >= self._window:
                waiter = self._producer = self._producer_loop.create_future()
        _wake(self._reader_loop, reader)
        if waiter is not None:
            await waiter

    # -- the reader's side --------------------------------------------------------------------------------------

    async def get(self, timeout: float, on_timeout: Callable[[], BaseException]) -> T:
        """The next item, or a value of which `is_end` is true; raises the producer's failure after the last item."""
        while True:
            with self._lock:
                producer, waiter = None, None
                if self._items:
                    item = self._items.popleft()
                    producer, self._producer = self._producer, None
                elif not self._done:
                    item = cast("T", _END)
                    waiter = self._reader = self._reader_loop.create_future()
                elif self._error is not None:
                    raise self._take_error()
                else:
                    return cast("T", _END)
            if waiter is None:
                _wake(self._producer_loop, producer)
                return item
            try:
                async with asyncio.timeout(None if timeout == math.inf else timeout):
                    await waiter
            except TimeoutError:
                raise on_timeout() from None

    def _take_error(self) -> BaseException:
        """The failure, which is not kept: it will hold the frames of the reader, and those hold this channel."""
        error, self._error = self._error, None
        assert error is not None
        return error

    @staticmethod
    def is_end(item: object) -> bool:
        """Whether an item of `get` marks the end."""
        return item is _END

    def give_up(self) -> bool:
        """The reader has gone; whether the producer still runs."""
        with self._lock:
            self._given_up = True
            return not self._done


def producer(method: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., Any]:
    """The handler that runs an async generator method and puts what it yields into a channel."""

    async def produce(actor: Any, channel: Channel[Any], /, *args: Any, **kwargs: Any) -> None:
        async with aclosing(method(actor, *args, **kwargs)) as items:
            async for item in items:
                await channel.put(item)

    produce.__name__ = method.__name__
    return produce


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None] | None) -> None:
    if waiter is None:
        return

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    if asyncio._get_running_loop() is loop:
        wake()
        return
    try:
        loop.call_soon_threadsafe(wake)
    except RuntimeError:
        pass  # the loop is closed, and with it who waited
