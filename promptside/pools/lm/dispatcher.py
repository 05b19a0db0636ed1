"""`Dispatcher`: the way of one call from its caller to an endpoint, on the pool's event loop.

Called by the engine pair, the embedder and votes; asks the workers. It decides which endpoint may be tried (`routes`,
breaker, limiter), has the call wait for its turn there (`queue`), chooses the least busy worker, and decides by
`classify` whether an error means another endpoint, another try, or the caller's answer. The calls of a batch wait for
an outage to end (`outage`). A call is published as one `lm.call.*`, each try as one `lm.attempt.*` below it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from dspy.lm15 import Request
from dspy.utils.exceptions import LMRateLimitError, LMTimeoutError

from promptside.actors import State
from promptside.events import EventBus
from promptside.events.catalogue import BREAKER_EVENTS
from promptside.pools.clients.embeddings import EmbeddingRequest, Embeddings, ModelRequest
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.context.priority import current_priority
from promptside.pools.errors import LMCircuitOpen, WorkerLost
from promptside.pools.lm.attempt import Answer, Attempt, CallSpan
from promptside.pools.lm.classify import classify
from promptside.pools.lm.config import LMPoolConfig
from promptside.pools.lm.outage import OutageWait
from promptside.pools.lm.queue import QueueBound, QueuedCall
from promptside.pools.lm.routes import order
from promptside.pools.lm.stream import LMStream
from promptside.pools.lm.target import Target
from promptside.pools.lm.worker import LMWorker, WorkerGroup
from promptside.pools.resilience.breaker import BreakerState
from promptside.pools.resilience.limiter import LimiterChange
from promptside.pools.resilience.retry import RetryBudget

__all__ = ["Dispatcher"]

T = TypeVar("T")

LONG_CLOSE = 1.0
"""Seconds: when a limiter closes for longer, the calls in its queue are asked whether they can wait for so long."""


class Dispatcher:
    """Routes calls over endpoints and workers.

    Args:
        path: Path of the pool, the source of its events.
        endpoints: In the order in which they are tried.
        workers: Each knows every endpoint by its index.
        events: Where everything is published.
        config: The pool's.

    Attributes:
        targets: The endpoints, in their order.
        queue_bound: Of all queues together.
        outages: Where the calls of batches wait.
    """

    def __init__(
        self, path: str, endpoints: Sequence[Endpoint], workers: WorkerGroup, events: EventBus, config: LMPoolConfig
    ) -> None:
        self._path = path
        self._workers = workers
        self._events = events
        self._config = config
        self._numbers = itertools.count(1)
        self._retry_budget = RetryBudget(config.retry.retry_ratio, config.retry.min_retries)
        self.outages = OutageWait(config.retry, lambda: workers.alive)
        self.queue_bound = QueueBound(path, config.max_queue, config.queue_timeout, self._on_saturated)
        self.targets = [
            Target(
                index,
                endpoint,
                workers.refs,
                config,
                self.queue_bound,
                on_breaker=self._on_breaker,
                on_limit=self._on_limit,
            )
            for index, endpoint in enumerate(endpoints)
        ]

    def target(self, name: str) -> Target:
        """The endpoint of this name."""
        return next(target for target in self.targets if target.endpoint.name == name)

    async def complete(self, request: Request, *, only: str | None = None) -> Answer:
        """The answer of the first endpoint that gives one.

        Args:
            request: The request.
            only: Name of the one endpoint that may answer; the call then waits for no outage, as its caller does.

        Raises:
            LMCircuitOpen: No endpoint may be tried now.
            LMError: The last attempt's error, as DSPy types it.
        """

        async def send(attempt: Attempt) -> Answer:
            response, cost = await self._ask(attempt, LMWorker.complete)
            attempt.succeed(response.usage, cost)
            if only is None:  # else it is one of several
                call.answered_by(attempt)
            return Answer(response, attempt.target.endpoint.name, attempt.request.model)

        call = CallSpan(self._events, self._path, request)
        answer = await self._call(call, request, send, only=only)
        call.end(response=answer.response)
        return answer

    async def open_stream(self, request: Request) -> LMStream:
        """A stream whose first piece has arrived. Later errors are raised to its reader, and nothing is repeated.

        In a batch the stream is buffered whole, so that a broken one can be made again. Raises as `complete`.
        """

        async def send(attempt: Attempt) -> LMStream:
            async def fill(events: asyncio.Queue[Any]) -> None:
                bound = asyncio.timeout(self._config.stream_timeout)
                try:
                    async with bound:
                        usage, cost = await self._ask(attempt, LMWorker.stream, events)
                except TimeoutError as error:
                    if not bound.expired():
                        raise
                    text = (
                        f"the stream did not end within the pool's stream_timeout of {self._config.stream_timeout:g} s"
                    )
                    raise LMTimeoutError(text, model=request.model) from error
                attempt.succeed(usage, cost)

            attempt.outlives_call = True
            stream = LMStream(fill, attempt.on_chunk, attempt.target.endpoint.name, attempt.request.model)
            stream.on_end(lambda _: attempt.release_slot())  # also when it is closed before it has begun
            await stream.open(whole=current_priority().batch is not None)
            call.answered_by(attempt)
            stream.on_end(call.end)
            return stream

        call = CallSpan(self._events, self._path, request)
        return await self._call(call, request, send, deduplicate=False)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """The vectors of texts; raises as `complete`."""

        async def send(attempt: Attempt) -> Embeddings:
            answer, cost = await self._ask(attempt, LMWorker.embed)
            attempt.succeed(answer.usage, cost)
            call.answered_by(attempt)
            return answer

        call = CallSpan(self._events, self._path, request)
        answer = await self._call(call, request, send)
        call.end()
        return answer

    async def _call(
        self,
        call: CallSpan,
        request: ModelRequest,
        send: Callable[[Attempt], Awaitable[T]],
        *,
        only: str | None = None,
        deduplicate: bool = True,
    ) -> T:
        priority = current_priority()
        queued = self.queue_bound.new_call(batch=priority.kind == "batch")
        targets = self._targets_for(request) if only is None else [self.target(only)]

        async def make() -> T:
            return await self._within_timeout(call, request, targets, send, queued, only=only)

        try:
            if priority.batch is None or only is not None:
                return await make()
            return await self.outages.call(priority.batch, request, targets, queued, make, deduplicate=deduplicate)
        except BaseException as error:
            call.end(error)
            raise

    async def _within_timeout(
        self,
        call: CallSpan,
        request: ModelRequest,
        targets: Sequence[Target],
        send: Callable[[Attempt], Awaitable[T]],
        queued: QueuedCall,
        *,
        only: str | None,
    ) -> T:
        timeout = asyncio.timeout(None if current_priority().kind == "batch" else self._config.timeout)
        try:
            async with timeout:
                self._retry_budget.call(asyncio.get_running_loop().time())
                route = list(targets) if only is not None else self._in_order(targets)
                return await self._rounds(call, request, route, timeout, send, queued)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            text = f"no answer within the pool's timeout of {self._config.timeout:g} s"
            raise LMTimeoutError(text, model=request.model) from error

    async def _rounds(
        self,
        call: CallSpan,
        request: ModelRequest,
        route: list[Target],
        timeout: asyncio.Timeout,
        send: Callable[[Attempt], Awaitable[T]],
        queued: QueuedCall,
    ) -> T:
        """Try the endpoints in order, again and again while that may help."""
        loop = asyncio.get_running_loop()
        last: Exception | None = None  # error of any round
        round_, rate_limited = 1, 0
        while True:
            untried, counts, retry_after = list(route), False, 0.0
            failed: Exception | None = None  # last error of this round
            while (target := _next(untried, loop.time())) is not None:
                self._check_gate(target, request, timeout, failed or last)
                slot = await target.queue.acquire_for(request.model, queued)
                if slot is None:
                    continue  # the target has changed meanwhile
                untried.remove(target)
                queued.attempts += 1
                attempt = Attempt(self._path, call, target, slot, self._request_for(target, request), timeout)
                try:
                    if (batch := current_priority().batch) is not None:
                        batch.check()
                    return await send(attempt)
                except LMCircuitOpen:
                    continue  # it opened while the call waited
                except Exception as error:
                    failed, means = error, classify(error)
                    counts = counts or not means.rate_limited
                    rate_limited += means.rate_limited
                    if not means.rate_limited:
                        retry_after = max(retry_after, getattr(error, "retry_after", None) or 0.0)
                    if not means.transient:
                        raise
                finally:
                    if not attempt.outlives_call:
                        attempt.release_slot()
                if not means.retry:
                    route.remove(target)
                if not means.failover:
                    break
            now = loop.time()
            closed_for = min((target.breaker.retry_after(now) for target in route), default=0.0)
            last = failed or last
            if failed is not None and not self._may_repeat(route, failed, round_, rate_limited, counts=counts):
                raise failed
            delay = self._config.retry.delay(round_, retry_after) if counts else 0.0
            if failed is not None and now + delay >= (timeout.when() or math.inf):
                raise failed
            if failed is None or closed_for > 0:
                names = tuple(target.endpoint.name for target in route)
                raise LMCircuitOpen(names, closed_for, model=request.model) from last
            round_ += counts
            await asyncio.sleep(delay)

    def _may_repeat(
        self, route: list[Target], failed: Exception, round_: int, rate_limited: int, *, counts: bool
    ) -> bool:
        """Whether a round that ended with `failed` may be followed by another one."""
        if not route or rate_limited >= self._config.retry.max_rate_limited:
            return False
        lost = isinstance(failed, WorkerLost)  # not the provider's, and no more of them than calls under way
        if lost and not self._workers.alive:
            return False
        if not counts:
            return True
        if round_ >= self._config.retry.attempts:
            return False
        return lost or self._retry_budget.acquire(asyncio.get_running_loop().time())

    def _check_gate(
        self, target: Target, request: ModelRequest, timeout: asyncio.Timeout, failure: Exception | None
    ) -> None:
        """Raise at once, rather than at the timeout, where the provider asks for a longer wait than is left."""
        now = asyncio.get_running_loop().time()
        closed_for = target.limiter.closed_for(now)
        if closed_for > 0 and now + closed_for >= (timeout.when() or math.inf):
            if isinstance(failure, LMRateLimitError):
                raise failure
            asked = f"{target.endpoint.name} asked for a wait of {closed_for:.3g} s, longer than the call may last"
            raise LMRateLimitError(asked, model=request.model, retry_after=closed_for) from failure

    def _in_order(self, targets: Sequence[Target]) -> list[Target]:
        """The endpoints in the order in which they are tried."""
        now = asyncio.get_running_loop().time()
        route = [targets[index] for index in order(self._config.route, [target.view(now) for target in targets])]
        route[0].last_first = next(self._numbers)
        return route

    def _targets_for(self, request: ModelRequest) -> list[Target]:
        """The endpoints of the model it names; all for the pool's own model, the first for one that none has.

        To embed never all: vectors of two models are not comparable.
        """
        if request.model == self.targets[0].endpoint.model and not isinstance(request, EmbeddingRequest):
            return self.targets
        return [target for target in self.targets if target.endpoint.model == request.model] or self.targets[:1]

    def _request_for(self, target: Target, request: ModelRequest) -> ModelRequest:
        """The request for the endpoint's model; a model that no endpoint has (a fine-tuned one) is passed on."""
        known = any(each.endpoint.model == request.model for each in self.targets)
        same = not known or target.endpoint.model == request.model  # a copy is checked again, which costs 15 us
        return request if same else replace(request, model=target.endpoint.model)

    async def _ask(self, attempt: Attempt, method: Callable[..., Coroutine[Any, Any, T]], *more: Any) -> T:
        """Ask `method` of the least busy worker that runs, when it has a connection free.

        A failure is recorded before the connection is released, so that the next call there sees the breaker's state.
        """
        while True:
            for connections in sorted(attempt.target.connections, key=lambda each: (each.load, each.last_used)):
                connections.load += 1
                connections.last_used = next(self._numbers)
                try:
                    async with connections.free:
                        if connections.worker.state is State.RUNNING:
                            attempt.begin(connections.worker)
                            asked = connections.worker.ask(method, attempt.target.index, attempt.request, *more)
                            return await attempt.run(asked)
                finally:
                    connections.load -= 1
            await self._workers.wait_running()
            if not self._workers.alive:
                raise WorkerLost(f"the workers of the LM pool {self._path!r} have ended", model=attempt.request.model)

    def _on_breaker(self, target: Target, before: BreakerState, after: BreakerState) -> None:
        self._events.publish(BREAKER_EVENTS[after], self._path, {"endpoint": target.endpoint.name, "before": before})
        if after == "open":
            target.queue.wake_all()
        self.outages.wake()

    def _on_limit(self, target: Target, change: LimiterChange) -> None:
        self._events.publish("limiter.changed", self._path, {"endpoint": target.endpoint.name, **asdict(change)})
        if change.closed_for > LONG_CLOSE or (change.closed_for > 0 and len(self.targets) > 1):
            target.queue.wake_all()

    def _on_saturated(self) -> None:
        attributes = {"waiting": self.queue_bound.waiting, "max_queue": self.queue_bound.max_queue}
        self._events.publish("pool.saturated", self._path, attributes)


def _next(targets: Sequence[Target], now: float) -> Target | None:
    """The first endpoint whose breaker lets a call through; where all limiters are closed, the one that opens first."""
    open_ = [target for target in targets if target.breaker.retry_after(now) <= 0]
    return min(open_, key=lambda target: target.limiter.closed_for(now), default=None)
