"""Actors from synchronous code: a script, a thread of a web server, a notebook's worker.

`start_portal` runs an `ActorSystem` on an event loop in a thread of its own; `Portal` asks and spawns from any thread
without a loop, and the calling thread waits. Where a system runs already, `Portal(system)` gives its threads the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from promptside.actors.actor import Actor, check_ref
from promptside.actors.loop_thread import LoopThread
from promptside.actors.ref import ActorRef
from promptside.actors.system import ActorSystem
from promptside.checks import check

__all__ = ["Portal", "start_portal"]

A = TypeVar("A", bound=Actor)
P = ParamSpec("P")
R = TypeVar("R")

_END: Any = object()


class Portal:
    """Blocking access to a running system, from threads that run no event loop.

    ``tell``, ``kill``, ``suspend``, ``resume`` and ``info`` need no portal: references have them for every thread.

    Args:
        system: A running system.

    Attributes:
        system: The system.

    Raises:
        ValueError: `system` is no system. Of a method: `ref` is no reference.
    """

    def __init__(self, system: ActorSystem) -> None:
        check("Portal", "system", system, isinstance(system, ActorSystem), "give a running ActorSystem")
        self.system = system

    def spawn(self, actor_class: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[A]:
        """As `ActorSystem.spawn`."""
        return self.call(self.system.spawn(actor_class, *args, **kwargs))

    def ask(
        self,
        ref: ActorRef[A],
        method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """As `ActorRef.ask`; an interrupt of the waiting thread cancels the handler."""
        return self.call(check_ref("Portal.ask", ref).ask(method, *args, **kwargs))

    def stream(
        self,
        ref: ActorRef[A],
        method: Callable[Concatenate[A, P], AsyncIterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Iterator[R]:
        """As `ActorRef.stream`; close the iterator, or exhaust it, to end the producer."""
        items = check_ref("Portal.stream", ref).stream(method, *args, **kwargs)
        try:
            while (item := self.call(anext(items, _END))) is not _END:
                yield item
        finally:
            self.call(items.aclose())

    def stop(self, ref: ActorRef[Any], reason: object = "normal") -> None:
        """As `ActorRef.stop`."""
        self.call(check_ref("Portal.stop", ref).stop(reason))

    def call(self, work: Coroutine[Any, Any, R]) -> R:
        """Run any coroutine on the system's home loop, and wait for it.

        Args:
            work: Such as ``pool.start(portal.system)``.

        Raises:
            RuntimeError: The calling thread runs an event loop, which this would block: await instead. Or the system
                has ended, its event loop was stopped, or this process is a fork of the system's.
            ValueError: `work` is no coroutine.
            Exception: Whatever `work` raised.
        """
        check("Portal.call", "work", work, asyncio.iscoroutine(work), "give a coroutine, such as `pool.start(system)`")
        if asyncio._get_running_loop() is not None:
            work.close()
            raise RuntimeError(
                "a portal blocks its thread, and this one runs an event loop; await the async API instead"
            )
        try:
            future = self.system._check_running().begin(_run(work))
        except RuntimeError:
            work.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # an error holds this frame, which must not lead back to it


async def _run(work: Coroutine[Any, Any, R]) -> R:
    return await work


@contextmanager
def start_portal(name: str = "promptside") -> Iterator[Portal]:
    """An actor system on an event loop in a thread of its own, until the block ends.

    ::

        with start_portal() as portal:
            counter = portal.spawn(Counter, 10)
            total = portal.ask(counter, Counter.add, 5)

    What has not ended, though it was told to, because a thread hangs, is named in the log each second, and left behind
    after some seconds. A fork that leaves the block ends nothing: the system is its parent's.

    Args:
        name: Of the system and the thread.

    Raises:
        RuntimeError: There can be no more threads, or gevent has replaced them.
        OSError: There can be no event loop, as where no file descriptor is left.
        ValueError: `name` is not a text, or is empty.
    """
    process = os.getpid()
    system = ActorSystem(name)
    thread = LoopThread(f"{name}-portal")
    try:
        thread.run(system.__aenter__())
        try:
            yield Portal(system)
        except BaseException as error:
            if process == os.getpid():
                thread.run(system.__aexit__(type(error), error, error.__traceback__))
            raise
        if process == os.getpid():
            thread.run(system.__aexit__(None, None, None))
    finally:
        if process == os.getpid():  # the thread of a fork's parent is not there
            thread.stop_and_wait()
