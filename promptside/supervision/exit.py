"""`ExitWatch`: a service's process ends although a thread hangs.

Made by `Service.run`. Python waits at its exit for every thread that is no daemon, and for those of executors, such as
the threads of `asyncio.to_thread` and of `anyio.to_thread`: one that hangs would hold the process for ever, in silence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from promptside.threads import Heartbeat, at_exit, holds_exit, start_thread, where

__all__ = ["ExitWatch"]

log = logging.getLogger("promptside.supervision")


class ExitWatch:
    """Around the run of a service: once nothing but a thread is waited for, says so each second, and then ends it.

    That is so where the event loop is blocked after the drain's time, where the service has ended and a thread has not,
    and at the interpreter's exit.

    Args:
        name: Of the service.
        seconds: For which threads that hang hold the process.
        late: Its event loop, once the time of the drain is over.
        closed: Whether nothing is left on the loop.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        *,
        late: Callable[[], asyncio.AbstractEventLoop | None],
        closed: Callable[[], bool],
    ) -> None:
        self._name = name
        self._limit = seconds
        self._late = late
        self._closed = closed
        self._others = set(threading.enumerate())
        self._exiting = threading.Event()
        self._over = threading.Event()
        self._returned = False
        self._error: BaseException | None = None
        self._heartbeat = Heartbeat()
        self._seconds = 0

    def __enter__(self) -> Self:
        at_exit(self._exiting.set)
        self._thread = start_thread(self._watch, "promptside-exit")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._returned = True
        if not self._left():  # pragma: no branch - as `_watch`
            self._over.set()
            self._thread.join()

    async def run(self, work: Awaitable[None]) -> None:
        """What the loop runs. Its error is logged also where the loop hangs at its end, so that it is never raised."""
        try:
            await work
        except BaseException as error:
            self._error = error
            raise

    def _watch(self) -> None:  # pragma: no cover - its process ends here; tests run it in processes of their own
        while not self._over.wait(1):
            threads = self._waited_for()
            if not threads:
                self._seconds = 0
                continue
            self._seconds += 1
            places = ", ".join(map(where, threads))
            if self._seconds <= self._limit:
                log.warning("the end of service %r waits for %s", self._name, places)
                continue
            untold = None if self._returned else self._error  # else Python has printed it
            log.error(
                "the process of service %r ends without threads that hang: %s", self._name, places, exc_info=untold
            )
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(0 if self._error is None else 1)

    def _waited_for(self) -> list[threading.Thread]:  # pragma: no cover - as `_watch`
        """The threads that alone hold the end; none while anything else is to be done, too."""
        if self._exiting.is_set() or (self._closed() and not self._returned):
            return self._left()
        loop = self._late()
        return [threading.main_thread()] if loop is not None and self._heartbeat.missed(loop) else []

    def _left(self) -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each not in self._others and holds_exit(each)]
