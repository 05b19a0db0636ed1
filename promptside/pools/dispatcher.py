"""The dispatcher: the way of one LM call from a caller to an endpoint, on the pool's event loop.

Called by the engine pair; asks the workers. It decides which endpoint may be tried (route and breaker), which worker
makes the attempt (the least busy), and what an error means (`outcomes`): another endpoint, another try, or the
caller's answer. Everything it does is published: a call is one `lm.call.*`, each try one `lm.attempt.*` under it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dspy.clients.errors import wrap_error
from dspy.lm15 import Request, Response, Usage
from dspy.utils.callback_context import ACTIVE_CALL_ID
from dspy.utils.exceptions import LMTimeoutError

from promptside.actors import ActorRef, State
from promptside.errors import ActorStopped
from promptside.events import EventBus
from promptside.events.span import Span
from promptside.pools.breaker import BreakerConfig, BreakerState, CircuitBreaker, Outcome, Permit
from promptside.pools.call_tree import enclosing
from promptside.pools.endpoint import Endpoint
from promptside.pools.errors import CircuitOpen, WorkerLost
from promptside.pools.outcomes import judge
from promptside.pools.pricing import Prices
from promptside.pools.stream import LMStream
from promptside.pools.validation import check_count, check_seconds
from promptside.pools.worker import LMWorker

__all__ = ["Dispatcher", "EndpointStats", "RetryPolicy"]

T = TypeVar("T")

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
"""What is told of a provider's count, where it gives it."""

PAUSE = 0.01
"""Seconds between two looks at whether a worker runs again, when none does."""


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
        check_count("RetryPolicy", "attempts", self.attempts)
        check_seconds("RetryPolicy", "base", self.base, zero=True)
        check_seconds("RetryPolicy", "cap", self.cap, zero=True)

    def delay(self, round_: int, retry_after: float) -> float:
        """Seconds to wait after the failed round `round_`, counted from 1, of which a provider asked `retry_after`."""
        drawn = random.uniform(0, min(self.cap, self.base * 2.0 ** (round_ - 1)))  # noqa: S311 - jitter, not a secret
        return max(drawn, retry_after)


@dataclass(slots=True)
class EndpointStats:
    """What an endpoint has done so far.

    Attributes:
        attempts: Attempts begun.
        failures: Attempts that ended in an error, whosever fault; not those that were cancelled.
        input_tokens: As the provider counted them.
        output_tokens: As the provider counted them.
    """

    attempts: int = 0
    failures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Lane:
    """The connections of one worker to one endpoint."""

    def __init__(self, worker: ActorRef[LMWorker], width: int) -> None:
        self.worker = worker
        self.slots = asyncio.Semaphore(width)
        self.load = 0  # requests under way, and those that wait for a connection
        self.turn = 0  # when it was last chosen: among equals the one that rested longest is next


class _Door:
    """An endpoint with its breaker, its lanes and its figures."""

    def __init__(self, index: int, endpoint: Endpoint, breaker: CircuitBreaker, lanes: list[_Lane]) -> None:
        self.index = index
        self.endpoint = endpoint
        self.breaker = breaker
        self.lanes = lanes
        self.stats = EndpointStats()
        self.prices = Prices(endpoint)


class Dispatcher:
    """Routes calls over endpoints and workers.

    Args:
        path: Path of the pool, the source of its events.
        endpoints: In the order in which they are tried.
        workers: The pool's workers; each knows every endpoint by its index.
        supervisor: Theirs; while it runs, a worker that does not is about to be restarted.
        events: Where everything is published.
        retry: When a failed attempt is repeated.
        breaker: For every endpoint's own breaker.
        deadline: Seconds for a whole call, retries included; of a stream, until its first piece.
    """

    def __init__(
        self,
        path: str,
        endpoints: Sequence[Endpoint],
        workers: Sequence[ActorRef[LMWorker]],
        supervisor: ActorRef[Any],
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
        self._supervisor = supervisor
        self._turns = itertools.count(1)
        self.doors = [
            _Door(
                index,
                endpoint,
                CircuitBreaker(breaker, on_change=self._announce(endpoint)),
                [_Lane(worker, endpoint.max_connections) for worker in workers],
            )
            for index, endpoint in enumerate(endpoints)
        ]

    async def complete(self, request: Request) -> Response:
        """The answer of the first endpoint that gives one.

        Raises:
            CircuitOpen: No endpoint may be tried now.
            LMError: The last attempt's error, as DSPy types it.
        """

        async def attempt(made: _Attempt) -> Response:
            response = await self._make(made, LMWorker.complete)
            made.succeeded(response.usage, response)
            return response

        call = _ToldCall(self._events, self._path, request)
        response = await self._call(call, request, attempt)
        call.end(response=response)
        return response

    async def open_stream(self, request: Request) -> LMStream:
        """A stream whose first piece is there; after it, errors are the reader's and nothing is repeated.

        Raises:
            CircuitOpen: No endpoint may be tried now.
            LMError: The last attempt's error, as DSPy types it.
        """

        async def attempt(made: _Attempt) -> LMStream:
            async def fill(events: asyncio.Queue[Any]) -> None:
                usage = await self._make(made, LMWorker.stream, events)
                made.succeeded(usage, usage)

            stream = LMStream(fill, made.heard)
            await stream.open()
            stream.when_ended(call.end)
            return stream

        call = _ToldCall(self._events, self._path, request)
        return await self._call(call, request, attempt)

    async def _call(self, call: _ToldCall, request: Request, attempt: Callable[[_Attempt], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._deadline) as bound:
                return await self._rounds(call, request, bound, attempt)
        except TimeoutError as error:
            late = LMTimeoutError(f"no answer within the pool's {self._deadline:g} s", model=request.model)
            call.end(late)
            raise late from error
        except BaseException as error:
            call.end(error)
            raise

    async def _rounds(
        self, call: _ToldCall, request: Request, bound: asyncio.Timeout, attempt: Callable[[_Attempt], Awaitable[T]]
    ) -> T:
        """Try the endpoints in order, again and again while that may help."""
        loop = asyncio.get_running_loop()
        route = list(self._route(request))
        failed: Exception | None
        failure: Exception | None = None  # the last one of any round
        round_ = 0
        while True:
            round_ += 1
            failed, wait = None, 0.0
            for door in tuple(route):
                if door.breaker.retry_after(loop.time()) > 0:
                    continue  # before it waits for a connection
                sent = replace(request, model=self._model_for(door, request))
                try:
                    return await attempt(_Attempt(self._path, call, door, sent, bound))
                except CircuitOpen:
                    continue  # opened while the request waited for a connection
                except Exception as error:
                    failed, verdict = error, judge(error)
                    wait = max(wait, getattr(error, "retry_after", None) or 0.0)
                    if not verdict.retry and not verdict.elsewhere:
                        raise
                if not verdict.retry:
                    route.remove(door)
                if not verdict.elsewhere:
                    break
            now = loop.time()
            delay = self._retry.delay(round_, wait)
            closed_for = min((door.breaker.retry_after(now) for door in route), default=0.0)
            too_late = now + delay >= (bound.when() or 0.0)
            failure = failed or failure
            if failed is not None and (not route or round_ >= self._retry.attempts or too_late):
                raise failed
            if failed is None or closed_for > 0:
                names = tuple(door.endpoint.name for door in route)
                raise CircuitOpen(request.model, names, closed_for) from failure
            await asyncio.sleep(delay)

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

    async def _make(self, made: _Attempt, method: Callable[..., Coroutine[Any, Any, T]], *more: Any) -> T:
        """Ask `method` of the least busy worker that runs, when it has a connection free.

        A failure is recorded before the connection is given on, so that whoever waits for it sees the breaker's state.
        """
        while True:
            for lane in sorted(made.door.lanes, key=lambda lane: (lane.load, lane.turn)):
                lane.load += 1
                lane.turn = next(self._turns)
                try:
                    async with lane.slots:
                        if lane.worker.info().state is State.RUNNING:
                            made.begin(lane.worker)
                            asking = lane.worker.ask(method, made.door.index, made.request, *more)
                            return await made.recorded(asking)
                finally:
                    lane.load -= 1
            if self._supervisor.info().state is not State.RUNNING:
                raise WorkerLost(f"the workers of the LM pool {self._path!r} have ended", model=made.request.model)
            await asyncio.sleep(PAUSE)

    def _announce(self, endpoint: Endpoint) -> Callable[[BreakerState, BreakerState], None]:
        words = {"open": "breaker.opened", "half_open": "breaker.half_opened", "closed": "breaker.closed"}

        def announce(before: BreakerState, after: BreakerState) -> None:
            self._events.publish(words[after], self._path, {"endpoint": endpoint.name, "before": before})

        return announce


class _ToldCall:
    """A call on the event bus: started, then stopped or failed; with what its attempts add to it."""

    def __init__(self, events: EventBus, path: str, request: Request) -> None:
        outer = enclosing()
        # With DSPy's callbacks on the bus, the LM's own call is told already: attempts are a part of it.
        self._told = outer is not None and outer.type == "lm.call" and outer.events is events
        if outer is None or not self._told:
            facts = {"model": request.model}
            outer = Span(events, "lm.call", path, facts, parent=outer, parent_id=ACTIVE_CALL_ID.get())
            prompt = {"system": request.system, "messages": request.messages}
            outer.started(events.content.of_inputs(events, "lm.call.started", prompt))
        self.span = outer

    def attempt(self, path: str, facts: dict[str, Any]) -> Span:
        """The span of the next attempt."""
        self.span.count(attempts=1)
        span = Span(self.span.events, "lm.attempt", path, facts, parent=self.span)
        span.started()
        return span

    def end(self, error: BaseException | None = None, *, response: Response | None = None) -> None:
        """It has stopped, with its response if that was not streamed, or failed with `error`."""
        if self._told:
            return
        span, events = self.span, self.span.events
        span.count(attempts=0)
        if error is not None:
            span.failed(error, events.content.of_error(events, "lm.call.failed", error))
            return
        span.facts = {**span.facts, "cache_hit": False}
        answer = None if response is None else response.message
        span.stopped({} if answer is None else events.content.of_outputs(events, "lm.call.stopped", answer))


class _Attempt:
    """One try at one endpoint: its permit, its figures and its events. Ended exactly once, if it was begun."""

    def __init__(self, path: str, call: _ToldCall, door: _Door, request: Request, bound: asyncio.Timeout) -> None:
        self.door = door
        self.request = request
        self._path = path
        self._call = call
        self._bound = bound
        self._permit: Permit | None = None
        self._span: Span | None = None
        self._pieces = 0

    def begin(self, worker: ActorRef[LMWorker]) -> None:
        """It is about to go out; raises `CircuitOpen` when it may not any more."""
        now = asyncio.get_running_loop().time()
        endpoint, breaker = self.door.endpoint, self.door.breaker
        self._permit = breaker.acquire(now)
        if self._permit is None:
            raise CircuitOpen(self.request.model, (endpoint.name,), breaker.retry_after(now))
        self.door.stats.attempts += 1
        facts = {"endpoint": endpoint.name, "model": self.request.model, "worker": worker.path}
        self._span = self._call.attempt(self._path, facts)

    def heard(self, piece: Any) -> None:
        """A piece of the streamed answer has arrived."""
        type, span = "lm.stream.chunk", self._span
        if span is None or piece.type != "delta" or not span.events.wants(type):
            return
        text = getattr(piece.delta, "text", None)
        facts = {**span.facts, "index": self._pieces, "characters": len(text or "")}
        told = {} if text is None else span.events.content.of_outputs(span.events, type, text)
        span.events.publish(type, self._path, {**facts, **told}, trace_id=span.trace_id, parent_id=span.call_id)
        self._pieces += 1

    async def recorded(self, work: Awaitable[T]) -> T:
        """Await the answer; a failure is recorded, and raised as DSPy types it."""
        try:
            return await work
        except asyncio.CancelledError as error:
            if self._bound.expired():
                self._failed(LMTimeoutError("no answer within the call's deadline"), "failure")
            else:  # its caller has gone, which says nothing
                self._end("ignored", error)
            raise
        except Exception as error:
            model = self.request.model
            lost = isinstance(error, ActorStopped)
            public: Exception = WorkerLost(str(error), model=model) if lost else wrap_error(error, model=model)
            self._failed(public, judge(public).outcome)
            if public is error:
                raise
            raise public from error

    def succeeded(self, usage: Usage | None, answer: Response | Usage | None) -> None:
        """It was answered; `usage` is what the provider counted, and `answer` what that is priced by."""
        assert self._span is not None
        if usage is not None and answer is not None:
            self.door.stats.input_tokens += usage.input_tokens or 0
            self.door.stats.output_tokens += usage.output_tokens or 0
            if any(map(self._span.events.wants, ("lm.attempt.stopped", "lm.call.stopped"))):
                given = {name: getattr(usage, name) for name in TOKENS}
                figures = {name: count for name, count in given.items() if count is not None}
                cost = self.door.prices.cost(answer, self.request)
                for span in (self._span, self._call.span):
                    span.count(**figures, cost=cost)
        self._end("success")

    def _failed(self, error: Exception, outcome: Outcome) -> None:
        self.door.stats.failures += 1
        message, key = str(error), self.door.endpoint.api_key or ""
        if len(key) >= 8:  # shorter ones are placeholders, such as "none"
            message = message.replace(key, "[api_key]")  # some providers repeat it
        self._end(outcome, error, message)

    def _end(self, outcome: Outcome, error: BaseException | None = None, message: str | None = None) -> None:
        assert self._permit is not None
        assert self._span is not None
        now = asyncio.get_running_loop().time()
        self.door.breaker.record(self._permit, outcome, now, retry_after=getattr(error, "retry_after", None))
        if error is None:
            self._span.stopped()
        else:
            self._span.failed(error, {} if message is None else {"message": message})
