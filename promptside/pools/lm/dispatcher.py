"""The dispatcher: the way of one LM call from a caller to an endpoint, on the pool's event loop.

Called by the engine pair; asks the workers. It decides which endpoint may be tried (route, breaker and gate), lets the
call wait for its turn there (`admission`), decides which worker makes the attempt (the least busy), and what an error
means (`outcomes`): another endpoint, another try, or the caller's answer. The calls of a run wait for an outage to end
(`parking`). Everything it does is published: a call is one `lm.call.*`, each try one `lm.attempt.*` under it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from dspy.lm15 import Request, Response
from dspy.utils.exceptions import LMRateLimitError, LMTimeoutError

from promptside.actors import ActorRef, State
from promptside.events import EventBus
from promptside.events.catalogue import BREAKER_EVENTS
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.context.priority import current_priority
from promptside.pools.errors import LMCircuitOpen, WorkerLost
from promptside.pools.lm.attempt import Attempt, CallSpan, Door, Lane
from promptside.pools.lm.classify import judge
from promptside.pools.lm.outage import Parking
from promptside.pools.lm.queue import EndpointQueue, QueueBound, QueuedCall
from promptside.pools.lm.routes import ONLY, Route, order
from promptside.pools.lm.stream import LMStream
from promptside.pools.lm.worker import LMWorker
from promptside.pools.resilience.breaker import BreakerConfig, BreakerState, CircuitBreaker
from promptside.pools.resilience.limiter import Limiter, LimiterConfig
from promptside.pools.resilience.retry import RetryBudget, RetryConfig

__all__ = ["Dispatcher"]

T = TypeVar("T")

PAUSE = 0.01
"""Seconds between two looks at whether a worker runs again, when none does."""

LONG = 1.0
"""Seconds for which a gate closes before those who wait there are asked whether they can wait for so long."""


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
        route: In which order the endpoints are tried.
        limiter: For every endpoint's own limiter.
        max_queue: Calls that may wait for an endpoint.
        queue_timeout: Seconds that each waits at most.
    """

    def __init__(
        self,
        path: str,
        endpoints: Sequence[Endpoint],
        workers: Sequence[ActorRef[LMWorker]],
        supervisor: ActorRef[Any],
        events: EventBus,
        *,
        retry: RetryConfig,
        breaker: BreakerConfig,
        deadline: float,
        route: Route = "fallback",
        limiter: LimiterConfig,
        max_queue: int,
        queue_timeout: float,
    ) -> None:
        self._path = path
        self._order: Route = route
        self._events = events
        self._retry = retry
        self._deadline = deadline
        self._supervisor = supervisor
        self._turns = itertools.count(1)
        self._budget = RetryBudget(retry.retry_ratio, retry.min_retries)
        self._parking = Parking(retry, lambda: supervisor.info().state is State.RUNNING)
        self.queue_bound = QueueBound(path, max_queue, queue_timeout, self._tell_saturated)
        self.doors: list[Door] = []
        for index, endpoint in enumerate(endpoints):
            lanes = [Lane(worker, endpoint.max_connections) for worker in workers]
            limits = Limiter(
                len(lanes) * endpoint.max_connections,
                limiter,
                rpm=endpoint.rpm,
                tpm=endpoint.tpm,
                on_change=self._tell_limit(index),
            )
            circuit = CircuitBreaker(breaker, on_change=self._tell_circuit(index))
            self.doors.append(
                Door(
                    index,
                    endpoint,
                    circuit,
                    EndpointQueue(limits, self.queue_bound, asyncio.get_running_loop().time),
                    lanes,
                )
            )

    async def complete(self, request: Request) -> Response:
        """The answer of the first endpoint that gives one.

        Raises:
            LMCircuitOpen: No endpoint may be tried now.
            LMError: The last attempt's error, as DSPy types it.
        """

        async def attempt(made: Attempt) -> Response:
            response, cost = await self._make(made, LMWorker.complete)
            made.succeeded(response.usage, cost)
            return response

        call = CallSpan(self._events, self._path, request)
        response = await self._call(call, request, attempt)
        call.end(response=response)
        return response

    async def open_stream(self, request: Request) -> LMStream:
        """A stream whose first piece is there; after it, errors are the reader's and nothing is repeated.

        Of a run it is there as a whole: one that breaks off would be a score of its own, and can be made again.

        Raises:
            LMCircuitOpen: No endpoint may be tried now.
            LMError: The last attempt's error, as DSPy types it.
        """

        async def attempt(made: Attempt) -> LMStream:
            async def fill(events: asyncio.Queue[Any]) -> None:
                usage, cost = await self._make(made, LMWorker.stream, events)
                made.succeeded(usage, cost)

            made.kept = True
            stream = LMStream(fill, made.heard)
            stream.when_ended(lambda _: made.leave())  # also one that is closed before it has begun
            await stream.open(whole=current_priority().batch is not None)
            stream.when_ended(call.end)
            return stream

        call = CallSpan(self._events, self._path, request)
        return await self._call(call, request, attempt, share=False)

    async def _call(
        self, call: CallSpan, request: Request, attempt: Callable[[Attempt], Awaitable[T]], *, share: bool = True
    ) -> T:
        """Make a call; `share` its answer with a second one that DSPy makes of the same, if it was parked."""
        caller = current_priority()
        run = caller.batch
        queued = self.queue_bound.new_call(batch=caller.kind == "batch")

        async def make() -> T:
            return await self._within(call, request, attempt, queued)

        try:
            if run is None or ONLY.get() is not None:  # an ensemble parks as a whole: its quorum may answer
                return await make()
            return await self._parking.through(run, request, self._serving(request), queued, make, share=share)
        except BaseException as error:
            call.end(error)
            raise

    async def _within(
        self, call: CallSpan, request: Request, attempt: Callable[[Attempt], Awaitable[T]], queued: QueuedCall
    ) -> T:
        bound = asyncio.timeout(self._deadline)
        try:
            async with bound:
                return await self._rounds(call, request, bound, attempt, queued)
        except TimeoutError as error:
            if not bound.expired():
                raise
            late = LMTimeoutError(f"no answer within the pool's {self._deadline:g} s", model=request.model)
            raise late from error

    async def _rounds(
        self,
        call: CallSpan,
        request: Request,
        bound: asyncio.Timeout,
        attempt: Callable[[Attempt], Awaitable[T]],
        queued: QueuedCall,
    ) -> T:
        """Try the endpoints in order, again and again while that may help."""
        loop = asyncio.get_running_loop()
        self._budget.call(loop.time())
        route = list(self._route(request))
        failure: Exception | None = None  # the last one of any round
        round_, refusals = 1, 0
        while True:
            untried, counts, wait = list(route), False, 0.0
            failed: Exception | None = None
            while (door := _next(untried, loop.time())) is not None:
                self._check_gate(door, request, bound, failed or failure)
                slot = await door.queue.acquire_for(request.model, queued)
                if slot is None:
                    continue  # what it waited for has changed
                untried.remove(door)
                queued.attempts += 1
                made = Attempt(self._path, call, door, slot, self._sent(door, request), bound)
                try:
                    if (run := current_priority().batch) is not None:
                        run.check()
                    return await attempt(made)
                except LMCircuitOpen:
                    continue  # opened while the request waited for its turn
                except Exception as error:
                    failed, verdict = error, judge(error)
                    counts = counts or not verdict.limited
                    refusals += verdict.limited
                    wait = wait if verdict.limited else max(wait, getattr(error, "retry_after", None) or 0.0)
                    if not verdict.outage:
                        raise
                finally:
                    if not made.kept:
                        made.leave()
                if not verdict.retry:
                    route.remove(door)
                if not verdict.elsewhere:
                    break
            now = loop.time()
            closed_for = min((door.breaker.retry_after(now) for door in route), default=0.0)
            failure = failed or failure
            if failed is not None and not self._may_repeat(route, failed, round_, refusals, counts=counts):
                raise failed
            delay = self._retry.delay(round_, wait) if counts else 0.0
            if failed is not None and now + delay >= (bound.when() or math.inf):
                raise failed
            if failed is None or closed_for > 0:
                names = tuple(door.endpoint.name for door in route)
                raise LMCircuitOpen(names, closed_for, model=request.model) from failure
            round_ += counts
            await asyncio.sleep(delay)

    def _may_repeat(self, route: list[Door], failed: Exception, round_: int, refusals: int, *, counts: bool) -> bool:
        """Whether a round that ended with `failed` may be followed by another one."""
        if not route or refusals >= self._retry.max_rate_limited:
            return False
        if not counts:
            return True
        if round_ >= self._retry.attempts:
            return False
        lost = isinstance(failed, WorkerLost)  # not the provider's, and no more of them than calls under way
        return lost or self._budget.acquire(asyncio.get_running_loop().time())

    def _check_gate(self, door: Door, request: Request, bound: asyncio.Timeout, failure: Exception | None) -> None:
        """Raise at once what would be raised at the deadline, where the provider asks for more than is left."""
        now = asyncio.get_running_loop().time()
        closed_for = door.limiter.closed_for(now)
        if closed_for > 0 and now + closed_for >= (bound.when() or math.inf):
            if isinstance(failure, LMRateLimitError):
                raise failure
            asked = f"{door.endpoint.name} asked to be left alone for {closed_for:.3g} s, longer than the call may last"
            raise LMRateLimitError(asked, model=request.model, retry_after=closed_for) from failure

    def _route(self, request: Request) -> list[Door]:
        """The endpoints for a request, in the order in which they are tried."""
        doors = self._serving(request)
        if ONLY.get() is not None:
            return doors
        now = asyncio.get_running_loop().time()
        doors = [doors[index] for index in order(self._order, [door.view(now) for door in doors])]
        doors[0].turn = next(self._turns)
        return doors

    def _serving(self, request: Request) -> list[Door]:
        """The endpoints for a request: those of the model it names, or all for the pool's own model."""
        only = ONLY.get()
        if only is not None:
            return [door for door in self.doors if door.endpoint.name == only]
        if request.model == self.doors[0].endpoint.model:
            return self.doors
        return [door for door in self.doors if door.endpoint.model == request.model] or self.doors[:1]

    def _sent(self, door: Door, request: Request) -> Request:
        """The request for the endpoint's model; a model that no endpoint names (a fine-tuned one) is passed on."""
        known = any(each.endpoint.model == request.model for each in self.doors)
        same = not known or door.endpoint.model == request.model  # a copy is checked again, which costs 15 us
        return request if same else replace(request, model=door.endpoint.model)

    async def _make(self, made: Attempt, method: Callable[..., Coroutine[Any, Any, T]], *more: Any) -> T:
        """Ask `method` of the least busy worker that runs, when it has a connection free.

        A failure is recorded before the connection is given on, so that whoever waits for it sees the breaker's state.
        """
        while True:
            for lane in sorted(made.door.lanes, key=lambda lane: (lane.load, lane.turn)):
                lane.load += 1
                lane.turn = next(self._turns)
                try:
                    async with lane.slots:
                        if lane.worker.state is State.RUNNING:
                            made.begin(lane.worker)
                            asking = lane.worker.ask(method, made.door.index, made.request, *more)
                            return await made.recorded(asking)
                finally:
                    lane.load -= 1
            if self._supervisor.state is not State.RUNNING:
                raise WorkerLost(f"the workers of the LM pool {self._path!r} have ended", model=made.request.model)
            await asyncio.sleep(PAUSE)

    def _tell_circuit(self, index: int) -> Callable[[BreakerState, BreakerState], None]:
        def tell(before: BreakerState, after: BreakerState) -> None:
            door = self.doors[index]
            self._events.publish(BREAKER_EVENTS[after], self._path, {"endpoint": door.endpoint.name, "before": before})
            if after == "open":
                door.queue.wake_all()
            self._parking.wake()

        return tell

    def _tell_limit(self, index: int) -> Callable[[int, float], None]:
        def tell(limit: int, closed_for: float) -> None:
            door = self.doors[index]
            attributes = {"endpoint": door.endpoint.name, "limit": limit, "closed_for": closed_for}
            self._events.publish("limiter.changed", self._path, attributes)
            if closed_for > LONG or (closed_for > 0 and len(self.doors) > 1):
                door.queue.wake_all()

        return tell

    def _tell_saturated(self) -> None:
        attributes = {"waiting": self.queue_bound.waiting, "max_queue": self.queue_bound.max_queue}
        self._events.publish("pool.saturated", self._path, attributes)


def _next(doors: Sequence[Door], now: float) -> Door | None:
    """The first endpoint that may be tried; where all gates are closed, the one whose gate opens first."""
    whole = [door for door in doors if door.breaker.retry_after(now) <= 0]
    return min(whole, key=lambda door: door.limiter.closed_for(now), default=None)
