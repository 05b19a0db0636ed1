"""triotp: generic servers and supervisors on trio. A call or cast is a rendezvous: there is no mailbox buffer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import trio
from logbook import NullHandler
from triotp import gen_server, mailbox, supervisor

from benchmarks.actor_peers import Job, Peer

__all__ = ["Subject"]

T = TypeVar("T")


class Subject(Peer[str]):
    _nursery: trio.Nursery

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def in_session() -> T:
            async with self.session():
                return await main()

        with NullHandler().applicationbound():
            result: T = trio.run(in_session)
        return result

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        # What `triotp.node.run` does before it starts an application.
        mailbox._init()
        self._names = map(str, itertools.count())
        self._alive = 0
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    async def together(self, jobs: Sequence[Job]) -> None:
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()

    def _server(self, started: trio.Event) -> SimpleNamespace:
        """The module of one generic server; triotp takes any object with these functions."""

        async def init(_: None) -> int:
            started.set()
            self._alive += 1
            return 0

        async def terminate(reason: BaseException | None, count: int) -> None:
            self._alive -= 1

        async def handle_call(message: Any, caller: object, count: int) -> tuple[Any, int]:
            match message:
                case ("echo", value):
                    return gen_server.Reply(payload=value), count
                case _:
                    return gen_server.Reply(payload=count), count

        async def handle_cast(message: Any, count: int) -> tuple[Any, int]:
            match message:
                case ("note", _):
                    return gen_server.NoReply(), count + 1
                case ("stop",):
                    return gen_server.Stop(), count
                case _:
                    raise RuntimeError("crash")

        return SimpleNamespace(
            init=init, terminate=terminate, handle_call=handle_call, handle_cast=handle_cast, __name__="echo"
        )

    async def spawn(self) -> str:
        name = next(self._names)
        started = trio.Event()
        self._nursery.start_soon(gen_server.start, self._server(started), None, name)
        await started.wait()
        return name

    async def stop(self, ref: str) -> None:
        await gen_server.cast(ref, ("stop",))

    async def settle(self) -> None:
        while self._alive:
            await self.checkpoint()

    async def ask(self, ref: str, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await gen_server.call(ref, ("echo", value))
        return answer

    async def tell(self, ref: str, times: int) -> None:
        for value in range(times):
            await gen_server.cast(ref, ("note", value))

    async def total(self, ref: str) -> int:
        count: int = await gen_server.call(ref, ("total",))
        return count

    async def spawn_supervised(self) -> str:
        name = next(self._names)
        started = trio.Event()
        spec = supervisor.child_spec(id=name, task=gen_server.start, args=[self._server(started), None, name])
        options = supervisor.options(max_restarts=1_000_000, max_seconds=1)
        await self._nursery.start(supervisor.start, [spec], options)
        await started.wait()
        return name

    async def crash(self, ref: str) -> None:
        await gen_server.cast(ref, ("crash",))
        while True:
            try:
                await gen_server.call(ref, ("echo", 0))
            except (mailbox.MailboxDoesNotExist, trio.ClosedResourceError, trio.BrokenResourceError):
                await self.checkpoint()
            else:
                return
