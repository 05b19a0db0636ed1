"""papyra: actors with one `receive` on anyio memory object streams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from papyra import Actor, ActorSystem
from papyra.exceptions import ActorStopped
from papyra.ref import ActorRef
from papyra.supervision import Strategy, SupervisionPolicy

from benchmarks.actor_peers import Peer

__all__ = ["Subject"]


class Subject(Peer[ActorRef]):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self._alive = 0
        async with ActorSystem() as self._system:
            yield

    def _echo(self) -> Actor:
        return Echo(self)

    def ended(self) -> None:
        """One actor has run its `on_stop`."""
        self._alive -= 1

    async def spawn(self) -> ActorRef:
        self._alive += 1
        return self._system.spawn(self._echo)

    async def stop(self, ref: ActorRef) -> None:
        await self._system.stop(ref)

    async def settle(self) -> None:
        while self._alive:
            await self.checkpoint()

    async def ask(self, ref: ActorRef, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.ask(("echo", value))
        return answer

    async def spawn_sink(self) -> ActorRef:
        return self._system.spawn(self._echo, mailbox_capacity=1_000_000)

    async def tell(self, ref: ActorRef, times: int) -> None:
        for value in range(times):
            await ref.tell(("note", value))

    async def total(self, ref: ActorRef) -> int:
        count: int = await ref.ask(("total",))
        return count

    async def spawn_supervised(self) -> ActorRef:
        policy = SupervisionPolicy(strategy=Strategy.RESTART, max_restarts=1_000_000)
        return self._system.spawn(self._echo, policy=policy)

    async def crash(self, ref: ActorRef) -> None:
        await ref.tell(("crash",))
        while True:
            try:
                await ref.ask(("echo", 0))
            except ActorStopped:
                await self.checkpoint()
            else:
                return


class Echo(Actor):
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.count = 0

    async def receive(self, message: Any) -> Any:
        match message:
            case ("echo", value):
                return value
            case ("note", _):
                self.count += 1
            case ("total",):
                return self.count
            case _:
                raise RuntimeError("crash")
        return None

    async def on_stop(self) -> None:
        self.subject.ended()
