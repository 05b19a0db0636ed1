"""`TimeLimit`: a timeout that is not spent by a loop that was blocked. Used around each wait for a provider."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

__all__ = ["TimeLimit"]

LATE: Final = 0.1
"""Seconds by which a timer may be late without a reason."""


class TimeLimit:
    """As `asyncio.timeout`; but where the loop was blocked when the time was over, it goes on for as long, once.

    What came meanwhile lies in the socket. To take that for a timeout would be to blame the provider for our own work.

    Args:
        seconds: > 0.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    @property
    def expired(self) -> bool:
        """Whether the time was over."""
        return self._timeout.expired()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._due = self._loop.time() + self._seconds
        self._timer = self._loop.call_at(self._due, self._end, True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _end(self, first: bool) -> None:
        now = self._loop.time()
        if first and now - self._due > LATE:
            self._timer = self._loop.call_at(now + (now - self._due), self._end, False)
        else:
            self._timeout.reschedule(now)
