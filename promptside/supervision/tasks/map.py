"""`map` over a task supervisor: one task per item, no more of them than the consumer has demand for.

Made by `TaskSupervisor.map`, read by its consumer. The source is read by a task of its own, on the consumer's event
loop, so that a slow source does not hold back results that are ready.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import copy_context
from typing import Generic, TypeVar

from promptside.actors import Node
from promptside.actors.spi import CURRENT, Envelope, cell_of, running
from promptside.supervision.tasks.actors import MapSource, Task, TaskReply, TaskSupervisorActor

__all__ = ["TaskMap"]

R = TypeVar("R")
T = TypeVar("T")


class TaskMap(Generic[T, R]):
    """One `map` under way. Everything here runs on the consumer's event loop."""

    def __init__(
        self,
        running_host: Callable[[], TaskSupervisorActor],
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        max_concurrency: int,
        ordered: bool,
        return_exceptions: bool,
    ) -> None:
        self._running_host = running_host
        self._fn = fn
        self._items = items
        self._max_concurrency = max_concurrency
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._pulled = 0  # items whose results the consumer has not got
        self._unread: deque[TaskReply] = deque()  # of those: in order all of them, else the ones that are ready
        self._running: dict[TaskReply, Envelope] = {}
        self._over = False  # whether no further item is wanted
        self._changed = asyncio.Event()
        self._demand = asyncio.Event()

    async def results(self) -> AsyncGenerator[R | Exception, None]:
        """What the consumer reads."""
        self._start()
        try:
            while (outcome := await self._next()) is not None:
                if outcome.error is None:
                    yield outcome.value
                elif self._return_exceptions:
                    yield outcome.error
                else:
                    raise outcome.take_error()
        finally:
            self._over = True
            if self._sender is not None:
                self._sender.waits.discard(self._reader)
            await self._host.cancel(self._reader, *self._running.values())

    def _start(self) -> None:
        self._host = self._running_host()
        self._loop = asyncio.get_running_loop()
        self._sender = running(CURRENT.get())
        self._context = copy_context()
        changed = self._changed  # not `self`, which would be a cycle
        self._source = TaskReply(self._loop, lambda _: changed.set())
        self._reader = self._host.make_envelope(
            MapSource, self.source, (), {}, self._source, self._sender, self._context.copy(), _node_here(self._host)
        )
        if self._sender is not None:
            self._sender.waits.add(self._reader)
        self._host.submit(self._reader)

    async def source(self) -> None:
        """What reads the items, as demand allows; its name stands in the tree."""
        async with aclosing(_each(self._items)) as items:
            async for item in items:
                if not self._over:
                    self._begin(item)
                while self._pulled >= self._max_concurrency and not self._over:
                    self._demand.clear()
                    await self._demand.wait()
                if self._over:
                    return

    def _begin(self, item: T) -> None:
        sender = self._sender if self._sender is not None and self._sender.running else None
        outcome = TaskReply(self._loop, self._settled)
        envelope = self._host.make_envelope(Task, self._fn, (item,), {}, outcome, sender, self._context.copy())
        self._pulled += 1
        self._running[outcome] = envelope
        if self._ordered:
            self._unread.append(outcome)
        if sender is not None:
            sender.waits.add(envelope)
        self._host.submit(envelope, waits_for_room=len(self._running) > 1 or not self._within_a_task())

    def _within_a_task(self) -> bool:
        message = self._sender
        while message is not None and message.cell.parent is not cell_of(self._host):
            message = None if message.ask is None else message.ask.sender
        return message is not None

    def _settled(self, outcome: TaskReply) -> None:
        envelope = self._running.pop(outcome)
        self._host.reap(envelope)
        if self._sender is not None:
            self._sender.waits.discard(envelope)
        if not self._ordered:
            self._unread.append(outcome)
        if outcome.error is not None and not self._return_exceptions:
            self._over = True
        self._changed.set()

    async def _next(self) -> TaskReply | None:
        """The next outcome for the consumer; None after the last one."""
        while True:
            if self._unread and self._unread[0].done():
                self._pulled -= 1
                self._demand.set()
                return self._unread.popleft()
            if self._pulled == 0 and self._source.done():
                if self._source.error is not None:
                    raise self._source.take_error()
                return None
            self._changed.clear()
            await self._changed.wait()


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """The items of either kind of source; closing it closes an async one."""
    if isinstance(items, AsyncIterable):
        iterator = aiter(items)
        try:
            async for item in iterator:
                yield item
        finally:
            if (close := getattr(iterator, "aclose", None)) is not None:
                await close()
    else:
        for item in items:
            yield item


def _node_here(host: TaskSupervisorActor) -> Node:
    """The caller's event loop as a node: its own one where it is the host's or the system's, else one for the while."""
    loop = asyncio.get_running_loop()
    for node in (host.node, host.system.home):
        if node.loop is loop:
            return node
    return Node(threading.current_thread().name, loop, threading.get_ident())
