"""`BreakerControl`: an operator's control of the breaker of one endpoint. Made by `LMPool.breaker`; any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptside.pools.resilience.breaker import BreakerState, CircuitBreaker

if TYPE_CHECKING:
    from promptside.pools.lm.pool import LMPool

__all__ = ["BreakerControl"]


class BreakerControl:
    """The circuit between a pool and one of its endpoints; it stays good when the pool is restarted.

    What is done takes effect on the pool's event loop, before the calls that this thread makes afterwards. All raise
    `PoolUnavailable` when the pool does not run.

    Args:
        pool: The pool.
        endpoint: The endpoint's name.
    """

    def __init__(self, pool: LMPool, endpoint: str) -> None:
        self._pool = pool
        self._endpoint = endpoint

    @property
    def state(self) -> BreakerState:
        """``"closed"``, ``"open"`` or ``"half_open"``."""
        return self._breaker().state

    def force_open(self) -> None:
        """Open it as a failure would: for its `open_for`, and then for probes."""
        loop, breaker = self._pool.loop, self._breaker()
        loop.call_soon_threadsafe(lambda: breaker.force_open(loop.time()))

    def isolate(self) -> None:
        """Hold it open, also for probes, until `reset`."""
        self._pool.loop.call_soon_threadsafe(self._breaker().isolate)

    def reset(self) -> None:
        """Close it, and forget what was counted."""
        self._pool.loop.call_soon_threadsafe(self._breaker().reset)

    def _breaker(self) -> CircuitBreaker:
        doors = self._pool.dispatcher.doors
        return next(door.breaker for door in doors if door.endpoint.name == self._endpoint)
