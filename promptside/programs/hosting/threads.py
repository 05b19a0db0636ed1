"""Synchronous modules run in worker threads. A thread cannot be cancelled; its LM calls can be refused.

A module that is called from the event loop gets a thread of the program's own limit. One that is called from such a
thread runs in that thread, on behalf of its actor: if it took another one, programs that are nested as deep as the
limit would wait for each other for ever.

Called by module actors, and in threads by hosted modules.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from promptside.actors import ActorRef
from promptside.actors.spi import NodeClosed, cell_of
from promptside.errors import ProgramError
from promptside.pools.context.cancel import CancelToken, current_cancel_token, with_cancel_token
from promptside.pools.context.settings import put_setting, read_setting
from promptside.threads import Heartbeat, where_loop_is

__all__ = ["MAX_THREADS", "BorrowedThreadRun", "RunInThread", "begin_on", "in_thread", "wait_for"]

T = TypeVar("T")

RunInThread: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]

MAX_THREADS: Final = 40
"""Synchronous modules of one program, functions of one pipeline or calls of one tool that run at a time."""

HELD = "promptside_threads"
"""The key of DSPy's settings that holds the limits that the current thread counts against."""


async def in_thread(
    function: Callable[[], T],
    threads: anyio.CapacityLimiter,
    run: RunInThread | None = None,
) -> T:
    """Run a function in a worker thread, in the caller's context.

    Cancelled, it leaves the thread behind: that thread's pending LM call and every later one raise `CallCancelled`.
    The limit does not hold for a caller that is itself called from a thread that counts against it: that thread could
    be waiting for its own place.

    Args:
        function: The function.
        threads: The limit.
        run: Runs it in a thread of its own choice, which is waited for; not for such a caller.
    """
    held = read_setting(HELD, ())
    nested = threads in held
    limit = anyio.CapacityLimiter(1) if nested else threads
    token = CancelToken()

    def work() -> T:
        with with_cancel_token(token):  # which resets this too
            put_setting(HELD, (*held, threads))
            return function()

    try:
        if run is not None and not nested:
            result: T = await run(work)
            return result
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limit)
    except asyncio.CancelledError:
        token.cancel()
        raise


def wait_for(work: Coroutine[Any, Any, T], actor: ActorRef[Any]) -> T:
    """Await `work` on an actor's event loop, in a thread that may block; an interrupt, or its token, cancels the work.

    Raises:
        RuntimeError: The thread runs an event loop.
        ActorStopped: The actor's event loop is closed or stopped, or of another process.
        CallCancelled: The program that runs in this thread was cancelled.
        Exception: Whatever `work` raised.
    """
    if asyncio._get_running_loop() is not None:
        work.close()
        raise RuntimeError("this blocks its thread, which runs an event loop; await `acall` instead")
    token = current_cancel_token() or CancelToken()
    future = begin_on(actor, work)
    try:
        with token.on_cancel(future.cancel):
            return future.result()
    except BaseException:
        future.cancel()
        token.check()
        raise


def begin_on(actor: ActorRef[Any], work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Begin `work` on an actor's event loop; raises `ActorStopped` where it would never be done."""
    try:
        return actor.node.begin(work)
    except NodeClosed as error:
        raise cell_of(actor).stopped(str(error), started=False) from error


class BorrowedThreadRun:
    """One run of a module in its caller's thread. For its actor, it is a message under way.

    Attributes:
        token: Cancelled when the actor is killed or the ask is cancelled.
    """

    def __init__(self) -> None:
        self.token = CancelToken()
        self._begun = threading.Event()
        self._accepted = threading.Event()
        self._finished: asyncio.Future[None] | None = None

    async def wait_finished(self) -> None:
        """In the actor: until the thread has ended its run."""
        self._finished = asyncio.get_running_loop().create_future()
        self.accept()
        try:
            await self._finished
        except asyncio.CancelledError:
            self.token.cancel()
            raise

    def begin(self) -> None:
        """On the event loop: the actor is being asked."""
        self._begun.set()

    def accept(self) -> None:
        """The actor has begun with it, or never will."""
        self._begun.set()
        self._accepted.set()

    def wait_accepted(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: until the actor, on `loop`, has begun with it, or never will.

        Raises:
            ProgramError: The event loop is blocked, perhaps by code that waits for this thread.
        """
        heartbeat = Heartbeat()
        while not self._begun.wait(heartbeat.SECONDS):
            if heartbeat.missed(loop) >= heartbeat.MAX_MISSED:
                raise ProgramError(
                    f"the event loop of the program is blocked: {where_loop_is(loop)}. Code there that waits for "
                    "threads, such as `dspy.Parallel` or `batch` in an `aforward`, must do so in a thread: "
                    "`await dspy.asyncify(...)(...)`"
                )
        self._accepted.wait()

    def finish(self) -> None:
        """In the thread: the run is over."""
        finished = self._finished
        if finished is not None:
            with suppress(RuntimeError):  # the loop is closed, and the actor has ended
                finished.get_loop().call_soon_threadsafe(_finish, finished)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
