"""`CrossLoopCall`: work on a pool's event loop, for a caller in another thread or on another loop.

Made by the engine pair and the embedder, for each call. What asyncio has for it, `run_coroutine_threadsafe` and
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

__all__ = ["CrossLoopCall"]

START_TIMEOUT = 5.0
"""Seconds within which the pool's loop must begin with a call; a blocked loop is then an error and not a hang."""

T = TypeVar("T")

Reply = Callable[[BaseException | None, Any], None]
"""Called with the error, or with None and the result; what comes after the first one is dropped. Any thread."""


class CrossLoopCall(Generic[T]):
    """Work on another event loop; begun, in the caller's context, when its result is asked for, which is done once.

    Args:
        loop: The pool's.
        work: Makes what is awaited there; cancelled when the caller goes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> None:
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[None] | None = None  # from when it has begun
        self._given_up = False

    def wait(self) -> T:
        """The result, in a thread that may block; once its caller has gone any failure is `CallCancelled`."""
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def reply(error: BaseException | None, result: Any = None) -> None:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)

        def abandon() -> None:
            reply(CallCancelled("the caller of the program has gone"))

        token = current_cancel_token() or CancelToken()
        token.check()
        try:
            with token.on_cancel(abandon):
                self._start(reply)
                if not concurrent.futures.wait((answer,), START_TIMEOUT).done:
                    self._check_begun(reply)
                return answer.result()
        except BaseException:
            self._give_up()
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

        timer = here.call_later(START_TIMEOUT, self._check_begun, reply)
        try:
            self._start(reply)
            return await answer
        except BaseException:
            self._give_up()
            raise
        finally:
            timer.cancel()

    def _start(self, reply: Reply) -> None:
        try:
            self._loop.call_soon_threadsafe(self._begin, reply)
        except RuntimeError as error:
            raise PoolUnavailable("the LM pool's event loop is closed") from error

    def _begin(self, reply: Reply) -> None:
        if not self._given_up:
            self._task = asyncio.ensure_future(self._run(reply))  # noqa: TID251 - ended by its caller's end
            self._task.add_done_callback(lambda task: reply(_lost(), None) if task.cancelled() else None)

    async def _run(self, reply: Reply) -> None:
        try:
            result = await self._work()
        except asyncio.CancelledError:
            raise  # by the caller, who does not listen any more, or by the loop, also before the first step of this
        except GeneratorExit:
            reply(_lost(), None)
            raise
        except BaseException as error:
            reply(error, None)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            reply(None, result)

    def _give_up(self) -> None:
        """Nobody waits any more: what has begun is cancelled, and the rest does not begin."""
        self._given_up = True

        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the work
            self._loop.call_soon_threadsafe(cancel)

    def _check_begun(self, reply: Reply) -> None:
        if self._task is None:
            late = f"the event loop of the LM pool is blocked: it began no call in {START_TIMEOUT:g} s"
            reply(PoolUnavailable(late), None)


def _lost() -> WorkerLost:
    return WorkerLost("the LM pool ended during the call")
