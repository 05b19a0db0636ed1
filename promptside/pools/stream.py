"""`LMStream`: an answer that arrives in pieces, held back by its reader.

Opened by the dispatcher on the pool's loop and read by the engine pair, one piece at a time. A worker fills a small
queue; when the reader is slow the worker waits, and with it the provider's connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from promptside.pools.breaker import Outcome
from promptside.pools.outcomes import judge
from promptside.pools.worker import END_OF_STREAM

__all__ = ["END_OF_STREAM", "LMStream"]

WINDOW = 16
"""Pieces that may wait for the reader."""


class Attempt(Protocol):
    """Whom the stream tells how it ended."""

    request: Any

    def succeeded(self, response: Any) -> None: ...

    def failed(self, error: BaseException, outcome: Outcome) -> None: ...


class LMStream:
    """The events of one streaming attempt.

    Args:
        start: Makes the attempt, putting events into the queue it is given and `END_OF_STREAM` at the end.
        attempt: Told how it ended.
    """

    def __init__(self, start: Callable[[asyncio.Queue[Any]], Awaitable[None]], attempt: Attempt) -> None:
        self._events: asyncio.Queue[Any] = asyncio.Queue(WINDOW)
        self._work = asyncio.ensure_future(start(self._events))  # noqa: TID251 - the ask; ended by `close`
        self._attempt = attempt
        self._first: list[Any] = []

    async def prefetch(self) -> None:
        """Wait for the first event; raises what the attempt raised, which may then be repeated."""
        try:
            self._first.append(await self._get())
        except BaseException:
            await self._cancel()
            raise

    async def next(self) -> Any:
        """The next event, or `END_OF_STREAM`; raises what the attempt raised."""
        if self._first:
            return self._first.pop()
        try:
            event = await self._get()
        except BaseException as error:  # noqa: BLE001 - a cancellation ends the attempt too
            public, verdict = judge(error, self._attempt.request.model)
            self._attempt.failed(public, verdict.outcome)
            await self._cancel()
            raise public from error.__cause__
        if event is END_OF_STREAM:
            self._attempt.succeeded(None)
        elif getattr(event, "type", None) == "end":
            self._attempt.succeeded(event)
        return event

    async def close(self) -> None:
        """End it, read or not: an unfinished one disconnects from the provider."""
        self._attempt.failed(asyncio.CancelledError("closed by its reader"), "ignored")
        await self._cancel()

    async def _get(self) -> Any:
        if self._events.empty() and not self._work.done():
            getting = asyncio.ensure_future(self._events.get())  # noqa: TID251 - raced with the ask, ended here
            try:
                await asyncio.wait({getting, self._work}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not getting.done():
                    getting.cancel()
            if getting.done() and not getting.cancelled():
                return getting.result()
        if not self._events.empty():
            return self._events.get_nowait()
        self._work.result()
        return END_OF_STREAM

    async def _cancel(self) -> None:
        if not self._work.done():
            self._work.cancel()
        await asyncio.wait({self._work})
        if not self._work.cancelled():
            self._work.exception()  # taken above, or of no interest any more
