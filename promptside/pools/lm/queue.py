"""Admission: where the calls of a pool wait until they may go to an endpoint.

Called by the dispatcher before each attempt; asks the endpoint's limiter. Each endpoint has its line, in which callers
of class ``"serving"`` stand before those of class ``"batch"``, and within a class the call that came first is first:
one that was refused by the provider comes back to its old place. All lines together are bounded. On the pool's event
loop.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from promptside.pools.errors import LMPoolSaturated, LMQueueTimeout
from promptside.pools.resilience.limiter import Limiter, Release, Slot

__all__ = ["Admission", "Line", "Ticket"]

Waiter: TypeAlias = "asyncio.Future[Slot | None]"


@dataclass(slots=True)
class Ticket:
    """A call's place in every line.

    Attributes:
        model: That it asks for, for its errors.
        batch: Whether its caller's class is ``"batch"``.
        number: The lower, the earlier.
        sent: Attempts that were made of it.
        known: Whether it was let in before: a queue that is full does not refuse it when it comes back.
    """

    model: str
    batch: bool
    number: int
    sent: int = field(default=0)
    known: bool = field(default=False)


class Admission:
    """The bound that the lines of a pool share.

    Args:
        pool: Path of the pool, for its errors.
        max_queue: Calls that may wait at a time, >= 0.
        queue_timeout: Seconds that a call waits at most, each time; inf for as long as its deadline allows.
        saturated: Called when a call is refused, if none was since the queue last had room.
    """

    def __init__(self, pool: str, max_queue: int, queue_timeout: float, saturated: Callable[[], None]) -> None:
        self.pool = pool
        self.max_queue = max_queue
        self.queue_timeout = queue_timeout
        self.waiting = 0
        self._saturated = saturated
        self._told = False
        self._numbers = itertools.count()

    def ticket(self, model: str, *, batch: bool) -> Ticket:
        """For a new call."""
        return Ticket(model, batch, next(self._numbers))

    def join(self, ticket: Ticket) -> None:
        """Count one more that waits; raises `LMPoolSaturated` when there is no room."""
        if self.waiting < self.max_queue:
            self._told = False
        elif not ticket.known:
            if not self._told:
                self._told = True
                self._saturated()
            raise LMPoolSaturated(self.pool, self.max_queue, model=ticket.model)
        ticket.known = True
        self.waiting += 1

    def leave(self) -> None:
        """One fewer waits."""
        self.waiting -= 1


class Line:
    """Those who wait for one endpoint.

    Args:
        admission: What it shares with the pool's other lines.
        limiter: The endpoint's.
    """

    def __init__(self, admission: Admission, limiter: Limiter) -> None:
        self.limiter = limiter
        self._admission = admission
        self._waiting: list[tuple[bool, int, Waiter]] = []  # sorted: serving (False) before batch, then by number
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, ticket: Ticket) -> Slot | None:
        """A slot, when it is this call's turn; None when it is on_cancel by `look_again`.

        Raises:
            LMPoolSaturated: As many calls wait as may.
            LMQueueTimeout: It has waited for the queue's timeout.
        """
        loop = asyncio.get_running_loop()
        place = (ticket.batch, ticket.number)
        if not self._waiting or place < self._waiting[0][:2]:
            slot = self.limiter.admit(loop.time(), batch=ticket.batch)
            if slot is not None:
                ticket.known = True
                return slot
        self._admission.join(ticket)
        waiter: Waiter = loop.create_future()
        insort(self._waiting, (*place, waiter), key=_place)
        self.advance()
        limit = self._admission.queue_timeout
        timer = loop.call_later(limit, _expire, waiter) if limit < math.inf else None
        try:
            slot = await waiter
        except TimeoutError:
            raise LMQueueTimeout(self._admission.pool, limit, model=ticket.model) from None
        except BaseException:
            if waiter.done() and not waiter.cancelled() and (slot := waiter.result()) is not None:
                self.release(slot, "ignored")  # it was cancelled in the turn that gave it the slot
            raise
        finally:
            self._admission.leave()
            if timer is not None:
                timer.cancel()
            at = bisect_left(self._waiting, place, key=_place)
            if at < len(self._waiting) and self._waiting[at][2] is waiter:
                del self._waiting[at]
                self.advance()
        return slot

    def __len__(self) -> int:
        """Calls that wait in it."""
        return len(self._waiting)

    def release(self, slot: Slot, outcome: Release, *, retry_after: float | None = None, tokens: int = 0) -> None:
        """Give a slot back, and let in whom there is room for now; as `Limiter.release`."""
        now = asyncio.get_running_loop().time()
        self.limiter.release(slot, outcome, now, retry_after=retry_after, tokens=tokens)
        self.advance()

    def look_again(self) -> None:
        """Wake all who wait: the endpoint is not what they came for."""
        waiting, self._waiting = self._waiting, []
        for _, _, waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.advance()

    def advance(self) -> None:
        """Let in whom there is room for, in their order; and look again when time alone may have made more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, _, waiter = self._waiting[0]
            if waiter.done():  # cancelled or expired; it has not run yet
                del self._waiting[0]
                continue
            now = loop.time()
            slot = self.limiter.admit(now, batch=batch)
            if slot is None:
                wait = self.limiter.wait(now, batch=batch)
                if wait < math.inf:
                    self._timer = loop.call_later(wait, self.advance)
                return
            del self._waiting[0]
            waiter.set_result(slot)


def _place(entry: tuple[bool, int, Waiter]) -> tuple[bool, int]:
    return entry[:2]


def _expire(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
