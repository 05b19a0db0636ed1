"""A node: one event loop hosting whole subtrees of a system.

The application's own loop is the system's home node. `ActorSystem.start_node` adds others, each in a thread of its
own, so that a blocked application loop cannot starve what lives there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from promptside.actors.waiting import wait_through_cancellation

__all__ = ["LOOP_CLOSED", "Node", "NodeClosed"]

T = TypeVar("T")

LOOP_CLOSED = "its event loop is closed"
"""Reason of `ActorStopped` where there is no loop left to say another."""


class NodeClosed(RuntimeError):
    """The node's event loop is closed; everything on it has ended. Never leaves the package."""


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
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()

    @classmethod
    def here(cls) -> Node:
        """The home node: the running loop, in the calling thread."""
        return cls("home", asyncio.get_running_loop(), threading.get_ident())

    @classmethod
    async def start(cls, name: str) -> Node:
        """A new event loop in a thread of its own; returns once it runs."""
        ready: asyncio.Future[Node] = asyncio.get_running_loop().create_future()
        home = ready.get_loop()

        def main() -> None:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                node = cls(name, loop, threading.get_ident())
                node._thread = threading.current_thread()
                loop.call_soon(home.call_soon_threadsafe, _resolve, ready, node)
                while node.thread_id:  # until `stop`; an actor that crashes of one of these takes no other with it
                    with suppress(KeyboardInterrupt, SystemExit):
                        loop.run_forever()
            node._ended.set_result(None)

        threading.Thread(target=main, name=f"promptside-{name}", daemon=True).start()
        cancelled = await wait_through_cancellation(lambda: asyncio.wait({ready}), ready.done)
        if cancelled is not None:
            await ready.result().stop()  # the loop would never end
            raise cancelled
        return ready.result()

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` on this node's loop: at once in its own thread, else soon; not at all once it is closed."""
        if self.loop.is_closed():
            return
        if threading.get_ident() == self.thread_id:
            function(*args)
            return
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed, and everything on it has ended

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` on this node's loop; cancelling the caller cancels it there."""
        if threading.get_ident() == self.thread_id and not self.loop.is_closed():
            return await work
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError as error:
            work.close()
            raise NodeClosed from error
        return await asyncio.wrap_future(future)

    async def stop(self) -> None:
        """End the loop and join its thread; nothing of it is left then. Of the home node, only forget the thread.

        From any loop, and again when it was cancelled.
        """
        self.thread_id = 0  # another loop may run in this thread later
        if self._thread is None:
            return
        with suppress(RuntimeError):  # it is closed already
            self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.shield(asyncio.wrap_future(self._ended))
        self._thread.join()  # it has nothing left to do

    def __repr__(self) -> str:
        return f"<Node {self.name}>"


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)
