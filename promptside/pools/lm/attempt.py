"""`CallSpan`: a call on the event bus. `Attempt`: one try of it, with its permit, its slot and its figures.

Made and used by the dispatcher, on the pool's event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from dspy.lm15 import Response, Usage
from dspy.utils.exceptions import LMTimeoutError

from promptside.actors import ActorRef
from promptside.errors import ActorStopped, CircuitOpen
from promptside.events import EventBus
from promptside.events.span import Span
from promptside.pools.clients.embeddings import ModelRequest
from promptside.pools.clients.provider_errors import wrap_error
from promptside.pools.clients.rate_headers import Quota, read_quota
from promptside.pools.context.call_tree import enclosing
from promptside.pools.context.settings import current_call_id
from promptside.pools.errors import LMCircuitOpen, WorkerLost
from promptside.pools.lm.classify import classify
from promptside.pools.lm.target import Target
from promptside.pools.lm.worker import LMWorker
from promptside.pools.resilience.breaker import Outcome, Permit
from promptside.pools.resilience.limiter import Release, Slot

__all__ = ["Answer", "Attempt", "CallSpan"]

T = TypeVar("T")

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
"""Counts that are published, where the provider gives them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        response: The answer; its `model` is whatever the provider calls it.
        endpoint: Name of the endpoint that gave it; empty for the combined one of a vote.
        model: That endpoint's model, or the name of the vote.
    """

    response: Response
    endpoint: str
    model: str


class CallSpan:
    """A call on the event bus: started, then stopped or failed, with the sums of its attempts.

    Attributes:
        began: When, in the time of the running loop.
    """

    def __init__(self, events: EventBus, path: str, request: ModelRequest) -> None:
        self.began = asyncio.get_running_loop().time()
        outer = enclosing()
        # With DSPy's callbacks on the bus, the LM's own span is there already: attempts are below it.
        self._is_outer = outer is not None and outer.type == "lm.call" and outer.events is events
        if outer is None or not self._is_outer:
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

    def answered_by(self, attempt: Attempt) -> None:
        """This attempt gives the answer."""
        answered = {"endpoint": attempt.target.endpoint.name, "response_model": attempt.request.model}
        self.span.attributes = {**self.span.attributes, **answered}

    def end(self, error: BaseException | None = None, *, response: Response | None = None) -> None:
        """It has stopped, with its response if that was not streamed, or failed with `error`."""
        if self._is_outer:
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
    """One try at one endpoint. Ended exactly once, if it was begun.

    Args:
        path: Path of the pool.
        call: The call.
        target: The endpoint.
        slot: Its slot of the endpoint's limiter.
        request: As it is sent.
        timeout: The call's.

    Attributes:
        outlives_call: Whether it goes on when the call has returned, as a stream does.
    """

    def __init__(
        self, path: str, call: CallSpan, target: Target, slot: Slot, request: ModelRequest, timeout: asyncio.Timeout
    ) -> None:
        self.outlives_call = False
        self.target = target
        self.request = request
        self._slot = slot
        self._path = path
        self._call = call
        self._timeout = timeout
        self._permit: Permit | None = None
        self._span: Span | None = None
        self._chunks = 0
        self._tokens = 0

    def begin(self, worker: ActorRef[LMWorker]) -> None:
        """It is about to be sent; raises `LMCircuitOpen` when the breaker has opened meanwhile."""
        now = asyncio.get_running_loop().time()
        endpoint, breaker = self.target.endpoint, self.target.breaker
        self._permit = breaker.acquire(now)
        if self._permit is None:
            raise LMCircuitOpen((endpoint.name,), breaker.retry_after(now), model=self.request.model)
        self.target.stats.attempts += 1
        attributes = {"endpoint": endpoint.name, "model": self.request.model, "worker": worker.path}
        self._span = self._call.attempt(self._path, attributes)

    def on_chunk(self, event: Any) -> None:
        """An event of the streamed answer has arrived."""
        type, span = "lm.stream.chunk", self._span
        if span is None or event.type != "delta" or not span.events.wants(type):
            return
        text = getattr(event.delta, "text", None)
        attributes = {**span.attributes, "index": self._chunks, "characters": len(text or "")}
        content = {} if text is None else span.events.content.of_outputs(span.events.wants, type, text)
        span.events.publish(type, self._path, {**attributes, **content}, trace_id=span.trace_id, parent_id=span.call_id)
        self._chunks += 1

    async def run(self, work: Awaitable[T]) -> T:
        """Await the answer; a failure is recorded, and raised as DSPy types it."""
        try:
            return await work
        except asyncio.CancelledError as error:
            if self._timeout.expired():
                late = LMTimeoutError("no answer within the call's timeout", model=self.request.model)
                self._fail(late, "failure" if self._had_most_of_the_time() else "ignored", "ignored")
            else:  # by its caller, which says nothing of the endpoint
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
            if public is not error:
                public.__cause__ = error  # which is looked at, too
            means = classify(public)
            self._fail(public, means.breaker, "limited" if means.rate_limited else "ignored")
            if public is error:
                raise
            raise public from error

    def succeed(self, usage: Usage | None, cost: float | None) -> None:
        """Record the answer, with the provider's count and its price in US dollars."""
        assert self._span is not None
        if usage is not None:
            self.target.stats.input_tokens += usage.input_tokens or 0
            self.target.stats.output_tokens += usage.output_tokens or 0
            if any(map(self._span.events.wants, ("lm.attempt.stopped", "lm.call.stopped"))):
                given = {name: getattr(usage, name) for name in TOKENS}
                known = {name: count for name, count in given.items() if count is not None}
                for span in (self._span, self._call.span):
                    span.count(**known, cost=cost)
            self._tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        self.target.answered += 1
        self._end("success", "success")

    def release_slot(self) -> None:
        """Give the slot back, if it still has it."""
        self.target.queue.release(self._slot, "unsent" if self._permit is None else "ignored")

    def _had_most_of_the_time(self) -> bool:
        """Whether the call has waited for this attempt longer than in queues, and for other attempts."""
        assert self._permit is not None
        now = asyncio.get_running_loop().time()
        return now - self._permit.since >= (now - self._call.began) / 2

    def _fail(self, error: Exception, outcome: Outcome, release: Release) -> None:
        self.target.stats.failures += 1
        self._end(outcome, release, error)

    def _end(self, outcome: Outcome, release: Release, error: BaseException | None = None) -> None:
        assert self._permit is not None
        assert self._span is not None
        now = asyncio.get_running_loop().time()
        retry_after = getattr(error, "retry_after", None)
        self.target.breaker.record(self._permit, outcome, now, retry_after=retry_after)
        quota = read_quota(getattr(error, "rate_limit_headers", {})) if release == "limited" else Quota()
        self.target.queue.release(
            self._slot, release, retry_after=retry_after, tokens=self._tokens, allowed=quota.allowed, reset=quota.reset
        )
        if error is None:
            self._span.stopped()
        else:
            events = self._span.events
            self._span.failed(error, events.content.of_error(events.wants, "lm.attempt.failed", error))
