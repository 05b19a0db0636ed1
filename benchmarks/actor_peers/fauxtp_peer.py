"""fauxtp: GenServers with selective receive in an anyio task group."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import fauxtp
from anyio.abc import TaskGroup
from fauxtp.actor.base import ActorHandle

from benchmarks.actor_peers import Peer

__all__ = ["Subject"]


class Echo(fauxtp.GenServer):
    async def init(self) -> int:
        return 0

    async def handle_call(self, request: Any, from_ref: object, state: int) -> tuple[Any, int]:
        match request:
            case ("echo", value):
                return value, state
            case _:
                return state, state

    async def handle_cast(self, request: Any, state: int) -> int:
        match request:
            case ("note", _):
                return state + 1
            case _:
                raise RuntimeError("crash")


class Subject(Peer[ActorHandle]):
    _group: TaskGroup

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self._alive = 0
        async with anyio.create_task_group() as self._group:
            yield
            self._group.cancel_scope.cancel()

    async def _exited(self, pid: fauxtp.PID, reason: str) -> None:
        self._alive -= 1

    async def spawn(self) -> ActorHandle:
        self._alive += 1
        return await Echo.start_link(task_group=self._group, on_exit=self._exited)

    async def stop(self, ref: ActorHandle) -> None:
        ref.cancel_scope.cancel()

    async def settle(self) -> None:
        while self._alive:
            await self.checkpoint()

    async def ask(self, ref: ActorHandle, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await fauxtp.call(ref.pid, ("echo", value))
        return answer

    async def tell(self, ref: ActorHandle, times: int) -> None:
        for value in range(times):
            await fauxtp.cast(ref.pid, ("note", value))

    async def total(self, ref: ActorHandle) -> int:
        count: int = await fauxtp.call(ref.pid, ("total",))
        return count

    async def spawn_supervised(self) -> ActorHandle:
        self._registry = await fauxtp.Registry.start(task_group=self._group)
        specs = [fauxtp.ChildSpec(actor=Echo, name="echo")]
        supervisor = await fauxtp.Supervisor.start_link(specs, registry=self._registry, task_group=self._group)
        self._child = await self._other_than(None)
        return supervisor

    async def crash(self, ref: ActorHandle) -> None:
        await fauxtp.cast(self._child, ("crash",))
        # A call that meets the crash would wait for its timeout, so the registry is asked for the next one first.
        self._child = await self._other_than(self._child)
        await fauxtp.call(self._child, ("echo", 0))

    async def _other_than(self, crashed: fauxtp.PID | None) -> fauxtp.PID:
        while True:
            pid = await fauxtp.call(self._registry, ("get", "echo"))
            if pid is not None and pid is not crashed:
                return pid
