"""`protect`: a circuit breaker and a limiter around any function, such as a retriever, a tool or a database query.

Called by users and by `programs.tools`. Needs no pool and no system.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar, cast, get_args

from promptside.callables import function_of, is_async, name_of
from promptside.checks import check, check_count, check_seconds, check_text, is_number, wait_asked_for
from promptside.clock import monotonic
from promptside.errors import CircuitOpen
from promptside.events import EventBus
from promptside.events.catalogue import BREAKER_EVENTS
from promptside.pools.context.priority import current_priority
from promptside.pools.resilience.breaker import BreakerConfig, BreakerState, CircuitBreaker, Outcome, Permit
from promptside.pools.resilience.limiter import Limiter, LimiterChange, LimiterConfig, Slot
from promptside.pools.resilience.wait_queue import QueueBound, QueuedCall, WaitQueue
from promptside.texts import is_word

__all__ = ["Protected", "Verdict", "protect"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

Verdict = Outcome | Literal["limited"]
"""The meaning of an exception: as for the breaker, or ``"limited"`` for a refusal as with HTTP status 429."""

VERDICTS: Final = (*get_args(Outcome), "limited")


class Protected(Protocol[P, R_co]):
    """A function behind a breaker; called as before.

    Attributes:
        circuit: Returns the state of the breaker.
    """

    circuit: Callable[[], BreakerState]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function; raises `CircuitOpen` or `QueueTimeout` instead."""
        ...


def any_failure(error: Exception) -> Verdict:
    """The default of `protect`: every error is a failure, except `CircuitOpen` and HTTP status 429."""
    if isinstance(error, CircuitOpen):
        return "ignored"
    response = getattr(error, "response", None)
    statuses = (getattr(each, name, None) for each in (error, response) for name in ("status", "status_code"))
    return "limited" if 429 in statuses else "failure"


def protect(
    fn: Callable[P, R_co],
    *,
    name: str | None = None,
    breaker: BreakerConfig | None = None,
    max_concurrency: int | None = None,
    limiter: LimiterConfig | None = None,
    rpm: float | None = None,
    queue_timeout: float = math.inf,
    outcome: Callable[[Exception], Verdict] = any_failure,
    timeout: float = math.inf,
    events: EventBus | None = None,
) -> Protected[P, R_co]:
    """Put a circuit breaker around a function: while it fails too often, calls fail at once.

    ::

        search = protect(search, breaker=BreakerConfig(open_for=10), max_concurrency=8, events=system.events)

    With `max_concurrency` it also has a limiter: calls wait for a slot, those of `priority("batch")` after the others
    and in a share of the slots. A refusal reduces the slots, and holds all calls back for as long as it asks.

    Name, signature and documentation stay, so `dspy.Tool` and `dspy.ReAct` take the result as the function. Nothing is
    retried. Do not use it for LM calls and embeddings, which have the pool's own; nor, with `max_concurrency`, for a
    function that calls itself.

    Args:
        fn: A function, a method, or an object that can be called, sync or async; not a generator function.
        name: For errors and events; the function's own by default.
        breaker: When the circuit opens and closes.
        max_concurrency: Largest number of calls under way, >= 1, over all threads and event loops; None for no limiter.
        limiter: How that number follows refusals and answers.
        rpm: Calls a minute that the service allows, > 0; None for unknown.
        queue_timeout: Seconds that a call waits for a slot, > 0, before it raises `QueueTimeout`.
        outcome: The meaning of an exception: ``"failure"`` and ``"success"`` count, ``"ignored"`` does not, such as a
            caller's own mistake, and ``"limited"`` goes to the limiter, or without one is a failure. By default an
            exception with `status` or `status_code` 429, its own or its `response`'s, is ``"limited"``, and every other
            a failure. A `retry_after` in seconds is obeyed. Not called for a cancellation.
        timeout: Seconds that an async call may take, > 0; then it is cancelled and raises `TimeoutError`, which goes to
            `outcome`. A timeout around the call is a cancellation.
        events: The bus on which ``breaker.opened``, ``breaker.half_opened``, ``breaker.closed`` and
            ``limiter.changed`` are published, with the name as source; none by default.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """
    call = function_of(fn)
    valid = callable(fn) and not inspect.isasyncgenfunction(call) and not inspect.isgeneratorfunction(call)
    check("protect", "fn", fn, valid, "give a function that returns, or a coroutine function")
    title = name_of(fn) if name is None else name
    check_text("protect", "name", title)
    check("protect", "outcome", outcome, callable(outcome), "give a function of an exception that returns an outcome")
    check_seconds("protect", "timeout", timeout)
    awaits = is_async(fn)
    remedy = "a thread cannot be stopped: leave it out, or give an async function"
    check("protect", "timeout", timeout, awaits or timeout == math.inf, remedy)
    valid = max_concurrency is not None or (limiter is None and rpm is None and queue_timeout == math.inf)
    check("protect", "max_concurrency", max_concurrency, valid, "give a number of calls: the limiter needs it")
    valid = rpm is None or (is_number(rpm) and 0 < rpm < math.inf)
    check("protect", "rpm", rpm, valid, "give a number > 0 a minute, or None for unknown")
    check_seconds("protect", "queue_timeout", queue_timeout)
    for field, value, kind in (("breaker", breaker, BreakerConfig), ("limiter", limiter, LimiterConfig)):
        check("protect", field, value, value is None or isinstance(value, kind), f"give {kind.__name__}(...), or None")
    valid = events is None or isinstance(events, EventBus)
    check("protect", "events", events, valid, "give the bus of a system, such as system.events, or None")
    guard = _Guard(title, breaker or BreakerConfig(), outcome, events)
    if max_concurrency is not None:
        check_count("protect", "max_concurrency", max_concurrency)
        guard.limit(max_concurrency, limiter, rpm, queue_timeout)
    function: Any = fn

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        async with guard.attempt_async(), asyncio.timeout(None if timeout == math.inf else timeout):
            return await function(*args, **kwargs)

    def called(*args: Any, **kwargs: Any) -> Any:
        with guard.attempt():
            return function(*args, **kwargs)

    protected: Any = functools.wraps(function)(awaited if awaits else called)
    protected.circuit = guard.state
    return cast("Protected[P, R_co]", protected)


class _Guard:
    """A breaker and a limiter for any thread. Their changes are published when no lock is held."""

    def __init__(
        self, name: str, config: BreakerConfig, outcome: Callable[[Exception], Verdict], events: EventBus | None
    ) -> None:
        self.name = name
        self._outcome = outcome
        self._events = events
        self._lock = threading.RLock()  # reentrant: a finalizer or a signal handler may come here
        self._changes: deque[tuple[str, dict[str, Any]]] = deque()
        self._breaker = CircuitBreaker(config, on_change=self._circuit_changed)
        self._queue: WaitQueue | None = None

    def limit(self, most: int, config: LimiterConfig | None, rpm: float | None, queue_timeout: float) -> None:
        """Let at most so many calls be under way from now on."""
        limiter = Limiter(most, config, rpm=rpm, on_change=self._limit_changed)
        self._queue = WaitQueue(limiter, QueueBound(self.name, queue_timeout=queue_timeout))

    def state(self) -> BreakerState:
        """The state as of the last call."""
        return self._breaker.state

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one call, in its turn; raises `CircuitOpen` or `QueueTimeout`."""
        slot = None
        if self._queue is not None:
            queued = self._queued(self._queue)
            while (slot := self._queue.acquire_blocking(queued)) is None:
                self._check()
        with self._recorded(slot):
            yield

    @asynccontextmanager
    async def attempt_async(self) -> AsyncIterator[None]:
        """As `attempt`, without blocking."""
        slot = None
        if self._queue is not None:
            queued = self._queued(self._queue)
            while (slot := await self._queue.acquire(queued)) is None:
                self._check()
        with self._recorded(slot):
            yield

    def _queued(self, queue: WaitQueue) -> QueuedCall:
        """A place in the queue, unless the circuit is open."""
        self._check()
        return queue.bound.new_call(batch=current_priority().kind == "batch")

    @contextmanager
    def _recorded(self, slot: Slot | None) -> Iterator[None]:
        """Around the call itself: records its outcome and gives the slot back."""
        verdict: Verdict = "ignored"
        retry_after: float | None = None
        permit: Permit | None = None
        try:
            permit = self._permit()
            yield
            verdict = "success"
        except Exception as error:
            if permit is not None:
                verdict = self._judge(error)
                retry_after = wait_asked_for(getattr(error, "retry_after", None))
            raise
        finally:
            if permit is not None:
                self._record(permit, verdict, retry_after)
            if self._queue is not None and slot is not None:
                released = "ignored" if verdict == "failure" else verdict
                self._queue.release(slot, "unsent" if permit is None else released, retry_after=retry_after)
            self._publish()

    def _judge(self, error: Exception) -> Verdict:
        verdict = self._outcome(error)
        check(
            "protect", "outcome", verdict, is_word(verdict, *VERDICTS), f"return one of {', '.join(VERDICTS)} from it"
        )
        return verdict

    def _check(self) -> None:
        """Raise `CircuitOpen` if no call would be let through now."""
        with self._lock:
            wait = self._breaker.retry_after(monotonic())
        if wait > 0:
            raise CircuitOpen((self.name,), wait)

    def _permit(self) -> Permit:
        with self._lock:
            now = monotonic()
            permit = self._breaker.acquire(now)
            wait = self._breaker.retry_after(now)
        self._publish()
        if permit is None:
            raise CircuitOpen((self.name,), wait)
        return permit

    def _record(self, permit: Permit, verdict: Verdict, retry_after: float | None) -> None:
        outcome: Outcome = "failure"
        if verdict != "limited":
            outcome = verdict
        elif self._queue is not None:
            outcome = "ignored"
        with self._lock:
            self._breaker.record(permit, outcome, monotonic(), retry_after=retry_after)
            opened = self._breaker.state == "open"
        if opened and self._queue is not None:
            self._queue.wake_all()

    def _circuit_changed(self, before: BreakerState, after: BreakerState) -> None:
        self._changes.append((BREAKER_EVENTS[after], {"endpoint": self.name, "before": before}))

    def _limit_changed(self, change: LimiterChange) -> None:
        self._changes.append(("limiter.changed", {"endpoint": self.name, **asdict(change)}))

    def _publish(self) -> None:
        with suppress(IndexError):  # another thread may publish at the same time
            while self._changes:
                type_, attributes = self._changes.popleft()
                if self._events is not None:
                    self._events.publish(type_, self.name, attributes)
