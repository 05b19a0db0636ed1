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

END_OF_STREAM: Any = object()


class LMStream:
    """The events of one streaming attempt.

    Args:
        fill: Makes the attempt, putting its events into the queue that it is given.

    Attributes:
        opened: Whether a piece of the answer has come, after which nothing is repeated.
    """

    def __init__(self, fill: Callable[[asyncio.Queue[Any]], Awaitable[None]]) -> None:
        self.opened = False
        self._first: deque[Any] = deque()
        self._events: asyncio.Queue[Any] = asyncio.Queue(WINDOW)
        self._work = asyncio.ensure_future(self._run(fill))  # noqa: TID251 - the attempt; ended by `close`

    async def open(self) -> None:
        """Wait for the first piece of the answer; raises what the attempt raised before it."""
        try:
            while not self._first or getattr(self._first[-1], "type", None) == "start":
                self._first.append(await self._take())
        except BaseException:
            self.close()
            raise
        self.opened = True

    async def next(self) -> Any:
        """The next event, or `END_OF_STREAM`; raises what the attempt raised."""
        return self._first.popleft() if self._first else await self._take()

    def close(self) -> None:
        """End it, read or not: an unfinished one disconnects from the provider."""
        self._work.cancel()

    async def _run(self, fill: Callable[[asyncio.Queue[Any]], Awaitable[None]]) -> None:
        try:
            await fill(self._events)
        except Exception as error:  # noqa: BLE001 - it is raised in the reader
            await self._events.put(error)
        else:
            await self._events.put(END_OF_STREAM)

    async def _take(self) -> Any:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event
