"""async-pykka: pykka's interface on one asyncio loop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import async_pykka

from benchmarks.actor_peers import Peer

__all__ = ["Subject"]


class Echo(async_pykka.AsyncioActor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    async def on_receive(self, message: Any) -> Any:
        match message:
            case ("echo", value):
                return value
            case ("note", _):
                self.count += 1
            case ("total",):
                return self.count
        return None


class Subject(Peer["async_pykka.ActorRef[Echo]"]):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        yield
        await async_pykka.ActorRegistry.stop_all()

    async def spawn(self) -> async_pykka.ActorRef[Echo]:
        return Echo.start()

    async def stop(self, ref: async_pykka.ActorRef[Echo]) -> None:
        await ref.stop()

    async def ask(self, ref: async_pykka.ActorRef[Echo], times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.ask(("echo", value))
        return answer

    async def tell(self, ref: async_pykka.ActorRef[Echo], times: int) -> None:
        for value in range(times):
            ref.tell(("note", value))

    async def total(self, ref: async_pykka.ActorRef[Echo]) -> int:
        count: int = await ref.ask(("total",))
        return count
