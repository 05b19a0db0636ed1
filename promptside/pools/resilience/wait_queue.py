"""`Turns`: a limiter for whose slots callers wait in any thread and on any event loop.

Made by `protect`. The lines of an LM pool (`admission`) are of one event loop; here are a lock and futures.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import math
import threading
from bisect import insort
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from promptside.clock import monotonic
from promptside.errors import QueueTimeout
from promptside.pools.context.priority import current_priority
from promptside.pools.resilience.limiter import Limiter, Release, Slot

__all__ = ["Turns"]


class Turns:
    """Those who wait for a limiter's slots: callers of class ``"serving"`` before ``"batch"``, then in their order.

    Args:
        name: For errors.
        limiter: Whose slots they are; nobody else asks it.
        timeout: Seconds that each waits at most; inf for ever.
        check: Called before a caller waits and whenever it looks again; what it raises ends the wait.
    """

    def __init__(self, name: str, limiter: Limiter, timeout: float, check: Callable[[], None]) -> None:
        self._name = name
        self._limiter = limiter
        self._timeout = timeout
        self._check = check
        self._lock = threading.Lock()
        self._waiting: list[_Place] = []
        self._numbers = itertools.count()

    def take(self) -> Slot:
        """A slot; the calling thread waits for its turn.

        Raises:
            QueueTimeout: It has waited for as long as it may.
        """
        with self._place() as place:
            while (slot := self._look(place)) is None:
                concurrent.futures.wait(*place.sleep)
            return slot

    async def take_async(self) -> Slot:
        """As `take`, on any event loop, which is not blocked."""
        with self._place() as place:
            while (slot := self._look(place)) is None:
                told, seconds = place.sleep
                await asyncio.wait([asyncio.wrap_future(each) for each in told], timeout=seconds)
            return slot

    def release(self, slot: Slot, outcome: Release, *, retry_after: float | None = None) -> None:
        """Give a slot back, and let in whom there is room for now."""
        with self._lock:
            now = monotonic()
            self._limiter.release(slot, outcome, now, retry_after=retry_after)
            self._advance(now)

    def look_again(self) -> None:
        """Wake all who wait: what `check` says has changed."""
        with self._lock:
            for place in self._waiting:
                place.wake()

    @contextlib.contextmanager
    def _place(self) -> Iterator[_Place]:
        """A place in line; given up where its caller leaves without a slot: by a timeout, a cancellation, an error."""
        place = _Place(current_priority().kind == "batch", next(self._numbers), monotonic() + self._timeout)
        try:
            yield place
        except BaseException:
            with self._lock:
                now = monotonic()
                if place in self._waiting:
                    self._waiting.remove(place)
                elif (slot := place.slot()) is not None:
                    self._limiter.release(slot, "ignored", now)
                self._advance(now)
            raise

    def _look(self, place: _Place) -> Slot | None:
        """The slot of a place, if it has one; else it stands in line, and `sleep` says for what it waits."""
        self._check()
        with self._lock:
            now = monotonic()
            place.until = -math.inf  # it is awake
            if place.slot() is None and place not in self._waiting:
                insort(self._waiting, place)
            self._advance(now)
            if (slot := place.slot()) is not None:
                return slot
            if now >= place.limit:
                raise QueueTimeout(self._name, self._timeout)
            first = self._waiting[0] is place
            place.until = min(place.limit, now + self._wait(place, now) if first else math.inf)
            place.sleep = ((place.told,), None if place.until == math.inf else place.until - now)
            return None

    def _advance(self, now: float) -> None:
        """Let in whom there is room for, and wake the first of the others if it would sleep for too long."""
        while self._waiting:
            first = self._waiting[0]
            slot = self._limiter.admit(now, batch=first.batch)
            if slot is None:
                if first.until > now + self._wait(first, now):
                    first.wake()
                return
            del self._waiting[0]
            first.told.set_result(slot)

    def _wait(self, place: _Place, now: float) -> float:
        return self._limiter.wait(now, batch=place.batch)


class _Place:
    """One caller's place in line.

    Attributes:
        batch: Whether its class is ``"batch"``.
        limit: When it has waited for too long.
        told: Its slot, when there is one.
        until: When it looks again by itself; -inf while it is awake.
        sleep: What it waits for until then, and the seconds; None for ever.
    """

    sleep: tuple[tuple[Future[Slot | None]], float | None]

    def __init__(self, batch: bool, number: int, limit: float) -> None:
        self.batch = batch
        self.limit = limit
        self.told: Future[Slot | None] = Future()
        self.until = -math.inf
        self._number = number

    def __lt__(self, other: _Place) -> bool:
        return (self.batch, self._number) < (other.batch, other._number)

    def slot(self) -> Slot | None:
        """The slot that it was given."""
        return self.told.result() if self.told.done() else None

    def wake(self) -> None:
        """Let it look again, before it has a slot."""
        told, self.told = self.told, Future()
        self.until = -math.inf
        told.set_result(None)
