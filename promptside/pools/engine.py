"""The engine pair: what makes a pool a full `dspy.LM`.

DSPy keeps cache, history, usage, callbacks, pricing and streaming; below that it calls an engine. These two hand each
request to the pool's event loop: `PoolEngine` from any thread, blocking it, `AsyncPoolEngine` from any event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from dspy.lm15 import Request, Response

from promptside.errors import LMPoolError
from promptside.pools.errors import WorkerLost
from promptside.pools.stream import END_OF_STREAM

if TYPE_CHECKING:
    from promptside.pools.lm_pool import LMPool

__all__ = ["AsyncPoolEngine", "PoolEngine"]

PICK_UP = 5.0
"""Seconds within which the pool's loop must begin with a call; a blocked loop is then an error and not a hang."""

T = TypeVar("T")


class _Engine:
    """What both have in common: the pool, and what DSPy may ask of it besides calls."""

    def __init__(self, pool: LMPool | None) -> None:
        self._pool = pool
        able = None if pool is None else pool.capabilities
        self.supports_response_schema = bool(able and able.response_schema)
        self.supports_function_calling = bool(able and able.function_calling)
        self.supports_reasoning = bool(able and able.reasoning)
        self.supported_params = frozenset((able and able.params) or ())

    @property
    def pool(self) -> LMPool:
        if self._pool is None:
            raise LMPoolError(
                "this LM was loaded from a file or another process, where its pool is not; set the LM again, "
                "with `program.set_lm(pool.lm())`"
            )
        return self._pool

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

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Hand `work` to the pool's loop; fails when that does not begin with it in time."""
        try:
            loop = self.pool.loop
        except BaseException:
            work.close()
            raise
        begun = threading.Event()

        async def begin() -> T:
            begun.set()
            return await work

        future = asyncio.run_coroutine_threadsafe(begin(), loop)
        future.add_done_callback(lambda _: begun.set())
        if not _on_a_loop() and not begun.wait(PICK_UP):
            future.cancel()
            raise WorkerLost(f"the event loop of the LM pool is blocked: it took no call within {PICK_UP:g} s")
        return future


class PoolEngine(_Engine):
    """Sync calls, from any thread but the pool's own; the calling thread waits."""

    def complete(self, request: Request) -> Response:
        """One answer; raises as `Dispatcher.complete`."""
        return self._wait(self.pool.dispatcher.complete(request))

    def stream(self, request: Request) -> Iterator[Any]:
        """The events of one answer."""
        stream = self._wait(self.pool.dispatcher.open_stream(request))
        try:
            while (event := self._wait(stream.next())) is not END_OF_STREAM:
                yield event
        finally:
            self._wait(stream.close())

    def close(self) -> None:
        """Nothing: the pool is borrowed."""

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._pool is not None and self._pool.is_own_thread():
            work.close()
            raise LMPoolError(
                "a synchronous LM call on the LM pool's own event loop would wait for itself; "
                "call it from another thread, or use the async API"
            )
        future = self._submit(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise WorkerLost("the LM pool was stopped during the call") from None
        except BaseException:
            future.cancel()
            raise


class AsyncPoolEngine(_Engine):
    """Async calls, from any event loop; cancelling the caller cancels the call, to the socket."""

    async def complete(self, request: Request) -> Response:
        """One answer; raises as `Dispatcher.complete`."""
        return await asyncio.wrap_future(self._submit(self.pool.dispatcher.complete(request)))

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The events of one answer."""
        stream = await asyncio.wrap_future(self._submit(self.pool.dispatcher.open_stream(request)))
        try:
            while (event := await asyncio.wrap_future(self._submit(stream.next()))) is not END_OF_STREAM:
                yield event
        finally:
            await asyncio.shield(asyncio.wrap_future(self._submit(stream.close())))

    async def aclose(self) -> None:
        """Nothing: the pool is borrowed."""


def _without_pool(kind: type[_Engine]) -> _Engine:
    return kind(None)


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
