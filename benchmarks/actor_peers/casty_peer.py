"""casty: virtual actors on a core in Rust; messages and replies are serialized within a process too.

An actor exists from its first message on, so starting one is an ask.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from casty import ActorSystem, Askable, Backoff, Context, Ref, actor

from benchmarks.actor_peers import Peer

__all__ = ["Subject"]


@dataclass(frozen=True)
class Value(Askable[int]):
    value: int


@dataclass(frozen=True)
class Note:
    value: int


@dataclass(frozen=True)
class Total(Askable[int]):
    pass


@dataclass(frozen=True)
class Crash:
    pass


@actor(initial=0, idle_after=timedelta(hours=1), backoff=Backoff(first=timedelta(0)))
async def echo(ctx: Context[int, Value | Note | Total | Crash]) -> None:
    count = 0
    async for message in ctx.inbox:
        match message:
            case Value(value):
                message.reply_to.tell(value)
            case Note():
                count += 1
            case Total():
                message.reply_to.tell(count)
            case Crash():
                raise RuntimeError("crash")


@dataclass(frozen=True)
class Entity:
    key: str
    ref: Ref[Value | Note | Total | Crash]


class Subject(Peer[Entity]):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self._keys = map(str, itertools.count())
        async with ActorSystem() as self._system:
            yield

    async def spawn(self) -> Entity:
        key = next(self._keys)
        entity = Entity(key, self._system.ref(echo, key))
        await entity.ref.ask(Value(0))
        return entity

    async def stop(self, ref: Entity) -> None:
        await self._system.release(echo, ref.key)

    async def ask(self, ref: Entity, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.ref.ask(Value(value))
        return answer

    async def tell(self, ref: Entity, times: int) -> None:
        for value in range(times):
            ref.ref.tell(Note(value))

    async def total(self, ref: Entity) -> int:
        count: int = await ref.ref.ask(Total())
        return count

    async def spawn_supervised(self) -> Entity:
        return await self.spawn()

    async def crash(self, ref: Entity) -> None:
        ref.ref.tell(Crash())
        await ref.ref.ask(Value(0))
