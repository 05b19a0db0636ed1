"""`CrossLoopCall`: work on a pool's event loop, for a caller in another thread or on another loop.

Made by the engine pair and the embedder, for each call. asyncio's own way, `run_coroutine_threadsafe` and
`wrap_future`, takes 0.04 ms more of a call: two futures, one of them with a lock, that watch each other.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from promptside.pools.context.cancel import CallCancelled, CancelToken, current_cancel_token
from promptside.pools.errors import PoolUnavailable, WorkerLost
from promptside.threads import Heartbeat, where_loop_is

__all__ = ["CrossLoopCall"]

T = TypeVar("T")

Reply = Callable[[BaseException | None, Any], None]
"""Called with the error, or with None and the result; calls after the first are dropped. Any thread."""


class CrossLoopCall(Generic[T]):
    """Work on another event loop. It begins, in the caller's context, with `wait` or `result`; call one of them, once.

    Args:
        loop: The pool's.
        work: Makes the coroutine; cancelled when its caller is.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> None:
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[None] | None = None  # None until it has begun
        self._abandoned = False
        self._heartbeat = Heartbeat()

    def wait(self) -> T:
        """The result; blocks the calling thread. Once its caller was cancelled, any failure is `CallCancelled`."""
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def reply(error: BaseException | None, result: Any = None) -> None:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)

        def cancelled() -> None:
            reply(CallCancelled("the caller of the program was cancelled"))

        token = current_cancel_token() or CancelToken()
        token.check()
        try:
            with token.on_cancel(cancelled):
                self._start(reply)
                while not concurrent.futures.wait((answer,), Heartbeat.SECONDS).done and self._task is None:
                    self._check_begun(reply)
                return answer.result()
        except BaseException:
            self._abandon()
            token.check()
            raise

    async def result(self) -> T:
        """The result, on any event loop."""
        here = asyncio.get_running_loop()
        answer: asyncio.Future[T] = here.create_future()

        def settle(error: BaseException | None, result: Any) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        def reply(error: BaseException | None, result: Any = None) -> None:
            with contextlib.suppress(RuntimeError):  # its loop is closed, and with it the caller
                here.call_soon_threadsafe(settle, error, result)

        def check_begun() -> None:
            if self._task is None:
                self._check_begun(reply)
                self._timer = here.call_later(Heartbeat.SECONDS, check_begun)

        self._timer = here.call_later(Heartbeat.SECONDS, check_begun)
        try:
            self._start(reply)
            return await answer
        except BaseException:
            self._abandon()
            raise
        finally:
            self._timer.cancel()

    def _start(self, reply: Reply) -> None:
        try:
            self._loop.call_soon_threadsafe(self._begin, reply)
        except RuntimeError as error:
            raise PoolUnavailable("the LM pool's event loop is closed") from error

    def _begin(self, reply: Reply) -> None:
        if not self._abandoned:
            self._task = asyncio.ensure_future(self._run(reply))  # noqa: TID251 - ended by its caller's end
            self._task.add_done_callback(lambda task: reply(_lost(), None) if task.cancelled() else None)

    async def _run(self, reply: Reply) -> None:
        try:
            result = await self._work()
        except asyncio.CancelledError:
            raise  # by the caller, which waits no more, or by the loop: then the callback of `_begin` replies
        except GeneratorExit:
            reply(_lost(), None)
            raise
        except BaseException as error:
            reply(error, None)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            reply(None, result)

    def _abandon(self) -> None:
        """The caller has gone: cancel the work, or do not begin it."""
        self._abandoned = True

        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the work
            self._loop.call_soon_threadsafe(cancel)

    def _check_begun(self, reply: Reply) -> None:
        if self._heartbeat.missed(self._loop) >= Heartbeat.MAX_MISSED:
            reply(PoolUnavailable(f"the event loop of the LM pool is blocked: {where_loop_is(self._loop)}"), None)


def _lost() -> WorkerLost:
    return WorkerLost("the LM pool ended during the call")
