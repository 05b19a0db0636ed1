"""What most people write first: an `asyncio.Queue` per actor and an `asyncio.Future` per ask."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.actor_peers import Peer
from benchmarks.actor_peers.floor import CRASH, Echo

__all__ = ["Subject"]

STOP = object()


class QueueActor:
    """One task that takes messages from a queue."""

    def __init__(self, *, restarts: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._restarts = restarts
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[int] | None]] = asyncio.Queue()
        self._start()

    def ask(self, message: int | None) -> asyncio.Future[int]:
        reply = self._loop.create_future()
        self._queue.put_nowait((message, reply))
        return reply

    def tell(self, message: int | None) -> None:
        self._queue.put_nowait((message, None))

    async def stop(self) -> None:
        self._queue.put_nowait((STOP, None))
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
        while True:
            message, reply = await self._queue.get()
            if message is STOP:
                return
            try:
                answer = await self.echo.receive(message)
            except Exception as error:
                if reply is None:
                    raise
                if not reply.done():
                    reply.set_exception(error)
            else:
                if reply is not None and not reply.done():
                    reply.set_result(answer)


class Subject(Peer[QueueActor]):
    async def spawn(self) -> QueueActor:
        return QueueActor()

    async def stop(self, ref: QueueActor) -> None:
        await ref.stop()

    async def ask(self, ref: QueueActor, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.ask(value)
        return answer

    async def tell(self, ref: QueueActor, times: int) -> None:
        for value in range(times):
            ref.tell(value)

    async def total(self, ref: QueueActor) -> int:
        await self.checkpoint()
        return ref.echo.count

    async def spawn_supervised(self) -> QueueActor:
        return QueueActor(restarts=True)

    async def crash(self, ref: QueueActor) -> None:
        ref.tell(CRASH)
        await ref.ask(0)
