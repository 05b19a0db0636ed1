"""`Buffer`: a sink's bounded queue, which any thread fills and one thread, the writer, empties.

Made by `Sink`, filled by the bus. `put` never waits, so that publishers do not.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from typing import Any

from promptside.events.event import Event, build_event

__all__ = ["Buffer"]


class Buffer:
    """Events in the order of `seq`, and one record in place of those that were lost because it was full.

    A full buffer takes nothing more until its writer has emptied it: one overflow loses consecutive events, and `take`
    gives one ``sink.gap`` in their place.

    Args:
        max_queue: Events that may wait.
        source: Source of the ``sink.gap``.

    Attributes:
        max_queue: As given.
        lost: Events lost so far.
        trouble: Why its writer cannot write at present, or None; the reason in a gap that begins now.
    """

    def __init__(self, max_queue: int, source: str) -> None:
        self.lost = 0
        self.trouble: str | None = None
        self.max_queue = max_queue
        self._source = source
        self._room: float = max_queue  # 0 while a gap is open
        self._events: deque[Event] = deque()
        self._first_lost: Event | None = None
        self._last_lost: Event | None = None
        self._lost_here = 0
        self._reason = ""
        self._lock: AbstractContextManager[object] = nullcontext()
        # Not a `threading.Event`: a finalizer that publishes may interrupt `set`, which is not reentrant.
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        self._wake_at: float = math.inf  # length at which the writer is woken
        self._closed = False

    def __len__(self) -> int:
        return len(self._events)

    def guard_with(self, lock: AbstractContextManager[object]) -> None:
        """Set the lock under which `put` is called."""
        self._lock = lock

    def put(self, event: Event) -> None:
        """Take an event, or lose it. The caller holds the lock. Cost: 0.2 us."""
        events = self._events
        if len(events) < self._room:
            events.append(event)
        else:
            self._lose(event)
        if len(events) >= self._wake_at:
            self._wake_at = math.inf
            self._wake_ups.put(None)

    def close(self) -> None:
        """Wake the writer for the last time: nothing more is put. From any thread."""
        self._closed = True
        self._wake_ups.put(None)

    def wait(self, interval: float, enough: int) -> bool:
        """Wait, in the writer's thread, for the first event, and then `interval` seconds for `enough` of them.

        Returns:
            Whether the buffer was closed: then `take` gives the rest, until it gives nothing.
        """
        self._wait_until(1, None)
        self._wait_until(enough, interval)
        self._wake_at = math.inf
        return self._closed

    def take(self, number: int) -> list[Event]:
        """Remove the oldest events, in the writer's thread: at most `number`, and perhaps a ``sink.gap``."""
        events = self._events
        taken = [events.popleft() for _ in range(min(number, len(events)))]
        if self._first_lost is not None and not events:
            with self._lock:
                taken.append(self._close_gap())
        return taken

    def _wait_until(self, length: int, timeout: float | None) -> None:
        self._wake_at = length
        # Checked after `_wake_at` is set, else an event that came just before is missed. There may be a gap without an
        # event: its first one was lost while `take` was emptying the buffer.
        if len(self._events) >= length or self._closed or self._first_lost is not None:
            return
        try:
            self._wake_ups.get(timeout=timeout)
        except Empty:
            pass

    def _lose(self, event: Event) -> None:
        if self._first_lost is None:
            self._first_lost = event
            self._reason = self.trouble or f"{self.max_queue} events waited"
            self._room = 0
            self._wake_ups.put(None)
        self._last_lost = event
        self._lost_here += 1
        self.lost += 1

    def _close_gap(self) -> Event:
        first, last, count = self._first_lost, self._last_lost, self._lost_here
        assert first is not None
        assert last is not None
        self._first_lost = self._last_lost = None
        self._lost_here = 0
        self._room = self.max_queue
        data: dict[str, Any] = {
            "first_seq": first.seq,
            "last_seq": last.seq,
            "count": count,
            "reason": self._reason,
        }
        nothing = (None,) * 7
        return build_event(f"{last.id}-gap", last.seq, "sink.gap", self._source, last.time, data, *nothing)
