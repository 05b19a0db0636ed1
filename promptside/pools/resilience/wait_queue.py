"""`WaitQueue`: where calls wait for the slots of a limiter, in any thread and on any event loop.

Used by `protect` and, for each endpoint, by the LM pools. Serving calls are before batch calls; within a class the call
that came first is first. Queues may share one `QueueBound`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from promptside.clock import monotonic
from promptside.errors import PoolSaturated, QueueTimeout
from promptside.pools.resilience.limiter import Limiter, Release, Slot

__all__ = ["QueueBound", "QueuedCall", "WaitQueue"]


@dataclass(slots=True)
class QueuedCall:
    """A call's place in every queue of a bound. It keeps its place when it comes back.

    Attributes:
        batch: Whether its priority is ``"batch"``.
        number: Lower is earlier.
        attempts: Attempts made, counted by the caller.
        admitted_before: Whether it was in a queue or had a slot before: a full queue still takes it.
    """

    batch: bool
    number: int
    attempts: int = 0
    admitted_before: bool = False


class QueueBound:
    """The bound that several queues share. They also share its lock.

    Args:
        pool: For errors.
        max_queue: Calls that may wait at a time, >= 0; inf for no bound.
        queue_timeout: Seconds that a call waits at most, each time; inf for no limit.
        on_saturated: Called when a call is refused, once until the queues have room again.
    """

    def __init__(
        self,
        pool: str,
        max_queue: float = math.inf,
        queue_timeout: float = math.inf,
        on_saturated: Callable[[], None] = lambda: None,
    ) -> None:
        self.pool = pool
        self.max_queue = max_queue
        self.queue_timeout = queue_timeout
        self.waiting = 0
        self.lock = threading.RLock()  # reentrant: a limiter's `on_change` may wake the queue
        self._on_saturated = on_saturated
        self._saturated = False
        self._numbers = itertools.count()

    def new_call(self, *, batch: bool) -> QueuedCall:
        """A place behind all earlier calls of the same priority."""
        return QueuedCall(batch, next(self._numbers))

    def join(self, call: QueuedCall) -> None:
        """Count one more waiting call; raises `PoolSaturated` when there is no room."""
        if self.waiting < self.max_queue:
            self._saturated = False
        elif not call.admitted_before:
            if not self._saturated:
                self._saturated = True
                self._on_saturated()
            raise PoolSaturated(self.pool, int(self.max_queue))
        call.admitted_before = True
        self.waiting += 1


class WaitQueue:
    """The calls that wait for one limiter.

    Args:
        limiter: Gives the slots; only this queue asks it.
        bound: Shared with other queues.
        clock: Seconds; an event loop's time where all calls are on that loop.
    """

    def __init__(self, limiter: Limiter, bound: QueueBound, clock: Callable[[], float] = monotonic) -> None:
        self.limiter = limiter
        self.bound = bound
        self.lock = bound.lock
        self.clock = clock
        self._waiting: list[_Waiter] = []  # sorted

    def __len__(self) -> int:
        """Calls that wait in it."""
        return len(self._waiting)

    async def acquire(self, call: QueuedCall) -> Slot | None:
        """A slot, in the call's turn; None when `wake_all` came first.

        Raises:
            PoolSaturated: The bound is reached.
            QueueTimeout: The call has waited for the queue's timeout.
        """
        if (slot := self._admit_at_once(call)) is not None:
            return slot
        with _LoopWaiter(call, self) as waiter:
            if not await waiter.settled(self.bound.queue_timeout):
                raise QueueTimeout(self.bound.pool, self.bound.queue_timeout)
            return waiter.slot

    def acquire_blocking(self, call: QueuedCall) -> Slot | None:
        """As `acquire`; blocks the calling thread."""
        if (slot := self._admit_at_once(call)) is not None:
            return slot
        with _ThreadWaiter(call, self) as waiter:
            if not waiter.settled(self.bound.queue_timeout):
                raise QueueTimeout(self.bound.pool, self.bound.queue_timeout)
            return waiter.slot

    def release(
        self,
        slot: Slot,
        outcome: Release,
        *,
        retry_after: float | None = None,
        tokens: int = 0,
        allowed: float = math.inf,
        reset: float = math.inf,
    ) -> None:
        """Give a slot back, as `Limiter.release`, and admit those for whom there is room now."""
        with self.lock:
            self.limiter.release(
                slot, outcome, self.clock(), retry_after=retry_after, tokens=tokens, allowed=allowed, reset=reset
            )
            self.admit_waiting()

    def wake_all(self) -> None:
        """End every wait without a slot: what the calls wait for has changed."""
        with self.lock:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.settle(None)

    def admit_waiting(self) -> None:
        """Admit those for whom there is room, in order; if only time makes room, look again then. Lock held."""
        while self._waiting:
            first = self._waiting[0]
            if not first.has_left():
                now, batch = self.clock(), first.place[0]
                slot = self.limiter.admit(now, batch=batch)
                if slot is None:
                    first.look_again(now, self.limiter.wait(now, batch=batch))
                    return
                first.settle(slot)
            del self._waiting[0]

    def add(self, waiter: _Waiter) -> None:
        """Put a waiter into the queue, with the lock held; raises `PoolSaturated`."""
        self.bound.join(waiter.call)
        insort(self._waiting, waiter, key=_place)
        self.admit_waiting()

    def remove(self, waiter: _Waiter) -> None:
        """Take a waiter out whose wait has ended, with the lock held."""
        self.bound.waiting -= 1
        at = bisect_left(self._waiting, waiter.place, key=_place)
        if at < len(self._waiting) and self._waiting[at] is waiter:
            del self._waiting[at]
            self.admit_waiting()

    def _admit_at_once(self, call: QueuedCall) -> Slot | None:
        with self.lock:
            if self._waiting and self._waiting[0].place < (call.batch, call.number):
                return None
            slot = self.limiter.admit(self.clock(), batch=call.batch)
            call.admitted_before |= slot is not None
            return slot


class _Waiter(ABC):
    """One waiting call; in its queue while it is entered.

    Attributes:
        call: The call.
        place: Sorts the queue.
        slot: The slot that it was given.
    """

    def __init__(self, call: QueuedCall, queue: WaitQueue) -> None:
        self.call = call
        self.place = (call.batch, call.number)
        self.slot: Slot | None = None
        self._queue = queue
        self._look_at = math.inf

    def __enter__(self) -> Self:
        with self._queue.lock:
            self._queue.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        with self._queue.lock:
            self._queue.remove(self)
            if kind is not None and self.slot is not None:  # it was given as the call left
                self._queue.release(self.slot, "unsent")

    def settle(self, slot: Slot | None) -> None:
        """End its wait, with the lock held."""
        self.slot = slot
        self._wake()

    def has_left(self) -> bool:
        """Whether it was cancelled or has expired, and has not run since; or never will."""
        return False

    def look_again(self, now: float, wait: float) -> None:
        """Have `admit_waiting` called in `wait` seconds, if it would not be before."""
        if now + wait < self._look_at:
            self._look_at = now + wait
            self._arm(wait)

    def _look(self) -> None:
        with self._queue.lock:
            self._look_at = math.inf
            self._queue.admit_waiting()

    @abstractmethod
    def _wake(self) -> None: ...

    @abstractmethod
    def _arm(self, wait: float) -> None: ...


class _ThreadWaiter(_Waiter):
    """A blocked thread."""

    def __init__(self, call: QueuedCall, queue: WaitQueue) -> None:
        super().__init__(call, queue)
        self._done = False
        self._changed = threading.Condition(queue.lock)

    def settled(self, timeout: float) -> bool:
        """Whether it is settled within `timeout` seconds."""
        with self._changed:
            limit = self._queue.clock() + timeout
            while not self._done and (now := self._queue.clock()) < limit:
                self._changed.wait(min(limit - now, self._look_at - now, threading.TIMEOUT_MAX))
                self._look()
            return self._done

    def _wake(self) -> None:
        self._done = True
        self._changed.notify()

    def _arm(self, wait: float) -> None:
        self._changed.notify()


class _LoopWaiter(_Waiter):
    """A task of the event loop that runs here."""

    def __init__(self, call: QueuedCall, queue: WaitQueue) -> None:
        super().__init__(call, queue)
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] = self._loop.create_future()
        self._expiry: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def settled(self, timeout: float) -> asyncio.Future[bool]:
        """Whether it is settled within `timeout` seconds."""
        if timeout < math.inf:
            self._expiry = self._loop.call_later(timeout, self._finish, False)
        return self._future

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        for timer in (self._expiry, self._timer):
            if timer is not None:
                timer.cancel()

    def has_left(self) -> bool:
        return self._future.done() or self._loop.is_closed()

    def _finish(self, settled: bool) -> None:
        if not self._future.done():
            self._future.set_result(settled)

    def _wake(self) -> None:
        self._on_loop(self._finish, True)

    def _arm(self, wait: float) -> None:
        self._on_loop(self._set_timer, wait)

    def _set_timer(self, wait: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._future.done():
            self._timer = self._loop.call_later(wait, self._look)

    def _on_loop(self, callback: Callable[[Any], None], argument: Any) -> None:
        if asyncio._get_running_loop() is self._loop:
            callback(argument)
        else:
            with suppress(RuntimeError):  # the loop is closed: the task gives the slot back when it is collected
                self._loop.call_soon_threadsafe(callback, argument)


def _place(waiter: _Waiter) -> tuple[bool, int]:
    return waiter.place
