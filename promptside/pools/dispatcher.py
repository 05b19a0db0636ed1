"""The dispatcher: the way of one LM call from a caller to an endpoint, on the pool's event loop.

Called by the engine pair; asks the workers. It decides which endpoint may be tried (route and breaker), which worker
makes the attempt (the least busy), and what an error means (`outcomes`): another endpoint, another try, or the
caller's answer. Everything it does is published: a call is one `lm.call.*`, each try one `lm.attempt.*` under it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dspy.lm15 import Request, Response
from dspy.utils.callback_context import ACTIVE_CALL_ID
from dspy.utils.exceptions import LMTimeoutError

from promptside.actors import ActorRef
from promptside.errors import ActorStopped
from promptside.events import EventBus
from promptside.pools.breaker import BreakerConfig, BreakerState, CircuitBreaker, Outcome, Permit
from promptside.pools.endpoint import Endpoint
from promptside.pools.errors import CircuitOpen, WorkerLost
from promptside.pools.outcomes import judge
from promptside.pools.stream import LMStream
from promptside.pools.worker import LMWorker

__all__ = ["Dispatcher", "EndpointStats", "RetryPolicy"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a failed attempt is made again.

    Args:
        attempts: Rounds over the route, the first included, >= 1.
        base: Seconds; the wait before round n is drawn from [0, base * 2**(n-1)) (full jitter).
        cap: Seconds that no drawn wait exceeds; a provider's Retry-After may.

    Raises:
        ValueError: A field is out of its range.
    """

    attempts: int = 3
    base: float = 0.2
    cap: float = 8.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"RetryPolicy: attempts={self.attempts!r}: give a whole number >= 1")
        if self.base < 0 or self.cap < 0:
            raise ValueError(f"RetryPolicy: base={self.base!r}, cap={self.cap!r}: give seconds >= 0")

    def delay(self, round_: int, retry_after: float | None) -> float:
        """Seconds to wait after the failed round `round_`, counted from 1."""
        drawn = random.uniform(0, min(self.cap, self.base * 2.0 ** (round_ - 1)))  # noqa: S311 - jitter, not a secret
        return max(drawn, retry_after or 0.0)


@dataclass(slots=True)
class EndpointStats:
    """What an endpoint has done so far.

    Attributes:
        attempts: Attempts begun.
        failures: Attempts that ended in an error, whosever fault.
        input_tokens: As the provider counted them.
        output_tokens: As the provider counted them.
    """

    attempts: int = 0
    failures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class _Load:
    """How busy a worker is: the least busy one is asked, among equals the one that rested longest."""

    in_flight: int = 0
    last_turn: int = 0


class _Door:
    """An endpoint with its breaker and its figures."""

    def __init__(self, index: int, endpoint: Endpoint, breaker: CircuitBreaker) -> None:
        self.index = index
        self.endpoint = endpoint
        self.breaker = breaker
        self.stats = EndpointStats()


class Dispatcher:
    """Routes calls over endpoints and workers.

    Args:
        path: Path of the pool, the source of its events.
        endpoints: In the order in which they are tried.
        workers: The pool's workers; each knows every endpoint by its index.
        events: Where everything is published.
        retry: When a failed attempt is repeated.
        breaker: For every endpoint's own breaker.
        deadline: Seconds for a whole call, retries included.
    """

    def __init__(
        self,
        path: str,
        endpoints: Sequence[Endpoint],
        workers: Sequence[ActorRef[LMWorker]],
        events: EventBus,
        *,
        retry: RetryPolicy,
        breaker: BreakerConfig,
        deadline: float,
    ) -> None:
        self._path = path
        self._events = events
        self._retry = retry
        self._deadline = deadline
        self._load = {worker: _Load() for worker in workers}
        self._numbers = itertools.count(1)
        self._turns = itertools.count(1)
        self.doors = [
            _Door(index, endpoint, CircuitBreaker(breaker, on_change=self._announce(endpoint)))
            for index, endpoint in enumerate(endpoints)
        ]

    async def complete(self, request: Request) -> Response:
        """The answer of the first endpoint that gives one.

        Raises:
            CircuitOpen: No endpoint may be tried now.
            LMError: The last attempt's error, as DSPy types it.
        """

        async def attempt(made: _Attempt) -> Response:
            response = await self._ask(
                made, lambda worker: worker.ask(LMWorker.complete, made.door.index, made.request)
            )
            made.succeeded(response)
            return response

        return await self._call(request, attempt)

    async def open_stream(self, request: Request) -> LMStream:
        """A stream whose first event is there; after it, errors are the caller's and nothing is repeated."""

        async def attempt(made: _Attempt) -> LMStream:
            stream = LMStream(
                lambda events: self._ask(
                    made, lambda worker: worker.ask(LMWorker.stream, made.door.index, made.request, events)
                ),
                made,
            )
            await stream.prefetch()
            return stream

        return await self._call(request, attempt)

    async def _call(self, request: Request, attempt: Callable[[_Attempt], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        began = loop.time()
        keys = {"call_id": f"{self._path}-{next(self._numbers)}", "parent_id": ACTIVE_CALL_ID.get()}
        self._events.publish("lm.call.started", self._path, {"model": request.model}, **keys)
        bound = asyncio.timeout(self._deadline)
        try:
            async with bound:
                result = await self._rounds(request, keys["call_id"], attempt)
        except BaseException as error:
            public: BaseException = error
            if isinstance(error, TimeoutError) and bound.expired():
                public = LMTimeoutError(f"no answer within the pool's {self._deadline:g} s", model=request.model)
            data = {"model": request.model, "error": type(public).__name__, "seconds": loop.time() - began}
            self._events.publish("lm.call.failed", self._path, data, **keys)
            if public is error:
                raise
            raise public from error
        data = {"model": request.model, "seconds": loop.time() - began}
        self._events.publish("lm.call.stopped", self._path, data, **keys)
        return result

    async def _rounds(self, request: Request, call_id: str, attempt: Callable[[_Attempt], Awaitable[T]]) -> T:
        route = self._route(request)
        numbers = itertools.count(1)
        for round_ in itertools.count(1):
            failure: Exception | None = None
            retry = False
            for door in route:
                now = asyncio.get_running_loop().time()
                permit = door.breaker.acquire(now)
                if permit is None:
                    continue
                keys = {"call_id": f"{call_id}.{next(numbers)}", "parent_id": call_id}
                made = _Attempt(self, door, permit, replace(request, model=self._model_for(door, request)), keys, now)
                try:
                    return await attempt(made)
                except BaseException as error:
                    public, verdict = judge(error, door.endpoint.model)
                    made.failed(public, verdict.outcome)
                    if not isinstance(public, Exception):
                        raise
                    failure, retry = public, verdict.retry
                    if not verdict.elsewhere:
                        break
            if failure is None:
                now = asyncio.get_running_loop().time()
                soonest = min(door.breaker.retry_after(now) for door in route)
                raise CircuitOpen(request.model, tuple(door.endpoint.name for door in route), soonest)
            if not retry or round_ >= self._retry.attempts:
                raise failure
            await asyncio.sleep(self._retry.delay(round_, getattr(failure, "retry_after", None)))
        raise AssertionError("unreachable")

    def _route(self, request: Request) -> list[_Door]:
        """The endpoints for a request: those of the model it names, or all in order for the pool's own model."""
        if request.model == self.doors[0].endpoint.model:
            return self.doors
        named = [door for door in self.doors if door.endpoint.model == request.model]
        return named or self.doors[:1]

    def _model_for(self, door: _Door, request: Request) -> str:
        """The endpoint's model; a model that no endpoint names (a fine-tuned one) is passed on as it is."""
        known = any(each.endpoint.model == request.model for each in self.doors)
        return door.endpoint.model if known else request.model

    async def _ask(self, made: _Attempt, ask: Callable[[ActorRef[LMWorker]], Awaitable[T]]) -> T:
        """Let the least busy worker that runs make the attempt."""
        lost: ActorStopped | None = None
        for worker, load in sorted(self._load.items(), key=lambda item: (item[1].in_flight, item[1].last_turn)):
            load.in_flight += 1
            load.last_turn = next(self._turns)
            try:
                made.begin(worker)
                return await ask(worker)
            except ActorStopped as error:
                lost = error
                if error.started:
                    break
            finally:
                load.in_flight -= 1
        raise WorkerLost(str(lost), model=made.request.model) from lost

    def _announce(self, endpoint: Endpoint) -> Callable[[BreakerState, BreakerState], None]:
        words = {"open": "breaker.opened", "half_open": "breaker.half_opened", "closed": "breaker.closed"}

        def announce(before: BreakerState, after: BreakerState) -> None:
            self._events.publish(words[after], self._path, {"endpoint": endpoint.name, "before": before})

        return announce


class _Attempt:
    """One try at one endpoint: its permit, its figures and its events. Ended exactly once."""

    def __init__(
        self, dispatcher: Dispatcher, door: _Door, permit: Permit, request: Request, keys: dict[str, str], began: float
    ) -> None:
        self.door = door
        self.request = request
        self._dispatcher = dispatcher
        self._permit = permit
        self._began = began
        self._worker = ""
        self._ended = False
        self._keys: dict[str, Any] = keys

    def begin(self, worker: ActorRef[LMWorker]) -> None:
        """Say that `worker` makes it."""
        self.door.stats.attempts += not self._worker
        self._worker = worker.path
        self._publish("lm.attempt.started", {})

    def succeeded(self, response: Response | None) -> None:
        """It was answered; `response` is None where only a stream was seen."""
        if self._ended:
            return
        data: dict[str, Any] = {}
        usage = getattr(response, "usage", None)
        if usage is not None:
            data = {"input_tokens": usage.input_tokens or 0, "output_tokens": usage.output_tokens or 0}
            self.door.stats.input_tokens += data["input_tokens"]
            self.door.stats.output_tokens += data["output_tokens"]
        self._end("success", None)
        self._publish("lm.attempt.stopped", data)

    def failed(self, error: BaseException, outcome: Outcome) -> None:
        """It ended in `error`."""
        if self._ended:
            return
        self.door.stats.failures += 1
        retry_after = getattr(error, "retry_after", None)
        self._end(outcome, retry_after)
        self._publish(
            "lm.attempt.failed", {"error": type(error).__name__, "message": str(error), "retry_after": retry_after}
        )

    def _end(self, outcome: Outcome, retry_after: float | None) -> None:
        self._ended = True
        self.door.breaker.record(self._permit, outcome, asyncio.get_running_loop().time(), retry_after=retry_after)

    def _publish(self, type: str, data: dict[str, Any]) -> None:
        facts = {
            "endpoint": self.door.endpoint.name,
            "model": self.request.model,
            "worker": self._worker,
            "seconds": asyncio.get_running_loop().time() - self._began,
        }
        self._dispatcher._events.publish(type, self._dispatcher._path, facts | data, **self._keys)
