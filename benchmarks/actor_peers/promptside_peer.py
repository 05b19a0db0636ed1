"""This project, with its defaults: typed asks with a deadline, bounded mailboxes, supervision, events.

`tell` goes to an actor with a larger mailbox, because the default rejects what does not fit.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from benchmarks.actor_peers import Peer
from promptside.actors import Actor, ActorRef, ActorSystem
from promptside.errors import ActorStopped
from promptside.supervision import ChildSpec, Supervisor

__all__ = ["Subject"]


class Echo(Actor):
    def __init__(self) -> None:
        self.count = 0

    async def echo(self, value: int) -> int:
        return value

    async def note(self, value: int) -> None:
        self.count += 1

    async def total(self) -> int:
        return self.count

    async def crash(self) -> None:
        raise RuntimeError("crash")


class Sink(Echo, mailbox=1_000_000):
    """The same actor with room for every tell of a measurement."""


class Busy(Echo, max_concurrency=10_000, mailbox=10_000, shutdown=0):
    """The same actor, which handles many messages at a time."""

    async def wait(self) -> None:
        await asyncio.Event().wait()


class Asker(Actor):
    async def ask(self, other: ActorRef[Echo], times: int) -> None:
        for value in range(times):
            await other.ask(Echo.echo, value)


class Subject(Peer[ActorRef[Echo]]):
    _system: ActorSystem

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        async with ActorSystem() as self._system:
            yield

    async def spawn(self) -> ActorRef[Echo]:
        return await self._system.spawn(Echo)

    async def stop(self, ref: ActorRef[Echo]) -> None:
        await ref.stop()

    async def ask(self, ref: ActorRef[Echo], times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.ask(Echo.echo, value)
        return answer

    async def spawn_busy(self, under_way: int) -> ActorRef[Echo]:
        ref = await self._system.spawn(Busy)
        for _ in range(under_way):
            ref.tell(Busy.wait)
        return ref

    async def ask_busy(self, ref: ActorRef[Echo], times: int) -> None:
        asker = await self._system.spawn(Asker)
        await asker.with_options(timeout=math.inf).ask(Asker.ask, ref, times)
        await asker.stop()

    async def spawn_sink(self) -> ActorRef[Echo]:
        return await self._system.spawn(Sink)

    async def tell(self, ref: ActorRef[Echo], times: int) -> None:
        for value in range(times):
            ref.tell(Echo.note, value)

    async def total(self, ref: ActorRef[Echo]) -> int:
        return await ref.ask(Echo.total)

    async def spawn_supervised(self) -> ActorRef[Echo]:
        supervisor = await self._system.spawn(Supervisor, [ChildSpec(id="echo", start=Echo)], max_restarts=1_000_000)
        [child] = await supervisor.ask(Supervisor.which_children)
        ref: ActorRef[Echo] = child.ref
        return ref

    async def crash(self, ref: ActorRef[Echo]) -> None:
        ref.tell(Echo.crash)
        while True:
            try:
                await ref.ask(Echo.echo, 0)
            except ActorStopped:
                await self.checkpoint()
            else:
                return
