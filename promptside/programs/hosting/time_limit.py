"""`time_limit`: how long a call of a program, a pipeline or a tool may take. Called in the task of the call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from promptside.pools.context.priority import current_priority

__all__ = ["time_limit"]


@asynccontextmanager
async def time_limit(seconds: float, error: Callable[[], Exception]) -> AsyncIterator[None]:
    """Within, the task is cancelled after `seconds`, and `error` is raised.

    In a batch, the time in which a call of the batch waits for the end of an outage does not count: an outage would
    become a score.

    Args:
        seconds: `math.inf` for no limit.
        error: Makes the error.
    """
    if seconds == math.inf:
        yield
        return
    loop, batch = asyncio.get_running_loop(), current_priority().batch
    limit = asyncio.timeout(None)

    def waited() -> float:
        return 0.0 if batch is None else batch.seconds_waited(loop.time())

    at_start = waited()
    timer = loop.call_later(seconds, lambda: check(at_start))

    def check(before: float) -> None:
        nonlocal timer
        if (now := waited()) > before:
            timer = loop.call_later(now - before, check, now)
        else:
            limit.reschedule(loop.time())

    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise error() from None
    finally:
        timer.cancel()
