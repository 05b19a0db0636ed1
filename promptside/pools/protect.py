"""`protect`: the circuit breaker of the LM pools around any function, such as a retriever, a tool, a database.

Called by users, on functions that may be called from any thread and any event loop. It needs no pool and no system;
with a system's bus it tells of its breaker there.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from promptside.clock import monotonic
from promptside.events import EventBus
from promptside.pools.breaker import BreakerConfig, BreakerState, CircuitBreaker, Outcome, Permit
from promptside.pools.errors import CircuitOpen
from promptside.pools.validation import check, check_seconds

__all__ = ["Protected", "protect"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

WORDS = {"open": "breaker.opened", "half_open": "breaker.half_opened", "closed": "breaker.closed"}


class Protected(Protocol[P, R_co]):
    """A function behind a breaker; called as before.

    Attributes:
        circuit: The state of the breaker: call it to ask.
    """

    circuit: Callable[[], BreakerState]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """As the function; raises `CircuitOpen` in its place while the circuit is open."""
        ...


def any_failure(error: Exception) -> Outcome:
    """The default of `protect`: an error is a failure, except an open circuit further inside."""
    return "ignored" if isinstance(error, CircuitOpen) else "failure"


def protect(
    fn: Callable[P, R_co],
    *,
    name: str | None = None,
    breaker: BreakerConfig | None = None,
    outcome: Callable[[Exception], Outcome] = any_failure,
    timeout: float = math.inf,
    events: EventBus | None = None,
) -> Protected[P, R_co]:
    """The same function behind a circuit breaker of its own: while it fails too often, calls fail at once.

    ::

        search = protect(search, breaker=BreakerConfig(open_for=10), events=system.events)

    Name, signature and documentation stay, so `dspy.Tool` and `dspy.ReAct` take it as they take the function. Nothing
    is retried. When not to use it: for LM calls and embeddings, which have the pool's own breakers.

    Args:
        fn: A function, a method, or an object that can be called, sync or async; not a generator function.
        name: For errors and events; the function's own by default.
        breaker: When it opens and closes.
        outcome: What an exception says about the function: ``"failure"`` counts, ``"success"`` too, ``"ignored"`` says
            nothing, such as a caller's own mistake. By default every exception is a failure. A cancellation says
            nothing and is not asked about.
        timeout: Seconds that an async call may take, > 0; then it is cancelled and fails with `TimeoutError`, which
            `outcome` judges. A timeout around the call is a cancellation to it, and counts nothing.
        events: Where ``breaker.opened``, ``breaker.half_opened`` and ``breaker.closed`` are told, with the name as
            source; nowhere by default.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """
    call: Any = fn
    if not inspect.isroutine(fn) and not isinstance(fn, functools.partial) and callable(fn):
        call = type(fn).__call__
    valid = callable(fn) and not inspect.isasyncgenfunction(call) and not inspect.isgeneratorfunction(call)
    check("protect", "fn", fn, valid, "give a function that returns, or a coroutine function")
    title: Any = getattr(fn, "__name__", type(fn).__name__) if name is None else name
    check("protect", "name", title, isinstance(title, str) and title != "", "give a text that is not empty")
    check("protect", "outcome", outcome, callable(outcome), "give a function of an exception that returns an outcome")
    check_seconds("protect", "timeout", timeout)
    is_async = inspect.iscoroutinefunction(call)
    remedy = "a thread cannot be stopped: leave it out, or give an async function"
    check("protect", "timeout", timeout, is_async or timeout == math.inf, remedy)
    guard = _Guard(title, breaker or BreakerConfig(), outcome, events)
    function: Any = fn

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        with guard.attempt():
            async with asyncio.timeout(None if timeout == math.inf else timeout):
                return await function(*args, **kwargs)

    def called(*args: Any, **kwargs: Any) -> Any:
        with guard.attempt():
            return function(*args, **kwargs)

    protected: Any = functools.wraps(function)(awaited if is_async else called)
    protected.circuit = guard.state
    return cast("Protected[P, R_co]", protected)


class _Guard:
    """A breaker that any thread may use, and that tells its changes when nothing is locked."""

    def __init__(
        self, name: str, config: BreakerConfig, outcome: Callable[[Exception], Outcome], events: EventBus | None
    ) -> None:
        self.name = name
        self._outcome = outcome
        self._events = events
        self._lock = threading.Lock()
        self._changes: list[tuple[BreakerState, BreakerState]] = []
        self._breaker = CircuitBreaker(config, on_change=lambda before, after: self._changes.append((before, after)))

    def state(self) -> BreakerState:
        """The state as of the last call."""
        return self._breaker.state

    def attempt(self) -> _Attempt:
        """Leave for one call; raises `CircuitOpen`."""
        with self._lock:
            now = monotonic()
            permit = self._breaker.acquire(now)
            wait = self._breaker.retry_after(now)
            changes = self._taken()
        self._tell(changes)
        if permit is None:
            raise CircuitOpen(self.name, (self.name,), wait)
        return _Attempt(self, permit)

    def record(self, permit: Permit, error: BaseException | None) -> None:
        """What became of a call."""
        outcome: Outcome = "success"
        if error is not None:
            outcome = self._outcome(error) if isinstance(error, Exception) else "ignored"
        asked = getattr(error, "retry_after", None)
        retry_after = asked if isinstance(asked, int | float) else None
        with self._lock:
            self._breaker.record(permit, outcome, monotonic(), retry_after=retry_after)
            changes = self._taken()
        self._tell(changes)

    def _taken(self) -> list[tuple[BreakerState, BreakerState]]:
        changes, self._changes = self._changes, []
        return changes

    def _tell(self, changes: list[tuple[BreakerState, BreakerState]]) -> None:
        if self._events is not None:
            for before, after in changes:
                self._events.publish(WORDS[after], self.name, {"endpoint": self.name, "before": before})


class _Attempt:
    """Around one call: its end is recorded."""

    def __init__(self, guard: _Guard, permit: Permit) -> None:
        self._guard = guard
        self._permit = permit

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._guard.record(self._permit, error)
