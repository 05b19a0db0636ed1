"""`OutageWait`: how the calls of a batch wait for an outage to end.

A pool's dispatcher makes each call of a `Batch` through it, as often as it takes: an error that is not the request's
fault is retried, not scored. On the pool's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from promptside.pools.clients.embeddings import ModelRequest
from promptside.pools.context.priority import Batch
from promptside.pools.lm.classify import classify
from promptside.pools.lm.queue import QueuedCall
from promptside.pools.lm.target import Target
from promptside.pools.resilience.retry import RetryConfig

__all__ = ["OutageWait"]

T = TypeVar("T")
Key: TypeAlias = tuple[Batch, str]

MAX_OWN_FAILURES: Final = 3
"""Failures of a call, while others are answered, after which its error is its answer. With half of all requests failing
and three attempts each time, one of 500 calls is wrongly taken for a bad request."""

STRAGGLER_AFTER: Final = 60.0
"""Seconds after which DSPy may make a call a second time: it repeats an example that takes longer than 120 s.
Half of that, because the example may have made other calls before."""

REPLAY_FOR: Final = 60.0
"""Seconds for which the answer of a call that waited is kept for a second one, and for which its batch deduplicates its
other calls too: DSPy's second thread repeats the same sequence of calls."""


@dataclass(slots=True, eq=False)
class _PendingCall:
    """A call that DSPy may make a second time.

    Attributes:
        request: The request.
        since: When it began.
        answer: Its answer or its error; cancelled with it.
        deduplicated: Whether a second call has waited for the answer.
    """

    request: ModelRequest
    since: float
    answer: asyncio.Future[Any]
    deduplicated: bool = False


class OutageWait:
    """The calls of a pool that wait for the end of an outage.

    Args:
        retry: How long a call waits at least before it is made again.
        alive: Whether the pool still has workers.
    """

    def __init__(self, retry: RetryConfig, alive: Callable[[], bool]) -> None:
        self._retry = retry
        self._alive = alive
        self._waiting: set[asyncio.Event] = set()
        self._pending: dict[Key, _PendingCall] = {}
        self._replaying: WeakKeyDictionary[Batch, float] = WeakKeyDictionary()  # until when

    def wake(self) -> None:
        """Have the waiting calls look again: a breaker has changed."""
        for event in self._waiting:
            event.set()

    async def call(
        self,
        batch: Batch,
        request: ModelRequest,
        targets: Sequence[Target],
        queued: QueuedCall,
        make: Callable[[], Awaitable[T]],
        *,
        deduplicate: bool,
    ) -> T:
        """Make a call until it is answered, or fails by its own fault.

        Args:
            batch: Whose call it is.
            request: The request.
            targets: Those that may answer it.
            queued: The call in its queues.
            make: Makes it once, with its retries.
            deduplicate: Whether a second call that DSPy makes of it gets the first one's answer.

        Raises:
            BatchAborted: The batch is over, before or by this.
            Exception: What `make` raised, if that is the request's own fault.
        """
        loop = asyncio.get_running_loop()
        batch.check()
        key = (batch, repr(request)) if deduplicate and self._pending else None
        replaying = self._replaying.get(batch, 0.0) > loop.time()
        while key is not None and (first := self._pending.get(key)) is not None:
            second = replaying or loop.time() - first.since >= STRAGGLER_AFTER
            if not second or first.request != request:  # a `repr` cuts media short
                break
            first.deduplicated = True
            self._replay(batch)
            await asyncio.wait({first.answer})
            if not first.answer.cancelled():
                same: T = first.answer.result()
                return same
        pending = _PendingCall(request, loop.time(), loop.create_future())

        def remember() -> None:
            if deduplicate:
                self._remember((batch, repr(request)), pending)

        if replaying:
            remember()
        straggles = loop.call_later(STRAGGLER_AFTER, remember)
        try:
            result = await self._retry_until_answered(batch, targets, queued, make, remember)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                pending.answer.cancel()
            else:
                pending.answer.set_exception(error)
                pending.answer.exception()  # it is raised below, so asyncio need not report it as never retrieved
            raise
        finally:
            straggles.cancel()
        pending.answer.set_result(result)
        if pending.deduplicated:
            self._replay(batch)
        return result

    def _replay(self, batch: Batch) -> None:
        self._replaying[batch] = asyncio.get_running_loop().time() + REPLAY_FOR

    async def _retry_until_answered(
        self,
        batch: Batch,
        targets: Sequence[Target],
        queued: QueuedCall,
        make: Callable[[], Awaitable[T]],
        on_wait: Callable[[], None],
    ) -> T:
        loop = asyncio.get_running_loop()
        since: float | None = None
        tries = own_failures = 0
        with contextlib.ExitStack() as outage:
            while True:
                answered, attempts = sum(target.answered for target in targets), queued.attempts
                try:
                    return await make()
                except Exception as error:
                    means = classify(error)
                    if not means.transient:
                        raise
                    lasting = not means.retry and means.breaker != "failure"  # a credential: no waiting helps
                    if lasting or not self._alive():
                        batch.cancel(error)
                        batch.check()
                    others = sum(target.answered for target in targets) > answered
                    own_failures += means.breaker == "failure" and queued.attempts > attempts and others
                    if own_failures >= MAX_OWN_FAILURES:
                        raise
                    failed = error
                tries += 1
                if since is None:
                    since = loop.time()
                    outage.enter_context(batch.waiting(loop.time))
                on_wait()
                until, least = since + batch.outage_timeout, loop.time() + self._retry.delay(tries, 0.0)
                await self._wait(batch, targets, failed, until, least)

    async def _wait(
        self, batch: Batch, targets: Sequence[Target], error: Exception, until: float, least: float
    ) -> None:
        """Wait until an endpoint may be tried, and at least until `least`; abort the batch at `until`."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the call
                loop.call_soon_threadsafe(changed.set)

        self._waiting.add(changed)
        try:
            with batch.on_cancel(wake):
                while True:
                    batch.check()
                    now = loop.time()
                    if now >= until:
                        batch.cancel(error)
                        batch.check()
                    again = max(least, now + min(target.closed_for(now) for target in targets))
                    if again <= now:
                        return
                    changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(min(until, again)):
                            await changed.wait()
        finally:
            self._waiting.discard(changed)

    def _remember(self, key: Key, pending: _PendingCall) -> None:
        if self._pending.get(key) is pending:
            return
        self._pending[key] = pending

        def drop() -> None:
            if self._pending.get(key) is pending:
                del self._pending[key]

        def forget(answer: asyncio.Future[Any]) -> None:
            if answer.cancelled():
                drop()
            else:
                answer.get_loop().call_later(REPLAY_FOR, drop)

        pending.answer.add_done_callback(forget)
