"""`LoopThread`: an event loop in a thread of its own, whose start and end are bounded. Made by nodes and portals."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Final, TypeVar

from promptside.threads import Heartbeat, let_go, start_thread, where
from promptside.waiting import finish

__all__ = ["STUCK_AFTER", "LoopHangs", "LoopThread", "LoopWatch"]

STUCK_AFTER: Final = 5
"""Seconds that a thread has to end, once its event loop was stopped, before it is left behind."""

T = TypeVar("T")

log = logging.getLogger("promptside.actors")


class LoopHangs(RuntimeError):
    """An event loop has done nothing for `STUCK_AFTER` seconds."""


class LoopThread:
    """A thread, and the event loop that it runs until `stop`.

    Args:
        name: For the threads' names.

    Attributes:
        name: As given.
        running: Done when the loop runs; with the error when there can be none.
        ended: Done when the thread has nothing left to do.
        thread: The thread.
        hangs: Whether its loop was found to be blocked when something there had to end.

    Raises:
        RuntimeError: No thread can be started.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.running: Future[asyncio.AbstractEventLoop] = Future()
        self.ended: Future[None] = Future()
        for future in (self.running, self.ended):
            future.set_running_or_notify_cancel()  # from here on no waiter can cancel it
        self._stopped = False
        self._running_forever = True
        self._workers = f"promptside-{name}-worker"
        self.hangs = False
        self.thread = start_thread(self._run, f"promptside-{name}")

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix=self._workers))
                loop.call_soon(self._begin, loop)
                while True:  # an actor that crashes of one of these takes no other with it
                    with suppress(KeyboardInterrupt, SystemExit):
                        loop.run_forever()
                    if self._stopped:
                        break
                self._running_forever = False
        except BaseException as error:  # raised where the thread was started
            if not self.running.done():
                self.running.set_exception(error)
            else:
                log.exception("the event loop of %r ended with an error", self.name)
        finally:
            self.ended.set_result(None)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self.running.set_result(loop)
        if self._stopped:
            self._end(loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._running_forever:  # or else the loop is being closed, for which it runs again
            loop.stop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work` on the loop; raises `LoopHangs` when its thread hangs."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.running.result())
        except BaseException:
            work.close()
            raise
        watch = LoopWatch(self)
        try:
            while not wait((future,), timeout=1).done:
                watch.check()
            return future.result()
        finally:
            future.cancel()

    def request_stop(self) -> None:
        """End the loop, and then the thread; any thread, and before it runs, too."""
        self._stopped = True
        if self.running.done() and self.running.exception() is None:
            loop = self.running.result()
            with suppress(RuntimeError):  # it is closed already
                loop.call_soon_threadsafe(self._end, loop)

    async def stop(self) -> None:
        """End the loop, and join the thread, from any loop; a cancellation is raised after that.

        A thread that does not end is named in the log each second, and left behind after `STUCK_AFTER` seconds.
        """
        self.request_stop()
        await finish(self._join())

    async def _join(self) -> None:
        for second in self._seconds():
            if (await asyncio.wait({asyncio.wrap_future(self.ended)}, timeout=1))[0]:
                self.thread.join()
                return
            self._tell(second)

    def stop_and_wait(self) -> None:
        """As `stop`, for a thread that blocks."""
        self.request_stop()
        for second in self._seconds():
            if wait((self.ended,), timeout=1).done:
                self.thread.join()
                return
            self._tell(second)

    def _seconds(self) -> Iterable[int]:
        return range(STUCK_AFTER if self.hangs else 1, STUCK_AFTER + 1)

    def _tell(self, second: int) -> None:
        threads = [each for each in threading.enumerate() if each is self.thread or each.name.startswith(self._workers)]
        places = ", ".join(map(where, threads))
        if second < STUCK_AFTER:
            log.warning("the end of %r waits for %s", self.name, places)
            return
        log.error("%r ends without threads that hang: %s", self.name, places)
        for each in threads:
            let_go(each)


class LoopWatch:
    """Counts the seconds in which a loop does nothing, while something that it has to end is waited for.

    Args:
        thread: Whose loop.
    """

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._heartbeat = Heartbeat()

    def check(self) -> None:
        """Called each second; raises `LoopHangs` in the end, and names the thread in the log before."""
        thread = self._thread
        missed = self._heartbeat.missed(thread.running.result())
        if not missed:
            return
        if missed >= STUCK_AFTER:
            thread.hangs = True
            raise LoopHangs(f"its event loop is blocked: {where(thread.thread)}")
        log.warning("the end of %r waits for %s", thread.name, where(thread.thread))
