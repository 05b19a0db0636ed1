"""`TimeLimit`: how long a call of a program, a pipeline or a tool may take. Entered in the task of the call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType

from promptside.pools.context.priority import current_priority

__all__ = ["TimeLimit"]


class TimeLimit:
    """Within, the task is cancelled after `seconds`, and `error` is raised: ``async with TimeLimit(30, make_error):``.

    In a batch, the time in which a call of the batch waits for the end of an outage does not count: an outage would
    become a score.

    Args:
        seconds: `math.inf` for no limit.
        error: Makes the error.
    """

    def __init__(self, seconds: float, error: Callable[[], Exception]) -> None:
        self._seconds = seconds
        self._error = error
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._batch = current_priority().batch
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        if self._seconds != math.inf:
            self._waited = self._seconds_waited()
            self._timer = self._loop.call_later(self._seconds, self._check)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise self._error() from None

    def _check(self) -> None:
        before, self._waited = self._waited, self._seconds_waited()
        if self._waited > before:
            self._timer = self._loop.call_later(self._waited - before, self._check)
        else:
            self._timeout.reschedule(self._loop.time())

    def _seconds_waited(self) -> float:
        return 0.0 if self._batch is None else self._batch.seconds_waited(self._loop.time())
