"""`ProviderTimeout`: a timeout that is spent by the provider alone. Used around each wait for one."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

__all__ = ["ProviderTimeout"]

LATE: Final = 0.1
"""Seconds by which a timer may be late without a reason."""


class ProviderTimeout:
    """As `asyncio.timeout`; but where the loop was blocked when the time was over, it goes on for as long, once.

    What came meanwhile lies in the socket. To take that for a timeout would be to blame the provider for our own work.

    Args:
        seconds: > 0.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def expired(self) -> bool:
        """Whether the time was over."""
        return self._timeout.expired()

    def restart(self, seconds: float) -> None:
        """Begin again, with another time. Only within."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._due, self._end, True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self.restart(self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _end(self, is_first: bool) -> None:
        now = self._loop.time()
        if is_first and now - self._due > LATE:
            self._timer = self._loop.call_at(now + (now - self._due), self._end, False)
        else:
            self._timeout.reschedule(now)
