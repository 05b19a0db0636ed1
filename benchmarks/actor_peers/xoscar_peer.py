"""xoscar: actors in an actor pool of this process. A call runs the method in the caller's task, under a lock."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import xoscar

from benchmarks.actor_peers import Peer

__all__ = ["Subject"]


class Echo(xoscar.Actor):
    def __init__(self) -> None:
        self.count = 0

    async def echo(self, value: int) -> int:
        return value

    async def note(self, value: int) -> None:
        self.count += 1

    async def total(self) -> int:
        return self.count


class Subject(Peer[Any]):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        pool = await xoscar.create_actor_pool("127.0.0.1", n_process=0)
        async with pool:
            self._address = pool.external_address
            self._number = 0
            yield

    async def spawn(self) -> Any:
        self._number += 1
        return await xoscar.create_actor(Echo, uid=f"echo-{self._number}", address=self._address)

    async def stop(self, ref: Any) -> None:
        await xoscar.destroy_actor(ref)

    async def ask(self, ref: Any, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await ref.echo(value)
        return answer

    async def tell(self, ref: Any, times: int) -> None:
        for value in range(times):
            await ref.note.tell(value)

    async def total(self, ref: Any) -> int:
        count: int = await ref.total()
        return count
