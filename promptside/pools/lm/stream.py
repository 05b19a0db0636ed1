"""`LMStream`: an answer that arrives in pieces, held back by its reader.

Opened by the dispatcher and read by the engine pair, all on the pool's loop. A worker fills a small queue; a slow
reader holds back the worker, and with it the provider's connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["LMStream"]

WINDOW = 16
"""Events that may wait for the reader."""

END: Any = object()
"""Put after the last event."""


class LMStream:
    """The events of one streaming attempt.

    Args:
        fill: Makes the attempt, putting its events into the queue that it is given.
        on_chunk: Called with each event that has arrived.
        endpoint: Name of the endpoint that answers; empty for a vote.
        model: That endpoint's model, or the name of the vote.
    """

    def __init__(
        self,
        fill: Callable[[asyncio.Queue[Any]], Awaitable[None]],
        on_chunk: Callable[[Any], None] = lambda _: None,
        endpoint: str = "",
        model: str = "",
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self._first: list[Any] = []
        self._events = _ChunkQueue(WINDOW, on_chunk)
        self._over = False
        self._error: Exception | None = None
        self._work = asyncio.ensure_future(self._run(fill))  # noqa: TID251 - the attempt; ended by `close`

    async def open(self, *, whole: bool = False) -> None:
        """Wait for the first piece of the answer, or for the whole; raises the attempt's error before that."""
        try:
            while whole or not self._first or getattr(self._first[-1], "type", None) == "start":
                batch = await self._take()
                if not batch:
                    break
                self._first += batch
        except BaseException:
            self.close()
            raise

    def on_end(self, callback: Callable[[BaseException | None], None]) -> None:
        """Call back at its end: with None, the attempt's error, or a cancellation where it was closed early."""
        self._work.add_done_callback(
            lambda work: callback(asyncio.CancelledError() if work.cancelled() else self._error)
        )

    async def next(self) -> list[Any]:
        """The events that have arrived, at least one; none at the end. Raises the attempt's error after the rest."""
        batch, self._first = self._first, []
        return batch or await self._take()

    def close(self) -> None:
        """End it, read or not: an unfinished one disconnects from the provider."""
        self._work.cancel()

    @property
    def held_back(self) -> float:
        """Seconds for which its reader has held the provider back."""
        return self._events.held_back

    async def _run(self, fill: Callable[[asyncio.Queue[Any]], Awaitable[None]]) -> None:
        try:
            await fill(self._events)
        except Exception as error:  # noqa: BLE001 - it is raised in the reader
            self._error = error
        await self._events.put(END)

    async def _take(self) -> list[Any]:
        batch: list[Any] = []
        if not self._over:
            batch.append(await self._events.get())
            while not self._events.empty():
                batch.append(self._events.get_nowait())
            if batch[-1] is END:
                self._over = True
                batch.pop()
                await asyncio.wait({self._work})  # the callbacks of `on_end` run before its reader goes on
        if not batch and self._error is not None:
            raise self._error
        return batch


class _ChunkQueue(asyncio.Queue[Any]):
    """A queue that calls back with each event as it arrives, and counts the seconds for which it was full."""

    def __init__(self, maxsize: int, on_chunk: Callable[[Any], None]) -> None:
        super().__init__(maxsize)
        self._on_chunk = on_chunk
        self.held_back = 0.0

    async def put(self, item: Any) -> None:
        if self.full():
            time = asyncio.get_running_loop().time
            began = time()
            await super().put(item)
            self.held_back += time() - began
        else:
            self.put_nowait(item)

    def _put(self, item: Any) -> None:
        if item is not END:
            self._on_chunk(item)
        super()._put(item)
