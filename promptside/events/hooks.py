"""Functions that the bus calls for events: inline if they are plain, in a task of their own if they are asynchronous.

Made by `EventBus.on`. A hook that raises is logged and disturbs neither publishers nor other listeners; one that raises
`MAX_FAILURES` times in a row is detached.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from promptside.callables import label_of
from promptside.events.event import Event
from promptside.events.patterns import compile_pattern
from promptside.events.reports import Reports
from promptside.events.subscription import Subscription
from promptside.texts import repr_of, text_of

__all__ = ["MAX_FAILURES", "Hook", "end_hooks", "end_listener"]

MAX_FAILURES: Final = 5
"""Failures in a row after which a hook is detached."""

EVENTS_PER_TURN: Final = 100
"""Events that an asynchronous hook handles before it lets other tasks run, should it never wait by itself."""

CANCEL_GRACE: Final = 1.0
"""Seconds that `end_hooks` waits for a cancelled hook; one that swallows its cancellation is then logged."""

_logger = logging.getLogger("promptside.events")


class Hook(ABC):
    """A function that is called for the events of a pattern; the handle to detach it.

    Attributes:
        pattern: The pattern.
        callback: The function.
        attached: Whether it is still called.
        failures: How often in a row it has raised.
    """

    def __init__(self, pattern: str, callback: Callable[[Event], object]) -> None:
        self.pattern = pattern
        self.callback = callback
        self.attached = True
        self.failures = 0
        self._reports = Reports(_logger)

    @property
    @abstractmethod
    def dropped(self) -> int:
        """Events that matched and for which the function was not called."""

    @abstractmethod
    def detach(self) -> None:
        """Call it no more; from any thread. Events still queued for an asynchronous hook count as dropped."""

    def __call__(self, event: Event) -> object:
        """Call the function."""
        return self.callback(event)

    def __repr__(self) -> str:
        return f"<hook {label_of(self.callback)} on {self.pattern!r}>"

    def _report(self, event: Event, error: BaseException, failures: int) -> None:
        where = f"{event.type} from {text_of(event.source)}: {repr_of(event.data)}"
        text = f"{self!r} failed ({failures} in a row) at {where}"
        self._reports.write("failures of a hook", logging.ERROR, text, error=error)
        # Equality, so that it is detached once when two threads fail at the same time.
        if failures == MAX_FAILURES:
            self.detach()
            self._reports.write("hooks", logging.ERROR, f"{self!r} is detached after {failures} failures in a row")


class SyncHook(Hook):
    """A plain function, called inline by the publisher, in the publisher's thread."""

    def __init__(self, pattern: str, callback: Callable[[Event], object], detach: Callable[[SyncHook], None]) -> None:
        super().__init__(pattern, callback)
        self.matches = compile_pattern(pattern)
        self._detach = detach
        self._dropped = 0
        self._threads: set[int] = set()
        # Guards the counters only, never a call. Reentrant, because a finalizer that publishes may interrupt its owner.
        self._lock = threading.RLock()

    @property
    def dropped(self) -> int:
        return self._dropped

    def detach(self) -> None:
        self.attached = False
        self._detach(self)
        self._reports.close()

    def run(self, event: Event) -> None:
        """Call the function, unless it is detached, or it is itself publishing in this thread."""
        if not self.attached:
            return
        thread = threading.get_ident()
        if thread in self._threads:
            with self._lock:
                self._dropped += 1
            return
        self._threads.add(thread)
        try:
            result = self.callback(event)
            if result is not None and inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"{self!r} returned a coroutine; make the hook an `async def` function")
            if self.failures:
                with self._lock:
                    self.failures = 0
        except (KeyboardInterrupt, SystemExit):
            raise
        # The publisher goes on whatever a hook raises. A CancelledError is the hook's own: no cancellation from outside
        # is delivered within synchronous code.
        except BaseException as error:  # noqa: BLE001 - hook dispatch is a boundary
            with self._lock:
                self.failures += 1
                failures = self.failures
            self._report(event, error, failures)
        finally:
            self._threads.discard(thread)


class _OthersEvents(deque[Event]):
    """The queue of an asynchronous hook, which takes no event that the hook's own task publishes."""

    def __init__(self, hook: AsyncHook) -> None:
        super().__init__()
        self._hook = hook

    def append(self, event: Event) -> None:
        if self._hook.is_publishing():
            self._hook.stream.dropped += 1
        else:
            super().append(event)


class AsyncHook(Hook):
    """A coroutine function, called for one event after the other by a task on the loop where it was registered.

    Attributes:
        stream: Its queue.
        ended: Done when the task has ended; other loops can wait for it.
    """

    def __init__(self, callback: Callable[[Event], Awaitable[object]], stream: Subscription) -> None:
        super().__init__(stream.pattern, callback)
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._await_callback = callback
        self.stream = stream
        stream._queue = _OthersEvents(self)
        self._loop = stream.open()
        self._task = self._loop.create_task(self._run(), name=repr(self))
        self._task.add_done_callback(self._end)

    @property
    def dropped(self) -> int:
        return self.stream.dropped

    def is_publishing(self) -> bool:
        """Whether its task takes a step now, in this thread."""
        return asyncio._get_running_loop() is self._loop and asyncio.current_task() is self._task

    @property
    def must_be_awaited(self) -> bool:
        """Whether its task still runs, on a loop that can end it, and is not the current task."""
        return not (self.ended.done() or self._loop.is_closed() or asyncio.current_task() is self._task)

    def detach(self) -> None:
        self.attached = False
        self.stream.close()

    def cancel(self) -> None:
        """Cancel the task, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            # The loop is closed: the task will never take another step.
            pass

    async def _run(self) -> None:
        handled = 0
        async for event in self.stream:
            if not self.attached:
                self.stream.dropped += 1
                return
            try:
                await self._await_callback(event)
            except asyncio.CancelledError as error:
                if self._task.cancelling():
                    raise
                self._count_failure(event, error)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 - hook dispatch is a boundary: one event must not end the task
                self._count_failure(event, error)
            else:
                self.failures = 0
            if self._task.cancelling():
                # The function swallowed the cancellation, and the end of the loop waits for this task.
                return
            handled += 1
            if handled % EVENTS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _count_failure(self, event: Event, error: BaseException) -> None:
        self.failures += 1
        self._report(event, error, self.failures)

    def _end(self, task: asyncio.Task[None]) -> None:
        was_attached, self.attached = self.attached, False
        self.stream.close()
        lost = self.stream.discard()
        if lost and was_attached:
            self._reports.write("hooks", logging.WARNING, f"{self!r} was stopped with {lost} events unhandled")
        self._reports.close()
        self.ended.set_result(None)


def end_listener(listener: Hook | Subscription) -> None:
    """End a listener with its owner, from any thread; the second time, cancel what an asynchronous hook is still at."""
    if isinstance(listener, Subscription):
        listener.close()
    elif listener.attached:
        listener.detach()
    elif isinstance(listener, AsyncHook) and not listener.ended.done():
        listener.cancel()


async def end_hooks(hooks: Iterable[AsyncHook], drain: float) -> None:
    """Wait until the tasks of closed hooks have ended; after `drain` seconds cancel them, and log those that go on."""
    waiting = [hook for hook in hooks if hook.must_be_awaited]
    try:
        await _wait_for(waiting, drain)
    finally:
        # Also when this call is itself cancelled: no task may outlive the bus.
        late = [hook for hook in waiting if not hook.ended.done()]
        for hook in late:
            hook.cancel()
    await _wait_for(late, CANCEL_GRACE)
    for hook in late:
        if not hook.ended.done():
            text = f"{hook!r} did not end within {CANCEL_GRACE:g} s of its cancellation"
            hook._reports.write("hooks", logging.ERROR, text)


async def _wait_for(hooks: Iterable[AsyncHook], timeout: float) -> None:
    ends = [asyncio.wrap_future(hook.ended) for hook in hooks]
    if ends:
        await asyncio.wait(ends, timeout=timeout)
