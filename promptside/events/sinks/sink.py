"""`Sink`: base of all sinks, a buffer that the bus fills and a thread that empties it in batches.

A subclass says how a batch is written. To the bus, a sink is a `Listener`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Final, Self, TypedDict

from promptside import clock
from promptside.backoff import Backoff
from promptside.checks import check, check_count, check_seconds
from promptside.events.bus import EventBus
from promptside.events.event import Event
from promptside.events.patterns import compile_pattern
from promptside.events.reports import Reports
from promptside.events.sinks.buffer import Buffer
from promptside.texts import repr_of
from promptside.threads import start_thread
from promptside.waiting import finish

__all__ = ["BufferOptions", "Sink", "SinkOptions"]

RETRY: Final = Backoff(initial=0.05, maximum=1.0, jitter=0.0)
"""The wait from an attempt to write that failed to the next one."""

STUCK_GRACE: Final = 2.0
"""Seconds beyond `flush_timeout` after which a writer that has not ended counts as stuck in a write."""

_logger = logging.getLogger("promptside.events")


class BufferOptions(TypedDict, total=False):
    """Options of every sink; see `Sink`."""

    max_queue: int
    interval: float
    flush_timeout: float


class SinkOptions(BufferOptions, total=False):
    """Options of the sinks that write any event; see `Sink`."""

    pattern: str
    batch_size: int


class Sink(ABC):
    """Writes the events of a bus somewhere, in their order, from a thread of its own.

    ::

        sink = await SQLiteSink("run.db").start(system.events)  # ends with the system, after its last event
        ...
        await sink.stop()  # or earlier, when nothing more is to be written

    **Publishers** never wait for a sink: an event costs them 0.2 us more. **Losses**: nothing is lost while the waiting
    events fit into the buffer, however long writing fails. When the buffer is full, events are lost until it has been
    emptied; one ``sink.gap`` record then stands in their place, with their ``first_seq``, ``last_seq`` and ``count``.
    `lost` counts them. **Errors** of writing are logged once, when writing begins to fail, and the batch is tried again
    until it succeeds. A killed process loses the events of the last `interval` and of one write; at an ordinary exit of
    the interpreter they are written, also where the system was never left. A fork of the process writes nothing.

    Args:
        name: Its `source` is ``sink/NAME``.
        pattern: Which events; as for `EventBus.subscribe`.
        max_queue: Events that may wait, at least 1. One takes 0.5 to 1 KiB.
        interval: Seconds that an event may wait for others to be written with it.
        batch_size: Events written at a time, at least 1; so many do not wait for the interval.
        flush_timeout: Seconds that writing may fail at the end; the events left after that are lost, and logged.

    Attributes:
        source: Source of its ``sink.gap`` records.
        pattern: As given.
        written: Events that were written, ``sink.gap`` records included.
        error: The error of the last attempt to write; None while writing works.
        ended: Done when the writer has ended and everything is closed.

    Raises:
        TypeError: `pattern` is not a string.
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        name: str,
        *,
        pattern: str = "*",
        max_queue: int = 100_000,
        interval: float = 0.1,
        batch_size: int = 10_000,
        flush_timeout: float = 5.0,
    ) -> None:
        owner = type(self).__name__
        for field, number in (("max_queue", max_queue), ("batch_size", batch_size)):
            check_count(owner, field, number)
        for field, seconds in (("interval", interval), ("flush_timeout", flush_timeout)):
            check_seconds(owner, field, seconds, zero=True, finite=True)
        self.source = f"sink/{name}"
        self.pattern = pattern
        self.written = 0
        self.error: BaseException | None = None
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # from here on no waiter can cancel it
        self._matches = compile_pattern(pattern)
        self._buffer = Buffer(max_queue, self.source)
        self._interval = interval
        self._batch_size = batch_size
        self._flush_timeout = flush_timeout
        self._bus: EventBus | None = None
        self._reports = Reports(_logger)
        self._thread: threading.Thread | None = None
        self._process = 0
        self._ending = threading.Event()
        self._deadline = math.inf
        self._is_open = False
        self._given_up = 0
        self.put = self._buffer.put  # the bus calls the buffer itself: one call less per event

    @property
    def lost(self) -> int:
        """Events lost so far."""
        return self._buffer.lost + self._given_up

    async def start(self, events: EventBus) -> Self:
        """Write the events of a bus from now on, until the bus closes or `stop` is called.

        Args:
            events: The bus, mostly `system.events`.

        Returns:
            The sink, once its file or stream is open.

        Raises:
            RuntimeError: It was started before, the bus is closed, or there can be no more threads.
            OSError: The file or stream cannot be opened; a subclass may raise another error.
            ValueError: `events` is no bus.
        """
        valid = isinstance(events, EventBus)
        check(
            f"{type(self).__name__}.start", "events", events, valid, "give the bus of a system, such as system.events"
        )
        if self._bus is not None:
            raise RuntimeError(f"{self!r} was started before; make a new one")
        self._buffer.guard_with(events.attach(self))
        self._bus = events
        opened: Future[None] = Future()
        opened.set_running_or_notify_cancel()
        self._process = os.getpid()
        try:
            self._thread = start_thread(partial(self._run, opened), f"promptside-{self.source}")
        except RuntimeError:  # there are too many threads
            self.end()
            self.ended.set_result(None)
            raise
        atexit.register(self._end_at_exit)
        try:
            await asyncio.wrap_future(opened)
        except BaseException:
            await finish(self.stop())
            raise
        return self

    def end(self) -> None:
        """Take no more events, and let the writer write what it has and end; from any thread, without waiting."""
        if self._bus is not None and self._process == os.getpid() and not self._ending.is_set():
            atexit.unregister(self._end_at_exit)
            self._bus.detach(self)
            self._deadline = clock.monotonic() + self._flush_timeout
            self._ending.set()
            self._buffer.close()

    async def stop(self) -> None:
        """End, and return when everything is written and closed; at once if it has ended or was never started.

        Cancelling it cancels the waiting only. It takes at most `flush_timeout` and two seconds: a writer that is then
        stuck in a write, as to a full pipe without a reader, is abandoned and logged.
        """
        self.end()
        if self._thread is not None and self._process == os.getpid():
            await asyncio.wait([asyncio.wrap_future(self.ended)], timeout=self._seconds_left())
            self._join()

    def _end_at_exit(self) -> None:
        """At the interpreter's exit: the sink of a system that was never left writes what it has."""
        if self._process == os.getpid():  # a fork has a copy of what is not written yet, and no thread
            self.end()
            wait((self.ended,), self._seconds_left())
            self._join()

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline + STUCK_GRACE - clock.monotonic())

    def _join(self) -> None:
        if self.ended.done() and self._thread is not None:
            self._thread.join()  # it has nothing left to do
        else:
            text = f"{self!r} is stuck in a write and abandoned with {len(self._buffer)} events"
            self._reports.write("sinks that are stuck", logging.ERROR, text)

    def matches(self, type: str, /) -> bool:
        """Whether it writes events of this type."""
        return self._matches(type)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source} on {self.pattern!r}>"

    # -- how to write, in the writer's thread ----------------------------------------------------------------------

    @abstractmethod
    def _open(self) -> None:
        """Open the file or stream. Called again before the next attempt after an error."""

    @abstractmethod
    def _write(self, events: Sequence[Event]) -> None:
        """Write a batch so that it survives the death of the process: all of it, or raise and write none."""

    @abstractmethod
    def _close(self) -> None:
        """Close the file or stream, if it is open."""

    # -- the writer's thread -----------------------------------------------------------------------------------------

    def _run(self, opened: Future[None]) -> None:
        try:
            self._open()
            self._is_open = True
        except BaseException as error:  # noqa: BLE001 - raised by `start`
            self._shut()
            opened.set_exception(error)
        else:
            opened.set_result(None)
            self._write_all()
            self._shut()
            self._reports.close()
        self.ended.set_result(None)

    def _write_all(self) -> None:
        closed = False
        while not closed:
            closed = self._buffer.wait(self._interval, self._batch_size)
            while events := self._buffer.take(self._batch_size):
                self._deliver(events)
                if len(self._buffer) < self._batch_size and not closed:
                    break
        if self._given_up:
            text = f"{self!r} ends without its last {self._given_up} events: {repr_of(self.error)}"
            self._reports.write("events lost at the end", logging.ERROR, text)

    def _deliver(self, events: list[Event]) -> None:
        """Try to write a batch until it succeeds, or until the deadline of the end."""
        failures = 0
        while not self._attempt(events):
            failures += 1
            left = self._deadline - clock.monotonic()
            if left <= 0:
                self._given_up += sum(event.type != "sink.gap" for event in events)
                return
            delay = RETRY.delay(failures, 0.0)
            if self._ending.is_set():
                time.sleep(min(delay, left))
            else:
                self._ending.wait(delay)
        self.written += len(events)

    def _attempt(self, events: list[Event]) -> bool:
        if self._given_up:
            return False  # events written after a loss at the end would hide it
        try:
            if not self._is_open:
                self._open()
                self._is_open = True
            self._write(events)
        except BaseException as error:  # noqa: BLE001 - after any error the events are kept and tried again
            self._shut()
            trouble = repr_of(error)
            if self.error is None:
                text = f"{self!r} cannot write and keeps its events in memory until it can: {trouble}"
                self._reports.write("failures to write", logging.ERROR, text)
            self.error = error
            self._buffer.trouble = trouble
            return False
        if self.error is not None:
            text = f"{self!r} writes again; {self.lost} events were lost so far"
            self._reports.write("ends of a failure to write", logging.WARNING, text)
            self.error = None
            self._buffer.trouble = None
        return True

    def _shut(self) -> None:
        self._is_open = False
        try:
            self._close()
        except BaseException as error:  # noqa: BLE001 - the batches are safe, and the error of writing was logged
            self._reports.write("failures to close", logging.DEBUG, f"{self!r}: closing raised {repr_of(error)}")
