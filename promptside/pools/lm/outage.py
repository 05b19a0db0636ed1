"""Parking: how the calls of a run wait for an outage to end.

A pool's dispatcher makes the calls of a `Batch` through it, each as often as it takes: what says nothing of the request
itself is no answer for an evaluation. On the pool's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from dspy.lm15 import Request

from promptside.pools.context.priority import Batch
from promptside.pools.lm.attempt import Door
from promptside.pools.lm.classify import judge
from promptside.pools.lm.queue import QueuedCall
from promptside.pools.resilience.retry import RetryConfig

__all__ = ["Parking"]

T = TypeVar("T")
Key: TypeAlias = tuple[Batch, str]

OWN: Final = 3
"""Times that a call fails while others are answered, before that is an answer: with half of all requests failing, and
three attempts each time, one of 500 calls is taken for a bad request."""

STRAGGLER: Final = 60.0
"""Seconds after which a call that is parked may be made a second time by DSPy, which repeats an example that takes
longer than 120 s; half of that, because the example may have made other calls before."""

KEPT: Final = 60.0
"""Seconds for which the answer of a parked call is kept for such a second call, and for which a run that made one has
its other calls treated alike: who gets the same answer asks the same next, in both of DSPy's threads."""


@dataclass(slots=True, eq=False)
class _Twin:
    """A call that may be made a second time.

    Attributes:
        request: What is asked.
        since: When it began.
        answer: What it comes to; cancelled with it.
        shared: Whether a second call waits for that.
    """

    request: Request
    since: float
    answer: asyncio.Future[Any]
    shared: bool = field(default=False)


class Parking:
    """The parked calls of a pool.

    Args:
        retry: How long a call waits at least before it is made again.
        alive: Whether the pool still has workers.
    """

    def __init__(self, retry: RetryConfig, alive: Callable[[], bool]) -> None:
        self._retry = retry
        self._alive = alive
        self._parked: set[asyncio.Event] = set()
        self._twins: dict[Key, _Twin] = {}
        self._repeating: WeakKeyDictionary[Batch, float] = WeakKeyDictionary()  # until when

    def wake(self) -> None:
        """Let all who are parked look again: a circuit has changed."""
        for event in self._parked:
            event.set()

    async def through(
        self,
        run: Batch,
        request: Request,
        doors: Sequence[Door],
        queued: QueuedCall,
        make: Callable[[], Awaitable[T]],
        *,
        share: bool,
    ) -> T:
        """Make a call until it is answered, or fails by its own fault.

        Args:
            run: Whose call it is.
            request: What is asked.
            doors: Those that may answer it.
            queued: The call in its queues.
            make: Makes it once, with its retries.
            share: Whether a call that DSPy makes a second time gets the first one's answer.

        Raises:
            BatchAborted: The run is over, before or by this.
            Exception: What `make` raised, if that is the request's own fault.
        """
        loop = asyncio.get_running_loop()
        run.check()
        key = (run, repr(request)) if share and self._twins else None
        repeats = self._repeating.get(run, 0.0) > loop.time()
        while key is not None and (first := self._twins.get(key)) is not None:
            second = repeats or loop.time() - first.since >= STRAGGLER
            if not second or first.request != request:  # media are cut short in a `repr`
                break
            first.shared = True
            self._repeat(run)
            await asyncio.wait({first.answer})
            if not first.answer.cancelled():
                same: T = first.answer.result()
                return same
        twin = _Twin(request, loop.time(), loop.create_future())
        if repeats:
            self._remember(run, request, twin, share=share)
        try:
            result = await self._often(
                run, doors, queued, make, lambda: self._remember(run, request, twin, share=share)
            )
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                twin.answer.cancel()
            else:
                twin.answer.set_exception(error)
                twin.answer.exception()  # it is raised here: that no twin hears of it is no oversight
            raise
        twin.answer.set_result(result)
        if twin.shared:
            self._repeat(run)
        return result

    def _repeat(self, run: Batch) -> None:
        self._repeating[run] = asyncio.get_running_loop().time() + KEPT

    async def _often(
        self,
        run: Batch,
        doors: Sequence[Door],
        queued: QueuedCall,
        make: Callable[[], Awaitable[T]],
        parked: Callable[[], None],
    ) -> T:
        loop = asyncio.get_running_loop()
        since: float | None = None
        tries = own = 0
        while True:
            answered, sent = sum(door.answered for door in doors), queued.attempts
            try:
                return await make()
            except Exception as error:
                verdict = judge(error)
                if not verdict.outage:
                    raise
                if not verdict.retry or not self._alive():  # a credential, or the end of the pool: no waiting helps
                    run.cancel(error)
                    run.check()
                others = sum(door.answered for door in doors) > answered
                own += verdict.outcome == "failure" and queued.attempts > sent and others
                if own >= OWN:
                    raise
                failed = error
            tries += 1
            since = loop.time() if since is None else since
            parked()
            await self._park(
                run, doors, failed, since + run.outage_timeout, loop.time() + self._retry.delay(tries, 0.0)
            )

    async def _park(self, run: Batch, doors: Sequence[Door], error: Exception, until: float, least: float) -> None:
        """Wait until an endpoint may be tried, and at least until `least`; abort the run at `until`."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def waken() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the call
                loop.call_soon_threadsafe(changed.set)

        self._parked.add(changed)
        try:
            with run.on_cancel(waken):
                while True:
                    run.check()
                    now = loop.time()
                    if now >= until:
                        run.cancel(error)
                        run.check()
                    again = max(least, now + min(door.closed_for(now) for door in doors))
                    if again <= now:
                        return
                    changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(min(until, again)):
                            await changed.wait()
        finally:
            self._parked.discard(changed)

    def _remember(self, run: Batch, request: Request, twin: _Twin, *, share: bool) -> None:
        key = (run, repr(request))
        if not share or self._twins.get(key) is twin:
            return
        self._twins[key] = twin

        def forget(answer: asyncio.Future[Any]) -> None:
            def drop() -> None:
                if self._twins.get(key) is twin:
                    del self._twins[key]

            if answer.cancelled():
                drop()
            else:
                answer.get_loop().call_later(KEPT, drop)

        twin.answer.add_done_callback(forget)
