"""The floor: a bare deque, one waiter future per actor and one reply future per ask, on asyncio.

It is the cheapest honest actor: its handler is an async method that is awaited, one message at a time, in order of
arrival, and what it raises reaches the asker. It has no methods, timeout, bound, name, cancellation or context.
"""

from __future__ import annotations

import asyncio
from collections import deque

from benchmarks.actor_peers import Peer

__all__ = ["CRASH", "Echo", "FloorActor", "Subject"]

CRASH = None
Message = tuple[int | None, "asyncio.Future[int] | None"]


class Echo:
    """Counts its messages and returns them; `CRASH` it raises at."""

    def __init__(self) -> None:
        self.count = 0

    async def receive(self, message: int | None) -> int:
        if message is CRASH:
            raise RuntimeError("crash")
        self.count += 1
        return message


class FloorActor:
    """One task that takes messages from a deque and waits on a future while it is empty."""

    __slots__ = ("_loop", "_messages", "_restarts", "_stopping", "_task", "_waiter", "echo")

    def __init__(self, *, restarts: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._restarts = restarts
        self._messages: deque[Message] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._stopping = False
        self._start()

    def ask(self, message: int | None) -> asyncio.Future[int]:
        reply = self._loop.create_future()
        self._messages.append((message, reply))
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        return reply

    def tell(self, message: int | None) -> None:
        self._messages.append((message, None))
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def stop(self) -> None:
        self._stopping = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        await self._task

    def _start(self) -> None:
        self.echo = Echo()
        self._task = self._loop.create_task(self._run())
        if self._restarts:
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._start()

    async def _run(self) -> None:
        echo = self.echo
        messages = self._messages
        while True:
            while messages:
                message, reply = messages.popleft()
                try:
                    answer = await echo.receive(message)
                except Exception as error:
                    if reply is None:
                        raise
                    if not reply.done():
                        reply.set_exception(error)
                else:
                    if reply is not None and not reply.done():
                        reply.set_result(answer)
            if self._stopping:
                return
            self._waiter = waiter = self._loop.create_future()
            await waiter


class Subject(Peer[FloorActor]):
    async def spawn(self) -> FloorActor:
        return FloorActor()

    async def stop(self, ref: FloorActor) -> None:
        await ref.stop()

    async def ask(self, ref: FloorActor, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.ask(value)
        return answer

    async def tell(self, ref: FloorActor, times: int) -> None:
        for value in range(times):
            ref.tell(value)

    async def total(self, ref: FloorActor) -> int:
        await self.checkpoint()
        return ref.echo.count

    async def spawn_supervised(self) -> FloorActor:
        return FloorActor(restarts=True)

    async def crash(self, ref: FloorActor) -> None:
        ref.tell(CRASH)
        await ref.ask(0)
