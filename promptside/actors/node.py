"""A node: one event loop hosting whole subtrees of a system.

The application's own loop is the system's home node. `ActorSystem.start_node` adds others, each in a thread of its
own, so that a blocked application loop cannot starve what lives there.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from promptside.actors.loop_thread import LoopThread, LoopWatch

__all__ = ["LOOP_CLOSED", "Node", "NodeClosed"]

T = TypeVar("T")

LOOP_CLOSED: Final = "its event loop is closed"
"""Reason of `ActorStopped` where there is no loop left to say another."""

LOOP_STOPPED: Final = (
    "its event loop does not run now, and nothing is handled later; keep it running inside `async with ActorSystem()`"
)
FORKED: Final = (
    "it lives in process {0}, of which this one is a fork; open an ActorSystem here, after the fork, or start the "
    "process by `spawn`"
)


class NodeClosed(RuntimeError):
    """Nothing is handled on the node's event loop; its text says why. Never leaves the package."""

    @property
    def has_ended(self) -> bool:
        """Whether the loop is closed, so that everything on it has ended."""
        return str(self) == LOOP_CLOSED


class Node:
    """An event loop and the thread it runs in.

    Attributes:
        name: For the tree and the thread's name.
        loop: The event loop.
        thread_id: `threading.get_ident()` of the loop's thread; 0 once the system has closed.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        self.name = name
        self.loop = loop
        self.thread_id = thread_id
        self._process = os.getpid()
        self._thread: LoopThread | None = None

    @classmethod
    def here(cls) -> Node:
        """The home node: the running loop, in the calling thread."""
        return cls("home", asyncio.get_running_loop(), threading.get_ident())

    @classmethod
    async def start(cls, name: str) -> Node:
        """A new event loop in a thread of its own; returns once it runs.

        Raises:
            RuntimeError: There can be no more threads.
            OSError: There can be no event loop, as where no file descriptor is left.
        """
        thread = LoopThread(name)
        try:
            loop = await asyncio.wrap_future(thread.running)
        except BaseException:
            await thread.stop()
            raise
        node = cls(name, loop, thread.thread.ident or 0)
        node._thread = thread
        return node

    @property
    def trouble(self) -> str | None:
        """Why what is sent here would never be handled; None if it will be. Any thread."""
        if self._process != os.getpid():
            return FORKED.format(self._process)
        if self.loop.is_closed():
            return LOOP_CLOSED
        # One in a thread of its own runs until it is closed.
        return None if self._thread is not None or self.loop.is_running() else LOOP_STOPPED

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` on this node's loop: at once on it, else soon; not at all where it would wait for ever."""
        if asyncio._get_running_loop() is self.loop:
            function(*args)
            return
        if self.trouble is not None:
            return
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed, and everything on it has ended

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` on this node's loop; cancelling the caller cancels it there. Raises `NodeClosed`."""
        if asyncio._get_running_loop() is self.loop:
            return await work
        return await asyncio.wrap_future(self.begin(work))

    async def run_to_the_end(self, work: Coroutine[Any, Any, T], *, after: float | None) -> T:
        """As `run`, for work that ends something; raises `LoopHangs` where the thread hangs.

        Args:
            work: As for `run`.
            after: The time of the caller's loop from which on a blocked loop counts as hanging; None for now.
        """
        if self._thread is None or asyncio._get_running_loop() is self.loop:
            return await self.run(work)
        here, watch = asyncio.get_running_loop(), LoopWatch(self._thread)
        running = here.create_task(self.run(work))
        try:
            while not (await asyncio.wait({running}, timeout=1))[0]:
                if after is None or here.time() > after:
                    watch.check()
            return running.result()
        finally:
            running.cancel()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work` on this node's loop, from any thread; raises `NodeClosed`."""
        trouble = self.trouble
        if trouble is None:
            try:
                return asyncio.run_coroutine_threadsafe(work, self.loop)
            except RuntimeError:
                trouble = LOOP_CLOSED  # just now
        work.close()
        raise NodeClosed(trouble)

    async def stop(self) -> None:
        """End the loop and join its thread; nothing of it is left then. Of the home node, only forget the thread.

        From any loop, and again when it was cancelled. A thread that hangs is left behind; see `LoopThread.stop`.
        """
        self.thread_id = 0  # another loop may run in this thread later
        if self._thread is not None:
            await self._thread.stop()

    def __repr__(self) -> str:
        return f"<Node {self.name}>"
