"""The engine pair, which makes a pool a full `dspy.LM`.

DSPy keeps cache, history, usage, callbacks, pricing and streaming; below that it calls an engine. These two hand each
request to the dispatcher on the pool's event loop: `PoolEngine` from any thread, blocking it, `AsyncPoolEngine` from
any event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

from dspy.lm15 import Request, Response

from promptside.pools.accounting.history import Interaction
from promptside.pools.accounting.ledger import CALL_USAGE, CallUsage
from promptside.pools.clients.embeddings import ModelRequest
from promptside.pools.clients.endpoint import Capabilities, Dialect
from promptside.pools.clients.routed_lm import answered_by
from promptside.pools.clients.served_history import ServedHistory
from promptside.pools.context.batch import aborting_on_fatal
from promptside.pools.context.cancel import current_cancel_token
from promptside.pools.context.labels import current_labels
from promptside.pools.context.priority import current_priority
from promptside.pools.errors import BudgetExceeded, PoolUnavailable
from promptside.pools.lm.attempt import Answer, CallSpan
from promptside.pools.lm.bridge import CrossLoopCall
from promptside.pools.lm.dispatcher import Dispatcher
from promptside.pools.lm.live import LiveLMPool, PoolSlot
from promptside.pools.lm.saved import find_pool
from promptside.pools.lm.single_flight import is_deterministic
from promptside.pools.lm.stream import LMStream
from promptside.pools.lm.vote import Vote

__all__ = ["AsyncPoolEngine", "PoolEngine", "make_engines", "pool_path"]

Backend: TypeAlias = Dispatcher | Vote


class _Engine:
    """The part that both share.

    Args:
        slot: The pool; None for an engine that was loaded where its pool is not.
        capabilities: Of the model.
        vote: Answers in place of the pool's dispatcher.
        dialect: Of the endpoint that is asked first.
        served: Records its calls in DSPy's histories.

    Attributes:
        dialect: As given.
        sync_half: Stands for both in the pool's history.
        single_flight: Whether calls are shared with identical ones under way.
    """

    def __init__(
        self,
        slot: PoolSlot | None,
        capabilities: Capabilities | None = None,
        vote: Vote | None = None,
        dialect: Dialect | None = None,
        served: ServedHistory | None = None,
    ) -> None:
        self.served = served
        self._slot = slot
        self._vote = vote
        self.dialect = dialect or Dialect()
        self.sync_half: _Engine = self
        self.single_flight = False
        able = capabilities or Capabilities()
        self.supports_response_schema = bool(able.response_schema)
        self.supports_function_calling = bool(able.function_calling)
        self.supports_reasoning = bool(able.reasoning)
        self.supported_params = able.params or frozenset()

    @property
    def live(self) -> LiveLMPool:
        """The running pool; raises `PoolUnavailable`."""
        if self._slot is None:
            raise PoolUnavailable(
                "this LM was loaded from a file or another process, where its pool is not; set the LM again, "
                "with `program.set_lm(pool.lm())`"
            )
        return self._slot.live

    def backend(self, live: LiveLMPool) -> Backend:
        """The pool's dispatcher, or a vote over it."""
        return live.dispatcher if self._vote is None else self._vote

    async def _complete(self, live: LiveLMPool, request: Request) -> Answer:
        """On the pool's loop."""
        backend = self.backend(live)
        interaction = self.begin_call(live, request)
        try:
            if self.single_flight and is_deterministic(request):
                answer = await live.single_flight.complete(backend, request, lambda: backend.complete(request))
            else:
                answer = await backend.complete(request)
        except BaseException as error:
            interaction.end(error)
            raise
        interaction.answered_by(answer.endpoint, answer.model)
        interaction.end(answer=answer.response)
        return answer

    def begin_call(self, live: LiveLMPool, request: ModelRequest) -> Interaction:
        """A call begins, in a task of its own on the pool's loop: its usage and its history begin.

        Raises:
            PoolUnavailable: The pool has ended since the caller looked.
            BudgetExceeded: One of the pool's budgets is spent.
            BatchAborted: It is, and the call is one of a batch, which ends by that.
        """
        live.check()
        return live.history.begin(self.sync_half, request, current_labels(), self._open_usage(live, request))

    def _open_usage(self, live: LiveLMPool, request: ModelRequest) -> CallUsage:
        try:
            usage = live.ledger.open(current_labels())
        except BudgetExceeded as error:
            CallSpan(live.events, live.path, request).end(error)
            if (batch := current_priority().batch) is not None:
                batch.cancel(error)  # DSPy would make a score of the error
                batch.check()
            raise
        CALL_USAGE.set(usage)
        return usage

    def __deepcopy__(self, memo: dict[int, Any]) -> _Engine:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded, (type(self), None if self._slot is None else self._slot.name)


class PoolEngine(_Engine):
    """Sync calls, from any thread but the pool's own; the calling thread waits."""

    def complete(self, request: Request) -> Response:
        """One answer; raises as `Dispatcher.complete`, and `PoolUnavailable`."""
        with aborting_on_fatal():
            live = self.live_for_blocking()
            return _named(CrossLoopCall(live.loop, lambda: self._complete(live, request)).wait())

    def stream(self, request: Request) -> Iterator[Any]:
        """The events of one answer; raises as `complete`."""
        with aborting_on_fatal():
            stream = _Stream(self, self.live_for_blocking(), request)
            try:
                while events := CrossLoopCall(stream.loop, stream.next).wait():
                    stream.name_model()
                    yield from events
            finally:
                stream.close()

    def close(self) -> None:
        """Nothing: the pool is borrowed."""

    def live_for_blocking(self) -> LiveLMPool:
        """As `live`, for a caller that blocks its thread, which may not be the pool's; raises if it was cancelled."""
        if (token := current_cancel_token()) is not None:
            token.check()
        live = self.live
        if asyncio._get_running_loop() is live.loop:
            raise PoolUnavailable(
                "a synchronous LM call on the LM pool's own event loop would wait for itself; "
                "call it from another thread, or use the async API"
            )
        return live


class AsyncPoolEngine(_Engine):
    """Async calls, from any event loop; cancelling the caller cancels the call, to the socket."""

    async def complete(self, request: Request) -> Response:
        """One answer; raises as `Dispatcher.complete`, and `PoolUnavailable`."""
        with aborting_on_fatal():
            live = self.live
            return _named(await CrossLoopCall(live.loop, lambda: self._complete(live, request)).result())

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The events of one answer; raises as `complete`."""
        with aborting_on_fatal():
            stream = _Stream(self, self.live, request)
            try:
                while events := await CrossLoopCall(stream.loop, stream.next).result():
                    stream.name_model()
                    for event in events:
                        yield event
            finally:
                stream.close()

    async def aclose(self) -> None:
        """Nothing: the pool is borrowed."""


class _Stream:
    """A streaming call that begins with its first `next`, on the pool's loop; it can be closed at any moment."""

    def __init__(self, engine: _Engine, live: LiveLMPool, request: Request) -> None:
        self.loop = live.loop
        self._engine = engine
        self._live = live
        self._request = request
        self._stream: LMStream | None = None
        self._interaction: Interaction | None = None
        self._named = False

    def name_model(self) -> None:
        """In the caller's context, once the first events are there: say which model answers."""
        if not self._named and self._stream is not None:
            self._named = True
            answered_by(self._stream.model)

    async def next(self) -> list[Any]:
        if self._interaction is None or self._stream is None:
            self._interaction = self._engine.begin_call(self._live, self._request)
            try:
                self._stream = await self._engine.backend(self._live).open_stream(self._request)
            except BaseException as error:
                self._interaction.end(error)
                raise
            self._interaction.answered_by(self._stream.endpoint, self._stream.model)
            self._stream.on_end(self._interaction.end)
        events = await self._stream.next()
        self._interaction.on_chunks(events)
        return events

    def close(self) -> None:
        """Any thread, also that of a garbage collection; waits for nothing."""

        def close() -> None:
            if self._stream is not None:
                self._stream.close()

        try:
            self.loop.call_soon_threadsafe(close)
        except RuntimeError:
            pass  # the loop is closed, and with it the stream


def make_engines(
    slot: PoolSlot,
    capabilities: Capabilities,
    dialect: Dialect,
    vote: Vote | None = None,
    *,
    served: ServedHistory,
    single_flight: bool = False,
) -> tuple[PoolEngine, AsyncPoolEngine]:
    """The two halves of one LM."""
    given = slot, capabilities, vote, dialect, served
    halves = PoolEngine(*given), AsyncPoolEngine(*given)
    for half in halves:
        half.sync_half = halves[0]
        half.single_flight = single_flight
    return halves


def pool_path(lm: Any) -> str | None:
    """Path of the pool behind an LM; None for an LM of another kind, or whose pool is not here."""
    engine = getattr(lm, "engine", None)
    return engine._slot.path if isinstance(engine, _Engine) and engine._slot is not None else None


def _named(answer: Answer) -> Response:
    """The response, in the caller's context, where its model is named."""
    answered_by(answer.model)
    return answer.response


def _loaded(kind: type[_Engine], pool: str | None) -> _Engine:
    """For the pool of this name in this process; without one it says so when it is called."""
    found = None if pool is None else find_pool(pool)
    return kind(None if found is None else found.slot)
