"""An asyncio event loop with virtual time, which jumps to the next timer whenever nothing is ready to run.

Tests of timeouts, restarts and backoff run on it without waiting, and always in the same order. `run_virtual` runs a
coroutine on a new `VirtualTimeLoop`; all that uses the loop's clock follows: `asyncio.sleep`, `asyncio.timeout`,
`call_later`, anyio, actors and their timers. ``await asyncio.sleep(1)`` returns when everything else that could happen
within a second has happened.

Threads run in real time. While a call of `asyncio.to_thread`, `loop.run_in_executor` or `anyio.to_thread.run_sync` is
under way, timers wait as on any other loop. Other threads and open sockets do not hold the time back: tests that need
them run on an ordinary loop.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from promptside.checks import check

__all__ = ["Deadlock", "VirtualTimeLoop", "run_virtual"]

T = TypeVar("T")

Events = list[tuple[selectors.SelectorKey, int]]

OUTSIDE_TIMEOUT = 5.0
"""Real seconds that a loop without timers waits for other threads and sockets before it raises `Deadlock`."""

SHOWN = 20
"""Waiting tasks that the message of a `Deadlock` names."""


class Deadlock(RuntimeError):
    """All tasks of a `VirtualTimeLoop` wait, and nothing is left that could wake one.

    Attributes:
        now: Virtual time, in seconds.
        waiting: Each waiting task, as ``"name: file:line in function"``.
    """

    def __init__(self, now: float, waiting: tuple[str, ...]) -> None:
        self.now = now
        self.waiting = waiting
        shown = [*waiting[:SHOWN], *([f"and {len(waiting) - SHOWN} more"] if len(waiting) > SHOWN else [])]
        super().__init__(
            f"all tasks wait for ever at virtual time {now:g} s: no callback is ready, no timer is set, and no "
            "thread or socket calls in; the tasks wait at" + "".join(f"\n  {line}" for line in shown)
        )


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: `time()` starts at 0 and jumps to the next timer when nothing is ready.

    Use it through `run_virtual`, or as ``asyncio.Runner(loop_factory=VirtualTimeLoop)`` to run several coroutines one
    after the other on the same loop. Timers run at exactly their time; those of the same time, in any order. If all
    tasks wait for ever, `run_until_complete` raises `Deadlock`.

    The nodes of an actor system share it, LM pools included. When not to use it: code that uses sockets or event loops
    in other threads; the time jumps past their answers.
    """

    holds_nodes = True  # for `ActorSystem.start_node`

    _scheduled: list[asyncio.TimerHandle]  # of the base class: a heap; its first is not cancelled when `select` runs

    def __init__(self) -> None:
        self._threads_before = set(threading.enumerate())
        self._calls_in_threads = 0
        self._set_time(0.0)
        selector = _IdleSelector(self._idle)
        super().__init__(selector)
        self._set_time(0.0)
        self._selected = selector.get_map()
        self._own_sockets = len(self._selected)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """As on every loop; until the call has ended, timers wait in real time."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._calls_in_threads += 1
        future.add_done_callback(self._call_ended)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """As on every loop: joins the threads, in real time."""
        self._calls_in_threads += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._calls_in_threads -= 1

    def _call_ended(self, _: asyncio.Future[Any]) -> None:
        self._calls_in_threads -= 1

    def _set_time(self, now: float) -> None:
        self._now = now
        # The base class runs timers due before `time() + resolution`: with this, exactly those due now.
        self._clock_resolution = math.ulp(now)

    def _idle(self, select: Callable[[float | None], Events], timeout: float | None) -> Events:
        """Nothing is ready: jump to the time of the next timer, or wait for threads and sockets."""
        if self._calls_in_threads or any(_works_for(thread, self) for thread in threading.enumerate()):
            events = select(timeout)
        elif timeout is not None:
            events = []
        else:
            outside = len(self._selected) > self._own_sockets or set(threading.enumerate()) - self._threads_before
            events = select(OUTSIDE_TIMEOUT) if outside else []
            if not events:
                raise Deadlock(self._now, tuple(sorted(map(_where, asyncio.all_tasks(self)))))
        if not events and timeout is not None:
            self._set_time(self._scheduled[0].when())
        return events


class _IdleSelector(selectors.DefaultSelector):
    """A selector that calls `idle` in place of waiting."""

    def __init__(self, idle: Callable[[Callable[[float | None], Events], float | None], Events]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> Events:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return self._idle(super().select, timeout)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time, as `asyncio.run` does in real time.

    ::

        async def main() -> None:
            async with ActorSystem() as system:
                ...

        def test_the_worker_is_restarted_after_a_minute() -> None:
            run_virtual(main())

    Args:
        main: The coroutine. Tasks that still run at its end are cancelled.

    Returns:
        Its result.

    Raises:
        Deadlock: All tasks wait, and nothing can wake them.
        RuntimeError: An event loop runs in this thread already.
        ValueError: `main` is no coroutine.
    """
    check("run_virtual", "main", main, asyncio.iscoroutine(main), "give a coroutine, as in run_virtual(main())")
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("an event loop runs in this thread already; call run_virtual from a plain function")
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def _works_for(thread: threading.Thread, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `thread` is one of anyio's workers with a call from `loop` under way."""
    idle = getattr(thread, "idle_workers", None)
    waits = getattr(thread, "waits_for_calls", False)  # the thread of a program
    return idle is not None and getattr(thread, "loop", None) is loop and thread not in idle and not waits


def _where(task: asyncio.Task[Any]) -> str:
    """Name of a suspended task, and the innermost line at which it waits."""
    waits: Any = task.get_coro()
    frame = None
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or frame
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    if frame is None:
        return f"{task.get_name()}: not begun"
    return f"{task.get_name()}: {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
