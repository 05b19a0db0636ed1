"""Synchronous modules run in worker threads. A thread cannot be cancelled; its LM calls can be refused.

A module that is called from the event loop gets a thread of the program's own limit. One that is called from such a
thread runs in that thread, on behalf of its actor: if it took another one, programs that are nested as deep as the
limit would wait for each other for ever.

Called by module actors, and in threads by hosted modules.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from promptside.actors import ActorRef
from promptside.actors.spi import NodeClosed, cell_of
from promptside.pools.context.cancel import CancelToken, current_cancel_token, with_cancel_token
from promptside.pools.context.settings import put_setting, read_setting

__all__ = ["MAX_THREADS", "RunInThread", "begin_on", "in_thread", "wait_for"]

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
