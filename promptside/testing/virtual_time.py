"""An asyncio event loop whose time is virtual: it jumps to the next timer whenever nothing else is left to do.

Tests of timeouts, restarts and backoff run on it at once and always alike. `run_virtual` runs a coroutine on a new
`VirtualTimeLoop`; whatever uses its loop's clock follows: `asyncio.sleep`, `asyncio.timeout`, `call_later`, anyio, actors
and their timers. ``await asyncio.sleep(1)`` returns when everything else that could happen within a second has happened.

Threads live in real time. While a call of `asyncio.to_thread`, `loop.run_in_executor` or `anyio.to_thread` is under way,
timers wait as on any other loop. Other threads (an actor system's nodes) and open sockets are not waited for before a
jump: test what needs them on an ordinary loop.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

__all__ = ["Deadlock", "VirtualTimeLoop", "run_virtual"]

T = TypeVar("T")

PATIENCE = 5.0
"""Real seconds that a loop without timers waits for a thread or a socket before it is a deadlock."""

SHOWN = 20
"""Waiting tasks that the message of a deadlock names."""


class Deadlock(RuntimeError):
    """Everything on a `VirtualTimeLoop` waits, and nothing is left that could end the waiting.

    Attributes:
        now: Virtual time at which it happened, in seconds.
        waiting: Each task that waits, as ``"name at file:line in function"``.
    """

    def __init__(self, now: float, waiting: tuple[str, ...]) -> None:
        self.now = now
        self.waiting = waiting
        lines = [*waiting[:SHOWN], *(["..."] if len(waiting) > SHOWN else [])]
        super().__init__(
            f"everything waits for ever at virtual time {now:g} s: no callback is ready, no timer is armed, and no "
            "thread or socket has anything to say. Waiting tasks:" + "".join(f"\n  {line}" for line in lines)
        )


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: `time()` starts at 0 and jumps to the next timer when nothing is ready.

    Use it through `run_virtual`, or as ``asyncio.Runner(loop_factory=VirtualTimeLoop)`` where several coroutines share
    a loop. A loop that waits with nothing to wait for raises `Deadlock` out of `run_until_complete`.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._calls_in_threads = 0
        self._threads_before = set(threading.enumerate())
        self._jumping = _JumpingSelector(self._jump)
        super().__init__(self._jumping)
        self._own_descriptors = len(self._jumping.get_map())
        self._set_now(0.0)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """As every loop's; until the call has ended, timers wait in real time."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._calls_in_threads += 1
        future.add_done_callback(self._call_has_ended)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """As every loop's; its threads are joined in real time."""
        with self._in_real_time():
            await super().shutdown_default_executor(*args)

    def _call_has_ended(self, _: asyncio.Future[Any]) -> None:
        self._calls_in_threads -= 1

    @contextmanager
    def _in_real_time(self) -> Iterator[None]:
        self._calls_in_threads += 1
        try:
            yield
        finally:
            self._calls_in_threads -= 1

    def _set_now(self, now: float) -> None:
        self._now = now
        # The base class runs the timers that are due before `time() + resolution`: exactly those that are due now.
        self._clock_resolution = math.ulp(now)

    def _jump(self, timeout: float | None) -> float | None:
        """What to do when nothing is ready: go on at a later time, or wait for so many real seconds and ask again.

        Args:
            timeout: Seconds until the next timer, or None without one.

        Returns:
            Real seconds to wait, or None after a jump.
        """
        return None


class _JumpingSelector(selectors.DefaultSelector):
    pass
