"""What belongs to one attempt: the endpoint's door with its breaker, limiter and lanes, and what is told of the try.

Made and used by the dispatcher, on the pool's event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from dspy.clients.errors import wrap_error
from dspy.lm15 import Request, Response, Usage
from dspy.utils.exceptions import LMTimeoutError

from promptside.actors import ActorRef
from promptside.errors import ActorStopped, CircuitOpen
from promptside.events import EventBus
from promptside.events.span import Span
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.context.call_tree import enclosing
from promptside.pools.context.settings import current_call_id
from promptside.pools.errors import LMCircuitOpen, WorkerLost
from promptside.pools.lm.classify import judge
from promptside.pools.lm.queue import EndpointQueue
from promptside.pools.lm.routes import DoorView
from promptside.pools.lm.worker import LMWorker
from promptside.pools.resilience.breaker import CircuitBreaker, Outcome, Permit
from promptside.pools.resilience.limiter import Release, Slot

__all__ = ["Attempt", "CallSpan", "Door", "EndpointStats", "Lane"]

T = TypeVar("T")

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
"""What is told of a provider's count, where it gives it."""


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


class Lane:
    """The connections of one worker to one endpoint."""

    def __init__(self, worker: ActorRef[LMWorker], width: int) -> None:
        self.worker = worker
        self.slots = asyncio.Semaphore(width)
        self.load = 0  # requests under way, and those that wait for a connection
        self.turn = 0  # when it was last chosen: among equals the one that rested longest is next


class Door:
    """An endpoint with its breaker, its line, its lanes and its figures."""

    def __init__(
        self, index: int, endpoint: Endpoint, breaker: CircuitBreaker, queue: EndpointQueue, lanes: list[Lane]
    ) -> None:
        self.index = index
        self.endpoint = endpoint
        self.breaker = breaker
        self.queue = queue
        self.limiter = queue.limiter
        self.lanes = lanes
        self.answered = 0  # attempts that went well
        self.stats = EndpointStats()
        self.turn = 0  # of the call that tried it first

    def view(self, now: float) -> DoorView:
        """What a route looks at."""
        load = self.limiter.in_flight + len(self.queue)
        return DoorView(load, self.limiter.most, self.turn, self.closed_for(now) > 0)

    def told(self) -> dict[str, Any]:
        """Its figures, for `LMPool.stats`, which describes them. Any thread."""
        return {
            **asdict(self.stats),
            "circuit": self.breaker.state,
            "limit": int(self.limiter.limit),
            "in_flight": self.limiter.in_flight,
            "waiting": len(self.queue),
        }

    def closed_for(self, now: float) -> float:
        """Seconds for which its circuit or its gate lets nothing through."""
        return max(self.breaker.retry_after(now), self.limiter.closed_for(now))


class CallSpan:
    """A call on the event bus: started, then stopped or failed; with what its attempts add to it."""

    def __init__(self, events: EventBus, path: str, request: Request) -> None:
        outer = enclosing()
        # With DSPy's callbacks on the bus, the LM's own call is told already: attempts are a part of it.
        self._told = outer is not None and outer.type == "lm.call" and outer.events is events
        if outer is None or not self._told:
            attributes = {"model": request.model}
            outer = Span(events, "lm.call", path, attributes, parent=outer, parent_id=current_call_id())
            prompt = {"system": request.system, "messages": request.messages}
            outer.started(events.content.of_inputs(events.wants, "lm.call.started", prompt))
        self.span = outer

    def attempt(self, path: str, attributes: dict[str, Any]) -> Span:
        """The span of the next attempt."""
        self.span.count(attempts=1)
        span = Span(self.span.events, "lm.attempt", path, attributes, parent=self.span)
        span.started()
        return span

    def end(self, error: BaseException | None = None, *, response: Response | None = None) -> None:
        """It has stopped, with its response if that was not streamed, or failed with `error`."""
        if self._told:
            return
        span, events = self.span, self.span.events
        span.count(attempts=0)
        if error is not None:
            span.failed(error, events.content.of_error(events.wants, "lm.call.failed", error))
            return
        span.attributes = {**span.attributes, "cache_hit": False}
        answer = None if response is None else response.message
        span.stopped({} if answer is None else events.content.of_outputs(events.wants, "lm.call.stopped", answer))


class Attempt:
    """One try at one endpoint: its slot, its permit, its figures and its events. Ended exactly once, if it was begun.

    Attributes:
        kept: Whether it outlasts the call that made it, as a stream does.
    """

    def __init__(
        self, path: str, call: CallSpan, door: Door, slot: Slot, request: Request, bound: asyncio.Timeout
    ) -> None:
        self.kept = False
        self.door = door
        self._slot = slot
        self.request = request
        self._path = path
        self._call = call
        self._bound = bound
        self._permit: Permit | None = None
        self._span: Span | None = None
        self._pieces = 0
        self._tokens = 0

    def begin(self, worker: ActorRef[LMWorker]) -> None:
        """It is about to go out; raises `LMCircuitOpen` when it may not any more."""
        now = asyncio.get_running_loop().time()
        endpoint, breaker = self.door.endpoint, self.door.breaker
        self._permit = breaker.acquire(now)
        if self._permit is None:
            raise LMCircuitOpen((endpoint.name,), breaker.retry_after(now), model=self.request.model)
        self.door.stats.attempts += 1
        attributes = {"endpoint": endpoint.name, "model": self.request.model, "worker": worker.path}
        self._span = self._call.attempt(self._path, attributes)

    def heard(self, piece: Any) -> None:
        """A piece of the streamed answer has arrived."""
        type, span = "lm.stream.chunk", self._span
        if span is None or piece.type != "delta" or not span.events.wants(type):
            return
        text = getattr(piece.delta, "text", None)
        attributes = {**span.attributes, "index": self._pieces, "characters": len(text or "")}
        told = {} if text is None else span.events.content.of_outputs(span.events.wants, type, text)
        span.events.publish(type, self._path, {**attributes, **told}, trace_id=span.trace_id, parent_id=span.call_id)
        self._pieces += 1

    async def recorded(self, work: Awaitable[T]) -> T:
        """Await the answer; a failure is recorded, and raised as DSPy types it."""
        try:
            return await work
        except asyncio.CancelledError as error:
            if self._bound.expired():
                self._failed(LMTimeoutError("no answer within the call's deadline"), "failure", "ignored")
            else:  # its caller has gone, which says nothing
                self._end("ignored", "ignored", error)
            raise
        except Exception as error:
            model = self.request.model
            public: Exception
            if isinstance(error, ActorStopped):
                public = WorkerLost(str(error), model=model)
            elif type(error) is CircuitOpen:  # of a protected function, in an endpoint's own engine
                wait = math.inf if error.retry_after is None else error.retry_after
                public = LMCircuitOpen(error.endpoints, wait, model=model)
            else:
                public = wrap_error(error, model=model)
            verdict = judge(public)
            self._failed(public, verdict.outcome, "limited" if verdict.limited else "ignored")
            if public is error:
                raise
            raise public from error

    def succeeded(self, usage: Usage | None, cost: float | None) -> None:
        """It was answered; `usage` is what the provider counted, and `cost` the price of that in US dollars."""
        assert self._span is not None
        if usage is not None:
            self.door.stats.input_tokens += usage.input_tokens or 0
            self.door.stats.output_tokens += usage.output_tokens or 0
            if any(map(self._span.events.wants, ("lm.attempt.stopped", "lm.call.stopped"))):
                given = {name: getattr(usage, name) for name in TOKENS}
                figures = {name: count for name, count in given.items() if count is not None}
                for span in (self._span, self._call.span):
                    span.count(**figures, cost=cost)
            self._tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        self.door.answered += 1
        self._end("success", "success")

    def leave(self) -> None:
        """Give the slot back, if it still has it."""
        self.door.queue.release(self._slot, "ignored")

    def _failed(self, error: Exception, outcome: Outcome, release: Release) -> None:
        self.door.stats.failures += 1
        self._end(outcome, release, error)

    def _end(self, outcome: Outcome, release: Release, error: BaseException | None = None) -> None:
        assert self._permit is not None
        assert self._span is not None
        now = asyncio.get_running_loop().time()
        retry_after = getattr(error, "retry_after", None)
        self.door.breaker.record(self._permit, outcome, now, retry_after=retry_after)
        self.door.queue.release(self._slot, release, retry_after=retry_after, tokens=self._tokens)
        if error is None:
            self._span.stopped()
        else:
            events = self._span.events
            self._span.failed(error, events.content.of_error(events.wants, "lm.attempt.failed", error))
