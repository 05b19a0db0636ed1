"""A wait that a cancellation does not end, for an end that is bounded and must be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["wait_through_cancellation"]


async def wait_through_cancellation(
    wait: Callable[[], Awaitable[object]], done: Callable[[], bool]
) -> asyncio.CancelledError | None:
    """Await `wait()` until `done()`; returns the last cancellation that came meanwhile, for the caller to raise."""
    cancelled: asyncio.CancelledError | None = None
    while not done():
        try:
            await wait()
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
