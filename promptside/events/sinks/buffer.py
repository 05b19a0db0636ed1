"""What waits for a sink's writer: a bounded queue that any thread fills and one thread empties, and its gap.

Made by `promptside.events.sinks.sink`, filled by the bus. It never waits, so that the publisher does not.
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
    """Events in the order of `seq`, and one record in place of those that found no room.

    A full buffer takes nothing more until its writer has emptied it: what is lost by one overflow is one stretch of
    events, and `take` gives one ``sink.gap`` for it, where it was in the order.

    Args:
        maxsize: Events that may wait.
        source: Of the ``sink.gap``.

    Attributes:
        lost: Events that found no room so far.
        trouble: Why its writer cannot write at present, or None: the reason of a gap that opens now.
    """

    def __init__(self, maxsize: int, source: str) -> None:
        self.lost = 0
        self.trouble: str | None = None
        self._maxsize = maxsize
        self._source = source
        self._room: float = maxsize  # 0 while a gap is open
        self._events: deque[Event] = deque()
        self._first_lost: Event | None = None
        self._last_lost: Event | None = None
        self._lost_here = 0
        self._reason = ""
        self._lock: AbstractContextManager[object] = nullcontext()
        # A bell, and not a `threading.Event`: a finalizer that publishes may interrupt `set`, which is not reentrant.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._ring_at: float = math.inf
        self._closed = False

    def __len__(self) -> int:
        return len(self._events)

    def guard_with(self, lock: AbstractContextManager[object]) -> None:
        """Tell the lock under which `put` is called."""
        self._lock = lock

    def put(self, event: Event) -> None:
        """Take an event, or lose it. The caller holds the lock. Cost: 0.2 us."""
        events = self._events
        if len(events) < self._room:
            events.append(event)
        else:
            self._lose(event)
        if len(events) >= self._ring_at:
            self._ring_at = math.inf
            self._bell.put(None)

    def close(self) -> None:
        """Tell the writer that nothing more will come, from any thread."""
        self._closed = True
        self._bell.put(None)

    def wait(self, interval: float, enough: int) -> bool:
        """Wait, in the writer's thread, for the first event, and then `interval` seconds for `enough` of them.

        Returns:
            Whether the buffer was closed: then what `take` gives until it gives nothing is all.
        """
        self._listen(1, None)
        self._listen(enough, interval)
        self._ring_at = math.inf
        return self._closed

    def take(self, number: int) -> list[Event]:
        """Take out the oldest events, in the writer's thread: at most `number`, and perhaps a ``sink.gap``."""
        events = self._events
        taken = [events.popleft() for _ in range(min(number, len(events)))]
        if self._first_lost is not None and not events:
            with self._lock:
                taken.append(self._close_gap())
        return taken

    def _listen(self, length: int, timeout: float | None) -> None:
        self._ring_at = length
        # Looked at after the bell is armed, else an event that came just before is slept over. A gap may be all there
        # is: its first event found no room while `take` was emptying the buffer.
        if len(self._events) >= length or self._closed or self._first_lost is not None:
            return
        try:
            self._bell.get(timeout=timeout)
        except Empty:
            pass

    def _lose(self, event: Event) -> None:
        if self._first_lost is None:
            self._first_lost = event
            self._reason = self.trouble or f"{self._maxsize} events waited"
            self._room = 0
            self._bell.put(None)
        self._last_lost = event
        self._lost_here += 1
        self.lost += 1

    def _close_gap(self) -> Event:
        first, last, count = self._first_lost, self._last_lost, self._lost_here
        assert first is not None
        assert last is not None
        self._first_lost = self._last_lost = None
        self._lost_here = 0
        self._room = self._maxsize
        data: dict[str, Any] = {
            "first_seq": first.seq,
            "last_seq": last.seq,
            "count": count,
            "reason": self._reason,
        }
        nothing = (None,) * 7
        return build_event(f"{last.id}-gap", last.seq, "sink.gap", self._source, last.time, data, *nothing)
