"""`TaskSupervisor`: one-off async functions as supervised actors, one at a time or mapped over a source.

Users, pools and programs hold the handle and give it functions. `task_host` has the actors behind it, `task_map` the
backpressure of a map.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextvars import copy_context
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

from promptside.actors import Actor, ActorRef, ActorSystem, ChildSpec, Node, Restart
from promptside.actors.cycles import running
from promptside.actors.envelope import CURRENT
from promptside.checks import check_name
from promptside.errors import ActorStopped
from promptside.supervision.tasks.actors import BackgroundTask, Outcome, Task, TaskSupervisorActor, check_async
from promptside.supervision.tasks.map import TaskMap

__all__ = ["TaskSupervisor"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class TaskSupervisor:
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

    def __init__(self, name: str = "tasks", *, max_tasks: float = math.inf, shutdown: float = 5.0) -> None:
        check_name("TaskSupervisor", "name", name)
        if max_tasks != math.inf and not (isinstance(max_tasks, int) and max_tasks >= 1):
            raise ValueError(f"TaskSupervisor: max_tasks={max_tasks!r}: give a whole number >= 1, or math.inf")
        _check_seconds("TaskSupervisor: shutdown", shutdown)
        self.name = name
        self.max_tasks = max_tasks
        self.shutdown = shutdown
        self._host: TaskSupervisorActor | None = None  # of the current incarnation
        self._numbers = itertools.count(1)

    async def start(self, system: ActorSystem) -> Self:
        """Start it at the top of a system; it ends with the system, or with `stop`.

        Args:
            system: The running system.

        Returns:
            The task supervisor itself.

        Raises:
            NameTaken: Another live actor holds its name.
            ActorStartError: It runs already, elsewhere.
        """
        await system.with_options(name=self.name).spawn(TaskSupervisorActor, self)
        return self

    def child_spec(self, *, restart: Restart = "permanent", node: Node | str | None = None) -> ChildSpec:
        """To have it started, and restarted, by a `Supervisor`. This handle then works with each incarnation.

        Args:
            restart: As in `ChildSpec`. A restart loses the tasks of the incarnation before.
            node: As in `ChildSpec`.
        """
        start = functools.partial(TaskSupervisorActor, self)
        return ChildSpec(self.name, start, restart, shutdown=math.inf, name=self.name, node=node)

    async def stop(self, *, drain: float = 0.0) -> None:
        """Take no more tasks, end those that run, and wait for their end; a system does the same when it closes.

        Whoever waits for a task that is cancelled gets `ActorStopped`, as does a `map` that would start another one.
        Under a supervisor, that decides what follows.

        Args:
            drain: Seconds that running tasks have to finish before they are killed, `math.inf` for as long as it takes;
                0 cancels them at once, and cuts an earlier drain short.
        """
        _check_seconds("TaskSupervisor.stop: drain", drain)
        if self._host is None:
            return
        cell = self._host._spawned()
        drain_until = cell.node.loop.time() + drain if drain else None
        cell.node.call(functools.partial(cell.request_end, "shutdown", drain_until=drain_until))
        await cell.ref.stop("shutdown")  # waits; but not for itself, when a task is the caller

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
        reply = future if here else Outcome(loop, functools.partial(_pass_on, future))
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
            host.sweep(envelope)

    def start_soon(self, fn: Callable[P, Awaitable[Any]], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[Actor]:
        """Start a task, and go on at once. From any thread.

        Its result is dropped. An exception is a crash of the task: published as ``actor.crashed``, and logged if nobody
        listens.

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
        here = threading.get_ident() == host.node.thread_id

        def tell(outcome: Outcome) -> None:
            if outcome.error is not None and envelope.cell.incarnation == 0 and not here:
                host.system.dead_letter(envelope.cell, envelope.method, str(outcome.error))

        outcome = Outcome(None, tell)
        envelope = host.make_envelope(BackgroundTask, fn, args, kwargs, outcome, None, copy_context())
        host.submit(envelope)
        if here and outcome.error is not None:
            raise outcome.error
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
            raise TypeError(f"items={items!r} is not iterable; give an iterable or an async iterable, not a function")
        if not (isinstance(max_concurrency, int) and max_concurrency >= 1):
            raise ValueError(f"max_concurrency={max_concurrency!r}: give a whole number >= 1")
        return TaskMap(self, fn, items, max_concurrency, ordered, return_exceptions).results()

    def _running_host(self) -> TaskSupervisorActor:
        if self._host is None:
            raise ActorStopped(self.name, "not started yet; `await tasks.start(system)`", started=False, incarnation=0)
        if not self._host.accepts():
            raise self._host.stopped()
        return self._host


def _pass_on(future: asyncio.Future[Any], outcome: Outcome) -> None:
    if future.done():
        return
    if outcome.error is None:
        future.set_result(outcome.value)
    else:
        future.set_exception(outcome.error)


def _check_seconds(what: str, seconds: float) -> None:
    if not isinstance(seconds, int | float) or not seconds >= 0:
        raise ValueError(f"{what}={seconds!r}: give seconds >= 0")
