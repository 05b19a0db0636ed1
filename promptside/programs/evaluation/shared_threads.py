"""`SharedThreads`: many short functions in few threads, and one wake-up of the event loop for all that have ended.

Made by `Evaluator`, for its metric. A metric takes some microseconds, and a thread's way to it and back, one by one,
fifty times as long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeAlias

from promptside.threads import start_thread

__all__ = ["SharedThreads"]

LATE: Final = 0.005
"""Seconds in which a waiting function is begun, or else there are more threads."""

Outcome: TypeAlias = tuple[Any, BaseException | None]


class _Job(NamedTuple):
    function: Callable[[], Any]
    context: Context
    outcome: asyncio.Future[Outcome]


class SharedThreads:
    """Threads that take functions from one queue. A new one is started when none has begun one for `LATE` seconds.

    So functions that compute share a thread, and functions that wait have one each. All callers are on one event loop.

    Args:
        limit: How many threads there are at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._put = 0
        self._threads = 0
        self._ended: deque[tuple[_Job, Outcome]] = deque()
        self._wakes = False
        self._looks = False
        self._closed = False

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` in a thread, in the caller's context; not at all if the caller is cancelled before it begins.

        Raises:
            RuntimeError: There can be no thread.
            BaseException: Whatever the function raised.
        """
        loop = asyncio.get_running_loop()
        job = _Job(function, copy_context(), loop.create_future())
        if not self._threads:
            self._start_thread()
        self._put += 1
        self._jobs.put(job)
        if not self._looks:
            self._look_later(loop)
        result, error = await job.outcome
        if error is not None:
            try:
                raise error
            finally:
                del error, job  # it holds this frame, which would hold it
        return result

    def close(self) -> None:
        """End the threads: those that are free now, the others with their function. Later functions are never begun."""
        self._closed = True
        self._jobs.put(None)

    def _start_thread(self) -> None:
        start_thread(self._work, "promptside-evaluation")
        self._threads += 1

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looks = True
        loop.call_later(LATE, self._look, loop, self._begun())

    def _begun(self) -> int:
        return self._put - self._jobs.qsize()

    def _look(self, loop: asyncio.AbstractEventLoop, begun_before: int) -> None:
        self._looks = False
        waiting = self._jobs.qsize()
        if not waiting or self._closed:
            return
        if self._begun() == begun_before:
            with suppress(RuntimeError):  # there can be no more threads
                for _ in range(min(waiting, self._threads, self._limit - self._threads)):
                    self._start_thread()
        self._look_later(loop)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.outcome.cancelled():
                self._do(job)
            del job  # a thread that waits keeps nothing
        self._jobs.put(None)  # for the next thread

    def _do(self, job: _Job) -> None:
        try:
            outcome: Outcome = job.context.run(job.function), None
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            outcome = None, error
        self._ended.append((job, outcome))
        if not self._wakes:
            self._wakes = True
            with suppress(RuntimeError):  # the loop is closed, and with it the callers
                job.outcome.get_loop().call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._wakes = False  # before it looks: what ends from now on wakes it again
        while self._ended:
            job, outcome = self._ended.popleft()
            if not job.outcome.done():
                job.outcome.set_result(outcome)
