"""`LMStream`: an answer that arrives in pieces, held back by its reader.

Opened by the dispatcher and read by the engine pair, one piece at a time, all on the pool's loop. A worker fills a
small queue; when the reader is slow the worker waits, and with it the provider's connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["END_OF_STREAM", "LMStream"]

WINDOW = 16
"""Pieces that may wait for the reader."""

END_OF_STREAM = object()


class LMStream:
    """The events of one streaming attempt.

    Args:
        start: Makes the attempt, putting events into the queue it is given.
    """

    def __init__(self, start: Callable[[asyncio.Queue[Any]], Awaitable[None]]) -> None:
        self._start = start
        self._events: asyncio.Queue[Any] = asyncio.Queue(WINDOW)
        self._first: deque[Any] = deque()
        self._work = asyncio.ensure_future(self._fill())  # noqa: TID251 - the ask; ended by `close`
        self.ended: Callable[[BaseException | None], None] = lambda error: None
        self.usage: Any = None  # of the end event

    async def _fill(self) -> None:
        try:
            await self._start(self._events)
        except Exception as error:  # noqa: BLE001 - it is the reader's
            await self._events.put(error)
        else:
            await self._events.put(END_OF_STREAM)

    async def prefetch(self) -> None:
        """Wait for the first piece of the answer; what the attempt raises before it may be repeated."""
        try:
            while not self._first or self._first[-1].type == "start":
                self._first.append(await self._take())
        except BaseException:
            self._work.cancel()
            raise

    async def next(self) -> Any:
        """The next event, or `END_OF_STREAM`; raises what the attempt raised."""
        event = self._first.popleft() if self._first else await self._take()

    def close(self) -> None:
        """End it, read or not: an unfinished one disconnects from the provider."""
        self._work.cancel()
