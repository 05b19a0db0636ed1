"""`TaskSupervisor`: one-off async functions as supervised actors, one at a time or mapped over a source.

Users, pools and programs hold the handle and give it functions. `actors` has the actors behind it, `map` the
backpressure of a map.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextvars import copy_context
from typing import Any, Literal, ParamSpec, TypeVar, overload

from promptside.actors import Actor, ActorRef
from promptside.actors.spi import CURRENT, dead_letter, running
from promptside.checks import check_seconds, is_count
from promptside.supervision.handle import Handle
from promptside.supervision.tasks.actors import BackgroundTask, Task, TaskReply, TaskSupervisorActor, check_async
from promptside.supervision.tasks.map import TaskMap
from promptside.texts import describe, repr_of

__all__ = ["TaskSupervisor"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class TaskSupervisor(Handle[TaskSupervisorActor]):
    """Runs async functions, each as an actor of its own (Elixir's `Task.Supervisor`).

    ::

        tasks = await TaskSupervisor().start(system)
        page = await tasks.run(fetch, "https://example.org")
        async for score in tasks.map(judge, examples, max_concurrency=16):
            ...

    A task stands in the tree under the name of its function and a number, is never restarted, and is gone when it is
    done. Functions run on the event loop of the task supervisor, with the caller's context variables. Do not use it for
    state, or for what must be restarted: that is an actor, under a `Supervisor`.

    Args:
        name: In the tree and the registry.
        max_tasks: Tasks at one time, >= 1; `math.inf` for no bound.
        shutdown: Seconds that a cancelled task may take to unwind before it is killed, >= 0.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    shutdown = math.inf

    def __init__(self, name: str = "tasks", *, max_tasks: float = math.inf, shutdown: float = 5.0) -> None:
        super().__init__(name)
        if max_tasks != math.inf and not is_count(max_tasks):
            raise ValueError(f"TaskSupervisor: max_tasks={repr_of(max_tasks)}: give a whole number >= 1, or math.inf")
        check_seconds("TaskSupervisor", "shutdown", shutdown, zero=True)
        self.max_tasks = max_tasks
        self.task_shutdown = shutdown
        self._numbers = itertools.count(1)

    def _make_actor(self) -> TaskSupervisorActor:
        return TaskSupervisorActor(self, self._numbers, self.max_tasks, self.task_shutdown)

    async def run(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function as a task, and wait for its result. From any event loop.

        Cancelling the caller cancels the task, and waits until it has unwound: `shutdown` seconds at most. Within a
        handler, the task inherits the deadline of the message being handled.

        Args:
            fn: An async function.
            *args: For the function.
            **kwargs: For the function.

        Returns:
            What it returned.

        Raises:
            Exception: Whatever it raised, the same object.
            ActorStopped: The task was killed, or the supervisor does not run or was stopped.
            MaxChildrenReached: `max_tasks` run already.
            AskTimeout: The inherited deadline has passed.
            TypeError: The function is not async.
        """
        check_async(fn)
        host, loop = self._running_host(), asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        here = loop is host.node.loop
        reply = future if here else TaskReply(loop, functools.partial(_pass_on, future))
        sender = running(CURRENT.get())
        envelope = host.make_envelope(Task, fn, args, kwargs, reply, sender, copy_context())
        if sender is not None:
            sender.waits.add(envelope)
        try:
            host.submit(envelope)
            return await future
        except asyncio.CancelledError:
            await host.cancel(envelope)
            raise
        finally:
            if sender is not None:
                sender.waits.discard(envelope)
            host.reap(envelope)
            del future, reply, envelope  # an error holds this frame, which must not lead back to it

    def start_soon(self, fn: Callable[P, Awaitable[Any]], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[Actor]:
        """Start a task, and go on at once. From any thread.

        Its result is dropped. An exception is a crash of the task: published as ``actor.crashed``, and logged where
        there is no listener.

        Args:
            fn: An async function.
            *args: For the function.
            **kwargs: For the function.

        Returns:
            The task, to monitor or `kill` it; `ActorRef.stop` cancels it.

        Raises:
            MaxChildrenReached: `max_tasks` run already. From another thread, a dead letter instead.
            ActorStopped: The supervisor does not run.
            TypeError: The function is not async.
        """
        check_async(fn)
        host = self._running_host()
        here = asyncio._get_running_loop() is host.node.loop

        def tell(outcome: TaskReply) -> None:
            if outcome.error is not None and envelope.cell.incarnation == 0 and not here:
                dead_letter(envelope.cell, envelope.method, describe(outcome.error))

        outcome = TaskReply(None, tell)
        envelope = host.make_envelope(BackgroundTask, fn, args, kwargs, outcome, None, copy_context())
        host.submit(envelope)
        if here and outcome.error is not None:
            raise outcome.take_error()
        return envelope.cell.ref

    @overload
    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        max_concurrency: int = ...,
        ordered: bool = ...,
        return_exceptions: Literal[False] = ...,
    ) -> AsyncGenerator[R, None]: ...

    @overload
    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        max_concurrency: int = ...,
        ordered: bool = ...,
        return_exceptions: bool,
    ) -> AsyncGenerator[R | Exception, None]: ...

    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        max_concurrency: int = 8,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[R | Exception, None]:
        """Run a function on each item of a source, each as a task: ``async for result in tasks.map(fn, items)``.

        The source is read as results are consumed: at most `max_concurrency` items are taken from it whose results the
        consumer has not got yet. With `max_tasks` reached, items wait for room; only a map within a task of the same
        supervisor, with none of its own running, fails instead (`MaxChildrenReached`), since that could be for ever.

        Leaving the loop early cancels what runs, waits for it to unwind, and closes an async source: at once with
        ``contextlib.aclosing``, otherwise when the iterator is collected. From any event loop; the source is read in
        one task on the consumer's own.

        Args:
            fn: An async function of one argument.
            items: An iterable or an async iterable; it may be endless.
            max_concurrency: Items at one time, >= 1.
            ordered: Whether results come in the order of the items, or else as they are ready.
            return_exceptions: Whether an item's exception is yielded in its place, or else raised.

        Yields:
            The results.

        Raises:
            Exception: Whatever an item raised, in its place, or the source, after its items; the rest is cancelled.
            ActorStopped: The supervisor was stopped or has crashed; what had finished is yielded first.
            TypeError: The function is not async, or `items` is not iterable.
            ValueError: `max_concurrency` is not a whole number >= 1.
        """
        check_async(fn)
        if not isinstance(items, Iterable | AsyncIterable):
            raise TypeError(
                f"items={repr_of(items)} is not iterable; give an iterable or an async iterable, not a function"
            )
        if not is_count(max_concurrency):
            raise ValueError(f"max_concurrency={repr_of(max_concurrency)}: give a whole number >= 1")
        return TaskMap(self._running_host, fn, items, max_concurrency, ordered, return_exceptions).results()

    def _running_host(self) -> TaskSupervisorActor:
        host = self._running()
        if not host.accepts():
            raise host.stopped()
        return host


def _pass_on(future: asyncio.Future[Any], outcome: TaskReply) -> None:
    if future.done():
        return
    if outcome.error is None:
        future.set_result(outcome.value)
    else:
        future.set_exception(outcome.error)
