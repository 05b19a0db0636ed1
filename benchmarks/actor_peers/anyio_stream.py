"""An actor from anyio's parts: a memory object stream for the mailbox and one for each reply, in one task group."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio.abc import TaskGroup

from benchmarks.actor_peers import Peer
from benchmarks.actor_peers.floor import CRASH, Echo

__all__ = ["Subject"]


class StreamActor:
    """One task that takes messages from a stream."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Any](math.inf)
        self._ended = anyio.Event()
        self.echo = Echo()

    async def ask(self, message: int | None) -> Any:
        reply, answer = anyio.create_memory_object_stream[Any](1)
        with reply, answer:
            await self._send.send((message, reply))
            value, error = await answer.receive()
        if error is not None:
            raise error
        return value

    def tell(self, message: int | None) -> None:
        self._send.send_nowait((message, None))

    async def stop(self) -> None:
        self._send.close()
        await self._ended.wait()

    async def run(self, restarts: bool) -> None:
        while True:
            try:
                return await self._run()
            except RuntimeError:
                if not restarts:
                    raise
                self.echo = Echo()

    async def _run(self) -> None:
        async for message, reply in self._receive:
            try:
                outcome: tuple[int | None, Exception | None] = (await self.echo.receive(message), None)
            except Exception as error:
                if reply is None:
                    raise
                outcome = (None, error)
            if reply is not None:
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    reply.send_nowait(outcome)
        self._ended.set()


class Subject(Peer[StreamActor]):
    _group: TaskGroup

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._group:
            yield
            self._group.cancel_scope.cancel()

    async def spawn(self) -> StreamActor:
        actor = StreamActor()
        self._group.start_soon(actor.run, False)
        return actor

    async def stop(self, ref: StreamActor) -> None:
        await ref.stop()

    async def ask(self, ref: StreamActor, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.ask(value)
        return answer

    async def tell(self, ref: StreamActor, times: int) -> None:
        for value in range(times):
            ref.tell(value)

    async def total(self, ref: StreamActor) -> int:
        await self.checkpoint()
        return ref.echo.count

    async def spawn_supervised(self) -> StreamActor:
        actor = StreamActor()
        self._group.start_soon(actor.run, True)
        return actor

    async def crash(self, ref: StreamActor) -> None:
        ref.tell(CRASH)
        await ref.ask(0)
