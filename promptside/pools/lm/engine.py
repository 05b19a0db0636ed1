"""The engine pair: what makes a pool a full `dspy.LM`.

DSPy keeps cache, history, usage, callbacks, pricing and streaming; below that it calls an engine. These two hand each
request to the dispatcher on the pool's event loop: `PoolEngine` from any thread, blocking it, `AsyncPoolEngine` from
any event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from dspy.lm15 import Request, Response

from promptside.pools.accounting.history import Interaction
from promptside.pools.accounting.ledger import CALL_USAGE, CallUsage
from promptside.pools.context.batch import aborting_on_fatal
from promptside.pools.context.cancel import current_cancel_token
from promptside.pools.context.labels import current_labels
from promptside.pools.context.priority import current_priority
from promptside.pools.errors import BudgetExceeded, PoolUnavailable
from promptside.pools.lm.attempt import CallSpan
from promptside.pools.lm.bridge import CrossLoopCall
from promptside.pools.lm.single_flight import is_deterministic
from promptside.pools.lm.stream import LMStream

if TYPE_CHECKING:
    from promptside.pools.lm.dispatcher import Dispatcher
    from promptside.pools.lm.ensemble import Ensemble
    from promptside.pools.lm.pool import LMPool

__all__ = ["AsyncPoolEngine", "PoolEngine", "pool_of"]


class _Engine:
    """What both have in common: the pool, and what DSPy may ask of it besides calls."""

    def __init__(self, pool: LMPool | None, ensemble: Ensemble | None = None) -> None:
        self._pool = pool
        self._ensemble = ensemble
        self.pair: _Engine = self  # stands for both in the pool's history
        self.shares = False  # calls with identical ones that are under way
        able = None if pool is None else pool.capabilities
        self.supports_response_schema = bool(able and able.response_schema)
        self.supports_function_calling = bool(able and able.function_calling)
        self.supports_reasoning = bool(able and able.reasoning)
        self.supported_params = frozenset((able and able.params) or ())

    @property
    def pool(self) -> LMPool:
        """The pool; raises `PoolUnavailable` where there is none."""
        if self._pool is None:
            raise PoolUnavailable(
                "this LM was loaded from a file or another process, where its pool is not; set the LM again, "
                "with `program.set_lm(pool.lm())`"
            )
        return self._pool

    @property
    def source(self) -> Dispatcher | Ensemble:
        """What answers: the pool's dispatcher, or an ensemble over it; raises `PoolUnavailable` where none runs."""
        dispatcher = self.pool.dispatcher
        return dispatcher if self._ensemble is None else self._ensemble

    async def _complete(self, source: Dispatcher | Ensemble, request: Request) -> Response:
        """On the pool's loop."""
        interaction = self._admit(request)
        try:
            if self.shares and is_deterministic(request):
                answer = await self.pool.flights.complete(source, request, lambda: source.complete(request))
            else:
                answer = await source.complete(request)
        except BaseException as error:
            interaction.end(error)
            raise
        interaction.end(answer=answer)
        return answer

    def _admit(self, request: Request) -> Interaction:
        """A call begins, in a task of its own on the pool's loop: it is charged and remembered; raises as `_charge`."""
        return self.pool.past.begin(self.pair, request, current_labels(), self._charge(request))

    def _charge(self, request: Request) -> CallUsage:
        """A call begins: it is charged, and so is what follows in its task.

        Raises:
            BudgetExceeded: One of the pool's budgets is spent.
            BatchAborted: It is, and the call is one of a batch run, which ends by that.
        """
        pool = self.pool
        try:
            charge = pool.ledger.open(current_labels())
        except BudgetExceeded as error:
            CallSpan(pool.dispatcher._events, pool.path, request).end(error)
            if (run := current_priority().batch) is not None:
                run.cancel(error)  # DSPy would make a score of the error
                run.check()
            raise
        CALL_USAGE.set(charge)
        return charge

    def dump_state(self) -> dict[str, Any]:
        """For saved programs: a pool is of its process and is not saved."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> _Engine:
        """An engine without a pool, which says so when it is called."""
        return cls(None)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Engine:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_pool, (type(self),)


class PoolEngine(_Engine):
    """Sync calls, from any thread but the pool's own; the calling thread waits."""

    def complete(self, request: Request) -> Response:
        """One answer; raises as `Dispatcher.complete`, and `PoolUnavailable`."""
        self._check_caller()
        with aborting_on_fatal():
            source = self.source
            return CrossLoopCall(self.pool.loop, lambda: self._complete(source, request)).wait()

    def stream(self, request: Request) -> Iterator[Any]:
        """The events of one answer; raises as `complete`."""
        self._check_caller()
        with aborting_on_fatal():
            stream = _Stream(self, request)
            try:
                while events := CrossLoopCall(stream.loop, stream.next).wait():
                    yield from events
            finally:
                stream.close()

    def close(self) -> None:
        """Nothing: the pool is borrowed."""

    def _check_caller(self) -> None:
        if (token := current_cancel_token()) is not None:
            token.check()
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return
        if here is self.pool.loop:
            raise PoolUnavailable(
                "a synchronous LM call on the LM pool's own event loop would wait for itself; "
                "call it from another thread, or use the async API"
            )


class AsyncPoolEngine(_Engine):
    """Async calls, from any event loop; cancelling the caller cancels the call, to the socket."""

    async def complete(self, request: Request) -> Response:
        """One answer; raises as `Dispatcher.complete`, and `PoolUnavailable`."""
        with aborting_on_fatal():
            source = self.source
            return await CrossLoopCall(self.pool.loop, lambda: self._complete(source, request)).result()

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The events of one answer; raises as `complete`."""
        with aborting_on_fatal():
            stream = _Stream(self, request)
            try:
                while events := await CrossLoopCall(stream.loop, stream.next).result():
                    for event in events:
                        yield event
            finally:
                stream.close()

    async def aclose(self) -> None:
        """Nothing: the pool is borrowed."""


class _Stream:
    """A streaming call that begins with its first `next`, on the pool's loop; it can be closed at any moment."""

    def __init__(self, engine: _Engine, request: Request) -> None:
        self.loop = engine.pool.loop
        self._engine = engine
        self._source = engine.source
        self._request = request
        self._stream: LMStream | None = None
        self._interaction: Interaction | None = None

    async def next(self) -> list[Any]:
        if self._interaction is None or self._stream is None:
            self._interaction = self._engine._admit(self._request)
            try:
                self._stream = await self._source.open_stream(self._request)
            except BaseException as error:
                self._interaction.end(error)
                raise
            self._stream.when_ended(self._interaction.end)
        events = await self._stream.next()
        self._interaction.heard(events)
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


def pool_of(lm: Any) -> LMPool | None:
    """The pool behind an LM; None for one of another kind, or whose pool is not here."""
    engine = getattr(lm, "engine", None)
    return engine._pool if isinstance(engine, _Engine) else None


def _without_pool(kind: type[_Engine]) -> _Engine:
    return kind(None)
