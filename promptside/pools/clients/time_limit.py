"""`TimeLimit`: a timeout that is spent by the provider alone. Used around each wait for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Self

__all__ = ["TimeLimit"]

LATE: Final = 0.1
"""Seconds by which a timer may be late without a reason."""


class TimeLimit:
    """As `asyncio.timeout`, without the time that our own process takes.

    Where the loop was blocked when the time was over, it goes on for as long, once: what came meanwhile lies in the
    socket, and to take that for a timeout would be to blame the provider for it.

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

    @staticmethod
    @contextlib.contextmanager
    def paused() -> Iterator[None]:
        """Within, the limit of the running code, if it has one, is not spent."""
        limit = _CURRENT.get()
        if limit is None:
            yield
            return
        limit._timer.cancel()
        left = limit._due - limit._loop.time()
        try:
            yield
        finally:
            limit._start(left)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._start(self._seconds)
        self._token = _CURRENT.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._token)
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _start(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._due, self._end, True)

    def _end(self, is_first: bool) -> None:
        now = self._loop.time()
        if is_first and now - self._due > LATE:
            self._timer = self._loop.call_at(now + (now - self._due), self._end, False)
        else:
            self._timeout.reschedule(now)


_CURRENT: Final[ContextVar[TimeLimit | None]] = ContextVar("_CURRENT", default=None)
"""The innermost limit of the running code."""
